//! A pool's limits in the words of the clients that show them.
//!
//! Codex reads them from headers, from an event on its sockets and from a usage endpoint; Claude Code
//! from headers. All get the pool's figures: one account's never leave the gateway.

use http::{HeaderMap, HeaderValue};
use poolgate_core::limits::{Limits, Share, Standing};
use poolgate_core::units::{Fraction, Timestamp};
use serde_json::{Value, json};

/// Codex needs a plan to show limits at all.
const SOME_PLAN: &str = "plus";

/// As the `ChatGPT` backend sends them; every used percent stands for a window.
pub fn add_codex_headers(headers: &mut HeaderMap, limits: &Limits) {
    const NAMES: [[&str; 3]; 2] = [
        [
            "x-codex-primary-used-percent",
            "x-codex-primary-window-minutes",
            "x-codex-primary-reset-at",
        ],
        [
            "x-codex-secondary-used-percent",
            "x-codex-secondary-window-minutes",
            "x-codex-secondary-reset-at",
        ],
    ];
    let windows = [limits.five_hour, limits.weekly];
    for ([used, minutes, reset], share) in NAMES.into_iter().zip(windows) {
        let Some(share) = share else { continue };
        put(headers, used, &format!("{:.2}", share.used.percent()));
        headers.insert(minutes, HeaderValue::from(share.length.as_secs() / 60));
        if let Some(at) = share.resets_at {
            headers.insert(reset, HeaderValue::from(at.unix_seconds()));
        }
    }
    if let Some(plan) = &limits.plan {
        put(headers, "x-codex-plan-type", plan);
    }
    put(headers, "x-ocm-plan-weight", &limits.weight.to_string());
}

/// As Anthropic sends them to a subscription.
pub fn add_claude_headers(headers: &mut HeaderMap, limits: &Limits, now: Timestamp) {
    const FIVE_HOUR: Claim = Claim {
        name: "five_hour",
        names: [
            "anthropic-ratelimit-unified-5h-status",
            "anthropic-ratelimit-unified-5h-utilization",
            "anthropic-ratelimit-unified-5h-reset",
            "anthropic-ratelimit-unified-5h-surpassed-threshold",
        ],
    };
    const WEEKLY: Claim = Claim {
        name: "seven_day",
        names: [
            "anthropic-ratelimit-unified-7d-status",
            "anthropic-ratelimit-unified-7d-utilization",
            "anthropic-ratelimit-unified-7d-reset",
            "anthropic-ratelimit-unified-7d-surpassed-threshold",
        ],
    };
    let shares = [(FIVE_HOUR, limits.five_hour), (WEEKLY, limits.weekly)];
    let shares = || shares.iter().filter_map(|(claim, share)| Some((claim, (*share)?)));
    for (claim, share) in shares() {
        claim.add(headers, share, now);
    }
    // The one that will hold requests up first; of equals the 5 hours.
    let urgency = |share: &Share| (share.standing(now), share.used, share.resets_at.is_some());
    let Some((claim, share)) = shares().rev().max_by_key(|(_, share)| urgency(share)) else {
        return;
    };
    put(headers, "anthropic-ratelimit-unified-status", word(share.standing(now)));
    put(headers, "anthropic-ratelimit-unified-representative-claim", claim.name);
    if let Some(at) = share.resets_at {
        headers.insert("anthropic-ratelimit-unified-reset", at.unix_seconds().into());
    }
    put(headers, "x-ccm-plan-weight", &limits.weight.to_string());
}

