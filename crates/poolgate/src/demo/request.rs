//! What the made-up developers ask, in the dialects of their clients.

use serde_json::{Value, json};

/// One request, in the dialect of some client.
#[derive(Debug)]
pub struct Request {
    pub path: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Value,
    /// What a stream ends with. `None`: the answer is one JSON text.
    pub last_event: Option<&'static str>,
}

impl Request {
    /// As Codex asks. Bodies and headers as captured from the real client, without what only its
    /// provider reads.
    pub fn codex(model: &str, text: &str, session: &str) -> Self {
        let content = json!([{"type": "input_text", "text": text}]);
        Self {
            path: "/backend-api/codex/responses",
            headers: vec![
                ("user-agent", "codex_exec/0.169.0 (poolgate demo)".into()),
                ("originator", "codex_exec".into()),
                ("session-id", session.into()),
                ("thread-id", session.into()),
            ],
            body: json!({
                "model": model, "stream": true, "store": false, "prompt_cache_key": session,
                "include": ["reasoning.encrypted_content"],
                "input": [{"type": "message", "role": "user", "content": content}],
            }),
            last_event: Some("response.completed"),
        }
    }

    pub fn claude_code(model: &str, text: &str, session: &str) -> Self {
        let mut request = Self::messages(model, text);
        request.headers.push(("x-app", "cli".into()));
        request.headers.push(("x-claude-code-session-id", session.into()));
        request.body["stream"] = true.into();
        Self { path: "/v1/messages?beta=true", last_event: Some("message_stop"), ..request }
    }

    pub fn messages(model: &str, text: &str) -> Self {
        Self {
            path: "/v1/messages",
            headers: vec![("anthropic-version", "2023-06-01".into())],
            body: json!({
                "model": model, "max_tokens": 4096,
                "messages": [{"role": "user", "content": text}],
            }),
            last_event: None,
        }
    }

    pub fn responses(model: &str, text: &str) -> Self {
        let body = json!({"model": model, "input": text});
        Self { path: "/v1/responses", headers: Vec::new(), body, last_event: None }
    }

    pub fn chat(model: &str, text: &str, streams: bool) -> Self {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        if streams {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        let last_event = streams.then_some("[DONE]");
        Self { path: "/v1/chat/completions", headers: Vec::new(), body, last_event }
    }
}
