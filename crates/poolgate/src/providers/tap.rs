//! What passes by in an answer: has output begun, is it complete, did it fail, what did it cost.
//!
//! The relay feeds the bytes here beside forwarding them. Only a few events are parsed, and of those
//! only the parts needed; the rest is recognised by name. Unknown events count as output: forwarding
//! one twice would be worse than a failover missed.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use poolgate_core::account::Surface;
use poolgate_core::quota::Reading;
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::ErrorFields;
use super::metadata::{self, is_metadata};
use super::report::{self, Report, response_id};
use super::usage::codex;
use crate::sse::{Event, Scanner};

// Prepared once: that costs more than a search in a chunk.
static USAGE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"usage\""));

static STOPPED: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
static ERROR: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"error\""));
static FAILED: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"failed\""));

/// An error alone is no longer.
const SMALL: usize = 64 << 10;

/// JSON answers up to this size are kept for reading their token counts.
const JSON_MAX: usize = 16 << 20;

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts of their own; most orders occur")]
pub struct Tap {
    surface: Surface,
    now: Timestamp,
    format: Format,
    /// The upstream has begun the response: of a stream, with its first event about it.
    pub created: bool,
    /// Output, or the end, has been seen: from here on nothing may be replayed.
    pub semantic: bool,
    /// The dialect's own last event has been seen.
    pub finished: bool,
    /// There was more than signs of life, since somebody looked.
    pub moved: bool,
    /// A JSON body has ended, and is none.
    pub garbled: bool,
    pub error: Option<ErrorFields>,
    /// One was told, whatever has become of it.
    pub failed: bool,
    /// A chat's choice has said why it ends.
    stopped: bool,
    pub usage: TokenUsage,
    pub response_id: Option<String>,
    /// Quota windows told in events, until somebody takes them.
    pub readings: Vec<Reading>,
    /// Turn states, likewise.
    pub turn_states: Vec<String>,
}

#[derive(Debug)]
enum Format {
    Events(Scanner),
    /// Each piece is an event, without a stream's framing.
    Messages,
    Json(Kept),
}

/// The pieces of a JSON body as they came, shared with whoever forwards them.
#[derive(Debug, Default)]
struct Kept {
    pieces: Vec<Bytes>,
    size: usize,
}

impl Kept {
    fn push(&mut self, bytes: &Bytes) {
        self.size += bytes.len();
        if self.size > JSON_MAX {
            self.pieces.clear();
        } else {
            self.pieces.push(bytes.clone());
        }
    }

    /// So many bytes tell what it is.
    const BEGINNING: usize = b"event:".len();

    /// They are events under another name: no JSON begins so.
    fn begins_events(&self) -> bool {
        let beginning: Vec<u8> = self
            .pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .take(Self::BEGINNING)
            .collect();
        [&b"data:"[..], b"event:", b":"].iter().any(|line| beginning.starts_with(line))
    }

    /// `None`: too large to be kept.
    fn join(mut self) -> Option<Bytes> {
        match self.pieces.as_mut_slice() {
            _ if self.size > JSON_MAX => None,
            [one] => Some(std::mem::take(one)),
            many => Some(many.concat().into()),
        }
    }
}

impl Tap {
    /// `now` dates relative resets in events.
    pub fn new(surface: Surface, is_event_stream: bool, now: Timestamp) -> Self {
        let format = if is_event_stream {
            Format::Events(Scanner::default())
        } else {
            Format::Json(Kept::default())
        };
        Self::with(surface, format, now)
    }

    /// For a turn on a socket.
    pub fn messages(surface: Surface, now: Timestamp) -> Self {
        Self::with(surface, Format::Messages, now)
    }

    fn with(surface: Surface, format: Format, now: Timestamp) -> Self {
        Self {
            surface,
            now,
            created: !matches!(format, Format::Events(_) | Format::Messages),
            format,
            semantic: false,
            finished: false,
            moved: false,
            garbled: false,
            error: None,
            failed: false,
            stopped: false,
            usage: TokenUsage::default(),
            response_id: None,
            readings: Vec::new(),
            turn_states: Vec::new(),
        }
    }

    /// A tap for the same kind of answer that has seen nothing yet.
    pub fn again(other: &Self) -> Self {
        Self::new(other.surface, matches!(other.format, Format::Events(_)), other.now)
    }

    pub fn feed(&mut self, bytes: &Bytes) {
        self.feed_and(bytes, |_, _| {});
    }

