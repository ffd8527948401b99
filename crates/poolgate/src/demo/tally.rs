//! What the made-up developers saw, and what happened meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use poolgate_core::units::Timestamp;

use crate::clock::Clock;

/// Reasons kept of failures that nobody expected.
const REASONS: usize = 3;
/// Events kept for whoever has not read them yet.
const EVENTS: usize = 100;

/// How a request ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done(Tokens),
    /// Every account was out of quota, and the gateway said so: expected, if rare.
    Spent,
    Failed(String),
    /// Begun while the gateway was going away.
    Stopped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub at: Timestamp,
    pub text: String,
}

#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub running: u64,
    pub done: u64,
    pub spent: u64,
    pub failed: u64,
    pub tokens: Tokens,
    /// Requests that left an account for another, as the gateway counts them.
    pub failovers: u64,
    pub reasons: Vec<String>,
}

/// Shared by the parts of the demo.
#[derive(Debug)]
pub struct Tally {
    clock: Arc<dyn Clock>,
    totals: Mutex<Totals>,
    events: Mutex<VecDeque<Event>>,
}

impl Tally {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, totals: Mutex::default(), events: Mutex::default() }
    }

    pub fn begin(&self) {
        self.totals.lock().running += 1;
    }

    pub fn end(&self, end: End) {
        let mut totals = self.totals.lock();
        totals.running -= 1;
        match end {
            End::Done(tokens) => {
                totals.done += 1;
                totals.tokens.input += tokens.input;
                totals.tokens.output += tokens.output;
            }
            End::Spent => totals.spent += 1,
            End::Stopped => {}
            End::Failed(reason) => {
                totals.failed += 1;
                if totals.reasons.len() < REASONS && !totals.reasons.contains(&reason) {
                    totals.reasons.push(reason);
                }
            }
        }
    }

    pub fn note_failovers(&self, total: u64) {
        self.totals.lock().failovers = total;
    }

    pub fn totals(&self) -> Totals {
        self.totals.lock().clone()
    }

    pub fn happened(&self, text: String) {
        let mut events = self.events.lock();
        if events.len() == EVENTS {
            events.pop_front();
        }
        events.push_back(Event { at: self.clock.now(), text });
    }

    /// Events since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.lock().drain(..).collect()
    }
}
