//! Renewing a sign-in at its issuer.
//!
//! Bodies, client ids and final codes, with their origins: docs/providers.md, "Sign-ins and
//! refresh". A failure is remembered for five seconds per token, so that a burst of requests does
//! not become a burst of token calls.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;
use serde_json::json;

use super::document::Grant;
use super::{Bearer, Credential, CredentialError, Loaded, SignIn};
use crate::clock::Clock;
use crate::egress::Egress;
use crate::providers::ErrorFields;
use crate::secret::sha256;
use crate::tasks::Tasks;

const CODEX_CLIENT: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
const CLAUDE_CLIENT: &str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e";
/// Asked for when the stored scopes are unknown: leaving `scope` out was answered with 429 for good.
const CLAUDE_SCOPES: &str =
    "user:profile user:inference user:sessions:claude_code user:mcp_servers user:file_upload";

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const FAILURE_FOR: Duration = Duration::from_secs(5);

/// Codes that mean a person must sign in again (docs/providers.md, "Sign-ins and refresh").
const FINAL: [&str; 5] = [
    "invalid_grant",
    "refresh_token_expired",
    "refresh_token_reused",
    "refresh_token_invalidated",
    "app_session_terminated",
];

/// What a refresh needs of the service.
#[derive(Clone)]
pub struct RefreshContext {
    pub token_url: Option<Uri>,
    pub egress: Egress,
    pub clock: Arc<dyn Clock>,
    pub tasks: Tasks,
}

/// A refresh that failed, for this refresh token, and until when nobody tries again.
#[derive(Debug)]
pub struct Failure {
    token: [u8; 32],
    until: Timestamp,
    error: CredentialError,
}

impl Credential {
    /// One flight per account; whoever joins gets its result. Runs to its end even if the caller
    /// goes away.
    pub(super) async fn refresh(
        self: &Arc<Self>,
        stale: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        let (this, stale, own) = (Arc::clone(self), stale.clone(), context.clone());
        let flight = context.tasks.spawn(async move {
            let _turn = this.refreshing.lock().await;
            this.refresh_once(&stale, &own).await
        });
        flight
            .await
            .unwrap_or_else(|_| Err(CredentialError::Temporary("the refresh panicked".into())))
    }

    async fn refresh_once(
        &self,
        stale: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        // Whoever had the turn before us, or another process, may have done it already.
        if let Some(fresh) = self.newer_than(stale) {
            return Ok(fresh);
        }
        self.reload().await;
        if let Some(fresh) = self.newer_than(stale) {
            return Ok(fresh);
        }
        let loaded = self.current()?;
        let Some(sign_in) = &loaded.sign_in else {
            return Err(CredentialError::Missing("an API key cannot be refreshed".into()));
        };
        let Some(refresh_token) = sign_in.refresh_token() else {
            return Err(CredentialError::NeedsLogin("there is no refresh token".into()));
        };
        let now = context.clock.now();
        let token = sha256(refresh_token.as_bytes());
        if let Some(failure) = self.failure.lock().as_ref()
            && failure.token == token
            && now < failure.until
        {
            return Err(failure.error.clone());
        }
        self.source.check_writable().map_err(CredentialError::Temporary)?;
        match call_issuer(self.kind, sign_in, refresh_token, context).await {
            Ok(grant) => self.adopt(sign_in.renewed(&grant, now), now).await,
            Err(error) => {
                let until = now.plus(FAILURE_FOR);
                *self.failure.lock() = Some(Failure { token, until, error: error.clone() });
                Err(error)
            }
        }
    }

    fn newer_than(&self, stale: &Bearer) -> Option<Bearer> {
        let current = &self.loaded.load_full()?.bearer;
        (current.token != stale.token).then(|| current.clone())
    }

    /// Writes first, then uses. A write that fails must not lose the only good token: it is used
    /// from memory, and the trouble is loud.
    async fn adopt(&self, renewed: SignIn, now: Timestamp) -> Result<Bearer, CredentialError> {
        match self.source.write(renewed.to_bytes(), now).await {
            Ok(true) => {}
            Ok(false) => tracing::error!("another writer replaced a credential during its refresh"),
            Err(error) => tracing::error!(error, "a refreshed credential could not be saved"),
        }
        let loaded = Loaded::sign_in(renewed).map_err(CredentialError::Temporary)?;
        let bearer = loaded.bearer.clone();
        *self.problem.lock() = None;
        self.loaded.store(Some(Arc::new(loaded)));
        Ok(bearer)
    }
}

async fn call_issuer(
    kind: Kind,
    sign_in: &SignIn,
    refresh_token: &str,
    context: &RefreshContext,
) -> Result<Grant, CredentialError> {
    let temporary = |what: String| CredentialError::Temporary(what);
    let url = context.token_url.clone().ok_or_else(|| temporary("no token_url".into()))?;
    let mut body = json!({"grant_type": "refresh_token", "refresh_token": refresh_token});
    if kind == Kind::Codex {
        body["client_id"] = CODEX_CLIENT.into();
        body["scope"] = "openid profile email".into();
    } else {
        let scopes = sign_in.scopes();
        let usual = scopes.is_empty() || scopes.contains(&"user:inference");
        body["client_id"] = CLAUDE_CLIENT.into();
        body["scope"] = if usual { CLAUDE_SCOPES.into() } else { scopes.join(" ").into() };
    }
    let (head, answer) = context
        .egress
        .call(Method::POST, url, &[], Some(body.to_string()), CALL_TIMEOUT)
        .await
        .map_err(|error| temporary(error.to_string()))?;
    if head.status == StatusCode::OK {
        let grant: Grant = serde_json::from_slice(&answer)
            .map_err(|_| temporary("the issuer's answer is not what it should be".into()))?;
        if grant.access_token.is_none() {
            return Err(temporary("the issuer's answer has no access token".into()));
        }
        return Ok(grant);
    }
    let fields = ErrorFields::read(&answer, context.clock.now());
    // OAuth's own shape is {"error": "invalid_grant"}, which reads as a message.
    let code = [&fields.code, &fields.kind, &fields.message]
        .into_iter()
        .find(|word| FINAL.contains(&word.as_str()));
    match code {
        Some(code) => Err(CredentialError::NeedsLogin(code.clone())),
        None => Err(temporary(format!("the issuer answered {}", head.status.as_u16()))),
    }
}
