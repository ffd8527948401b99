//! What the parts of one connection tell each other.

use std::net::IpAddr;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::sending::Stream;
use crate::strict::Fault;

#[derive(Debug, Default)]
pub struct State {
    /// Of the client; `None` only in tests.
    pub address: Option<IpAddr>,
    /// What became of the upgrade that was asked for last.
    pub answered: AnsweredCell,
    /// Why the stand-in was put in the place of a request.
    pub fault: Mutex<Option<Fault>>,
    /// Requests begun, ever, and being served.
    pub requests: AtomicUsize,
    pub running: AtomicUsize,
    /// The client misuses the connection: it is to be closed.
    pub abused: Flag,
    pub resets: Mutex<Resets>,
    /// The client speaks HTTP/1.0: only the end of the connection may tell where an answer ends.
    pub ends_with_connection: Flag,
    /// Answers on HTTP/2 that a client could stop taking.
    pub streams: Mutex<Vec<Weak<Stream>>>,
}

impl State {
    pub fn has_streams(&self) -> bool {
        !self.streams.lock().is_empty()
    }

    pub fn wake_streams(&self) {
        self.streams.lock().iter().filter_map(Weak::upgrade).for_each(|stream| stream.wake());
    }

    /// Ends those whose client took nothing for `patience`.
    pub fn give_up_streams(&self, patience: Duration, now: Instant) {
        self.streams.lock().retain(|stream| {
            stream.upgrade().inspect(|stream| stream.give_up(patience, now)).is_some()
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    NotYet,
    Upgraded,
    Refused,
}

#[derive(Debug, Default)]
pub struct AnsweredCell(AtomicU8);

impl AnsweredCell {
    pub fn set(&self, answered: Answered) {
        self.0.store(answered as u8, Ordering::Release);
    }

    pub fn get(&self) -> Answered {
        match self.0.load(Ordering::Acquire) {
            0 => Answered::NotYet,
            1 => Answered::Upgraded,
            _ => Answered::Refused,
        }
    }
}

#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn set(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Requests that the client took back before they were answered: cheap for it, work for us.
#[derive(Debug, Default)]
pub struct Resets {
    since: Option<Instant>,
    count: u32,
}

const RESETS_MAX: u32 = 100;
const RESETS_WITHIN: Duration = Duration::from_secs(10);

impl Resets {
    /// One more; true: too many.
    pub fn count(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) > RESETS_WITHIN) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        self.count > RESETS_MAX
    }
}
