//! What subscriptions tell about themselves when asked, and in events of their own: windows, plan,
//! credits.
//!
//! Pure functions from an answer's text. Each part counts on its own: what is missing or malformed
//! is as good as not said. `None` for the whole: this is no usage answer.

pub mod claude;
pub mod codex;

use poolgate_core::account::Kind;
use poolgate_core::quota::Reading;
use poolgate_core::units::Timestamp;
use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub readings: Vec<Reading>,
    /// In the provider's words.
    pub plan: Option<String>,
    pub credits: Option<Credits>,
    /// The additional limits that the account has. `None`: the answer does not list them, so those
    /// known stay; an empty list ends them all.
    pub limits: Option<Vec<String>>,
}

/// Money beside the quota. Shown to people; it never makes a spent window count as open, since what
/// it buys is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credits {
    pub has_credits: bool,
    pub unlimited: bool,
    /// In the provider's words, perhaps with a currency.
    pub balance: Option<String>,
}

/// Whose a sign-in is, and what was paid for. `None`: not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// As sign-in documents have it: plan, and a tier after a slash.
    pub plan: Option<String>,
    pub account_uuid: Option<String>,
    pub email: Option<String>,
    pub organization_uuid: Option<String>,
}

/// Where a kind of account tells about its usage, for a base URL whose path is `prefix`; `None`: it
/// does not.
///
/// Codex CLI 0.169.0 asks beside its `…/codex`: at `/wham/usage` where the backend is `ChatGPT`'s own
/// (O, 2026-11), at `/api/codex/usage` of other gateways (S).
pub fn path(kind: Kind, prefix: &str) -> Option<String> {
    match kind {
        Kind::Codex => {
            let base = prefix.strip_suffix("/codex").unwrap_or(prefix);
            let own = base.contains("/backend-api");
            Some(format!("{base}{}", if own { "/wham/usage" } else { "/api/codex/usage" }))
        }
        Kind::Claude => Some(format!("{prefix}/api/oauth/usage")),
        Kind::OpenAi | Kind::Anthropic | Kind::Compatible => None,
    }
}

/// Where it tells whose it is.
pub fn profile_path(kind: Kind, prefix: &str) -> Option<String> {
    (kind == Kind::Claude).then(|| format!("{prefix}/api/oauth/profile"))
}

pub fn read(kind: Kind, body: &[u8], now: Timestamp) -> Option<Usage> {
    match kind {
        Kind::Codex => codex::usage(body, now),
        Kind::Claude => claude::usage(body),
        Kind::OpenAi | Kind::Anthropic | Kind::Compatible => None,
    }
}

/// A number, or text that is one.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number: &f64| number.is_finite())
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; what reads it checks the range")]
fn whole(value: &Value) -> Option<i64> {
    number(value).map(|number| number as i64)
}

/// Text with something in it.
fn words(value: &Value) -> Option<String> {
    value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_asked_for_beside_the_api() {
        let cases = [
            (Kind::Codex, "/backend-api/codex", Some("/backend-api/wham/usage")),
            (Kind::Codex, "/pool/backend-api/codex", Some("/pool/backend-api/wham/usage")),
            (Kind::Codex, "/codex", Some("/api/codex/usage")),
            (Kind::Codex, "", Some("/api/codex/usage")),
            (Kind::Claude, "", Some("/api/oauth/usage")),
            (Kind::Claude, "/claude", Some("/claude/api/oauth/usage")),
            (Kind::OpenAi, "/v1", None),
            (Kind::Anthropic, "", None),
            (Kind::Compatible, "/v1", None),
        ];
        for (kind, prefix, want) in cases {
            assert_eq!(path(kind, prefix).as_deref(), want, "{kind:?} {prefix}");
        }
    }
}
