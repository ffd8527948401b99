//! A real WebSocket client, and what tests of turns ask of gateway and simulator.

use futures_util::{SinkExt, StreamExt};
use http::HeaderMap;
use poolgate_sim::Account;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};

pub const BETA: (&str, &str) = ("openai-beta", "responses_websockets=2026-02-06");

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    pub head: HeaderMap,
}

/// A refusal before the upgrade: status and body.
pub type Refused = (u16, Value);

pub async fn connect(h: &Harness, headers: &[(&str, &str)]) -> Result<Client, Refused> {
    connect_to(&h.url, &h.key, headers).await
}

pub async fn connect_to(url: &str, key: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
    let mut request =
        format!("ws{}{CODEX}", url.strip_prefix("http").unwrap()).into_client_request().unwrap();
    let bearer = format!("Bearer {key}");
    for (name, value) in [("authorization", bearer.as_str())].iter().chain(headers) {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let address = url.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let any_size = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let opening = client_async_with_config(request, stream, Some(any_size));
    let answer = tokio::time::timeout(PATIENCE, opening).await;
    match answer.expect("in time") {
        Ok((socket, response)) => Ok(Client { socket, head: response.into_parts().0.headers }),
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), serde_json::from_slice(&body).unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

impl Client {
    /// `None`: refused, or gone before its first event.
    pub async fn try_at(url: &str, key: &str) -> Option<Self> {
        let mut client = connect_to(url, key, &[BETA]).await.ok()?;
        client.next().await?.ok()?;
        Some(client)
    }

    /// `None`: the socket closed first.
    pub async fn try_turn(&mut self, frame: &Value) -> Option<Vec<Value>> {
        self.socket.send(Message::text(frame.to_string())).await.ok()?;
        self.try_rest().await
    }

    /// At a gateway of another process.
    pub async fn at(url: &str, key: &str) -> Self {
        connect_to(url, key, &[BETA]).await.unwrap()
    }

    pub async fn open(h: &Harness) -> Self {
        connect(h, &[BETA]).await.unwrap()
    }

    pub async fn send(&mut self, frame: &Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next event, or the code of a close; `None`: cut.
    pub async fn next(&mut self) -> Option<Result<Value, u16>> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("in time");
            match next?.ok()? {
                Message::Text(text) => return Some(Ok(serde_json::from_str(&text).unwrap())),
                Message::Close(frame) => return Some(Err(frame.map_or(0, |f| f.code.into()))),
                _ => {}
            }
        }
    }

    /// The events of one turn, up to the one that ends it.
    pub async fn turn(&mut self, frame: &Value) -> Vec<Value> {
        self.send(frame).await;
        self.rest_of_turn().await
    }

    pub async fn rest_of_turn(&mut self) -> Vec<Value> {
        self.try_rest().await.expect("no cut and no close")
    }

    pub async fn try_rest(&mut self) -> Option<Vec<Value>> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await?.ok()?;
            let kind = event["type"].as_str().unwrap().to_owned();
            events.push(event);
            let ends = ["response.completed", "response.failed", "response.incomplete", "error"];
            if ends.contains(&kind.as_str()) {
                return Some(events);
            }
        }
    }
}

pub fn create(text: &str) -> Value {
    let mut frame = responses(text, true);
    frame["type"] = json!("response.create");
    frame
}

pub fn chained(text: &str, previous: &str) -> Value {
    let mut frame = create(text);
    frame["previous_response_id"] = json!(previous);
    frame
}

pub fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

pub fn id(events: &[Value]) -> String {
    events.last().unwrap()["response"]["id"].as_str().unwrap().to_owned()
}

/// What the model said, or the code of the error.
pub fn said(events: &[Value]) -> String {
    let last = events.last().unwrap();
    match last["type"].as_str().unwrap() {
        "response.completed" => "completed".into(),
        "response.failed" => last["response"]["error"]["code"].as_str().unwrap().into(),
        _ => last["error"]["code"].as_str().or(last["error"]["type"].as_str()).unwrap().into(),
    }
}

/// Names of the accounts that were asked for a turn, in order.
pub fn turns(h: &Harness) -> Vec<String> {
    let journal = h.sim.journal();
    journal.iter().filter(|e| e.is_turn()).filter_map(|e| e.account.clone()).collect()
}

pub fn sockets(h: &Harness) -> usize {
    h.sim.journal().iter().filter(|e| e.is_socket()).count()
}

/// Accounts `a` and `b`, which serves when `a` cannot.
pub async fn pair() -> (Harness, Account, Account) {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        let both = (s.codex("a"), s.codex("b"));
        s.settings("b").priority = Some(5);
        both
    })
    .await;
    (h, a, b)
}

pub async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
