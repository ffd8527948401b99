//! A WebSocket client that notices how a socket ended.

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request};
use poolgate_sim::{Account, Kind};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::client::{PATIENCE, codex_body};

/// How listening ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The last event ends an answer.
    Answered,
    Closed(u16),
    /// No close frame came.
    Broken,
}

/// What was heard up to the end of an answer or of the socket.
#[derive(Debug)]
pub struct Heard {
    pub events: Vec<Value>,
    pub stop: Stop,
}

impl Heard {
    pub fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect()
    }

    pub fn last(&self) -> &Value {
        self.events.last().expect("an event")
    }

    /// Events with content.
    pub fn outputs(&self) -> usize {
        self.kinds().iter().filter(|kind| **kind == "response.output_text.delta").count()
    }

    /// The id of the response.
    pub fn response(&self) -> String {
        self.last()["response"]["id"].as_str().expect("a response").to_owned()
    }
}

pub struct Socket {
    pub head: HeaderMap,
    pub ws: WebSocketStream<TcpStream>,
}

/// The handshake as Codex makes it.
pub fn handshake(account: &Account) -> Request<()> {
    let path = match account.kind() {
        Kind::Codex => "/backend-api/codex/responses",
        _ => "/v1/responses",
    };
    let url = account.url().replace("http://", "ws://") + path;
    let mut request = url.into_client_request().unwrap();
    let mut put = |name: &'static str, value: &str| {
        request.headers_mut().insert(name, value.parse().unwrap());
    };
    put("authorization", &format!("Bearer {}", account.credential()));
    put("openai-beta", "responses_websockets=2026-02-06");
    put("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
    put("x-codex-routing-hint", "model=gpt-5.5");
    if account.kind() == Kind::Codex {
        put("chatgpt-account-id", &account.account_id());
    }
    request
}

/// A frame that asks for this text.
pub fn create(text: &str) -> Value {
    let mut frame = codex_body(text);
    frame["type"] = json!("response.create");
    frame
}

pub fn chained(text: &str, previous: &str) -> Value {
    let mut frame = create(text);
    frame["previous_response_id"] = json!(previous);
    frame
}

pub fn warm_up() -> Value {
    let mut frame = create("");
    frame["generate"] = json!(false);
    frame["input"] = json!([]);
    frame
}

impl Socket {
    pub async fn open(account: &Account) -> Self {
        Self::attempt(account).await.expect("a handshake")
    }

    pub async fn attempt(account: &Account) -> Result<Self, Error> {
        let stream = TcpStream::connect(account.url().trim_start_matches("http://")).await?;
        let (ws, response) = client_async(handshake(account), stream).await?;
        Ok(Self { head: response.headers().clone(), ws })
    }

    pub fn header(&self, name: &str) -> &str {
        self.head.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub async fn send(&mut self, frame: &Value) {
        self.ws.send(Message::text(frame.to_string())).await.unwrap();
    }

    pub async fn ask(&mut self, frame: &Value) -> Heard {
        self.send(frame).await;
        self.listen().await
    }

    pub async fn say(&mut self, text: &str) -> Heard {
        self.ask(&create(text)).await
    }

    /// The next event; `None`: a ping, pong, or the end.
    pub async fn event(&mut self) -> Option<Value> {
        let next = tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("a frame");
        match next {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).ok(),
            _ => None,
        }
    }

    /// Up to the end of an answer, or of the socket.
    pub async fn listen(&mut self) -> Heard {
        let mut events = Vec::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.ws.next()).await.expect("a frame");
            let stop = match next {
                Some(Ok(Message::Text(text))) => {
                    let event: Value =
                        serde_json::from_str(&text).unwrap_or_else(|_| json!(text.as_str()));
                    let ends =
                        ["response.completed", "response.failed", "response.incomplete", "error"];
                    let is_last = event["type"].as_str().is_none_or(|kind| ends.contains(&kind));
                    events.push(event);
                    if !is_last {
                        continue;
                    }
                    Stop::Answered
                }
                Some(Ok(Message::Close(frame))) => {
                    // Reading on is what sends the answer to it.
                    let rest = async { while let Some(Ok(_)) = self.ws.next().await {} };
                    tokio::time::timeout(PATIENCE, rest).await.expect("an end");
                    Stop::Closed(frame.map_or(1005, |frame| frame.code.into()))
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => Stop::Broken,
            };
            return Heard { events, stop };
        }
    }
}
