//! Can this account take this request, now? The only place that says no.
//!
//! The answer is derived each time from what is known; nothing stores it. Reasons carry the time
//! they end, where that is known, since the earliest of them becomes the client's `Retry-After`.

use crate::account::{AccountId, Caps, Kind, Speaks, Surface, model_matches};
use crate::gate::{Gate, REST_AFTER_QUOTA_ERROR};
use crate::health::{Block, Cause, Health, Stop};
use crate::quota::{Quota, STALE_AFTER, Window};
use crate::units::{Fraction, Timestamp};

/// An account as the decisions see it.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub kind: Kind,
    pub speaks: Speaks,
    pub priority: i32,
    /// In the provider's words; `None`: unknown.
    pub plan: Option<String>,
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
    /// A request is finding out how the account is; until then, or until it is back, others do not
    /// try.
    pub probing_until: Option<Timestamp>,
}

/// What a request asks of an account.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub surface: Surface,
    pub model: &'a str,
    /// The additional limit that governs the model, if any.
    pub gate: Option<&'a Gate>,
}

/// How an account that may serve should be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Ready,
    /// Its windows say no, but what they say is stale: one request may find out.
    Probe,
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
    /// Another request is finding out whether its stale snapshot still holds.
    Probing {
        until: Timestamp,
    },
}

impl Reason {
    /// When it ends by itself. `None`: unknown, or a person must act.
    pub fn until(self) -> Option<Timestamp> {
        match self {
            Self::Model { until, .. }
            | Self::Cooling { until, .. }
            | Self::Backoff { until }
            | Self::Probing { until } => Some(until),
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
                | Self::Cooling { cause: Cause::Quota, .. }
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
            Self::Exhausted { .. } | Self::Cooling { cause: Cause::Quota | Cause::Rate, .. } => {
                "limited"
            }
            Self::Capped { .. } => "capped",
            Self::Cooling { .. } => "cooling",
            Self::Backoff { .. } => "backoff",
            Self::Busy => "busy",
            Self::Probing { .. } => "probing",
        }
    }
}

/// What keeps the account from ordinary work, whatever the request.
pub fn state(account: &Account, now: Timestamp) -> Result<Fit, Reason> {
    trouble(account, None, now)?;
    spent(account, now)
}

/// May it serve `ask` now?
pub fn availability(account: &Account, ask: Ask<'_>, now: Timestamp) -> Result<Fit, Reason> {
    if !account.kind.serves(ask.surface, account.speaks) {
        return Err(Reason::Unfit);
    }
    if !account.models.is_empty() && !account.models.iter().any(|p| model_matches(p, ask.model)) {
        return Err(Reason::NotAllowed);
    }
    let gate = ask.gate.filter(|gate| gate.governs(account.plan.as_deref()));
    trouble(account, gate, now)?;
    if let Some(block) = account.health.model_block(ask.model, now) {
        return Err(Reason::Model { until: block.until, missing: block.missing });
    }
    let fit = match gate {
        Some(gate) => gated(account, gate, now)?,
        None => spent(account, now)?,
    };
    // Counting tokens spends nothing, and clients send dozens of them at once.
    let counted = ask.surface != Surface::CountTokens;
    if counted && account.max_in_flight > 0 && account.in_flight >= account.max_in_flight {
        return Err(Reason::Busy);
    }
    Ok(fit)
}

/// Everything but quota windows.
fn trouble(account: &Account, gate: Option<&Gate>, now: Timestamp) -> Result<(), Reason> {
    if account.paused {
        return Err(Reason::Paused);
    }
    if let Some(stop) = account.health.stop {
        return Err(Reason::Stopped(stop));
    }
    if !account.has_credential {
        return Err(Reason::Unavailable);
    }
    if let Some(Block { cause, since, until }) = account.health.block
        && now < until
    {
        let ordinary_quota = cause == Cause::Quota && now >= since.plus(REST_AFTER_QUOTA_ERROR);
        if gate.is_none() || !ordinary_quota {
            return Err(Reason::Cooling { cause, until });
        }
    }
    match account.health.backoff_until() {
        Some(until) if now < until => Err(Reason::Backoff { until }),
        _ => Ok(()),
    }
}

/// Only a fresh row of the gated limit that is spent excludes; a missing one does not.
fn gated(account: &Account, gate: &Gate, now: Timestamp) -> Result<Fit, Reason> {
    let spent = |w: &&Window| w.used_at(now) == Fraction::ONE && w.resets_at.is_some();
    match gate.windows(account, now).filter(spent).max_by_key(|w| w.resets_at) {
        Some(w) => Err(Reason::Exhausted { until: w.resets_at }),
        None => Ok(Fit::Ready),
    }
}

