//! Codex: `GET {base}/wham/usage` (or `/api/codex/usage`), and the event `codex.rate_limits`.
//!
//! Shapes as Codex CLI 0.169.0 reads them (2026-11); `additional_rate_limits` as codex-lb 1.24 does.
//! Percent are 0–100 and mean *used*, integers in the answer, decimals in the event.

use std::time::Duration;

use poolgate_core::quota::{Limit, Reading};
use poolgate_core::units::Timestamp;
use serde_json::Value;

use super::{Credits, Usage, number, whole, words};
use crate::providers::pair::{Half, pair};

pub fn usage(body: &[u8], now: Timestamp) -> Option<Usage> {
    let root: Value = serde_json::from_slice(body).ok()?;
    let known = ["rate_limit", "plan_type", "additional_rate_limits"];
    if !known.iter().any(|name| root.get(name).is_some()) {
        return None;
    }
    let mut usage = Usage {
        readings: windows(&Limit::Ordinary, &root["rate_limit"], now),
        plan: words(&root["plan_type"]),
        credits: credits(&root["credits"]),
        limits: None,
    };
    if let Some(rows) = root["additional_rate_limits"].as_array() {
        let mut names = Vec::new();
        for row in rows {
            // The feature is what limit headers are named after; the other is for people.
            let Some(name) = words(&row["metered_feature"]).or_else(|| words(&row["limit_name"]))
            else {
                continue;
            };
            let limit = Limit::Named(name.clone());
            usage.readings.extend(windows(&limit, &row["rate_limit"], now));
            names.push(name);
        }
        usage.limits = Some(names);
    }
    Some(usage)
}

/// The windows in the data of a `codex.rate_limits` event.
pub fn event(data: &[u8], now: Timestamp) -> Vec<Reading> {
    let Ok(root) = serde_json::from_slice::<Value>(data) else {
        return Vec::new();
    };
    let name = words(&root["metered_limit_name"]).or_else(|| words(&root["limit_name"]));
    let limit = name.filter(|name| name != "codex").map_or(Limit::Ordinary, Limit::Named);
    let limits = &root["rate_limits"];
    pair(&limit, event_half(&limits["primary"]), event_half(&limits["secondary"]), now)
}

fn windows(limit: &Limit, told: &Value, now: Timestamp) -> Vec<Reading> {
    pair(limit, answer_half(&told["primary_window"]), answer_half(&told["secondary_window"]), now)
}

fn answer_half(window: &Value) -> Option<Half> {
    half(window, whole(&window["limit_window_seconds"]).map(seconds))
}

fn event_half(window: &Value) -> Option<Half> {
    half(window, whole(&window["window_minutes"]).map(|minutes| seconds(minutes) * 60))
}

fn half(window: &Value, length: Option<Duration>) -> Option<Half> {
    window.is_object().then(|| Half {
        used_percent: number(&window["used_percent"]),
        length,
        resets_at: whole(&window["reset_at"]),
        resets_in: whole(&window["reset_after_seconds"]),
    })
}

/// Clamped to what a window may be: nothing to ten years.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(10 * 366 * 86_400))
}

fn credits(told: &Value) -> Option<Credits> {
    let balance = &told["balance"];
    Some(Credits {
        has_credits: told["has_credits"].as_bool()?,
        unlimited: told["unlimited"].as_bool()?,
        balance: words(balance).or_else(|| number(balance).map(|amount| amount.to_string())),
    })
}

