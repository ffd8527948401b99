//! Which resets bear on a refusal: those of the windows that the refused request spends.
//!
//! An ordinary request spends the ordinary windows, a gated one the windows of its own limit. Beside
//! them stand limits of one family of models: when only such a limit is spent, the model is limited
//! and not the account. Which models an additional limit governs is known from the table of gated
//! models, or from the refusal, which may name the limit; Claude's `7d_oi` names no models at all, so
//! it is taken to be about whichever model was refused.

use std::time::Duration;

use crate::account::Kind;
use crate::availability::{Account, Ask};
use crate::quota::{Limit, Window};
use crate::units::{Fraction, Timestamp};

/// A snapshot older than this does not say that a window is spent now.
const FRESH: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    /// Of the account's own windows that are spent, the furthest one, by readings under ten minutes
    /// old.
    pub spent_until: Option<Timestamp>,
    /// The same of a limit that governs this model.
    pub family_spent_until: Option<Timestamp>,
    /// The nearest one ahead, of any window that the request spends.
    pub nearest: Option<Timestamp>,
}

/// `active`: the additional limit that the refusal itself names.
pub fn resets(account: &Account, ask: Ask<'_>, active: Option<&str>, now: Timestamp) -> Resets {
    let spent = |w: &&Window| w.used_at(now) == Fraction::ONE && now <= w.observed_at.plus(FRESH);
    let ahead = |w: &Window| w.resets_at.filter(|at| *at > now);
    let gate = ask.gate.filter(|gate| gate.governs(account.plan.as_deref()));
    if let Some(gate) = gate {
        let own = || gate.windows(account, now);
        return Resets {
            spent_until: None,
            family_spent_until: own().filter(spent).filter_map(ahead).max(),
            nearest: own().filter_map(ahead).min(),
        };
    }
    let family = |w: &&Window| match &w.limit {
        Limit::Ordinary => false,
        Limit::Named(name) => active == Some(name) || is_about(account.kind, name, ask.model),
    };
    let windows = || account.quota.windows().iter();
    Resets {
        spent_until: account.quota.ordinary().filter(spent).filter_map(ahead).max(),
        family_spent_until: windows().filter(family).filter(spent).filter_map(ahead).max(),
        nearest: account.quota.ordinary().filter_map(ahead).min(),
    }
}

/// Something newer than `since` is known of the limits that govern the model, and none of it says that
/// they are spent: good evidence ends a limit early, whatever was said of it before. A limit that its
/// refusal named, and that no table and no name tells of, cannot be looked up here.
pub fn is_left_since(account: &Account, ask: Ask<'_>, since: Timestamp, now: Timestamp) -> bool {
    let gate = ask.gate.filter(|gate| gate.governs(account.plan.as_deref()));
    let governs = |w: &&Window| match (&w.limit, gate) {
        (Limit::Ordinary, _) => false,
        (Limit::Named(name), Some(gate)) => gate.is_named(name),
        (Limit::Named(name), None) => is_about(account.kind, name, ask.model),
    };
    let newer = |w: &&Window| since < w.observed_at;
    let mut seen = account.quota.windows().iter().filter(governs).filter(newer).peekable();
    seen.peek().is_some() && seen.all(|w| w.used_at(now) < Fraction::ONE)
}

