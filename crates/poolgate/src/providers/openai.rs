//! Codex's limit headers.
//!
//! `x-codex-{primary,secondary}-{used-percent,window-minutes,reset-at}`, and the same under
//! `x-codex-<name>-…` for additional limits (as Codex CLI 0.169.0 reads them,
//! 2026-11). Percent are 0–100 and mean *used*. Each header counts on its own: a malformed
//! one is as good as absent. How a pair of them becomes windows is in `pair`.

use std::time::Duration;

use http::HeaderMap;
use poolgate_core::quota::{Limit, Reading};
use poolgate_core::units::Timestamp;

use super::pair::{Half, pair};
use super::{Credits, number, text};

const USED: &str = "-used-percent";

pub fn readings(headers: &HeaderMap, now: Timestamp) -> Vec<Reading> {
    let mut limits: Vec<&str> = headers.keys().filter_map(|name| limit_of(name.as_str())).collect();
    limits.sort_unstable();
    limits.dedup();
    limits.into_iter().flat_map(|limit| of_limit(headers, limit, now)).collect()
}

/// `x-<limit>-primary-used-percent` → `<limit>`. A window exists only when this header does.
fn limit_of(name: &str) -> Option<&str> {
    let window = name.strip_suffix(USED)?.strip_prefix("x-")?;
    window.strip_suffix("-primary").or_else(|| window.strip_suffix("-secondary"))
}

fn of_limit(headers: &HeaderMap, limit: &str, now: Timestamp) -> Vec<Reading> {
    let half = |position: &str| {
        let name = |part: &str| format!("x-{limit}-{position}{part}");
        headers.contains_key(name(USED)).then(|| Half {
            used_percent: number(headers, &name(USED)),
            length: number(headers, &name("-window-minutes")).and_then(minutes),
            resets_at: number(headers, &name("-reset-at")),
            resets_in: number(headers, &name("-reset-after-seconds")),
        })
    };
    pair(&named(limit), half("primary"), half("secondary"), now)
}

/// No window is longer than a year: what says so is malformed.
fn minutes(count: u64) -> Option<Duration> {
    (count <= 366 * 24 * 60).then(|| Duration::from_mins(count))
}

fn named(limit: &str) -> Limit {
    if limit == "codex" { Limit::Ordinary } else { Limit::Named(limit.replace('-', "_")) }
}

