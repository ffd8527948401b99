//! What the other end of a web socket sends, behind a good handshake: frames, or what looks like
//! frames. Over real hyper and the real sockets, on a connection that is a list of pieces.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use poolgate::egress::{Leg, Slot, Turn};
use poolgate::providers::event_kind;
use poolgate::ws::{Said, Socket};
use poolgate_core::account::AccountId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::input::pieces;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
}

pub fn run(input: &[u8]) {
    let Some((bytes, pieces)) = pieces(input) else { return };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let said = messages(&[bytes]).await;
            assert_eq!(said, messages(&pieces).await, "what a client says depends on how it comes");
            let told = turns(&[bytes]).await;
            assert_eq!(told, turns(&pieces).await, "what an upstream says depends on how it comes");
        });
    });
}

/// All that a client says until its socket ends; `None` for what is no text.
async fn messages(pieces: &[&[u8]]) -> Vec<Option<Bytes>> {
    let mut socket = Socket::server(accepted(pieces).await, usize::MAX).await;
    let mut all = Vec::new();
    while let Some(said) = socket.said().await {
        all.push(match said {
            Said::Text(text) => {
                assert!(std::str::from_utf8(&text).is_ok(), "a text that is none");
                Some(text)
            }
            Said::Binary => None,
            Said::TooLarge | Said::Malformed(_) => break,
        });
    }
    all
}

/// Turns until the upstream's socket ends or breaks, each as its events; and whether it was kept.
async fn turns(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
    let (slot, mut all) = (Slot::default(), Vec::new());
    slot.put(Box::new(Leg::new(AccountId(1), 1, Socket::client(opened(pieces).await).await)));
    while let Some(leg) = slot.take() {
        let frame = Bytes::from_static(b"{\"type\":\"response.create\"}");
        let Ok(mut turn) = Turn::begin(leg, slot.clone(), frame, Duration::from_secs(9)).await
        else {
            break;
        };
        let (mut events, mut broke) = (Vec::new(), false);
        while let Some(event) = std::future::poll_fn(|cx| turn.poll_event(cx)).await {
            assert!(!broke, "it went on behind its break");
            match event {
                Ok(event) => {
                    assert!(!event_kind(&event).is_empty(), "it is no event");
                    events.extend_from_slice(&event);
                }
                Err(_) => broke = true,
            }
        }
        assert!(turn.is_over());
        drop(turn);
        all.push((events, slot.account().is_some()));
    }
    all
}

/// A connection that says one thing after the other and then ends.
struct Script {
    pieces: VecDeque<Bytes>,
    /// The other side has been heard, and may be answered.
    heard: bool,
    waiting: Option<Waker>,
}

impl Script {
    fn new(first: Bytes, pieces: &[&[u8]], heard: bool) -> TokioIo<Self> {
        let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece));
        let pieces = std::iter::once(first).chain(pieces).collect();
        TokioIo::new(Self { pieces, heard, waiting: None })
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.heard {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let Some(mut piece) = self.pieces.pop_front() else { return Poll::Ready(Ok(())) };
        let now = piece.split_to(piece.len().min(into.remaining()));
        into.put_slice(&now);
        if !piece.is_empty() {
            self.pieces.push_front(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.heard = true;
        self.waiting.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// The server's end.
async fn accepted(pieces: &[&[u8]]) -> Upgraded {
    let upgrade = Arc::new(parking_lot::Mutex::new(RefCell::new(None)));
    let asked = Arc::clone(&upgrade);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        asked.lock().replace(Some(hyper::upgrade::on(request)));
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
    });
    let script = Script::new(Bytes::from_static(UPGRADE), pieces, true);
    hyper::server::conn::http1::Builder::new()
        // The client's end may come together with its handshake.
        .half_close(true)
        .serve_connection(script, service)
        .with_upgrades()
        .await
        .unwrap();
    let upgrade = upgrade.lock().take().unwrap();
    upgrade.await.unwrap()
}

/// The client's end.
async fn opened(pieces: &[&[u8]]) -> Upgraded {
    let script = Script::new(Bytes::from_static(SWITCH), pieces, false);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(script).await.unwrap();
    let request = Request::get("/").header(header::HOST, "h").header(header::UPGRADE, "websocket");
    let request = request.header(header::CONNECTION, "upgrade").body(Empty::<Bytes>::new());
    let opening = async move { sender.send_request(request.unwrap()).await.unwrap() };
    let (response, _) = tokio::join!(opening, connection.with_upgrades());
    hyper::upgrade::on(response).await.unwrap()
}
