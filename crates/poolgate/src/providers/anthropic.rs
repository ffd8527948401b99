//! Anthropic's unified limit headers.
//!
//! `anthropic-ratelimit-unified-{5h,7d,7d_oi}-{utilization,reset,status}`: utilization is a fraction
//! 0–1, reset Unix seconds (as Claude Code 2.1.330 reads them, 2026-11), or milliseconds (as sub2api
//! 0.1.179 has met them). `7d_oi` is a limit of one model family, never the account's own.
//!
//! A refusal may leave out the windows and name only its claim and one reset for all; then the claimed
//! window is spent until that. A claim may be a model family's (`seven_day_opus`), which has no window in
//! headers at all.

use std::time::Duration;

use http::HeaderMap;
use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};

use super::{number, text};

struct Name {
    header: &'static str,
    /// In `representative-claim`.
    claim: &'static str,
    length: Duration,
    /// A model family's own.
    named: Option<&'static str>,
}

const WINDOWS: [Name; 3] = [
    Name { header: "5h", claim: "five_hour", length: FIVE_HOURS, named: None },
    Name { header: "7d", claim: "seven_day", length: WEEK, named: None },
    Name {
        header: "7d_oi",
        claim: "seven_day_overage_included",
        length: WEEK,
        named: Some("7d_oi"),
    },
];

/// No reset in seconds is as large, and no reset in milliseconds as small.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

pub fn readings(headers: &HeaderMap) -> Vec<Reading> {
    let mut readings: Vec<Reading> =
        WINDOWS.iter().filter_map(|name| of_window(headers, name)).collect();
    let spent = |r: &Reading| r.used == Some(Fraction::ONE);
    if !readings.iter().any(spent)
        && let Some(claimed) = claimed(headers)
    {
        readings.retain(|r| (&r.limit, r.length) != (&claimed.limit, claimed.length));
        readings.push(claimed);
    }
    readings
}

fn of_window(headers: &HeaderMap, name: &Name) -> Option<Reading> {
    let header = |part: &str| format!("anthropic-ratelimit-unified-{}-{part}", name.header);
    let rejected = text(headers, &header("status")) == Some("rejected");
    let told = number(headers, &header("utilization")).and_then(Fraction::from_share);
    // A refusal says that the window is spent, with a number that was rounded down or without any.
    let used = if rejected { Some(Fraction::ONE) } else { told };
    let resets_at = reset(headers, &header("reset"));
    (used.is_some() || resets_at.is_some()).then(|| name.reading(used, resets_at))
}

/// The window that a refusal says it is about, with the reset it names for the whole.
fn claimed(headers: &HeaderMap) -> Option<Reading> {
    let of_all = |part: &str| format!("anthropic-ratelimit-unified-{part}");
    if text(headers, &of_all("status")) != Some("rejected") {
        return None;
    }
    let claim = text(headers, &of_all("representative-claim"))?;
    let of_all_at = || reset(headers, &of_all("reset"));
    let Some(name) = WINDOWS.iter().find(|name| name.claim == claim || name.header == claim) else {
        let limit = Limit::Named(family(claim)?.to_owned());
        let (used, resets_at) = (Some(Fraction::ONE), Some(of_all_at()?));
        return Some(Reading { limit, length: WEEK, used, resets_at });
    };
    let own = reset(headers, &of_all(&format!("{}-reset", name.header)));
    let resets_at = own.or_else(of_all_at)?;
    Some(name.reading(Some(Fraction::ONE), Some(resets_at)))
}

/// The limit of a model family that a refusal says is spent: of whichever model was refused.
pub fn active_limit(headers: &HeaderMap) -> Option<String> {
    match claimed(headers)?.limit {
        Limit::Named(name) => Some(name),
        Limit::Ordinary => None,
    }
}

/// The claim of a model family's limit, which is also its name in usage answers.
fn family(claim: &str) -> Option<&str> {
    claim.strip_prefix("seven_day_").filter(|family| !family.is_empty()).and(Some(claim))
}

impl Name {
    fn reading(&self, used: Option<Fraction>, resets_at: Option<Timestamp>) -> Reading {
        let limit = self.named.map_or(Limit::Ordinary, |name| Limit::Named(name.to_owned()));
        Reading { limit, length: self.length, used, resets_at }
    }
}

