//! A picture on a terminal that is drawn over its former self. No full-screen mode: what was above
//! stays, and so does the last picture.

use std::fmt::Write as _;

use crate::table::terminal;

#[derive(Debug, Default)]
pub struct Screen {
    /// Lines of the last picture, above the cursor.
    drawn: usize,
    /// Rows of the terminal. `None`: it does not say.
    rows: Option<usize>,
}

impl Screen {
    pub fn measure(&mut self) {
        self.rows = terminal::size().map(|size| size.rows);
    }

    /// The bytes that replace the last picture by this one. Pictures taller than the terminal lose
    /// their end, since lines that have scrolled away cannot be drawn over.
    pub fn replace(&mut self, picture: &str) -> String {
        let most = self.rows.map_or(usize::MAX, |rows| rows.saturating_sub(1).max(1));
        // Lines never wrap while drawing: a row more than counted would shift every later picture.
        let mut bytes = String::from("\u{1b}[?7l\r");
        if self.drawn > 0 {
            let _ = write!(bytes, "\u{1b}[{}A", self.drawn);
        }
        self.drawn = 0;
        for line in picture.lines().take(most) {
            // Cleared first: after a full line the cursor still stands on its last character.
            bytes.extend(["\u{1b}[K", line, "\n"]);
            self.drawn += 1;
        }
        bytes.push_str("\u{1b}[J\u{1b}[?7h");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_up_by_what_it_drew() {
        let mut screen = Screen { drawn: 0, rows: Some(3) };
        assert!(!screen.replace("a\nb\nc\n").contains('A'));
        let second = screen.replace("a\n");
        assert!(second.contains("\u{1b}[2A"), "the third line had no room: {second:?}");
        assert!(screen.replace("a\n").contains("\u{1b}[1A"));
    }
}
