//! Sockets to upstreams: one for each client's socket, for turns one after the other.
//!
//! A turn's body is its messages as they came, one in each frame, so that what reads and relays the
//! bodies of answers over HTTP does so here too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use poolgate_core::account::AccountId;
use tokio::time::timeout;

use super::{BodyError, SendError};
use crate::providers::{event_kind, is_metadata, response_id};
use crate::ws::{Said, Socket};

/// As much may wait for an upstream to take it, or one message that is larger.
const WAITING_MAX: usize = 1 << 20;
/// So many events that are of no turn may come before the first that is.
const BEFORE_FIRST_MAX: usize = 16;

/// The upstream's end of a client's socket.
#[derive(Debug)]
pub struct Leg {
    pub account: AccountId,
    /// Whose sign-in opened it, and where it leads: with another one it is not the account's.
    pub mark: u64,
    pub socket: Socket,
    /// The response of the turn before. What is still said of it is not the next turn's.
    before: Option<String>,
    /// The client has said more than its turns. What the upstream says to that comes at any time, and an
    /// error among it names no turn.
    interjected: bool,
    /// The turn before ended in `response.failed`, and the next one has not begun. Some tell a failure twice, and
    /// the error behind names no turn either.
    failed: bool,
}

impl Leg {
    pub fn new(account: AccountId, mark: u64, socket: Socket) -> Self {
        Self { account, mark, socket, before: None, interjected: false, failed: false }
    }
}

/// What a client's socket has on the other side.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Mutex<Held>>);

/// What became of a message to the turn under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interjected {
    Queued,
    /// No turn is under way on a socket.
    Nowhere,
    /// The upstream has not taken what was said before.
    Full,
}

#[derive(Debug, Default)]
struct Held {
    /// It waits here for the next turn.
    leg: Option<Box<Leg>>,
    /// What the client says to the turn under way, or to be; `None`: none is, on a socket.
    said: Option<VecDeque<Bytes>>,
    /// It speaks HTTP only.
    without: Option<AccountId>,
    /// Others were left before the leg was opened.
    others_failed: bool,
}

impl Slot {
    pub fn put(&self, leg: Box<Leg>) {
        self.0.lock().leg = Some(leg);
    }

    pub fn take(&self) -> Option<Box<Leg>> {
        self.0.lock().leg.take()
    }

    /// Of the leg that waits.
    pub fn mark(&self) -> Option<u64> {
        self.0.lock().leg.as_ref().map(|leg| leg.mark)
    }

    /// Whose leg it is.
    pub fn account(&self) -> Option<AccountId> {
        self.0.lock().leg.as_ref().map(|leg| leg.account)
    }

    /// This account has no sockets: what this client asks of it goes over HTTP.
    pub fn bridge(&self, account: AccountId) {
        self.0.lock().without = Some(account);
    }

    /// An account was left when a socket was to be opened.
    pub fn note_failed(&self) {
        self.0.lock().others_failed = true;
    }

    /// Whose leg was opened behind the failure of others. Once.
    pub fn take_opener(&self) -> Option<AccountId> {
        let mut held = self.0.lock();
        let others_failed = std::mem::take(&mut held.others_failed);
        held.leg.as_ref().filter(|_| others_failed).map(|leg| leg.account)
    }

    pub fn is_bridged(&self, account: AccountId) -> bool {
        self.0.lock().without == Some(account)
    }

    /// From here on the client may say something to its turn, which hears it when it has begun.
    pub fn listen(&self) {
        self.0.lock().said = Some(VecDeque::new());
    }

    /// What has not been heard is nobody's any more.
    pub fn stop_listening(&self) {
        self.0.lock().said = None;
    }

    /// Hands a message to the turn under way, which sends it when it is polled next.
    pub fn interject(&self, text: Bytes) -> Interjected {
        let mut held = self.0.lock();
        let Some(said) = &mut held.said else { return Interjected::Nowhere };
        let waiting: usize = said.iter().map(Bytes::len).sum();
        if waiting > 0 && waiting + text.len() > WAITING_MAX {
            return Interjected::Full;
        }
        said.push_back(text);
        Interjected::Queued
    }

