//! Request bodies as the clients write them, cut to what matters.

use serde_json::{Value, json};

pub const CODEX: &str = "/backend-api/codex/responses";

pub fn responses(text: &str, stream: bool) -> Value {
    let content = json!([{"type": "input_text", "text": text}]);
    let input = json!([{"type": "message", "role": "user", "content": content}]);
    json!({"model": "gpt-5.5", "stream": stream, "store": false, "input": input})
}

pub fn chat(text: &str, stream: bool) -> Value {
    json!({"model": "gpt-5.5", "stream": stream, "messages": [{"role": "user", "content": text}]})
}

pub fn messages(text: &str, stream: bool) -> Value {
    json!({"model": "claude-opus-5", "max_tokens": 99, "stream": stream,
        "messages": [{"role": "user", "content": text}]})
}
