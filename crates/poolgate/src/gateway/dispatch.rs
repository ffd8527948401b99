//! The attempt loop: lease an account, try it, judge the answer, and go where the rules say.
//!
//! It ends with an answer whose output has begun, with an upstream's answer that is the request's
//! own fault, or with an error that says when to come back. Until then the client has seen nothing.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use poolgate_core::account::{AccountId, Surface};
use poolgate_core::choose::Refusal;
use poolgate_core::health::Charge;
use poolgate_core::outcome::{Outcome, Progress};
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;
use tokio::time::{Instant, timeout_at};

use super::Call;
use super::judge::{Answer, Bad, Reply};
use super::settle::Record;
use super::socket::OverSocket;
use super::trial::{Tried, try_account};
use super::waiting::{explain, lease, lease_of_leg, left};
use crate::app::App;
use crate::error::Error;
use crate::pool::{Account, Lease, Refused};
use crate::providers::ErrorFields;
use crate::secret::sha256;

/// So often a request is moved away from accounts that it may come back to.
const MOVES: u32 = 4;

/// While there is no answer, it is looked so often whether the client's key is still valid; behind the commit
/// the relay looks (reliability AUTH-4).
const KEY_EVERY: Duration = Duration::from_secs(2);

/// What the client will be given.
#[derive(Debug)]
pub enum Dispatched {
    /// Relayed as it comes; the lease lasts until its end.
    Stream(Lease, Answer),
    /// An answer in one piece: assembled from a stream, or a refusal that is the request's own.
    Whole(Lease, Reply, Option<TokenUsage>),
}

pub async fn dispatch(
    app: &Arc<App>,
    call: &Call,
    record: &mut Record,
) -> Result<Dispatched, Error> {
    let mut look_at = record.started() + KEY_EVERY;
    let mut attempts = pin!(attempts(app, call, record));
    loop {
        match timeout_at(look_at.min(call.deadline), attempts.as_mut()).await {
            Ok(result) => return result,
            Err(_) if look_at >= call.deadline => return Err(Error::UpstreamTimeout),
            Err(_) if !call.caller.key.is_known(app.clock.now()) => {
                return Err(Error::Unauthorized);
            }
            Err(_) => look_at = Instant::now() + KEY_EVERY,
        }
    }
}

async fn attempts(app: &Arc<App>, call: &Call, record: &mut Record) -> Result<Dispatched, Error> {
    let began = app.clock.now();
    let mut tried = Vec::new();
    let mut with_leg = call.over.as_ref().and_then(|over| lease_of_leg(app, call, over));
    let mut progress = Progress::default();
    let mut same = SameText::default();
    let mut last: Option<Error> = None;
    let mut moves = 0;
    let mut left = None;
    let mut refused = None;
    let is_chained = call.over.as_ref().is_some_and(OverSocket::is_chained);
    loop {
        let leased = match with_leg.take() {
            Some(lease) => Ok(lease),
            None => lease(app, call, &tried).await,
        };
        let mut lease = match leased {
            Ok(lease) => lease,
            Err(Refused { refusal, decision }) => {
                record.decided(*decision);
                return match (refusal, refused) {
                    (Refusal::AllTried { .. }, Some((lease, reply))) => {
                        Ok(Dispatched::Whole(lease, reply, None))
                    }
                    _ => Err(explain(app, call, refusal, last)),
                };
            }
        };
        // Not before: the last account is left for nobody.
        if let Some(before) = left.replace(lease.account.id).filter(|id| *id != lease.account.id) {
            app.pool.note_failover(before);
        }
        if let Some(decision) = lease.decision.take() {
            record.decided(*decision);
        }
        match try_account(app, call, lease, &mut progress, record).await? {
            Tried::Done(done) => return Ok(done),
            Tried::Moved { lease, failed } => {
                // It may have refused nothing, and serve the request yet: but not for ever.
                moves += 1;
                if failed || moves >= MOVES {
                    tried.push(lease.account.id);
                }
            }
            Tried::Failed { mut bad, lease, enough } => {
                let id = lease.account.id;
                tried.push(id);
                if let Some(over) = &call.over {
                    over.note_failed();
                }
                tracing::info!(
                    request.id = record.id(),
                    account = lease.account.name,
                    outcome = bad.outcome.name(),
                    status = bad.status,
                    "left an account"
                );
                if same.third(&lease.account, &bad, call.surface, &progress) {
                    return same.relay(app, lease, bad, began);
                }
                let of_a_count = refusal_of_a_count(call, &mut bad);
                if enough && of_a_count.is_none() && refused.is_none() {
                    return give_up(app, call, lease, bad, &tried);
                }
                if let Some(reply) = of_a_count
                    && refused.as_ref().is_none_or(|(_, kept)| wait(&reply) < wait(kept))
                {
                    refused = Some((lease, reply));
                }
                if let Some((lease, reply)) = refused.take_if(|_| enough) {
                    return Ok(Dispatched::Whole(lease, reply, None));
                }
                last = Some(std::mem::replace(&mut bad.error, Error::Internal));
            }
        }
        if is_chained {
            // Nobody else could go on from the turn before: its client says all of it again.
            return Err(Error::ChainLost);
        }
        progress.moved();
    }
}

