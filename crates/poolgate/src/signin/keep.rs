//! Storing what a sign-in gave: as a new account, or for one that there is.
//!
//! An account stays the same person's in the same workspace, unless an operator says otherwise: what
//! is known of it, and who may use it, was about that one. A file is changed under its vendor's
//! lock, and only where the sign-in stands in it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use poolgate_core::account::{AccountId, Kind};
use poolgate_core::units::Timestamp;

use super::Signed;
use crate::config::{AccountSpec, CredentialSource, RawAccount};
use crate::credentials::{Books, Identity, Likeness, SignIn, Source, place};
use crate::files;
use crate::pool::resolve;
use crate::sealing::DataKey;
use crate::store::{AccountRow, Origin, Store};
use crate::tasks::Tasks;
use crate::vault;

/// Where sign-ins are stored.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub store: Store,
    pub data_key: Arc<DataKey>,
    /// Where notes about credentials and their locks are.
    pub dir: PathBuf,
    pub tasks: Tasks,
}

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("that is another account: {name} is {}, and this is {}", told(.was, .is), told(.is, .was))]
    Other { name: String, was: Box<Identity>, is: Box<Identity> },
    #[error("the vendor does not say whose sign-in this is, and {0} is {1}")]
    Nameless(String, String),
    #[error(transparent)]
    Trouble(#[from] anyhow::Error),
}

/// The address, and what tells it from an `other` one with the same address.
fn told(whose: &Identity, other: &Identity) -> String {
    let name = whose.name().unwrap_or("somebody unknown");
    match &whose.organization {
        Some(organization) if other.organization.as_ref() != Some(organization) => {
            let short: String = organization.chars().take(8).collect();
            format!("{name} in workspace {short}…")
        }
        _ => name.to_owned(),
    }
}

impl Keeper {
    /// `None`: there is an account of that name.
    pub async fn add(
        &self,
        settings: &RawAccount,
        signed: &Signed,
        now: Timestamp,
    ) -> anyhow::Result<Option<AccountId>> {
        let settings = vault::seal_one(settings.clone(), &self.data_key)?;
        let Some(id) = self.store.add_account(&settings, Origin::Cli, now).await? else {
            return Ok(None);
        };
        let stored = async {
            let sealed = self.data_key.seal(&place(id), &signed.sign_in.to_bytes())?;
            anyhow::Ok(self.store.put_credential(id, &sealed, now).await?)
        };
        if let Err(error) = stored.await {
            // An account without a credential would only look like one.
            self.store.remove_account(id, now).await?;
            return Err(error);
        }
        Ok(Some(id))
    }

    /// Puts the sign-in in the place of the account's own, ends what stopped it, and leaves the rest
    /// as it is; a running gateway notices. Returns whether it is known to be the same one's.
    pub async fn again(
        &self,
        row: &AccountRow,
        signed: &Signed,
        replace: bool,
        now: Timestamp,
    ) -> Result<Likeness, KeepError> {
        let spec = self.spec(row, signed.kind())?;
        let CredentialSource::AuthFile(path) = &spec.source else {
            let before =
                self.sealed(row.id, self.store.credential(row.id).await.context("the store")?);
            let likeness = judge(row, before.as_deref(), signed, replace)?;
            let new = signed.sign_in.clone().over(before.as_deref().unwrap_or_default(), false);
            let sealed = self.data_key.seal(&place(row.id), &new.to_bytes())?;
            self.signed_in(row.id, Some(&sealed), likeness, now).await?;
            return Ok(likeness);
        };
        let source = Source::AuthFile(path.clone());
        let is_there = path.exists();
        let books = self.books(row.id);
        let _lock = if is_there {
            let lock = source.lock(spec.kind, &books, &self.tasks).await;
            Some(lock.map_err(anyhow::Error::msg)?)
        } else {
            None
        };
        let before = source.read().await.ok();
        let likeness = judge(row, before.as_deref(), signed, replace)?;
        let new = signed.sign_in.clone().over(before.as_deref().unwrap_or_default(), true);
        if is_there {
            source.write(new.to_bytes(), now).await.map_err(anyhow::Error::msg)?;
        } else {
            create(path, &new.to_bytes()).with_context(|| format!("writing {}", path.display()))?;
        }
        self.signed_in(row.id, None, likeness, now).await?;
        Ok(likeness)
    }

