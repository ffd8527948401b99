//! The developers' HTTP client. It judges an answer as a strict client would: a success is complete,
//! down to the last event.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::Demo;
use super::request::Request;
use super::tally::{End, Tokens};
use crate::config::{Place, Way};
use crate::egress::Egress;
use crate::json::{Text, TextBody};

/// Longer than any answer here takes.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);

pub struct Client<'a> {
    demo: &'a Demo,
    egress: Egress,
    gateway: Arc<Place>,
    bearer: HeaderValue,
}

impl<'a> Client<'a> {
    pub fn new(demo: &'a Demo) -> anyhow::Result<Self> {
        Self::with_key(demo, &demo.key)
    }

    pub fn with_key(demo: &'a Demo, key: &str) -> anyhow::Result<Self> {
        let bearer = HeaderValue::from_str(&format!("Bearer {key}"))?;
        let gateway = Place::of(&demo.url.parse()?, Way::ANYWHERE).context("the gateway's URL")?;
        let egress = Egress::new(Duration::from_secs(5), 0)?;
        Ok(Self { demo, egress, gateway: Arc::new(gateway), bearer })
    }

    pub async fn ask(&self, ask: &Request) -> End {
        let sent = self.egress.send(self.request(ask), &self.gateway, HEAD_TIMEOUT).await;
        let response = match sent {
            Ok(response) => response,
            // The listener has gone: what was not accepted was not lost.
            Err(_) if self.demo.stop.is_cancelled() => return End::Stopped,
            Err(error) => return End::Failed(format!("{}: {error}", ask.path)),
        };
        let (head, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return End::Failed(format!("{}: broken off: {error}", ask.path)),
        };
        let code = head.headers.get("x-poolgate-error").and_then(|code| code.to_str().ok());
        match (head.status, code) {
            (StatusCode::OK, _) => complete(&body, ask.last_event).map_or_else(
                || End::Failed(format!("{}: a 200 without its end", ask.path)),
                End::Done,
            ),
            (_, Some("usage_limit_reached")) => End::Spent,
            (_, Some("draining")) => End::Stopped,
            (status, code) => {
                End::Failed(format!("{}: {status} {}", ask.path, code.unwrap_or_default()))
            }
        }
    }

    fn request(&self, ask: &Request) -> http::Request<TextBody> {
        let mut request = http::Request::builder()
            .method(Method::POST)
            .uri(ask.path)
            .header(header::AUTHORIZATION, &self.bearer)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let body = Text::from(Bytes::from(ask.body.to_string())).into();
        request.body(body).expect("names and values are ours, and valid")
    }
}

/// The tokens of a complete answer. `None`: something is missing.
fn complete(body: &[u8], last_event: Option<&str>) -> Option<Tokens> {
    let text = std::str::from_utf8(body).ok()?;
    let mut tokens = Tokens::default();
    let Some(last_event) = last_event else {
        count(&serde_json::from_str(text).ok()?, &mut tokens);
        return Some(tokens);
    };
    let mut is_complete = false;
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == last_event {
            is_complete = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).ok()?;
        is_complete |= event["type"] == last_event;
        for part in [&event, &event["response"], &event["message"]] {
            count(part, &mut tokens);
        }
    }
    is_complete.then_some(tokens)
}

/// The dialects name them differently, and repeat them; the largest is the final one.
fn count(answer: &Value, tokens: &mut Tokens) {
    let usage = &answer["usage"];
    let read = |names: [&str; 2]| names.iter().find_map(|name| usage[*name].as_u64()).unwrap_or(0);
    tokens.input = tokens.input.max(read(["input_tokens", "prompt_tokens"]));
    tokens.output = tokens.output.max(read(["output_tokens", "completion_tokens"]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn complete_answers() {
        let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":3}}}\n\n";
        let messages = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":1}}}\n\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":3}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
        let chat = "data: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let cases = [
            ("responses",       responses,                           Some("response.completed"), true),
            ("messages",        messages,                            Some("message_stop"),       true),
            ("chat",            chat,                                Some("[DONE]"),             true),
            ("no last event",   &chat[..chat.len() - 14],            Some("[DONE]"),             false),
            ("json",            r#"{"usage":{"input_tokens":7,"output_tokens":3}}"#, None,       true),
            ("half of a json",  r#"{"usage":{"input_to"#,            None,                       false),
        ];
        for (name, body, last_event, is_complete) in cases {
            let want = is_complete.then_some(Tokens { input: 7, output: 3 });
            assert_eq!(complete(body.as_bytes(), last_event), want, "{name}");
        }
    }
}
