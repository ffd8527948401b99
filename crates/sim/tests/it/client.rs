//! A client that notices how an answer ended.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate_sim::{Account, Kind};
use serde_json::{Value, json};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body was ended as HTTP wants it.
    pub tidy: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("a text body")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The JSON of every event.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// The types of the events.
    pub fn kinds(&self) -> Vec<String> {
        let kind = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
        self.events().iter().map(kind).collect()
    }
}

/// A request under construction.
pub struct Ask {
    url: String,
    method: &'static str,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Ask {
    pub fn post(url: String, body: &Value) -> Self {
        Self { url, method: "POST", headers: Vec::new(), body: body.to_string().into() }
    }

    pub fn get(url: String) -> Self {
        Self { url, method: "GET", headers: Vec::new(), body: Bytes::new() }
    }

    /// With all the headers the account's credential needs.
    pub fn by(self, account: &Account) -> Self {
        let ask = self.with("authorization", &format!("Bearer {}", account.credential()));
        match account.kind() {
            Kind::Codex => ask.with("chatgpt-account-id", &account.account_id()),
            Kind::Claude => ask.with("anthropic-beta", "claude-code-20250219, oauth-2025-04-20"),
            Kind::Openai | Kind::Anthropic => ask,
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body.into();
        self
    }

    /// `None`: no response head came.
    pub async fn send(self) -> Option<Answer> {
        let client =
            Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
        let mut request = Request::builder().method(self.method).uri(self.url);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).unwrap();
        let response = client.request(request).await.ok()?;
        let (head, mut stream) = response.into_parts();
        let (mut body, mut tidy) = (Vec::new(), true);
        while let Some(frame) = stream.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => tidy = false,
            }
        }
        Some(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.into(),
            tidy,
        })
    }
}

/// The model call that fits the account, streamed.
pub fn turn(account: &Account, text: &str) -> Ask {
    let base = account.url();
    let body = match account.kind() {
        Kind::Codex | Kind::Openai => codex_body(text),
        Kind::Claude | Kind::Anthropic => messages_body(text, true),
    };
    let path = match account.kind() {
        Kind::Codex => "/backend-api/codex/responses",
        Kind::Openai => "/v1/responses",
        Kind::Claude | Kind::Anthropic => "/v1/messages",
    };
    Ask::post(base + path, &body).by(account)
}

pub async fn say(account: &Account, text: &str) -> Answer {
    turn(account, text).send().await.expect("a response head")
}

pub fn codex_body(text: &str) -> Value {
    let content = json!([{"type": "input_text", "text": text}]);
    json!({
        "model": "gpt-5.5",
        "stream": true,
        "store": false,
        "input": [
            {"type": "message", "role": "developer", "content": "be brief"},
            {"type": "message", "role": "user", "content": content},
        ],
    })
}

pub fn messages_body(text: &str, stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": text}]);
    json!({"model": "claude-sonnet-5", "max_tokens": 50, "stream": stream, "messages": messages})
}
