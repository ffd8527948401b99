//! What authenticates an account upstream: where it is kept, and keeping it fresh.
//!
//! A sign-in is a JSON document in its vendor's own format, whether it lives in the file that the
//! vendor's client uses or sealed in the store; keys we do not know are kept. A refresh runs once at
//! a time per account, as a task of the service, so that a client that hangs up cannot tear a token
//! rotation half-way. The new refresh token is on disk before the new access token is used: the old
//! one is dead from the moment the issuer answered.

mod books;
mod document;
mod identity;
mod issuer;
mod lock;
mod refresh;
mod source;
mod whose;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use parking_lot::Mutex;
use poolgate_core::account::Kind;
use poolgate_core::refresh::{
    Fault, Need, Past, Standing, Verdict, idle_due_at, may_ask, standing,
};
use poolgate_core::units::Timestamp;

use books::Unsaved;
pub use books::{Books, reseal_rescued};
pub use document::{Grant, SignIn};
pub use identity::{Identity, Likeness};
pub use issuer::{CLAUDE_CLIENT, CLAUDE_SCOPES, CODEX_CLIENT, Issuers};
pub use refresh::RefreshContext;
use source::{Seen, Unread};
pub use source::{Source, Stored, place};
pub use whose::Owner;
use whose::{Told, Whose};

use crate::admission::Overload;
use crate::secret::sha256;
use crate::store::RefreshMark;

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
    /// The issuer refused the refresh token for good: why, and its code.
    #[error("{0} ({1}): poolgate account login signs it in again")]
    NeedsLogin(&'static str, String),
    /// The issuer says that there is no such account any more; its code.
    #[error("the account was deactivated ({0})")]
    Deactivated(String),
    /// We may not ask: too many are being asked.
    #[error(transparent)]
    Overload(#[from] Overload),
    /// 429 without a time: asking on would only make it worse.
    #[error(
        "issuer refuses refresh (429 without a time): run poolgate account login, or account refresh"
    )]
    Blocked,
    #[error("the token could not be refreshed: {0}")]
    Temporary(String),
}

/// A credential in use, with what each request asks of it worked out.
#[derive(Clone, Debug)]
struct Loaded {
    bearer: Bearer,
    /// When it should be refreshed before its next use.
    due_at: Option<Timestamp>,
    /// When these tokens came from the issuer; `None`: not to this process.
    granted_at: Option<Timestamp>,
    /// Which tokens these are, or which key.
    content: [u8; 32],
    /// `None`: an API key.
    sign_in: Option<SignIn>,
    /// Whose it says that it is.
    identity: Identity,
}

/// One account's credential. Cheap to read; refreshing is one flight at a time.
#[derive(Debug)]
pub struct Credential {
    kind: Kind,
    source: Source,
    /// `None`: an API key, about which there is nothing to note.
    books: Option<Books>,
    loaded: ArcSwapOption<Loaded>,
    /// What was used before, the last one first.
    former: Mutex<Vec<Arc<Loaded>>>,
    seen: Mutex<Seen>,
    /// Why there is none.
    problem: Mutex<Option<String>>,
    /// What is known of refreshing, and of which tokens; the store has it too.
    past: Mutex<Option<RefreshMark>>,
    /// What the store has of it, as far as this process wrote or read it.
    noted: Mutex<Option<RefreshMark>>,
    /// The tokens that the issuer gave last, and when.
    granted: Mutex<Option<([u8; 32], Timestamp)>>,
    /// New tokens that could not be written to their place.
    unsaved: Mutex<Option<Unsaved>>,
    /// The tokens whose access token an upstream has refused.
    refused: Mutex<Option<[u8; 32]>>,
    flight: Mutex<Option<refresh::Flight>>,
    whose: Mutex<Whose>,
    /// Whose the provider says that it is.
    learnt: ArcSwapOption<Identity>,
    /// The same, by the way.
    told: Told,
}

/// However short its issuer says that a new token lives, it is not asked for another one before
/// (reliability §6.8); unless the token was refused.
const SERVES_FOR: Duration = Duration::from_secs(30);
/// Tokens live for longer than requests: it is rarely more than one.
const FORMER_KEPT: usize = 4;
/// A file that its owner is about to finish writing is read again after this.
const HALF_WRITTEN: Duration = Duration::from_millis(50);

