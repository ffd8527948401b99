//! Codex's own events (`codex.*`, and those that tell headers) in a stream: left out for clients of the
//! strict contract; for Codex, whose limits must be the pool's, the account's exchanged for those at the
//! very same place, and headers filtered. For both, errors are told without an account's limits (`failure`). All
//! other bytes stay as they are; an event is passed on when it is complete.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde_json::Value;

use super::failure::{as_the_pools, in_words, is_failure};
use super::metadata::filtered;
use super::torn::is_event_end;
use crate::providers::{event_kind, is_metadata};
use crate::sse::{EVENT_MAX, Scanner};

#[derive(Debug)]
pub struct Splitter {
    codex_events: CodexEvents,
    /// The stream has told an error, which whoever reads it knows: from there on errors are looked for.
    pub has_failed: bool,
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
        Self { codex_events, has_failed: false, pending: Vec::new(), line: 0, searched: 0 }
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
            Way::Changed(change) => {
                change(data, &mut || limits(Form::Headers)).unwrap_or_else(|| data.clone())
            }
        }
    }

    /// The bytes that may go on now, likewise.
    pub fn pass(&mut self, bytes: &Bytes, mut limits: impl FnMut(Form) -> Option<Value>) -> Bytes {
        let is_plain = !self.has_failed && !mentions_codexs_own(bytes);
        if self.pending.is_empty() && is_event_end(bytes) && is_plain {
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
            match self.way(self.kind(event)) {
                Way::On => out.extend_from_slice(event),
                Way::Nowhere => {}
                Way::Exchanged => put_limits(&mut out, &mut limits),
                Way::Changed(change) => put_changed(&mut out, event, change, &mut limits),
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
        let kind = self.kind(&rest);
        // It is the last word, which some readers take without the empty line behind it.
        let is_whole = is_whole || kind == Kind::Failure;
        let event = if is_whole { rest.clone() } else { Vec::new() };
        rest.truncate(size);
        match self.way(kind) {
            Way::On => {}
            Way::Nowhere => rest.clear(),
            Way::Exchanged => {
                rest.clear();
                if is_whole {
                    put_limits(&mut rest, &mut limits);
                }
            }
            Way::Changed(change) => {
                rest.clear();
                put_changed(&mut rest, &event, change, &mut limits);
            }
        }
        Bytes::from(rest)
    }

    /// By its name, or by the `type` of its data: not by what a model may have written.
    fn kind(&self, event: &[u8]) -> Kind {
        let mut found = Kind::Other;
        if self.has_failed || mentions_codexs_own(event) {
            Scanner::default().feed(event, |event| {
                found = kind_of([event.name, event_kind(event.data)]);
            });
        }
        found
    }

    fn way(&self, kind: Kind) -> Way {
        match (self.codex_events, kind) {
            (_, Kind::Other) | (CodexEvents::LimitsExchanged, Kind::Codex) => Way::On,
            (CodexEvents::LeftOut, Kind::Codex | Kind::Limits | Kind::Metadata) => Way::Nowhere,
            (CodexEvents::LimitsExchanged, Kind::Limits) => Way::Exchanged,
            (CodexEvents::LimitsExchanged, Kind::Metadata) => Way::Changed(of_headers),
            (_, Kind::Failure) => Way::Changed(of_a_failure),
        }
    }
}

/// What becomes of an event.
enum Way {
    On,
    Nowhere,
    /// For the pool's limits.
    Exchanged,
    /// On, with what may be told of it.
    Changed(Change),
}

/// Of an event's data; `None`: it stays as it is, and without any the event is left out.
type Change = fn(&Bytes, PoolHeaders<'_>) -> Option<Bytes>;

type PoolHeaders<'a> = &'a mut dyn FnMut() -> Option<Value>;

fn of_headers(data: &Bytes, limits: PoolHeaders<'_>) -> Option<Bytes> {
    // What cannot be read might tell anything.
    filtered(data, limits).unwrap_or_else(|_| Some(Bytes::new()))
}

/// That there was one is told in any case.
fn of_a_failure(data: &Bytes, limits: PoolHeaders<'_>) -> Option<Bytes> {
    as_the_pools(data, limits).unwrap_or_else(|_| Some(in_words(data)))
}

fn put_limits(out: &mut Vec<u8>, limits: &mut impl FnMut(Form) -> Option<Value>) {
    if let Some(limits) = limits(Form::Event) {
        let event = format!("event: codex.rate_limits\ndata: {limits}\n\n");
        out.extend_from_slice(event.as_bytes());
    }
}

fn put_changed(
    out: &mut Vec<u8>,
    event: &[u8],
    change: Change,
    limits: &mut impl FnMut(Form) -> Option<Value>,
) {
    Scanner::default().feed(event, |told| {
        let data = Bytes::copy_from_slice(told.data);
        match change(&data, &mut || limits(Form::Headers)) {
            None => out.extend_from_slice(event),
            Some(data) if data.is_empty() => {}
            Some(data) => {
                if !told.name.is_empty() {
                    out.extend_from_slice(&[b"event: ", told.name, b"\n"].concat());
                }
                out.extend_from_slice(b"data: ");
                // A line feed stands between the tokens of JSON.
                out.extend(data.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
                out.extend_from_slice(b"\n\n");
            }
        }
    });
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
    Failure,
    Other,
}

fn kind_of(names: [&[u8]; 2]) -> Kind {
    let begins = |kind: &[u8]| names.iter().any(|name| name.starts_with(kind));
    match names {
        _ if begins(b"codex.rate_limits") => Kind::Limits,
        _ if names.iter().any(|name| is_metadata(name)) => Kind::Metadata,
        _ if begins(b"codex.") => Kind::Codex,
        _ if names.iter().any(|name| is_failure(name)) => Kind::Failure,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::failure::BROKE;

    fn split(codex_events: CodexEvents, stream: &str, size: usize) -> String {
        split_by(Splitter::new(codex_events), stream, size)
    }

    fn split_by(mut splitter: Splitter, stream: &str, size: usize) -> String {
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

    /// spec §8: for whichever client, once the stream has failed; before, nothing is looked at for it.
    #[test]
    fn errors_tell_nothing_of_an_accounts_limits() {
        let text = "data: {\"type\":\"response.x\",\"delta\":\"error\",\"plan_type\":1}\n\n";
        let failed = r#"data: {"type":"response.failed","response":{"plan_type":"p","error":{}}}"#;
        let clean = r#"data: {"type":"response.failed","response":{"error":{}}}"#;
        let broke = String::from_utf8(BROKE.to_vec()).unwrap();
        for (event, want) in [
            (format!("{failed}\n\n"), format!("{clean}\n\n")),
            (
                format!("event: response.failed\r\nid: 1\r\n{failed}\r\n\r\n"),
                format!("event: response.failed\n{clean}\n\n"),
            ),
            (
                "event: error\ndata: {\"headers\":{\"a\":\"b\"}}\n\n".into(),
                "event: error\ndata: {\"headers\":{\"pool\":1}}\n\n".into(),
            ),
            ("event: error\ndata: plus\n\n".into(), format!("event: error\ndata: {broke}\n\n")),
            (
                "data: {\"type\":\"error\",\"plan_type\":1,\"code\":\"c\",\"code\":\"c\"}\n\n"
                    .into(),
                "data: {\"error\":{\"code\":\"c\"},\"type\":\"error\"}\n\n".into(),
            ),
            (text.to_owned(), text.to_owned()),
            // The last word, without what should follow it.
            (format!("{failed}\n"), format!("{clean}\n\n")),
        ] {
            for codex_events in [CodexEvents::LeftOut, CodexEvents::LimitsExchanged] {
                for size in [1, 1000] {
                    let mut splitter = Splitter::new(codex_events);
                    splitter.has_failed = true;
                    let got = split_by(splitter, &[text, &event].concat(), size);
                    assert_eq!(got, [text, &want].concat(), "{event} in {size}");
                }
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
        let error = r#"{"type":"error","error":{"plan_type":"p"},"headers":{"a":"b"}}"#;
        let of_pool = r#"{"type":"error","error":{},"headers":{"pool":1}}"#;
        for (message, exchanged, left_out) in [
            (r#"{"type":"codex.rate_limits","x":9}"#, r#"{"pool":1}"#, ""),
            (r#"{"x":9,"type":"codex.rate_limits"}"#, r#"{"pool":1}"#, ""),
            (r#"{"type":"codex.other"}"#, r#"{"type":"codex.other"}"#, ""),
            (state, state, ""),
            (used, filtered, ""),
            (r#"{"type":"response.metadata","headers":"#, "", ""),
            (text, text, text),
            (lines, lines, lines),
            (error, of_pool, of_pool),
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
