//! One JSON answer out of a stream, for clients that did not ask for one on accounts whose backend
//! only streams.
//!
//! The terminal event carries the whole response; its bytes are taken as they are. Backends that
//! leave its `output` empty have sent the items one by one, and they are put in.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use http_body_util::BodyExt;
use poolgate_core::outcome::Outcome;
use poolgate_core::quota::Reading;
use poolgate_core::usage::TokenUsage;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::judge::{Answer, Bad, Reply};
use super::opening::Opening;
use crate::error::Error;
use crate::json::{Document, Patch};
use crate::providers::Tap;

/// A response larger than this is not one a client without streaming expects.
const MAX: usize = 64 << 20;

#[derive(Debug)]
pub struct Assembled {
    pub usage: TokenUsage,
    /// Quota windows told in events.
    pub readings: Vec<Reading>,
}

#[derive(Default)]
struct Parts {
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

impl Parts {
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

/// Reads to the end. Output was made and perhaps charged for, so a stream that breaks is not sent
/// again: the client is told.
pub async fn assemble(answer: Answer, idle: Duration) -> Result<(Reply, Assembled), Bad> {
    let Answer { mut head, opening: Opening { held, mut rest, tap, mut create }, .. } = answer;
    let broke = || Bad {
        outcome: Outcome::Broke,
        status: Some(200),
        reply: None,
        error: Error::UpstreamBroke,
    };
    // The opening's tap has seen the held bytes already; a second one sees all of them in order.
    let mut tap = Tap::again(&tap);
    let mut parts = Parts::default();
    let mut size = 0;
    for data in &held {
        size += data.len();
        tap.feed_and(data, |kind, data| parts.take(kind, data));
    }
    while let Some(body) = &mut rest {
        match timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                size += data.len();
                if size > MAX {
                    return Err(broke());
                }
                tap.feed_and(&data, |kind, data| parts.take(kind, data));
                if tap.created {
                    create.release();
                }
            }
            Ok(None) => rest = None,
            Ok(Some(Err(_))) | Err(_) => return Err(broke()),
        }
    }
    let body = parts.finish().filter(|_| tap.finished).ok_or_else(broke)?;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let assembled = Assembled { usage: tap.usage, readings: tap.readings };
    Ok((Reply { head, body }, assembled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(events: &[(&str, &str)]) -> Option<String> {
        let mut parts = Parts::default();
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