/// A window in Anthropic's words.
#[derive(Clone, Copy)]
struct Claim {
    name: &'static str,
    /// Status, utilization, reset, surpassed threshold.
    names: [&'static str; 4],
}

impl Claim {
    fn add(&self, headers: &mut HeaderMap, share: Share, now: Timestamp) {
        let [status, utilization, reset, surpassed] = self.names;
        let standing = share.standing(now);
        put(headers, status, word(standing));
        put(headers, utilization, &format!("{:.6}", share.used.share()));
        if let Some(at) = share.resets_at {
            headers.insert(reset, at.unix_seconds().into());
        }
        if standing >= Standing::Warning {
            put(headers, surpassed, "true");
        }
    }
}

const fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Allowed => "allowed",
        Standing::Warning => "allowed_warning",
        Standing::Rejected => "rejected",
    }
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A plan is an upstream's text.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The event in which Codex looks for limits on a socket.
pub fn codex_event(limits: &Limits) -> Value {
    let window = |share: Option<Share>| {
        share.map(|share| {
            let mut window = json!({
                "used_percent": share.used.percent(),
                "window_minutes": share.length.as_secs() / 60,
            });
            if let Some(at) = share.resets_at {
                window["reset_at"] = at.unix_seconds().into();
            }
            window
        })
    };
    let spent = limits.spent;
    let mut rate_limits = json!({"allowed": !spent, "limit_reached": spent});
    for (name, share) in [("primary", limits.five_hour), ("secondary", limits.weekly)] {
        if let Some(window) = window(share) {
            rate_limits[name] = window;
        }
    }
    json!({
        "type": "codex.rate_limits",
        "plan_type": limits.plan.as_deref().unwrap_or(SOME_PLAN),
        "rate_limits": rate_limits,
        // Fixed: with another name Codex would show a limit beside its own.
        "limit_name": "codex",
        "plan_weight": limits.weight,
    })
}

/// Codex reads an integer here, where headers and events have decimals. A hundred says that nothing
/// is left, so nothing is rounded up to that.
fn whole_percent(used: Fraction) -> u32 {
    let nearest = (used.ppm() + 5_000) / 10_000;
    if used == Fraction::ONE { nearest } else { nearest.min(99) }
}

/// What Codex's usage endpoint answers. Codex needs a reset there (CLI 0.169.0): of a window whose reset
/// nobody knows it is the latest that can be, as a provider says it of a window that has not begun.
pub fn codex_usage(limits: Option<&Limits>, now: Timestamp) -> Value {
    let window = |share: Share| {
        let resets_at = share.resets_at.unwrap_or_else(|| now.plus(share.length));
        json!({
            "used_percent": whole_percent(share.used),
            "limit_window_seconds": share.length.as_secs(),
            "reset_after_seconds": now.until(resets_at).as_secs(),
            "reset_at": resets_at.unix_seconds(),
        })
    };
    let spent = limits.is_some_and(|limits| limits.spent);
    let rate_limit = limits.map(|limits| {
        json!({
            "allowed": !spent,
            "limit_reached": spent,
            "primary_window": limits.five_hour.map(window),
            "secondary_window": limits.weekly.map(window),
        })
    });
    json!({
        "plan_type": limits.and_then(|limits| limits.plan.as_deref()).unwrap_or(SOME_PLAN),
        "rate_limit": rate_limit,
        "credits": {"has_credits": false, "unlimited": false, "balance": null},
        "additional_rate_limits": null,
    })
}

