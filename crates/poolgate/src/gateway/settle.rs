//! The end of a request, on every path: what happened goes into the ledger once.
//!
//! A [`Record`] is made when the caller is known and travels with the request, into the body that is
//! relayed. Whoever reaches the end first finishes it; dropped unfinished, it says that the client
//! left, or that the drain cut it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use poolgate_core::account::{AccountId, Surface};
use poolgate_core::outcome::Outcome;
use poolgate_core::usage::TokenUsage;
use tokio::time::Instant;

use super::client_status;
use super::peek::Head;
use crate::app::App;
use crate::error::{Dialect, Error};
use crate::ledger::{AttemptRecord, Begin, End};
use crate::metrics::Ending;
use crate::pool::Decision;

#[derive(Debug)]
pub struct Record {
    app: Arc<App>,
    surface: Surface,
    end: End<'static, Vec<Decision>>,
    started: Instant,
    /// The upstream's status, of which the client may get another.
    told: u16,
    /// A `begin` line is in the spool.
    begun: bool,
    spent: TokenUsage,
    finished: bool,
    /// It has no row, whatever becomes of it.
    unrecorded: bool,
}

impl Record {
    pub fn new(app: Arc<App>, id: String, key: i64, surface: Surface) -> Self {
        let (at, name) = (app.clock.now().0, surface.name());
        let begin = Begin { id: id.into(), at, key, surface: name.into(), ..Begin::default() };
        let end = End { begin, ..End::default() };
        Self {
            app,
            surface,
            end,
            started: Instant::now(),
            told: 0,
            begun: false,
            spent: TokenUsage::default(),
            finished: false,
            unrecorded: false,
        }
    }

    /// For what is no request: a warm-up.
    pub fn unrecorded(app: Arc<App>) -> Self {
        let mut record = Self::new(app, String::new(), 0, Surface::Responses);
        (record.begun, record.unrecorded) = (true, true);
        record
    }

    /// Of a socket: it has a row only if it is refused.
    pub fn handshake(app: Arc<App>, id: String, key: i64) -> Self {
        let mut record = Self::new(app, id, key, Surface::Responses);
        (record.begun, record.unrecorded) = (true, true);
        record
    }