impl Credential {
    /// Not usable before [`Self::open`].
    pub fn new(kind: Kind, source: Source, books: Option<Books>) -> Self {
        Self {
            kind,
            source,
            books,
            loaded: ArcSwapOption::empty(),
            former: Mutex::default(),
            seen: Mutex::default(),
            problem: Mutex::new(Some("not loaded yet".into())),
            past: Mutex::new(None),
            noted: Mutex::new(None),
            granted: Mutex::new(None),
            unsaved: Mutex::new(None),
            refused: Mutex::new(None),
            flight: Mutex::new(None),
            whose: Mutex::default(),
            learnt: ArcSwapOption::empty(),
            told: Told::default(),
        }
    }

    /// Reads what an earlier process noted, and then the source.
    pub async fn open(&self) {
        let Some(books) = &self.books else {
            self.reload().await;
            return;
        };
        let mut past = books.recall().await;
        self.noted.lock().clone_from(&past);
        if let Some(Past::InDoubt { at, .. }) = past.as_mut().map(|mark| &mut mark.past) {
            // Whoever asked is gone: there is no answer to wait for.
            *at = Timestamp::default();
        }
        *self.past.lock() = past;
        *self.unsaved.lock() = books.rescued(self.kind);
        self.reload().await;
    }

    /// Reads the source again. A missing or broken source leaves the account without a credential
    /// until it is back; one that this process cannot read now, with the one it has. Returns whether the credential changed.
    pub async fn reload(&self) -> bool {
        self.seen.lock().note(self.source.stamp());
        let mut read = self.read().await;
        if read.is_err() && matches!(self.source, Source::AuthFile(_)) {
            tokio::time::sleep(HALF_WRITTEN).await;
            read = self.read().await;
        }
        let before = self.loaded.load_full();
        match read.map(|loaded| self.newest(loaded)) {
            Ok(loaded) => {
                *self.problem.lock() = None;
                if let Some(sign_in) = &loaded.sign_in
                    && self.whose.lock().read(loaded.content, sign_in) != Likeness::Same
                {
                    // Before its tokens are used: no request names somebody else.
                    self.learnt.store(None);
                }
                let changed = before.is_none_or(|before| before.bearer != loaded.bearer);
                self.exchange(Some(loaded));
                changed
            }
            Err(Unread::NotNow(problem)) if before.is_some() => {
                tracing::warn!(problem, "a credential cannot be read, and stays as it was");
                self.seen.lock().forget();
                false
            }
            Err(problem) => {
                if matches!(problem, Unread::NotNow(_)) {
                    self.seen.lock().forget();
                }
                *self.problem.lock() = Some(problem.to_string());
                self.exchange(None);
                before.is_some()
            }
        }
    }

    async fn read(&self) -> Result<Loaded, Unread> {
        self.parse(&self.source.read().await?).map_err(Unread::Missing)
    }

    fn exchange(&self, loaded: Option<Loaded>) {
        let is = loaded.as_ref().map(|loaded| loaded.bearer.clone());
        let Some(was) = self.loaded.swap(loaded.map(Arc::new)) else { return };
        if is.as_ref() != Some(&was.bearer) {
            let mut former = self.former.lock();
            former.insert(0, was);
            former.truncate(FORMER_KEPT);
        }
    }

    /// Tokens that could not be saved are newer than the ones they replace, and older than any
    /// others.
    fn newest(&self, read: Loaded) -> Loaded {
        let mut unsaved = self.unsaved.lock();
        match unsaved.as_ref() {
            Some(kept) if kept.asked == read.content => {
                self.load(kept.sign_in.clone()).unwrap_or(read)
            }
            Some(_) => {
                self.books.iter().for_each(Books::settle);
                *unsaved = None;
                read
            }
            None => read,
        }
    }

    /// The wall clock was set back by `by`.
    pub fn set_back(&self, by: Duration) {
        if let Some(mark) = self.past.lock().as_mut() {
            mark.past.set_back(by);
        }
    }

