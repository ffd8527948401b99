//! What an upstream's answer means, what it does to the account, and what becomes of the request.
//!
//! Three total functions, shared by every path: [`classify`] turns evidence into an [`Outcome`],
//! [`Outcome::apply`] turns that into effects on the account's health, and [`next`] says where the
//! request goes. None is asked once semantic output has reached the client.
//!
//! Structured codes are evidence; free text is only where a provider offers nothing else, since an
//! error message may echo what a user typed.

use std::time::Duration;

use crate::account::{Family, Surface};
use crate::availability::{Account, Ask};
use crate::health::{Cause, Charge, Stop};
use crate::refresh::FAILURE_FOR;
use crate::units::Timestamp;

/// What is known of a failed or refused attempt. Empty text: not reported.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub family: Family,
    /// HTTP status, or the one that fits an error event inside a 200 stream.
    pub status: u16,
    /// `error.code`.
    pub code: &'a str,
    /// `error.type`.
    pub kind: &'a str,
    pub message: &'a str,
    /// The body is a web page: an edge in front of the provider answered.
    pub html: bool,
    pub retry_after: Option<Duration>,
    /// `error.resets_at`, or now + `resets_in_seconds`.
    pub resets_at: Option<Timestamp>,
    /// Reset of the window that is at 100 %, by this answer's headers or a snapshot under 10 min old.
    pub spent_until: Option<Timestamp>,
    /// The same of a limit that governs one family of models.
    pub family_spent_until: Option<Timestamp>,
    /// The smallest known reset of any window.
    pub nearest_reset: Option<Timestamp>,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// The request's own fault: relayed as it is, nobody's penalty.
    RequestFault,
    /// A content policy refused the request; a 403 would mislead clients, so it goes out as 400.
    PolicyBlock,
    /// Account-bound parts of the history cannot be read by this account.
    ForeignState,
    Stopped(Stop),
    ModelMissing,
    /// 401: the token is not accepted; `permanent` when the code says that it never will be.
    TokenRefused {
        permanent: bool,
    },
    /// A page from the provider's edge: says nothing about the account.
    EdgeBlock,
    QuotaSpent {
        until: Option<Timestamp>,
    },
    Strike,
    /// The limit of this model's family is spent; other models go on.
    ModelLimited {
        until: Timestamp,
    },
    RateLimited {
        until: Timestamp,
    },
    Overloaded,
    UpstreamError,
    /// Nothing was sent. `durable`: it will not cure itself within seconds.
    ConnectFailed {
        durable: bool,
    },
    /// The account's token could not be renewed, for a reason that may pass.
    TokenAway,
    /// Sent, then lost before any output: the upstream may have acted.
    Lost,
    /// It broke after output had begun: the account's error, and never sent again.
    Broke,
    /// We had no room for it ourselves: nothing was sent, and nobody else would help.
    Shed,
}

pub(crate) const REAUTH: [&str; 9] = [
    "refresh_token_expired",
    "refresh_token_reused",
    "refresh_token_invalidated",
    "invalid_grant",
    "token_invalidated",
    "token_revoked",
    "app_session_terminated",
    "account_session_expired",
    "account_auth_invalidated",
];

const POLICY: [&str; 3] = ["cyber_policy", "content_policy_violation", "invalid_prompt"];

const QUOTA: [&str; 4] =
    ["usage_limit_reached", "insufficient_quota", "usage_not_included", "quota_exceeded"];

const OVERLOAD: [&str; 3] = ["server_is_overloaded", "slow_down", "overloaded_error"];

const FOREIGN: [&str; 2] = ["invalid_encrypted_content", "invalid_signature"];

/// At most this long for a 429 that names no window: the larger reset would park an account with
/// plenty left for days.
const RATE_AT_MOST: Duration = Duration::from_mins(10);
const RATE_UNKNOWN: Duration = Duration::from_secs(5);

/// A reset further away than any window is long is a mistake.
const RESET_AT_MOST: Duration = Duration::from_hours(366 * 24);

