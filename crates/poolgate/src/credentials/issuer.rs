//! Asking an issuer for new tokens: one call at a time for each, with a pause in between, and never
//! sent twice.
//!
//! Bodies and client ids, with their origins: docs/providers.md, "Sign-ins and refresh".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use parking_lot::Mutex;
use poolgate_core::account::Kind;
use poolgate_core::refresh::{Failure, Fault};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::document::Grant;
use super::{RefreshContext, SignIn};
use crate::egress::SendError;
use crate::providers::{ErrorFields, retry_after};

pub const CODEX_CLIENT: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
pub const CLAUDE_CLIENT: &str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e";
/// Asked for when the stored scopes are unknown: leaving `scope` out was answered with 429 for good.
pub const CLAUDE_SCOPES: &str =
    "user:profile user:inference user:sessions:claude_code user:mcp_servers user:file_upload";

/// Shorter than a drain waits for tasks.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Calls for sibling accounts at nearly the same time were reported to end sign-ins (reliability
/// I19), so they are this far apart, and up to twice as far.
const APART: Duration = Duration::from_millis(250);

/// Whose turn it is at each issuer.
#[derive(Clone, Debug, Default)]
pub struct Issuers(Arc<Mutex<HashMap<Uri, Arc<tokio::sync::Mutex<LastCall>>>>>);

/// When the last call ended; `None`: there was none.
#[derive(Debug, Default)]
struct LastCall(Option<Instant>);

/// The right to call one issuer.
#[derive(Debug)]
pub struct Turn(OwnedMutexGuard<LastCall>);

impl Issuers {
    pub async fn turn(&self, issuer: &Uri) -> Turn {
        let turn = Arc::clone(self.0.lock().entry(issuer.clone()).or_default());
        let turn = turn.lock_owned().await;
        if let Some(ended) = turn.0 {
            let apart = APART + APART.mul_f64(rand::random_range(0.0..1.0));
            tokio::time::sleep_until(ended + apart).await;
        }
        Turn(turn)
    }
}

impl Turn {
    /// A call was made: the next one waits.
    pub fn used(&mut self) {
        self.0.0 = Some(Instant::now());
    }
}

/// What a failed call said, for rules and for people.
#[derive(Debug)]
pub struct Failed {
    sent: bool,
    answer: Option<(u16, Option<Duration>)>,
    /// The issuer's code if it is a final one, else what happened.
    pub code: String,
}

impl Failed {
    pub fn failure(&self) -> Failure<'_> {
        match self.answer {
            Some((status, retry_after)) => {
                Failure::Answered { status, code: &self.code, retry_after }
            }
            None if self.sent => Failure::Unanswered,
            None => Failure::NotSent,
        }
    }

    fn unanswered(code: &str) -> Self {
        Self { sent: true, answer: None, code: code.into() }
    }
}

pub async fn ask(
    kind: Kind,
    sign_in: &SignIn,
    refresh_token: &str,
    issuer: &Uri,
    context: &RefreshContext,
) -> Result<Grant, Failed> {
    let body = body(kind, sign_in, refresh_token).to_string();
    let (way, issuer) = (&context.way, issuer.clone());
    let call = context.egress.call(Method::POST, issuer, way, &[], Some(body), CALL_TIMEOUT);
    let (head, answer) = call.await.map_err(|error| {
        let sent = !matches!(error.downcast_ref(), Some(SendError::Connect(_)));
        Failed { sent, answer: None, code: error.to_string() }
    })?;
    if head.status == StatusCode::OK {
        let grant: Option<Grant> = serde_json::from_slice(&answer).ok();
        let grant = grant.filter(|grant| grant.access_token.is_some());
        return grant.ok_or_else(|| Failed::unanswered("an answer without tokens"));
    }
    let now = context.clock.now();
    let fields = ErrorFields::read(&answer, now);
    // OAuth's own shape is {"error": "invalid_grant"}, which reads as a message.
    let words = [fields.code, fields.kind, fields.message];
    let known = words.into_iter().find(|word| Fault::of(word).is_some());
    let status = head.status.as_u16();
    let code = known.unwrap_or_else(|| format!("status {status}"));
    Err(Failed { sent: true, answer: Some((status, retry_after(&head.headers, now))), code })
}

fn body(kind: Kind, sign_in: &SignIn, refresh_token: &str) -> serde_json::Value {
    let (client, scope) = if kind == Kind::Codex {
        (CODEX_CLIENT, "openid profile email".to_owned())
    } else {
        let scopes = sign_in.scopes();
        let usual = scopes.is_empty() || scopes.contains(&"user:inference");
        (CLAUDE_CLIENT, if usual { CLAUDE_SCOPES.to_owned() } else { scopes.join(" ") })
    };
    json!({"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": client, "scope": scope})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// multiplexer 18.1 #10.
    #[test]
    fn the_scope_is_always_sent() {
        let claude = |scopes: &str| {
            let text = format!(r#"{{"claudeAiOauth":{{"accessToken":"a","scopes":{scopes}}}}}"#);
            let sign_in = SignIn::parse(Kind::Claude, text.as_bytes()).unwrap();
            body(Kind::Claude, &sign_in, "r")["scope"].as_str().unwrap().to_owned()
        };
        assert_eq!(claude("[]"), CLAUDE_SCOPES);
        assert_eq!(claude(r#"["user:inference","user:file_upload"]"#), CLAUDE_SCOPES);
        assert_eq!(
            claude(r#"["org:create_api_key","user:profile"]"#),
            "org:create_api_key user:profile"
        );
        let codex = SignIn::parse(Kind::Codex, br#"{"tokens":{"access_token":"a"}}"#).unwrap();
        assert_eq!(body(Kind::Codex, &codex, "r")["scope"], "openid profile email");
    }

    #[tokio::test]
    async fn calls_at_one_issuer_are_apart_and_at_two_are_not() {
        let issuers = Issuers::default();
        let [one, two] = ["http://127.0.0.1/1", "http://127.0.0.1/2"].map(Uri::from_static);
        let began = Instant::now();
        issuers.turn(&one).await.used();
        issuers.turn(&two).await.used();
        assert!(began.elapsed() < APART, "{:?}", began.elapsed());
        drop(issuers.turn(&one).await);
        let waited = began.elapsed();
        assert!(waited >= APART, "{waited:?}");
    }
}