/// Our own words, for people and scripts; null: nothing is known.
pub fn plain(limits: Option<&Limits>) -> Value {
    let window = |share: Share| {
        json!({
            "used_percent": share.used.percent(),
            "window_minutes": share.length.as_secs() / 60,
            "resets_at": share.resets_at.map(Timestamp::unix_seconds),
        })
    };
    limits.map_or(Value::Null, |limits| {
        json!({
            "five_hour": limits.five_hour.map(window),
            "weekly": limits.weekly.map(window),
            "plan_weight": limits.weight,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use poolgate_core::quota::{FIVE_HOURS, WEEK};

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn share(length: Duration, percent: f64, resets_in: Option<u64>) -> Share {
        let resets_at = resets_in.map(|seconds| NOW.plus(Duration::from_secs(seconds)));
        Share { used: Fraction::from_percent(percent).unwrap(), length, resets_at }
    }

    fn limits(five_hour: f64, weekly: f64) -> Limits {
        Limits {
            five_hour: Some(share(FIVE_HOURS, five_hour, Some(60))),
            weekly: Some(share(WEEK, weekly, None)),
            weight: 11.0,
            plan: Some("pro".into()),
            spent: five_hour >= 100.0 || weekly >= 100.0,
        }
    }

    fn shown(headers: &HeaderMap) -> String {
        let mut all: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        all.sort_unstable();
        all.join("\n")
    }

    /// multiplexer 18.5 #54: a reset nobody knows has no header.
    #[test]
    fn multiplexer_18_5_54_codex_headers() {
        let mut headers = HeaderMap::new();
        add_codex_headers(&mut headers, &limits(12.5, 34.0));
        let want = "x-codex-plan-type: pro\n\
                    x-codex-primary-reset-at: 1795300060\n\
                    x-codex-primary-used-percent: 12.50\n\
                    x-codex-primary-window-minutes: 300\n\
                    x-codex-secondary-used-percent: 34.00\n\
                    x-codex-secondary-window-minutes: 10080\n\
                    x-ocm-plan-weight: 11";
        assert_eq!(shown(&headers), want);
    }

    #[test]
    fn claude_headers() {
        let mut headers = HeaderMap::new();
        add_claude_headers(&mut headers, &limits(95.0, 100.0), NOW);
        let want = "anthropic-ratelimit-unified-5h-reset: 1795300060\n\
                    anthropic-ratelimit-unified-5h-status: allowed_warning\n\
                    anthropic-ratelimit-unified-5h-surpassed-threshold: true\n\
                    anthropic-ratelimit-unified-5h-utilization: 0.950000\n\
                    anthropic-ratelimit-unified-7d-status: rejected\n\
                    anthropic-ratelimit-unified-7d-surpassed-threshold: true\n\
                    anthropic-ratelimit-unified-7d-utilization: 1.000000\n\
                    anthropic-ratelimit-unified-representative-claim: seven_day\n\
                    anthropic-ratelimit-unified-status: rejected\n\
                    x-ccm-plan-weight: 11";
        assert_eq!(shown(&headers), want);
        for (five_hour, weekly, want) in
            [(10.0, 5.0, "five_hour"), (5.0, 10.0, "seven_day"), (5.0, 5.0, "five_hour")]
        {
            let mut headers = HeaderMap::new();
            add_claude_headers(&mut headers, &limits(five_hour, weekly), NOW);
            let claim = &headers["anthropic-ratelimit-unified-representative-claim"];
            assert_eq!(claim, want, "{five_hour} and {weekly} percent");
        }
    }

    #[test]
    fn the_event_and_the_usage_answer() {
        assert_eq!(
            codex_event(&limits(12.5, 34.0)),
            json!({"type": "codex.rate_limits", "plan_type": "pro", "limit_name": "codex", "plan_weight": 11.0,
                "rate_limits": {"allowed": true, "limit_reached": false,
                    "primary": {"used_percent": 12.5, "window_minutes": 300, "reset_at": 1_795_300_060},
                    "secondary": {"used_percent": 34.0, "window_minutes": 10080}}})
        );
        let usage = codex_usage(Some(&limits(12.5, 100.0)), NOW);
        assert_eq!(
            usage["rate_limit"],
            json!({"allowed": false, "limit_reached": true,
                "primary_window": {"used_percent": 13, "limit_window_seconds": 18000, "reset_after_seconds": 60, "reset_at": 1_795_300_060},
                "secondary_window": {"used_percent": 100, "limit_window_seconds": 604_800, "reset_after_seconds": 604_800, "reset_at": 1_795_904_800}})
        );
        assert_eq!(codex_usage(None, NOW)["rate_limit"], Value::Null);
    }

    /// wire 3: Codex reads an `i32`, and takes no `13.0` for one.
    #[test]
    fn the_usage_answer_has_whole_percents() {
        for (percent, want) in
            [(0.0, 0), (0.49, 0), (0.5, 1), (12.5, 13), (99.4, 99), (99.99, 99), (100.0, 100)]
        {
            let usage = codex_usage(Some(&limits(percent, 0.0)), NOW);
            let used = &usage["rate_limit"]["primary_window"]["used_percent"];
            assert_eq!(used.as_i64(), Some(want), "{percent}");
        }
    }
}