    /// What an operator should know: why it cannot be used, or not for much longer.
    pub fn problem(&self) -> Option<String> {
        let missing = self.problem.lock().clone();
        missing.or_else(|| {
            let loaded = self.loaded.load_full()?;
            if self.unsaved.lock().is_some() {
                return Some("renewed tokens could not be saved".into());
            }
            let mark = self.mark_of(&loaded)?;
            matches!(mark.past, Past::Blocked | Past::Refused(_))
                .then(|| refresh::refusal(&mark).to_string())
        })
    }

    /// Another process has changed the file since it was last read.
    pub fn changed_on_disk(&self) -> bool {
        self.seen.lock().differs(self.source.stamp())
    }

    /// What it is good for, and which tokens that is about.
    pub fn standing(&self, now: Timestamp) -> (Standing, [u8; 32]) {
        let Some(loaded) = self.loaded.load_full() else {
            return (Standing::Unavailable, [0; 32]);
        };
        let past = self.mark_of(&loaded).map(|mark| mark.past).unwrap_or_default();
        (standing(past, self.is_spent(&loaded, now)), loaded.content)
    }

    /// Its tokens are not the ones an earlier process was refused for.
    pub fn is_renewed(&self) -> bool {
        let mark = self.past.lock();
        let loaded = self.loaded.load();
        mark.as_ref().zip(loaded.as_ref()).is_some_and(|(mark, loaded)| {
            matches!(mark.past, Past::Blocked | Past::Refused(_)) && mark.content != loaded.content
        })
    }

    /// Why the issuer would never again renew the tokens that were here before.
    pub fn refused_before(&self) -> Option<Fault> {
        let mark = self.past.lock();
        match (mark.as_ref()?, self.loaded.load().as_ref()?) {
            (RefreshMark { past: Past::Refused(fault), content, .. }, loaded)
                if *content != loaded.content =>
            {
                Some(*fault)
            }
            _ => None,
        }
    }

    /// Tells its tokens from others; `None`: there are none.
    pub fn content(&self) -> Option<[u8; 32]> {
        Some(self.loaded.load().as_ref()?.content)
    }

    /// Told apart from what it was before by [`Owner::since`].
    pub fn owner(&self) -> Owner {
        self.whose.lock().owner
    }

    /// Whether both are the same person's, as far as their documents say.
    pub fn compare(&self, other: &Self) -> Likeness {
        let identity = |credential: &Self| {
            let loaded = credential.loaded.load_full();
            loaded.map(|loaded| loaded.identity.clone()).unwrap_or_default()
        };
        identity(self).compare(&identity(other))
    }

    /// The present token has expired, or an upstream has refused it.
    fn is_spent(&self, loaded: &Loaded, now: Timestamp) -> bool {
        let is_expired = loaded.sign_in.as_ref().is_some_and(|sign_in| sign_in.is_expired(now));
        (is_expired && !loaded.is_new(now)) || *self.refused.lock() == Some(loaded.content)
    }

    fn mark_of(&self, loaded: &Loaded) -> Option<RefreshMark> {
        self.past.lock().clone().filter(|mark| mark.content == loaded.content)
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The plan named by the credential itself, if any.
    pub fn plan(&self) -> Option<String> {
        self.loaded.load_full()?.sign_in.as_ref()?.plan()
    }

    /// Account uuid that a Claude client would put into `metadata.user_id`: from the document, else
    /// as the provider's profile told it.
    pub fn claude_account_uuid(&self) -> Option<String> {
        let written = self.loaded.load_full()?.sign_in.as_ref()?.claude_account_uuid();
        written.or_else(|| self.learnt.load_full()?.person.clone())
    }

    /// Forgotten when the sign-in becomes one that may be somebody else's.
    pub fn learn(&self, whose: Identity) {
        self.learnt.store(Some(Arc::new(whose)));
    }

    /// A request that is under way may have been sent with tokens that are not the present ones any more.
    fn in_use(&self) -> Vec<Arc<Loaded>> {
        let present = self.loaded.load_full();
        present.into_iter().chain(self.former.lock().iter().cloned()).collect()
    }

    /// What names or authenticates the account, and must not be shown to clients.
    pub fn identifiers(&self) -> Vec<String> {
        let in_use = self.in_use();
        let headers = in_use.iter().flat_map(|loaded| {
            std::iter::once(&loaded.bearer.token).chain(&loaded.bearer.account_id)
        });
        let own = headers.filter_map(|value| Some(value.to_str().ok()?.to_owned()));
        // A very short one would cut harmless text to pieces.
        own.chain(self.claude_account_uuid()).filter(|id| id.len() >= 8).collect()
    }

    /// Likewise what names the person behind it, and the organization, as far as anybody has said.
    pub fn names(&self) -> Vec<String> {
        let (in_use, learnt) = (self.in_use(), self.learnt.load_full());
        let all = in_use.iter().map(|loaded| &loaded.identity).chain(learnt.as_deref());
        all.flat_map(Identity::names).map(str::to_owned).chain(self.told.names()).collect()
    }

    /// Whom an answer names as its owner.
    pub fn note_told<'a>(&self, names: impl Iterator<Item = &'a str>) {
        self.told.note(names);
    }