/// Of several spent windows the one that resets last decides: until then none of it helps.
///
/// A snapshot two hours old no longer pauses the account. Whoever is being served keeps its snapshot
/// fresh, so only an account that was left alone gets there, and one wrong number would otherwise
/// leave it alone until its reset.
fn spent(account: &Account, now: Timestamp) -> Result<Fit, Reason> {
    let full = |w: &&Window| w.used_at(now) >= w.cap(account.caps);
    let fresh = |w: &&Window| now < w.observed_at.plus(STALE_AFTER);
    // An unknown reset may be the furthest away.
    let last = |w: &&Window| w.resets_at.unwrap_or(Timestamp(i64::MAX));
    if let Some(w) = account.quota.ordinary().filter(full).filter(fresh).max_by_key(last) {
        return Err(if w.used_at(now) == Fraction::ONE {
            Reason::Exhausted { until: w.resets_at }
        } else {
            Reason::Capped { until: w.resets_at }
        });
    }
    if account.quota.ordinary().find(full).is_none() {
        return Ok(Fit::Ready);
    }
    match account.probing_until {
        Some(until) if now < until => Err(Reason::Probing { until }),
        _ => Ok(Fit::Probe),
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
            plan: None,
            weight: 1.0,
            caps: Caps::default(),
            models: vec![],
            max_in_flight: 0,
            paused: false,
            has_credential: true,
            quota: Quota::default(),
            health: Health::default(),
            in_flight: 0,
            probing_until: None,
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
        let readings =
            [window(FIVE_HOURS, five_hour, later(3600)), window(WEEK, weekly, later(86_400))];
        account.quota.merge(&readings, Source::Poll, NOW);
        account
    }

    const ASK: Ask<'static> = Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None };

    fn with(change: impl FnOnce(&mut Account)) -> Account {
        let mut account = account(1);
        change(&mut account);
        account
    }

    #[test]
    fn says_no_for_one_reason_at_a_time() {
        let cases = [
            ("nothing known", account(1), Ok(Fit::Ready)),
            ("plenty left", used(1, 10.0, 20.0), Ok(Fit::Ready)),
            ("wrong kind", with(|a| a.kind = Kind::Claude), Err(Reason::Unfit)),
            ("paused", with(|a| a.paused = true), Err(Reason::Paused)),
            ("no credential", with(|a| a.has_credential = false), Err(Reason::Unavailable)),
            ("other models", with(|a| a.models = vec!["o*".into()]), Err(Reason::NotAllowed)),
            ("this model", with(|a| a.models = vec!["gpt-*".into()]), Ok(Fit::Ready)),
            (
                "stopped",
                with(|a| a.health.stop = Some(Stop::Deactivated)),
                Err(Reason::Stopped(Stop::Deactivated)),
            ),
            (
                "cooling",
                with(|a| a.health.block(Cause::Rate, later(9), NOW)),
                Err(Reason::Cooling { cause: Cause::Rate, until: later(9) }),
            ),
            (
                "cooled",
                with(|a| {
                    a.health.block(Cause::Rate, NOW, NOW.minus(Duration::from_secs(5)));
                }),
                Ok(Fit::Ready),
            ),
            (
                "model cooling",
                with(|a| a.health.model_missing("gpt-5.5", NOW)),
                Err(Reason::Model { until: later(1800), missing: true }),
            ),
            ("other model cooling", with(|a| a.health.model_missing("gpt-6", NOW)), Ok(Fit::Ready)),
            (
                "errors",
                with(|a| (0..3).for_each(|_| a.health.error(NOW))),
                Err(Reason::Backoff { until: later(30) }),
            ),
            (
                "spent for the week",
                used(1, 20.0, 100.0),
                Err(Reason::Exhausted { until: Some(later(86_400)) }),
            ),
            ("capped", used(1, 99.5, 20.0), Err(Reason::Capped { until: Some(later(3600)) })),
            (
                "both spent: the later reset counts",
                used(1, 100.0, 100.0),
                Err(Reason::Exhausted { until: Some(later(86_400)) }),
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
        assert_eq!(availability(&account, ASK, later(3600)), Ok(Fit::Ready));
    }

    /// sub2api P10–P15, P17, P19.
    #[test]
    fn a_stale_snapshot_lets_one_request_find_out() {
        let hours = |n| NOW.plus(Duration::from_hours(n));
        let mut poisoned = account(1);
        let reading = Reading {
            limit: Limit::Ordinary,
            length: WEEK,
            used: Fraction::from_percent(99.0),
            resets_at: Some(hours(100)),
        };
        poisoned.quota.merge(std::slice::from_ref(&reading), Source::Answer, NOW);
        let capped = Err(Reason::Capped { until: Some(hours(100)) });
        let just_before = hours(2).minus(Duration::from_millis(1));
        assert_eq!(availability(&poisoned, ASK, just_before), capped, "fresh: paused");
        assert_eq!(availability(&poisoned, ASK, hours(2)), Ok(Fit::Probe), "exactly 2 h is stale");
        poisoned.probing_until = Some(hours(3));
        let probing = Err(Reason::Probing { until: hours(3) });
        assert_eq!(availability(&poisoned, ASK, hours(2)), probing, "one at a time");
        assert_eq!(availability(&poisoned, ASK, hours(3)), Ok(Fit::Probe), "the lease ends");
        let mut served = poisoned.clone();
        served.quota.merge(std::slice::from_ref(&reading), Source::Answer, hours(3));
        assert_eq!(availability(&served, ASK, hours(3)), capped, "still so: paused again");
        let healed = Reading { used: Fraction::from_percent(5.0), ..reading };
        poisoned.quota.merge(&[healed], Source::Poll, hours(3));
        assert_eq!(availability(&poisoned, ASK, hours(3)), Ok(Fit::Ready), "healed");
    }

    /// codex-lb F1–F6, Q1–Q6, Q14.
    #[test]
    fn gated_models_are_judged_by_their_own_limit() {
        let gate = crate::gate::spark();
        let ask = Ask { model: "gpt-5.3-codex-spark", gate: Some(&gate), ..ASK };
        let spent_for_the_week = || used(1, 20.0, 100.0);
        let row = |mut account: Account, percent: f64, at: Timestamp| {
            let reading = Reading {
                limit: Limit::Named("codex_bengalfox".into()),
                length: FIVE_HOURS,
                used: Fraction::from_percent(percent),
                resets_at: Some(later(9000)),
            };
            account.quota.merge(&[reading], Source::Poll, at);
            account
        };
        let with = |mut account: Account, change: fn(&mut Account)| {
            change(&mut account);
            account
        };
        let blocked = |cause: Cause| {
            let mut account = row(account(1), 10.0, NOW);
            account.health.block(cause, later(5000), NOW);
            account
        };
        let after_rest = later(120);
        assert_eq!(
            availability(&row(spent_for_the_week(), 10.0, NOW), ask, NOW),
            Ok(Fit::Ready),
            "F1"
        );
        assert!(availability(&row(spent_for_the_week(), 10.0, NOW), ASK, NOW).is_err(), "F2");
        let paused = with(row(account(1), 10.0, NOW), |a| a.paused = true);
        assert_eq!(availability(&paused, ask, NOW), Err(Reason::Paused), "F3");
        let rate = blocked(Cause::Rate);
        assert!(availability(&rate, ask, after_rest).is_err(), "F4");
        let quota = blocked(Cause::Quota);
        assert!(availability(&quota, ask, later(119)).is_err(), "F5: resting");
        assert_eq!(availability(&quota, ask, after_rest), Ok(Fit::Ready), "F5: rested");
        assert!(availability(&quota, ASK, after_rest).is_err(), "F5: ordinary requests wait");
        let failing = with(quota, |a| (0..3).for_each(|_| a.health.error(later(120))));
        assert!(availability(&failing, ask, after_rest).is_err(), "F6");
        let until = Some(later(9000));
        let spent = row(account(1), 100.0, NOW);
        assert_eq!(availability(&spent, ask, NOW), Err(Reason::Exhausted { until }), "Q14");
        assert_eq!(availability(&spent, ASK, NOW), Ok(Fit::Ready), "Q12: nothing ordinary");
        let old = row(account(1), 100.0, NOW.minus(Duration::from_hours(3)));
        assert_eq!(availability(&old, ask, NOW), Ok(Fit::Ready), "only a fresh row excludes");
        let exempt = with(row(spent_for_the_week(), 10.0, NOW), |a| a.plan = Some("plus".into()));
        assert!(
            availability(&exempt, ask, NOW).is_err(),
            "Q10: exempt plans follow the ordinary rules"
        );
    }
}
