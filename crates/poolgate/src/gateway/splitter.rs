//! Codex's own events (`codex.*`) in a stream: left out for clients of the strict contract; for
//! Codex, whose limits must be the pool's, the account's exchanged for those at the very same place.
//! All other bytes stay as they are; an event is passed on when it is complete.

use bytes::Bytes;
use serde_json::Value;

#[derive(Debug)]
pub struct Splitter {
    codex_events: CodexEvents,
    pending: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodexEvents {
    LeftOut,
    LimitsExchanged,
}

impl Splitter {
    pub fn new(codex_events: CodexEvents) -> Self {
        Self { codex_events, pending: Vec::new() }
    }

    /// The bytes that may go on now. `limits` are those of the pool, as an event.
    pub fn pass(&mut self, bytes: &Bytes, limits: impl Fn() -> Option<Value>) -> Bytes {
        if self.pending.is_empty() && is_event_end(bytes) && !mentions_codex(bytes) {
            return bytes.clone();
        }
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(self.pending.len());
        let mut start = 0;
        while let Some(end) = event_end(&self.pending[start..]) {
            let event = &self.pending[start..start + end];
            match (self.codex_events, is_codex(event), is_limits(event)) {
                (_, false, _) | (CodexEvents::LimitsExchanged, true, false) => {
                    out.extend_from_slice(event);
                }
                (CodexEvents::LeftOut, true, _) => {}
                (CodexEvents::LimitsExchanged, true, true) => {
                    if let Some(limits) = limits() {
                        let event = format!("event: codex.rate_limits\ndata: {limits}\n\n");
                        out.extend_from_slice(event.as_bytes());
                    }
                }
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

fn is_codex(event: &[u8]) -> bool {
    begins(event, b"codex.")
}

fn is_limits(event: &[u8]) -> bool {
    begins(event, b"codex.rate_limits")
}

/// By its name, or by a type at the very front of its data: not by what a model may have written.
fn begins(event: &[u8], kind: &[u8]) -> bool {
    event.split(|byte| *byte == b'\n').any(|line| {
        let value = |field: &[u8]| {
            let rest = line.strip_prefix(field)?;
            Some(rest.strip_prefix(b" ").unwrap_or(rest))
        };
        let data = || value(b"data:")?.strip_prefix(b"{\"type\":\"");
        value(b"event:").is_some_and(|name| name.starts_with(kind))
            || data().is_some_and(|data| data.starts_with(kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(codex_events: CodexEvents, stream: &str, size: usize) -> String {
        let mut splitter = Splitter::new(codex_events);
        let mut got = Vec::new();
        for chunk in stream.as_bytes().chunks(size) {
            let limits = || Some(serde_json::json!({"pool": 1}));
            got.extend_from_slice(&splitter.pass(&Bytes::copy_from_slice(chunk), limits));
        }
        got.extend_from_slice(&splitter.rest());
        String::from_utf8(got).unwrap()
    }

    #[test]
    fn exchanges_an_accounts_limits_for_the_pools() {
        let limits = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\",\"x\":9}\n\n";
        let bare = "data: {\"type\":\"codex.rate_limits\"}\n\n";
        let other = "event: codex.other\ndata: {}\n\n";
        let ours = "event: codex.rate_limits\ndata: {\"pool\":1}\n\n";
        let stream = [other, limits, ": ping\n\n", bare, "data: torn"].concat();
        let want = [other, ours, ": ping\n\n", ours, "data: torn"].concat();
        for size in [1, 9, stream.len()] {
            assert_eq!(split(CodexEvents::LimitsExchanged, &stream, size), want, "in {size}");
        }
    }

    #[test]
    fn leaves_out_codex_events_only() {
        let limits = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\"}\n\n";
        let bare = "data: {\"type\":\"codex.x\"}\n\n";
        let text = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"codex.y\"}\n\n";
        let stream = [text, limits, ": ping\n\n", bare, text, "data: torn"].concat();
        let want = [text, ": ping\n\n", text, "data: torn"].concat();
        for size in [1, 2, 7, 50, stream.len()] {
            assert_eq!(split(CodexEvents::LeftOut, &stream, size), want, "in pieces of {size}");
        }
    }
}
