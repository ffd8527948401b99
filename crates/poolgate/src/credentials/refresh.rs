//! Renewing a sign-in without ever losing it.
//!
//! The order is everything: reread, since somebody may have been faster; wait for the lock against
//! other processes, and reread; note that the issuer is asked, durably; wait for the issuer's turn, and
//! reread; ask; write the new tokens, durably; only then use them. A crash between two steps leaves the
//! old tokens in place, and a note that tells the next process whether they may have been exchanged.
//! The turn comes last, so that what an account waits for by itself, a lock or the disk, keeps no other
//! account of the issuer waiting. What the issuer's answers mean, and when it may be asked again, is
//! core's `refresh`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::Uri;
use poolgate_core::refresh::{Fault, Need, Past, Verdict, learn, may_ask};
use poolgate_core::units::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::books::{Books, Unsaved};
use super::document::Grant;
use super::issuer::{self, Issuers, Turn};
use super::lock::Lock;
use super::{Bearer, Credential, CredentialError, Loaded, SignIn};
use crate::admission::{Admission, Bound};
use crate::clock::Clock;
use crate::config::Way;
use crate::egress::Egress;
use crate::metrics::{Metrics, Refreshed};
use crate::store::RefreshMark;
use crate::tasks::Tasks;

/// Longest that a request waits for a flight, from its beginning; then another account serves.
const PATIENCE: Duration = Duration::from_secs(5);
/// A token that the issuer calls used was perhaps used by another process that is about to write
/// what it got.
const OTHERS_WRITE_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a refresh needs of the service.
#[derive(Clone)]
pub struct RefreshContext {
    /// The account's name, for the log.
    pub account: String,
    pub token_url: Option<Uri>,
    pub issuers: Issuers,
    pub egress: Egress,
    /// The account's; the issuer is reached by it, too.
    pub way: Way,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    pub tasks: Tasks,
}

type Renewed = Result<Bearer, CredentialError>;

/// A refresh that is under way.
#[derive(Clone, Debug)]
pub struct Flight {
    began: Instant,
    /// What it replaces.
    stale: Bearer,
    need: Need,
    landing: Shared<BoxFuture<'static, Renewed>>,
}

/// Lets the next flight start, however this one ends.
struct Landed(Arc<Credential>);

impl Drop for Landed {
    fn drop(&mut self) {
        *self.0.flight.lock() = None;
    }
}

fn told(renewed: &Renewed) -> Refreshed {
    match renewed {
        Ok(_) => Refreshed::Renewed,
        Err(CredentialError::NeedsLogin(..) | CredentialError::Deactivated(_)) => {
            Refreshed::Refused
        }
        Err(CredentialError::Overload(_)) => Refreshed::Shed,
        Err(_) => Refreshed::Failed,
    }
}

fn stopping() -> CredentialError {
    CredentialError::Temporary("the gateway is stopping".into())
}

/// Why nobody is asked: what is known of it, as an error.
pub fn refusal(mark: &RefreshMark) -> CredentialError {
    let code = mark.code.clone();
    match mark.past {
        Past::Refused(Fault::Deactivated) => CredentialError::Deactivated(code),
        Past::Refused(fault) => CredentialError::NeedsLogin(fault.text(), code),
        Past::Blocked => CredentialError::Blocked,
        Past::InDoubt { .. } | Past::Failed { .. } | Past::Nothing => {
            CredentialError::Temporary(code)
        }
    }
}

impl Credential {
    /// Joins the flight, or begins one. It runs to its end even if every caller goes away.
    pub(super) fn flight(
        self: &Arc<Self>,
        stale: &Bearer,
        need: Need,
        context: &RefreshContext,
    ) -> Flight {
        let mut flight = self.flight.lock();
        if let Some(flight) = flight.as_ref() {
            return flight.clone();
        }
        let (this, replaced, own) = (Arc::clone(self), stale.clone(), context.clone());
        let task = context.tasks.spawn(async move {
            // It waits for the lock that is held here, so a flight is never forgotten too early.
            let _landed = Landed(Arc::clone(&this));
            let renewed = this.renew(&replaced, need, &own).await;
            own.metrics.refreshes.add(told(&renewed) as usize);
            renewed
        });
        let panicked = || CredentialError::Temporary("the refresh panicked".into());
        let landing = task.map(move |ended| ended.unwrap_or_else(|_| Err(panicked())));
        let landing = landing.boxed().shared();
        flight.insert(Flight { began: Instant::now(), stale: stale.clone(), need, landing }).clone()
    }

