//! Pieces of painted text. Widths are those of the text; paint is added last and takes no room.

use super::text::{cut, width};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Bold,
    Faint,
    Good,
    Fair,
    Bad,
}

impl Paint {
    /// The terminal's own palette, so that it suits light and dark ones.
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Faint => Some("2"),
            Self::Good => Some("32"),
            Self::Fair => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Cell(Vec<(String, Paint)>);

impl Cell {
    pub fn of(text: &str, paint: Paint) -> Self {
        Self(vec![(text.to_owned(), paint)])
    }

    pub fn push(&mut self, text: &str, paint: Paint) {
        self.0.push((text.to_owned(), paint));
    }

    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn width(&self) -> usize {
        self.0.iter().map(|(text, _)| width(text)).sum()
    }

    /// Filled up with spaces, before the text or after it.
    pub fn pad(mut self, columns: usize, before: bool) -> Self {
        let missing = " ".repeat(columns.saturating_sub(self.width()));
        let at = if before { 0 } else { self.0.len() };
        self.0.insert(at, (missing, Paint::Plain));
        self
    }

    /// At most `columns` wide.
    pub fn cut(self, columns: usize) -> Self {
        if self.width() <= columns {
            return self;
        }
        let mut left = columns;
        let mut short = Self::default();
        for (text, paint) in self.0 {
            let is_last = width(&text) > left;
            short.0.push((cut(&text, left), paint));
            if is_last {
                break;
            }
            left -= width(&text);
        }
        short
    }

    pub fn write(&self, color: bool, to: &mut String) {
        for (text, paint) in &self.0 {
            match paint.code().filter(|_| color && !text.trim().is_empty()) {
                Some(code) => to.extend(["\u{1b}[", code, "m", text, "\u{1b}[0m"]),
                None => to.push_str(text),
            }
        }
    }
}