#[cfg(test)]
mod tests {
    use poolgate_core::units::Fraction;

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    type Row = (Option<&'static str>, u64, Option<f64>, Option<i64>);

    fn rows(readings: &[Reading]) -> Vec<(Option<String>, u64, Option<f64>, Option<i64>)> {
        let row = |r: &Reading| {
            let name = match &r.limit {
                Limit::Ordinary => None,
                Limit::Named(name) => Some(name.clone()),
            };
            let reset = r.resets_at.map(Timestamp::unix_seconds);
            (name, r.length.as_secs() / 60, r.used.map(Fraction::percent), reset)
        };
        readings.iter().map(row).collect()
    }

    fn owned(rows: &[Row]) -> Vec<(Option<String>, u64, Option<f64>, Option<i64>)> {
        rows.iter().map(|r| (r.0.map(str::to_owned), r.1, r.2, r.3)).collect()
    }

    /// As captured from Codex CLI 0.169.0's own call, ids left out (2026-11).
    const ANSWER: &str = r#"{"plan_type":"plus","account_id":"x","email":"y",
        "rate_limit":{"allowed":true,"limit_reached":false,
            "primary_window":{"used_percent":12,"limit_window_seconds":18000,"reset_after_seconds":8990,"reset_at":1795312935},
            "secondary_window":{"used_percent":34,"limit_window_seconds":604800,"reset_after_seconds":400000,"reset_at":1795703935}},
        "credits":{"has_credits":false,"unlimited":false,"balance":null},"additional_rate_limits":null}"#;

    #[test]
    fn reads_a_whole_answer() {
        let got = usage(ANSWER.as_bytes(), NOW).expect("a usage answer");
        let want: [Row; 2] = [
            (None, 300, Some(12.0), Some(1_795_312_935)),
            (None, 10_080, Some(34.0), Some(1_795_703_935)),
        ];
        assert_eq!(rows(&got.readings), owned(&want));
        assert_eq!((got.plan.as_deref(), got.limits), (Some("plus"), None));
        let credits = Credits { has_credits: false, unlimited: false, balance: None };
        assert_eq!(got.credits, Some(credits));
    }