impl Evidence<'_> {
    pub(crate) fn says(&self, words: &[&str]) -> bool {
        words.contains(&self.code) || words.contains(&self.kind)
    }

    /// `{workspace,account,organization,org}_{deactivated,disabled,suspended}`, or reversed.
    pub(crate) fn is_deactivation(&self) -> bool {
        let owners = ["workspace", "account", "organization", "org"];
        let states = ["deactivated", "disabled", "suspended", "deleted"];
        [self.code, self.kind].iter().any(|word| {
            word.split_once('_').is_some_and(|(a, b)| {
                (owners.contains(&a) && states.contains(&b))
                    || (states.contains(&a) && owners.contains(&b))
            })
        })
    }

    pub(crate) fn message_has(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    fn is_model_missing(&self) -> bool {
        // Of OpenAI, of others by whom models are served (vLLM, Together, Mistral, Azure), and of those
        // who say it in words only (OpenRouter, DeepSeek).
        self.says(&["model_not_found", "model_not_supported", "model_not_available"])
            || self.says(&["invalid_model", "DeploymentNotFound"])
            || (self.status == 404
                && self.message_has(&["model"])
                && (self.says(&["not_found_error", "NotFoundError"])
                    || self.message_has(&["does not exist", "not found"])))
            || (self.status == 404 && self.message_has(&["no endpoints found"]))
            || (self.status == 400
                && self.message_has(&[
                    "model is not supported",
                    "model does not exist",
                    "model not exist",
                ]))
    }

    /// The account may not spend any more, or not yet; only its owner can help. A name in the request
    /// that is made of these words comes back in what is said of that name.
    fn is_disabled(&self) -> bool {
        let echoes = ["parameter", "extra inputs", "extra fields", "unrecognized", "unknown"];
        self.status == 400
            && self.message_has(&[
                "credit balance is too low",
                "organization has been disabled",
                "identity verification",
            ])
            && !self.message_has(&echoes)
    }

    /// The body's own reset, if it makes sense.
    fn resets_at(&self) -> Option<Timestamp> {
        self.resets_at.filter(|at| *at > self.now && *at <= self.now.plus(RESET_AT_MOST))
    }
}

/// First match wins: what belongs to the request is told apart before anything that belongs to the
/// account.
pub fn classify(e: &Evidence<'_>) -> Outcome {
    if e.says(&POLICY) {
        return Outcome::PolicyBlock;
    }
    if e.says(&FOREIGN) {
        return Outcome::ForeignState;
    }
    if e.says(&["context_length_exceeded"]) {
        return Outcome::RequestFault;
    }
    if e.is_deactivation() || e.status == 402 {
        return Outcome::Stopped(Stop::Deactivated);
    }
    if e.is_model_missing() {
        return Outcome::ModelMissing;
    }
    if e.is_disabled() {
        return Outcome::Stopped(Stop::Disabled);
    }
    if e.status >= 400 && e.says(&OVERLOAD) {
        return Outcome::Overloaded;
    }
    match e.status {
        401 => Outcome::TokenRefused { permanent: e.says(&REAUTH) },
        403 if e.message_has(&["token has been revoked"]) => {
            Outcome::TokenRefused { permanent: false }
        }
        403 if e.html => Outcome::EdgeBlock,
        403 => forbidden(e),
        429 => too_many(e),
        529 => Outcome::Overloaded,
        // 408 and 409 are the upstream's own hurry and races, not the request's fault.
        400..=499 if e.status != 408 && e.status != 409 => Outcome::RequestFault,
        _ => Outcome::UpstreamError,
    }
}

/// The wording alone proves nothing: a window that is known to be spent must bear it out.
fn forbidden(e: &Evidence<'_>) -> Outcome {
    let ahead = |until: &Timestamp| *until > e.now;
    let spent = (e.spent_until.filter(ahead), e.family_spent_until.filter(ahead));
    match spent {
        _ if !e.message_has(&["usage limit"]) => Outcome::Strike,
        (Some(until), _) => Outcome::QuotaSpent { until: Some(until) },
        (None, Some(until)) => Outcome::ModelLimited { until },
        (None, None) => Outcome::Strike,
    }
}

fn too_many(e: &Evidence<'_>) -> Outcome {
    let ahead = |until: &Timestamp| *until > e.now;
    let spent = e.spent_until.filter(ahead);
    if let (None, Some(until)) = (spent, e.family_spent_until.filter(ahead)) {
        return Outcome::ModelLimited { until };
    }
    let asked = e.retry_after.map(|wait| e.now.plus(wait));
    if e.says(&QUOTA) || spent.is_some() {
        return Outcome::QuotaSpent { until: spent.or(e.resets_at()).or(asked) };
    }
    let until = asked.unwrap_or_else(|| {
        let known = [e.nearest_reset.filter(ahead), e.resets_at()];
        let nearest = known.into_iter().flatten().min();
        nearest.map_or(e.now.plus(RATE_UNKNOWN), |at| at.min(e.now.plus(RATE_AT_MOST)))
    });
    Outcome::RateLimited { until }
}

/// `OpenAI`'s codes of what is wrong with a response's input (`ResponseErrorCode` of its API reference,
/// 2026-11). One by one: others that begin like them are about the account (`invalid_organization`,
/// `unsupported_country_region_territory`).
const INPUT: [&str; 14] = [
    "invalid_image",
    "invalid_image_format",
    "invalid_base64_image",
    "invalid_image_url",
    "invalid_image_mode",
    "image_too_large",
    "image_too_small",
    "image_parse_error",
    "image_content_policy_violation",
    "image_file_too_large",
    "image_file_not_found",
    "unsupported_image_media_type",
    "empty_image_file",
    "failed_to_download_image",
];

