//! Can this account take this request, now? The only place that says no.
//!
//! The answer is derived each time from what is known; nothing stores it. Reasons carry the time
//! they end, where that is known, since the earliest of them becomes the client's `Retry-After`.

use crate::account::{AccountId, Caps, Kind, Speaks, Surface, model_matches};
use crate::health::{Block, Cause, Health, Stop};
use crate::quota::{Quota, Window};
use crate::units::{Fraction, Timestamp};

/// An account as the decisions see it.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub kind: Kind,
    pub speaks: Speaks,
    pub priority: i32,
    /// Relative size of the plan; more than zero.
    pub weight: f64,
    pub caps: Caps,
    /// Patterns of the models it may serve; empty: all.
    pub models: Vec<String>,
    /// Attempts at the same time; zero: any number.
    pub max_in_flight: u32,
    pub paused: bool,
    /// The credential can be read and used.
    pub has_credential: bool,
    pub quota: Quota,
    pub health: Health,
    pub in_flight: u32,
}

/// What a request asks of an account.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub surface: Surface,
    pub model: &'a str,
}

/// Why not, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its kind does not serve this surface.
    Unfit,
    /// By an operator.
    Paused,
    Stopped(Stop),
    /// No credential to use; ends when the file or the login is back.
    Unavailable,
    /// The model is not enabled here.
    NotAllowed,
    /// The model cannot be served here for a while; `missing`: the upstream does not know it.
    Model {
        until: Timestamp,
        missing: bool,
    },
    /// The provider's window is spent.
    Exhausted {
        until: Option<Timestamp>,
    },
    /// Our cap of a window is reached.
    Capped {
        until: Option<Timestamp>,
    },
    /// Told to wait, or cooling after a refusal.
    Cooling {
        cause: Cause,
        until: Timestamp,
    },
    /// Too many errors in a row.
    Backoff {
        until: Timestamp,
    },
    /// As many attempts in flight as allowed.
    Busy,
}

impl Reason {
    /// When it ends by itself. `None`: unknown, or a person must act.
    pub fn until(self) -> Option<Timestamp> {
        match self {
            Self::Model { until, .. } | Self::Cooling { until, .. } | Self::Backoff { until } => {
                Some(until)
            }
            Self::Exhausted { until } | Self::Capped { until } => until,
            _ => None,
        }
    }

    /// Spent quota, as opposed to trouble: clients show these two differently.
    pub fn is_quota(self) -> bool {
        matches!(
            self,
            Self::Exhausted { .. }
                | Self::Capped { .. }
                | Self::Cooling {
                    cause: Cause::Quota,
                    ..
                }
        )
    }

    /// Stable word for logs, status and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unfit => "unfit",
            Self::Paused => "paused",
            Self::Stopped(stop) => stop.name(),
            Self::Unavailable => "unavailable",
            Self::NotAllowed => "not_allowed",
            Self::Model { .. } => "model",
            Self::Exhausted { .. }
            | Self::Cooling {
                cause: Cause::Quota | Cause::Rate,
                ..
            } => "limited",
            Self::Capped { .. } => "capped",
            Self::Cooling { .. } => "cooling",
            Self::Backoff { .. } => "backoff",
            Self::Busy => "busy",
        }
    }
}

/// What keeps the account from any work at all, whatever the request.
pub fn state(account: &Account, now: Timestamp) -> Result<(), Reason> {
    if account.paused {
        return Err(Reason::Paused);
    }
    if let Some(stop) = account.health.stop {
        return Err(Reason::Stopped(stop));
    }
    if !account.has_credential {
        return Err(Reason::Unavailable);
    }
    if let Some(Block { cause, until, .. }) = account.health.block
        && now < until
    {
        return Err(Reason::Cooling { cause, until });
    }
    if let Some(until) = account.health.backoff_until()
        && now < until
    {
        return Err(Reason::Backoff { until });
    }
    spent(account, now)
}

/// May it serve `ask` now?
pub fn availability(account: &Account, ask: Ask<'_>, now: Timestamp) -> Result<(), Reason> {
    if !account.kind.serves(ask.surface, account.speaks) {
        return Err(Reason::Unfit);
    }
    if !account.models.is_empty() && !account.models.iter().any(|p| model_matches(p, ask.model)) {
        return Err(Reason::NotAllowed);
    }
    state(account, now)?;
    if let Some(block) = account.health.model_block(ask.model, now) {
        return Err(Reason::Model {
            until: block.until,
            missing: block.missing,
        });
    }
    // Counting tokens spends nothing, and clients send dozens of them at once.
    let counted = ask.surface != Surface::CountTokens;
    if counted && account.max_in_flight > 0 && account.in_flight >= account.max_in_flight {
        return Err(Reason::Busy);
    }
    Ok(())
}

