//! Events that tell headers, as a client may hear them: filtered like the headers of an answer, an account's
//! limits among them exchanged for the pool's.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::headers::{is_limit, passes_to_client};
use crate::json::{Document, Invalid, Patch};
use crate::providers::metadata::INSIDE;

/// `None`: it may pass as it is. `limits` are those of the pool, as headers.
pub fn filtered(
    event: &Bytes,
    mut limits: impl FnMut() -> Option<Value>,
) -> Result<Option<Bytes>, Invalid> {
    let event = Document::parse(event.clone())?;
    let mut patch = Patch::default();
    filter(&mut patch, &event, &mut limits);
    for name in INSIDE {
        let inner = match event.object(name) {
            Ok(Some(inner)) => inner,
            Ok(None) => continue,
            Err(_) => {
                // With a field twice, it cannot be told which of them is read.
                patch.remove(&event, name);
                continue;
            }
        };
        let mut of_inner = Patch::default();
        filter(&mut of_inner, &inner, &mut limits);
        if !of_inner.is_empty() {
            let inner = of_inner.apply(&inner).to_bytes();
            patch.set(&event, name, &String::from_utf8_lossy(&inner));
        }
    }
    Ok((!patch.is_empty()).then(|| patch.apply(&event).to_bytes()))
}

fn filter(patch: &mut Patch, of: &Document, limits: &mut impl FnMut() -> Option<Value>) {
    let Some(raw) = of.raw("headers").filter(|raw| raw != "null") else { return };
    let Ok(headers) = serde_json::from_str::<Map<String, Value>>(&raw) else {
        // In a form that nobody is known to send, and that could not be filtered.
        return patch.remove(of, "headers");
    };
    let size = headers.len();
    let (mut passing, mut tells_limits) = (Map::new(), false);
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        tells_limits |= is_limit(&lower);
        if passes_to_client(&lower) {
            passing.insert(name, value);
        }
    }
    if passing.len() == size {
        return;
    }
    if tells_limits && let Some(Value::Object(limits)) = limits() {
        passing.extend(limits);
    }
    patch.set(of, "headers", &Value::Object(passing).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn headers_are_filtered_wherever_they_stand() {
        let limits = || Some(json!({"x-codex-primary-used-percent": "1.00"}));
        for (event, want) in [
            (r#"{"type":"m", "headers":{"x-codex-turn-state":"s"}}"#, None),
            (r#"{"type":"m","headers":null}"#, None),
            (r#"{"type":"m","metadata":{"flagged":true},"response":"r"}"#, None),
            (
                r#"{"type":"m", "headers":{"X-Models-Etag":["e"],"OpenAI-Model":["m"]}, "n":1.50}"#,
                Some(r#"{"type":"m", "headers":{"OpenAI-Model":["m"]}, "n":1.50}"#),
            ),
            (
                r#"{"response":{"id":"r","headers":{"set-cookie":"c"}},"headers":{"x-models-etag":"e"}}"#,
                Some(r#"{"response":{"id":"r","headers":{}},"headers":{}}"#),
            ),
            (
                r#"{"metadata":{"headers":{"openai-organization":"o"},"b":0}}"#,
                Some(r#"{"metadata":{"headers":{},"b":0}}"#),
            ),
            (
                r#"{"headers":{"X-Codex-Primary-Used-Percent":"77","x-codex-credits-balance":"5"}}"#,
                Some(r#"{"headers":{"x-codex-primary-used-percent":"1.00"}}"#),
            ),
            (r#"{"headers":[["x-models-etag","e"]],"n":1}"#, Some(r#"{"n":1}"#)),
            (
                r#"{"response":{"headers":{},"headers":{"x-models-etag":"e"}},"n":1}"#,
                Some(r#"{"n":1}"#),
            ),
        ] {
            let got = filtered(&Bytes::from_static(event.as_bytes()), limits).unwrap();
            assert_eq!(got.as_deref(), want.map(str::as_bytes), "{event}");
        }
        let told_twice = br#"{"headers":{},"headers":{"x-models-etag":"e"}}"#;
        assert!(filtered(&Bytes::from_static(told_twice), limits).is_err());
    }
}
