//! One JSON answer out of a stream, for clients that did not ask for one on accounts whose backend
//! only streams.
//!
//! The terminal event carries the whole response; its bytes are taken as they are. Backends that
//! leave its `output` empty have sent the items one by one, and they are put in.

use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::judge::Answer;
use super::opening::Opening;
use super::span::{Span, Spent};
use crate::json::{Document, Patch};
use crate::providers::Tap;

/// A response larger than this is not one a client without streaming expects.
const MAX: usize = 64 << 20;
/// What ends soon behind its last event leaves a connection that can be used again.
const TAIL: Duration = Duration::from_millis(250);

/// What a stream came to.
#[derive(Debug)]
pub struct Assembled {
    pub head: Parts,
    /// `None`: it broke, or failed.
    pub body: Option<Bytes>,
    pub tap: Tap,
}

#[derive(Default)]
struct Pieces {
    items: Vec<String>,
    response: Option<String>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
}

impl Pieces {
    fn take(&mut self, kind: &[u8], data: &[u8]) {
        let wanted = matches!(
            kind,
            b"response.output_item.done"
                | b"response.completed"
                | b"response.incomplete"
                | b"response.failed"
        );
        if !wanted {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else {
            return;
        };
        if kind == b"response.output_item.done" {
            self.items.extend(event.item.map(|item| item.get().to_owned()));
        } else {
            self.response = event.response.map(|response| response.get().to_owned());
        }
    }

    fn finish(self) -> Option<Bytes> {
        let document = Document::parse(Bytes::from(self.response?)).ok()?;
        let mut patch = Patch::default();
        let bare = matches!(document.raw("output").as_deref(), None | Some("[]" | "null"));
        if bare && !self.items.is_empty() {
            patch.set(&document, "output", &format!("[{}]", self.items.join(",")));
        }
        Some(patch.apply(&document).to_bytes())
    }
}

/// Reads to the end, or as long as `span` lets it.
pub async fn assemble(answer: Answer, mut span: Span) -> Assembled {
    let Answer { mut head, opening, .. } = answer;
    let Opening { held, mut rest, tap, mut create } = *opening;
    // The opening's tap has seen the held bytes already; a second one sees all of them in order.
    let mut tap = Tap::again(&tap);
    let mut parts = Pieces::default();
    let mut size = 0;
    for data in &held {
        size += data.len();
        tap.feed_and(data, |kind, data| parts.take(kind, data));
    }
    let mut is_tidy = true;
    let mut tail = None;
    while let Some(body) = &mut rest {
        let now = Instant::now();
        let until = match span.look(now, std::mem::take(&mut tap.moved)) {
            _ if tap.finished => *tail.get_or_insert(now + TAIL),
            Ok(until) => until,
            // Whoever waits for the answer gives up now, and charges nobody.
            Err(Spent::Request) => now + TAIL,
            Err(Spent::Silent) => {
                is_tidy = false;
                break;
            }
        };
        match timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                span.heard(Instant::now());
                size += data.len();
                if size > MAX {
                    return Assembled { head, body: None, tap };
                }
                tap.feed_and(&data, |kind, data| parts.take(kind, data));
                if tap.created {
                    create.release();
                }
            }
            // It is looked at again.
            Err(_) if !tap.finished => {}
            ended => {
                is_tidy = matches!(ended, Ok(None));
                rest = None;
            }
        }
    }
    if is_tidy {
        tap.end_and(|kind, data| parts.take(kind, data));
    }
    let body = parts.finish().filter(|_| tap.finished && tap.error.is_none());
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Assembled { head, body, tap }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(events: &[(&str, &str)]) -> Option<String> {
        let mut parts = Pieces::default();
        for (kind, data) in events {
            parts.take(kind.as_bytes(), data.as_bytes());
        }
        parts.finish().map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn takes_the_response_as_it_is_and_fills_in_missing_output() {
        let whole = r#"{"response":{"id":"r", "output":[{"a":1.50}]}}"#;
        let empty = r#"{"response":{"id":"r","output":[]}}"#;
        let item = r#"{"item":{"type":"message"}}"#;
        let done = "response.output_item.done";
        let cases = [
            (
                vec![(done, item), ("response.completed", whole)],
                Some(r#"{"id":"r", "output":[{"a":1.50}]}"#),
            ),
            (
                vec![(done, item), ("response.completed", empty)],
                Some(r#"{"id":"r","output":[{"type":"message"}]}"#),
            ),
            (vec![("response.completed", empty)], Some(r#"{"id":"r","output":[]}"#)),
            (vec![(done, item)], None),
        ];
        for (events, want) in cases {
            assert_eq!(finish(&events).as_deref(), want, "{events:?}");
        }
    }
}
