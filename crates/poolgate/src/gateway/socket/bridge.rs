//! Turns at an upstream that has no sockets: each is a request over HTTP, whose events come back as
//! those of a socket do.
//!
//! What only a socket holds is not there: a turn that goes on from another is asked for in full,
//! unless the upstream keeps responses itself. A warm-up has nothing to warm and is answered here. An
//! upstream that does not stream, though it was asked to, has its answer told in events.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use poolgate_core::outcome::Outcome;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::Wants;
use crate::admission::Permit;
use crate::app::App;
use crate::egress::Received;
use crate::error::Error;
use crate::gateway::Call;
use crate::gateway::attempt::{self, AttemptError, Target};
use crate::gateway::judge::{Answer, Bad, Ours, judge_late, refusal_of_event};
use crate::gateway::opening::Opening;
use crate::gateway::peek::Purpose;
use crate::gateway::read::Payload;
use crate::json::{Document, Patch};
use crate::pool::Account;
use crate::providers::Tap;
use crate::sse::EVENT_MAX;

/// The answer to a handshake where there are no sockets.
pub fn lacks_sockets(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 426 | 501)
}

pub async fn send(
    app: &App,
    call: &Call,
    target: &Target<'_>,
) -> Result<(Response<Received>, Permit), AttemptError> {
    if call.head.purpose == Purpose::WarmUp {
        return Ok((warmed_up(&call.head.model), Permit::default()));
    }
    let payload = without_frame(target.payload).ok_or(AttemptError::ChainLost)?;
    let target = Target { payload: &payload, ..*target };
    let sent = attempt::send_over_http(app, call, &target).await?;
    Ok((sent.response, sent.create))
}

/// The message as a request's body.
fn without_frame(payload: &Payload) -> Option<Payload> {
    let document = &payload.document;
    let mut patch = Patch::default();
    for field in ["type", "generate"] {
        patch.remove(document, field);
    }
    patch.set(document, "stream", "true");
    let text = patch.apply(document).to_bytes();
    let document = Document::parse(text.clone()).ok()?;
    Some(Payload { wire: text.into(), encoding: None, document })
}

/// There are no events that could be told.
pub fn is_in_one_piece(call: &Call, answer: &Answer) -> bool {
    let is_turn = call.over.as_ref().is_some_and(|over| over.wants != Wants::Socket);
    is_turn && !answer.opening.tap.is_event_stream()
}

/// An answer in one piece, in events. All of it is read first: what breaks off, reports a failure or is
/// no response has told the client nothing yet, and is judged as what has no output.
pub async fn in_events(
    app: &App,
    call: &Call,
    account: &Account,
    answer: Answer,
) -> Result<Answer, Box<Bad>> {
    let Answer { head, mut opening, refused } = answer;
    let is_whole = read(&mut opening, app.limits().stream_idle_timeout).await;
    let Opening { held, mut tap, create, .. } = *opening;
    let status = Some(head.status.as_u16());
    if !is_whole {
        let (error, spent) = (Error::UpstreamBroke, Some(tap.usage));
        return Err(Box::new(Bad { outcome: Outcome::Broke, status, reply: None, error, spent }));
    }
    if let Some(fields) = tap.error.take() {
        let ask = call.ask();
        let late = || judge_late(app, account, ask, &fields);
        let outcome = refused.map_or_else(late, |(outcome, _)| outcome);
        return Err(Box::new(refusal_of_event(account, ask, head, &fields, outcome)));
    }
    let pieces: Vec<Bytes> = held.into();
    let Some(events) = events_of(&pieces.concat()) else {
        let error = Error::Upstream("its answer is no response".into());
        let outcome = Outcome::UpstreamError;
        return Err(Box::new(Bad { outcome, status, reply: None, error, spent: None }));
    };
    let tap = Tap::messages(call.surface, app.clock.now());
    let mut opening = Box::new(Opening { held: VecDeque::new(), rest: None, tap, create });
    for event in events {
        opening.see(&event);
        opening.held.push_back(event);
    }
    Ok(Answer { head, opening, refused: None })
}

