//! The frames of a WebSocket: events without their framing, and the two kinds only sockets have.
//!
//! Fixtures `codex-chatgpt-two-turns-ws` and `codex-ws-429-usage-limit` (Codex CLI 0.169.0).

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use memchr::memmem;
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::answer::{Content, Quoted, put};
use crate::quota::Reading;
use crate::server::Reply;

/// In front of a response's id, near the beginning of the events that hold a response.
const LEAD: &[u8] = b"\"response\":{\"id\":\"";
const LEAD_MAX_BYTES: usize = 64;
/// Unescaped, and so never part of a text.
const NO_PREVIOUS: &[u8] = b"\"previous_response_id\":null";

/// An event of a stream as a frame; a response in it is called `response` and goes on from
/// `previous`.
///
/// Answers are the same wherever the same is asked, but each response of a socket has an id.
pub fn event(event: &Bytes, response: &str, previous: Option<&str>) -> Message {
    let start = memmem::find(event, b"\ndata: ").map_or(0, |at| at + 7);
    let data = event.slice(start..event.len().saturating_sub(2).max(start));
    let near = &data[..data.len().min(LEAD_MAX_BYTES)];
    let Some(at) = memmem::find(near, LEAD).map(|at| at + LEAD.len()) else {
        return text(data);
    };
    let rest = &data[at..];
    let rest = &rest[memchr::memchr(b'"', rest).unwrap_or(0)..];
    let mut renamed = Vec::with_capacity(data.len() + 64);
    renamed.extend_from_slice(&data[..at]);
    renamed.extend_from_slice(response.as_bytes());
    match (previous, memmem::find(rest, NO_PREVIOUS)) {
        (Some(previous), Some(at)) => {
            let value = at + NO_PREVIOUS.len();
            renamed.extend_from_slice(&rest[..value - 4]);
            renamed.extend_from_slice(Quoted(previous).to_string().as_bytes());
            renamed.extend_from_slice(&rest[value..]);
        }
        _ => renamed.extend_from_slice(rest),
    }
    text(renamed.into())
}

/// Where an account stands; goes before every answer.
pub fn rate_limits(plan: &str, readings: &[Reading]) -> Message {
    let reached = readings.iter().any(Reading::is_spent);
    let (plan, allowed) = (Quoted(plan), !reached);
    let mut frame = String::with_capacity(512);
    put!(
        frame,
        r#"{{"type":"codex.rate_limits","plan_type":{plan},"rate_limits":{{"allowed":{allowed},"limit_reached":{reached}"#
    );
    for (name, reading) in
        ["primary", "secondary"].into_iter().zip(readings.iter().map(Some).chain([None]))
    {
        let Some(reading) = reading else {
            put!(frame, r#","{name}":null"#);
            continue;
        };
        let (used, minutes) = (reading.percent(), reading.length.as_secs() / 60);
        let (at, after) = (reading.resets_at, reading.resets_in_seconds);
        put!(
            frame,
            r#","{name}":{{"used_percent":{used:?},"window_minutes":{minutes},"reset_at":{at},"reset_after_seconds":{after}}}"#
        );
    }
    frame.push_str(r#"},"code_review_rate_limits":null,"credits":{"has_credits":false,"unlimited":false,"balance":null},"promo":null}"#);
    Message::text(frame)
}

/// A refusal as an `error` event: the status, what the body says, and the limit headers.
pub fn error(reply: &Reply) -> Message {
    let status = reply.status.as_u16();
    let body = match &reply.content {
        Content::Json(body) => body.clone(),
        Content::Events(_) => Bytes::new(),
    };
    let error = match serde_json::from_slice::<Value>(&body) {
        Ok(Value::Object(mut body)) => match (body.remove("error"), body.remove("detail")) {
            (Some(error), _) => error,
            (None, Some(detail)) => json!({"type": "invalid_request_error", "message": detail}),
            (None, None) => Value::Object(body),
        },
        _ => json!({"type": "server_error", "message": String::from_utf8_lossy(&body)}),
    };
    let headers = Value::Object(limits(&reply.headers));
    Message::text(format!(
        r#"{{"type":"error","status":{status},"error":{error},"headers":{headers}}}"#
    ))
}

/// Those that go into an `error` event, all as text.
fn limits(headers: &HeaderMap) -> Map<String, Value> {
    let belongs = |name: &HeaderName| {
        let name = name.as_str();
        name != "x-codex-turn-state"
            && (name.starts_with("x-codex-")
                || name.starts_with("x-ratelimit-")
                || name == "retry-after")
    };
    let limits = headers.iter().filter(|(name, _)| belongs(name));
    limits
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())))
        .collect()
}

fn text(bytes: Bytes) -> Message {
    // Made of strings; anything else would be a fault of ours that the client is to see.
    Utf8Bytes::try_from(bytes).map_or_else(|_| Message::text("\u{fffd}"), Message::Text)
}
