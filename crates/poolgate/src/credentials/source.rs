//! Where a credential is kept.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use poolgate_core::account::{AccountId, Kind};
use poolgate_core::units::Timestamp;

use super::Books;
use super::lock::{self, Lock};
use crate::config::CredentialSource;
use crate::files;
use crate::sealing::DataKey;
use crate::store::Store;
use crate::tasks::Tasks;

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
    pub data_key: Arc<DataKey>,
    /// The sealed bytes as last read or written, and their version; `None`: none is stored.
    pub sealed: Mutex<Option<(Vec<u8>, i64)>>,
}

/// Why there are no bytes. Messages name paths, never content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unread {
    #[error("{0}")]
    Missing(String),
    /// It may well be there: this process cannot look, for want of descriptors or memory, or because
    /// the disk is failing.
    #[error("{0}")]
    NotNow(String),
}

impl Unread {
    fn of(path: &Path, error: &io::Error) -> Self {
        let problem = format!("{}: {error}", path.display());
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory => Self::Missing(problem),
            _ => Self::NotNow(problem),
        }
    }
}

/// When its content and its permissions changed (ns), its length, and which file it is.
pub type FileStamp = (i128, i128, u64, u64);

/// The file as it was when last read.
#[derive(Debug, Default)]
pub struct Seen {
    stamp: Option<FileStamp>,
    /// It was read twice like this: a change within one tick of the file system's clock, after the
    /// first reading, does not show in the stamp.
    settled: bool,
}

impl Seen {
    /// `stamp` was taken before reading.
    pub fn note(&mut self, stamp: Option<FileStamp>) {
        self.settled = self.stamp == stamp;
        self.stamp = stamp;
    }

    /// It could not be read: whatever its stamp, it is looked at again.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    pub fn differs(&self, stamp: Option<FileStamp>) -> bool {
        self.stamp != stamp || (stamp.is_some() && !self.settled)
    }
}

/// Binds a sealed credential to its row.
pub fn place(account: AccountId) -> String {
    format!("credentials/{}", account.0)
}

impl Stored {
    /// Takes over what the store has, if that is newer, or nothing any more. Returns whether it was.
    pub fn take_newer(&self, row: Option<(Vec<u8>, i64)>) -> bool {
        let mut known = self.sealed.lock();
        let newer = match (&row, &*known) {
            (Some((_, version)), Some((_, known))) => version > known,
            (row, known) => row.is_some() != known.is_some(),
        };
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

    /// The credential's bytes, or why there are none.
    pub async fn read(&self) -> Result<Vec<u8>, Unread> {
        match self {
            Self::Stored(stored) => {
                // A store that cannot be read now leaves what is known.
                if let Ok(row) = stored.store.credential(stored.account).await {
                    stored.take_newer(row);
                }
                let sealed = stored.sealed.lock().clone();
                let missing = |why: String| Unread::Missing(why);
                let (sealed, _) =
                    sealed.ok_or_else(|| missing("no credential is stored".into()))?;
                let opened = stored.data_key.open(&place(stored.account), &sealed);
                opened.map_err(|error| missing(error.to_string()))
            }
            Self::KeyEnv(name) => std::env::var(name).map(String::into_bytes).map_err(|_| {
                Unread::Missing(format!("the environment variable {name} is not set"))
            }),
            Self::AuthFile(path) | Self::KeyFile(path) => {
                tokio::fs::read(path).await.map_err(|error| Unread::of(path, &error))
            }
        }
    }

    /// Makes `content` the credential, durably. `false`: another writer was first, read again.
    pub async fn write(&self, content: Vec<u8>, now: Timestamp) -> Result<bool, String> {
        match self {
            Self::Stored(stored) => {
                let version = stored.sealed.lock().as_ref().map_or(0, |(_, version)| *version);
                let sealed = stored
                    .data_key
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
                    files::replace_shared(&path, &content)
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
        match self {
            Self::Stored(_) => Ok(()),
            Self::AuthFile(path) => files::check_replaceable(path)
                .map_err(|error| format!("{} cannot be rewritten: {error}", path.display())),
            Self::KeyEnv(_) | Self::KeyFile(_) => Err("an API key is never rewritten".into()),
        }
    }

    /// Other programs write it too.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::AuthFile(_))
    }

    /// Keeps other processes from renewing it meanwhile.
    pub async fn lock(&self, kind: Kind, books: &Books, tasks: &Tasks) -> Result<Lock, String> {
        let Self::AuthFile(path) = self else {
            files::create_private_dir(&books.dir).map_err(|error| error.to_string())?;
            return lock::file(&books.lock_file()).await;
        };
        // All names of one file share its lock.
        let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
        if kind == Kind::Claude {
            return lock::directory(&path, tasks).await;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        lock::file(&path.with_file_name(format!(".{name}.poolgate.lock"))).await
    }

    /// For noticing that a file changed. `None`: not a file, or not there.
    pub fn stamp(&self) -> Option<FileStamp> {
        match self {
            Self::AuthFile(path) | Self::KeyFile(path) => {
                let metadata = std::fs::metadata(path).ok()?;
                let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
                let written = ns(metadata.mtime(), metadata.mtime_nsec());
                let changed = ns(metadata.ctime(), metadata.ctime_nsec());
                Some((written, changed, metadata.len(), metadata.ino()))
            }
            Self::Stored(_) | Self::KeyEnv(_) => None,
        }
    }
}
