//! The answer on its way to the client: the upstream's very bytes, tapped beside forwarding.
//!
//! The `end` of a request is recorded before its terminal event is handed on, so that what a client
//! saw complete is on record. When the upstream breaks after the commit, the client is told in its
//! own dialect where it understands that, and the connection is cut: a cut must not look complete.
//! Dropping the body (the client left) drops the upstream's connection with it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use poolgate_core::account::{Kind, Surface};
use poolgate_core::availability::Ask;
use poolgate_core::gate::Gate;
use poolgate_core::limits::Limits;
use poolgate_core::outcome::{Attempt, Outcome};
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep_until};

use super::admit::Admitted;
use super::judge::{judge_late, observe_events};
use super::limits::{Lines, codex_in_event};
use super::names::{scoped, unscoped};
use super::opening::Opening;
use super::scrub::scrub;
use super::settle::Record;
use super::span::{Span, Spent};
use super::splitter::{CodexEvents, Form, Splitter};
use super::torn::Torn;
use crate::app::App;
use crate::egress::Received;
use crate::keys::ClientKey;
use crate::limits::codex_event;
use crate::metrics::Ending;
use crate::pool::Lease;

/// Why a relayed body ends before its time; hyper cuts the connection on it.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke off")]
pub struct Cut;

/// Every body this gateway answers with.
#[derive(Debug)]
pub enum Outgoing {
    Whole(Full<Bytes>),
    Relay(Box<Relay>),
    Lines(Lines),
}

#[derive(Debug)]
pub struct Relay {
    app: Arc<App>,
    lease: Lease,
    record: Record,
    opening: Box<Opening>,
    surface: Surface,
    model: String,
    key: Arc<ClientKey>,
    stores: bool,
    gate: Option<Arc<Gate>>,
    /// For an account whose events are not all for the client.
    splitter: Option<Splitter>,
    /// For one whose are.
    torn: Torn,
    /// The pool's limits, as the client was told them last in here.
    pub told: Option<Limits>,
    span: Span,
    alarm: Pin<Box<Sleep>>,
    is_ours: bool,
    /// That we end it, and not its upstream.
    ended: Option<Ended>,
    state: State,
    _admitted: Admitted,
}

/// A running stream looks so often whether its client's key is still valid (reliability AUTH-4: it ends
/// within 5 s of a revocation).
const KEY_EVERY: Duration = Duration::from_secs(3);

/// Why an answer is ended that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The client's key is no longer valid.
    Revoked,
    /// The request has taken as long as one may.
    TooLong,
    /// The drain is over.
    Draining,
}

impl Ended {
    /// Code and message.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Revoked => {
                ("invalid_api_key", "the client key is no longer valid; the answer is incomplete")
            }
            Self::TooLong => {
                ("upstream_timeout", "the request took too long; the answer is incomplete")
            }
            Self::Draining => {
                ("draining", "the gateway is shutting down; the answer is incomplete")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Relaying,
    /// The last words have been said; next comes the cut.
    Cutting,
    Over,
}

/// What a relay needs to know of its request.
pub struct Relayed {
    pub surface: Surface,
    pub model: String,
    pub key: Arc<ClientKey>,
    pub stores: bool,
    pub gate: Option<Arc<Gate>>,
    pub codex_events: Option<CodexEvents>,
    pub deadline: Instant,
    /// No upstream was asked.
    pub is_ours: bool,
}

impl Relay {
    pub fn new(
        app: Arc<App>,
        lease: Lease,
        record: Record,
        admitted: Admitted,
        opening: Box<Opening>,
        of: Relayed,
    ) -> Self {
        let idle = app.limits().stream_idle_timeout;
        let now = Instant::now();
        Self {
            app,
            lease,
            record,
            opening,
            surface: of.surface,
            model: of.model,
            key: of.key,
            stores: of.stores,
            gate: of.gate,
            splitter: of.codex_events.map(Splitter::new),
            torn: Torn::default(),
            told: None,
            span: Span::new(now, idle, of.deadline),
            alarm: Box::pin(sleep_until((now + idle.min(KEY_EVERY)).min(of.deadline))),
            is_ours: of.is_ours,
            ended: None,
            state: State::Relaying,
            _admitted: admitted,
        }
    }

