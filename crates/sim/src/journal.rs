//! What was asked and how it went: one entry per request, for assertions.
//!
//! An entry appears when the request was read and changes until its `end` is set; that of a
//! WebSocket's handshake ends with the socket. Entries and the bytes of their bodies are bounded;
//! the oldest go first. When switched off nothing is kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The method of a WebSocket's turns.
const TURN: &str = "TURN";

const ENTRIES_MAX: usize = 20_000;
const BODIES_MAX_BYTES: usize = 64 << 20;
/// Longer bodies are cut to this.
const BODY_MAX_BYTES: usize = 1 << 20;

/// How a request ended, or a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer was handed to the socket; of a WebSocket: either side closed it by a
    /// close frame.
    Complete,
    /// A scripted fault broke it off.
    Fault,
    /// The client closed before the answer was complete, or the simulator stopped.
    ClientGone,
}

/// One request, one WebSocket (its handshake), or one frame of one.
#[derive(Clone, Debug)]
pub struct Entry {
    /// From 0, in the order in which requests were read.
    pub sequence: u64,
    /// `None`: the credential is unknown.
    pub account: Option<String>,
    /// `TURN` for a frame of a WebSocket; path and headers are its handshake's.
    pub method: Method,
    /// The number of the WebSocket, from 0; `None`: plain HTTP, or no WebSocket came of it.
    pub socket: Option<u64>,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// Decoded, at most 1 MiB of it; of a turn the frame.
    pub body: Bytes,
    pub content_encoding: Option<String>,
    /// `None`: no response head yet. Of a turn 200, or what its `error` event says.
    pub status: Option<u16>,
    /// Events with content handed to the socket.
    pub output_events_sent: u32,
    /// Bytes of the response body, or of the frames, handed to the socket.
    pub bytes_sent: u64,
    /// `None`: still running.
    pub end: Option<End>,
    pub started: Instant,
    pub ended: Option<Instant>,
}

impl Entry {
    /// Whether this is a frame of a WebSocket.
    pub fn is_turn(&self) -> bool {
        self.method.as_str() == TURN
    }

    /// Whether this is a WebSocket.
    pub fn is_socket(&self) -> bool {
        self.socket.is_some() && !self.is_turn()
    }

    /// A header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text, with replacements where it is not.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The part of an entry that is known when the request was read.
pub struct Asked<'a> {
    pub account: Option<&'a str>,
    pub head: &'a http::request::Parts,
    pub body: &'a Bytes,
    /// The WebSocket of which it is a frame.
    pub turn_of: Option<u64>,
}

#[derive(Debug, Default)]
struct Pages {
    entries: VecDeque<Entry>,
    next: u64,
    body_bytes: usize,
}

#[derive(Debug)]
pub struct Journal {
    on: bool,
    pages: Mutex<Pages>,
    changed: Notify,
}

impl Journal {
    pub fn new(on: bool) -> Arc<Self> {
        Arc::new(Self { on, pages: Mutex::default(), changed: Notify::new() })
    }

    /// Opens an entry; `None`: switched off.
    pub fn open(self: &Arc<Self>, asked: &Asked<'_>) -> Option<Record> {
        if !self.on {
            return None;
        }
        let body = match asked.body.len() {
            0..=BODY_MAX_BYTES => asked.body.clone(),
            _ => Bytes::copy_from_slice(&asked.body[..BODY_MAX_BYTES]),
        };
        let headers = asked.head.headers.clone();
        let encoding = headers.get(http::header::CONTENT_ENCODING);
        let content_encoding = encoding.and_then(|e| e.to_str().ok()).map(ToOwned::to_owned);
        let mut pages = self.pages.lock();
        let sequence = pages.next;
        pages.next += 1;
        pages.body_bytes += body.len();
        pages.entries.push_back(Entry {
            sequence,
            account: asked.account.map(ToOwned::to_owned),
            method: match asked.turn_of {
                Some(_) => Method::from_bytes(TURN.as_bytes()).expect("letters"),
                None => asked.head.method.clone(),
            },
            socket: asked.turn_of,
            path: asked.head.uri.path().to_owned(),
            query: asked.head.uri.query().map(ToOwned::to_owned),
            headers,
            body,
            content_encoding,
            status: None,
            output_events_sent: 0,
            bytes_sent: 0,
            end: None,
            started: Instant::now(),
            ended: None,
        });
        pages.trim();
        drop(pages);
        self.changed.notify_waiters();
        Some(Record { journal: Arc::clone(self), sequence, end: End::ClientGone })
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.pages.lock().entries.iter().cloned().collect()
    }

    pub fn clear(&self) {
        let mut pages = self.pages.lock();
        pages.entries.clear();
        pages.body_bytes = 0;
    }

    /// Waits until `is_so`; `false`: not within `patience`.
    pub async fn wait_for(
        &self,
        mut is_so: impl FnMut(&[Entry]) -> bool,
        patience: Duration,
    ) -> bool {
        let wait = async {
            loop {
                // Enabled before looking, so that no change in between is missed.
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if is_so(self.pages.lock().entries.make_contiguous()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    fn change(&self, sequence: u64, change: impl FnOnce(&mut Entry)) {
        let mut pages = self.pages.lock();
        if let Some(entry) = pages.entry(sequence) {
            change(entry);
        }
        drop(pages);
        self.changed.notify_waiters();
    }
}

impl Pages {
    /// `None`: it was cleared or trimmed away.
    fn entry(&mut self, sequence: u64) -> Option<&mut Entry> {
        let first = self.entries.front()?.sequence;
        let at = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.entries.get_mut(at)
    }

    fn trim(&mut self) {
        while self.entries.len() > ENTRIES_MAX || self.body_bytes > BODIES_MAX_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.body_bytes -= oldest.body.len();
        }
    }
}

/// An open entry. Dropped before anything else was noted, the client has gone.
#[derive(Debug)]
pub struct Record {
    journal: Arc<Journal>,
    sequence: u64,
    end: End,
}

impl Record {
    pub fn status(&self, status: u16) {
        self.journal.change(self.sequence, |entry| entry.status = Some(status));
    }

    /// Notes that the handshake made this WebSocket.
    pub fn socket(&self, number: u64) {
        self.journal.change(self.sequence, |entry| entry.socket = Some(number));
    }

    /// Notes a piece of the body; `end`: what it means if nothing follows.
    pub fn sent(&mut self, bytes: usize, output_events: u32) {
        self.journal.change(self.sequence, |entry| {
            entry.bytes_sent += bytes as u64;
            entry.output_events_sent += output_events;
        });
    }

    /// Says what it means that this record is dropped.
    pub fn ends(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.journal.change(self.sequence, |entry| {
            entry.end = Some(self.end);
            entry.ended = Some(Instant::now());
        });
    }
}
