//! An upstream's answer: however it is cut, the same is read in it and the same goes on.

use bytes::Bytes;
use poolgate::gateway::steps::{CodexEvents, Splitter};
use poolgate::providers::{Tap, event_kind, is_metadata};
use poolgate::sse::Scanner;
use poolgate_core::units::Timestamp;
use serde_json::json;

use crate::input::{SURFACES, pieces};

type Told = (Vec<u8>, Vec<u8>);

pub fn run(input: &[u8]) {
    let Some((stream, pieces)) = pieces(input) else { return };
    let whole = [stream];
    let events = scan(&whole);
    assert_eq!(events, scan(&pieces), "the events depend on how they come");
    assert_eq!(events.0, by_the_book(stream), "these are not the stream's events");
    for surface in SURFACES {
        for is_event_stream in [true, false] {
            let tap = |pieces: &[&[u8]]| tapped(Tap::new(surface, is_event_stream, NOW), pieces);
            assert_eq!(tap(&whole), tap(&pieces), "{surface:?} depends on how it comes");
        }
    }
    for mode in [CodexEvents::LeftOut, CodexEvents::LimitsExchanged] {
        for has_failed in [false, true] {
            let passed = split(mode, has_failed, &whole);
            let again = split(mode, has_failed, &pieces);
            assert_eq!(passed, again, "{mode:?} depends on how it comes");
            nothing_else_is_changed(mode, stream, &events.0, &passed);
        }
    }
}

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const OURS: &[u8] = b"codex.rate_limits";

fn scan(pieces: &[&[u8]]) -> (Vec<Told>, bool) {
    let (mut scanner, mut events) = (Scanner::default(), Vec::new());
    for piece in pieces {
        scanner.feed(piece, |event| events.push((event.name.to_vec(), event.data.to_vec())));
    }
    (events, scanner.is_between_events())
}

/// The grammar once more, over the whole text and without care for speed.
fn by_the_book(stream: &[u8]) -> Vec<Told> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = stream.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\r' && bytes.peek() == Some(&b'\n') {
            bytes.next();
        }
        match byte {
            b'\r' | b'\n' => lines.push(Vec::new()),
            _ => lines.last_mut().unwrap().push(byte),
        }
    }
    lines.pop();
    let (mut events, mut name, mut data): (_, _, Option<Vec<u8>>) = (Vec::new(), Vec::new(), None);
    for line in lines {
        if line.is_empty() {
            let name = std::mem::take(&mut name);
            events.extend(data.take().map(|data| (name, data)));
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => name = value.to_vec(),
            b"data" => match &mut data {
                Some(data) => data.extend([b"\n", value].concat()),
                None => data = Some(value.to_vec()),
            },
            _ => {}
        }
    }
    events
}

fn tapped(mut tap: Tap, pieces: &[&[u8]]) -> String {
    for piece in pieces {
        tap.feed(&Bytes::copy_from_slice(piece));
    }
    let (between, whole) = (tap.is_between_events(), tap.end());
    let Tap { semantic, finished, garbled, error, usage, response_id, readings, .. } = &tap;
    let turn_states = &tap.turn_states;
    assert!(!whole || *semantic || error.is_some(), "an end without output or a reason");
    format!(
        "{between} {whole} {semantic} {finished} {garbled} {error:?} {usage:?} {response_id:?} \
         {readings:?} {turn_states:?}"
    )
}

fn split(mode: CodexEvents, has_failed: bool, pieces: &[&[u8]]) -> Vec<u8> {
    let mut splitter = Splitter::new(mode);
    splitter.has_failed = has_failed;
    let limits = |_| Some(json!({"type": "codex.rate_limits", "of": "the pool"}));
    let mut passed = Vec::new();
    for piece in pieces {
        passed.extend(splitter.pass(&Bytes::copy_from_slice(piece), limits));
    }
    passed.extend(splitter.rest(limits));
    passed
}

fn is(event: &Told, kind: &[u8]) -> bool {
    event.0.starts_with(kind) || event_kind(&event.1).starts_with(kind)
}

fn tells_headers(event: &Told) -> bool {
    let names = [event.0.as_slice(), event_kind(&event.1)];
    names.into_iter().any(is_metadata) && !is(event, OURS)
}

fn fails(event: &Told) -> bool {
    let names = [event.0.as_slice(), event_kind(&event.1)];
    names.into_iter().any(|name| matches!(name, b"error" | b"response.failed"))
        && !is(event, b"codex.")
}

/// What the client reads is what the upstream said, but for the events that were to be changed.
fn nothing_else_is_changed(mode: CodexEvents, stream: &[u8], events: &[Told], passed: &[u8]) {
    // A mark that begins a stream is no part of it; what stood second may come to begin it.
    if memchr::memmem::find(stream, b"\xef\xbb\xbf").is_some() {
        return;
    }
    let ours =
        Told::from((OURS.to_vec(), br#"{"of":"the pool","type":"codex.rate_limits"}"#.to_vec()));
    let kept = events.iter().filter(|event| match mode {
        CodexEvents::LeftOut => !is(event, b"codex."),
        CodexEvents::LimitsExchanged => true,
    });
    // What those tell is looked at beside the filter.
    let is_changed = |event: &Told| tells_headers(event) || fails(event);
    let kept = kept.filter(|event| !is_changed(event));
    let want: Vec<Told> =
        kept.map(|event| if is(event, OURS) { ours.clone() } else { event.clone() }).collect();
    let (changed, got): (Vec<_>, Vec<_>) = scan(&[passed]).0.into_iter().partition(is_changed);
    assert_eq!(got, want, "{mode:?}");
    let count = |events: &[Told], of: fn(&Told) -> bool| events.iter().filter(|e| of(e)).count();
    let most = if mode == CodexEvents::LeftOut { 0 } else { count(events, tells_headers) };
    assert!(count(&changed, tells_headers) <= most);
    // An error is told in any case, and so is one that had not ended.
    let fails = |event: &Told| fails(event) && !tells_headers(event);
    let failures = count(&changed, fails);
    assert!((0..=1).contains(&(failures - count(events, fails))));
}
