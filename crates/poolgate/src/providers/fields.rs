//! The parts of an error body that mean something, in whichever of the known envelopes it came.
//!
//! As the pinned clients read them (docs/providers.md, "Errors"): `{"error":{…}}` (`OpenAI`, Codex), `{"type":"error","error":{…}}` (Anthropic), `{"detail":…}`
//! (`ChatGPT` backend), and `response.error` inside a stream's `response.failed`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use poolgate_core::account::Family;
use poolgate_core::outcome::LOST_CHAIN;
use poolgate_core::units::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{anthropic_type, openai_type};

/// Empty text: not reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields {
    pub code: String,
    pub kind: String,
    pub message: String,
    pub resets_at: Option<Timestamp>,
    /// An explicit status inside an event.
    pub status: Option<u16>,
    /// Those that an event on a socket carries (wire §2.4).
    pub headers: HeaderMap,
    /// The error itself, as it was told.
    pub told: Value,
}

/// Numbers come as numbers or as text.
#[expect(clippy::cast_possible_truncation, reason = "saturates; the reader checks the range")]
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        value => Some(value.as_f64()? as i64),
    }
}

/// Of any type, so that one that is unforeseen hides no other.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Inner {
    code: Option<Value>,
    r#type: Option<Value>,
    message: Option<Value>,
    resets_at: Option<Value>,
    resets_in_seconds: Option<Value>,
    status: Option<Value>,
    status_code: Option<Value>,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    detail: Option<Value>,
    #[serde(default)]
    response: Option<Value>,
    #[serde(default)]
    headers: Option<Value>,
    #[serde(flatten)]
    bare: Inner,
}

impl ErrorFields {
    /// Reads a body or the data of an event; anything unexpected reads as nothing. Of what is said twice,
    /// the last counts, as for most readers.
    pub fn read(bytes: &[u8], now: Timestamp) -> Self {
        let told = serde_json::from_slice::<Value>(bytes);
        let Ok(envelope) = told.and_then(Envelope::deserialize) else {
            return Self::default();
        };
        let nested = envelope
            .error
            .or_else(|| Some(envelope.response?.get_mut("error")?.take()).filter(|e| !e.is_null()))
            .or(envelope.detail);
        let outer_status = envelope.bare.status();
        let mut fields = match nested {
            Some(Value::String(message)) => Self { message, ..Self::default() },
            Some(told) => {
                let inner = Inner::deserialize(&told).unwrap_or_default();
                Self { told, ..Self::from_inner(inner, now) }
            }
            None => Self::from_inner(envelope.bare, now),
        };
        fields.status = fields.status.or(outer_status);
        let headers = envelope.headers.as_ref().and_then(Value::as_object);
        fields.headers = headers.into_iter().flatten().filter_map(header).collect();
        fields
    }

    /// What the request goes on from is not there; not everybody has a code for it (codex-lb 5.5).
    pub fn is_lost_chain(&self) -> bool {
        self.code == LOST_CHAIN
            || self.code.is_empty() && self.told["param"] == "previous_response_id"
    }

    /// What it is called: some name errors by their type, and have no codes.
    pub fn name(&self) -> &str {
        let is_of_event = matches!(self.kind.as_str(), "error" | "response.failed");
        if self.code.is_empty() && !is_of_event { &self.kind } else { &self.code }
    }

    /// As the body of an answer, for a client that is told by a status.
    pub fn body(&self, family: Family, status: StatusCode) -> Bytes {
        let mut error = match &self.told {
            Value::Object(told) => told.clone(),
            _ => Map::new(),
        };
        let mut fill = |name: &str, value: &str| {
            if !error.get(name).is_some_and(Value::is_string) && !value.is_empty() {
                error.insert(name.into(), value.into());
            }
        };
        fill("message", &self.message);
        let fitting = match family {
            Family::OpenAi => openai_type(status),
            Family::Anthropic => anthropic_type(status),
        };
        fill("type", if self.kind.is_empty() { fitting } else { &self.kind });
        fill("code", &self.code);
        let body = match family {
            Family::OpenAi => json!({"error": error}),
            Family::Anthropic => json!({"type": "error", "error": error}),
        };
        body.to_string().into()
    }