fn reset(headers: &HeaderMap, name: &str) -> Option<Timestamp> {
    let told = number::<i64>(headers, name).filter(|told| *told > 0)?;
    Timestamp::from_unix_seconds(if told > MILLISECONDS_FROM { told / 1000 } else { told })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Vec<(Limit, u64, Option<f64>, Option<i64>)> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name = format!("anthropic-ratelimit-unified-{name}");
                (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())
            })
            .collect();
        let reading = |r: Reading| {
            let reset = r.resets_at.map(Timestamp::unix_seconds);
            (r.limit, r.length.as_secs() / 3600, r.used.map(Fraction::percent), reset)
        };
        readings(&headers).into_iter().map(reading).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn fractions_are_fractions() {
        let at = 1_795_313_303;
        let own = |hours, used, reset| (Limit::Ordinary, hours, used, reset);
        let family = |used, reset| (Limit::Named("7d_oi".into()), 168, used, reset);
        let cases: [(&str, &[(&str, &str)], Vec<_>); 18] = [
            ("both windows",
                &[("5h-utilization", "0.12"), ("5h-reset", "1795313303"), ("7d-utilization", "1")],
                vec![own(5, Some(12.0), Some(at)), own(168, Some(100.0), None)]),
            ("0.01 is one percent", &[("5h-utilization", "0.01")], vec![own(5, Some(1.0), None)]),
            ("a model family's limit is not the account's", &[("7d_oi-utilization", "0.5")], vec![family(Some(50.0), None)]),
            ("its threshold is a number, not a verdict", &[("7d_oi-surpassed-threshold", "0.9")], vec![]),
            ("sub2api R7: rejected",
                &[("5h-status", "rejected"), ("5h-reset", "1795313303")], vec![own(5, Some(100.0), Some(at))]),
            ("rejected, and less than all",
                &[("5h-status", "rejected"), ("5h-utilization", "0.99"), ("7d-status", "allowed"), ("7d-utilization", "0.5")],
                vec![own(5, Some(100.0), None), own(168, Some(50.0), None)]),
            ("sub2api R8: both rejected",
                &[("5h-status", "rejected"), ("7d-status", "rejected")], vec![own(5, Some(100.0), None), own(168, Some(100.0), None)]),
            ("sub2api R9: a family's, rejected", &[("7d_oi-status", "rejected")], vec![family(Some(100.0), None)]),
            ("sub2api R11: milliseconds", &[("5h-reset", "1795313303000")], vec![own(5, None, Some(at))]),
            ("sub2api R12: allowed", &[("5h-status", "allowed"), ("5h-utilization", "0.02")], vec![own(5, Some(2.0), None)]),
            ("only a claim and a reset for all",
                &[("status", "rejected"), ("representative-claim", "seven_day"), ("reset", "1795313303")],
                vec![own(168, Some(100.0), Some(at))]),
            ("a claim beside a window that says less",
                &[("status", "rejected"), ("representative-claim", "5h"), ("5h-utilization", "0.99"), ("5h-reset", "1795313303")],
                vec![own(5, Some(100.0), Some(at))]),
            ("a claim without a refusal",
                &[("status", "allowed_warning"), ("representative-claim", "five_hour"), ("reset", "1795313303")], vec![]),
            ("multiplexer 18.2 #24: a refusal without claim or reset", &[("status", "rejected")], vec![]),
            ("multiplexer 18.2 #24: malformed", &[("5h-utilization", "x"), ("5h-reset", "-3")], vec![]),
            ("a claim of a model family", &[("status", "rejected"), ("representative-claim", "seven_day_opus"), ("reset", "1795313303"), ("7d-utilization", "0.4")],
                vec![own(168, Some(40.0), None), (Limit::Named("seven_day_opus".into()), 168, Some(100.0), Some(at))]),
            ("of none", &[("status", "rejected"), ("representative-claim", "seven_day_"), ("reset", "1795313303")], vec![]),
            ("nothing", &[("status", "allowed")], vec![]),
        ];
        for (name, headers, want) in cases {
            assert_eq!(read(headers), want, "{name}");
        }
    }
}
