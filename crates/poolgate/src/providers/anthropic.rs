//! Anthropic's unified limit headers.
//!
//! `anthropic-ratelimit-unified-{5h,7d,7d_oi}-{utilization,reset,status}`: utilization is a fraction
//! 0–1, reset Unix seconds (as Claude Code 2.1.330 reads them, 2026-11). `7d_oi` is a limit of
//! one model family, never the account's own.

use std::time::Duration;

use http::HeaderMap;
use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};

use super::{number, text};

const WINDOWS: [(&str, Duration, Option<&str>); 3] =
    [("5h", FIVE_HOURS, None), ("7d", WEEK, None), ("7d_oi", WEEK, Some("7d_oi"))];

pub fn readings(headers: &HeaderMap) -> Vec<Reading> {
    let of = |(window, length, named): &(&str, Duration, Option<&str>)| {
        let name = |part: &str| format!("anthropic-ratelimit-unified-{window}-{part}");
        let rejected = text(headers, &name("status")) == Some("rejected");
        let used = number(headers, &name("utilization"))
            .and_then(Fraction::from_share)
            // A refusal without a number still says that the window is spent.
            .or(rejected.then_some(Fraction::ONE));
        let resets_at = number::<i64>(headers, &name("reset"))
            .filter(|seconds| *seconds > 0)
            .and_then(Timestamp::from_unix_seconds);
        (used.is_some() || resets_at.is_some()).then(|| Reading {
            limit: named.map_or(Limit::Ordinary, |name| Limit::Named(name.to_owned())),
            length: *length,
            used,
            resets_at,
        })
    };
    WINDOWS.iter().filter_map(of).collect()
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
    fn fractions_are_fractions() {
        let at = 1_795_313_303;
        let cases: [(&str, &[(&str, &str)], Vec<_>); 5] = [
            (
                "both windows",
                &[("5h-utilization", "0.12"), ("5h-reset", "1795313303"), ("7d-utilization", "1")],
                vec![
                    (Limit::Ordinary, 5, Some(12.0), Some(at)),
                    (Limit::Ordinary, 168, Some(100.0), None),
                ],
            ),
            (
                "a model family's limit is not the account's",
                &[("7d_oi-utilization", "0.5")],
                vec![(Limit::Named("7d_oi".into()), 168, Some(50.0), None)],
            ),
            (
                "rejected",
                &[("5h-status", "rejected")],
                vec![(Limit::Ordinary, 5, Some(100.0), None)],
            ),
            ("malformed", &[("5h-utilization", "x"), ("5h-reset", "-3")], vec![]),
            ("nothing", &[("status", "allowed")], vec![]),
        ];
        for (name, headers, want) in cases {
            assert_eq!(read(headers), want, "{name}");
        }
    }
}
