//! What the two protocol families put on the wire, read into our words: quota headers, usage
//! answers, error bodies, events and token counts. Sync functions over plain data; nothing here does I/O.

pub mod anthropic;
pub mod fields;
pub mod metadata;
pub mod openai;
mod pair;
mod report;
pub mod tap;
pub mod usage;

use http::HeaderMap;
use poolgate_core::account::Family;
use poolgate_core::quota::Reading;
use poolgate_core::units::Timestamp;

pub use fields::{ErrorFields, retry_after};
pub use metadata::is_metadata;
pub use report::response_id;
pub use tap::{Tap, event_kind};
pub use usage::codex::event as codex_windows;
pub use usage::{Credits, Profile, Usage};

/// Quota windows in the headers of an answer, good or bad.
pub fn readings(family: Family, headers: &HeaderMap, now: Timestamp) -> Vec<Reading> {
    match family {
        Family::OpenAi => openai::readings(headers, now),
        Family::Anthropic => anthropic::readings(headers),
    }
}

/// The additional limit that a refusal says is spent; `None`: the ordinary one, or none named.
pub fn active_limit(family: Family, headers: &HeaderMap) -> Option<String> {
    match family {
        Family::OpenAi => openai::active_limit(headers),
        Family::Anthropic => anthropic::active_limit(headers),
    }
}

/// A header as text, trimmed; `None` when absent or not text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    text(headers, name)?.parse().ok()
}
