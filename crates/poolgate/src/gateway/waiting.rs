//! Getting an account, and saying why there is none.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::choose::{BUSY_WAIT, COOLDOWN_WAIT, Later, Refusal};
use tokio::time::Instant;

use super::Call;
use super::socket::OverSocket;
use crate::app::App;
use crate::error::Error;
use crate::pool::{Lease, Refused, Wish, subscription};

fn wish<'a>(call: &'a Call, tried: &'a [AccountId]) -> Wish<'a> {
    Wish {
        pools: &call.caller.key.pools,
        ask: call.ask(),
        session: call.head.session,
        owner: call.head.owner,
        leg: call.over.as_ref().and_then(OverSocket::holder),
        turn: call.turn,
        tried,
        seed: rand::random(),
    }
}

/// Waits in line, within bounds, while somebody is expected to become able.
pub async fn lease(app: &Arc<App>, call: &Call, tried: &[AccountId]) -> Result<Lease, Refused> {
    let wish = wish(call, tried);
    let started = Instant::now();
    let join = || app.pool.line().join(call.caller.key.id, wants(&wish));
    // Behind those who wait already; when the line is full, what is left for them to find.
    let mut waiter = (app.pool.line().waiting() > 0).then(join).flatten();
    let mut until = started + BUSY_WAIT;
    loop {
        if let Some(waiter) = &waiter {
            waiter.called(until).await;
        }
        let now = app.clock.now();
        let refused = match app.pool.lease(&wish, now) {
            Ok(lease) => {
                if let Some(waiter) = waiter {
                    waiter.served();
                }
                return Ok(lease);
            }
            Err(refused) => refused,
        };
        // By the steady clock: the wall clock may be set meanwhile.
        let since = now.minus(started.elapsed());
        let Some(at) = refused.refusal.wait_until(since, now) else {
            return Err(refused);
        };
        until = Instant::now() + now.until(at);
        let stays = if let Some(waiter) = &waiter {
            waiter.stays()
        } else {
            waiter = join();
            waiter.is_some()
        };
        if !stays {
            return Err(refused);
        }
    }
}

/// Equal for requests that the same accounts can serve.
fn wants(wish: &Wish<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Wish { pools, ask, owner, leg, tried, .. } = wish;
    (pools, ask.surface, ask.model, owner, leg, tried).hash(&mut hasher);
    hasher.finish()
}

/// What to tell the client now that `tried` have failed: what the pool as a whole has left, or else
/// `last`.
pub fn left(app: &Arc<App>, call: &Call, tried: &[AccountId], last: Error) -> Error {
    let wish = Wish { session: None, owner: None, leg: None, turn: None, ..wish(call, tried) };
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
            let kind = subscription(call.surface);
            let limits = app.pool.limits(&call.caller.key.pools, kind, now).map(Box::new);
            Error::Exhausted { resets_at: until, now, limits }
        }
        Refusal::Later(Later { until, .. }) => {
            Error::Unavailable { retry_after: until.map_or(COOLDOWN_WAIT, |at| now.until(at)) }
        }
        Refusal::Operator => Error::NoAccounts,
        Refusal::AllTried => last.unwrap_or(Error::NoAccounts),
        Refusal::Owner { .. } if call.over.is_some() => Error::ChainLost,
        Refusal::Owner { .. } => Error::OwnerUnavailable,
    }
}
