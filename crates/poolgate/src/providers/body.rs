//! A JSON answer as it passes by: is it JSON at all, and what do two of its members say. Looked at
//! piece by piece, so that nothing is left to do at its end but to read these two.

use bytes::Bytes;

use crate::json::{Invalid, Scan, Text};

/// Answers up to this size are kept for reading their token counts.
const KEPT_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct Body {
    scan: Scan,
    invalid: Option<Invalid>,
    /// The pieces as they came, shared with whoever forwards them.
    text: Text,
}

/// What was asked for of an answer, as written; empty: absent, or too large to be kept.
#[derive(Debug, Default)]
pub struct Members {
    pub id: Vec<u8>,
    pub usage: Vec<u8>,
}

impl Body {
    pub fn feed(&mut self, piece: &Bytes) {
        if self.invalid.is_some() {
            return;
        }
        self.invalid = self.scan.feed(piece).err();
        if self.text.len() <= KEPT_MAX {
            self.text.push(piece.clone());
        }
    }

    pub fn end(self) -> Result<Members, Invalid> {
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        let spans = match self.scan.finish() {
            // Odd, and JSON all the same.
            Err(Invalid::NotAnObject) => return Ok(Members::default()),
            finished => finished?,
        };
        if self.text.len() > KEPT_MAX {
            return Ok(Members::default());
        }
        let member = |name: &[u8]| {
            let named = |key: &std::ops::Range<usize>| {
                key.len() == name.len() && *self.text.slice(key.clone()) == *name
            };
            let found = spans.iter().find(|span| named(&span.key));
            found.map(|span| self.text.slice(span.value.clone()).into_owned()).unwrap_or_default()
        };
        Ok(Members { id: member(br#""id""#), usage: member(br#""usage""#) })
    }
}