    /// The next bytes of the upstream; `None` at its end.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if let Some(data) = self.opening.held.pop_front() {
            return Poll::Ready(Some(Ok(data)));
        }
        loop {
            let Some(body) = &mut self.opening.rest else {
                return Poll::Ready(None);
            };
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(None) => {
                    self.opening.rest = None;
                    let whole = self.opening.tap.end();
                    return Poll::Ready(if whole { None } else { Some(Err(Cut)) });
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(Cut))),
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    let is_last = body.is_end_stream();
                    self.span.heard(Instant::now());
                    self.opening.see(&data);
                    // With a Content-Length the server stops at the last byte and never asks for
                    // the end.
                    if is_last && self.opening.tap.end() {
                        self.opening.rest = None;
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Pending => return self.poll_silence(cx),
            }
        }
    }

    /// One timer per stream, moved only when it goes off: streams have thousands of frames.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        while self.alarm.as_mut().poll_it(cx).is_ready() {
            let now = Instant::now();
            let has_moved = std::mem::take(&mut self.opening.tap.moved);
            let look = self.span.look(now, has_moved);
            if !self.key.is_known(self.app.clock.now()) {
                self.ended = Some(Ended::Revoked);
            } else if look == Err(Spent::Request) {
                self.ended = Some(Ended::TooLong);
            }
            match look {
                Ok(next) if self.ended.is_none() => {
                    self.alarm.as_mut().reset(next.min(now + KEY_EVERY));
                }
                _ => return Poll::Ready(Some(Err(Cut))),
            }
        }
        Poll::Pending
    }

    /// Each piece that it gives is an event without framing, and otherwise bytes of a stream.
    pub fn is_in_messages(&self) -> bool {
        self.opening.tap.is_in_messages()
    }

    /// What it gave last were our own words.
    pub fn is_cutting(&self) -> bool {
        self.state == State::Cutting
    }

    /// An answer that is whole before its head has left is recorded then: with others, which a body that
    /// is asked for its bytes could not wait for. It counts as complete from here on, even for a client that
    /// leaves in this moment.
    pub async fn settle_if_whole(&mut self) {
        let is_whole = self.opening.rest.is_none() && self.opening.tap.finished;
        if is_whole && self.splitter.is_none() {
            for data in &self.opening.held {
                self.record.relayed(data.len());
            }
            if let Some(ending) = self.settle_if_finished() {
                let usage = self.opening.tap.usage;
                self.record.finish_with_others(ending, usage).await;
            }
        }
    }

    /// Everything is settled but the record once the terminal event has been seen, or the body has ended:
    /// how it has, if it was now.
    fn settle_if_finished(&mut self) -> Option<Ending> {
        if !self.opening.tap.finished || self.record.is_finished() {
            return None;
        }
        let late = self.opening.tap.error.take();
        let outcome = late.as_ref().map_or(Outcome::Served, |fields| {
            judge_late(&self.app, &self.lease.account, self.ask(), fields)
        });
        self.settle(outcome);
        if let Some(fields) = late {
            self.record.coded(fields.name());
        }
        if let Some(id) = self.opening.tap.response_id.take().filter(|_| self.stores) {
            self.app.pool.own_response(
                [unscoped(&id), scoped(self.key.id, &id)],
                self.lease.account.id,
                self.app.clock.now(),
            );
            self.record.owns(id);
        }
        // What it refuses for the request's own sake, it has answered.
        let is_answered = outcome == Outcome::Served || outcome.is_requests();
        Some(if is_answered { Ending::Complete } else { Ending::UpstreamBroke })
    }

    fn ask(&self) -> Ask<'_> {
        Ask { surface: self.surface, model: &self.model, gate: self.gate.as_deref() }
    }

    fn settle(&mut self, outcome: Outcome) {
        if self.is_ours {
            return;
        }
        let now = self.app.clock.now();
        let attempt =
            Attempt { ask: self.ask(), sent_at: self.lease.sent_at, now, refreshed: false };
        self.app.metrics.attempt(outcome);
        self.app.pool.settle(&self.lease.account, outcome, attempt);
        self.record.turned_out(outcome);
    }

    fn ended_by_us(&self) -> Option<Ended> {
        if self.is_cut() { Some(Ended::Draining) } else { self.ended }
    }

    /// The drain is over. Whoever says so also has this polled.
    fn is_cut(&self) -> bool {
        self.app.cutting.load(Ordering::Relaxed)
    }

    /// The upstream broke, or we end it. What can still be said, if the client would not take it for part of a
    /// torn event.
    fn last_words(&mut self) -> Option<Bytes> {
        let ((code, message), ending) = if let Some(ended) = self.ended_by_us() {
            // An account that had begun to answer was well; of another one nothing is known.
            if self.opening.tap.semantic {
                self.settle(Outcome::Served);
            }
            self.record.coded(ended.words().0);
            (ended.words(), Ending::Interrupted)
        } else {
            self.settle(Outcome::Broke);
            let message = "the upstream broke off; the answer is incomplete";
            (("upstream_broke", message), Ending::UpstreamBroke)
        };
        self.record.finish(ending, self.opening.tap.usage);
        self.opening.rest = None;
        if !self.is_between_events() {
            return None;
        }
        let text = match self.surface {
            Surface::Responses | Surface::Compact => {
                let event = format!(
                    "{{\"type\":\"response.failed\",\"response\":{{\"status\":\"failed\",\
                     \"error\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}}}"
                );
                if self.is_in_messages() {
                    event
                } else {
                    format!("event: response.failed\ndata: {event}\n\n")
                }
            }
            Surface::Messages | Surface::CountTokens => format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"{message}\"}}}}\n\n"
            ),
            Surface::Chat => format!(
                "data: {{\"error\":{{\"message\":\"{message}\",\"type\":\"server_error\",\"param\":null,\"code\":\"{code}\"}}}}\n\n"
            ),
        };
        Some(Bytes::from(text))
    }

    /// As the client sees it: what is not a whole event, a splitter holds back.
    fn is_between_events(&self) -> bool {
        let tap = &self.opening.tap;
        let holds_it = self.splitter.is_some() || self.torn.holds_all();
        tap.is_between_events() || (holds_it && tap.is_event_stream())
    }

    /// What events have told, before the client is told it.
    fn learn(&mut self) {
        let (app, account, tap) = (&self.app, &self.lease.account, &mut self.opening.tap);
        observe_events(app, account, &std::mem::take(&mut tap.readings));
        for state in tap.turn_states.drain(..) {
            app.pool.own(scoped(self.key.id, &state), account.id, app.clock.now());
        }
    }

    /// What the client is told of it.
    fn as_told(&mut self, data: Bytes) -> Bytes {
        let has_failed = self.opening.tap.failed;
        let limits = |form| limits(&self.app, &self.key, &mut self.told, form);
        let data = match &mut self.splitter {
            Some(splitter) if self.opening.tap.is_in_messages() => {
                splitter.pass_message(&data, limits)
            }
            Some(splitter) => {
                splitter.has_failed = has_failed;
                splitter.pass(&data, limits)
            }
            None if self.opening.tap.is_event_stream() && !self.opening.tap.is_in_messages() => {
                // Of what is held, nothing is known but of all together.
                let is_last = self.opening.held.is_empty();
                self.torn.pass(data, is_last && self.opening.tap.is_between_events())
            }
            None => data,
        };
        // It may tell whose account it is.
        if has_failed { scrub(&data, &self.lease.account) } else { data }
    }

    /// The same of what is held back at the end.
    fn rest(&mut self) -> Bytes {
        let has_failed = self.opening.tap.failed;
        let limits = |form| limits(&self.app, &self.key, &mut self.told, form);
        let rest = match &mut self.splitter {
            Some(splitter) => {
                splitter.has_failed = has_failed;
                splitter.rest(limits)
            }
            // Nobody has read what has no end; it may be an error all the same.
            None => return scrub(&self.torn.rest(), &self.lease.account),
        };
        if has_failed { scrub(&rest, &self.lease.account) } else { rest }
    }

    /// Counts what is about to leave, and settles before the last of it does: a terminal event among what
    /// was withheld is behind all else, or before what nobody is told any more.
    fn hand_on(&mut self, data: Bytes) -> Option<Bytes> {
        if !data.is_empty() {
            self.record.relayed(data.len());
        }
        if self.opening.held.is_empty()
            && let Some(ending) = self.settle_if_finished()
        {
            self.record.finish(ending, self.opening.tap.usage);
        }
        (!data.is_empty()).then_some(data)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            match self.state {
                State::Over => return Poll::Ready(None),
                State::Cutting => {
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(Cut)));
                }
                State::Relaying => {}
            }
            let next = if self.splitter.as_ref().is_some_and(Splitter::is_overfull) {
                Some(Err(Cut))
            } else {
                match self.poll_upstream(cx) {
                    Poll::Pending if self.is_cut() => Some(Err(Cut)),
                    next => std::task::ready!(next),
                }
            };
            match next {
                Some(Ok(data)) => {
                    self.learn();
                    let data = self.as_told(data);
                    if let Some(data) = self.hand_on(data) {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                // After the terminal event nothing of worth can be lost any more.
                Some(Err(Cut)) if self.opening.tap.finished => self.state = State::Over,
                // It has said why itself: by an error event, which is all the end that some dialects have.
                Some(Err(Cut))
                    if self.opening.tap.error.is_some() && self.ended_by_us().is_none() =>
                {
                    self.opening.tap.finished = true;
                    self.opening.rest = None;
                    self.hand_on(Bytes::new());
                }
                Some(Err(Cut)) => {
                    self.state = State::Cutting;
                    if let Some(words) = self.last_words() {
                        return Poll::Ready(Some(Ok(words)));
                    }
                }
                None => {
                    self.state = State::Over;
                    let rest = self.rest();
                    if let Some(rest) = self.hand_on(rest) {
                        return Poll::Ready(Some(Ok(rest)));
                    }
                }
            }
        }
    }
}

