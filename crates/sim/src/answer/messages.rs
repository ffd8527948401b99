//! Answers of the Messages API, as anthropic-python 2.12.0 and Claude Code 2.1.330 read them.

use std::fmt;

use bytes::Bytes;

use super::{Content, Events, Quoted, Role, put};
use crate::directives::Shape;
use crate::identity::hex;

pub fn stream(model: &str, user_text: &str, shape: &Shape) -> Content {
    let id = id(model, user_text);
    let (model, usage) = (Quoted(model), Usage { shape, output_tokens: 1 });
    let mut events = Events::with_capacity(2048 + 2 * shape.text.len(), 6 + shape.events);
    let mut event = |role: Role, kind: &str, fields: fmt::Arguments<'_>| {
        events.push(role, |to| {
            put!(to, "event: {kind}\ndata: {{\"type\":\"{kind}\"{fields}}}\n\n");
        });
    };
    let message = format_args!(
        r#","message":{{"id":"msg_{id}","type":"message","role":"assistant","model":{model},"content":[],"stop_reason":null,"stop_sequence":null,"usage":{usage}}}"#
    );
    event(Role::Opening, "message_start", message);
    let block = format_args!(r#","index":0,"content_block":{{"type":"text","text":""}}"#);
    event(Role::Structure, "content_block_start", block);
    event(Role::Structure, "ping", format_args!(""));
    for delta in shape.deltas() {
        let delta = Quoted(delta);
        let fields = format_args!(r#","index":0,"delta":{{"type":"text_delta","text":{delta}}}"#);
        event(Role::Output, "content_block_delta", fields);
    }
    event(Role::Structure, "content_block_stop", format_args!(r#","index":0"#));
    let output_tokens = shape.output_tokens;
    let last = format_args!(
        r#","delta":{{"stop_reason":"end_turn","stop_sequence":null}},"usage":{{"output_tokens":{output_tokens}}}"#
    );
    event(Role::Structure, "message_delta", last);
    event(Role::Structure, "message_stop", format_args!(""));
    Content::Events(events)
}

pub fn whole(model: &str, user_text: &str, shape: &Shape) -> Content {
    let id = id(model, user_text);
    let usage = Usage { shape, output_tokens: shape.output_tokens };
    let (model, text) = (Quoted(model), Quoted(&shape.text));
    let mut body = String::with_capacity(512 + shape.text.len());
    put!(
        body,
        r#"{{"id":"msg_{id}","type":"message","role":"assistant","model":{model},"content":[{{"type":"text","text":{text}}}],"stop_reason":"end_turn","stop_sequence":null,"usage":{usage}}}"#
    );
    Content::Json(Bytes::from(body))
}

/// The answer of `count_tokens`.
pub fn count(shape: &Shape) -> Content {
    let tokens = shape.input_tokens;
    Content::Json(Bytes::from(format!(r#"{{"input_tokens":{tokens}}}"#)))
}

/// Appends an `error` event.
pub fn push_failure(events: &mut Events, code: &str, message: &str) {
    let (code, message) = (Quoted(code), Quoted(message));
    events.push(Role::Structure, |to| {
        put!(
            to,
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":{code},\
             \"message\":{message}}}}}\n\n"
        );
    });
}

fn id(model: &str, user_text: &str) -> String {
    let mut id = hex(&["messages", model, user_text]);
    id.truncate(24);
    id
}

struct Usage<'a> {
    shape: &'a Shape,
    output_tokens: u64,
}

impl fmt::Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { input_tokens, cached_tokens, .. } = self.shape;
        let output_tokens = self.output_tokens;
        write!(
            f,
            r#"{{"input_tokens":{input_tokens},"cache_creation_input_tokens":0,"cache_read_input_tokens":{cached_tokens},"cache_creation":{{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0}},"output_tokens":{output_tokens},"service_tier":"standard"}}"#
        )
    }
}
