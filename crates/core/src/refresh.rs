//! Renewing a sign-in: when it is due, whether the issuer may be asked, and what its answer means.
//!
//! A refresh token works once. Asking twice with the same one may end the whole sign-in, and asking
//! too often is answered with 429 for good; so what is known of earlier calls ([`Past`]) is kept with
//! the very credential it was learnt of, and forgotten when that changes.

use std::time::Duration;

use crate::health::Stop;
use crate::units::Timestamp;

/// Due this long before it expires.
pub const EARLY: Duration = Duration::from_mins(5);
/// Clocks differ: a token that expires within this time counts as expired.
pub const SKEW: Duration = Duration::from_secs(30);
/// A failure is not repeated for this long.
pub const FAILURE_FOR: Duration = Duration::from_secs(5);
/// Longest pause after calls that were never answered.
const PAUSE_AT_MOST: Duration = Duration::from_mins(5);

/// How badly a new token is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The present one is still good.
    Early,
    /// It has expired, or an upstream refused it.
    Now,
    /// An operator asks for it.
    Forced,
}

/// Why an issuer will never again renew a sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Expired,
    Reused,
    Revoked,
    Invalid,
    /// The account itself is gone: signing in again would not help.
    Deactivated,
}

impl Fault {
    /// By the issuer's code (codex-lb §2.5); `None`: the code ends nothing.
    pub fn of(code: &str) -> Option<Self> {
        Some(match code {
            "refresh_token_expired" | "token_expired" | "account_session_expired" => Self::Expired,
            "refresh_token_reused" => Self::Reused,
            "refresh_token_invalidated"
            | "token_invalidated"
            | "token_revoked"
            | "app_session_terminated"
            | "account_auth_invalidated" => Self::Revoked,
            "invalid_grant" => Self::Invalid,
            "account_deactivated" | "account_suspended" | "account_deleted" => Self::Deactivated,
            _ => return None,
        })
    }

    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Expired => "the sign-in has expired",
            Self::Reused => "its refresh token had been used before",
            Self::Revoked => "the sign-in was revoked",
            Self::Invalid => "its refresh token is not valid",
            Self::Deactivated => "the account was deactivated",
        }
    }
}

/// What is known of earlier calls with the very same credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Past {
    #[default]
    Nothing,
    /// It failed in a way that may pass; nobody asks before then.
    Failed { until: Timestamp },
    /// 429 without a time: not until the credential changes, or an operator asks.
    Blocked,
    /// Refused for good.
    Refused(Fault),
    /// Asked, the last time at `at`, and never answered: the issuer may have exchanged the token.
    InDoubt { tries: u32, at: Timestamp },
}

impl Past {
    /// The wall clock was set back by `by`: nobody waits for longer because of it.
    pub fn set_back(&mut self, by: Duration) {
        match self {
            Self::Failed { until: at } | Self::InDoubt { at, .. } => *at = at.minus(by),
            Self::Nothing | Self::Blocked | Self::Refused(_) => {}
        }
    }
}

/// May the issuer be asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ask,
    /// Not before then.
    Wait {
        until: Timestamp,
    },
    /// Not with this credential.
    Never,
    /// The present token is used for as long as it works: if the one before was exchanged, asking
    /// again would end the sign-in and this token with it.
    NotYet,
}

pub fn may_ask(past: Past, need: Need, now: Timestamp) -> Verdict {
    let after = |until| if now < until { Verdict::Wait { until } } else { Verdict::Ask };
    match (past, need) {
        (Past::Nothing, _) | (_, Need::Forced) => Verdict::Ask,
        (Past::Failed { until }, _) => after(until),
        (Past::Blocked | Past::Refused(_), _) => Verdict::Never,
        (Past::InDoubt { .. }, Need::Early) => Verdict::NotYet,
        // Only the issuer can say what became of it; one that is away must not log everybody out.
        (Past::InDoubt { tries, at }, Need::Now) => after(at.plus(pause(tries))),
    }
}

/// 5 s after the first unanswered call, doubling.
fn pause(tries: u32) -> Duration {
    let doubled = FAILURE_FOR.saturating_mul(1 << tries.saturating_sub(1).min(8));
    doubled.min(PAUSE_AT_MOST)
}

/// How a call that brought no token ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<'a> {
    /// Nothing was sent.
    NotSent,
    /// Sent, and then no answer, or a broken one.
    Unanswered,
    /// `code`: the issuer's own, empty if it gave none.
    Answered { status: u16, code: &'a str, retry_after: Option<Duration> },
}

