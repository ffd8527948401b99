//! One account's turn at a request, with the retries on it that the rules allow.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::outcome::{Attempt, Next, Outcome, Progress, next};
use tokio::time::{Instant, sleep};

use super::attempt::{self, AttemptError, Sent, Target};
use super::dispatch::Dispatched;
use super::judge::{Bad, Judged, judge, judge_error, observe_events};
use super::read::Payload;
use super::settle::Record;
use super::{Call, assemble, strip};
use crate::app::App;
use crate::credentials::{Bearer, CredentialError};
use crate::error::Error;
use crate::pool::Lease;

pub enum Tried {
    Done(Dispatched),
    /// Left for another account; `enough`: no further one may be asked.
    Failed {
        bad: Bad,
        lease: Lease,
        enough: bool,
    },
    /// The account became unable, or its sessions moved, while there was no head yet; on a socket, no
    /// output.
    Moved(Lease),
}

pub async fn try_account(
    app: &Arc<App>,
    call: &Call,
    mut lease: Lease,
    progress: &mut Progress,
    record: &mut Record,
) -> Result<Tried, Error> {
    let account = Arc::clone(&lease.account);
    let ask = call.ask();
    record.begin(account.id).await?;
    let mut bearer = attempt::bearer(app, &account).await;
    let mut payload = Cow::Borrowed(&call.payload);
    loop {
        let (sent_at, since) = (app.clock.now(), Instant::now());
        let sent = tokio::select! {
            biased;
            sent = send(app, call, &lease, &payload, &bearer) => Some(sent),
            () = lease.interrupted() => None,
        };
        let judged = match sent {
            Some(Ok(sent)) => came(app, call, &lease, sent).await,
            Some(Err(bad)) => Some(Err(bad)),
            None => None,
        };
        let Some(judged) = judged else {
            record.failed(account.id, "moved", None, since);
            return Ok(Tried::Moved(lease));
        };
        let bad = match judged {
            Ok(done) => {
                lease.sent_at = sent_at;
                return Ok(Tried::Done(done.into_dispatched(lease)));
            }
            Err(bad) => bad,
        };
        if bad.outcome == Outcome::Shed {
            // No attempt was made.
            return Err(bad.error);
        }
        record.failed(account.id, bad.outcome.name(), bad.status, since);
        let (now, refreshed) = (app.clock.now(), progress.refreshed);
        let attempt = Attempt { ask, sent_at, now, refreshed };
        app.metrics.attempt(bad.outcome);
        app.pool.settle(account.id, bad.outcome, attempt);
        match next(bad.outcome, progress) {
            Next::Relay => {
                let Bad { reply, error, .. } = bad;
                return Ok(Tried::Done(Dispatched::Whole(lease, reply.ok_or(error)?, None)));
            }
            Next::Refresh => {
                if let Ok(refused) = &bearer {
                    bearer = Box::pin(attempt::refresh(app, &account, refused)).await;
                }
            }
            Next::Again => sleep(Duration::from_millis(rand::random_range(200..400))).await,
            Next::Strip => {
                // Nothing to cut: the next round relays the same refusal.
                if let Some(stripped) = strip::strip(call.surface, &payload) {
                    tracing::info!(
                        request.id = record.id(),
                        "cut out what this account cannot read"
                    );
                    payload = Cow::Owned(stripped);
                }
            }
            Next::Another => return Ok(Tried::Failed { bad, lease, enough: false }),
            Next::GiveUp => return Ok(Tried::Failed { bad, lease, enough: true }),
        }
    }
}

/// An answer that will reach the client.
enum Answered {
    Stream(super::judge::Answer),
    Assembled(super::judge::Reply, assemble::Assembled),
}

impl Answered {
    fn into_dispatched(self, lease: Lease) -> Dispatched {
        match self {
            Self::Stream(answer) => Dispatched::Stream(lease, answer),
            Self::Assembled(reply, assembled) => Dispatched::Whole(lease, reply, Some(assembled)),
        }
    }
}

async fn send(
    app: &App,
    call: &Call,
    lease: &Lease,
    payload: &Payload,
    bearer: &Result<Bearer, CredentialError>,
) -> Result<Sent, Bad> {
    let account = &lease.account;
    let bearer = match bearer {
        Ok(bearer) => bearer,
        Err(error) => return Err(judge_error(&AttemptError::from(error.clone()))),
    };
    let target = Target { account, bearer, payload, moved: lease.moved };
    attempt::send(app, call, &target).await.map_err(|error| judge_error(&error))
}

/// What came of it. `None`: a turn on a socket that has to move; over HTTP an answer whose head is there
/// is finished, even if that head says that the account can serve no more.
async fn came(app: &App, call: &Call, lease: &Lease, sent: Sent) -> Option<Result<Answered, Bad>> {
    if call.over.is_none() {
        return Some(answered(app, call, lease, sent).await);
    }
    tokio::select! {
        biased;
        answered = answered(app, call, lease, sent) => Some(answered),
        () = lease.interrupted() => None,
    }
}

async fn answered(app: &App, call: &Call, lease: &Lease, sent: Sent) -> Result<Answered, Bad> {
    let account = &lease.account;
    let Sent { response, streams, create } = sent;
    match judge(app, account, call.ask(), response, create).await {
        Judged::Good(answer) if streams && !call.head.stream => {
            let idle = app.limits().stream_idle_timeout;
            let (reply, mut assembled) = Box::pin(assemble::assemble(answer, idle)).await?;
            observe_events(app, account, &std::mem::take(&mut assembled.readings));
            Ok(Answered::Assembled(reply, assembled))
        }
        Judged::Good(answer) => Ok(Answered::Stream(answer)),
        Judged::Bad(bad) => Err(bad),
    }
}
