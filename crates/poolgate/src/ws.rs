//! Web sockets, whichever library speaks them: messages of text in and out, pings answered and sent, close
//! codes.
//! Compression is declined.

mod frames;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, Stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use frames::Frames;
pub use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Whatever the bounds of request bodies are.
const MESSAGE_MAX: usize = 64 << 20;
/// Sockets are many, and most of them idle: each keeps the first of these, and up to the second.
const READ_BUFFER: usize = 1 << 10;
const WRITE_BUFFER: usize = 4 << 10;
/// Behind a close.
const LINGER: Duration = Duration::from_secs(2);

/// The other end is asked so often whether it is there, while something is expected of it.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Of these in a row, during which nothing at all came: a minute after a ping.
const SILENT_MAX: u32 = 2;

/// One end of a socket.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<Frames<TokioIo<Upgraded>>>,
    role: Role,
    buffers: Buffers,
    is_closing: bool,
    /// Since it was watched first. Not watched any more, it goes off once again at most: a turn that follows
    /// soon finds it running.
    pulse: Option<Pulse>,
    is_watched: bool,
}

/// The library's.
#[derive(Debug, Default)]
struct Buffers {
    /// A message has passed that they had to grow for.
    have_grown: bool,
    /// Something was said that may not have left yet.
    hold_unsent: bool,
}

/// Whether the other end is there (reliability §9). What is idle needs none.
#[derive(Debug)]
struct Pulse {
    every: Duration,
    alarm: Pin<Box<Sleep>>,
    /// Since the alarm went off last.
    heard: bool,
    silent: u32,
}

impl Pulse {
    fn new(every: Duration) -> Self {
        Self { every, alarm: Box::pin(sleep(every)), heard: true, silent: 0 }
    }