    #[test]
    #[rustfmt::skip]
    fn each_part_counts_on_its_own() {
        let cases: [(&str, &str, &[Row]); 9] = [
            ("sub2api C1: one percent used is one percent",
                r#"{"rate_limit":{"primary_window":{"used_percent":2,"limit_window_seconds":604800},"secondary_window":{"used_percent":1,"limit_window_seconds":18000}}}"#,
                &[(None, 10_080, Some(2.0), None), (None, 300, Some(1.0), None)]),
            ("a weekly window alone, first",
                r#"{"rate_limit":{"primary_window":{"used_percent":7,"limit_window_seconds":604800},"secondary_window":null}}"#,
                &[(None, 10_080, Some(7.0), None)]),
            ("codex-lb 3.1: a monthly one",
                r#"{"rate_limit":{"primary_window":{"used_percent":7,"limit_window_seconds":2592000}}}"#,
                &[(None, 43_200, Some(7.0), None)]),
            ("a reset from now",
                r#"{"rate_limit":{"primary_window":{"used_percent":7,"limit_window_seconds":18000,"reset_after_seconds":60}}}"#,
                &[(None, 300, Some(7.0), Some(1_795_300_060))]),
            ("numbers as text",
                r#"{"rate_limit":{"primary_window":{"used_percent":"7.5","limit_window_seconds":"18000","reset_at":"1795312935"}}}"#,
                &[(None, 300, Some(7.5), Some(1_795_312_935))]),
            ("a share that is none",
                r#"{"rate_limit":{"primary_window":{"used_percent":[],"limit_window_seconds":18000,"reset_at":1795312935}}}"#,
                &[(None, 300, None, Some(1_795_312_935))]),
            ("a reset that is none",
                r#"{"rate_limit":{"primary_window":{"used_percent":7,"limit_window_seconds":18000,"reset_at":"soon"}}}"#,
                &[(None, 300, Some(7.0), None)]),
            ("a length that is none",
                r#"{"rate_limit":{"primary_window":{"used_percent":7,"limit_window_seconds":-1}}}"#,
                &[(None, 300, Some(7.0), None)]),
            ("no windows", r#"{"rate_limit":null,"plan_type":"free"}"#, &[]),
        ];
        for (name, body, want) in cases {
            let got = usage(body.as_bytes(), NOW).expect(name);
            assert_eq!(rows(&got.readings), owned(want), "{name}");
        }
    }

    #[test]
    fn what_is_no_usage_answer_is_none() {
        for body in
            ["", "<html>", "[]", "null", "{}", r#"{"detail":"Unauthorized"}"#, r#"{"rate_limit":"#]
        {
            assert_eq!(usage(body.as_bytes(), NOW), None, "{body}");
        }
    }

    /// codex-lb F14, F15.
    #[test]
    fn additional_limits_are_listed_or_not_spoken_of() {
        let listed = |list: &str| {
            let body = format!(r#"{{"plan_type":"pro","additional_rate_limits":{list}}}"#);
            let usage = usage(body.as_bytes(), NOW).expect("a usage answer");
            (usage.limits, rows(&usage.readings))
        };
        let row = |name: &str, used: u32| {
            format!(
                r#"{{{name},"rate_limit":{{"primary_window":{{"used_percent":{used},"limit_window_seconds":18000}}}}}}"#
            )
        };
        assert_eq!(listed("null"), (None, vec![]), "codex-lb F15: not spoken of");
        assert_eq!(listed("[]"), (Some(vec![]), vec![]), "codex-lb F15: none any more");
        let both = [
            row(r#""limit_name":"GPT-5.3-Codex-Spark","metered_feature":"codex_bengalfox""#, 9),
            row(r#""limit_name":"codex_other""#, 30),
            row(r#""limit_name":"  ""#, 50),
        ];
        let (limits, readings) = listed(&format!("[{}]", both.join(",")));
        assert_eq!(limits, Some(vec!["codex_bengalfox".to_owned(), "codex_other".to_owned()]));
        let want: [Row; 2] = [
            (Some("codex_bengalfox"), 300, Some(9.0), None),
            (Some("codex_other"), 300, Some(30.0), None),
        ];
        assert_eq!(readings, owned(&want));
    }

    #[test]
    #[rustfmt::skip]
    fn reads_the_event() {
        // As sent to Codex CLI 0.169.0 and understood by it (2026-11).
        let full = r#"{"type":"codex.rate_limits","plan_type":"plus","rate_limits":{"allowed":true,"limit_reached":false,
            "primary":{"used_percent":12.5,"window_minutes":300,"reset_at":1795312935},
            "secondary":{"used_percent":34.0,"window_minutes":10080,"reset_at":1795703935}},
            "credits":{"has_credits":false,"unlimited":false,"balance":null}}"#;
        let cases: [(&str, &str, &[Row]); 6] = [
            ("whole", full, &[(None, 300, Some(12.5), Some(1_795_312_935)), (None, 10_080, Some(34.0), Some(1_795_703_935))]),
            ("another limit", r#"{"metered_limit_name":"codex_bengalfox","rate_limits":{"primary":{"used_percent":3,"window_minutes":300}}}"#,
                &[(Some("codex_bengalfox"), 300, Some(3.0), None)]),
            ("the ordinary one by name", r#"{"limit_name":"codex","rate_limits":{"primary":{"used_percent":3,"window_minutes":300}}}"#,
                &[(None, 300, Some(3.0), None)]),
            ("swapped", r#"{"rate_limits":{"primary":{"used_percent":3,"window_minutes":10080},"secondary":{"used_percent":1,"window_minutes":300}}}"#,
                &[(None, 10_080, Some(3.0), None), (None, 300, Some(1.0), None)]),
            ("no windows", r#"{"type":"codex.rate_limits","rate_limits":null}"#, &[]),
            ("broken", "{", &[]),
        ];
        for (name, data, want) in cases {
            assert_eq!(rows(&event(data.as_bytes(), NOW)), owned(want), "{name}");
        }
    }
}
