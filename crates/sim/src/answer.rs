//! The content of answers: one JSON text, or the events of a stream with a note on each.
//!
//! Bytes are a pure function of dialect, model, shape and streaming; only opaque content names
//! the account. A file per API makes them.

pub mod chat;
pub mod memo;
pub mod messages;
pub mod responses;

use std::time::Duration;

use bytes::Bytes;

/// A constant, so that the same question has the same bytes as its answer.
pub const CREATED_AT: u64 = 1_800_000_000;

/// What one event of a stream is, as seen by someone who may still start over elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Says only that the answer began.
    Opening,
    /// Frames the content, like the start of an item.
    Structure,
    /// Carries content: a text delta, or a finished reasoning or compaction item.
    Output,
}

/// Pauses between events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// After each event.
    pub event: Duration,
    /// After each that carries content.
    pub text: Duration,
}

impl Gap {
    pub fn after(self, role: Role) -> Duration {
        if role == Role::Output { self.event.max(self.text) } else { self.event }
    }
}

/// A content, and how it goes out.
#[derive(Clone, Debug)]
pub enum Content {
    Json(Bytes),
    Events(Events),
}

impl Content {
    /// Bytes.
    fn len(&self) -> usize {
        match self {
            Self::Json(bytes) => bytes.len(),
            Self::Events(events) => events.text.len(),
        }
    }
}

/// The events of a stream, back to back.
#[derive(Clone, Debug)]
pub struct Events {
    text: String,
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    end: usize,
    role: Role,
}

impl Events {
    pub fn with_capacity(bytes: usize, events: usize) -> Self {
        Self { text: String::with_capacity(bytes), marks: Vec::with_capacity(events) }
    }

    /// Appends one event, which `write` writes.
    pub fn push(&mut self, role: Role, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.marks.push(Mark { end: self.text.len(), role });
    }

    /// The events, each with its role.
    pub fn split(self) -> (Bytes, impl Iterator<Item = (std::ops::Range<usize>, Role)>) {
        let mut start = 0;
        let ranges = self.marks.into_iter().map(move |mark| {
            let range = start..mark.end;
            start = mark.end;
            (range, mark.role)
        });
        (Bytes::from(self.text), ranges)
    }

    /// Keeps only the events up to the first that is not of the opening.
    pub fn keep_opening(&mut self) {
        let opening = self.marks.iter().take_while(|mark| mark.role == Role::Opening).count();
        self.keep(opening);
    }

    /// Keeps the events up to the `outputs`-th that carries content.
    pub fn keep_outputs(&mut self, outputs: u32) {
        let mut seen = 0;
        let keep = self.marks.iter().take_while(|mark| {
            let more = seen < outputs;
            seen += u32::from(mark.role == Role::Output);
            more
        });
        let keep = keep.count();
        self.keep(keep);
    }

    fn keep(&mut self, events: usize) {
        self.marks.truncate(events);
        let end = self.marks.last().map_or(0, |mark| mark.end);
        self.text.truncate(end);
    }

    /// How many events there are; the next one's sequence number.
    pub fn len(&self) -> usize {
        self.marks.len()
    }
}

/// Writes formatted text to a `String`, which takes everything.
macro_rules! put {
    ($to:expr, $($format:tt)+) => {{
        use std::fmt::Write as _;
        write!($to, $($format)+).expect("a String takes everything")
    }};
}
pub(crate) use put;

/// Displays a string as JSON.
pub struct Quoted<'a>(pub &'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
        if self.0.bytes().all(plain) {
            f.write_str("\"")?;
            f.write_str(self.0)?;
            return f.write_str("\"");
        }
        let text = serde_json::to_string(self.0).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}