    /// False: it was asked, and it is not there.
    fn beats(&mut self) -> bool {
        self.silent = if std::mem::take(&mut self.heard) { 0 } else { self.silent + 1 };
        self.silent < SILENT_MAX
    }
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
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(most))
            .max_frame_size(Some(most));
        let frames = Frames::new(TokioIo::new(upgraded));
        let stream = WebSocketStream::from_raw_socket(frames, role, Some(config)).await;
        Self {
            stream,
            role,
            buffers: Buffers::default(),
            is_closing: false,
            pulse: None,
            is_watched: false,
        }
    }

    /// Between two messages, when all is sent, the library is exchanged for one whose buffers have not grown.
    fn shed(&mut self, cx: &mut Context<'_>) {
        if !self.buffers.have_grown || self.is_closing {
            return;
        }
        if self.buffers.hold_unsent {
            self.poll_flush(cx);
        }
        if !self.buffers.hold_unsent && self.stream.get_ref().is_between_messages() {
            let config = *self.stream.get_config();
            let frames = self.stream.get_mut().hand_over();
            let fresh = WebSocketStream::from_raw_socket(frames, self.role, Some(config));
            self.stream = fresh.now_or_never().expect("without a handshake there is no wait");
            self.buffers.have_grown = false;
        }
    }

    const fn note_size(&mut self, text: &Bytes) {
        self.buffers.have_grown |= text.len() > WRITE_BUFFER;
    }

    /// The other end has said that it closes.
    pub const fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// A turn is under way: an end that is gone without a word is to be noticed.
    pub fn watch(&mut self) {
        self.watch_every(PING_EVERY);
    }

    fn watch_every(&mut self, every: Duration) {
        self.is_watched = true;
        match &mut self.pulse {
            Some(pulse) => (pulse.heard, pulse.silent) = (true, 0),
            None => self.pulse = Some(Pulse::new(every)),
        }
    }

    pub const fn unwatch(&mut self) {
        self.is_watched = false;
    }

    #[cfg(test)]
    pub const fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Resolves when the other end is as good as gone.
    fn poll_pulse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pulse) = &mut self.pulse else { return Poll::Pending };
        while pulse.alarm.as_mut().poll(cx).is_ready() {
            if !self.is_watched {
                self.pulse = None;
                return Poll::Pending;
            }
            if !pulse.beats() {
                return Poll::Ready(());
            }
            pulse.alarm.as_mut().reset(Instant::now() + pulse.every);
            // Who takes nothing answers nothing.
            if let Poll::Ready(Ok(())) = self.stream.poll_ready_unpin(cx) {
                self.buffers.hold_unsent = true;
                let _ = self.stream.start_send_unpin(Message::Ping(Bytes::new()));
                let _ = self.stream.poll_flush_unpin(cx);
            }
        }
        Poll::Pending
    }

    /// `None`: the socket is closed or broken.
    pub fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        self.shed(cx);
        loop {
            let Poll::Ready(message) = Pin::new(&mut self.stream).poll_next(cx) else {
                return self.poll_pulse(cx).map(|()| None);
            };
            if let Some(pulse) = &mut self.pulse {
                pulse.heard = true;
            }
            return Poll::Ready(match message {
                Some(Ok(Message::Text(text))) => {
                    let text = text.into();
                    self.note_size(&text);
                    Some(Said::Text(text))
                }
                Some(Ok(Message::Binary(_))) => Some(Said::Binary),
                Some(Err(Error::Capacity(_))) => Some(Said::TooLarge),
                Some(Err(Error::Utf8(_))) => Some(Said::Malformed(CloseCode::Invalid)),
                // Gone without a word, which is said in the same way.
                Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => None,
                Some(Err(Error::Protocol(_))) => Some(Said::Malformed(CloseCode::Protocol)),
                Some(Ok(Message::Ping(_))) => {
                    self.buffers.hold_unsent = true;
                    continue;
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
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
        self.note_size(&text);
        self.buffers.hold_unsent = true;
        let Ok(text) = Utf8Bytes::try_from(text) else { return false };
        self.stream.feed(Message::Text(text)).await.is_ok()
    }

    pub async fn flush(&mut self) -> bool {
        let is_sent = self.stream.flush().await.is_ok();
        self.buffers.hold_unsent &= !is_sent;
        is_sent
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Ok(())) = self.stream.poll_flush_unpin(cx) {
            self.buffers.hold_unsent = false;
        }
    }

    /// Sends what is queued, as far as the other end takes it now; it is asked again with what is
    /// read next. A broken socket is noticed there.
    pub fn poll_say(&mut self, cx: &mut Context<'_>, queue: &mut VecDeque<Bytes>) {
        while !queue.is_empty() {
            let Poll::Ready(Ok(())) = self.stream.poll_ready_unpin(cx) else { return };
            let Some(text) = queue.pop_front() else { break };
            self.note_size(&text);
            self.buffers.hold_unsent = true;
            let text = Utf8Bytes::try_from(text).ok();
            if text.is_some_and(|text| self.stream.start_send_unpin(Message::Text(text)).is_err()) {
                return;
            }
        }
        self.poll_flush(cx);
    }

    /// What the other end is still sending is read and dropped: unread, it would become a reset, which
    /// may overtake the close.
    pub async fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let _ = self.stream.close(Some(frame)).await;
        let io = self.stream.get_mut();
        let _ = io.shutdown().await;
        // Not in the future, which every idle socket has.
        let mut rest = vec![0; WRITE_BUFFER];
        let drop_rest = async { while io.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        let _ = timeout(LINGER, drop_rest).await;
    }
}

#[cfg(test)]
pub mod tests {
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode, header};
    use http_body_util::Empty;
    use hyper::body::Incoming;
    use hyper::upgrade::OnUpgrade;
    use parking_lot::Mutex;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;

    /// Both ends of one.
    pub async fn pair() -> (Socket, Socket) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let upgrade: Mutex<Option<OnUpgrade>> = Mutex::default();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            *upgrade.lock() = Some(hyper::upgrade::on(request));
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "websocket");
            std::future::ready(Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap()))
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(near), service)
            .with_upgrades();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(far));
        let (mut sender, connection) = handshake.await.unwrap();
        let request = Request::get("/")
            .header(header::HOST, "h")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let asking = sender.send_request(request);
        let (response, connected, served) =
            tokio::join!(asking, connection.with_upgrades(), serving);
        connected.and(served).unwrap();
        let theirs = hyper::upgrade::on(response.unwrap()).await.unwrap();
        let upgrade = upgrade.lock().take().unwrap();
        let ours = upgrade.await.unwrap();
        (Socket::server(ours, usize::MAX).await, Socket::client(theirs).await)
    }

    /// reliability §9: what is idle costs little, whatever was said.
    #[tokio::test]
    async fn behind_a_large_message_its_buffers_are_exchanged_and_nothing_is_lost() {
        let (mut ours, mut theirs) = pair().await;
        let large = Bytes::from("x".repeat(100_000));
        let both = async { tokio::join!(ours.say(large.clone()), theirs.said()).1 };
        assert!(matches!(both.await, Some(Said::Text(text)) if text == large));
        assert!(
            ours.buffers.have_grown && theirs.buffers.have_grown,
            "by what was said, and heard"
        );

        // The next ones are here already, and of one of them a part.
        let first = Message::Ping(Bytes::from_static(b"there?"));
        let part = Frame::message("a ", OpCode::Data(Data::Text), false);
        let rest = Frame::message("b", OpCode::Data(Data::Continue), true);
        for message in [first, Message::Frame(part)] {
            ours.stream.send(message).await.unwrap();
        }
        let silent = Duration::from_millis(50);
        assert!(timeout(silent, theirs.said()).await.is_err(), "it has not ended");
        assert!(!theirs.buffers.have_grown, "exchanged before that was read");
        theirs.buffers.have_grown = true;
        assert!(timeout(silent, theirs.said()).await.is_err());
        assert!(theirs.buffers.have_grown, "not in the middle of a message");
        ours.stream.send(Message::Frame(rest)).await.unwrap();
        assert!(matches!(theirs.said().await, Some(Said::Text(text)) if text == "a b"));

        assert!(timeout(silent, ours.said()).await.is_err(), "a pong is not told");
        assert!(!ours.buffers.have_grown);
        let back = async { tokio::join!(theirs.say(large.clone()), ours.said()).1 };
        assert!(matches!(back.await, Some(Said::Text(text)) if text == large));
    }

    /// A ping at 30 s, another at 60 s, gone at 90 s.
    #[tokio::test]
    async fn reliability_9_an_end_is_gone_a_minute_after_a_ping() {
        let gone_at = |heard: &[bool]| {
            let mut pulse = Pulse::new(PING_EVERY);
            let gone = heard.iter().position(|heard| {
                let beats = pulse.beats();
                pulse.heard = *heard;
                !beats
            });
            gone.map(|beat| (u32::try_from(beat).unwrap() + 1) * PING_EVERY)
        };
        assert_eq!(gone_at(&[false, false, false]), Some(Duration::from_secs(90)));
        assert_eq!(gone_at(&[true, false, true, false, true]), None, "something now and then");
        assert_eq!(gone_at(&[true, true, false, false, false]), Some(Duration::from_secs(150)));
    }

    #[tokio::test]
    async fn what_was_not_heard_in_one_turn_is_not_held_against_the_next() {
        let (mut ours, _theirs) = pair().await;
        ours.watch();
        for _ in 1..SILENT_MAX {
            let pulse = ours.pulse.as_mut().unwrap();
            pulse.heard = false;
            assert!(pulse.beats());
        }
        ours.unwatch();
        ours.watch();
        let pulse = ours.pulse.as_mut().unwrap();
        assert!(pulse.beats() && pulse.silent == 0, "{pulse:?}");
    }

    #[tokio::test]
    async fn an_end_that_answers_pings_is_there_and_one_that_does_not_is_gone() {
        let (mut ours, mut theirs) = pair().await;
        let every = Duration::from_millis(20);
        let long = every * 10;
        ours.watch_every(every);
        let both = async { tokio::join!(ours.said(), theirs.said()) };
        assert!(timeout(long, both).await.is_err(), "they listen");
        ours.unwatch();
        assert!(timeout(long, ours.said()).await.is_err(), "nothing is expected of it");
        assert!(ours.pulse.is_none(), "its alarm goes off once");
        ours.watch_every(every);
        assert!(ours.said().await.is_none(), "nobody answers");
    }
}
