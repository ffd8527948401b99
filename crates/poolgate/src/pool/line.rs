//! Waiting in line for an account.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use poolgate_core::line::{Joined, Place, Turn};
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub struct Line {
    state: Mutex<State>,
    /// Read without the lock: nobody waits, mostly.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    line: poolgate_core::line::Line,
    bells: HashMap<Place, Arc<Notify>>,
}

/// There is no place, and nobody has to make room.
#[derive(Clone, Copy, Debug)]
pub struct Full {
    /// Somebody in the line waits for the same.
    pub behind_others: bool,
}

impl Line {
    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Somebody was called and has not looked yet.
    pub fn is_calling(&self) -> bool {
        self.state.lock().line.is_calling()
    }

    pub fn join(self: &Arc<Self>, key: i64, wants: u64) -> Result<Waiter, Full> {
        let bell = Arc::new(Notify::new());
        let mut state = self.state.lock();
        let place = match state.line.join(key, wants) {
            Joined::At(at) => at,
            Joined::Instead { at, of } => {
                state.ring(Some(of));
                state.bells.remove(&of);
                at
            }
            Joined::Full { behind_others } => return Err(Full { behind_others }),
        };
        state.bells.insert(place, Arc::clone(&bell));
        self.len.store(state.line.len(), Ordering::Release);
        let called = state.line.freed();
        state.ring(called);
        Ok(Waiter { line: Arc::clone(self), place, bell, is_served: false })
    }

    /// An account may have become able to serve.
    pub fn freed(&self) {
        if self.waiting() > 0 {
            self.call(poolgate_core::line::Line::freed);
        }
    }

    fn call(&self, next: impl FnOnce(&mut poolgate_core::line::Line) -> Option<Place>) {
        let mut state = self.state.lock();
        let called = next(&mut state.line);
        state.ring(called);
    }
}

impl State {
    fn ring(&self, called: Option<Place>) {
        if let Some(bell) = called.and_then(|place| self.bells.get(&place)) {
            bell.notify_one();
        }
    }
}

/// A request's place in the line, until dropped.
#[derive(Debug)]
pub struct Waiter {
    line: Arc<Line>,
    place: Place,
    bell: Arc<Notify>,
    is_served: bool,
}

impl Waiter {
    /// Resolves when it is this request's turn to look for an account, or it has lost its place; at
    /// `until` it asks for that by itself.
    pub async fn called(&self, until: Instant) -> Turn {
        tokio::select! {
            () = self.bell.notified() => {}
            () = tokio::time::sleep_until(until) => {
                self.line.call(|line| line.due(self.place));
                self.bell.notified().await;
            }
        }
        self.line.state.lock().line.turn(self.place)
    }

    /// There was none.
    pub fn in_vain(&self) {
        self.line.call(|line| line.in_vain(self.place));
    }

    pub fn served(mut self) {
        self.is_served = true;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        let called = if self.is_served {
            state.line.served(self.place)
        } else {
            state.line.gave_up(self.place)
        };
        state.ring(called);
        state.bells.remove(&self.place);
        self.line.len.store(state.line.len(), Ordering::Release);
    }
}