/// To its end; whether that came.
async fn read(opening: &mut Opening, silence: Duration) -> bool {
    let mut size: usize = opening.held.iter().map(Bytes::len).sum();
    while let Some(body) = &mut opening.rest {
        match timeout(silence, body.frame()).await {
            Ok(None) => {
                opening.rest = None;
                opening.tap.end();
            }
            Ok(Some(Ok(frame))) => {
                let data = frame.into_data().unwrap_or_default();
                size += data.len();
                if size > EVENT_MAX {
                    return false;
                }
                opening.see(&data);
                opening.held.push_back(data);
            }
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
    true
}

#[derive(Deserialize)]
struct InOnePiece<'a> {
    #[serde(borrow)]
    output: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

/// Its items, which clients read one by one, and the whole behind them. `None`: it is no response.
fn events_of(body: &[u8]) -> Option<Vec<Bytes>> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let response: InOnePiece<'_> = serde_json::from_str(text).ok()?;
    let item = |(index, item): (usize, &&RawValue)| {
        format!(r#"{{"type":"response.output_item.done","output_index":{index},"item":{item}}}"#)
    };
    let end = match response.status.map(RawValue::get) {
        Some(r#""incomplete""#) => "incomplete",
        Some(r#""failed""#) => "failed",
        _ => "completed",
    };
    let last = format!(r#"{{"type":"response.{end}","response":{text}}}"#);
    let items = response.output.iter().enumerate().map(item);
    Some(items.chain([last]).map(Bytes::from).collect())
}

/// As an upstream with sockets answers it; no later turn can go on from it.
fn warmed_up(model: &str) -> Response<Received> {
    let id = format!("resp_{}", uuid::Uuid::now_v7().simple());
    let event = |kind: &str, status: &str, number: u8| {
        let usage = (status == "completed")
            .then(|| json!({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}));
        let response = json!({"id": id, "object": "response", "status": status, "model": model,
            "output": [], "error": null, "usage": usage});
        let event = json!({"type": kind, "response": response, "sequence_number": number});
        format!("data: {event}\n\n")
    };
    let events =
        [event("response.created", "in_progress", 0), event("response.completed", "completed", 1)];
    let mut response = Response::new(Received::Whole(Full::new(Bytes::from(events.concat()))));
    let stream = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, stream);
    response.extensions_mut().insert(Ours);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_a_request() {
        let text = Bytes::from_static(
            br#"{"type":"response.create", "model":"m","input":[ ],"generate":true}"#,
        );
        let document = Document::parse(text.clone()).unwrap();
        let payload = without_frame(&Payload { wire: text.into(), encoding: None, document });
        assert_eq!(payload.unwrap().wire.to_bytes(), r#"{"stream":true, "model":"m","input":[ ]}"#);
    }

    #[test]
    fn a_response_becomes_events() {
        let item = r#"{"type":"response.output_item.done","output_index":0,"item":{"a": 1}}"#;
        let last =
            |end: &str, text: &str| format!(r#"{{"type":"response.{end}","response":{text}}}"#);
        let cases = [
            (r#"{"output":[],"id":"r"}"#, Some((None, "completed"))),
            (r#"{"status":"queued","output":[]}"#, Some((None, "completed"))),
            (r#"{"status":"incomplete", "output":[{"a": 1}]}"#, Some((Some(item), "incomplete"))),
            (r#"{"output":[{"a": 1}],"status":"failed"}"#, Some((Some(item), "failed"))),
            (r#"{"output":"text"}"#, None),
            (r#"{"id":"r"}"#, None),
            ("[]", None),
            ("", None),
        ];
        for (body, want) in cases {
            let want = want.map(|(item, end)| {
                item.map(str::to_owned).into_iter().chain([last(end, body)]).collect::<Vec<_>>()
            });
            let events = events_of(format!(" {body}\n").as_bytes());
            assert_eq!(
                events,
                want.map(|want| want.into_iter().map(Bytes::from).collect()),
                "{body}"
            );
        }
    }
}
