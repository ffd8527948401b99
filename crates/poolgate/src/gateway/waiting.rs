//! Getting an account, and saying why there is none.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::choose::{BUSY_WAIT, COOLDOWN_WAIT, Later, Patience, Refusal};
use poolgate_core::line::Turn;
use tokio::time::Instant;

use super::Call;
use super::socket::OverSocket;
use crate::app::App;
use crate::error::{Error, Said};
use crate::pool::line::Full;
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

/// For a socket's first turn: with the leg that was opened when others had refused the handshake, which the
/// strategy may choose again. `None`: it does not serve at once, the turn belongs elsewhere, or others wait.
pub fn lease_of_leg(app: &App, call: &Call, over: &OverSocket) -> Option<Lease> {
    let opener = over.opener()?;
    let now = app.clock.now();
    let home = call.head.session.and_then(|session| app.pool.home(session, now));
    let serves = |home| app.pool.able(home, call.ask(), now).is_some();
    if home.is_some_and(|home| home != opener && serves(home))
        || call.head.owner.is_some()
        || call.turn.is_some()
        || app.pool.line().waiting() > 0
    {
        return None;
    }
    let wish = Wish { leg: Some(opener), ..wish(call, &[]) };
    app.pool.lease(&wish, now).ok()
}

/// Waits in line, within bounds, while somebody is expected to become able.
pub async fn lease(app: &Arc<App>, call: &Call, tried: &[AccountId]) -> Result<Lease, Refused> {
    let wish = wish(call, tried);
    let started = Instant::now();
    let line = app.pool.line();
    let join = || line.join(call.caller.key.id, wants(&wish));
    let mut waiter = None;
    if line.waiting() > 0 {
        waiter = match join() {
            Ok(waiter) => Some(waiter),
            Err(Full { behind_others: true }) => {
                return Err(app.pool.refuse(&wish, app.clock.now()));
            }
            Err(Full { behind_others: false }) => None,
        };
    }
    let mut until = started + BUSY_WAIT;
    let mut patience = Patience::default();
    loop {
        let turn = match &waiter {
            Some(waiter) => waiter.called(until).await,
            None => Turn::Take,
        };
        let now = app.clock.now();
        let leased = match turn {
            Turn::Take => app.pool.lease(&wish, now),
            Turn::Look | Turn::Out => Err(app.pool.refuse(&wish, now)),
        };
        let refused = match leased {
            Ok(lease) => {
                if let Some(waiter) = waiter {
                    waiter.served();
                }
                return Ok(lease);
            }
            Err(refused) => refused,
        };
        // By the steady clock: the wall clock may be set meanwhile.
        let at = patience.until(refused.refusal, started.elapsed(), now);
        let Some(at) = at.filter(|_| turn != Turn::Out) else {
            return Err(refused);
        };
        until = Instant::now() + now.until(at);
        if until >= call.deadline {
            // It would only learn later what is known now.
            return Err(refused);
        }
        match &waiter {
            Some(waiter) => waiter.in_vain(),
            None => match join() {
                Ok(joined) => waiter = Some(joined),
                Err(_) => return Err(refused),
            },
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
    match app.pool.lacks(&wish, app.clock.now()) {
        None => last,
        Some(refusal) => explain(app, call, refusal, Some(last)),
    }
}

/// What to tell the client when nobody can serve.
pub fn explain(app: &App, call: &Call, refusal: Refusal, last: Option<Error>) -> Error {
    let now = app.clock.now();
    let last = match (refusal, last) {
        (Refusal::AllTried { .. }, Some(last)) => return last,
        (_, last) => last,
    };
    let said = Said::by(last);
    match refusal {
        Refusal::Unfit => Error::NoFittingAccount(call.surface.kinds_needed()),
        Refusal::ModelNotAllowed | Refusal::ModelMissing => {
            Error::ModelUnknown(call.head.model.clone())
        }
        Refusal::Busy => Error::Unavailable { retry_after: Duration::from_secs(5), said },
        Refusal::Later(Later { until, quota: true, .. }) => {
            let kind = subscription(call.surface);
            let limits = app.pool.limits(&call.caller.key, kind, now).map(Box::new);
            Error::Exhausted { resets_at: until, now, limits, said }
        }
        Refusal::Later(Later { until, .. }) => {
            let retry_after = until.map_or(COOLDOWN_WAIT, |at| now.until(at));
            Error::Unavailable { retry_after, said }
        }
        Refusal::Operator | Refusal::AllTried { .. } => Error::NoAccounts(said),
        Refusal::Owner(_) if call.over.is_some() => Error::ChainLost,
        Refusal::Owner(later) => {
            let until = later.and_then(|later| later.until);
            Error::OwnerUnavailable { retry_after: until.map(|at| now.until(at)) }
        }
    }
}
