//! One WebSocket, and one turn after the other on it.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use futures_util::{SinkExt as _, StreamExt as _};
use memchr::memmem;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::client::{TEXT, Times};

pub struct Socket {
    socket: WebSocketStream<TcpStream>,
    /// Of the last turn.
    messages: Vec<Utf8Bytes>,
}

impl Socket {
    pub async fn open(address: SocketAddr, key: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let url = format!("ws://{address}/v1/responses");
        let mut request = url.into_client_request().map_err(io::Error::other)?;
        let bearer = format!("Bearer {key}").parse().map_err(io::Error::other)?;
        request.headers_mut().insert("authorization", bearer);
        let beta = http::HeaderValue::from_static("responses_websockets=2026-02-06");
        request.headers_mut().insert("openai-beta", beta);
        let (socket, _) = client_async(request, stream).await.map_err(io::Error::other)?;
        Ok(Self { socket, messages: Vec::new() })
    }

    pub async fn exchange(&mut self, frame: &[u8]) -> io::Result<Times> {
        let start = Instant::now();
        self.messages.clear();
        let frame = Utf8Bytes::try_from(frame.to_vec()).map_err(io::Error::other)?;
        self.socket.send(Message::Text(frame)).await.map_err(io::Error::other)?;
        let (mut first, mut text) = (None, None);
        loop {
            let message = self.socket.next().await.ok_or_else(|| io::Error::other("closed"))?;
            let Message::Text(message) = message.map_err(io::Error::other)? else { continue };
            first.get_or_insert_with(|| start.elapsed());
            if text.is_none() && memmem::find(message.as_bytes(), TEXT).is_some() {
                text = Some(start.elapsed());
            }
            let is_over = message.starts_with(r#"{"type":"response.completed""#);
            let is_bad = message.starts_with(r#"{"type":"error""#);
            self.messages.push(message);
            if is_bad {
                return Err(io::Error::other(format!("refused: {:?}", self.messages.last())));
            }
            if is_over {
                let whole = start.elapsed();
                let (first, text) = (first.unwrap_or(whole), text.unwrap_or(whole));
                return Ok(Times { whole, first, text });
            }
        }
    }

    /// The kinds of the last turn's messages: ids are new in each.
    pub fn body(&self) -> Vec<u8> {
        let kind = |message: &Utf8Bytes| message.split('"').nth(3).unwrap_or_default().to_owned();
        self.messages.iter().map(kind).collect::<Vec<_>>().join("\n").into_bytes()
    }
}