/// What a failed call at `now` leaves behind; `tries` unanswered ones came before it.
pub fn learn(failure: Failure<'_>, tries: u32, now: Timestamp) -> Past {
    let soon = Past::Failed { until: now.plus(FAILURE_FOR) };
    match failure {
        // A call before it may have been taken; this one was not.
        Failure::NotSent if tries > 0 => Past::InDoubt { tries, at: now },
        Failure::Unanswered => Past::InDoubt { tries: tries.saturating_add(1), at: now },
        Failure::Answered { status: 429, retry_after: None, .. } => Past::Blocked,
        Failure::Answered { status: 429, retry_after: Some(wait), .. } => {
            Past::Failed { until: now.plus(wait) }
        }
        Failure::Answered { status: 400..=499, code, .. } => {
            Fault::of(code).map_or(soon, Past::Refused)
        }
        Failure::NotSent | Failure::Answered { .. } => soon,
    }
}

/// What a credential is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Usable,
    /// It is missing or broken, or expired while its issuer refuses to be asked.
    Unavailable,
    /// Only a person can help.
    Stopped(Stop),
}

/// `is_spent`: the present token has expired or an upstream refused it. Until then it serves,
/// whatever its issuer says.
pub fn standing(past: Past, is_spent: bool) -> Standing {
    match past {
        _ if !is_spent => Standing::Usable,
        Past::Refused(Fault::Deactivated) => Standing::Stopped(Stop::Deactivated),
        Past::Refused(_) => Standing::Stopped(Stop::NeedsLogin),
        Past::Blocked => Standing::Unavailable,
        Past::Nothing | Past::Failed { .. } | Past::InDoubt { .. } => Standing::Usable,
    }
}

/// A lock directory of Claude Code's protocol is another process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockStep {
    /// Its holder died: remove it, and try again at once.
    TakeOver,
    /// A second or two.
    Wait,
    GiveUp,
}

/// Its holder touches it every 5 s while it lives (multiplexer §3.6).
pub const LOCK_HEARTBEAT: Duration = Duration::from_secs(5);
const LOCK_STALE: Duration = Duration::from_secs(10);
const LOCK_ATTEMPTS: u32 = 6;

/// After the `attempt`th failure to take a lock that was last touched `age` ago.
pub fn lock_step(attempt: u32, age: Duration) -> LockStep {
    if age > LOCK_STALE {
        LockStep::TakeOver
    } else if attempt < LOCK_ATTEMPTS {
        LockStep::Wait
    } else {
        LockStep::GiveUp
    }
}