    /// A token to use now. One that is due but still good is refreshed beside the request.
    pub async fn bearer(
        self: &Arc<Self>,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        let now = context.clock.now();
        let loaded = self.current()?;
        if self.is_spent(&loaded, now) {
            return self.refresh(&loaded.bearer, Need::Now, context).await;
        }
        if loaded.is_due(now) && self.may_refresh(&loaded, Need::Early, now) {
            self.flight(&loaded.bearer, Need::Early, context);
        }
        Ok(loaded.bearer.clone())
    }

    /// The token as it is; `None` when it should be refreshed first.
    pub fn ready(&self, now: Timestamp) -> Result<Option<Bearer>, CredentialError> {
        let loaded = self.current()?;
        let good = !loaded.is_due(now) && !self.is_spent(&loaded, now);
        Ok(good.then(|| loaded.bearer.clone()))
    }

    /// Replaces a token that the upstream refused. An API key is replaced by people only.
    pub async fn replace(
        self: &Arc<Self>,
        refused: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        let loaded = self.current()?;
        if loaded.sign_in.is_none() {
            return loaded.other_than(refused);
        }
        if loaded.bearer.token == refused.token {
            *self.refused.lock() = Some(loaded.content);
        }
        self.refresh(refused, Need::Now, context).await
    }

    /// Whether there may be another token than the refused one: an API key is what it is.
    pub fn may_replace(&self, refused: &Bearer) -> bool {
        let is_other =
            |loaded: Arc<Loaded>| loaded.sign_in.is_some() || loaded.bearer.token != refused.token;
        self.current().is_ok_and(is_other)
    }

    /// Whether who was refused behind a renewal may ask for another: its token was not the issuer's
    /// answer, but one that another process had put into the source, or has been replaced since.
    pub fn may_renew_again(&self, refused: &Bearer) -> bool {
        let Ok(loaded) = self.current() else { return false };
        let is_found = loaded.sign_in.is_some() && loaded.granted_at.is_none();
        loaded.bearer.token != refused.token || is_found
    }

    /// Renews a token that a usage endpoint refused, which does not say that requests would be.
    pub async fn replace_softly(
        self: &Arc<Self>,
        refused: &Bearer,
        context: &RefreshContext,
    ) -> Result<Bearer, CredentialError> {
        self.refresh(refused, Need::Now, context).await
    }

    /// Asks the issuer whatever it said before, for an operator who waits.
    pub async fn force(self: &Arc<Self>, context: &RefreshContext) -> Result<(), CredentialError> {
        let loaded = self.current()?;
        if loaded.sign_in.is_none() {
            return Err(CredentialError::Missing("an API key is not renewed".into()));
        }
        self.refresh(&loaded.bearer, Need::Forced, context).await.map(drop)
    }

    /// Renews a token that nobody uses before a request would have to. `seed` spreads the accounts.
    pub async fn keep_fresh(self: &Arc<Self>, seed: u64, context: &RefreshContext) {
        let now = context.clock.now();
        let Ok(loaded) = self.current() else { return };
        let (Some(sign_in), Some(due_at)) = (&loaded.sign_in, loaded.due_at) else { return };
        let need = if self.is_spent(&loaded, now) { Need::Now } else { Need::Early };
        let granted_at = loaded.granted_at;
        let idle_due_at = match sign_in.short_lead(granted_at) {
            Some(_) => due_at,
            None => idle_due_at(due_at, sign_in.lifetime(granted_at), seed),
        };
        let is_due = idle_due_at <= now && !loaded.is_new(now);
        if is_due && self.may_refresh(&loaded, need, now) {
            // It was logged where it failed; a request that needs it asks again.
            let _ = self.refresh(&loaded.bearer, need, context).await;
        }
    }

