//! What subscriptions tell about themselves when asked, and in events of their own: windows, plan,
//! credits.
//!
//! Pure functions from an answer's text. Each part counts on its own: what is missing or malformed
//! is as good as not said. `None` for the whole: this is no usage answer.

pub mod claude;
pub mod codex;

use poolgate_core::quota::Reading;
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