    pub(super) async fn refresh(
        self: &Arc<Self>,
        stale: &Bearer,
        need: Need,
        context: &RefreshContext,
    ) -> Renewed {
        let flight = self.flight(stale, need, context);
        let (dared_less, for_another) = (flight.need < need, flight.stale.token != stale.token);
        match Self::land(flight, need).await {
            // A flight for a lesser need may not have dared to ask.
            Err(_) if dared_less => Self::land(self.flight(stale, need, context), need).await,
            // One for an older token may have found the very token that was refused since.
            Ok(found) if for_another && found.token == stale.token => {
                Self::land(self.flight(stale, need, context), need).await
            }
            landed => landed,
        }
    }

    async fn land(flight: Flight, need: Need) -> Renewed {
        let Flight { began, landing, .. } = flight;
        match need {
            Need::Now => timeout_at(began + PATIENCE, landing).await.unwrap_or_else(|_| {
                Err(CredentialError::Temporary("its issuer takes long".into()))
            }),
            // Nobody waits, or somebody who wants to know how it ends.
            Need::Early | Need::Forced => landing.await,
        }
    }

    fn books(&self) -> Result<&Books, CredentialError> {
        let missing = || CredentialError::Missing("an API key is not renewed".into());
        self.books.as_ref().ok_or_else(missing)
    }

    async fn renew(&self, stale: &Bearer, need: Need, context: &RefreshContext) -> Renewed {
        let (now, books) = (|| context.clock.now(), self.books()?);
        self.save_unsaved(context).await;
        if let Some(fresh) = self.reread(stale, now()).await {
            return Ok(fresh);
        }
        self.permit(need, now())?;
        let temporary = CredentialError::Temporary;
        let issuer = context.token_url.as_ref().ok_or_else(|| temporary("no token_url".into()))?;
        // Who joins a flight, and who finds good tokens, has not come here.
        let _asking = context.admission.enter(Bound::TokenRefresh)?;
        let _lock = self.lock(books, context).await?;
        if let Some(fresh) = self.reread(stale, now()).await {
            return Ok(fresh);
        }
        self.recall(books).await;
        let (sign_in, tries) = self.permit(need, now())?;
        let Some(refresh_token) = sign_in.refresh_token() else {
            let problem = "there is no refresh token";
            return Err(CredentialError::NeedsLogin(problem, "no_refresh_token".into()));
        };
        self.source.check_writable().map_err(temporary)?;
        // From here to the new tokens on disk a crash leaves this note, and the next process knows
        // that the old ones may be spent.
        let past = Past::InDoubt { tries: tries.saturating_add(1), at: now() };
        let note = RefreshMark { content: sign_in.content(), past, code: "no answer".into() };
        self.note(books, &note).await.map_err(temporary)?;
        let mut turn = match self.turn(issuer, &note, stale, context).await {
            Ok(turn) => turn,
            Err(instead) => {
                self.unnote(books, context).await;
                return instead;
            }
        };
        let answer = issuer::ask(self.kind, &sign_in, refresh_token, issuer, context).await;
        turn.used();
        drop(turn);
        match answer {
            Ok(grant) => self.adopt(books, &sign_in, &grant, context).await,
            Err(failed) => {
                let mark = RefreshMark {
                    content: sign_in.content(),
                    past: learn(failed.failure(), tries, now()),
                    code: failed.code,
                };
                self.fail(books, stale, mark, context).await
            }
        }
    }

    async fn lock(&self, books: &Books, context: &RefreshContext) -> Result<Lock, CredentialError> {
        let lock = self.source.lock(self.kind, books, &context.tasks);
        let locked = context.tasks.stop.run_until_cancelled(lock).await.ok_or_else(stopping)?;
        locked.map_err(CredentialError::Temporary)
    }