    /// Feeds, and shows each event to `also` together with its type.
    pub fn feed_and(&mut self, bytes: &Bytes, mut also: impl FnMut(&[u8], &[u8])) {
        let kept;
        let (mut scanner, pieces) = match &mut self.format {
            Format::Events(scanner) => (std::mem::take(scanner), std::slice::from_ref(bytes)),
            Format::Messages => {
                let kind = event_kind(bytes);
                self.see(kind, bytes);
                return also(kind, bytes);
            }
            Format::Json(json) => {
                self.moved = true;
                let is_beginning = json.size < Kept::BEGINNING;
                json.push(bytes);
                if !(is_beginning && json.begins_events()) {
                    return;
                }
                kept = std::mem::take(json);
                (Scanner::default(), kept.pieces.as_slice())
            }
        };
        for piece in pieces {
            scanner.feed(piece, |event| {
                let kind = event_type(&event);
                self.see(kind, event.data);
                also(kind, event.data);
            });
        }
        self.format = Format::Events(scanner);
    }

    /// The body has ended tidily. Returns whether the answer is whole.
    pub fn end(&mut self) -> bool {
        self.end_and(|_, _| {})
    }

    /// The same, and shows to `also` an event that had not ended.
    pub fn end_and(&mut self, mut also: impl FnMut(&[u8], &[u8])) -> bool {
        match &mut self.format {
            Format::Events(scanner) if !self.finished => {
                let mut scanner = std::mem::take(scanner);
                scanner.rest(|event| {
                    if is_whole(event.data) {
                        let kind = event_type(&event);
                        self.see(kind, event.data);
                        also(kind, event.data);
                    }
                });
                self.format = Format::Events(scanner);
                // Not everybody who speaks it says `[DONE]`.
                self.finished |= self.stopped && self.semantic;
            }
            _ => {}
        }
        if let Format::Json(kept) = &mut self.format {
            let kept = std::mem::take(kept);
            self.semantic = true;
            self.finished = true;
            if let Some(body) = kept.join() {
                self.error = failure_in(&body).then(|| ErrorFields::read(&body, self.now));
                // Only a response is ever asked for again by its id.
                let needs_id = self.surface == Surface::Responses;
                match report::ends_of_body(&body).filter(|report| report.has_id() || !needs_id) {
                    Some(report) => self.note(report),
                    None => self.read_body(&body),
                }
            }
        }
        self.finished
    }

    /// Most bodies are parsed once: what is a report is also JSON. Text is checked apart, since what
    /// serde skips may be any bytes.
    fn read_body(&mut self, body: &[u8]) {
        let Ok(text) = std::str::from_utf8(body) else {
            self.garbled = true;
            return;
        };
        match serde_json::from_str(text) {
            Ok(report) => self.note(report),
            // An unforeseen type somewhere is no garbage.
            Err(_) => self.garbled = serde_json::from_str::<&RawValue>(text).is_err(),
        }
    }

    pub fn is_event_stream(&self) -> bool {
        matches!(self.format, Format::Events(_) | Format::Messages)
    }

    pub fn is_in_messages(&self) -> bool {
        matches!(self.format, Format::Messages)
    }

    /// An event of ours would not end up inside one of the upstream's.
    pub fn is_between_events(&self) -> bool {
        match &self.format {
            Format::Events(scanner) => scanner.is_between_events(),
            Format::Messages => true,
            Format::Json(_) => false,
        }
    }

    fn see(&mut self, kind: &[u8], data: &[u8]) {
        self.moved |= !matches!(kind, b"ping" | b"keepalive" | b"codex.keepalive");
        // Limits and headers are told before, too.
        self.created |= !(kind.starts_with(b"codex.") || is_metadata(kind));
        match self.surface {
            // No type at all is junk, not news.
            Surface::Responses | Surface::Compact | Surface::Messages if kind.is_empty() => {}
            Surface::Responses | Surface::Compact => self.see_responses(kind, data),
            Surface::Messages | Surface::CountTokens => self.see_messages(kind, data),
            Surface::Chat => self.see_chat(kind, data),
        }
    }

    fn see_responses(&mut self, kind: &[u8], data: &[u8]) {
        match kind {
            b"response.created" => {
                self.response_id = self.response_id.take().or_else(|| response_id(data));
            }
            b"response.in_progress" | b"response.queued" | b"keepalive" => {}
            b"response.completed" | b"response.incomplete" => {
                self.read_usage(data);
                self.finish();
            }
            b"response.failed" => {
                self.read_usage(data);
                self.fail(data);
                self.finished = true;
            }
            b"error" => {
                self.fail(data);
                // Behind output it is the end; before, what follows may say more.
                self.finished |= self.semantic;
            }
            b"codex.rate_limits" => self.readings.extend(codex::event(data, self.now)),
            _ if is_metadata(kind) => self.turn_states.extend(metadata::turn_state(data)),
            _ if kind.starts_with(b"codex.") => {}
            _ => self.semantic = true,
        }
    }

    fn see_messages(&mut self, kind: &[u8], data: &[u8]) {
        match kind {
            b"message_start" | b"message_delta" => self.read_usage(data),
            b"ping" => {}
            b"message_stop" => self.finish(),
            b"error" => self.fail(data),
            _ => self.semantic = true,
        }
    }

