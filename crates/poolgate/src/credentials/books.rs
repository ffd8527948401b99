//! What is written down about renewing one account's sign-in, so that a crash or a full disk loses
//! nothing that was in our hands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use poolgate_core::account::{AccountId, Kind};
use serde_json::value::RawValue;

use super::SignIn;
use crate::files;
use crate::sealing::{DataKey, MasterKey};
use crate::store::{RefreshMark, Store};

/// Where one account's notes go.
#[derive(Clone, Debug)]
pub struct Books {
    pub account: AccountId,
    pub store: Store,
    pub data_key: Arc<DataKey>,
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
        rescue_place(&self.account.0.to_string())
    }

    /// Keeps tokens, sealed, that are not yet in their own place. Durable when it returns, if
    /// `durably`; else only the end of this process is outlived, at once.
    pub fn rescue(&self, unsaved: &Unsaved, durably: bool) -> anyhow::Result<()> {
        let document = String::from_utf8(unsaved.sign_in.to_bytes())?;
        let document = RawValue::from_string(document)?;
        let plain = serde_json::to_vec(&Rescued { asked: unsaved.asked, document: &document })?;
        let sealed = self.data_key.seal(&self.rescue_place(), &plain)?;
        files::create_private_dir(&self.dir)?;
        if durably {
            return Ok(files::replace_private(&self.rescue_file(), &sealed)?);
        }
        Ok(files::replace_private_soon(&self.rescue_file(), &sealed)?)
    }

    /// What an earlier process could not write to its place. One that cannot be read stays.
    pub fn rescued(&self, kind: Kind) -> Option<Unsaved> {
        let sealed = std::fs::read(self.rescue_file()).ok()?;
        let plain = self.data_key.open(&self.rescue_place(), &sealed);
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

fn rescue_place(account: &str) -> String {
    format!("rescued/{account}")
}

/// Seals anew what an older version sealed with the master key itself. What cannot be stays as it is,
/// and is told of when its account is loaded.
pub fn reseal_rescued(dir: &Path, master: &MasterKey, key: &DataKey) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(account) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if path.extension().is_none_or(|extension| extension != "rescued") {
            continue;
        }
        let place = rescue_place(account);
        let direct = std::fs::read(&path).ok().and_then(|b| master.open_direct(&place, &b).ok());
        let Some(plain) = direct else { continue };
        let sealed = key.seal(&place, &plain);
        let written = sealed.and_then(|sealed| Ok(files::replace_private(&path, &sealed)?));
        if let Err(error) = written {
            let error = format!("{error:#}");
            tracing::error!(file = %path.display(), error, "rescued tokens are not sealed anew");
        }
    }
}
