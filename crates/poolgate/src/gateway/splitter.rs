//! Codex's own events (`codex.*`, and those that tell headers) in a stream: left out for clients of the
//! strict contract; for Codex, whose limits must be the pool's, the account's exchanged for those at the
//! very same place, and headers filtered. All other bytes stay as they are; an event is passed on when it
//! is complete.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde_json::Value;

use super::metadata::filtered;
use crate::providers::{event_kind, is_metadata};
use crate::sse::{EVENT_MAX, Scanner};

#[derive(Debug)]
pub struct Splitter {
    codex_events: CodexEvents,
    pending: Vec<u8>,
    /// Where the line under way begins in `pending`.
    line: usize,
    /// No line ends in `pending` from there to here.
    searched: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodexEvents {
    LeftOut,
    LimitsExchanged,
}

/// In which form the pool's limits take the place of an account's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Event,
    Headers,
}

impl Splitter {
    pub fn new(codex_events: CodexEvents) -> Self {
        Self { codex_events, pending: Vec::new(), line: 0, searched: 0 }
    }

    /// What may go on of an event without framing. `limits` are those of the pool.
    pub fn pass_message(
        &self,
        data: &Bytes,
        mut limits: impl FnMut(Form) -> Option<Value>,
    ) -> Bytes {
        match self.way(kind_of([b"", event_kind(data)])) {
            Way::On => data.clone(),
            Way::Nowhere => Bytes::new(),
            Way::Exchanged => {
                limits(Form::Event).map(|limits| limits.to_string().into()).unwrap_or_default()
            }
            Way::Filtered => match filtered(data, || limits(Form::Headers)) {
                Ok(changed) => changed.unwrap_or_else(|| data.clone()),
                Err(_) => Bytes::new(),
            },
        }
    }

    /// The bytes that may go on now, likewise.
    pub fn pass(&mut self, bytes: &Bytes, mut limits: impl FnMut(Form) -> Option<Value>) -> Bytes {
        if self.pending.is_empty() && is_event_end(bytes) && !mentions_codexs_own(bytes) {
            return bytes.clone();
        }
        self.pending.extend_from_slice(bytes);
        let Some(mut end) = self.next_end() else {
            return Bytes::new();
        };
        let mut out = Vec::with_capacity(self.pending.len());
        let mut start = 0;
        loop {
            let event = &self.pending[start..end];
            match self.way(kind(event)) {
                Way::On => out.extend_from_slice(event),
                Way::Nowhere => {}
                Way::Exchanged => put_limits(&mut out, &mut limits),
                Way::Filtered => put_filtered(&mut out, event, &mut limits),
            }
            start = end;
            match self.next_end() {
                Some(next) => end = next,
                None => break,
            }
        }
        self.pending.drain(..start);
        self.line -= start;
        self.searched -= start;
        Bytes::from(out)
    }

    /// An event that does not end: nobody may have us hold more.
    pub fn is_overfull(&self) -> bool {
        self.pending.len() > EVENT_MAX
    }

    /// Where the next event ends, its blank line included; lines end as the grammar says, by LF, CR or
    /// both. Every byte is looked at once, however many pieces an event comes in.
    fn next_end(&mut self) -> Option<usize> {
        while let Some(at) = memchr::memchr2(b'\n', b'\r', &self.pending[self.searched..]) {
            let end = self.searched + at;
            let after = match &self.pending[end..] {
                [b'\r', b'\n', ..] => end + 2,
                // A line feed may follow, and would belong to it.
                [b'\r'] => {
                    self.searched = end;
                    return None;
                }
                _ => end + 1,
            };
            let is_blank = end == self.line;
            (self.line, self.searched) = (after, after);
            if is_blank {
                return Some(after);
            }
        }
        self.searched = self.pending.len();
        None
    }