/// When a token is renewed although nobody waits for it: before requests would do it, and not all at
/// one time. `lifetime`: from issue to expiry; `None`: unknown. `seed` spreads the accounts.
pub fn idle_due_at(due_at: Timestamp, lifetime: Option<Duration>, seed: u64) -> Timestamp {
    let ahead = lifetime.map_or(EARLY, |lifetime| EARLY.max(lifetime / 10));
    // Between half of it and all of it.
    let part = u32::try_from(seed % 501).unwrap_or(0) + 500;
    due_at.minus(ahead * part / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn later(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    /// multiplexer 18.1 #1, #2; codex-lb G7.
    #[test]
    #[rustfmt::skip]
    fn asks_only_when_it_may() {
        use Need::{Early, Forced, Now};
        let failed = Past::Failed { until: later(5) };
        let doubt = |tries| Past::InDoubt { tries, at: NOW };
        let refused = Past::Refused(Fault::Reused);
        let cases = [
            ("nothing known",                  Past::Nothing, Early,  0,   Verdict::Ask),
            ("failed a moment ago",            failed,        Now,    4,   Verdict::Wait { until: later(5) }),
            ("failed five seconds ago",        failed,        Now,    5,   Verdict::Ask),
            ("an operator does not wait",      failed,        Forced, 1,   Verdict::Ask),
            ("429 without a time",             Past::Blocked, Now,    1_000_000, Verdict::Never),
            ("until an operator asks",         Past::Blocked, Forced, 0,   Verdict::Ask),
            ("refused for good",               refused,       Now,    1_000_000, Verdict::Never),
            ("an operator may try",            refused,       Forced, 0,   Verdict::Ask),
            ("in doubt, the token is good",    doubt(1),      Early,  900, Verdict::NotYet),
            ("in doubt, the token is not",     doubt(1),      Now,    5,   Verdict::Ask),
            ("in doubt, after a pause only",   doubt(1),      Now,    4,   Verdict::Wait { until: later(5) }),
            ("a longer one each time",         doubt(3),      Now,    19,  Verdict::Wait { until: later(20) }),
            ("of five minutes at most",        doubt(99),     Now,    299, Verdict::Wait { until: later(300) }),
            ("and never given up",             doubt(99),     Now,    300, Verdict::Ask),
        ];
        for (name, past, need, seconds, want) in cases {
            assert_eq!(may_ask(past, need, later(seconds)), want, "{name}");
        }
    }

    /// multiplexer 18.1 #1, #2; codex-lb 2.5.
    #[test]
    #[rustfmt::skip]
    fn tells_failures_apart() {
        let soon = Past::Failed { until: later(5) };
        let doubt = |tries| Past::InDoubt { tries, at: NOW };
        let answered = |status, code| Failure::Answered { status, code, retry_after: None };
        let wait = Some(Duration::from_secs(30));
        let refused = Past::Refused;
        let cases = [
            ("not sent",                 Failure::NotSent,                             0, soon),
            ("not sent after a loss",    Failure::NotSent,                             2, doubt(2)),
            ("unanswered",               Failure::Unanswered,                          0, doubt(1)),
            ("unanswered again",         Failure::Unanswered,                          1, doubt(2)),
            ("429 with a time",          Failure::Answered { status: 429, code: "", retry_after: wait }, 0, Past::Failed { until: later(30) }),
            ("429 without",              answered(429, ""),                            0, Past::Blocked),
            ("500",                      answered(500, ""),                            0, soon),
            ("500 with a final code",    answered(500, "invalid_grant"),               0, soon),
            ("a plain 401",              answered(401, ""),                            0, soon),
            ("another code",             answered(401, "invalid_client"),              0, soon),
            ("expired",                  answered(401, "refresh_token_expired"),       0, refused(Fault::Expired)),
            ("reused",                   answered(401, "refresh_token_reused"),        1, refused(Fault::Reused)),
            ("revoked",                  answered(401, "refresh_token_invalidated"),   0, refused(Fault::Revoked)),
            ("session ended",            answered(400, "app_session_terminated"),      0, refused(Fault::Revoked)),
            ("invalid",                  answered(400, "invalid_grant"),               0, refused(Fault::Invalid)),
            ("deactivated",              answered(403, "account_deactivated"),         0, refused(Fault::Deactivated)),
        ];
        for (name, failure, tries, want) in cases {
            assert_eq!(learn(failure, tries, NOW), want, "{name}");
        }
    }

    #[test]
    fn a_good_token_serves_whatever_its_issuer_says() {
        let needs_login = Standing::Stopped(Stop::NeedsLogin);
        let cases = [
            (Past::Nothing, Standing::Usable),
            (Past::Failed { until: later(5) }, Standing::Usable),
            (Past::InDoubt { tries: 1, at: NOW }, Standing::Usable),
            (Past::Blocked, Standing::Unavailable),
            (Past::Refused(Fault::Expired), needs_login),
            (Past::Refused(Fault::Invalid), needs_login),
            (Past::Refused(Fault::Deactivated), Standing::Stopped(Stop::Deactivated)),
        ];
        for (past, spent) in cases {
            assert_eq!(standing(past, false), Standing::Usable, "{past:?}");
            assert_eq!(standing(past, true), spent, "{past:?}");
        }
    }

    /// multiplexer 18.1 #7.
    #[test]
    fn a_lock_is_waited_for_six_times_and_a_stale_one_taken_over() {
        let cases = [
            (1, 0, LockStep::Wait),
            (5, 10, LockStep::Wait),
            (6, 10, LockStep::GiveUp),
            (1, 11, LockStep::TakeOver),
            (6, 11, LockStep::TakeOver),
        ];
        for (attempt, age, want) in cases {
            assert_eq!(lock_step(attempt, Duration::from_secs(age)), want, "{attempt}, {age} s");
        }
    }

    #[test]
    fn idle_accounts_are_renewed_before_requests_would_and_not_together() {
        let hour = Some(Duration::from_hours(1));
        let ten_days = Some(Duration::from_hours(240));
        let cases = [
            ("an hour: a tenth of it", hour, 500, 360),
            ("or half of that", hour, 0, 180),
            ("ten days", ten_days, 500, 86_400),
            ("unknown", None, 500, 300),
            ("seeds wrap around", hour, 501, 180),
        ];
        for (name, lifetime, seed, ahead) in cases {
            assert_eq!(
                idle_due_at(later(1_000_000), lifetime, seed),
                later(1_000_000 - ahead),
                "{name}"
            );
        }
    }
}
