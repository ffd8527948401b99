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
use parking_lot::Mutex;
use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;

use crate::secret::Secret;

pub use document::SignIn;
pub use refresh::RefreshContext;
use source::FileStamp;
pub use source::{Source, Stored, place};

/// What goes into a request's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub token: Secret,
    /// `chatgpt-account-id`, for Codex sign-ins.
    pub account_id: Option<String>,
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

#[derive(Clone, Debug)]
enum Loaded {
    Key(Secret),
    SignIn(SignIn),
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
                let changed = before.is_none_or(|before| !before.is_same(&loaded));
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
        match self.loaded.load_full()?.as_ref() {
            Loaded::Key(_) => None,
            Loaded::SignIn(sign_in) => sign_in.plan(),
        }
    }

    /// Account uuid that a Claude client would put into `metadata.user_id`.
    pub fn claude_account_uuid(&self) -> Option<String> {
        match self.loaded.load_full()?.as_ref() {
            Loaded::Key(_) => None,
            Loaded::SignIn(sign_in) => sign_in.claude_account_uuid(),
        }
    }

    /// What names or authenticates the account, and must not be shown to clients.
    pub fn identifiers(&self) -> Vec<String> {
        let Some(loaded) = self.loaded.load_full() else {
            return Vec::new();
        };
        let Bearer { token, account_id } = loaded.bearer();
        let own = account_id.into_iter().chain(self.claude_account_uuid());
        // A very short one would cut harmless text to pieces.
        std::iter::once(token.expose().to_owned()).chain(own).filter(|id| id.len() >= 8).collect()
    }

    /// A token to use now, refreshed first when it is due.
    pub async fn bearer(
        self: &Arc<Self>,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        let now = context.clock.now();
        let loaded = self.current()?;
        match loaded.as_ref() {
            Loaded::Key(_) => Ok(loaded.bearer()),
            Loaded::SignIn(sign_in) if !sign_in.is_due(now) => Ok(loaded.bearer()),
            Loaded::SignIn(sign_in) => match self.refresh(&loaded.bearer(), context).await {
                Ok(bearer) => Ok(bearer),
                // A refresh that fails early is no outage.
                Err(CredentialError::Temporary(_)) if !sign_in.is_expired(now) => {
                    Ok(loaded.bearer())
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Replaces a token that the upstream refused. An API key cannot be replaced.
    pub async fn replace(
        self: &Arc<Self>,
        refused: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        match self.current()?.as_ref() {
            Loaded::Key(_) => Err(CredentialError::Missing("the API key was refused".into())),
            Loaded::SignIn(_) => self.refresh(refused, context).await,
        }
    }

    fn current(&self) -> Result<Arc<Loaded>, CredentialError> {
        self.loaded.load_full().ok_or_else(|| {
            CredentialError::Missing(self.problem().unwrap_or_else(|| "not loaded".into()))
        })
    }

    fn parse(&self, bytes: &[u8]) -> Result<Loaded, String> {
        if self.kind.is_subscription() {
            return SignIn::parse(self.kind, bytes).map(Loaded::SignIn);
        }
        let key = std::str::from_utf8(bytes).unwrap_or_default().trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the API key is empty or has characters no key has".into());
        }
        Ok(Loaded::Key(Secret::new(key)))
    }
}

impl Loaded {
    fn bearer(&self) -> Bearer {
        match self {
            Self::Key(key) => Bearer { token: key.clone(), account_id: None },
            Self::SignIn(sign_in) => sign_in.bearer(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.bearer() == other.bearer()
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