/// What a client that counts tokens is told if nobody else counts them: an account that may not count
/// now is not limited by that, so that nothing else would say when to come back. A count holds no
/// place of its account.
fn refusal_of_a_count(call: &Call, bad: &mut Bad) -> Option<Reply> {
    let is_told = call.surface == Surface::CountTokens
        && matches!(
            bad.outcome,
            Outcome::RateLimited { .. }
                | Outcome::QuotaSpent { .. }
                | Outcome::ModelLimited { .. }
                | Outcome::Overloaded
        );
    // A 403 about spent quota would be the client's fault.
    let is_of_a_limit = |status: u16| matches!(status, 429 | 503 | 529);
    bad.reply.take_if(|reply| is_told && reply.is_own && is_of_a_limit(reply.head.status.as_u16()))
}

/// Of an overload that names no time.
const SOON: u64 = 60;

/// Until it may be asked again, in seconds.
fn wait(reply: &Reply) -> u64 {
    let told = reply.head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    told.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(SOON)
}

/// Accounts that refused this request with the very same words. Three of them, and the request is
/// at fault: what it did to them is taken back, and the words are relayed.
///
/// Structured evidence of spent quota is exempt, and so is anything that speaks of a usage limit, or of
/// when to come back: accounts that have run dry say the same, each about itself. So do those whose 429
/// has no words at all. A page or an empty body says nothing of the request: an edge that is down answers
/// so for all accounts behind it.
#[derive(Default)]
struct SameText(Vec<([u8; 32], Arc<Account>, Option<Charge>)>);

const SAME_TEXT_ACCOUNTS: usize = 3;

impl SameText {
    fn third(
        &mut self,
        account: &Arc<Account>,
        bad: &Bad,
        surface: Surface,
        progress: &Progress,
    ) -> bool {
        let owned = matches!(
            bad.outcome,
            Outcome::Strike | Outcome::RateLimited { .. } | Outcome::UpstreamError
        );
        let Some(reply) = bad.reply.as_ref().filter(|reply| owned && reply.is_own) else {
            return false;
        };
        let fields = ErrorFields::read(&reply.body, Timestamp(0));
        let is_mute = fields.message.is_empty() && bad.status == Some(429);
        let words = words(&fields, &reply.body);
        if is_mute || reply.says_when || words.contains("usage limit") {
            return false;
        }
        let digest = sha256(words.as_bytes());
        self.0.retain(|(known, ..)| *known == digest);
        let counts = bad.outcome.counts_on(surface);
        self.0.push((digest, Arc::clone(account), counts.then(|| progress.charge(bad.outcome))));
        self.0.len() >= SAME_TEXT_ACCOUNTS
    }

    fn relay(
        self,
        app: &App,
        lease: Lease,
        bad: Box<Bad>,
        began: Timestamp,
    ) -> Result<Dispatched, Error> {
        let charges =
            self.0.into_iter().filter_map(|(_, account, charge)| Some((account, charge?)));
        app.pool.take_back(&charges.collect::<Vec<_>>(), began);
        Ok(Dispatched::Whole(lease, bad.reply.ok_or(bad.error)?, None))
    }
}

/// What a refusal says, without the numbers that each of them is given.
fn words(fields: &ErrorFields, body: &[u8]) -> String {
    let (text, ends): (_, fn(char) -> bool) = match fields.message.as_str() {
        // Of JSON that is known to nobody: written without blanks, it would be a single word.
        "" => (String::from_utf8_lossy(body), |c| c.is_whitespace() || "{}[]:,\"".contains(c)),
        message => {
            (Cow::Owned([&fields.code, &fields.kind, message].join(" ")), char::is_whitespace)
        }
    };
    let is_number =
        |word: &str| word.len() > 8 && word.bytes().filter(u8::is_ascii_digit).count() > 2;
    let words = text.split(ends).filter(|word| !word.is_empty() && !is_number(word));
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join(" ")
}

/// Enough was tried. An overload goes out as the upstream told it; anything else says what the pool
/// as a whole has left.
fn give_up(
    app: &Arc<App>,
    call: &Call,
    lease: Lease,
    bad: Box<Bad>,
    tried: &[AccountId],
) -> Result<Dispatched, Error> {
    match (bad.outcome, bad.reply) {
        (Outcome::Overloaded, Some(reply)) => Ok(Dispatched::Whole(lease, reply, None)),
        (
            Outcome::UpstreamError
            | Outcome::TokenAway
            | Outcome::ConnectFailed { .. }
            | Outcome::Lost,
            _,
        ) => Err(bad.error),
        _ => Err(left(app, call, tried, bad.error)),
    }
}
