//! An answer's body on its way to the client: counted until it is gone, and on HTTP/2 watched, since
//! there a client can stop one stream and keep the connection going.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::state::State;
use crate::gateway::Outgoing;

/// A request being served; dropped with the last byte of its answer.
#[derive(Debug)]
pub struct Running {
    state: Arc<State>,
    /// The client could take it back alone, without its connection.
    is_stream: bool,
    pub is_answered: bool,
}

impl Running {
    pub fn new(state: &Arc<State>, is_stream: bool) -> Self {
        state.requests.fetch_add(1, Ordering::Relaxed);
        state.running.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), is_stream, is_answered: false }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.running.fetch_sub(1, Ordering::Relaxed);
        if self.is_stream && !self.is_answered && self.state.resets.lock().count(Instant::now()) {
            self.state.abused.set(true);
        }
    }
}

pub struct Sending {
    source: Source,
    running: Running,
    /// It breaks off as soon as what came before has been written.
    breaks_off: bool,
}

enum Source {
    Own(Outgoing),
    Watched(Arc<Stream>),
}

/// The body of an HTTP/2 stream, which whoever watches may drop.
pub struct Stream(Mutex<Inside>);

struct Inside {
    /// `None`: the client took nothing for too long.
    body: Option<Outgoing>,
    /// When the client was last given something; `None`: it waits for us.
    given_at: Option<Instant>,
    /// Of its task, while there is nothing to give.
    waker: Option<Waker>,
}

impl Sending {
    pub fn new(body: Outgoing, running: Running) -> Self {
        Self { source: Source::Own(body), running, breaks_off: false }
    }

    /// And what watches it.
    pub fn watched(body: Outgoing, running: Running) -> (Self, Weak<Stream>) {
        let given_at = Some(Instant::now());
        let stream =
            Arc::new(Stream(Mutex::new(Inside { body: Some(body), given_at, waker: None })));
        let watch = Arc::downgrade(&stream);
        (Self { source: Source::Watched(stream), running, breaks_off: false }, watch)
    }
}

impl Stream {
    /// Ends it if the client has taken nothing for `patience`; its upstream is left with it.
    pub fn give_up(&self, patience: Duration, now: Instant) {
        let mut inside = self.0.lock();
        if inside.given_at.is_some_and(|at| now.duration_since(at) >= patience)
            && inside.body.take().is_some()
        {
            tracing::debug!("a client took nothing of a stream for too long");
        }
    }

    /// Has it look for orders: it is a task of its own, which the connection does not poll.
    pub fn wake(&self) {
        if let Some(waker) = self.0.lock().waker.take() {
            waker.wake();
        }
    }
}

/// The client took nothing for too long, or the upstream broke off.
#[derive(Debug, thiserror::Error)]
#[error("the answer breaks off")]
pub struct BreaksOff;

impl Body for Sending {
    type Data = Bytes;
    type Error = BreaksOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BreaksOff>>> {
        let this = self.get_mut();
        if this.breaks_off {
            return Poll::Ready(Some(Err(BreaksOff)));
        }
        let polled = match &mut this.source {
            Source::Own(body) => Pin::new(body).poll_frame(cx),
            Source::Watched(stream) => {
                let mut inside = stream.0.lock();
                let Some(body) = &mut inside.body else {
                    return Poll::Ready(Some(Err(BreaksOff)));
                };
                let polled = Pin::new(body).poll_frame(cx);
                inside.given_at = polled.is_ready().then(Instant::now);
                inside.waker = polled.is_pending().then(|| cx.waker().clone());
                polled
            }
        };
        // What ends here by itself was not taken back.
        this.running.is_answered |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            // hyper drops what it has not written when a body breaks off: the last words, mostly.
            this.breaks_off = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(|_| BreaksOff)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Watched(stream) => {
                stream.0.lock().body.as_ref().is_some_and(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Watched(stream) => {
                stream.0.lock().body.as_ref().map(Body::size_hint).unwrap_or_default()
            }
        }
    }
}