    /// What the upstream says between turns; `None`: it has closed, or takes no more turns, and the slot is
    /// empty now. Never resolves while there is no leg.
    pub async fn idle(&self) -> Option<Bytes> {
        std::future::poll_fn(|cx| {
            let slot = &mut self.0.lock().leg;
            let Some(leg) = slot else { return Poll::Pending };
            let said = std::task::ready!(leg.socket.poll_said(cx));
            if let Some(Said::Text(text)) = said
                && end_of_turn(&text) != Some(End::Leg)
            {
                // The one behind a failure, if any was to come.
                leg.failed &= event_kind(&text) != b"error";
                return Poll::Ready(Some(text));
            }
            *slot = None;
            Poll::Ready(None)
        })
        .await
    }
}

/// The events of one turn. Its end puts the leg back; dropped before, it closes it.
#[derive(Debug)]
pub struct Turn {
    /// `None`: the turn is over.
    leg: Option<Box<Leg>>,
    slot: Slot,
    /// What came before the first event that is of the turn itself, and that one.
    first: VecDeque<Bytes>,
    /// The response that this turn is given.
    response: Option<String>,
}

/// Why a turn did not begin.
#[derive(Debug)]
pub enum NotBegun {
    /// The upstream has closed the socket in good order, or takes no more turns on it.
    Closed,
    Failed(SendError),
}

impl Turn {
    /// Sends the frame, and waits for the first event, as one waits for the head of an answer.
    pub async fn begin(
        mut leg: Box<Leg>,
        slot: Slot,
        frame: Bytes,
        wait: Duration,
    ) -> Result<Self, NotBegun> {
        let ended = |leg: Option<&Leg>| match leg {
            Some(leg) if leg.socket.is_closing() => NotBegun::Closed,
            _ => NotBegun::Failed(SendError::Broke("the socket closed".into())),
        };
        leg.socket.watch();
        // A large one is not taken at once.
        let said = timeout(wait, leg.socket.say(frame)).await;
        if !said.map_err(|_| NotBegun::Failed(SendError::Timeout))? {
            return Err(ended(Some(&leg)));
        }
        // After a turn over HTTP nothing is listened to.
        slot.0.lock().said.get_or_insert_default();
        let mut turn = Self { leg: Some(leg), slot, first: VecDeque::new(), response: None };
        let first = timeout(wait, turn.hear_first()).await;
        let first = first.map_err(|_| NotBegun::Failed(SendError::Timeout))?;
        let Some(first) = first else { return Err(ended(turn.leg.as_deref())) };
        let has_failed = turn.leg.as_mut().is_some_and(|leg| std::mem::take(&mut leg.failed));
        let may_be_anothers = has_failed || turn.is_interjected();
        let is_of_another = event_kind(&first) == b"error" && may_be_anothers;
        if is_of_another || end_of_turn(&first) == Some(End::Leg) {
            return Err(NotBegun::Closed);
        }
        turn.first.push_back(first);
        Ok(turn)
    }

    /// Limits and headers may be told before anything else, even on a socket that takes no more turns.
    async fn hear_first(&mut self) -> Option<Bytes> {
        loop {
            let said = std::future::poll_fn(|cx| self.poll_said(cx)).await?;
            let kind = event_kind(&said);
            let is_of_turn = !(kind.starts_with(b"codex.") || is_metadata(kind));
            if is_of_turn || self.first.len() == BEFORE_FIRST_MAX {
                return Some(said);
            }
            self.first.push_back(said);
        }
    }

    pub fn is_over(&self) -> bool {
        self.leg.is_none() && self.first.is_empty()
    }

    fn is_interjected(&self) -> bool {
        self.leg.as_ref().is_some_and(|leg| leg.interjected)
    }

