//! The endpoints on which a subscription tells about itself: usage, accounts, profile.
//!
//! Shapes as Codex CLI 0.169.0 and other gateways read them (2026-11).

use serde_json::{Value, json};

use crate::account::Inner;
use crate::clock::rfc3339;
use crate::quota::Reading;

pub fn wham(account: &Inner, plan: &str, readings: &[Reading]) -> Value {
    let window = |index: usize| {
        readings.get(index).map(|reading| {
            json!({
                "used_percent": reading.percent().floor(),
                "limit_window_seconds": reading.length.as_secs(),
                "reset_after_seconds": reading.resets_in_seconds,
                "reset_at": reading.resets_at,
            })
        })
    };
    let reached = readings.iter().any(Reading::is_spent);
    let mut body = json!({
        "user_id": account.identity.user_id,
        "account_id": account.identity.account_id,
        "email": account.identity.email,
        "plan_type": plan,
        "rate_limit": {
            "allowed": !reached,
            "limit_reached": reached,
            "primary_window": window(0),
            "secondary_window": window(1),
        },
        "code_review_rate_limit": null,
        "additional_rate_limits": null,
        "credits": {
            "has_credits": false,
            "unlimited": false,
            "balance": null,
            "approx_local_messages": null,
            "approx_cloud_messages": null,
        },
        "spend_control": null,
        "promo": null,
    });
    // An integer on this endpoint, unlike in the headers.
    for name in ["primary_window", "secondary_window"] {
        let used = &mut body["rate_limit"][name];
        if let Some(percent) = used["used_percent"].as_f64() {
            used["used_percent"] = whole(percent);
        }
    }
    body
}

#[expect(clippy::cast_possible_truncation, reason = "a floored percentage, 0 to 100")]
fn whole(percent: f64) -> Value {
    json!(percent as i64)
}

pub fn accounts_check(account: &Inner, plan: &str) -> Value {
    let id = &account.identity;
    json!({
        "accounts": [{
            "id": id.account_id,
            "account_user_id": format!("{}__{}", id.user_id, id.account_id),
            "name": id.name,
            "plan_type": plan,
            "structure": "personal",
            "is_deactivated": false,
            "profile_picture_url": null,
            "workspace_backend_origin": "NO_CONSTRAINT",
            "account_routing_override": "NO_CONSTRAINT",
        }],
        "default_account_id": id.account_id,
        "account_ordering": [id.account_id],
    })
}

/// `utilization` is a percentage here, unlike in the headers.
pub fn claude(readings: &[Reading]) -> Value {
    let window = |index: usize| {
        readings.get(index).map(|reading| {
            let resets_at = rfc3339(reading.resets_at * 1000);
            json!({"utilization": reading.percent(), "resets_at": resets_at})
        })
    };
    json!({
        "five_hour": window(0),
        "seven_day": window(1),
        "seven_day_oauth_apps": null,
        "seven_day_opus": null,
        "extra_usage": {"is_enabled": false, "monthly_limit": null, "used_credits": null},
    })
}

pub fn profile(account: &Inner, plan: &str) -> Value {
    let id = &account.identity;
    json!({
        "account": {
            "uuid": id.account_id,
            "full_name": id.name,
            "display_name": id.name,
            "email": id.email,
            "has_claude_max": plan == "max",
            "has_claude_pro": plan == "pro",
        },
        "organization": {
            "uuid": id.organization_id,
            "name": format!("{}'s organization", id.name),
            "organization_type": format!("claude_{plan}"),
            "billing_type": "stripe_subscription",
            "rate_limit_tier": account.tier(),
        },
    })
}
