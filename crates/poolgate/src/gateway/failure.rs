//! An upstream's error as a client may hear it, in an event or as a body: in its own words, and with nothing
//! of the limits of the account that was asked. Headers in it become the pool's; what else it tells of quota
//! is cut out. Whose account it is, `scrub` removes, where it is known.

use bytes::Bytes;
use poolgate_core::units::Timestamp;
use serde_json::{Map, Value, json};

use crate::json::{Document, Invalid, Patch};
use crate::providers::{ErrorFields, event_kind};

/// What is said of a turn that broke, and in the place of an error that cannot be told.
pub const BROKE: &[u8] = br#"{"type":"response.failed","response":{"status":"failed","error":{"code":"upstream_broke","message":"the upstream broke off; the answer is incomplete"}}}"#;

/// Of events in the Responses dialect.
pub fn is_failure(kind: &[u8]) -> bool {
    matches!(kind, b"error" | b"response.failed")
}

/// What Codex's backend tells beside the words of a refusal, and in its event about limits (wire §3, §4); and
/// whose key it is, by `OpenRouter`.
const FIGURES: [&str; 7] = [
    "plan_type",
    "resets_at",
    "resets_in_seconds",
    "rate_limits",
    "rate_limit_reached_type",
    "credits",
    "user_id",
];

/// Where they stand beside the top: in which objects of an event, of its response, and of an error. `OpenRouter`
/// tells a key's limits in `error.metadata.headers`; the `metadata` of a response are its client's.
const fn inside(name: &str) -> &'static [&'static str] {
    match name.as_bytes() {
        b"" => &["error", "response", "detail"],
        b"response" => &["error"],
        b"error" | b"detail" => &["error", "metadata"],
        _ => &[],
    }
}

/// `None`: it may pass as it is. `limits` are those of the pool, as headers. What cannot be read might tell
/// anything.
pub fn as_the_pools(
    error: &Bytes,
    mut limits: impl FnMut() -> Option<Value>,
) -> Result<Option<Bytes>, Invalid> {
    let error = Document::parse(error.clone())?;
    let patch = changes(&error, "", &mut limits)?;
    Ok((!patch.is_empty()).then(|| patch.apply(&error).to_bytes()))
}

/// An event that no rule can be applied to, as one with a field twice: the words that were found in it, and
/// nothing else.
pub fn in_words(event: &[u8]) -> Bytes {
    let fields = ErrorFields::read(event, Timestamp(0));
    if fields.code.is_empty() && fields.message.is_empty() {
        return Bytes::from_static(BROKE);
    }
    // That of the event, where the error has none.
    let kind = Some(fields.kind).filter(|kind| !is_failure(kind.as_bytes()));
    let told = [("type", kind), ("code", Some(fields.code)), ("message", Some(fields.message))];
    let told = told.into_iter().filter_map(|(name, text)| Some((name, text?)));
    let error: Map<String, Value> = told
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect();
    let told = if event_kind(event) == b"response.failed" {
        json!({"type": "response.failed", "response": {"status": "failed", "error": error}})
    } else if let Some(status) = fields.status {
        json!({"type": "error", "status": status, "error": error})
    } else {
        json!({"type": "error", "error": error})
    };
    told.to_string().into()
}