    /// What is left at the end of the stream: half an event, or one whose last CR could have had a
    /// line feed behind it. Clients take no notice of half an event, and still it may tell an
    /// account's limits.
    pub fn rest(&mut self, mut limits: impl FnMut(Form) -> Option<Value>) -> Bytes {
        let mut rest = std::mem::take(&mut self.pending);
        let (size, is_whole) = (rest.len(), rest[self.line..] == *b"\r");
        (self.line, self.searched) = (0, 0);
        if !is_whole {
            rest.extend_from_slice(b"\n\n");
        }
        let way = self.way(kind(&rest));
        rest.truncate(size);
        match way {
            Way::On => {}
            Way::Nowhere => rest.clear(),
            Way::Exchanged => {
                rest.clear();
                if is_whole {
                    put_limits(&mut rest, &mut limits);
                }
            }
            Way::Filtered => {
                let event = std::mem::take(&mut rest);
                if is_whole {
                    put_filtered(&mut rest, &event, &mut limits);
                }
            }
        }
        Bytes::from(rest)
    }

    fn way(&self, kind: Kind) -> Way {
        match (self.codex_events, kind) {
            (_, Kind::Other) | (CodexEvents::LimitsExchanged, Kind::Codex) => Way::On,
            (CodexEvents::LeftOut, Kind::Codex | Kind::Limits | Kind::Metadata) => Way::Nowhere,
            (CodexEvents::LimitsExchanged, Kind::Limits) => Way::Exchanged,
            (CodexEvents::LimitsExchanged, Kind::Metadata) => Way::Filtered,
        }
    }
}

/// What becomes of an event.
enum Way {
    On,
    Nowhere,
    /// For the pool's limits.
    Exchanged,
    /// On, with what may be told of its headers.
    Filtered,
}

fn put_limits(out: &mut Vec<u8>, limits: &mut impl FnMut(Form) -> Option<Value>) {
    if let Some(limits) = limits(Form::Event) {
        let event = format!("event: codex.rate_limits\ndata: {limits}\n\n");
        out.extend_from_slice(event.as_bytes());
    }
}

fn put_filtered(out: &mut Vec<u8>, event: &[u8], limits: &mut impl FnMut(Form) -> Option<Value>) {
    Scanner::default().feed(event, |told| {
        // What cannot be read might tell anything.
        match filtered(&Bytes::copy_from_slice(told.data), || limits(Form::Headers)) {
            Ok(None) => out.extend_from_slice(event),
            Ok(Some(data)) => {
                if !told.name.is_empty() {
                    out.extend_from_slice(&[b"event: ", told.name, b"\n"].concat());
                }
                out.extend_from_slice(b"data: ");
                // A line feed stands between the tokens of JSON.
                out.extend(data.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
                out.extend_from_slice(b"\n\n");
            }
            Err(_) => {}
        }
    });
}

fn is_event_end(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n")
}

fn mentions_codexs_own(bytes: &[u8]) -> bool {
    // Prepared once: that costs more than a search in an event.
    static CODEX: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"codex."));
    static METADATA: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"response.metadata"));
    CODEX.find(bytes).is_some() || METADATA.find(bytes).is_some()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Limits,
    Metadata,
    Codex,
    Other,
}

/// By its name, or by the `type` of its data: not by what a model may have written.
fn kind(event: &[u8]) -> Kind {
    let mut found = Kind::Other;
    if mentions_codexs_own(event) {
        Scanner::default().feed(event, |event| {
            found = kind_of([event.name, event_kind(event.data)]);
        });
    }
    found
}

