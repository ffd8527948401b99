//! Leaves Codex's own events (`codex.*`) out of a stream for clients of the strict contract. All
//! other bytes stay as they are; an event is passed on when it is complete.

use bytes::Bytes;

#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// The bytes that may go on now.
    pub fn pass(&mut self, bytes: &Bytes) -> Bytes {
        if self.pending.is_empty() && is_event_end(bytes) && !mentions_codex(bytes) {
            return bytes.clone();
        }
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(self.pending.len());
        let mut start = 0;
        while let Some(end) = event_end(&self.pending[start..]) {
            let event = &self.pending[start..start + end];
            if !is_codex(event) {
                out.extend_from_slice(event);
            }
            start += end;
        }
        self.pending.drain(..start);
        Bytes::from(out)
    }

    /// What is left at the end of the stream.
    pub fn rest(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.pending))
    }
}

fn is_event_end(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n")
}

/// Length of the first event, its blank line included.
fn event_end(bytes: &[u8]) -> Option<usize> {
    let lf = memchr::memmem::find(bytes, b"\n\n").map(|at| at + 2);
    let crlf = memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4);
    match (lf, crlf) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn mentions_codex(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, b"codex.").is_some()
}

/// By its name, or by a type at the very front of its data: not by what a model may have written.
fn is_codex(event: &[u8]) -> bool {
    event.split(|byte| *byte == b'\n').any(|line| {
        let value = |field: &[u8]| {
            let rest = line.strip_prefix(field)?;
            Some(rest.strip_prefix(b" ").unwrap_or(rest))
        };
        value(b"event:").is_some_and(|name| name.starts_with(b"codex."))
            || value(b"data:").is_some_and(|data| data.starts_with(b"{\"type\":\"codex."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_codex_events_only() {
        let limits = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\"}\n\n";
        let bare = "data: {\"type\":\"codex.x\"}\n\n";
        let text = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"codex.y\"}\n\n";
        let stream = [text, limits, ": ping\n\n", bare, text, "data: torn"].concat();
        let want = [text, ": ping\n\n", text, "data: torn"].concat();
        for size in [1, 2, 7, 50, stream.len()] {
            let mut splitter = Splitter::default();
            let mut got = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                got.extend_from_slice(&splitter.pass(&Bytes::copy_from_slice(chunk)));
            }
            got.extend_from_slice(&splitter.rest());
            assert_eq!(String::from_utf8(got).unwrap(), want, "in pieces of {size}");
        }
    }
}
