//! The two kinds of 429: try again soon, and a spent quota.

use serde_json::json;

use super::{Words, json_reply, refuse, words};
use crate::account::Inner;
use crate::clock::ceil_seconds;
use crate::headers;
use crate::kind::{Dialect, Kind};
use crate::quota::{Reading, blocking};
use crate::server::Reply;

/// The short kind of 429, which says nothing about the quota.
pub fn rate_limited(dialect: Dialect, id: &str, retry_after_s: u64) -> Reply {
    let message = &format!("Rate limit reached. Please try again in {retry_after_s}s.");
    let openai = ("rate_limit_exceeded", "rate_limit_exceeded");
    let mut reply = refuse(dialect, 429, id, &words(dialect, "rate_limit_error", openai, message));
    headers::number(&mut reply.headers, "retry-after", retry_after_s.cast_signed());
    reply
}

/// 429 of a spent quota. `readings` say so already, if there are any.
pub fn usage_limit(account: &Inner, plan: &str, id: &str, readings: &[Reading]) -> Reply {
    let reset = blocking(readings);
    let resets_in = reset.map_or(3600, |reading| reading.resets_in_seconds);
    match account.kind {
        Kind::Codex => {
            let resets_at = reset.map(|reading| reading.resets_at);
            json_reply(
                429,
                &json!({"error": {
                    "type": "usage_limit_reached",
                    "message": "The usage limit has been reached",
                    "plan_type": plan,
                    "resets_at": resets_at,
                    "resets_in_seconds": resets_in,
                }}),
            )
        }
        Kind::Claude | Kind::Anthropic => {
            let message =
                "This request would exceed your account's rate limit. Please try again later.";
            let words = Words { kind: "rate_limit_error", code: None, message };
            let mut reply = refuse(Dialect::Anthropic, 429, id, &words);
            headers::number(&mut reply.headers, "retry-after", resets_in);
            headers::fixed(&mut reply.headers, "x-should-retry", "true");
            reply
        }
        Kind::Openai => {
            let message =
                &format!("Rate limit reached for requests. Please try again in {resets_in}s.");
            let words = Words { kind: "requests", code: Some("rate_limit_exceeded"), message };
            let mut reply = refuse(Dialect::Platform, 429, id, &words);
            headers::number(&mut reply.headers, "retry-after", resets_in);
            reply
        }
    }
}

/// Makes the window that blocks a spent one, for a refusal that was scripted.
pub fn spend(readings: &mut [Reading], now: i64, resets_in_s: Option<u64>) {
    let Some(length) = blocking(readings).map(|reading| reading.length) else {
        return;
    };
    for reading in readings.iter_mut().filter(|reading| reading.length == length) {
        reading.used = 1.0;
        if let Some(seconds) = resets_in_s {
            reading.resets_in_seconds = seconds.cast_signed();
            reading.resets_at = ceil_seconds(now) + seconds.cast_signed();
        }
    }
}