    fn see_chat(&mut self, kind: &[u8], data: &[u8]) {
        if data == b"[DONE]" {
            return self.finish();
        }
        if kind == b"error" || data.starts_with(b"{\"error\"") || is_failed_chunk(data) {
            self.read_usage(data);
            return self.fail(data);
        }
        self.stopped |=
            STOPPED.find(data).is_some_and(|at| tells_text(&data[at + STOPPED.needle().len()..]));
        if tells_usage(data) || !self.semantic {
            self.read_usage(data);
        }
        if !self.semantic {
            let chunk: Chunk<'_> = serde_json::from_slice(data).unwrap_or_default();
            self.semantic = chunk.has_output();
        }
    }

    fn finish(&mut self) {
        // Behind an error the end is no output, in one piece with it or not.
        self.semantic |= self.error.is_none();
        self.finished = true;
    }

    fn fail(&mut self, data: &[u8]) {
        self.failed = true;
        // A bare `error` followed by `response.failed` is one failure; the first says more.
        if self.error.is_none() {
            self.error = Some(ErrorFields::read(data, self.now));
        }
    }

    fn read_usage(&mut self, data: &[u8]) {
        if let Some(report) = report::of_event(data) {
            self.note(report);
        }
    }

    fn note(&mut self, report: Report) {
        let (id, usage) = report.split();
        self.usage.update(usage);
        self.response_id = self.response_id.take().or(id);
    }
}

/// Behind a name.
fn tells_text(rest: &[u8]) -> bool {
    let value = rest.trim_ascii_start().strip_prefix(b":");
    value.is_some_and(|value| value.trim_ascii_start().starts_with(b"\""))
}

fn is_whole(data: &[u8]) -> bool {
    data == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

/// A failure with the status of a success, as some upstreams tell it: the error alone, or a response that
/// says that it failed.
fn failure_in(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
        #[serde(borrow, default)]
        status: Option<&'a RawValue>,
    }
    let inside = body.trim_ascii_start().strip_prefix(b"{").unwrap_or_default().trim_ascii_start();
    let may_be = inside.starts_with(b"\"error\"")
        || inside.starts_with(b"\"type\"") && body.len() < SMALL
        || FAILED.find(body).is_some();
    let told = || serde_json::from_slice::<Told<'_>>(body).ok();
    may_be
        && told().is_some_and(|told| {
            let is_alone = told.status.is_none_or(|status| status.get() == r#""failed""#);
            is_alone && told.error.is_some_and(|error| error.get() != "null")
        })
}

/// A chunk with an error of its own, as `OpenRouter` tells one: it says that the choice has ended, too, and is
/// neither output nor its end. In a text the quotes would be escaped.
fn is_failed_chunk(chunk: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        error: Option<IgnoredAny>,
    }
    let told = || serde_json::from_slice::<Told>(chunk);
    ERROR.find(chunk).is_some() && told().is_ok_and(|told| told.error.is_some())
}

/// Most chunks have none, or say that it is null.
fn tells_usage(chunk: &[u8]) -> bool {
    USAGE.find_iter(chunk).any(|at| {
        let value = chunk[at + USAGE.needle().len()..].trim_ascii_start().strip_prefix(b":");
        value.is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
    })
}

/// The event's name, or the `type` inside its data when the stream does not name events.
fn event_type<'a>(event: &Event<'a>) -> &'a [u8] {
    match event.name {
        // Some name all of them so, as a browser would.
        b"" | b"message" => event_kind(event.data),
        name => name,
    }
}

/// The `type` inside an event's data; empty: there is none.
pub fn event_kind(data: &[u8]) -> &[u8] {
    let at_front = data.strip_prefix(b"{\"type\":\"");
    if let Some(rest) = at_front
        && let Some(end) = memchr::memchr(b'"', rest)
    {
        return &rest[..end];
    }
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(borrow, default)]
        r#type: Option<&'a str>,
    }
    serde_json::from_slice::<Typed<'_>>(data)
        .ok()
        .and_then(|typed| typed.r#type)
        .map_or(b"", str::as_bytes)
}

#[derive(Default, Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<ChunkChoice<'a>>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow, default)]
    delta: std::collections::BTreeMap<String, &'a RawValue>,
    #[serde(default)]
    finish_reason: Option<serde::de::IgnoredAny>,
}

impl Chunk<'_> {
    /// A first chunk with a role and empty text is bookkeeping.
    fn has_output(&self) -> bool {
        self.choices.iter().any(|choice| {
            choice.finish_reason.is_some()
                || choice.delta.iter().any(|(name, value)| {
                    name != "role" && !matches!(value.get(), "null" | "\"\"" | "[]")
                })
        })
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
