//! One column of the table.

use super::cell::Cell;
use super::text::width;

pub struct Column {
    /// Two lines; the upper one is mostly empty.
    pub title: [String; 2],
    pub cells: Vec<Cell>,
    /// At least so wide, to keep a live picture from jumping.
    pub least: usize,
    pub is_number: bool,
}

impl Column {
    pub fn width(&self) -> usize {
        let titles = self.title.iter().map(|title| width(title));
        let cells = self.cells.iter().map(Cell::width);
        titles.chain(cells).max().unwrap_or(0).max(self.least)
    }
}
