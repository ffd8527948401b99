//! One account's turn at a request, with the retries on it that the rules allow.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::outcome::{Attempt, Next, Outcome, Progress, next};
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;
use tokio::time::{Instant, sleep};

use super::attempt::{self, AttemptError, Sent, Target};
use super::dispatch::Dispatched;
use super::judge::{
    Answer, Bad, Judged, Reply, judge, judge_error, judge_late, observe_events, refusal_of_event,
};
use super::read::Payload;
use super::settle::Record;
use super::socket::{OverSocket, bridge};
use super::span::Span;
use super::{Call, assemble, strip};
use crate::app::App;
use crate::credentials::{Bearer, CredentialError};
use crate::error::Error;
use crate::pool::{Account, Lease};
use crate::providers::ErrorFields;

pub enum Tried {
    Done(Dispatched),
    /// Left for another account; `enough`: no further one may be asked.
    Failed {
        bad: Box<Bad>,
        lease: Lease,
        enough: bool,
    },
    /// The account became unable, or its sessions moved, while there was no head yet; on a socket, no
    /// output. `failed`: not without this request's doing.
    Moved {
        lease: Lease,
        failed: bool,
    },
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
    // `found`: the token behind the first refusal was only found, so the one renewal is still due.
    let (mut failed, mut found) = (false, false);
    loop {
        let (sent_at, since) = (app.clock.now(), Instant::now());
        // It may have waited for its account, or for a token.
        if !call.caller.key.is_known(sent_at) {
            return Err(Error::Unauthorized);
        }
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
            return Ok(Tried::Moved { lease, failed });
        };
        let mut bad = match judged {
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
        failed = true;
        record.failed(account.id, bad.outcome.name(), bad.status, since);
        if let (Outcome::TokenRefused { .. }, Ok(sent)) = (bad.outcome, &bearer) {
            if progress.refreshed && !found && account.credential.may_renew_again(sent) {
                (progress.refreshed, found) = (false, true);
            } else if !account.credential.may_replace(sent) {
                bad.outcome = Outcome::TokenRefused { permanent: false };
                progress.refreshed = true;
            }
        }
        let (now, refreshed) = (app.clock.now(), progress.refreshed);
        let attempt = Attempt { ask, sent_at, now, refreshed };
        app.metrics.attempt(bad.outcome);
        app.pool.settle(&account, bad.outcome, attempt);
        let next = match bad.spent {
            Some(usage) => {
                record.spent(usage);
                Next::Relay
            }
            None => next(bad.outcome, progress),
        };
        match next {
            Next::Relay => return relayed(bad, lease),
            Next::Refresh => {
                if let Some(over) = &call.over {
                    // It was opened with the token that is refused.
                    over.slot.take();
                }
                if let Ok(refused) = &bearer {
                    bearer = Box::pin(attempt::refresh(app, &account, refused)).await;
                }
            }
            Next::Again => sleep(Duration::from_millis(rand::random_range(200..400))).await,
            Next::Strip => {
                let Some(stripped) = strip::strip(call.surface, &payload) else {
                    return relayed(bad, lease);
                };
                tracing::info!(request.id = record.id(), "cut out what this account cannot read");
                payload = Cow::Owned(stripped);
            }
            Next::Another => return Ok(Tried::Failed { bad, lease, enough: false }),
            Next::GiveUp => return Ok(Tried::Failed { bad, lease, enough: true }),
        }
    }
}

fn relayed(bad: Box<Bad>, lease: Lease) -> Result<Tried, Error> {
    Ok(Tried::Done(Dispatched::Whole(lease, bad.reply.ok_or(bad.error)?, None)))
}

/// An answer that will reach the client.
enum Answered {
    Stream(Answer),
    Assembled(Reply, TokenUsage),
}

impl Answered {
    fn into_dispatched(self, lease: Lease) -> Dispatched {
        match self {
            Self::Stream(answer) => Dispatched::Stream(lease, answer),
            Self::Assembled(reply, usage) => Dispatched::Whole(lease, reply, Some(usage)),
        }
    }
}

