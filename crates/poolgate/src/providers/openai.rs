//! Codex's limit headers.
//!
//! `x-codex-{primary,secondary}-{used-percent,window-minutes,reset-at}`, and the same under
//! `x-codex-<name>-…` for additional limits (as Codex CLI 0.169.0 reads them,
//! 2026-11). Percent are 0–100 and mean *used*. Each header counts on its own: a malformed
//! one is as good as absent. A window with 0 percent, no length and no reset is no window.

use std::time::Duration;

use http::HeaderMap;
use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};

use super::number;

const USED: &str = "-used-percent";

pub fn readings(headers: &HeaderMap, now: Timestamp) -> Vec<Reading> {
    let mut readings = Vec::new();
    for name in headers.keys() {
        let Some(window) = name.as_str().strip_suffix(USED) else {
            continue;
        };
        let Some(window_name) = window.strip_prefix("x-") else {
            continue;
        };
        let (limit, default_length) = match window_name.strip_suffix("-primary") {
            Some(limit) => (limit, FIVE_HOURS),
            None => match window_name.strip_suffix("-secondary") {
                Some(limit) => (limit, WEEK),
                None => continue,
            },
        };
        let used = number::<f64>(headers, name.as_str()).and_then(Fraction::from_percent);
        let minutes = number::<u64>(headers, &format!("{window}-window-minutes"));
        let resets_at = number(headers, &format!("{window}-reset-at"))
            .and_then(Timestamp::from_unix_seconds)
            .or_else(|| {
                let seconds: i64 = number(headers, &format!("{window}-reset-after-seconds"))?;
                Some(now.plus(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
            });
        if minutes.is_none() && resets_at.is_none() && used.is_none_or(|u| u == Fraction::ZERO) {
            continue;
        }
        readings.push(Reading {
            limit: if limit == "codex" {
                Limit::Ordinary
            } else {
                Limit::Named(limit.replace('-', "_"))
            },
            length: minutes.filter(|m| *m > 0).map_or(default_length, Duration::from_mins),
            used,
            resets_at,
        });
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn read(
        headers: &[(&'static str, &'static str)],
    ) -> Vec<(Limit, u64, Option<f64>, Option<i64>)> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        let mut readings: Vec<_> = readings(&headers, NOW)
            .into_iter()
            .map(|r| {
                let reset = r.resets_at.map(Timestamp::unix_seconds);
                (r.limit, r.length.as_secs() / 60, r.used.map(Fraction::percent), reset)
            })
            .collect();
        readings.sort_by_key(|r| (r.0.clone(), r.1));
        readings
    }

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
    fn reads_what_is_there() {
        let reset = ("x-codex-primary-reset-at", "1795312935");
        let cases: [(&str, &[(&str, &str)], Vec<_>); 6] = [
            (
                "by position without a length",
                &[("x-codex-primary-used-percent", "7.5"), reset],
                vec![(Limit::Ordinary, 300, Some(7.5), Some(1_795_312_935))],
            ),
            (
                "seconds from now",
                &[
                    ("x-codex-secondary-used-percent", "3"),
                    ("x-codex-secondary-reset-after-seconds", "60"),
                ],
                vec![(Limit::Ordinary, 10_080, Some(3.0), Some(1_795_300_060))],
            ),
            (
                "another limit",
                &[
                    ("x-codex-bengalfox-primary-used-percent", "9"),
                    ("x-codex-bengalfox-primary-window-minutes", "300"),
                ],
                vec![(Limit::Named("codex_bengalfox".into()), 300, Some(9.0), None)],
            ),
            (
                "nonsense is absence",
                &[("x-codex-primary-used-percent", "many"), reset],
                vec![(Limit::Ordinary, 300, None, Some(1_795_312_935))],
            ),
            ("no window", &[("x-codex-primary-used-percent", "0")], vec![]),
            ("other headers", &[("x-codex-turn-state", "1"), ("x-used-percent", "4")], vec![]),
        ];
        for (name, headers, want) in cases {
            let headers: Vec<(&'static str, &'static str)> = headers
                .iter()
                .map(|(n, v)| (&*n.to_string().leak(), &*v.to_string().leak()))
                .collect();
            assert_eq!(read(&headers), want, "{name}");
        }
    }
}