    async fn signed_in(
        &self,
        id: AccountId,
        sealed: Option<&[u8]>,
        likeness: Likeness,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let is_other = likeness == Likeness::Other;
        Ok(self.store.signed_in(id, sealed, is_other, now).await?)
    }

    /// Where the account is renewed, and whether a sign-in could be put in its place: asked before a
    /// person is.
    pub fn spec(&self, row: &AccountRow, kind: Kind) -> anyhow::Result<AccountSpec> {
        let name = &row.settings.name;
        let spec = resolve(row, Some(&self.data_key))
            .map_err(|errors| anyhow::anyhow!("{name}: {}", errors.join("; ")))?;
        anyhow::ensure!(
            spec.kind == kind,
            "{name} is of kind {}, not {}",
            spec.kind.name(),
            kind.name()
        );
        if let CredentialSource::AuthFile(path) = &spec.source
            && path.exists()
        {
            Source::AuthFile(path.clone()).check_writable().map_err(anyhow::Error::msg)?;
        }
        Ok(spec)
    }

    /// The accounts of the store that this sign-in belongs to already. Claude Code's file does not say
    /// whose it is, but the same tokens are the same sign-in.
    pub async fn siblings(&self, signed: &Signed) -> anyhow::Result<Vec<AccountRow>> {
        let (kind, content) = (signed.kind(), signed.sign_in.content());
        let mut found = Vec::new();
        for row in self.store.accounts().await? {
            let document = self.document(&row, kind).await;
            let own = document.as_deref().and_then(|own| SignIn::parse(kind, own).ok());
            let is_same = identity(kind, document.as_deref()).compare(&signed.whose)
                == Likeness::Same
                || own.is_some_and(|own| own.content() == content);
            if is_same {
                found.push(row);
            }
        }
        Ok(found)
    }

    /// The account's own tokens live longer than these of the same one: they were given later.
    pub fn holds_newer(&self, row: &AccountRow, than: &SignIn) -> bool {
        let own = self.sealed(row.id, row.sealed.clone());
        let Some(own) = own.and_then(|own| SignIn::parse(than.kind(), &own).ok()) else {
            return false;
        };
        let ends = own.expires_at().zip(than.expires_at());
        own.identity().compare(&than.identity()) != Likeness::Other
            && ends.is_some_and(|(own, other)| own > other)
    }

    /// What the account of this kind is signed in by.
    async fn document(&self, row: &AccountRow, kind: Kind) -> Option<Vec<u8>> {
        let spec = resolve(row, Some(&self.data_key)).ok().filter(|spec| spec.kind == kind)?;
        match spec.source {
            CredentialSource::Stored => self.sealed(row.id, row.sealed.clone()),
            CredentialSource::AuthFile(path) => Source::AuthFile(path).read().await.ok(),
            _ => None,
        }
    }

    fn sealed(&self, id: AccountId, row: Option<(Vec<u8>, i64)>) -> Option<Vec<u8>> {
        self.data_key.open(&place(id), &row?.0).ok()
    }

    fn books(&self, account: AccountId) -> Books {
        let (store, data_key) = (self.store.clone(), Arc::clone(&self.data_key));
        Books { account, store, data_key, dir: self.dir.clone() }
    }
}

fn identity(kind: Kind, document: Option<&[u8]>) -> Identity {
    let parsed = document.and_then(|bytes| SignIn::parse(kind, bytes).ok());
    parsed.map(|sign_in| sign_in.identity()).unwrap_or_default()
}

fn judge(
    row: &AccountRow,
    before: Option<&[u8]>,
    signed: &Signed,
    replace: bool,
) -> Result<Likeness, KeepError> {
    let (was, is) = (identity(signed.kind(), before), signed.whose.clone());
    let likeness = was.compare(&is);
    let name = row.settings.name.clone();
    match likeness {
        Likeness::Other if !replace => {
            Err(KeepError::Other { name, was: Box::new(was), is: Box::new(is) })
        }
        Likeness::Unknown if !replace && is == Identity::default() && was != is => {
            Err(KeepError::Nameless(name, told(&was, &is)))
        }
        _ => Ok(likeness),
    }
}

fn create(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        files::create_private_dir(folder)?;
    }
    files::replace_private(path, content)
}