async fn send(
    app: &App,
    call: &Call,
    lease: &Lease,
    payload: &Payload,
    bearer: &Result<Bearer, CredentialError>,
) -> Result<Sent, Box<Bad>> {
    let account = &lease.account;
    let bearer = match bearer {
        Ok(bearer) => bearer,
        Err(error) => return Err(Box::new(judge_error(&AttemptError::from(error.clone())))),
    };
    let target = Target { account, bearer, payload, moved: lease.moved };
    attempt::send(app, call, &target).await.map_err(|error| Box::new(judge_error(&error)))
}

/// What came of it. `None`: a turn on a socket that has to move; over HTTP an answer whose head is there
/// is finished, even if that head says that the account can serve no more.
async fn came(
    app: &App,
    call: &Call,
    lease: &Lease,
    sent: Sent,
) -> Option<Result<Answered, Box<Bad>>> {
    tokio::select! {
        biased;
        answered = answered(app, call, lease, sent) => Some(answered),
        () = lease.interrupted(), if call.over.is_some() => None,
    }
}

async fn answered(app: &App, call: &Call, lease: &Lease, sent: Sent) -> Result<Answered, Box<Bad>> {
    let account = &lease.account;
    let Sent { response, streams, create } = sent;
    let answered = match judge(app, account, call.ask(), response, create).await {
        Judged::Good(answer) if streams && !call.head.stream => {
            Box::pin(assembled(app, call, account, answer)).await
        }
        Judged::Good(answer) if bridge::is_in_one_piece(call, &answer) => {
            let told = Box::pin(bridge::in_events(app, call, account, answer)).await;
            told.map(Answered::Stream)
        }
        Judged::Good(answer) => Ok(Answered::Stream(answer)),
        Judged::Bad(bad) => Err(bad),
    };
    let goes_on = |over: &OverSocket| over.is_chained() || call.head.owner.is_some();
    if call.over.as_ref().is_some_and(goes_on)
        && let Some(status) = lost_chain(&answered)
    {
        let told = judge_error(&AttemptError::ChainLost);
        return Err(Box::new(Bad { status: Some(status), ..told }));
    }
    answered
}

/// The status of a refusal that says so. A turn has one remedy for it, and clients know one form of it: Codex
/// asks the same again behind a `response.failed`, and sends all of it behind an error of that code (wire §2.4,
/// §4).
fn lost_chain(answered: &Result<Answered, Box<Bad>>) -> Option<u16> {
    match answered {
        Ok(Answered::Stream(answer)) => {
            let (_, status) = answer.refused?;
            answer.opening.tap.error.as_ref()?.is_lost_chain().then_some(status)
        }
        Ok(Answered::Assembled(..)) => None,
        Err(bad) => {
            let reply = bad.reply.as_ref().filter(|_| bad.outcome.is_requests())?;
            let fields = ErrorFields::read(&reply.body, Timestamp(0));
            bad.status.filter(|_| fields.is_lost_chain())
        }
    }
}

/// One answer for a client that does not stream, which has seen nothing yet: what the stream says of a
/// failure is told by a status.
async fn assembled(
    app: &App,
    call: &Call,
    account: &Account,
    answer: Answer,
) -> Result<Answered, Box<Bad>> {
    let ask = call.ask();
    if let Some((outcome, _)) = answer.refused {
        let fields = answer.opening.tap.error.unwrap_or_default();
        return Err(Box::new(refusal_of_event(account, ask, answer.head, &fields, outcome)));
    }
    let span = Span::new(Instant::now(), app.limits().stream_idle_timeout, call.deadline);
    let assemble::Assembled { head, body, mut tap } = assemble::assemble(answer, span).await;
    observe_events(app, account, &tap.readings);
    let broke = |outcome| Bad {
        outcome,
        status: Some(200),
        reply: None,
        error: Error::UpstreamBroke,
        spent: Some(tap.usage),
    };
    let Some(fields) = tap.error.take() else {
        let body = body.ok_or_else(|| Box::new(broke(Outcome::Broke)))?;
        let reply = Reply { head, body, is_own: true, says_when: false };
        return Ok(Answered::Assembled(reply, tap.usage));
    };
    let outcome = judge_late(app, account, ask, &fields);
    let refusal = refusal_of_event(account, ask, head, &fields, outcome);
    let is_requests = outcome.is_requests();
    Err(Box::new(match tap.semantic {
        // Nothing was made that could have been charged for.
        false => refusal,
        true if is_requests => Bad { spent: Some(tap.usage), ..refusal },
        true => broke(outcome),
    }))
}
