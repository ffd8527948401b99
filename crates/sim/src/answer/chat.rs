//! Answers of the Chat Completions API, as openai-python 3.54.0 reads them.

use std::fmt;

use bytes::Bytes;

use super::{CREATED_AT, Content, Events, Quoted, Role, put};
use crate::directives::Shape;
use crate::identity::hex;

pub fn stream(model: &str, user_text: &str, shape: &Shape, include_usage: bool) -> Content {
    let head = head(model, user_text, "chat.completion.chunk");
    // With the option, every chunk but the last has the field, and it is null.
    let tail = if include_usage { r#","usage":null"# } else { "" };
    let mut events = Events::with_capacity(2048 + 2 * shape.text.len(), 4 + shape.events);
    let mut chunk = |role: Role, delta: fmt::Arguments<'_>, finish: &str| {
        events.push(role, |to| {
            put!(
                to,
                "data: {{{head},\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\
                 \"logprobs\":null,\"finish_reason\":{finish}}}]{tail}}}\n\n"
            );
        });
    };
    let opening = format_args!(r#""role":"assistant","content":"","refusal":null"#);
    chunk(Role::Opening, opening, "null");
    for delta in shape.deltas() {
        let delta = Quoted(delta);
        chunk(Role::Output, format_args!("\"content\":{delta}"), "null");
    }
    chunk(Role::Structure, format_args!(""), "\"stop\"");
    if include_usage {
        let usage = Usage(shape);
        events.push(Role::Structure, |to| {
            put!(to, "data: {{{head},\"choices\":[],\"usage\":{usage}}}\n\n");
        });
    }
    events.push(Role::Structure, |to| put!(to, "data: [DONE]\n\n"));
    Content::Events(events)
}

pub fn whole(model: &str, user_text: &str, shape: &Shape) -> Content {
    let head = head(model, user_text, "chat.completion");
    let (text, usage) = (Quoted(&shape.text), Usage(shape));
    let mut body = String::with_capacity(512 + shape.text.len());
    put!(
        body,
        r#"{{{head},"choices":[{{"index":0,"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{usage}}}"#
    );
    Content::Json(Bytes::from(body))
}

/// Appends an error in the stream.
pub fn push_failure(events: &mut Events, code: &str, message: &str) {
    let (code, message) = (Quoted(code), Quoted(message));
    events.push(Role::Structure, |to| {
        put!(
            to,
            "data: {{\"error\":{{\"message\":{message},\"type\":{code},\"param\":null,\
             \"code\":{code}}}}}\n\n"
        );
    });
}

/// The fields every chunk begins with.
fn head(model: &str, user_text: &str, object: &str) -> String {
    let id = hex(&["chat", model, user_text]);
    let model = Quoted(model);
    format!(
        r#""id":"chatcmpl-{id}","object":"{object}","created":{CREATED_AT},"model":{model},"service_tier":"default","system_fingerprint":"fp_sim""#
    )
}

struct Usage<'a>(&'a Shape);

impl fmt::Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { input_tokens, output_tokens, cached_tokens, .. } = self.0;
        let total = input_tokens + output_tokens;
        write!(
            f,
            r#"{{"prompt_tokens":{input_tokens},"completion_tokens":{output_tokens},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}},"completion_tokens_details":{{"reasoning_tokens":0}}}}"#
        )
    }
}