    pub fn refused(&mut self, end: impl FnOnce(&mut Self)) {
        self.unrecorded = false;
        end(self);
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn id(&self) -> &str {
        &self.end.begin.id
    }

    /// The request was understood.
    pub fn read(&mut self, head: &Head) {
        self.model(&head.model);
        self.end.begin.stream = head.stream;
    }

    /// The name is the client's text: kept short, for people to read.
    pub fn model(&mut self, name: &str) {
        self.end.begin.model = Cow::Owned(short(name));
    }

    /// Before the first upstream byte: from here on a crash leaves a trace.
    pub async fn begin(&mut self, account: AccountId) -> Result<(), Error> {
        self.end.begin.account = Some(account.0);
        if !self.begun {
            self.end.wait_ms = self.elapsed_ms();
            self.app.spool.begin(&self.end.begin).await.map_err(|_| Error::CannotRecord)?;
            self.begun = true;
        }
        Ok(())
    }

    /// An account was chosen for it, or nobody could be.
    pub fn decided(&mut self, decision: Decision) {
        self.end.decisions.push(decision);
    }

    /// An attempt that came to nothing.
    pub fn failed(
        &mut self,
        account: AccountId,
        outcome: &'static str,
        status: Option<u16>,
        since: Instant,
    ) {
        let ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let outcome = Cow::Borrowed(outcome);
        self.end.failed.push(AttemptRecord { account: account.0, outcome, status, ms });
    }

    /// The attempt whose answer the client got turned out otherwise than its beginning promised.
    pub fn turned_out(&mut self, outcome: Outcome) {
        if let (Some(account), true) = (self.end.begin.account, outcome != Outcome::Served) {
            self.failed(AccountId(account), outcome.name(), Some(self.told), self.started);
        }
    }

    /// The head of the answer that will be relayed is there, with the status that its upstream told.
    pub fn headed(&mut self, status: StatusCode) {
        self.told = status.as_u16();
        self.end.status = client_status(status).as_u16();
        self.end.head_ms = Some(self.elapsed_ms());
    }

    /// The upstream's code for why it failed behind its head: its text, kept short.
    pub fn coded(&mut self, code: &str) {
        self.end.code = (!code.is_empty()).then(|| Cow::Owned(short(code)));
    }

    pub fn relayed(&mut self, bytes: usize) {
        if self.end.first_ms.is_none() {
            self.end.first_ms = Some(self.elapsed_ms());
        }
        self.end.bytes += u64::try_from(bytes).unwrap_or(0);
    }

    /// The account keeps state behind this response.
    pub fn owns(&mut self, response: String) {
        self.end.owns = Some(response);
    }

    pub fn fail(&mut self, error: &Error) {
        // Where nothing can be written, refusals would be the first to fill what space there is.
        self.unrecorded |= !self.begun && matches!(error, Error::CannotRecord);
        self.end.status = error.status(Dialect::of(self.surface)).as_u16();
        self.end.code = Some(Cow::Borrowed(error.parts().1));
        // Who comes during a drain is refused before there is a record: this one was running.
        let is_cut = matches!(error, Error::Draining);
        let ending = if is_cut { Ending::Interrupted } else { Ending::Refused };
        self.finish(ending, TokenUsage::default());
    }

    /// Nobody waits for the rest: the client has left, or the drain is over.
    pub fn dropped(&mut self, usage: TokenUsage) {
        if self.app.cutting.load(Ordering::Relaxed) {
            self.end.code = Some(Cow::Borrowed(Error::Draining.parts().1));
            self.finish(Ending::Interrupted, usage);
        } else {
            self.finish(Ending::ClientLeft, usage);
        }
    }

    /// Of an answer that nobody got.
    pub fn spent(&mut self, usage: TokenUsage) {
        self.spent = usage;
    }

    pub fn finish(&mut self, ending: Ending, usage: TokenUsage) {
        if self.close(ending, usage) {
            recorded(self.app.spool.end(&self.end));
        }
    }

    /// As [`Self::finish`], and resolves when it is written or held, together with others.
    pub async fn finish_with_others(&mut self, ending: Ending, usage: TokenUsage) {
        if self.close(ending, usage) {
            recorded(self.app.spool.end_with_others(&self.end).await);
        }
    }

    /// Whether it is to be recorded.
    fn close(&mut self, ending: Ending, mut usage: TokenUsage) -> bool {
        if std::mem::replace(&mut self.finished, true) || self.unrecorded {
            return false;
        }
        self.end.outcome = Cow::Borrowed(ending.name());
        self.end.total_ms = self.elapsed_ms();
        usage.update(self.spent);
        self.end.input = usage.input;
        self.end.output = usage.output;
        self.end.cache_read = usage.cache_read;
        self.end.cache_write = usage.cache_write;
        self.end.reasoning = usage.reasoning;
        self.count(ending);
        tracing::debug!(
            request.id = self.id(),
            outcome = &*self.end.outcome,
            status = self.end.status,
            failed = self.end.failed.len(),
            total_ms = self.end.total_ms,
            "request ended"
        );
        true
    }

    fn count(&self, ending: Ending) {
        let span = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let end = &self.end;
        let phases = [
            self.begun.then(|| span(end.wait_ms)),
            end.head_ms.map(span),
            end.first_ms.map(span),
            Some(span(end.total_ms)),
        ];
        self.app.metrics.ended(self.surface, ending, end.status, phases);
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// Of somebody else's text, as much as people will read.
fn short(text: &str) -> String {
    const MOST: usize = 100;
    if text.len() <= MOST { text.to_owned() } else { text.chars().take(MOST).collect() }
}

fn recorded(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "a finished request could not be recorded");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.dropped(TokenUsage::default());
        }
    }
}
