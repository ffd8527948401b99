//! Getting an account, and saying why there is none.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::choose::{COOLDOWN_WAIT, Later, Refusal};
use tokio::time::{Instant, sleep};

use super::Call;
use crate::app::App;
use crate::error::Error;
use crate::pool::{Lease, Refused, Wish};

fn wish<'a>(call: &'a Call, tried: &'a [AccountId]) -> Wish<'a> {
    Wish {
        pools: &call.caller.key.pools,
        ask: call.ask(),
        session: call.head.session,
        owner: call.head.owner,
        turn: call.turn,
        tried,
        seed: rand::random(),
    }
}

/// Waits, within bounds, while somebody is expected to become able.
pub async fn lease(app: &Arc<App>, call: &Call, tried: &[AccountId]) -> Result<Lease, Refused> {
    let wish = wish(call, tried);
    let started = Instant::now();
    let mut place = None;
    loop {
        // Enabled before asking, so that nothing freed in between is missed.
        let mut freed = pin!(app.pool.freed());
        freed.as_mut().enable();
        let now = app.clock.now();
        let refused = match app.pool.lease(&wish, now) {
            Ok(lease) => return Ok(lease),
            Err(refused) => refused,
        };
        // By the steady clock: the wall clock may be set meanwhile.
        let since = now.minus(started.elapsed());
        let Some(until) = refused.refusal.wait_until(since, now) else {
            return Err(refused);
        };
        if place.is_none() {
            place = app.waiting.try_acquire().ok();
        }
        if place.is_none() {
            // The queue is full.
            return Err(refused);
        }
        tokio::select! {
            () = freed => {}
            () = sleep(now.until(until)) => {}
        }
    }
}

/// What to tell the client now that `tried` have failed: what the pool as a whole has left, or else
/// `last`.
pub fn left(app: &Arc<App>, call: &Call, tried: &[AccountId], last: Error) -> Error {
    let wish = Wish { session: None, owner: None, turn: None, ..wish(call, tried) };
    match app.pool.lease(&wish, app.clock.now()) {
        Ok(_) => last,
        Err(Refused { refusal, .. }) => explain(app, call, refusal, Some(last)),
    }
}

/// What to tell the client when nobody can serve.
pub fn explain(app: &App, call: &Call, refusal: Refusal, last: Option<Error>) -> Error {
    let now = app.clock.now();
    match refusal {
        Refusal::Unfit => Error::NoFittingAccount(call.surface.kinds_needed()),
        Refusal::ModelNotAllowed | Refusal::ModelMissing => {
            Error::ModelUnknown(call.head.model.clone())
        }
        Refusal::Busy => Error::Unavailable { retry_after: Duration::from_secs(5) },
        Refusal::Later(Later { until, quota: true, .. }) => {
            Error::Exhausted { resets_at: until, now }
        }
        Refusal::Later(Later { until, .. }) => {
            Error::Unavailable { retry_after: until.map_or(COOLDOWN_WAIT, |at| now.until(at)) }
        }
        Refusal::Operator => Error::NoAccounts,
        Refusal::AllTried => last.unwrap_or(Error::NoAccounts),
        Refusal::Owner { .. } => Error::OwnerUnavailable,
    }
}
