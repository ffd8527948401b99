//! The attempt loop: lease an account, try it, judge the answer, and go where the rules say.
//!
//! It ends with an answer whose output has begun, with an upstream's answer that is the request's
//! own fault, or with an error that says when to come back. Until then the client has seen nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::availability::Ask;
use poolgate_core::choose::{Later, Refusal};
use poolgate_core::outcome::{Attempt, Next, Outcome, Progress, next};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::attempt::{self, AttemptError};
use super::judge::{Answer, Bad, Judged, Reply, judge, judge_error};
use super::settle::Record;
use super::{Call, assemble};
use crate::app::App;
use crate::credentials::Bearer;
use crate::error::Error;
use crate::pool::{Account, Lease, Wish};

/// Waiting for a slot, when every account that could serve is busy.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Waiting for a short cooldown to end.
const COOLDOWN_WAIT: Duration = Duration::from_mins(1);

/// Where one attempt goes.
pub struct Target<'a> {
    pub account: &'a Account,
    pub bearer: &'a Bearer,
    pub moved: bool,
}

/// What the client will be given.
#[derive(Debug)]
pub enum Dispatched {
    /// Relayed as it comes; the lease lasts until its end.
    Stream(Lease, Answer),
    /// An answer in one piece: assembled from a stream, or a refusal that is the request's own.
    Whole(Lease, Reply, Option<assemble::Assembled>),
}

enum Tried {
    Done(Dispatched),
    Failed {
        bad: Bad,
        lease: Lease,
        enough: bool,
    },
}

pub async fn dispatch(
    app: &Arc<App>,
    call: &Call,
    record: &mut Record,
) -> Result<Dispatched, Error> {
    match timeout_at(call.deadline, attempts(app, call, record)).await {
        Ok(result) => result,
        Err(_) => Err(Error::UpstreamTimeout),
    }
}

async fn attempts(app: &Arc<App>, call: &Call, record: &mut Record) -> Result<Dispatched, Error> {
    let mut tried: Vec<AccountId> = Vec::new();
    let mut progress = Progress::default();
    let mut last: Option<Bad> = None;
    loop {
        let lease = match lease(app, call, &tried).await {
            Ok(lease) => lease,
            Err(refusal) => return Err(explain(app, call, refusal, last)),
        };
        match try_account(app, call, lease, &mut progress, record).await? {
            Tried::Done(done) => return Ok(done),
            Tried::Failed { bad, lease, enough } => {
                tried.push(lease.account.id);
                tracing::info!(
                    request.id = record.id(),
                    account = lease.account.name,
                    outcome = bad.outcome.name(),
                    status = bad.status,
                    "left an account"
                );
                if enough {
                    return give_up(app, call, lease, bad, &tried);
                }
                app.pool.note_failover(lease.account.id);
                last = Some(bad);
                progress.moved();
            }
        }
    }
}

/// Waits, within bounds, while somebody is expected to become able.
async fn lease(app: &Arc<App>, call: &Call, tried: &[AccountId]) -> Result<Lease, Refusal> {
    let wish = Wish {
        pools: &call.caller.key.pools,
        ask: Ask {
            surface: call.surface,
            model: &call.head.model,
        },
        session: call.head.session,
        owner: call.head.owner,
        turn: call.turn,
        tried,
        seed: rand::random(),
    };
    let started = Instant::now();
    let mut place = None;
    loop {
        let mut freed = pin!(app.pool.freed());
        freed.as_mut().enable();
        let now = app.clock.now();
        let (refusal, until) = match app.pool.lease(&wish, now) {
            Ok(lease) => return Ok(lease),
            Err(Refusal::Busy) => (Refusal::Busy, started + BUSY_WAIT),
            Err(
                refusal @ Refusal::Later(Later {
                    untried_until: Some(at),
                    ..
                }),
            ) => {
                let end = Instant::now() + now.until(at) + Duration::from_millis(1);
                if end > started + COOLDOWN_WAIT {
                    return Err(refusal);
                }
                (refusal, end)
            }
            Err(refusal) => return Err(refusal),
        };
        if place.is_none() {
            place = app.waiting.try_acquire().ok();
        }
        // The queue is full, or the wait is over.
        if place.is_none() || Instant::now() >= until && refusal == Refusal::Busy {
            return Err(refusal);
        }
        tokio::select! {
            () = freed => {}
            () = sleep_until(until) => {}
        }
    }
}