fn kind_of(names: [&[u8]; 2]) -> Kind {
    let begins = |kind: &[u8]| names.iter().any(|name| name.starts_with(kind));
    match names {
        _ if begins(b"codex.rate_limits") => Kind::Limits,
        _ if names.iter().any(|name| is_metadata(name)) => Kind::Metadata,
        _ if begins(b"codex.") => Kind::Codex,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(codex_events: CodexEvents, stream: &str, size: usize) -> String {
        let mut splitter = Splitter::new(codex_events);
        let limits = |_| Some(serde_json::json!({"pool": 1}));
        let mut got = Vec::new();
        for chunk in stream.as_bytes().chunks(size) {
            got.extend_from_slice(&splitter.pass(&Bytes::copy_from_slice(chunk), limits));
        }
        got.extend_from_slice(&splitter.rest(limits));
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

    /// The last event may have no line feed behind its last carriage return, or no end at all.
    #[test]
    fn what_is_left_at_the_end_is_told_apart_like_the_rest() {
        let ours = "event: codex.rate_limits\ndata: {\"pool\":1}\n\n";
        let (other, limits) =
            ("event: codex.other\rdata: {}", "event: codex.rate_limits\rdata: {}");
        let ended = |event: &str| format!("{event}\r\r");
        for (name, left, want) in [
            ("another event of Codex", ended(other), ended(other)),
            ("half of one", other.to_owned(), other.to_owned()),
            ("limits", ended(limits), ours.to_owned()),
            ("half of them: of no use to anybody", limits.to_owned(), String::new()),
        ] {
            for size in [1, left.len()] {
                assert_eq!(split(CodexEvents::LimitsExchanged, &left, size), want, "{name}");
                assert_eq!(split(CodexEvents::LeftOut, &left, size), "", "{name}");
            }
        }
    }

    #[test]
    fn headers_in_events_are_filtered() {
        let of = |name: &str, headers: &str| {
            format!("data: {{\"type\":\"{name}\",\"headers\":{{{headers}}}}}\n\n")
        };
        let etag = r#""x-models-etag":"e""#;
        let used = r#""x-codex-primary-used-percent":"9""#;
        let state = r#""x-codex-turn-state":"s""#;
        let text = "data: {\"type\":\"response.x\",\"delta\":\"response.metadata\"}\n\n";
        for name in ["response.metadata", "codex.response.metadata"] {
            let named = |headers| format!("event: {name}\nid: 7\n{}", of(name, headers));
            let torn = "data: {\"type\":\n data: \"x\"}\n\n";
            let lines = format!("event: {name}\ndata: {{\ndata: \"headers\":{{{etag}}}}}\r\n\r\n");
            let stream = [
                named(state),
                of(name, &[state, etag].join(",")),
                text.to_owned(),
                named(used),
                lines,
                format!("event: {name}\n{torn}"),
                format!("event: {name}\ndata: {{{etag}}}"),
            ]
            .concat();
            let want = [
                named(state),
                of(name, state),
                text.to_owned(),
                format!("event: {name}\n{}", of(name, "\"pool\":1")),
                format!("event: {name}\ndata: {{ \"headers\":{{}}}}\n\n"),
            ]
            .concat();
            for size in [1, 7, stream.len()] {
                assert_eq!(split(CodexEvents::LimitsExchanged, &stream, size), want, "{size}");
                assert_eq!(split(CodexEvents::LeftOut, &stream, size), text, "{size}");
            }
        }
    }

    #[test]
    fn a_message_becomes_what_its_event_becomes() {
        let state = r#"{"type":"response.metadata","headers":{"x-codex-turn-state":"s"}}"#;
        let used = r#"{"type":"response.metadata","headers":{"x-codex-primary-used-percent":"9"}}"#;
        let filtered = r#"{"type":"response.metadata","headers":{"pool":1}}"#;
        let text = r#"{"type":"response.x","delta":"codex.rate_limits, response.metadata"}"#;
        let lines = "{\"type\":\"response.x\",\n\"delta\":\"d\"}";
        for (message, exchanged, left_out) in [
            (r#"{"type":"codex.rate_limits","x":9}"#, r#"{"pool":1}"#, ""),
            (r#"{"x":9,"type":"codex.rate_limits"}"#, r#"{"pool":1}"#, ""),
            (r#"{"type":"codex.other"}"#, r#"{"type":"codex.other"}"#, ""),
            (state, state, ""),
            (used, filtered, ""),
            (r#"{"type":"response.metadata","headers":"#, "", ""),
            (text, text, text),
            (lines, lines, lines),
        ] {
            let limits = |_| Some(serde_json::json!({"pool": 1}));
            let of = |codex_events| {
                Splitter::new(codex_events)
                    .pass_message(&Bytes::from_static(message.as_bytes()), limits)
            };
            assert_eq!(of(CodexEvents::LimitsExchanged), exchanged, "{message}");
            assert_eq!(of(CodexEvents::LeftOut), left_out, "{message}");
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

    #[test]
    fn knows_codex_events_however_they_are_spelled() {
        let ours = "event: codex.rate_limits\ndata: {\"pool\":1}\n\n";
        for event in [
            "data: {\"type\": \"codex.rate_limits\", \"x\": 9}\n\n",
            "data: {\"x\":{\"type\":\"y\"},\"type\":\"codex.rate_limits\"}\n\n",
            "data:{ \"n\":1,\"type\" :\"codex.rate_limits\"}\r\n\r\n",
            "event:codex.rate_limits\r\ndata: not JSON\r\n\r\n",
            "data: {\"n\":1,\ndata: \"type\":\"codex.rate_limits\"}\n\n",
            "data: {\"n\":1,\rdata: \"type\":\"codex.rate_limits\"}\r\r\n",
        ] {
            for size in [1, 1000] {
                assert_eq!(split(CodexEvents::LeftOut, event, size), "", "{event}");
                assert_eq!(split(CodexEvents::LimitsExchanged, event, size), ours, "{event}");
            }
        }
        for event in [
            "data: {\"type\": \"response.x\", \"item\": {\"type\": \"codex.rate_limits\"}}\n\n",
            "data: {\"delta\":\"{\\\"type\\\":\\\"codex.rate_limits\\\"}\",\"type\":\"response.x\"}\n\n",
            ": codex.rate_limits\n\n",
        ] {
            assert_eq!(split(CodexEvents::LeftOut, event, 1), event);
        }
    }

    #[test]
    fn finds_the_same_ends_whatever_the_line_ends_and_the_pieces() {
        let stream = "a: 1\r\n\r\nb: 2\n\n\n\nc: 3\r\nd\r\n\r\ne: 4\r\rg: 5\n\r\nh\n\nf";
        for size in 1..=stream.len() {
            let mut splitter = Splitter::new(CodexEvents::LeftOut);
            for chunk in stream.as_bytes().chunks(size) {
                splitter.pass(&Bytes::copy_from_slice(chunk), |_| None);
            }
            assert_eq!(splitter.rest(|_| None), "f", "in pieces of {size}");
        }
    }

    /// As the grammar allows and no known upstream does.
    #[test]
    fn lines_may_end_with_a_carriage_return() {
        let text = "data: {\"type\":\"response.x\"}\r\r";
        let limits = "event: codex.rate_limits\rdata: {}\r\r";
        for size in [1, 2, 1000] {
            let got = split(CodexEvents::LeftOut, &[text, limits, text, limits].concat(), size);
            assert_eq!(got, [text, text].concat(), "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_an_end_is_not_held_for_ever() {
        let mut splitter = Splitter::new(CodexEvents::LimitsExchanged);
        for piece in [b"data: x\n".repeat(1 << 17), vec![b'x'; 1 << 20]] {
            let (piece, mut pieces) = (Bytes::from(piece), 0);
            while !splitter.is_overfull() {
                splitter.pass(&piece, |_| None);
                pieces += 1;
            }
            assert_eq!(pieces, (EVENT_MAX >> 20) + 1);
            splitter.pass(&Bytes::from_static(b"\n\n"), |_| None);
            assert!(!splitter.is_overfull());
        }
    }

    #[test]
    fn a_large_event_is_searched_once() {
        let mut splitter = Splitter::new(CodexEvents::LimitsExchanged);
        let piece = Bytes::from_static(&[b'A'; 1000]);
        for n in 1..=1000 {
            assert!(splitter.pass(&piece, |_| None).is_empty());
            assert_eq!(splitter.searched, n * piece.len(), "not from the start again");
        }
        assert_eq!(splitter.pass(&Bytes::from_static(b"\n"), |_| None), "");
        assert_eq!(splitter.pass(&Bytes::from_static(b"\n"), |_| None).len(), 1_000_002);
        assert_eq!((splitter.searched, splitter.rest(|_| None)), (0, Bytes::new()));
    }
}