    /// The next message of this turn; `None`: the socket is closed or broken.
    fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some(leg) = &mut self.leg else { return Poll::Ready(None) };
            if let Some(queue) = &mut self.slot.0.lock().said {
                leg.interjected |= !queue.is_empty();
                leg.socket.poll_say(cx, queue);
            }
            let Some(Said::Text(text)) = std::task::ready!(leg.socket.poll_said(cx)) else {
                return Poll::Ready(None);
            };
            let kind = event_kind(&text);
            let is_metadata = is_metadata(kind);
            // Headers of a turn may be told long after it.
            if is_metadata || self.response.is_none() && kind.starts_with(b"response.") {
                let of = response_id(&text);
                // Some give all responses one name: what begins is new.
                let may_be_former = of != self.response && kind != b"response.created";
                if of.is_some() && of == leg.before && may_be_former {
                    continue;
                }
                if !is_metadata {
                    self.response = of;
                }
            }
            return Poll::Ready(Some(text));
        }
    }

    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let text = if let Some(first) = self.first.pop_front() {
            first
        } else {
            if self.leg.is_none() {
                return Poll::Ready(None);
            }
            let Some(text) = std::task::ready!(self.poll_said(cx)) else {
                self.leg = None;
                return Poll::Ready(Some(Err(BodyError::Socket)));
            };
            text
        };
        if event_kind(&text).is_empty() {
            // No event of this protocol: who sends junk is as good as gone.
            self.leg = None;
            return Poll::Ready(Some(Err(BodyError::Socket)));
        }
        match end_of_turn(&text) {
            Some(End::Leg) => self.leg = None,
            Some(End::Turn) => {
                // Whichever turn an error is about, what follows might be taken for another's.
                let is_certain = !self.is_interjected() || event_kind(&text) != b"error";
                if let Some(mut leg) = self.leg.take().filter(|_| is_certain) {
                    leg.before = self.response.take().or(leg.before);
                    leg.failed = event_kind(&text) == b"response.failed";
                    leg.socket.unwatch();
                    self.slot.put(leg);
                }
            }
            None => {}
        }
        Poll::Ready(Some(Ok(text)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Turn,
    /// The upstream takes no other turn on this socket.
    Leg,
}

fn end_of_turn(text: &[u8]) -> Option<End> {
    match event_kind(text) {
        b"response.completed" | b"response.failed" | b"response.incomplete" => Some(End::Turn),
        b"error" => {
            let limit = b"websocket_connection_limit_reached";
            let is_limit = memchr::memmem::find(text, limit).is_some();
            Some(if is_limit { End::Leg } else { End::Turn })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::tests::pair;

    /// reliability §9.
    #[tokio::test]
    async fn an_upstream_is_watched_during_a_turn_and_not_between_two() {
        let (mut upstream, socket) = pair().await;
        assert!(!socket.is_watched());
        let (leg, slot) = (Box::new(Leg::new(AccountId(1), 0, socket)), Slot::default());
        let wait = Duration::from_secs(20);
        let begin = Turn::begin(leg, slot.clone(), Bytes::from_static(b"{}"), wait);
        let created = Bytes::from_static(br#"{"type":"response.created"}"#);
        let (turn, _) = tokio::join!(begin, upstream.say(created));
        let mut turn = turn.unwrap();
        assert!(turn.leg.as_ref().unwrap().socket.is_watched());
        upstream.say(Bytes::from_static(br#"{"type":"response.completed"}"#)).await;
        while std::future::poll_fn(|cx| turn.poll_event(cx)).await.is_some() {}
        assert!(!slot.take().unwrap().socket.is_watched());
    }

    #[test]
    fn knows_the_end_of_a_turn_and_of_a_leg() {
        let limit = r#"{"type":"error","status":400,"error":{"code":"websocket_connection_limit_reached"}}"#;
        let cases = [
            (r#"{"type":"response.completed"}"#, Some(End::Turn)),
            (r#"{"response":{},"type":"response.failed"}"#, Some(End::Turn)),
            (r#"{"type":"error","status":429}"#, Some(End::Turn)),
            (limit, Some(End::Leg)),
            (r#"{"type":"response.output_text.delta","delta":"error"}"#, None),
            ("no JSON", None),
        ];
        for (text, want) in cases {
            assert_eq!(end_of_turn(text.as_bytes()), want, "{text}");
        }
    }
}