/// One account, with the retries on it that the rules allow.
async fn try_account(
    app: &Arc<App>,
    call: &Call,
    lease: Lease,
    progress: &mut Progress,
    record: &mut Record,
) -> Result<Tried, Error> {
    let account = Arc::clone(&lease.account);
    record.begin(account.id)?;
    let mut bearer = attempt::bearer(app, &account).await;
    loop {
        let (sent_at, since) = (app.clock.now(), Instant::now());
        let result = match &bearer {
            Ok(bearer) => {
                let target = Target {
                    account: &account,
                    bearer,
                    moved: lease.moved,
                };
                attempt::send(app, call, &target).await
            }
            Err(error) => Err(AttemptError::from(error.clone())),
        };
        let judged = match result {
            Ok((response, streams)) => match judge(app, &account, call.surface, response).await {
                Judged::Good(answer) if streams && !call.head.stream => {
                    match assemble::assemble(answer, app.config.limits.stream_idle_timeout).await {
                        Ok((reply, assembled)) => {
                            record.attempt(account.id, Outcome::Served, Some(200), since);
                            return Ok(Tried::Done(Dispatched::Whole(
                                lease,
                                reply,
                                Some(assembled),
                            )));
                        }
                        Err(bad) => Judged::Bad(bad),
                    }
                }
                judged => judged,
            },
            Err(error) => Judged::Bad(judge_error(&error)),
        };
        let bad = match judged {
            Judged::Good(answer) => {
                record.attempt(
                    account.id,
                    Outcome::Served,
                    Some(answer.head.status.as_u16()),
                    since,
                );
                return Ok(Tried::Done(Dispatched::Stream(lease, answer)));
            }
            Judged::Bad(bad) => bad,
        };
        record.attempt(account.id, bad.outcome, bad.status, since);
        let refreshed = progress.refreshed;
        let now = app.clock.now();
        let attempt = Attempt {
            model: &call.head.model,
            sent_at,
            now,
            refreshed,
        };
        app.pool.settle(account.id, bad.outcome, attempt);
        match next(bad.outcome, progress) {
            Next::Relay => {
                let Bad { reply, error, .. } = bad;
                let reply = reply.ok_or(error)?;
                return Ok(Tried::Done(Dispatched::Whole(lease, reply, None)));
            }
            Next::Refresh => {
                if let Ok(refused) = &bearer {
                    bearer = attempt::refresh(app, &account, refused).await;
                }
            }
            Next::Again => sleep(Duration::from_millis(rand::random_range(200..400))).await,
            Next::Another => {
                return Ok(Tried::Failed {
                    bad,
                    lease,
                    enough: false,
                });
            }
            Next::GiveUp => {
                return Ok(Tried::Failed {
                    bad,
                    lease,
                    enough: true,
                });
            }
        }
    }
}

/// Enough was tried. An overload goes out as the upstream told it; anything else says what the pool
/// as a whole has left.
fn give_up(
    app: &Arc<App>,
    call: &Call,
    lease: Lease,
    bad: Bad,
    tried: &[AccountId],
) -> Result<Dispatched, Error> {
    if bad.outcome == Outcome::Overloaded
        && let Some(reply) = bad.reply
    {
        return Ok(Dispatched::Whole(lease, reply, None));
    }
    let is_limit = matches!(
        bad.outcome,
        Outcome::QuotaSpent { .. }
            | Outcome::RateLimited { .. }
            | Outcome::Strike
            | Outcome::Stopped(_)
    );
    if !is_limit {
        return Err(bad.error);
    }
    let wish = Wish {
        pools: &call.caller.key.pools,
        ask: Ask {
            surface: call.surface,
            model: &call.head.model,
        },
        session: None,
        owner: None,
        turn: None,
        tried,
        seed: 0,
    };
    match app.pool.lease(&wish, app.clock.now()) {
        Ok(_) => Err(bad.error),
        Err(refusal) => Err(explain(app, call, refusal, Some(bad))),
    }
}

/// What to tell the client when nobody can serve.
fn explain(app: &App, call: &Call, refusal: Refusal, last: Option<Bad>) -> Error {
    let now = app.clock.now();
    match refusal {
        Refusal::Unfit => Error::NoFittingAccount(call.surface.kinds_needed()),
        Refusal::ModelNotAllowed | Refusal::ModelMissing => {
            Error::ModelUnknown(call.head.model.clone())
        }
        Refusal::Busy => Error::Unavailable {
            retry_after: Duration::from_secs(5),
        },
        Refusal::Later(Later {
            until, quota: true, ..
        }) => Error::Exhausted {
            resets_at: until,
            now,
        },
        Refusal::Later(Later { until, .. }) => Error::Unavailable {
            retry_after: until.map_or(COOLDOWN_WAIT, |at| now.until(at)),
        },
        Refusal::Operator => Error::NoAccounts,
        Refusal::AllTried => last.map_or(Error::NoAccounts, |bad| bad.error),
        Refusal::Owner { .. } => Error::OwnerUnavailable,
    }
}