    fn from_inner(inner: Inner, now: Timestamp) -> Self {
        let status = inner.status();
        let text = |value: Option<Value>| match value {
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let at = inner.resets_at.as_ref().and_then(whole).and_then(Timestamp::from_unix_seconds);
        let wait = inner.resets_in_seconds.as_ref().and_then(whole);
        let wait = wait.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        // Rounded down to a second, or by another clock, it may be past when it is told.
        let is_ahead = |at: &Timestamp| *at > now || wait.is_none_or(|wait| wait.is_zero());
        Self {
            code: text(inner.code),
            kind: text(inner.r#type),
            message: text(inner.message),
            resets_at: at.filter(is_ahead).or_else(|| wait.map(|wait| now.plus(wait))),
            status,
            headers: HeaderMap::new(),
            told: Value::Null,
        }
    }
}

impl Inner {
    fn status(&self) -> Option<u16> {
        let number = |value: &Option<Value>| u16::try_from(value.as_ref()?.as_u64()?).ok();
        // Where codes are numbers, they are statuses (OpenRouter).
        let of_code = || number(&self.code).filter(|code| (400..600).contains(code));
        number(&self.status).or_else(|| number(&self.status_code)).or_else(of_code)
    }
}

fn header((name, value): (&String, &Value)) -> Option<(HeaderName, HeaderValue)> {
    let value = match value {
        Value::String(text) => text.parse().ok()?,
        Value::Number(number) => number.to_string().parse().ok()?,
        _ => return None,
    };
    Some((name.parse().ok()?, value))
}

/// Nobody is waited for longer, in seconds.
const LONGEST: f64 = 8.0 * 86_400.0;

/// Milliseconds, as `OpenAI` says it besides; seconds, or an HTTP date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let in_ms = headers.get("retry-after-ms").and_then(|value| value.to_str().ok());
    let seconds = |ms: f64| (ms / 1000.0).min(LONGEST);
    if let Some(ms) = in_ms.and_then(|ms| ms.trim().parse().ok()).filter(|ms: &f64| *ms > 0.0) {
        return Some(Duration::from_secs_f64(seconds(ms)));
    }
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(now.until(Timestamp(date.as_millisecond()))).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn fields(code: &str, kind: &str, message: &str, resets_in: Option<u64>) -> ErrorFields {
        ErrorFields {
            code: code.into(),
            kind: kind.into(),
            message: message.into(),
            resets_at: resets_in.map(|s| NOW.plus(Duration::from_secs(s))),
            status: None,
            headers: HeaderMap::new(),
            told: Value::Null,
        }
    }

    /// sub2api R5: `resets_at` wins over `resets_in_seconds`, in the first row.
    #[test]
    fn reads_retry_after_in_both_forms() {
        let now = Timestamp(1_795_300_000_000);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        let exact = HeaderMap::from_iter([
            (HeaderName::from_static("retry-after-ms"), HeaderValue::from_static("1250")),
            (header::RETRY_AFTER, HeaderValue::from_static("2")),
        ]);
        assert_eq!(retry_after(&exact, now), Some(Duration::from_millis(1250)));
        assert_eq!(read("20"), Some(Duration::from_secs(20)));
        assert_eq!(read("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(read("Sat, 21 Nov 2026 22:27:40 GMT"), Some(Duration::from_mins(1)));
        for nonsense in ["0", "-3", "soon", "NaN", "Sat, 21 Nov 2020 22:27:40 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn reads_the_headers_of_an_event() {
        let event = br#"{"type":"error","status":429,"error":{"type":"usage_limit_reached"},
            "headers":{"Retry-After":30,"x-codex-active-limit":"codex_x","bad name":"x","a":null}}"#;
        let fields = ErrorFields::read(event, NOW);
        assert_eq!((fields.status, fields.headers.len()), (Some(429), 2));
        assert_eq!(retry_after(&fields.headers, NOW), Some(Duration::from_secs(30)));
        assert_eq!(fields.headers["x-codex-active-limit"], "codex_x");
    }

    #[test]
    fn an_error_is_called_by_its_code_or_its_type() {
        for (event, want) in [
            (r#"{"type":"error","error":{"code":"c","type":"t"}}"#, "c"),
            (r#"{"type":"error","error":{"type":"overloaded_error"}}"#, "overloaded_error"),
            (r#"{"type":"error","code":"c"}"#, "c"),
            (r#"{"type":"error","message":"m"}"#, ""),
            (r#"{"type":"response.failed","response":{"error":null}}"#, ""),
        ] {
            assert_eq!(ErrorFields::read(event.as_bytes(), NOW).name(), want, "{event}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn reads_every_envelope() {
        let cases = [
            (r#"{"error":{"type":"usage_limit_reached","message":"m","plan_type":"plus","resets_at":1795300060,"resets_in_seconds":9}}"#,
             fields("", "usage_limit_reached", "m", Some(60))),
            (r#"{"error":{"type":"x","resets_at":1795300000,"resets_in_seconds":1}}"#, fields("", "x", "", Some(1))),
            (r#"{"error":{"type":"x","resets_at":1795300000,"resets_in_seconds":0}}"#, fields("", "x", "", Some(0))),
            (r#"{"error":{"type":"x","resets_in_seconds":"30"}}"#,      fields("", "x", "", Some(30))),
            (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, fields("", "overloaded_error", "m", None)),
            (r#"{"detail":"Unauthorized"}"#,                            fields("", "", "Unauthorized", None)),
            (r#"{"detail":{"code":"deactivated_workspace"}}"#,          fields("deactivated_workspace", "", "", None)),
            (r#"{"type":"response.failed","response":{"id":"r","error":{"code":"server_error","message":"m"}}}"#,
             fields("server_error", "", "m", None)),
            (r#"{"type":"error","code":"c","message":"m"}"#,            fields("c", "error", "m", None)),
            (r#"{"error":{"code":404,"message":null}}"#,                ErrorFields { status: Some(404), ..fields("404", "", "", None) }),
            (r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"},"status":"error","headers":[]}"#,
             ErrorFields { status: Some(429), ..fields("429", "", "m", None) }),
            (r#"{"error":{"code":77,"message":"m"}}"#,                  fields("77", "", "m", None)),
            (r#"{"type":"response.failed","response":[]}"#,             fields("", "response.failed", "", None)),
            (r#"{"error":{"code":"b"},"error":{"code":"b","code":"c","message":"m"},"type":"error","type":"x"}"#, fields("c", "", "m", None)),
            ("<html>",                                                  fields("", "", "", None)),
            ("[]",                                                      fields("", "", "", None)),
        ];
        for (body, want) in cases {
            let read = ErrorFields::read(body.as_bytes(), NOW);
            assert_eq!(ErrorFields { told: Value::Null, ..read }, want, "{body}");
        }
        let event = br#"{"type":"error","status":429,"error":{"type":"usage_limit_reached"}}"#;
        assert_eq!(ErrorFields::read(event, NOW).status, Some(429));
    }
}
