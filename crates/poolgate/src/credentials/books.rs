//! What is written down about renewing one account's sign-in, so that a crash or a full disk loses
//! nothing that was in our hands.

use std::path::PathBuf;
use std::sync::Arc;

use poolgate_core::account::{AccountId, Kind};
use serde_json::value::RawValue;

use super::SignIn;
use crate::files;
use crate::secret::MasterKey;
use crate::store::{RefreshMark, Store};

/// Where one account's notes go.
#[derive(Clone, Debug)]
pub struct Books {
    pub account: AccountId,
    pub store: Store,
    pub master_key: Arc<MasterKey>,
    /// Lock files, and tokens that could not be written to their own place.
    pub dir: PathBuf,
}

/// New tokens that are not yet where they belong.
#[derive(Clone, Debug)]
pub struct Unsaved {
    /// The tokens they replace: anything else found there is newer.
    pub asked: [u8; 32],
    pub sign_in: SignIn,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Rescued<'a> {
    asked: [u8; 32],
    #[serde(borrow)]
    document: &'a RawValue,
}

impl Books {
    pub async fn mark(&self, mark: &RefreshMark) -> Result<(), String> {
        self.store.mark_refresh(self.account, mark).await.map_err(|error| error.to_string())
    }

    pub async fn forget(&self) {
        // A mark about other tokens means nothing, so this may fail.
        if let Err(error) = self.store.forget_refresh(self.account).await {
            tracing::warn!(%error, "a note about a refresh could not be deleted");
        }
    }

    pub async fn recall(&self) -> Option<RefreshMark> {
        self.store.refresh_mark(self.account).await.unwrap_or_else(|error| {
            tracing::error!(%error, "notes about refreshes cannot be read");
            None
        })
    }

    pub fn lock_file(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.account.0))
    }

    fn rescue_file(&self) -> PathBuf {
        self.dir.join(format!("{}.rescued", self.account.0))
    }

    fn rescue_place(&self) -> String {
        format!("rescued/{}", self.account.0)
    }

    /// Keeps tokens, sealed, that are not yet in their own place. Durable when it returns, if
    /// `durably`; else only the end of this process is outlived, at once.
    pub fn rescue(&self, unsaved: &Unsaved, durably: bool) -> anyhow::Result<()> {
        let document = String::from_utf8(unsaved.sign_in.to_bytes())?;
        let document = RawValue::from_string(document)?;
        let plain = serde_json::to_vec(&Rescued { asked: unsaved.asked, document: &document })?;
        let sealed = self.master_key.seal(&self.rescue_place(), &plain)?;
        files::create_private_dir(&self.dir)?;
        if durably {
            return Ok(files::replace_private(&self.rescue_file(), &sealed)?);
        }
        Ok(files::replace_private_soon(&self.rescue_file(), &sealed)?)
    }

    /// What an earlier process could not write to its place. One that cannot be read stays.
    pub fn rescued(&self, kind: Kind) -> Option<Unsaved> {
        let sealed = std::fs::read(self.rescue_file()).ok()?;
        let plain = self.master_key.open(&self.rescue_place(), &sealed);
        let read = plain.ok().and_then(|plain| {
            let rescued: Rescued<'_> = serde_json::from_slice(&plain).ok()?;
            let sign_in = SignIn::parse(kind, rescued.document.get().as_bytes()).ok()?;
            Some(Unsaved { asked: rescued.asked, sign_in })
        });
        if read.is_none() {
            tracing::error!(file = %self.rescue_file().display(), "rescued tokens cannot be read");
        }
        read
    }

    /// The tokens are where they belong, or newer ones are.
    pub fn settle(&self) {
        match std::fs::remove_file(self.rescue_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "rescued tokens could not be deleted");
            }
            _ => {}
        }
    }
}
