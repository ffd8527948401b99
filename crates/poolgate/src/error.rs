//! Everything that can be said to a client instead of an upstream's answer, and the one place that
//! turns it into a status, a stable code and a body its SDK can parse.
//!
//! Shapes and reactions were seen with the real clients: exhausted quota is a 429 that Codex stops
//! for at once and shows with its time; anything that asks an Anthropic SDK to wait longer than a
//! minute carries `x-should-retry: false`, since that SDK would sleep for as long as it is told.
//! Upstream 401s and 403s have no variant here: they never reach a client as such.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use poolgate_core::account::{Family, Surface};
use poolgate_core::limits::Limits;
use poolgate_core::units::Timestamp;
use serde_json::{Value, json};

use crate::admission::Overload;
use crate::json::{Invalid, WrongType};
use crate::keys::KeyLimit;
use crate::limits::{add_claude_headers, add_codex_headers};
use crate::strict::Fault;

/// Whose error envelope the caller parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Anthropic,
    /// Our own paths: problem JSON with a `detail`.
    Plain,
}

impl Dialect {
    pub fn of(surface: Surface) -> Self {
        match surface.family() {
            Family::OpenAi => Self::OpenAi,
            Family::Anthropic => Self::Anthropic,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "missing, unknown or revoked client key: send a poolgate key as a bearer token or as x-api-key"
    )]
    Unauthorized,
    #[error(
        "this path is the operator's: send the token in admin.token, in the data directory, as a bearer token"
    )]
    NotOperator,
    #[error("authorization and x-api-key carry different keys: send one")]
    ConflictingKeys,
    #[error("poolgate serves no such path")]
    UnknownPath,
    #[error("this path takes {0} only")]
    WrongMethod(&'static str),
    #[error("websocket is not served here")]
    NoWebSocket,
    #[error("the request body must be application/json")]
    WrongContentType,
    #[error("content-encoding must be one of identity, gzip, deflate, zstd")]
    WrongEncoding,
    #[error("the request body does not decode as {0}")]
    BadEncoding(&'static str),
    #[error("the request body is larger than {limit} bytes{}", if *.decoded { " when decoded" } else { "" })]
    TooLarge { limit: usize, decoded: bool },
    #[error("the request body expands more than 100 times")]
    Bomb,
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    #[error("the request body ended early")]
    BodyCut,
    #[error(transparent)]
    Body(#[from] Invalid),
    #[error(transparent)]
    Field(#[from] WrongType),
    #[error("the field `model` is missing or empty")]
    NoModel,
    #[error("the field `model` is longer than {0} bytes")]
    ModelTooLong(usize),
    #[error("this key may not use the model {0:?}")]
    ModelForbidden(String),
    #[error("no account can serve the model {0:?}")]
    ModelUnknown(String),
    #[error("no account can serve this: it takes one of kind {0}")]
    NoFittingAccount(&'static str),
    #[error("{}{said}", exhausted_text(*.resets_at))]
    Exhausted {
        resets_at: Option<Timestamp>,
        now: Timestamp,
        limits: Option<Box<Limits>>,
        said: Said,
    },
    #[error("no account can serve this right now, try again in {}{said}", seconds_text(*.retry_after))]
    Unavailable { retry_after: Duration, said: Said },
    #[error("no account is able to serve: an operator must look after them{0}")]
    NoAccounts(Said),
    #[error(
        "the account that holds the state this request refers to cannot serve it now; send the full history instead"
    )]
    OwnerUnavailable { retry_after: Option<Duration> },
    #[error("this request opens no WebSocket: it wants HTTP/1.1 and a sec-websocket-key")]
    BadHandshake,
    #[error("the response before it is not on this socket any more; send the full history")]
    ChainLost,
    #[error("{0}")]
    BadQuestion(&'static str),
    #[error(transparent)]
    Overloaded(#[from] Overload),
    /// A limit of the key's own.
    #[error(transparent)]
    KeyLimit(#[from] KeyLimit),
    #[error("poolgate cannot record requests right now")]
    CannotRecord,
    #[error("poolgate is shutting down")]
    Draining,
    #[error("too many unknown keys from this address: slow down")]
    TooManyStrangers,
    #[error("poolgate is short of memory")]
    ShortOfMemory,
    #[error(transparent)]
    Http(#[from] Fault),
    #[error("the upstream failed: {0}")]
    Upstream(String),
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    #[error("the answer broke off after it had begun; the upstream may have charged for it")]
    UpstreamBroke,
    #[error("internal error")]
    Internal,
}

/// What the last upstream that was asked said, scrubbed; empty: none was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Of what is said in a message of ours.
    const LONGEST: usize = 300;

    pub fn by(last: Option<Error>) -> Self {
        match last {
            Some(Error::Upstream(text)) => Self(text.chars().take(Self::LONGEST).collect()),
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; the last one asked: {}", self.0) }
    }
}

fn exhausted_text(resets_at: Option<Timestamp>) -> String {
    match resets_at {
        Some(at) => format!(
            "every account has used up its quota; the next one resets at {}",
            clock_text(at)
        ),
        None => "every account has used up its quota".into(),
    }
}

fn seconds_text(wait: Duration) -> String {
    format!("{} s", wait.as_secs().max(1))
}

/// `2026-11-22 14:05 UTC`: people read it in a terminal, far from this machine's time zone.
pub fn clock_text(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0)
        .map(|t| t.strftime("%Y-%m-%d %H:%M UTC").to_string())
        .unwrap_or_default()
}

/// A wait longer than this makes SDKs hang; they are told not to retry instead.
pub const LONG_WAIT: Duration = Duration::from_mins(1);
const OVERLOAD_RETRY: Duration = Duration::from_secs(5);

impl Error {
    /// Status and stable machine-readable code.
    pub fn parts(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Unauthorized => (S::UNAUTHORIZED, "invalid_api_key"),
            Self::NotOperator => (S::UNAUTHORIZED, "invalid_admin_token"),
            Self::ConflictingKeys => (S::BAD_REQUEST, "conflicting_credentials"),
            Self::UnknownPath => (S::NOT_FOUND, "unknown_path"),
            Self::WrongMethod(_) | Self::Http(Fault::Method) => {
                (S::METHOD_NOT_ALLOWED, "method_not_allowed")
            }
            Self::NoWebSocket => (S::UPGRADE_REQUIRED, "websocket_not_served"),
            Self::WrongContentType => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type"),
            Self::WrongEncoding => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding"),
            Self::BadEncoding(_) => (S::BAD_REQUEST, "invalid_content_encoding"),
            Self::TooLarge { .. } | Self::Bomb => (S::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyCut => (S::BAD_REQUEST, "body_incomplete"),
            Self::Body(Invalid::Empty) => (S::BAD_REQUEST, "empty_body"),
            Self::Body(Invalid::TooDeep) => (S::BAD_REQUEST, "json_too_deep"),
            Self::Body(Invalid::TooManyFields) => (S::BAD_REQUEST, "json_too_many_fields"),
            Self::Body(_) => (S::BAD_REQUEST, "invalid_json"),
            Self::Field(_) | Self::ModelTooLong(_) => (S::BAD_REQUEST, "invalid_field"),
            Self::NoModel => (S::BAD_REQUEST, "missing_model"),
            Self::ModelForbidden(_) => (S::FORBIDDEN, "model_not_allowed"),
            Self::ModelUnknown(_) => (S::NOT_FOUND, "model_not_found"),
            Self::NoFittingAccount(_) => (S::NOT_FOUND, "no_fitting_account"),
            Self::Exhausted { .. } => (S::TOO_MANY_REQUESTS, "usage_limit_reached"),
            Self::Unavailable { .. } => (S::SERVICE_UNAVAILABLE, "accounts_unavailable"),
            Self::NoAccounts(_) => (S::SERVICE_UNAVAILABLE, "no_accounts"),
            Self::OwnerUnavailable { .. } => (S::SERVICE_UNAVAILABLE, "state_owner_unavailable"),
            Self::BadHandshake => (S::BAD_REQUEST, "bad_handshake"),
            Self::ChainLost => (S::BAD_REQUEST, "previous_response_not_found"),
            Self::BadQuestion(_) => (S::BAD_REQUEST, "bad_question"),
            Self::KeyLimit(KeyLimit::Concurrency(_)) => {
                (S::TOO_MANY_REQUESTS, "key_concurrency_exceeded")
            }
            Self::KeyLimit(KeyLimit::Rate { .. }) => (S::TOO_MANY_REQUESTS, "key_rate_exceeded"),
            Self::Overloaded(_) => (S::TOO_MANY_REQUESTS, "proxy_overloaded"),
            Self::TooManyStrangers => (S::TOO_MANY_REQUESTS, "too_many_unknown_keys"),
            Self::CannotRecord | Self::ShortOfMemory => {
                (S::SERVICE_UNAVAILABLE, "proxy_unavailable")
            }
            Self::Draining => (S::SERVICE_UNAVAILABLE, "draining"),
            Self::Http(Fault::Malformed(_)) => (S::BAD_REQUEST, "bad_request"),
            Self::Http(Fault::TargetTooLong) => (S::URI_TOO_LONG, "target_too_long"),
            Self::Http(Fault::HeadTooLarge) => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large")
            }
            Self::Http(Fault::HeadTimeout) => (S::REQUEST_TIMEOUT, "head_timeout"),
            Self::Upstream(_) => (S::BAD_GATEWAY, "upstream_error"),
            Self::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::UpstreamBroke => (S::BAD_GATEWAY, "upstream_broke"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exhausted { resets_at, now, .. } => {
                Some(resets_at.map_or(LONG_WAIT * 5, |at| now.until(at)))
            }
            Self::OwnerUnavailable { retry_after } => *retry_after,
            Self::Unavailable { retry_after, .. }
            | Self::KeyLimit(KeyLimit::Rate { retry_after, .. }) => Some(*retry_after),
            Self::KeyLimit(KeyLimit::Concurrency(_))
            | Self::Overloaded(_)
            | Self::CannotRecord
            | Self::Draining
            | Self::TooManyStrangers
            | Self::ShortOfMemory => Some(OVERLOAD_RETRY),
            _ => None,
        }
    }

    /// What a client of this dialect is answered with.
    pub fn status(&self, dialect: Dialect) -> StatusCode {
        match self {
            // Anthropic's SDKs know 529 as "overloaded, come back".
            Self::Unavailable { .. } if dialect == Dialect::Anthropic => {
                StatusCode::from_u16(529).expect("a valid status")
            }
            _ => self.parts().0,
        }
    }

    /// In the envelope that the caller's SDK parses.
    pub fn render(&self, dialect: Dialect) -> Response<Full<Bytes>> {
        let (status, code) = (self.status(dialect), self.parts().1);
        let body = self.body(dialect, status, code);
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json =
            if dialect == Dialect::Plain { "application/problem+json" } else { "application/json" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(json));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert("x-poolgate-error", HeaderValue::from_static(code));
        self.retry_headers(dialect, headers);
        response
    }

    fn retry_headers(&self, dialect: Dialect, headers: &mut HeaderMap) {
        match self {
            Self::BadHandshake => {
                // RFC 6455, 4.2.2: the version that is spoken here.
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::NoWebSocket => {
                // RFC 9110, 15.5.22: the protocol that is spoken here.
                headers.insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade, close"));
            }
            Self::Http(fault) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                if *fault == Fault::Method {
                    headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
                }
            }
            Self::WrongMethod(allowed) => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::NoAccounts(_) | Self::OwnerUnavailable { retry_after: None } => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            _ => {}
        }
        if let Some(wait) = self.retry_after() {
            // Rounded up; 0 would invite an immediate retry.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            if wait > LONG_WAIT {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
        }
        if let Self::Exhausted { resets_at, now, limits, .. } = self {
            exhausted_headers(dialect, *resets_at, *now, limits.as_deref(), headers);
        }
    }

    fn body(&self, dialect: Dialect, status: StatusCode, code: &str) -> Value {
        let message = self.to_string();
        match dialect {
            Dialect::Plain => json!({"title": status.canonical_reason(), "status": status.as_u16(),
                "detail": message, "code": code}),
            Dialect::Anthropic => json!({"type": "error", "error":
                {"type": anthropic_type(status), "message": message, "code": code}}),
            Dialect::OpenAi => {
                let mut error = json!({"message": message, "type": openai_type(status),
                    "param": null, "code": code});
                if matches!(self, Self::ChainLost) {
                    error["param"] = "previous_response_id".into();
                }
                if let Self::Exhausted { resets_at, now, limits, .. } = self {
                    if let Some(plan) = limits.as_ref().and_then(|limits| limits.plan.as_ref()) {
                        error["plan_type"] = plan.as_str().into();
                    }
                    error["type"] = "usage_limit_reached".into();
                    if let Some(at) = resets_at {
                        error["resets_at"] = at.unix_seconds().into();
                        error["resets_in_seconds"] = now.until(*at).as_secs().into();
                    }
                }
                json!({ "error": error })
            }
        }
    }
}

/// That nothing is left, and the pool's limits unless there is room in them: what is spent may be a model's
/// own limit.
fn exhausted_headers(
    dialect: Dialect,
    resets_at: Option<Timestamp>,
    now: Timestamp,
    limits: Option<&Limits>,
    headers: &mut HeaderMap,
) {
    let reset = resets_at.map(|at| HeaderValue::from(at.unix_seconds()));
    match (dialect, limits) {
        (Dialect::OpenAi, Some(limits)) if limits.spent => add_codex_headers(headers, limits),
        (Dialect::Anthropic, Some(limits)) if limits.spent => {
            add_claude_headers(headers, limits, now);
        }
        (Dialect::Plain, _) | (_, Some(_)) => {}
        (_, None) => made_up_window(dialect, reset.as_ref(), headers),
    }
    if dialect == Dialect::Anthropic {
        let rejected = HeaderValue::from_static("rejected");
        headers.insert("anthropic-ratelimit-unified-status", rejected);
        reset.map(|reset| headers.insert("anthropic-ratelimit-unified-reset", reset));
    }
}

/// Of windows that nobody has told: clients show none that has no name.
fn made_up_window(dialect: Dialect, reset: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let (told, name): (&[(&str, &str)], _) = match dialect {
        Dialect::OpenAi => (
            &[("x-codex-primary-used-percent", "100"), ("x-codex-primary-window-minutes", "300")],
            "x-codex-primary-reset-at",
        ),
        _ => (
            &[
                ("anthropic-ratelimit-unified-representative-claim", "five_hour"),
                ("anthropic-ratelimit-unified-5h-status", "rejected"),
                ("anthropic-ratelimit-unified-5h-utilization", "1"),
            ],
            "anthropic-ratelimit-unified-5h-reset",
        ),
    };
    for (name, value) in told {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    reset.map(|reset| headers.insert(name, reset.clone()));
}

pub fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

pub fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::admission::Bound;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn render(error: &Error, dialect: Dialect) -> (u16, HeaderMap, Value) {
        let (head, body) = error.render(dialect).into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body.to_bytes()).unwrap())
    }

    fn exhausted(seconds: u64) -> Error {
        Error::Exhausted {
            resets_at: Some(NOW.plus(Duration::from_secs(seconds))),
            now: NOW,
            limits: None,
            said: Said::default(),
        }
    }

    /// Read from the source: no list of the variants has to be kept beside it.
    #[test]
    fn every_code_stands_in_the_readme() {
        let source = include_str!("error.rs");
        let parts = source.split_once("pub fn parts").unwrap().1;
        let parts = parts.split_once("fn retry_after").unwrap().0;
        let codes: Vec<&str> = parts.split('"').skip(1).step_by(2).collect();
        let readme = include_str!("../../../README.md");
        let missing = |code: &&&str| !readme.contains(&format!("`{code}`"));
        assert_eq!(codes.iter().filter(missing).collect::<Vec<_>>(), Vec::<&&str>::new());
        assert!(codes.contains(&"bad_question") && codes.len() > 30, "{codes:?}");
    }

    /// RFC 9110, 15.5.22.
    #[test]
    fn who_asks_for_a_socket_in_vain_is_told_what_is_spoken() {
        let (status, headers, _) = render(&Error::NoWebSocket, Dialect::OpenAi);
        assert_eq!((status, &headers["upgrade"]), (426, &HeaderValue::from_static("HTTP/1.1")));
    }

    #[test]
    fn codex_is_told_when_to_come_back() {
        let (status, headers, body) = render(&exhausted(9000), Dialect::OpenAi);
        assert_eq!(status, 429);
        assert_eq!(body["error"]["type"], "usage_limit_reached");
        assert_eq!(body["error"]["resets_at"], 1_795_309_000);
        assert_eq!(body["error"]["resets_in_seconds"], 9000);
        assert_eq!(headers["retry-after"], "9000");
        assert_eq!(headers["x-should-retry"], "false");
        assert_eq!(headers["x-codex-primary-reset-at"], "1795309000");
    }

    #[test]
    fn claude_is_told_not_to_sleep_for_hours() {
        let (status, headers, body) = render(&exhausted(9000), Dialect::Anthropic);
        assert_eq!((status, &body["error"]["type"]), (429, &json!("rate_limit_error")));
        assert!(body["error"]["message"].as_str().unwrap().contains("UTC"));
        assert_eq!(headers["x-should-retry"], "false");
        assert_eq!(headers["anthropic-ratelimit-unified-status"], "rejected");
        let (_, headers, _) = render(&exhausted(30), Dialect::Anthropic);
        assert!(!headers.contains_key("x-should-retry"), "a short wait may be slept through");
    }

    /// spec §6: a refusal says nothing that a client would take for room.
    #[test]
    fn windows_are_told_unless_there_is_room_in_them() {
        use poolgate_core::limits::Share;
        use poolgate_core::units::Fraction;
        let exhausted = |percent, spent| {
            let used = Fraction::from_percent(percent).unwrap();
            let resets_at = Some(NOW.plus(Duration::from_hours(1)));
            let share = Share { used, length: Duration::from_hours(5), resets_at };
            let (five_hour, weight) = (Some(share), 1.0);
            let limits = Limits { five_hour, weekly: None, weight, plan: None, spent };
            let resets_at = Some(NOW.plus(Duration::from_hours(9)));
            Error::Exhausted {
                resets_at,
                now: NOW,
                limits: Some(Box::new(limits)),
                said: Said::default(),
            }
        };
        let told = |error: &Error, dialect, name: &str| {
            let (_, headers, _) = render(error, dialect);
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        for (percent, spent, codex, claude) in [
            (100.0, true, Some("100.00"), Some("five_hour")),
            // One window here and another there.
            (60.0, true, Some("60.00"), Some("five_hour")),
            (12.0, false, None, None),
        ] {
            let error = exhausted(percent, spent);
            let used = told(&error, Dialect::OpenAi, "x-codex-primary-used-percent");
            assert_eq!(used.as_deref(), codex);
            let unified = |name: &str| {
                let name = format!("anthropic-ratelimit-unified-{name}");
                told(&error, Dialect::Anthropic, &name)
            };
            assert_eq!(unified("representative-claim").as_deref(), claude);
            assert_eq!(unified("5h-status").is_some(), claude.is_some());
            assert_eq!(unified("status").as_deref(), Some("rejected"));
            let reset = NOW.plus(Duration::from_hours(9)).unix_seconds().to_string();
            assert_eq!(unified("reset"), Some(reset));
        }
    }

    #[test]
    fn each_dialect_gets_its_envelope() {
        let (_, _, openai) = render(&Error::Unauthorized, Dialect::OpenAi);
        assert_eq!(openai["error"]["code"], "invalid_api_key");
        let (_, _, anthropic) = render(&Error::Unauthorized, Dialect::Anthropic);
        assert_eq!(
            (&anthropic["type"], &anthropic["error"]["type"]),
            (&json!("error"), &json!("authentication_error"))
        );
        let (_, _, plain) = render(&Error::CannotRecord, Dialect::Plain);
        assert!(plain["detail"].is_string());
        // codex-lb 6.4: one refusal in each dialect, and always a time.
        let full = Error::Overloaded(Overload(Bound::ProxyHttp));
        let message = "poolgate is temporarily overloaded in the proxy_http lane";
        for (dialect, place, kind) in [
            (Dialect::OpenAi, "/error/message", "/error/type"),
            (Dialect::Anthropic, "/error/message", "/error/type"),
            (Dialect::Plain, "/detail", "/code"),
        ] {
            let (status, headers, body) = render(&full, dialect);
            assert_eq!((status, &headers["retry-after"]), (429, &HeaderValue::from_static("5")));
            assert_eq!(body.pointer(place), Some(&json!(message)), "{dialect:?}");
            let want =
                if dialect == Dialect::Plain { "proxy_overloaded" } else { "rate_limit_error" };
            assert_eq!(body.pointer(kind), Some(&json!(want)), "{dialect:?}");
        }
        let wait = Error::Unavailable {
            retry_after: Duration::from_millis(1500),
            said: Said::by(Some(Error::Upstream("y".repeat(999)))),
        };
        let told = wait.to_string();
        assert!(told.contains("try again in 1 s; the last one asked: yyy") && told.len() < 400);
        let (status, headers, _) = render(&wait, Dialect::Anthropic);
        assert_eq!((status, &headers["retry-after"]), (529, &HeaderValue::from_static("2")));
        assert_eq!(render(&wait, Dialect::OpenAi).0, 503);
    }

    /// spec §6: always a time, where it is known.
    #[test]
    fn who_needs_one_account_is_told_when_that_is_back() {
        let told = |seconds: Option<u64>| {
            let retry_after = seconds.map(Duration::from_secs);
            let (status, headers, _) =
                render(&Error::OwnerUnavailable { retry_after }, Dialect::OpenAi);
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (status, text("retry-after"), text("x-should-retry"))
        };
        let no = || Some("false".to_owned());
        assert_eq!(told(Some(5)), (503, Some("5".to_owned()), None));
        assert_eq!(told(Some(900)), (503, Some("900".to_owned()), no()));
        assert_eq!(told(None), (503, None, no()), "only an operator can help");
    }
}
