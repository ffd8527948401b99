//! Claude: `GET /api/oauth/usage`, `GET /api/oauth/profile`.
//!
//! Shapes as other gateways read them (sing-box CCM, 2026-03): a window is `utilization` and `resets_at`
//! in RFC 3339 or null. `utilization` is a *percent* here, though a fraction in the headers. A profile
//! is `account` (`uuid`, `email`) and `organization` (`uuid`, `organization_type` like `claude_max`, `rate_limit_tier`).

use std::time::Duration;

use jiff::Timestamp as Instant;
use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};
use serde_json::Value;

use super::{Credits, Profile, Usage, number, words};

/// What these endpoints take a sign-in by (G; Claude Code's model calls with a sign-in carry it, O).
pub const OAUTH_BETA: &str = "oauth-2025-04-20";

/// Weekly limits of one family of models, like `seven_day_opus`.
const FAMILY: &str = "seven_day_";

pub fn usage(body: &[u8]) -> Option<Usage> {
    let root: Value = serde_json::from_slice(body).ok()?;
    let windows = root.as_object()?;
    if !windows.contains_key("five_hour") && !windows.contains_key("seven_day") {
        return None;
    }
    let of = |(name, told): (&String, &Value)| {
        let (limit, length) = match name.as_str() {
            "five_hour" => (Limit::Ordinary, FIVE_HOURS),
            "seven_day" => (Limit::Ordinary, WEEK),
            family if family.starts_with(FAMILY) => (Limit::Named(family.to_owned()), WEEK),
            _ => return None,
        };
        reading(limit, length, told)
    };
    Some(Usage {
        readings: windows.iter().filter_map(of).collect(),
        plan: None,
        credits: credits(&root["extra_usage"]),
        // A family without a row is not one without a limit: headers know others.
        limits: None,
    })
}

/// `None`: this is no profile.
pub fn profile(body: &[u8]) -> Option<Profile> {
    let root: Value = serde_json::from_slice(body).ok()?;
    let (account, organization) = (root.get("account")?, root.get("organization")?);
    let plan = words(&organization["organization_type"]);
    let plan = plan.and_then(|name| Some(name.strip_prefix("claude_")?.to_owned()));
    let tier = words(&organization["rate_limit_tier"]);
    Some(Profile {
        plan: plan.map(|plan| match tier {
            Some(tier) => format!("{plan}/{tier}"),
            None => plan,
        }),
        account_uuid: words(&account["uuid"]),
        email: words(&account["email"]),
        organization_uuid: words(&organization["uuid"]),
    })
}

fn reading(limit: Limit, length: Duration, told: &Value) -> Option<Reading> {
    let used = number(&told["utilization"]).and_then(Fraction::from_percent);
    let at = told["resets_at"].as_str().and_then(|text| text.parse::<Instant>().ok());
    let resets_at = at.and_then(|at| Timestamp::from_unix_seconds(at.as_second()));
    (used.is_some() || resets_at.is_some()).then_some(Reading { limit, length, used, resets_at })
}

