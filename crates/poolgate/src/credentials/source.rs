//! Where a credential is kept.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use poolgate_core::account::AccountId;
use poolgate_core::units::Timestamp;

use crate::config::CredentialSource;
use crate::files;
use crate::secret::MasterKey;
use crate::store::Store;

#[derive(Debug)]
pub enum Source {
    /// Sealed in the database.
    Stored(Stored),
    /// A sign-in shared with the vendor's own client.
    AuthFile(PathBuf),
    KeyEnv(String),
    KeyFile(PathBuf),
}

#[derive(Debug)]
pub struct Stored {
    pub account: AccountId,
    pub store: Store,
    pub master_key: Arc<MasterKey>,
    /// The sealed bytes as last read or written, and their version; `None`: none is stored.
    pub sealed: Mutex<Option<(Vec<u8>, i64)>>,
}

/// When it was modified, its length, and which file it is.
pub type FileStamp = (SystemTime, u64, u64);

/// Binds a sealed credential to its row.
pub fn place(account: AccountId) -> String {
    format!("credentials/{}", account.0)
}

impl Stored {
    /// Takes over what the store has, if that is newer. Returns whether it was.
    pub fn take_newer(&self, row: Option<(Vec<u8>, i64)>) -> bool {
        let mut known = self.sealed.lock();
        let version = |sealed: &Option<(Vec<u8>, i64)>| sealed.as_ref().map_or(0, |(_, v)| *v);
        let newer = version(&row) > version(&known);
        if newer {
            *known = row;
        }
        newer
    }
}

impl Source {
    /// Whether a configured source is this one.
    pub fn is_at(&self, configured: &CredentialSource) -> bool {
        match (self, configured) {
            (Self::Stored(_), CredentialSource::Stored) => true,
            (Self::AuthFile(a), CredentialSource::AuthFile(b))
            | (Self::KeyFile(a), CredentialSource::KeyFile(b)) => a == b,
            (Self::KeyEnv(a), CredentialSource::KeyEnv(b)) => a == b,
            _ => false,
        }
    }

    /// The credential's bytes, or why there are none. Messages name paths, never content.
    pub async fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Stored(stored) => {
                let sealed = stored.sealed.lock().clone();
                let (sealed, _) = sealed.ok_or("no credential is stored")?;
                stored.master_key.open(&place(stored.account), &sealed).map_err(|e| e.to_string())
            }
            Self::KeyEnv(name) => std::env::var(name)
                .map(String::into_bytes)
                .map_err(|_| format!("the environment variable {name} is not set")),
            Self::AuthFile(path) | Self::KeyFile(path) => {
                tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()))
            }
        }
    }

    /// Makes `content` the credential, durably. `false`: another writer was first, read again.
    pub async fn write(&self, content: Vec<u8>, now: Timestamp) -> Result<bool, String> {
        match self {
            Self::Stored(stored) => {
                let version = stored.sealed.lock().as_ref().map_or(0, |(_, version)| *version);
                let sealed = stored
                    .master_key
                    .seal(&place(stored.account), &content)
                    .map_err(|error| error.to_string())?;
                let replaced = stored
                    .store
                    .replace_credential(stored.account, version, &sealed, now)
                    .await
                    .map_err(|error| error.to_string())?;
                if replaced {
                    *stored.sealed.lock() = Some((sealed, version + 1));
                }
                Ok(replaced)
            }
            Self::AuthFile(path) => {
                let path = path.clone();
                let written = tokio::task::spawn_blocking(move || {
                    files::replace_private(&path, &content)
                        .map_err(|error| format!("writing {}: {error}", path.display()))
                });
                written.await.map_err(|error| error.to_string())??;
                Ok(true)
            }
            Self::KeyEnv(_) | Self::KeyFile(_) => Err("an API key is never rewritten".into()),
        }
    }

    /// Refreshing invalidates the token on disk, so a place that cannot be written must not.
    pub fn check_writable(&self) -> Result<(), String> {
        let Self::AuthFile(path) = self else {
            return Ok(());
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let probe = directory
            .unwrap_or(Path::new("."))
            .join(format!(".poolgate-{}.probe", uuid::Uuid::new_v4().simple()));
        files::create_private(&probe, b"")
            .and_then(|()| std::fs::remove_file(&probe))
            .map_err(|error| format!("{} cannot be rewritten: {error}", path.display()))
    }

    /// For noticing that a file changed. `None`: not a file, or not there.
    pub fn stamp(&self) -> Option<FileStamp> {
        match self {
            Self::AuthFile(path) | Self::KeyFile(path) => {
                let metadata = std::fs::metadata(path).ok()?;
                Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
            }
            Self::Stored(_) | Self::KeyEnv(_) => None,
        }
    }
}
