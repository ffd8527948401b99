//! Response headers: ids, quota, and the marks of the provider and its edge which a gateway must
//! not pass on.
//!
//! Names and forms as the real clients accept them (captured 2026-11).

use http::header::{CACHE_CONTROL, CONTENT_TYPE, SERVER, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::account::Inner;
use crate::catalogue;
use crate::clock::rfc3339;
use crate::kind::{Dialect, Kind};
use crate::quota::{Reading, blocking};

const DAY_S: u64 = 24 * 3600;

pub fn content_type(headers: &mut HeaderMap, streams: bool) {
    if streams {
        let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(CONTENT_TYPE, events);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
}

/// What every answer of a provider has; `id` is the request's.
pub fn edge(headers: &mut HeaderMap, dialect: Dialect, id: &str) {
    headers.insert(SERVER, HeaderValue::from_static("cloudflare"));
    let ray = format!("{}-FRA", &id[4..20]);
    put(headers, "cf-ray", &ray);
    let cookie = format!("__cf_bm={ray}; path=/; HttpOnly; Secure; SameSite=None");
    headers.insert(SET_COOKIE, text(&cookie));
    put(headers, "x-request-id", id);
    match dialect {
        Dialect::Anthropic => put(headers, "request-id", id),
        Dialect::Codex => put(headers, "x-oai-request-id", id),
        Dialect::Platform => {}
    }
}

/// What an answer to this account has, quota included.
pub fn account(headers: &mut HeaderMap, account: &Inner, plan: &str, readings: &[Reading]) {
    match account.kind {
        Kind::Codex => {
            codex_limits(headers, plan, readings);
            headers.insert("x-models-etag", HeaderValue::from_static(catalogue::ETAG));
            fixed(headers, "x-reasoning-included", "true");
            let turn_state = format!("ts-{}-{}", account.name(), &account.identity.account_id[..8]);
            put(headers, "x-codex-turn-state", &turn_state);
        }
        Kind::Claude => {
            unified(headers, readings);
            put(headers, "anthropic-organization-id", &account.identity.organization_id);
        }
        Kind::Anthropic => {
            key_limits(headers);
            put(headers, "anthropic-organization-id", &account.identity.organization_id);
        }
        Kind::Openai => platform(headers, account),
    }
}

pub fn codex_limits(headers: &mut HeaderMap, plan: &str, readings: &[Reading]) {
    put(headers, "x-codex-plan-type", plan);
    fixed(headers, "x-codex-active-limit", "codex");
    let names = [
        [
            "x-codex-primary-used-percent",
            "x-codex-primary-window-minutes",
            "x-codex-primary-reset-at",
            "x-codex-primary-reset-after-seconds",
        ],
        [
            "x-codex-secondary-used-percent",
            "x-codex-secondary-window-minutes",
            "x-codex-secondary-reset-at",
            "x-codex-secondary-reset-after-seconds",
        ],
    ];
    for ([used, minutes, at, after], reading) in names.into_iter().zip(readings) {
        put(headers, used, &reading.percent().to_string());
        number(headers, minutes, (reading.length.as_secs() / 60).cast_signed());
        number(headers, at, reading.resets_at);
        number(headers, after, reading.resets_in_seconds);
    }
    fixed(headers, "x-codex-credits-has-credits", "False");
    fixed(headers, "x-codex-credits-unlimited", "False");
    fixed(headers, "x-codex-credits-balance", "");
}

/// Anthropic's subscription limits. A window shorter than a day is `5h`, any other `7d`.
pub fn unified(headers: &mut HeaderMap, readings: &[Reading]) {
    for reading in readings {
        let status = status(reading);
        let used = (reading.used * 10_000.0).round() / 10_000.0;
        let [status_name, at, utilization] = if is_short(reading) {
            [
                "anthropic-ratelimit-unified-5h-status",
                "anthropic-ratelimit-unified-5h-reset",
                "anthropic-ratelimit-unified-5h-utilization",
            ]
        } else {
            [
                "anthropic-ratelimit-unified-7d-status",
                "anthropic-ratelimit-unified-7d-reset",
                "anthropic-ratelimit-unified-7d-utilization",
            ]
        };
        fixed(headers, status_name, status);
        number(headers, at, reading.resets_at);
        put(headers, utilization, &used.to_string());
    }
    let fullest = readings.iter().max_by(|a, b| a.used.total_cmp(&b.used)).copied();
    let spent = readings.iter().any(Reading::is_spent);
    if let Some(claim) = if spent { blocking(readings) } else { fullest } {
        fixed(headers, "anthropic-ratelimit-unified-status", status(&claim));
        number(headers, "anthropic-ratelimit-unified-reset", claim.resets_at);
        let name = if is_short(&claim) { "five_hour" } else { "seven_day" };
        fixed(headers, "anthropic-ratelimit-unified-representative-claim", name);
    }
    fixed(headers, "anthropic-ratelimit-unified-fallback-percentage", "0.5");
    fixed(headers, "anthropic-ratelimit-unified-overage-status", "rejected");
    let disabled = "anthropic-ratelimit-unified-overage-disabled-reason";
    fixed(headers, disabled, "org_level_disabled");
}

fn is_short(reading: &Reading) -> bool {
    reading.length.as_secs() < DAY_S
}

fn status(reading: &Reading) -> &'static str {
    match reading.used {
        used if used >= 1.0 => "rejected",
        used if used >= 0.9 => "allowed_warning",
        _ => "allowed",
    }
}

/// Limits of an Anthropic key; they never bind.
fn key_limits(headers: &mut HeaderMap) {
    fixed(headers, "anthropic-ratelimit-requests-limit", "4000");
    fixed(headers, "anthropic-ratelimit-requests-remaining", "3999");
    let reset = rfc3339((crate::answer::CREATED_AT * 1000).cast_signed());
    put(headers, "anthropic-ratelimit-requests-reset", &reset);
    fixed(headers, "anthropic-ratelimit-tokens-limit", "2000000");
    fixed(headers, "anthropic-ratelimit-tokens-remaining", "1999000");
    put(headers, "anthropic-ratelimit-tokens-reset", &reset);
}

fn platform(headers: &mut HeaderMap, account: &Inner) {
    fixed(headers, "openai-version", "2020-10-01");
    put(headers, "openai-organization", &format!("org-{}", account.name()));
    fixed(headers, "openai-processing-ms", "12");
    fixed(headers, "x-ratelimit-limit-requests", "10000");
    fixed(headers, "x-ratelimit-remaining-requests", "9999");
    fixed(headers, "x-ratelimit-reset-requests", "6ms");
    fixed(headers, "x-ratelimit-limit-tokens", "2000000");
    fixed(headers, "x-ratelimit-remaining-tokens", "1999000");
    fixed(headers, "x-ratelimit-reset-tokens", "1ms");
}

pub fn fixed(headers: &mut HeaderMap, name: &'static str, value: &'static str) {
    headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
}

pub fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    headers.insert(HeaderName::from_static(name), text(value));
}

pub fn number(headers: &mut HeaderMap, name: &'static str, value: i64) {
    headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
}

/// A value with bytes that no header may hold (an odd account name) is replaced.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("unprintable"))
}