fn credits(told: &Value) -> Option<Credits> {
    Some(Credits {
        has_credits: told["is_enabled"].as_bool()?,
        unlimited: told["monthly_limit"].is_null(),
        balance: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, u64, Option<f64>, Option<i64>);

    fn rows(body: &str) -> Vec<(String, u64, Option<f64>, Option<i64>)> {
        let row = |r: &Reading| {
            let name = match &r.limit {
                Limit::Ordinary => String::new(),
                Limit::Named(name) => name.clone(),
            };
            let reset = r.resets_at.map(Timestamp::unix_seconds);
            (name, r.length.as_secs() / 3600, r.used.map(Fraction::percent), reset)
        };
        usage(body.as_bytes()).expect("a usage answer").readings.iter().map(row).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn reads_what_is_there() {
        let at = 1_795_313_303;
        let cases: [(&str, &str, &[Row]); 7] = [
            ("both windows",
                r#"{"five_hour":{"utilization":12.0,"resets_at":"2026-11-22T02:08:23+00:00"},"seven_day":{"utilization":34,"resets_at":null}}"#,
                &[("", 5, Some(12.0), Some(at)), ("", 168, Some(34.0), None)]),
            ("sub2api C1: one is one percent",
                r#"{"five_hour":{"utilization":1,"resets_at":null}}"#, &[("", 5, Some(1.0), None)]),
            ("a fraction of a second",
                r#"{"five_hour":{"utilization":0.5,"resets_at":"2026-11-22T02:08:23.999Z"}}"#, &[("", 5, Some(0.5), Some(at))]),
            ("a family of models",
                r#"{"five_hour":null,"seven_day_opus":{"utilization":80,"resets_at":null},"seven_day_oauth_apps":null}"#,
                &[("seven_day_opus", 168, Some(80.0), None)]),
            ("malformed parts",
                r#"{"five_hour":{"utilization":"x","resets_at":"2026-11-22T02:08:23Z"},"seven_day":{"utilization":7,"resets_at":"soon"}}"#,
                &[("", 5, None, Some(at)), ("", 168, Some(7.0), None)]),
            ("missing parts", r#"{"five_hour":{},"seven_day":7}"#, &[]),
            ("other members", r#"{"five_hour":{"utilization":3},"iguana":{"utilization":9}}"#, &[("", 5, Some(3.0), None)]),
        ];
        for (name, body, want) in cases {
            let want: Vec<_> = want.iter().map(|r| (r.0.to_owned(), r.1, r.2, r.3)).collect();
            assert_eq!(rows(body), want, "{name}");
        }
        for body in ["", "{", "[]", "{}", r#"{"error":{"type":"authentication_error"}}"#] {
            assert_eq!(usage(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn reads_a_profile() {
        let known = |plan: Option<&str>, uuid: Option<&str>| {
            let [plan, account_uuid] = [plan, uuid].map(|text| text.map(str::to_owned));
            Some(Profile { plan, account_uuid, ..Profile::default() })
        };
        let all = r#"{"account":{"uuid":"u-1","email":"a@b"},"organization":{"uuid":"o-1"}}"#;
        let whose = profile(all.as_bytes()).map(|told| (told.email, told.organization_uuid));
        assert_eq!(whose, Some((Some("a@b".into()), Some("o-1".into()))));
        let cases = [
            (r#"{"account":{"uuid":"u-1"},"organization":{"organization_type":"claude_max","rate_limit_tier":"default_claude_max_5x"}}"#,
             known(Some("max/default_claude_max_5x"), Some("u-1"))),
            (r#"{"account":{"uuid":"u-1"},"organization":{"organization_type":"claude_pro","rate_limit_tier":null}}"#, known(Some("pro"), Some("u-1"))),
            (r#"{"account":{},"organization":{"organization_type":"api","rate_limit_tier":"x"}}"#, known(None, None)),
            (r#"{"account":{"uuid":7},"organization":{}}"#, known(None, None)),
            (r#"{"error":{"type":"authentication_error"}}"#, None),
            ("<html>", None),
        ];
        for (body, want) in cases {
            assert_eq!(profile(body.as_bytes()), want, "{body}");
        }
    }

    #[test]
    fn reads_extra_usage() {
        let credits = |extra: &str| {
            let body = format!(r#"{{"five_hour":null,"extra_usage":{extra}}}"#);
            usage(body.as_bytes()).expect("a usage answer").credits
        };
        let want = |has_credits, unlimited| Some(Credits { has_credits, unlimited, balance: None });
        let limited = r#"{"is_enabled":true,"monthly_limit":50,"used_credits":3}"#;
        assert_eq!(credits(limited), want(true, false));
        assert_eq!(credits(r#"{"is_enabled":false,"monthly_limit":null}"#), want(false, true));
        assert_eq!(credits("null"), None);
    }
}
