//! The answer a WebSocket is giving: steps, played one after the other.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use crate::journal::{End, Record};

/// What an answer does next.
#[derive(Debug)]
pub enum Step {
    /// Sends a frame that holds so many events with content.
    Send {
        message: Message,
        outputs: u32,
    },
    Pause(Duration),
    /// The answer is complete.
    Done,
    /// A close frame of this code.
    Close(u16),
    /// Ends the connection without one.
    Break(Break),
    /// Says nothing more.
    Hang,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    Close,
    Reset,
    Garbage,
}

/// Empty: no answer is being given.
#[derive(Debug, Default)]
pub struct Play {
    steps: VecDeque<Step>,
    /// End of the pause that is first in line; kept here, since waiting may be cancelled.
    due: Option<Instant>,
    /// What the client may go on from, once complete.
    response: Option<String>,
    record: Option<Record>,
}

impl Play {
    pub fn new(steps: Vec<Step>, response: Option<String>, record: Option<Record>) -> Self {
        Self { steps: steps.into(), due: None, response, record }
    }

    pub fn is_running(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Whether nothing is left but to note that it is complete.
    pub fn is_all_said(&self) -> bool {
        self.steps.len() == 1 && matches!(self.steps.front(), Some(Step::Done))
    }

    /// Whether the next frame follows without a pause.
    pub fn goes_on_at_once(&self) -> bool {
        matches!(self.steps.front(), Some(Step::Send { .. }))
    }

    /// The next step that is not a pause; never, if there is none. Can be cancelled.
    pub async fn next(&mut self) -> Step {
        loop {
            match self.steps.front() {
                None | Some(Step::Hang) => std::future::pending().await,
                Some(Step::Pause(pause)) => {
                    sleep_until(*self.due.get_or_insert_with(|| Instant::now() + *pause)).await;
                    self.due = None;
                    self.steps.pop_front();
                }
                Some(_) => {
                    if let Some(step) = self.steps.pop_front() {
                        return step;
                    }
                }
            }
        }
    }

    pub fn sent(&mut self, bytes: usize, outputs: u32) {
        if let Some(record) = &mut self.record {
            record.sent(bytes, outputs);
        }
    }

    /// Id of the response that is being given.
    pub fn response(&self) -> Option<&str> {
        self.response.as_deref()
    }

    /// The answer is complete: the response that is known from now on.
    pub fn finish(&mut self) -> Option<String> {
        if let Some(mut record) = self.record.take() {
            record.ends(End::Complete);
        }
        self.response.take()
    }

    /// Says what it means if nothing more is sent.
    pub fn breaks(&mut self, end: End) {
        if let Some(record) = &mut self.record {
            record.ends(end);
        }
    }
}
