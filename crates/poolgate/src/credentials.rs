//! What authenticates an account upstream: where it is kept, and keeping it fresh.
//!
//! A sign-in is a JSON document in its vendor's own format, whether it lives in the file that the
//! vendor's client uses or sealed in the store; keys we do not know are kept. A refresh runs once at
//! a time per account, as a task of the service, so that a client that hangs up cannot tear a token
//! rotation half-way. The new refresh token is on disk before the new access token is used: the old
//! one is dead from the moment the issuer answered.

mod document;
mod refresh;
mod source;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use parking_lot::Mutex;
use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;

pub use document::SignIn;
pub use refresh::RefreshContext;
use source::FileStamp;
pub use source::{Source, Stored, place};

/// What goes into a request's headers, made once; sensitive, so that nothing prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The bare token, as `x-api-key` has it.
    pub token: HeaderValue,
    /// The same as `authorization` has it.
    pub authorization: HeaderValue,
    /// `chatgpt-account-id`, for Codex sign-ins.
    pub account_id: Option<HeaderValue>,
}

impl Bearer {
    fn new(token: &str, account_id: Option<&str>) -> Result<Self, String> {
        let header = |text: &str| {
            let mut value = HeaderValue::from_str(text)
                .map_err(|_| "the credential has characters no header can carry".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        Ok(Self {
            token: header(token)?,
            authorization: header(&format!("Bearer {token}"))?,
            account_id: account_id.map(header).transpose()?,
        })
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("no usable credential: {0}")]
    Missing(String),
    /// The issuer refused the refresh token for good; its code.
    #[error("the issuer refused the refresh token: {0}")]
    NeedsLogin(String),
    #[error("the token could not be refreshed: {0}")]
    Temporary(String),
}

/// A credential in use, with what each request asks of it worked out.
#[derive(Clone, Debug)]
struct Loaded {
    bearer: Bearer,
    /// When it should be refreshed before its next use.
    due_at: Option<Timestamp>,
    /// `None`: an API key.
    sign_in: Option<SignIn>,
}

/// One account's credential. Cheap to read; refreshing is serialised by the lock.
#[derive(Debug)]
pub struct Credential {
    kind: Kind,
    source: Source,
    loaded: ArcSwapOption<Loaded>,
    /// The file as it was when last read.
    seen: Mutex<Option<FileStamp>>,
    /// Why there is none.
    problem: Mutex<Option<String>>,
    refreshing: tokio::sync::Mutex<()>,
    failure: Mutex<Option<refresh::Failure>>,
}

impl Credential {
    pub fn new(kind: Kind, source: Source) -> Self {
        Self {
            kind,
            source,
            loaded: ArcSwapOption::empty(),
            seen: Mutex::new(None),
            problem: Mutex::new(Some("not loaded yet".into())),
            refreshing: tokio::sync::Mutex::new(()),
            failure: Mutex::new(None),
        }
    }

    /// Reads the source again. A missing or broken source leaves the account without a credential
    /// until it is back. Returns whether the credential changed.
    pub async fn reload(&self) -> bool {
        let read = self.source.read().await.and_then(|bytes| self.parse(&bytes));
        let before = self.loaded.load_full();
        match read {
            Ok(loaded) => {
                *self.problem.lock() = None;
                let changed = before.is_none_or(|before| before.bearer != loaded.bearer);
                self.loaded.store(Some(Arc::new(loaded)));
                changed
            }
            Err(problem) => {
                *self.problem.lock() = Some(problem);
                self.loaded.store(None);
                before.is_some()
            }
        }
    }

    /// What is wrong with it; `None` when it can be used.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Another process has changed the file since it was last read.
    pub fn changed_on_disk(&self) -> bool {
        *self.seen.lock() != self.source.stamp()
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The plan named by the credential itself, if any.
    pub fn plan(&self) -> Option<String> {
        self.loaded.load_full()?.sign_in.as_ref()?.plan()
    }

    /// Account uuid that a Claude client would put into `metadata.user_id`.
    pub fn claude_account_uuid(&self) -> Option<String> {
        self.loaded.load_full()?.sign_in.as_ref()?.claude_account_uuid()
    }

    /// What names or authenticates the account, and must not be shown to clients.
    pub fn identifiers(&self) -> Vec<String> {
        let Some(loaded) = self.loaded.load_full() else {
            return Vec::new();
        };
        let Bearer { token, account_id, .. } = &loaded.bearer;
        let headers = std::iter::once(token).chain(account_id);
        let own = headers.filter_map(|value| Some(value.to_str().ok()?.to_owned()));
        // A very short one would cut harmless text to pieces.
        own.chain(self.claude_account_uuid()).filter(|id| id.len() >= 8).collect()
    }

    /// A token to use now, refreshed first when it is due.
    pub async fn bearer(
        self: &Arc<Self>,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        let now = context.clock.now();
        let loaded = self.current()?;
        let Some(sign_in) = loaded.sign_in.as_ref().filter(|_| loaded.is_due(now)) else {
            return Ok(loaded.bearer.clone());
        };
        match self.refresh(&loaded.bearer, context).await {
            // A refresh that fails early is no outage.
            Err(CredentialError::Temporary(_)) if !sign_in.is_expired(now) => {
                Ok(loaded.bearer.clone())
            }
            result => result,
        }
    }

    /// The token as it is; `None` when it should be refreshed first.
    pub fn ready(&self, now: Timestamp) -> Result<Option<Bearer>, CredentialError> {
        let loaded = self.current()?;
        Ok((!loaded.is_due(now)).then(|| loaded.bearer.clone()))
    }

    /// Replaces a token that the upstream refused. An API key cannot be replaced.
    pub async fn replace(
        self: &Arc<Self>,
        refused: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        if self.current()?.sign_in.is_none() {
            return Err(CredentialError::Missing("the API key was refused".into()));
        }
        self.refresh(refused, context).await
    }

    fn current(&self) -> Result<Arc<Loaded>, CredentialError> {
        self.loaded.load_full().ok_or_else(|| {
            CredentialError::Missing(self.problem().unwrap_or_else(|| "not loaded".into()))
        })
    }

    fn parse(&self, bytes: &[u8]) -> Result<Loaded, String> {
        if self.kind.is_subscription() {
            return Loaded::sign_in(SignIn::parse(self.kind, bytes)?);
        }
        let key = std::str::from_utf8(bytes).unwrap_or_default().trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the API key is empty or has characters no key has".into());
        }
        Ok(Loaded { bearer: Bearer::new(key, None)?, due_at: None, sign_in: None })
    }
}

impl Loaded {
    fn sign_in(sign_in: SignIn) -> Result<Self, String> {
        let bearer = sign_in.bearer()?;
        Ok(Self { bearer, due_at: sign_in.due_at(), sign_in: Some(sign_in) })
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.due_at.is_some_and(|at| at <= now)
    }
}

/// When a JSON Web Token expires. Not verified: the token came from its issuer, or from the user.
fn jwt_claims(token: &str) -> Option<serde_json::Value> {
    use base64::Engine;
    let payload = token.split('.').nth(1)?;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    serde_json::from_slice(&engine.decode(payload.trim_end_matches('=')).ok()?).ok()
}

fn jwt_expiry(token: &str) -> Option<Timestamp> {
    Timestamp::from_unix_seconds(jwt_claims(token)?.get("exp")?.as_i64()?)
}