    /// Waits until the issuer may be asked with the tokens that `note` is about. An error: it is not to
    /// be asked, and that is how the flight ends.
    async fn turn(
        &self,
        issuer: &Uri,
        note: &RefreshMark,
        stale: &Bearer,
        context: &RefreshContext,
    ) -> Result<Turn, Renewed> {
        // What begins now has the time that a stop leaves it.
        let turn = context.tasks.stop.run_until_cancelled(context.issuers.turn(issuer)).await;
        let turn = turn.ok_or_else(|| Err(stopping()))?;
        // Not everybody who writes the file knows the lock.
        if let Some(fresh) = self.reread(stale, context.clock.now()).await {
            return Err(Ok(fresh));
        }
        if self.content() != Some(note.content) {
            let problem = "another process has changed the sign-in just now";
            return Err(Err(CredentialError::Temporary(problem.into())));
        }
        Ok(turn)
    }

    async fn note(&self, books: &Books, mark: &RefreshMark) -> Result<(), String> {
        books.mark(mark).await?;
        *self.noted.lock() = Some(mark.clone());
        Ok(())
    }

    /// The issuer was not asked after all.
    async fn unnote(&self, books: &Books, context: &RefreshContext) {
        let Some(before) = self.past.lock().clone() else {
            books.forget().await;
            return;
        };
        if let Err(problem) = self.note(books, &before).await {
            // It says that the tokens may be spent, which costs a pause.
            tracing::warn!(account = context.account, problem, "a note stays that is not true");
        }
    }

    /// What another process has noted of the very tokens that are here.
    async fn recall(&self, books: &Books) {
        let Some(mark) = books.recall().await else { return };
        let mut noted = self.noted.lock();
        // Ours may have changed since: it follows the clock.
        if noted.as_ref() != Some(&mark) && self.content() == Some(mark.content) {
            *self.past.lock() = Some(mark.clone());
            *noted = Some(mark);
        }
    }

    /// A good token other than `stale`, if the source has one by now.
    async fn reread(&self, stale: &Bearer, now: Timestamp) -> Option<Bearer> {
        self.reload().await;
        let loaded = self.loaded.load_full()?;
        let newer = loaded.bearer.token != stale.token && !self.is_spent(&loaded, now);
        newer.then(|| loaded.bearer.clone())
    }

    /// The sign-in to renew, and how often it was asked for without an answer.
    fn permit(&self, need: Need, now: Timestamp) -> Result<(SignIn, u32), CredentialError> {
        let loaded = self.current()?;
        let Some(sign_in) = loaded.sign_in.clone() else {
            return Err(CredentialError::Missing("an API key cannot be refreshed".into()));
        };
        if self.unsaved.lock().is_some() {
            return Err(CredentialError::Temporary("renewed tokens are not saved yet".into()));
        }
        let Some(mark) = self.mark_of(&loaded) else {
            return Ok((sign_in, 0));
        };
        match (may_ask(mark.past, need, now), mark.past) {
            (Verdict::Ask, Past::InDoubt { tries, .. }) => Ok((sign_in, tries)),
            (Verdict::Ask, _) => Ok((sign_in, 0)),
            _ => Err(refusal(&mark)),
        }
    }