    fn may_refresh(&self, loaded: &Loaded, need: Need, now: Timestamp) -> bool {
        let past = self.mark_of(loaded).map(|mark| mark.past).unwrap_or_default();
        may_ask(past, need, now) == Verdict::Ask
    }

    fn current(&self) -> Result<Arc<Loaded>, CredentialError> {
        self.loaded.load_full().ok_or_else(|| {
            let problem = self.problem.lock().clone();
            CredentialError::Missing(problem.unwrap_or_else(|| "not loaded".into()))
        })
    }

    fn parse(&self, bytes: &[u8]) -> Result<Loaded, String> {
        if self.kind.is_subscription() {
            return self.load(SignIn::parse(self.kind, bytes)?);
        }
        let key = std::str::from_utf8(bytes).unwrap_or_default().trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the API key is empty or has characters no key has".into());
        }
        let bearer = Bearer::new(key, None)?;
        let content = sha256(key.as_bytes());
        let identity = Identity::default();
        Ok(Loaded { bearer, due_at: None, granted_at: None, content, sign_in: None, identity })
    }

    fn load(&self, sign_in: SignIn) -> Result<Loaded, String> {
        let (bearer, content) = (sign_in.bearer()?, sign_in.content());
        let granted = self.granted.lock().filter(|(granted, _)| *granted == content);
        let granted_at = granted.map(|(_, at)| at);
        let due_at = sign_in.due_at(granted_at);
        let identity = sign_in.identity();
        Ok(Loaded { bearer, due_at, granted_at, content, sign_in: Some(sign_in), identity })
    }
}

impl Loaded {
    /// A refusal may come late: what is about the key of before is not held against the one that was put
    /// in its place meanwhile.
    fn other_than(&self, refused: &Bearer) -> Result<Bearer, CredentialError> {
        if self.bearer.token == refused.token {
            return Err(CredentialError::Missing("the API key was refused".into()));
        }
        Ok(self.bearer.clone())
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.due_at.is_some_and(|at| at <= now) && !self.is_new(now)
    }

    fn is_new(&self, now: Timestamp) -> bool {
        // After the clock was set back nobody knows.
        self.granted_at.is_some_and(|at| at <= now && now < at.plus(SERVES_FOR))
    }
}

/// What a JSON Web Token says. Not verified: it came from its issuer, or from the user.
fn jwt_claims(token: &str) -> Option<serde_json::Value> {
    use base64::Engine;
    let payload = token.split('.').nth(1)?;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    serde_json::from_slice(&engine.decode(payload.trim_end_matches('=')).ok()?).ok()
}

/// A claim that is a time.
fn jwt_time(token: &str, claim: &str) -> Option<Timestamp> {
    Timestamp::from_unix_seconds(jwt_claims(token)?.get(claim)?.as_i64()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_refusal_of_the_old_key_is_not_held_against_the_new_one() {
        let credential = Credential::new(Kind::OpenAi, Source::KeyEnv("NONE".into()), None);
        let [old, new] = ["sk-old", "sk-new"].map(|key| credential.parse(key.as_bytes()).unwrap());
        assert_eq!(new.other_than(&old.bearer).unwrap(), new.bearer);
        assert!(new.other_than(&new.bearer).is_err());
    }

    /// spec §6: what is relayed is scrubbed.
    #[tokio::test]
    async fn a_token_that_was_used_until_just_now_is_still_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |token: &str| {
            let document = format!(r#"{{"claudeAiOauth":{{"accessToken":"{token}"}}}}"#);
            std::fs::write(file.path(), document).unwrap();
        };
        write("token-one");
        let source = Source::AuthFile(file.path().to_owned());
        let credential = Credential::new(Kind::Claude, source, None);
        credential.open().await;
        write("token-two");
        assert!(credential.reload().await && !credential.reload().await);
        assert_eq!(credential.identifiers(), ["token-two", "token-one"]);
        std::fs::remove_file(file.path()).unwrap();
        assert!(credential.reload().await);
        assert_eq!(credential.identifiers(), ["token-two", "token-one"]);
    }
}
