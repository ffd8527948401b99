//! Refusals, each in the dialect of its endpoint; shapes as the real clients read them (2026-11).

mod limit;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::answer::Content;
use crate::headers;
use crate::kind::Dialect;
use crate::server::{Pace, Reply};

pub use limit::{rate_limited, spend, usage_limit};

/// A refusal's words: the type and code of the error and its text.
struct Words<'a> {
    kind: &'a str,
    code: Option<&'a str>,
    message: &'a str,
}

pub fn json_reply(status: u16, body: &Value) -> Reply {
    let mut headers = HeaderMap::with_capacity(32);
    headers::content_type(&mut headers, false);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content = Content::Json(Bytes::from(body.to_string()));
    Reply { status, headers, content, pace: Pace::default() }
}

pub fn detail(status: u16, text: &str) -> Reply {
    json_reply(status, &json!({"detail": text}))
}

fn refuse(dialect: Dialect, status: u16, id: &str, words: &Words<'_>) -> Reply {
    let Words { kind, code, message } = *words;
    let body = match dialect {
        Dialect::Anthropic => {
            json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": id})
        }
        Dialect::Codex | Dialect::Platform => json!({
            "error": {"message": message, "type": kind, "param": null, "code": code}
        }),
    };
    json_reply(status, &body)
}

/// Names the kind of error as this dialect does; codex and openai use `type` and `code`.
fn words<'a>(
    dialect: Dialect,
    anthropic: &'a str,
    openai: (&'a str, &'a str),
    message: &'a str,
) -> Words<'a> {
    match dialect {
        Dialect::Anthropic => Words { kind: anthropic, code: None, message },
        _ => Words { kind: openai.0, code: Some(openai.1), message },
    }
}

/// 401: `stale` when the credential once was good.
pub fn unauthorized(dialect: Dialect, id: &str, stale: bool) -> Reply {
    let message = match (dialect, stale) {
        (Dialect::Anthropic, true) => {
            "OAuth token has expired. Please obtain a new token or refresh your existing token."
        }
        (Dialect::Anthropic, false) => "invalid x-api-key",
        (Dialect::Codex, true) => {
            "Provided authentication token is expired. Please try signing in again."
        }
        (Dialect::Codex, false) => "Could not parse your authentication token.",
        (Dialect::Platform, _) => "Incorrect API key provided.",
    };
    let code = match (dialect, stale) {
        (Dialect::Codex, true) => "token_expired",
        (Dialect::Codex, false) => "invalid_token",
        _ => "invalid_api_key",
    };
    let words = words(dialect, "authentication_error", ("invalid_request_error", code), message);
    refuse(dialect, 401, id, &words)
}

/// 401 for an OAuth token without the beta that admits it.
pub fn oauth_beta_missing(id: &str) -> Reply {
    let message = "OAuth authentication is currently not supported.";
    let words = Words { kind: "authentication_error", code: None, message };
    refuse(Dialect::Anthropic, 401, id, &words)
}

pub fn forbidden(dialect: Dialect, id: &str) -> Reply {
    let openai = ("forbidden_error", "forbidden_error");
    let message = "Your account is not allowed to make this request.";
    let anthropic = words(dialect, "permission_error", openai, message);
    let mut reply = refuse(dialect, 403, id, &anthropic);
    if dialect == Dialect::Anthropic {
        // The code is what a gateway is to see; Anthropic's own shape has no place for one.
        let error = json!({"type": "forbidden_error", "message": message});
        reply = json_reply(403, &json!({"type": "error", "error": error, "request_id": id}));
    }
    reply
}

pub fn invalid(dialect: Dialect, id: &str, code: &str, message: &str) -> Reply {
    let kind = "invalid_request_error";
    refuse(dialect, 400, id, &words(dialect, kind, (kind, code), message))
}

pub fn unknown_model(dialect: Dialect, id: &str, model: &str, is_chat: bool) -> Reply {
    match dialect {
        Dialect::Codex => detail(
            400,
            &format!(
                "The '{model}' model is not supported when using Codex with a ChatGPT account."
            ),
        ),
        Dialect::Anthropic => {
            let message = &format!("model: {model}");
            let words = Words { kind: "not_found_error", code: None, message };
            refuse(dialect, 404, id, &words)
        }
        Dialect::Platform => {
            let message =
                format!("The model `{model}` does not exist or you do not have access to it.");
            let param = if is_chat { Value::Null } else { json!("model") };
            let (status, kind) = (if is_chat { 404 } else { 400 }, "invalid_request_error");
            let error = json!({"message": message, "type": kind, "param": param, "code": "model_not_found"});
            json_reply(status, &json!({"error": error}))
        }
    }
}

pub fn not_found(dialect: Dialect, id: &str) -> Reply {
    if dialect == Dialect::Codex {
        return detail(404, "Not Found");
    }
    let openai = ("invalid_request_error", "unknown_url");
    refuse(dialect, 404, id, &words(dialect, "not_found_error", openai, "Not Found"))
}

pub fn wrong_method(dialect: Dialect, id: &str) -> Reply {
    let openai = ("invalid_request_error", "method_not_supported");
    let words = words(dialect, "invalid_request_error", openai, "Method Not Allowed");
    refuse(dialect, 405, id, &words)
}

/// A turn that goes on from a response its WebSocket did not give; fixture
/// `codex-ws-previous-response-not-found`.
pub fn unknown_response(response: &str) -> Reply {
    let message = format!("Previous response with id {response} not found.");
    json_reply(
        400,
        &json!({"error": {
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "message": message,
            "param": "previous_response_id",
        }}),
    )
}

/// Fixture `codex-ws-connection-limit`.
pub fn connection_limit() -> Reply {
    let message = "Responses websocket connection limit reached (60 minutes). Create a new \
                   websocket connection to continue.";
    let code = "websocket_connection_limit_reached";
    let error = json!({"type": "invalid_request_error", "code": code, "message": message});
    json_reply(400, &json!({"error": error}))
}

/// Fixture `codex-ws-handshake-426`.
pub fn upgrade_required() -> Reply {
    json_reply(426, &json!({"error": {"message": "Upgrade required"}}))
}

/// 529 as Anthropic says it, 503 as the others do.
pub fn overloaded(dialect: Dialect, id: &str) -> Reply {
    let openai = ("server_error", "server_is_overloaded");
    let status = if dialect == Dialect::Anthropic { 529 } else { 503 };
    refuse(dialect, status, id, &words(dialect, "overloaded_error", openai, "Overloaded"))
}

pub fn server_error(dialect: Dialect, id: &str, status: u16) -> Reply {
    let message = "The server had an error while processing your request.";
    let words = words(dialect, "api_error", ("server_error", "server_error"), message);
    refuse(dialect, status, id, &words)
}
