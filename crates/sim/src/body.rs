//! A response body played from steps, which keeps its journal entry up to date.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::journal::{End, Record};
use crate::wire::Ending;

/// What the body does next.
#[derive(Debug)]
pub enum Step {
    /// Sends bytes that hold so many events with content.
    Send {
        bytes: Bytes,
        outputs: u32,
    },
    Pause(Duration),
    /// Ends the connection, what was sent so far having left.
    Break {
        reset: bool,
    },
    /// Says nothing more.
    Hang,
}

/// The request is not to be answered, or not to the end; hyper closes the connection.
#[derive(Debug)]
pub struct Abandoned;

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("abandoned as scripted")
    }
}

impl std::error::Error for Abandoned {}

pub struct Playback {
    steps: std::vec::IntoIter<Step>,
    /// `None`: a stream. What the head declares, whether or not it is sent.
    length: Option<u64>,
    pause: Option<Pin<Box<Sleep>>>,
    flushed: bool,
    record: Option<Record>,
    ending: Arc<Ending>,
}

impl Playback {
    pub fn new(
        steps: Vec<Step>,
        length: Option<u64>,
        record: Option<Record>,
        ending: Arc<Ending>,
    ) -> Self {
        let steps = steps.into_iter();
        let mut body = Self { steps, length, pause: None, flushed: false, record, ending };
        if body.is_over() {
            body.close(End::Complete);
        }
        body
    }

    fn is_over(&self) -> bool {
        self.steps.as_slice().is_empty()
    }

    fn close(&mut self, end: End) {
        if let Some(mut record) = self.record.take() {
            record.ends(end);
        }
    }
}

impl Body for Playback {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if let Some(Step::Hang) = self.steps.as_slice().first() {
                // No waker: the connection drops this body when its client goes.
                return Poll::Pending;
            }
            if let (Some(Step::Break { .. }), false) = (self.steps.as_slice().first(), self.flushed)
            {
                // hyper flushes when the body is pending, but not when it fails.
                self.flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.steps.next() {
                None | Some(Step::Hang) => return Poll::Ready(None),
                Some(Step::Pause(length)) => {
                    self.pause = Some(Box::pin(tokio::time::sleep(length)));
                }
                Some(Step::Send { bytes, outputs }) => {
                    if let Some(record) = &mut self.record {
                        record.sent(bytes.len(), outputs);
                    }
                    if self.is_over() {
                        self.close(End::Complete);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Step::Break { reset }) => {
                    if reset {
                        self.ending.with_reset();
                    }
                    self.close(End::Fault);
                    return Poll::Ready(Some(Err(Abandoned)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over() && self.pause.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