/// The additional limit that a refusal says is spent; `None`: the ordinary one, or none named.
pub fn active_limit(headers: &HeaderMap) -> Option<String> {
    let name = text(headers, "x-codex-active-limit")?.to_ascii_lowercase().replace('_', "-");
    match named(&name) {
        Limit::Named(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// Both flags are needed (Codex CLI 0.169.0 reads them so, 2026-11).
pub fn credits(headers: &HeaderMap) -> Option<Credits> {
    let flag = |name: &str| match text(headers, name)?.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    };
    let balance = text(headers, "x-codex-credits-balance").filter(|text| !text.is_empty());
    Some(Credits {
        has_credits: flag("x-codex-credits-has-credits")?,
        unlimited: flag("x-codex-credits-unlimited")?,
        balance: balance.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use poolgate_core::units::Fraction;

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| {
                (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())
            })
            .collect()
    }

    fn read(headers: &[(&str, &str)]) -> Vec<(Limit, u64, Option<f64>, Option<i64>)> {
        let mut readings: Vec<_> = readings(&map(headers), NOW)
            .into_iter()
            .map(|r| {
                let reset = r.resets_at.map(Timestamp::unix_seconds);
                (r.limit, r.length.as_secs() / 60, r.used.map(Fraction::percent), reset)
            })
            .collect();
        readings.sort_by_key(|r| (r.0.clone(), r.1));
        readings
    }

    /// sub2api C1.
    #[test]
    fn a_fresh_account_that_reports_one_percent_is_one_percent_used() {
        let swapped = [
            ("x-codex-primary-used-percent", "2"),
            ("x-codex-primary-window-minutes", "10080"),
            ("x-codex-secondary-used-percent", "1"),
            ("x-codex-secondary-window-minutes", "300"),
        ];
        let want =
            [(Limit::Ordinary, 300, Some(1.0), None), (Limit::Ordinary, 10_080, Some(2.0), None)];
        assert_eq!(read(&swapped), want);
    }

    #[test]
    #[rustfmt::skip]
    fn reads_what_is_there() {
        type Row = (Limit, u64, Option<f64>, Option<i64>);
        let five = |used, reset| (Limit::Ordinary, 300, used, reset);
        let week = |used, reset| (Limit::Ordinary, 10_080, used, reset);
        let other = |name: &str, minutes, used| (Limit::Named(name.into()), minutes, used, None);
        let cases: [(&str, &[(&str, &str)], Vec<Row>); 12] = [
            ("a length beyond all time is none",
                &[("x-codex-primary-used-percent", "10"), ("x-codex-primary-window-minutes", "400000000000000000")],
                vec![five(Some(10.0), None)]),
            ("sub2api C2: in order",
                &[("x-codex-primary-used-percent", "10"), ("x-codex-primary-window-minutes", "300"),
                  ("x-codex-secondary-used-percent", "40"), ("x-codex-secondary-window-minutes", "10080")],
                vec![five(Some(10.0), None), week(Some(40.0), None)]),
            ("sub2api C3: swapped, with resets from now",
                &[("x-codex-primary-used-percent", "88"), ("x-codex-primary-window-minutes", "10080"), ("x-codex-primary-reset-after-seconds", "86400"),
                  ("x-codex-secondary-used-percent", "12"), ("x-codex-secondary-window-minutes", "300"), ("x-codex-secondary-reset-after-seconds", "3600")],
                vec![five(Some(12.0), Some(1_795_303_600)), week(Some(88.0), Some(1_795_386_400))]),
            ("sub2api C5: only a secondary one",
                &[("x-codex-secondary-used-percent", "5"), ("x-codex-secondary-window-minutes", "10080")],
                vec![week(Some(5.0), None)]),
            ("sub2api C6: only a primary one",
                &[("x-codex-primary-used-percent", "5"), ("x-codex-primary-window-minutes", "300")],
                vec![five(Some(5.0), None)]),
            ("sub2api C7: a reset in the past is now",
                &[("x-codex-secondary-used-percent", "5"), ("x-codex-secondary-reset-after-seconds", "-15")],
                vec![week(Some(5.0), Some(1_795_300_000))]),
            ("sub2api C8: nonsense is absence",
                &[("x-codex-primary-used-percent", "abc"), ("x-codex-primary-window-minutes", "300")],
                vec![five(None, None)]),
            ("sub2api C9: no such headers",
                &[("x-codex-turn-state", "1"), ("x-used-percent", "4")], vec![]),
            ("a monthly one",
                &[("x-codex-primary-used-percent", "5"), ("x-codex-primary-window-minutes", "43200")],
                vec![(Limit::Ordinary, 43_200, Some(5.0), None)]),
            ("an absolute reset wins",
                &[("x-codex-primary-used-percent", "7.5"), ("x-codex-primary-reset-at", "1795312935"), ("x-codex-primary-reset-after-seconds", "5")],
                vec![five(Some(7.5), Some(1_795_312_935))]),
            ("another limit",
                &[("x-codex-bengalfox-primary-used-percent", "9"), ("x-codex-bengalfox-primary-window-minutes", "300"), ("x-codex-bengalfox-limit-name", "Spark")],
                vec![other("codex_bengalfox", 300, Some(9.0))]),
            ("no window", &[("x-codex-primary-used-percent", "0")], vec![]),
        ];
        for (name, headers, want) in cases {
            assert_eq!(read(headers), want, "{name}");
        }
    }

    #[test]
    fn reads_the_limit_that_is_named() {
        let cases = [
            ("codex", None),
            ("", None),
            (" Codex_Bengalfox ", Some("codex_bengalfox")),
            ("codex-other", Some("codex_other")),
        ];
        for (value, want) in cases {
            let got = active_limit(&map(&[("x-codex-active-limit", value)]));
            assert_eq!(got.as_deref(), want, "{value}");
        }
        assert_eq!(active_limit(&HeaderMap::new()), None);
    }

    #[test]
    fn reads_credits_only_with_both_flags() {
        let has = ("x-codex-credits-has-credits", "True");
        let unlimited = ("x-codex-credits-unlimited", "0");
        let empty = ("x-codex-credits-balance", "");
        let balance = ("x-codex-credits-balance", "12.50");
        let credits = |balance: Option<&str>| Credits {
            has_credits: true,
            unlimited: false,
            balance: balance.map(str::to_owned),
        };
        let cases = [
            (vec![has, unlimited, balance], Some(credits(Some("12.50")))),
            (vec![has, unlimited, empty], Some(credits(None))),
            (vec![has, balance], None),
            (vec![unlimited], None),
            (vec![has, ("x-codex-credits-unlimited", "maybe")], None),
        ];
        for (headers, want) in cases {
            assert_eq!(super::credits(&map(&headers)), want, "{headers:?}");
        }
    }
}
