//! The life of a WebSocket: what a client sends, answers one at a time, and what tests push in.
//!
//! One task per socket. Between two frames it looks, in this order, for what a test told it, for
//! a frame of the client's, and for the next step of the answer that is being played.

mod frames;
mod play;
mod turn;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::{Connection, Exchange};
use crate::account::{Command, Inner, Seat};
use crate::journal::{Asked, End, Record};
use crate::kind::Dialect;
use crate::route::Route;
use crate::sim::World;
use crate::wire::Ending;

use play::{Break, Play, Step};

type Ws = WebSocketStream<TokioIo<Upgraded>>;

/// As for a plain body.
const MESSAGE_MAX_BYTES: usize = 256 << 20;
/// Small, for the sake of ten thousand idle sockets.
const BUFFER_BYTES: usize = 8 << 10;
/// More responses than this are not remembered.
const KNOWN_MAX: usize = 1000;
/// How long a client may take to answer a close frame.
const CLOSING: Duration = Duration::from_secs(2);

/// A binary frame came.
const UNSUPPORTED: u16 = 1003;

/// A WebSocket, apart from its connection.
pub struct Session {
    seat: Seat,
    play: Play,
    world: Arc<World>,
    account: Arc<Inner>,
    /// Of the handshake.
    head: Parts,
    dialect: Dialect,
    /// Ids of the responses it gave.
    known: HashSet<String>,
    /// Of the handshake; lasts as long as the socket.
    record: Option<Record>,
}

/// What happens next.
enum Event {
    Told(Command),
    Heard(Option<Result<Message, Error>>),
    Due(Step),
}

/// Serves a WebSocket until either side ends it.
pub async fn serve(mut session: Session, upgraded: OnUpgrade, on: Connection) {
    let cut = session.seat.cut.clone();
    let Some(Ok(upgraded)) = on.stop.run_until_cancelled(upgraded).await else {
        return; // The client has gone already.
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    let io = TokioIo::new(upgraded);
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    tokio::select! {
        biased;
        () = cut.cancelled() => session.ends(End::Fault),
        () = on.stop.cancelled() => {}
        _ = session.run(&mut ws, &on.ending) => {}
    }
    // Whoever sees the connection end finds everything noted.
    drop(session);
    drop(ws);
}

impl Session {
    pub fn new(
        world: Arc<World>,
        account: Arc<Inner>,
        (head, dialect): (Parts, Dialect),
        seat: Seat,
    ) -> Self {
        let (play, known) = (Play::default(), HashSet::new());
        Self { seat, play, world, account, head, dialect, known, record: None }
    }

    pub fn recorded(self, record: Option<Record>) -> Self {
        Self { record, ..self }
    }

    /// # Errors
    /// The connection broke.
    async fn run(&mut self, ws: &mut Ws, ending: &Ending) -> Result<(), Error> {
        loop {
            let event = tokio::select! {
                biased;
                Some(command) = self.seat.commands.recv() => Event::Told(command),
                heard = ws.next() => Event::Heard(heard),
                step = self.play.next() => Event::Due(step),
            };
            match event {
                Event::Told(Command::Push(text)) => ws.send(Message::Text(text)).await?,
                Event::Told(Command::Close(code)) | Event::Due(Step::Close(code)) => {
                    return self.close(ws, code).await;
                }
                Event::Heard(None) => return Ok(()),
                Event::Heard(Some(message)) => match message? {
                    Message::Text(text) => self.hear(ws, text).await?,
                    Message::Binary(_) => return self.close(ws, UNSUPPORTED).await,
                    // It is answered, and then the stream ends.
                    Message::Close(_) => self.note(End::Complete),
                    // Pings are answered while reading goes on.
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                },
                Event::Due(Step::Send { message, outputs }) => {
                    self.play.sent(message.len(), outputs);
                    ws.feed(message).await?;
                    if !self.play.goes_on_at_once() {
                        ws.flush().await?;
                    }
                }
                Event::Due(Step::Done) => self.learn(),
                Event::Due(Step::Break(how)) => {
                    self.ends(End::Fault);
                    match how {
                        Break::Close => {}
                        Break::Reset => ending.with_reset(),
                        Break::Garbage => ending.with_garbage(),
                    }
                    return Ok(());
                }
                Event::Due(Step::Pause(_) | Step::Hang) => {}
            }
        }
    }

    /// Begins the answer to a frame, or refuses to.
    async fn hear(&mut self, ws: &mut Ws, text: Utf8Bytes) -> Result<(), Error> {
        // A fast client has read the last event before this has gone on behind it.
        if self.play.is_all_said() {
            self.learn();
            self.play = Play::default();
        }
        let body = Bytes::from(text);
        let name = Some(self.account.name());
        let turn_of = Some(self.seat.number());
        let asked = Asked { account: name, head: &self.head, body: &body, turn_of };
        let mut record = self.world.journal.open(&asked);
        let exchange = Exchange {
            world: &self.world,
            head: &self.head,
            body: &body,
            is_readable: true,
            route: Route::Responses(self.dialect),
            id: self.world.next_request_id(),
        };
        if let Some(frame) = turn::interrupt(&body, self.play.response()) {
            if let Some(record) = &mut record {
                record.status(200);
                record.ends(End::Complete);
            }
            self.play.finish();
            self.play = Play::default();
            return ws.send(frame).await;
        }
        if self.play.is_running() {
            let (status, frame) = turn::busy(&exchange, &self.account);
            if let Some(record) = &mut record {
                record.status(status);
                record.sent(frame.len(), 0);
                record.ends(End::Complete);
            }
            return ws.send(frame).await;
        }
        let turn = turn::compose(&exchange, &self.account, &self.known);
        if let Some(record) = &record {
            record.status(turn.status);
        }
        self.play = Play::new(turn.steps, turn.response, record);
        Ok(())
    }

    /// The answer is complete, and may be gone on from.
    fn learn(&mut self) {
        // Clients go on from their last.
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.extend(self.play.finish());
    }

    /// Closes by a frame, and waits for the client's.
    async fn close(&mut self, ws: &mut Ws, code: u16) -> Result<(), Error> {
        self.note(End::Complete);
        self.play.breaks(End::Fault);
        self.play = Play::default();
        ws.close(Some(CloseFrame { code: code.into(), reason: Utf8Bytes::default() })).await?;
        let closing = async { while let Some(Ok(_)) = ws.next().await {} };
        // A client that does not answer is left.
        let _ = tokio::time::timeout(CLOSING, closing).await;
        Ok(())
    }

    /// Says how the socket ended.
    fn note(&mut self, end: End) {
        if let Some(record) = &mut self.record {
            record.ends(end);
        }
    }

    /// Ends the socket, and the answer with it.
    fn ends(&mut self, end: End) {
        self.note(end);
        self.play.breaks(end);
    }
}