/// Claude's weekly limits of a model family carry the family's name, all but one.
fn is_about(kind: Kind, limit: &str, model: &str) -> bool {
    kind == Kind::Claude
        && match limit.strip_prefix("seven_day_") {
            Some(family) => model.contains(family),
            None => limit == "7d_oi",
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Surface;
    use crate::availability::tests::{NOW, account, later};
    use crate::availability::{Reason, availability};
    use crate::gate::{Gate, spark};
    use crate::health::ModelCause;
    use crate::quota::{FIVE_HOURS, Reading, Source, WEEK};

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn window(limit: &str, length: Duration, percent: f64, reset_in: u64) -> Reading {
        let named = || Limit::Named(limit.to_owned());
        Reading {
            limit: if limit.is_empty() { Limit::Ordinary } else { named() },
            length,
            used: Fraction::from_percent(percent),
            resets_at: Some(later(reset_in)),
        }
    }

    fn ask<'a>(model: &'a str, gate: Option<&'a Gate>) -> Ask<'a> {
        Ask { surface: Surface::Responses, model, gate }
    }

    fn found(own: Option<u64>, family: Option<u64>, nearest: Option<u64>) -> Resets {
        Resets {
            spent_until: own.map(later),
            family_spent_until: family.map(later),
            nearest: nearest.map(later),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn the_spent_window_that_resets_last_counts() {
        let five = |percent| window("", FIVE_HOURS, percent, HOUR);
        let week = |percent| window("", WEEK, percent, 3 * DAY);
        let family = |name, percent| window(name, WEEK, percent, 5 * DAY);
        let cases = [
            ("sub2api R1: the week is spent",       vec![five(3.0), week(100.0)],   Kind::Codex,  found(Some(3 * DAY), None, Some(HOUR))),
            ("sub2api R2: the 5 hours are spent",   vec![five(100.0), week(50.0)],  Kind::Codex,  found(Some(HOUR), None, Some(HOUR))),
            ("sub2api R3: neither is spent",        vec![five(50.0), week(60.0)],   Kind::Codex,  found(None, None, Some(HOUR))),
            ("sub2api R6: nothing is known",        vec![],                         Kind::Codex,  found(None, None, None)),
            ("sub2api R8: both are spent",          vec![five(100.0), week(100.0)], Kind::Claude, found(Some(3 * DAY), None, Some(HOUR))),
            ("sub2api R9: a model family's only",   vec![five(10.0), family("7d_oi", 100.0)], Kind::Claude, found(None, Some(5 * DAY), Some(HOUR))),
            ("a family that the model is of",       vec![family("seven_day_opus", 100.0)],    Kind::Claude, found(None, Some(5 * DAY), None)),
            ("a family that it is not of",          vec![family("seven_day_sonnet", 100.0)],  Kind::Claude, found(None, None, None)),
            ("a limit nobody has named",            vec![five(10.0), family("codex_x", 100.0)], Kind::Codex, found(None, None, Some(HOUR))),
            ("multiplexer 18.2 #29: only the week", vec![week(100.0)],              Kind::Codex,  found(Some(3 * DAY), None, Some(3 * DAY))),
        ];
        for (name, readings, kind, want) in cases {
            let mut account = account(1);
            account.kind = kind;
            account.quota.merge(&readings, Source::Answer, NOW);
            assert_eq!(resets(&account, ask("claude-opus-5", None), None, NOW), want, "{name}");
        }
    }

    #[test]
    fn a_refusal_may_name_the_limit() {
        let mut account = account(1);
        account.quota.merge(&[window("codex_x", WEEK, 100.0, DAY)], Source::Answer, NOW);
        let of = |active| resets(&account, ask("gpt-5.5", None), active, NOW).family_spent_until;
        assert_eq!((of(Some("codex_x")), of(Some("codex_y"))), (Some(later(DAY)), None));
    }

    #[test]
    fn a_gated_request_looks_at_its_own_limit_only() {
        let gate = spark();
        let mut account = account(1);
        let ordinary = window("", WEEK, 100.0, 3 * DAY);
        let own = |percent| window("codex_bengalfox", FIVE_HOURS, percent, HOUR);
        account.quota.merge(&[ordinary, own(40.0)], Source::Answer, NOW);
        let gated = ask("gpt-5.3-codex-spark", Some(&gate));
        assert_eq!(resets(&account, gated, None, NOW), found(None, None, Some(HOUR)));
        account.quota.merge(&[own(100.0)], Source::Answer, NOW);
        assert_eq!(resets(&account, gated, None, NOW), found(None, Some(HOUR), Some(HOUR)));
        account.plan = Some("plus".into());
        let exempt = resets(&account, gated, None, NOW);
        assert_eq!(exempt.spent_until, Some(later(3 * DAY)), "codex-lb Q10");
    }

    /// spec §4: good evidence that is newer ends a limit early.
    #[test]
    #[rustfmt::skip]
    fn a_models_spent_limit_ends_with_what_is_seen_after_it() {
        use Source::{Answer, Poll};
        let gate = spark();
        let opus = Ask { surface: Surface::Messages, ..ask("claude-opus-5", None) };
        let gated = ask("gpt-5.3-codex-spark", Some(&gate));
        // (name, what is asked of whom, what is seen: limit, percent, when, where), whether it stands
        let cases = [
            ("nothing",                   opus,  None, true),
            ("a poll, asked before",      opus,  Some(("seven_day_opus", 5.0, 9, Poll)), true),
            ("a poll, asked after",       opus,  Some(("seven_day_opus", 5.0, 11, Poll)), false),
            ("one that says spent",       opus,  Some(("seven_day_opus", 100.0, 11, Poll)), true),
            ("one about other models",    opus,  Some(("seven_day_sonnet", 5.0, 11, Poll)), true),
            ("headers that lower nothing", opus, Some(("7d_oi", 5.0, 11, Answer)), true),
            ("a gated limit's row",       gated, Some(("codex_bengalfox", 5.0, 11, Poll)), false),
            ("by another of its names",   gated, Some(("codex_spark", 5.0, 11, Answer)), false),
            ("an ordinary row",           gated, Some(("", 5.0, 11, Poll)), true),
        ];
        for (name, ask, seen, stands) in cases {
            let mut account = account(1);
            account.kind = if ask.gate.is_none() { Kind::Claude } else { Kind::Codex };
            account.quota.merge(&[window("7d_oi", WEEK, 100.0, DAY)], Answer, later(1));
            account.health.block_model(ask.model, later(DAY), later(10));
            if let Some((limit, percent, at, source)) = seen {
                account.quota.merge(&[window(limit, WEEK, percent, DAY)], source, later(at));
            }
            let at = later(3 * HOUR);
            assert_eq!(availability(&account, ask, at).is_err(), stands, "{name}");
            account.health.block_model(ask.model, later(HOUR), later(20));
            assert!(availability(&account, ask, at).is_err(), "{name}: said again");
        }
        let mut account = account(1);
        account.kind = Kind::Claude;
        account.quota.merge(&[window("7d_oi", WEEK, 100.0, DAY)], Answer, later(1));
        account.health.block_model(opus.model, later(DAY), later(10));
        account.quota.merge(&[window("7d_oi", WEEK, 1.0, 2 * DAY)], Answer, later(11));
        assert!(availability(&account, opus, later(12)).is_ok(), "its reset has moved");
        account.health.overloaded(opus.model, later(12), later(13));
        let cause = ModelCause::Overload;
        let reason = Reason::Model { cause, until: later(18) };
        assert_eq!(availability(&account, opus, later(14)), Err(reason), "full meanwhile");
        assert!(availability(&account, opus, later(18)).is_ok());
    }

    #[test]
    fn only_a_fresh_snapshot_says_that_a_window_is_spent() {
        let mut account = account(1);
        account.quota.merge(&[window("", WEEK, 100.0, DAY)], Source::Answer, NOW);
        let at = |seconds| resets(&account, ask("m", None), None, later(seconds)).spent_until;
        assert_eq!((at(600), at(601)), (Some(later(DAY)), None), "spec §6: under 10 min old");
        assert_eq!(at(DAY), None, "and only with a reset ahead");
    }
}