    /// Writes first, then uses. What cannot be written is kept elsewhere, and the trouble is loud.
    async fn adopt(
        &self,
        books: &Books,
        asked: &SignIn,
        grant: &Grant,
        context: &RefreshContext,
    ) -> Renewed {
        let now = context.clock.now();
        let name = &context.account;
        // The old tokens are dead, and these are nowhere yet: what follows waits for the disk.
        let renew = |sign_in: &SignIn| match sign_in.renewed(grant, now) {
            renewed if self.source.is_shared() => renewed,
            renewed => renewed.with_identity(grant),
        };
        let unsaved = Unsaved { asked: asked.content(), sign_in: renew(asked) };
        if let Err(error) = books.rescue(&unsaved, false) {
            tracing::warn!(account = name, error = format!("{error:#}"), "no copy of new tokens");
        }
        // Another writer may have changed other parts of the document meanwhile, or the tokens.
        let found = self.read().await;
        let is_asked = |found: &Loaded| found.content == asked.content();
        let base = found.as_ref().ok().filter(|found| is_asked(found));
        let base = base.and_then(|found| found.sign_in.as_ref()).unwrap_or(asked);
        let renewed = renew(base);
        *self.granted.lock() = Some((renewed.content(), now));
        let loaded = self.load(renewed.clone()).map_err(CredentialError::Temporary)?;
        let bearer = loaded.bearer.clone();
        let written = match &found {
            Ok(found) if !is_asked(found) => Ok(false),
            Ok(_) => self.source.write(renewed.to_bytes(), now).await,
            // Somebody took it away, and may have meant it.
            Err(problem) => Err(problem.to_string()),
        };
        match written {
            Ok(true) => {
                self.put(loaded);
                books.settle();
                books.forget().await;
            }
            Ok(false) => {
                books.settle();
                tracing::warn!(account = name, "another writer replaced the sign-in meanwhile");
                self.reload().await;
                return self.current().map(|loaded| loaded.bearer.clone());
            }
            Err(error) => {
                tracing::error!(account = name, error, "renewed tokens could not be saved");
                let unsaved = Unsaved { sign_in: renewed, ..unsaved };
                if let Err(error) = books.rescue(&unsaved, true) {
                    let error = format!("{error:#}");
                    tracing::error!(account = name, error, "and are in memory only");
                }
                *self.unsaved.lock() = Some(unsaved);
                self.put(loaded);
            }
        }
        tracing::info!(account = name, "the sign-in was renewed");
        Ok(bearer)
    }

    fn put(&self, loaded: Loaded) {
        *self.problem.lock() = None;
        *self.past.lock() = None;
        self.whose.lock().renewed(loaded.content);
        self.exchange(Some(loaded));
    }

    async fn fail(
        &self,
        books: &Books,
        stale: &Bearer,
        mark: RefreshMark,
        context: &RefreshContext,
    ) -> Renewed {
        let shared = matches!(mark.past, Past::Refused(_)) && self.source.is_shared();
        let patience = if shared { OTHERS_WRITE_WITHIN } else { Duration::ZERO };
        let until = Instant::now() + patience;
        loop {
            if let Some(fresh) = self.reread(stale, context.clock.now()).await {
                tracing::info!(
                    account = context.account,
                    "another process has renewed the sign-in"
                );
                books.forget().await;
                return Ok(fresh);
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let error = refusal(&mark);
        match mark.past {
            Past::Blocked | Past::Refused(_) => {
                tracing::error!(account = context.account, %error, code = mark.code, "no refresh");
            }
            _ => tracing::warn!(account = context.account, %error, "the refresh failed"),
        }
        *self.past.lock() = Some(mark.clone());
        if let Err(problem) = self.note(books, &mark).await {
            // The note made before stays: the next process takes the tokens for possibly spent.
            tracing::warn!(account = context.account, problem, "a failed refresh was not noted");
        }
        Err(error)
    }

    /// Tries again to put tokens where they belong.
    pub async fn save_unsaved(&self, context: &RefreshContext) {
        if self.unsaved.lock().is_none() {
            return;
        }
        let Ok(books) = self.books() else { return };
        let Ok(_lock) = self.lock(books, context).await else { return };
        // Who had the lock may have saved them, and got others.
        let Some(unsaved) = self.unsaved.lock().clone() else { return };
        // Whatever else is there is newer; a source that is away is waited for.
        let Ok(found) = self.read().await else { return };
        let asked = found.content == unsaved.asked;
        if asked {
            let written = self.source.write(unsaved.sign_in.to_bytes(), context.clock.now()).await;
            if !matches!(written, Ok(true)) {
                return;
            }
            tracing::info!(account = context.account, "renewed tokens are saved at last");
        }
        *self.unsaved.lock() = None;
        books.settle();
        books.forget().await;
        self.reload().await;
    }
}