/// Of several spent windows the one that resets last decides: until then none of it helps.
fn spent(account: &Account, now: Timestamp) -> Result<(), Reason> {
    let full = |w: &&Window| w.used_at(now) >= w.cap(account.caps);
    let last = account.quota.ordinary().filter(full).max_by_key(|w| {
        // An unknown reset may be the furthest away.
        w.resets_at.unwrap_or(Timestamp(i64::MAX))
    });
    match last {
        None => Ok(()),
        Some(w) if w.used_at(now) == Fraction::ONE => Err(Reason::Exhausted { until: w.resets_at }),
        Some(w) => Err(Reason::Capped { until: w.resets_at }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::{FIVE_HOURS, Limit, Reading, Source, WEEK};

    pub const NOW: Timestamp = Timestamp(1_000_000_000);

    pub fn later(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    pub fn account(id: i64) -> Account {
        Account {
            id: AccountId(id),
            kind: Kind::Codex,
            speaks: Speaks::default(),
            priority: 0,
            weight: 1.0,
            caps: Caps::default(),
            models: vec![],
            max_in_flight: 0,
            paused: false,
            has_credential: true,
            quota: Quota::default(),
            health: Health::default(),
            in_flight: 0,
        }
    }

    /// An account with shares used of the 5-hour and weekly windows, which reset in 1 h and 24 h.
    pub fn used(id: i64, five_hour: f64, weekly: f64) -> Account {
        let window = |length, percent, resets_at| Reading {
            limit: Limit::Ordinary,
            length,
            used: Fraction::from_percent(percent),
            resets_at: Some(resets_at),
        };
        let mut account = account(id);
        let readings = [
            window(FIVE_HOURS, five_hour, later(3600)),
            window(WEEK, weekly, later(86_400)),
        ];
        account.quota.merge(&readings, Source::Poll, NOW);
        account
    }

    const ASK: Ask<'static> = Ask {
        surface: Surface::Responses,
        model: "gpt-5.5",
    };

    fn with(change: impl FnOnce(&mut Account)) -> Account {
        let mut account = account(1);
        change(&mut account);
        account
    }

    #[test]
    fn says_no_for_one_reason_at_a_time() {
        let cases = [
            ("nothing known", account(1), Ok(())),
            ("plenty left", used(1, 10.0, 20.0), Ok(())),
            (
                "wrong kind",
                with(|a| a.kind = Kind::Claude),
                Err(Reason::Unfit),
            ),
            ("paused", with(|a| a.paused = true), Err(Reason::Paused)),
            (
                "no credential",
                with(|a| a.has_credential = false),
                Err(Reason::Unavailable),
            ),
            (
                "other models",
                with(|a| a.models = vec!["o*".into()]),
                Err(Reason::NotAllowed),
            ),
            (
                "this model",
                with(|a| a.models = vec!["gpt-*".into()]),
                Ok(()),
            ),
            (
                "stopped",
                with(|a| a.health.stop = Some(Stop::Deactivated)),
                Err(Reason::Stopped(Stop::Deactivated)),
            ),
            (
                "cooling",
                with(|a| a.health.block(Cause::Rate, later(9), NOW)),
                Err(Reason::Cooling {
                    cause: Cause::Rate,
                    until: later(9),
                }),
            ),
            (
                "cooled",
                with(|a| {
                    a.health
                        .block(Cause::Rate, NOW, NOW.minus(Duration::from_secs(5)));
                }),
                Ok(()),
            ),
            (
                "model cooling",
                with(|a| a.health.model_missing("gpt-5.5", NOW)),
                Err(Reason::Model {
                    until: later(1800),
                    missing: true,
                }),
            ),
            (
                "other model cooling",
                with(|a| a.health.model_missing("gpt-6", NOW)),
                Ok(()),
            ),
            (
                "errors",
                with(|a| (0..3).for_each(|_| a.health.error(NOW))),
                Err(Reason::Backoff { until: later(30) }),
            ),
            (
                "spent for the week",
                used(1, 20.0, 100.0),
                Err(Reason::Exhausted {
                    until: Some(later(86_400)),
                }),
            ),
            (
                "capped",
                used(1, 99.5, 20.0),
                Err(Reason::Capped {
                    until: Some(later(3600)),
                }),
            ),
            (
                "both spent: the later reset counts",
                used(1, 100.0, 100.0),
                Err(Reason::Exhausted {
                    until: Some(later(86_400)),
                }),
            ),
            (
                "full",
                with(|a| {
                    a.max_in_flight = 2;
                    a.in_flight = 2;
                }),
                Err(Reason::Busy),
            ),
        ];
        for (name, account, want) in cases {
            assert_eq!(availability(&account, ASK, NOW), want, "{name}");
        }
    }

    #[test]
    fn a_reset_frees_the_window_by_itself() {
        let account = used(1, 100.0, 10.0);
        assert!(availability(&account, ASK, later(3599)).is_err());
        assert_eq!(availability(&account, ASK, later(3600)), Ok(()));
    }
}
