//! Web sockets, whichever library speaks them: messages of text in and out, pings answered, close codes.
//! Compression is declined.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, Stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

pub use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Whatever the bounds of request bodies are.
const MESSAGE_MAX: usize = 64 << 20;
/// Sockets are many, and most of them idle.
const BUFFER: usize = 4 << 10;
/// Behind a close.
const LINGER: Duration = Duration::from_secs(2);

/// One end of a socket.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    is_closing: bool,
}

/// What the other end says. Its pings are answered while somebody listens, and not told.
#[derive(Debug)]
pub enum Said {
    Text(Bytes),
    Binary,
    /// More than a message may hold; nothing can be read after it.
    TooLarge,
    /// Against the protocol, or no UTF-8; the same holds.
    Malformed(CloseCode),
}

impl Socket {
    /// `most`: bytes of a message.
    pub async fn server(upgraded: Upgraded, most: usize) -> Self {
        Self::new(upgraded, Role::Server, most.min(MESSAGE_MAX)).await
    }

    pub async fn client(upgraded: Upgraded) -> Self {
        Self::new(upgraded, Role::Client, MESSAGE_MAX).await
    }

    async fn new(upgraded: Upgraded, role: Role, most: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(most))
            .max_frame_size(Some(most));
        let stream = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(stream, role, Some(config)).await;
        Self { stream, is_closing: false }
    }

    /// The other end has said that it closes.
    pub const fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// `None`: the socket is closed or broken.
    pub fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        loop {
            let message = std::task::ready!(Pin::new(&mut self.stream).poll_next(cx));
            return Poll::Ready(match message {
                Some(Ok(Message::Text(text))) => Some(Said::Text(text.into())),
                Some(Ok(Message::Binary(_))) => Some(Said::Binary),
                Some(Err(Error::Capacity(_))) => Some(Said::TooLarge),
                Some(Err(Error::Utf8(_))) => Some(Said::Malformed(CloseCode::Invalid)),
                // Gone without a word, which is said in the same way.
                Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => None,
                Some(Err(Error::Protocol(_))) => Some(Said::Malformed(CloseCode::Protocol)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) => {
                    self.is_closing = true;
                    // It is owed an answer, which waits to be sent.
                    let _ = self.stream.poll_flush_unpin(cx);
                    None
                }
                Some(Err(_)) | None => None,
            });
        }
    }

    pub async fn said(&mut self) -> Option<Said> {
        std::future::poll_fn(|cx| self.poll_said(cx)).await
    }

    /// False: the socket is closed or broken. `text` is UTF-8.
    pub async fn say(&mut self, text: Bytes) -> bool {
        self.put(text).await && self.flush().await
    }

    /// To be sent with what follows; [`Self::flush`] is owed to it.
    pub async fn put(&mut self, text: Bytes) -> bool {
        let Ok(text) = Utf8Bytes::try_from(text) else { return false };
        self.stream.feed(Message::Text(text)).await.is_ok()
    }

    pub async fn flush(&mut self) -> bool {
        self.stream.flush().await.is_ok()
    }

    /// Sends what is queued, as far as the other end takes it now; it is asked again with what is
    /// read next. A broken socket is noticed there.
    pub fn poll_say(&mut self, cx: &mut Context<'_>, queue: &mut VecDeque<Bytes>) {
        while !queue.is_empty() {
            let Poll::Ready(Ok(())) = self.stream.poll_ready_unpin(cx) else { return };
            let text = queue.pop_front().and_then(|text| Utf8Bytes::try_from(text).ok());
            if text.is_some_and(|text| self.stream.start_send_unpin(Message::Text(text)).is_err()) {
                return;
            }
        }
        let _ = self.stream.poll_flush_unpin(cx);
    }

    /// What the other end is still sending is read and dropped: unread, it would become a reset, which
    /// may overtake the close.
    pub async fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let _ = self.stream.close(Some(frame)).await;
        let io = self.stream.get_mut();
        let _ = io.shutdown().await;
        // Not in the future, which every idle socket has.
        let mut rest = vec![0; BUFFER];
        let drop_rest = async { while io.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        let _ = timeout(LINGER, drop_rest).await;
    }
}
