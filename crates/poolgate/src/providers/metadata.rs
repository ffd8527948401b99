//! Events that tell headers of an answer, the turn state above all. Public clients and gateways know them by
//! two names; they come before the response is created, or at any time behind that, and are no output.

use serde_json::Value;

pub fn is_metadata(kind: &[u8]) -> bool {
    matches!(kind, b"response.metadata" | b"codex.response.metadata")
}

/// Where in one there may be `headers`, beside the top.
pub const INSIDE: [&str; 2] = ["response", "metadata"];

/// What Codex would take from such an event for its next requests.
pub fn turn_state(event: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(event).ok()?;
    let inside = INSIDE.iter().filter_map(|name| event.get(name));
    let state = std::iter::once(&event).chain(inside).find_map(|of| {
        let headers = of.get("headers")?.as_object()?;
        let named = |(name, _): &(&String, _)| name.eq_ignore_ascii_case("x-codex-turn-state");
        first_text(headers.iter().find(named)?.1)
    });
    state.filter(|state| !state.is_empty()).map(str::to_owned)
}

/// Values come as text, or as a list of texts.
fn first_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(values) => values.first().and_then(first_text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_turn_state() {
        for (event, want) in [
            (r#"{"headers":{"x-models-etag":"e","x-codex-turn-state":"s"}}"#, Some("s")),
            (r#"{"headers":{"X-Codex-Turn-State":["s","t"]}}"#, Some("s")),
            (r#"{"headers":{"x-codex-turn-state":[["s"]]}}"#, Some("s")),
            (r#"{"headers":null,"response":{"headers":{"x-codex-turn-state":"s"}}}"#, Some("s")),
            (r#"{"metadata":{"headers":{"x-codex-turn-state":"s"}}}"#, Some("s")),
            (r#"{"headers":{"x-codex-turn-state":""}}"#, None),
            (r#"{"headers":{"x-codex-turn-state":1}}"#, None),
            (r#"{"headers":["x-codex-turn-state","s"],"response":"none"}"#, None),
            ("no JSON", None),
        ] {
            assert_eq!(turn_state(event.as_bytes()).as_deref(), want, "{event}");
        }
    }
}