fn changes(
    of: &Document,
    name: &str,
    limits: &mut impl FnMut() -> Option<Value>,
) -> Result<Patch, Invalid> {
    let mut patch = Patch::default();
    for figure in FIGURES {
        patch.remove(of, figure);
    }
    if of.raw("headers").is_some() {
        let limits = limits().unwrap_or_else(|| Map::new().into());
        patch.set(of, "headers", &limits.to_string());
    }
    for name in inside(name) {
        let Some(raw) = of.raw(name).filter(|raw| raw.starts_with('{')) else { continue };
        let inner = Document::parse(Bytes::copy_from_slice(raw.as_bytes()))?;
        let of_inner = changes(&inner, name, limits)?;
        if !of_inner.is_empty() {
            let inner = of_inner.apply(&inner).to_bytes();
            patch.set(of, name, &String::from_utf8_lossy(&inner));
        }
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_loses_what_it_tells_of_an_account_and_nothing_else() {
        let pools = r#"{"x-codex-primary-used-percent":"1.00"}"#;
        for (error, want) in [
            (r#"{"type":"error", "error":{"code":"c","n":1.50}}"#, None),
            (r#"{"error":"words","response":null,"detail":["plan_type"]}"#, None),
            (
                r#"{"type":"error","error":{"plan_type":"plus", "code":"c","resets_at":1},"status":400}"#,
                Some(r#"{"type":"error","error":{"code":"c"},"status":400}"#.to_owned()),
            ),
            (
                r#"{"headers":{"x-codex-credits-balance":"5"},"plan_type":"plus","rate_limits":{},"a":0}"#,
                Some(format!(r#"{{"headers":{pools},"a":0}}"#)),
            ),
            (r#"{"headers":[["a","b"]]}"#, Some(format!(r#"{{"headers":{pools}}}"#))),
            (
                r#"{"response":{"id":"r","headers":{},"error":{"resets_in_seconds":9,"code":"c"}}}"#,
                Some(format!(
                    r#"{{"response":{{"id":"r","headers":{pools},"error":{{"code":"c"}}}}}}"#
                )),
            ),
            (
                r#"{"error":{"message":"m","code":400,"metadata":{"headers":{"X-RateLimit-Remaining":"7"},"raw":"r"}},"user_id":"user_2kX"}"#,
                Some(format!(
                    r#"{{"error":{{"message":"m","code":400,"metadata":{{"headers":{pools},"raw":"r"}}}}}}"#
                )),
            ),
            (
                r#"{"type":"response.failed","response":{"metadata":{"user_id":"u","headers":"h"},"error":{"code":"c"}}}"#,
                None,
            ),
            (r#"{"detail":{"code":"c","credits":{}}}"#, Some(r#"{"detail":{"code":"c"}}"#.into())),
            (
                r#"{"detail":{"error":{"code":"c","credits":{}}}}"#,
                Some(r#"{"detail":{"error":{"code":"c"}}}"#.into()),
            ),
        ] {
            let limits = || Some(json!({"x-codex-primary-used-percent": "1.00"}));
            let got = as_the_pools(&Bytes::from_static(error.as_bytes()), limits).unwrap();
            assert_eq!(got, want.map(Bytes::from), "{error}");
        }
        let unknown = as_the_pools(&Bytes::from_static(br#"{"headers":{"a":"b"}}"#), || None);
        assert_eq!(unknown.unwrap().unwrap(), r#"{"headers":{}}"#);
    }

    /// With a field twice, it cannot be told which of them is read.
    #[test]
    fn an_error_that_can_be_read_in_two_ways_is_none() {
        for error in [
            r#"{"error":{},"error":{"plan_type":"plus"}}"#,
            r#"{"response":{"error":{"code":"c","code":"d"}}}"#,
            r#"{"plan_type":"plus""#,
        ] {
            let read = as_the_pools(&Bytes::from_static(error.as_bytes()), || None);
            assert!(read.is_err(), "{error}");
        }
    }

    #[test]
    fn of_an_error_that_can_be_read_in_two_ways_the_words_are_left() {
        let broke = std::str::from_utf8(BROKE).unwrap();
        for (event, want) in [
            (
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"c","code":"d","message":"m"},"plan_type":"p"}}"#,
                r#"{"response":{"error":{"code":"d","message":"m"},"status":"failed"},"type":"response.failed"}"#,
            ),
            (
                r#"{"type":"error","status":400,"error":{"type":"t","message":"m","resets_at":1},"error":{"type":"t","message":"m"}}"#,
                r#"{"error":{"message":"m","type":"t"},"status":400,"type":"error"}"#,
            ),
            (
                r#"{"type":"error","code":"c","message":"m","message":"n","credits":{}}"#,
                r#"{"error":{"code":"c","message":"n"},"type":"error"}"#,
            ),
            (r#"{"type":"error","error":{"type":"t"},"error":{"type":"t"}}"#, broke),
            ("plus", broke),
        ] {
            let got = in_words(event.as_bytes());
            assert_eq!(std::str::from_utf8(&got).unwrap(), want, "{event}");
        }
    }
}