/// The pool's, for Codex, which is `told` them by an event.
fn limits(app: &App, key: &ClientKey, told: &mut Option<Limits>, form: Form) -> Option<Value> {
    match form {
        Form::Event => {
            let limits = app.pool.limits(key, Kind::Codex, app.clock.now())?;
            Some(codex_event(told.insert(limits)))
        }
        Form::Headers => codex_in_event(app, key),
    }
}

/// `Sleep` is a future; this only saves an import of the trait at each use.
trait PollIt {
    fn poll_it(self, cx: &mut Context<'_>) -> Poll<()>;
}

impl PollIt for Pin<&mut Sleep> {
    fn poll_it(self, cx: &mut Context<'_>) -> Poll<()> {
        std::future::Future::poll(self, cx)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.record.is_finished() {
            // An account that had begun to answer was well.
            if self.opening.tap.semantic {
                self.settle(Outcome::Served);
            }
            self.record.dropped(self.opening.tap.usage);
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|e| match e {}))),
            Self::Relay(relay) => {
                relay.poll_next(cx).map(|next| next.map(|data| data.map(Frame::data)))
            }
            Self::Lines(lines) => {
                lines.0.poll_next_unpin(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.state == State::Over,
            Self::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            // A stream of known size that lacks its end must still be cut, not end tidily.
            Self::Relay(relay)
                if relay.splitter.is_some() || relay.opening.tap.is_event_stream() =>
            {
                SizeHint::new()
            }
            Self::Relay(relay) => relay.size_hint(),
            Self::Lines(_) => SizeHint::new(),
        }
    }
}

impl Relay {
    /// Exact when the upstream's is: the client then gets the same `Content-Length`.
    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.opening.held.iter().map(|data| data.len() as u64).sum();
        let rest = self.opening.rest.as_ref().map_or(SizeHint::with_exact(0), Received::size_hint);
        match rest.exact() {
            Some(exact) => SizeHint::with_exact(held + exact),
            None => SizeHint::new(),
        }
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