/// What the request goes on from is not there (any more).
pub const LOST_CHAIN: &str = "previous_response_not_found";

/// Whether an error event says that the request itself is not to be answered, whichever status it has.
pub fn is_policy_block(code: &str, kind: &str) -> bool {
    POLICY.contains(&code) || POLICY.contains(&kind)
}

/// The status that fits an error event inside a 200 stream, from its structured fields.
pub fn status_of_event(family: Family, code: &str, kind: &str) -> u16 {
    let says = |words: &[&str]| words.contains(&code) || words.contains(&kind);
    if says(&QUOTA) || says(&["rate_limit_exceeded", "rate_limit_error"]) {
        429
    } else if says(&OVERLOAD) {
        match family {
            Family::OpenAi => 503,
            Family::Anthropic => 529,
        }
    } else if says(&["authentication_error", "invalid_api_key", "invalid_token"]) || says(&REAUTH) {
        401
    } else if says(&["permission_error", "forbidden_error"]) {
        403
    } else if says(&["model_not_found", "not_found_error"]) {
        404
    } else if says(&["invalid_request_error", "context_length_exceeded", LOST_CHAIN])
        || says(&POLICY)
        || says(&FOREIGN)
        || INPUT.contains(&code)
    {
        400
    } else if says(&["request_too_large"]) {
        413
    } else {
        502
    }
}

/// When an answer to a 429 without any date is asked again.
const QUOTA_UNKNOWN: Duration = Duration::from_mins(5);
const CREDENTIAL_COOLDOWN: Duration = Duration::from_mins(10);

impl Outcome {
    /// Stable words for the ledger, logs, metrics and tests.
    pub const NAMES: [&'static str; 21] = [
        "served",
        "request_fault",
        "policy_block",
        "foreign_state",
        Stop::Disabled.name(),
        Stop::NeedsLogin.name(),
        Stop::Deactivated.name(),
        "model_missing",
        "token_refused",
        "edge_block",
        "quota_spent",
        "forbidden",
        "model_limited",
        "rate_limited",
        "overloaded",
        "upstream_error",
        "connect_failed",
        "token_away",
        "lost",
        "upstream_broke",
        "shed",
    ];

    /// Its place in [`Self::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Self::Served => 0,
            Self::RequestFault => 1,
            Self::PolicyBlock => 2,
            Self::ForeignState => 3,
            Self::Stopped(Stop::Disabled) => 4,
            Self::Stopped(Stop::NeedsLogin) => 5,
            Self::Stopped(Stop::Deactivated) => 6,
            Self::ModelMissing => 7,
            Self::TokenRefused { .. } => 8,
            Self::EdgeBlock => 9,
            Self::QuotaSpent { .. } => 10,
            Self::Strike => 11,
            Self::ModelLimited { .. } => 12,
            Self::RateLimited { .. } => 13,
            Self::Overloaded => 14,
            Self::UpstreamError => 15,
            Self::ConnectFailed { .. } => 16,
            Self::TokenAway => 17,
            Self::Lost => 18,
            Self::Broke => 19,
            Self::Shed => 20,
        }
    }

    pub const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// The request's own fault, which its client is told in the upstream's words.
    pub const fn is_requests(self) -> bool {
        matches!(self, Self::RequestFault | Self::PolicyBlock | Self::ForeignState)
    }

    /// Whether an account takes anything from it. Counting tokens works when nothing else does and fails
    /// by limits of its own: it proves no account well, and so may not rest one either; but what it
    /// says of the sign-in or of the model holds for all.
    pub const fn counts_on(self, surface: Surface) -> bool {
        !matches!(surface, Surface::CountTokens)
            || matches!(
                self,
                Self::Stopped(_) | Self::TokenRefused { .. } | Self::TokenAway | Self::ModelMissing
            )
    }

    /// What the account that answered takes from it.
    pub fn apply(self, account: &mut Account, at: Attempt<'_>) {
        let now = at.now;
        let gated = at.ask.gate.is_some_and(|gate| gate.governs(account.plan.as_deref()));
        let (in_flight, health, model) = (account.in_flight, &mut account.health, at.ask.model);
        match self {
            _ if !self.counts_on(at.ask.surface) => {}
            Self::Served => {
                health.concurrency.served(at.sent_at, now);
                if gated {
                    health.gated_success(at.sent_at);
                } else {
                    health.success(at.sent_at);
                }
                health.model_served(model, at.sent_at);
            }
            Self::Stopped(stop) => health.stop = Some(stop),
            Self::ModelMissing => health.model_missing(model, now),
            Self::TokenRefused { permanent: true } if at.refreshed => {
                health.stop = Some(Stop::NeedsLogin);
            }
            Self::TokenRefused { permanent: false } if at.refreshed => {
                health.block(Cause::Credential, now.plus(CREDENTIAL_COOLDOWN), now);
            }
            // The first 401 is answered by a refresh, and a failed connect is judged by what comes
            // next (`network`); the others say nothing about the account.
            Self::TokenRefused { .. }
            | Self::ConnectFailed { .. }
            | Self::RequestFault
            | Self::PolicyBlock
            | Self::ForeignState
            | Self::EdgeBlock
            | Self::Shed => {}
            Self::QuotaSpent { until } => {
                let until = until.unwrap_or(now.plus(QUOTA_UNKNOWN));
                // What a gated model has used up says nothing about ordinary work.
                if gated {
                    health.block_model(model, until, now);
                } else {
                    health.block(Cause::Quota, until, now);
                }
            }
            Self::ModelLimited { until } => health.block_model(model, until, now),
            Self::Strike => health.strike(at.sent_at, now),
            Self::RateLimited { until } => {
                health.concurrency.refused(in_flight, at.sent_at, now);
                health.block(Cause::Rate, until, now);
            }
            Self::Overloaded => health.overloaded(model, at.sent_at, now),
            // As long as the failure is not repeated; the new token ends it.
            Self::TokenAway => health.block(Cause::Renewal, now.plus(FAILURE_FOR), now),
            Self::UpstreamError | Self::Lost | Self::Broke => health.error(at.sent_at, now),
        }
    }
}

/// The attempt an outcome belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub ask: Ask<'a>,
    pub sent_at: Timestamp,
    pub now: Timestamp,
    /// Its token had just been renewed: a second 401 is not about the token's age.
    pub refreshed: bool,
}

/// What this request has been through so far, the present attempt included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Accounts left because of errors.
    pub errors: u32,
    /// Accounts left because of limits and refusals.
    pub limits: u32,
    pub overloads: u32,
    /// Attempts that were sent and then lost.
    pub losses: u32,
    /// The token of the present account was renewed for this request.
    pub refreshed: bool,
    /// The present account was tried again after an error.
    pub retried: bool,
    /// Parts of the history that the present account cannot read were cut out.
    pub stripped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Give the client this answer.
    Relay,
    /// Renew the token, then the same account.
    Refresh,
    /// The same account, after a short jittered wait.
    Again,
    /// The same account, without the parts of the history that it cannot read.
    Strip,
    Another,
    /// Enough tried: the last answer goes out, if it may, or 502.
    GiveUp,
}

pub const ERROR_ACCOUNTS: u32 = 3;
pub const LIMIT_ACCOUNTS: u32 = 10;
pub const OVERLOAD_ACCOUNTS: u32 = 2;

/// Counts the outcome in, and says where the request goes.
pub fn next(outcome: Outcome, progress: &mut Progress) -> Next {
    let count = |counter: &mut u32, most: u32| {
        *counter += 1;
        if *counter < most { Next::Another } else { Next::GiveUp }
    };
    match outcome {
        Outcome::ForeignState if !progress.stripped => {
            progress.stripped = true;
            Next::Strip
        }
        Outcome::Broke
        | Outcome::Shed
        | Outcome::Served
        | Outcome::RequestFault
        | Outcome::PolicyBlock
        | Outcome::ForeignState => Next::Relay,
        Outcome::TokenRefused { .. } if !progress.refreshed => {
            progress.refreshed = true;
            Next::Refresh
        }
        Outcome::UpstreamError if !progress.retried => {
            progress.retried = true;
            Next::Again
        }
        Outcome::UpstreamError | Outcome::TokenAway | Outcome::ConnectFailed { .. } => {
            count(&mut progress.errors, ERROR_ACCOUNTS)
        }
        // The upstream may have acted, and charged: once more, and never again.
        Outcome::Lost => count(&mut progress.losses, 2),
        Outcome::Overloaded => count(&mut progress.overloads, OVERLOAD_ACCOUNTS),
        Outcome::Stopped(_)
        | Outcome::ModelMissing
        | Outcome::TokenRefused { .. }
        | Outcome::EdgeBlock
        | Outcome::QuotaSpent { .. }
        | Outcome::ModelLimited { .. }
        | Outcome::Strike
        | Outcome::RateLimited { .. } => count(&mut progress.limits, LIMIT_ACCOUNTS),
    }
}

impl Progress {
    /// What the request has cost the present account, whose last answer came to `outcome`.
    pub fn charge(&self, outcome: Outcome) -> Charge {
        let last = matches!(outcome, Outcome::UpstreamError);
        Charge { outcome, errors: u32::from(self.retried) + u32::from(last) }
    }

    /// The next attempt goes to another account.
    pub fn moved(&mut self) {
        self.refreshed = false;
        self.retried = false;
        self.stripped = false;
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
