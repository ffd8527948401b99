//! Opening what the data directory keeps sealed, and changing the master key.
//!
//! The store says by its fingerprint which master key it wants. The order of a rotation keeps that key
//! findable at every moment: the new one is on disk beside the old one before the store asks for it,
//! and replaces it only afterwards. Whoever comes across a rotation that was broken off finishes it.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::config::{AccountSpec, Config, RawAccount};
use crate::credentials::{place, reseal_rescued};
use crate::files;
use crate::sealing::{DataKey, FoundKey, KeyPlace, MasterKey, next_key_file, read_key_file};
use crate::store::Store;

/// A rotation may come between looking for the keys and asking the store; not again and again.
const LOOKS: usize = 3;

/// The data key: made, with the master key, at the first start.
pub async fn unlock(config: &Config, store: &Store) -> anyhow::Result<DataKey> {
    let (data_key, unfinished) = open(config, store).await?;
    // A rotation that is under way finishes itself.
    if let Some(path) = unfinished
        && let Some(_only) = only_rotation(&config.data_dir)?
    {
        finish(&path, store).await?;
    }
    Ok(data_key)
}

/// The data key, and the key file of a rotation that was not finished.
async fn open(config: &Config, store: &Store) -> anyhow::Result<(DataKey, Option<PathBuf>)> {
    let key_place = KeyPlace::find(&config.master_key_file);
    let master = master_key(&key_place, store).await?;
    let data_key = if let Some(key) = store.data_key(&master.key).await? {
        key
    } else {
        store.make_data_key(&master.key, place).await?;
        let made = store.data_key(&master.key).await?;
        made.context("the master key was changed just now: try again")?
    };
    reseal_rescued(&config.data_dir.join("credentials"), &master.key, &data_key);
    let unfinished = match key_place {
        KeyPlace::File(path) => Some(path).filter(|_| master.is_next),
        _ => None,
    };
    Ok((data_key, unfinished))
}

/// What the store wants may be another key by now than when it was opened.
async fn finish(path: &Path, store: &Store) -> anyhow::Result<()> {
    match store.master_key().await? {
        Some(wanted) => put_in_place(path, &wanted),
        None => Ok(()),
    }
}

/// The master key that the store wants; a new one, if it wants none yet.
async fn master_key(place: &KeyPlace, store: &Store) -> anyhow::Result<FoundKey> {
    let mut trouble = None;
    for _ in 0..LOOKS {
        let Some(wanted) = store.master_key().await? else {
            place.create()?;
            let mut keys = place.keys()?;
            ensure!(!keys.is_empty(), "no master key could be made");
            return Ok(keys.swap_remove(0));
        };
        match fitting(place, &wanted) {
            Ok(key) => return Ok(key),
            Err(error) => trouble = Some(error),
        }
    }
    Err(trouble.unwrap_or_else(|| anyhow::anyhow!("no master key")))
}

/// The key of this fingerprint, or which others were found instead.
pub fn fitting(place: &KeyPlace, wanted: &str) -> anyhow::Result<FoundKey> {
    let keys = place.keys()?;
    let found: Vec<String> = keys
        .iter()
        .map(|found| format!("{} in {}", found.key.fingerprint(), found.place))
        .collect();
    let fits = keys.into_iter().find(|found| found.key.fingerprint() == wanted);
    fits.with_context(|| match found.as_slice() {
        [] => format!(
            "the master key is missing: this database wants the one with fingerprint {wanted}, and \
             there is none in {}",
            place.name(false)
        ),
        found => format!(
            "the master key is not the one of this database: expected fingerprint {wanted}, found {}; \
             restore master_key_file or POOLGATE_MASTER_KEY",
            found.join(", ")
        ),
    })
}

/// The settings of the configuration's accounts, as the store keeps them.
pub fn seal_settings(accounts: &[AccountSpec], key: &DataKey) -> anyhow::Result<Vec<RawAccount>> {
    accounts.iter().map(|spec| seal_one(spec.raw.clone(), key)).collect()
}

pub fn seal_one(mut settings: RawAccount, key: &DataKey) -> anyhow::Result<RawAccount> {
    if let Some(proxy) = &settings.proxy {
        settings.proxy = Some(proxy.sealed(key, &settings.name)?);
    }
    Ok(settings)
}

/// What a rotation did.
#[derive(Debug)]
pub struct Rotated {
    pub old: String,
    pub new: String,
    /// Where the operator has to put the new key, if we cannot.
    pub to_do: Option<String>,
}

/// Changes the master key: to a new one, or to the one in `new_key_file`. A running gateway goes on.
pub async fn rotate(
    config: &Config,
    store: &Store,
    new_key_file: Option<&Path>,
) -> anyhow::Result<Rotated> {
    let only = only_rotation(&config.data_dir)?;
    let _only = only.context("another poolgate key-rotate is running")?;
    if let (_, Some(path)) = open(config, store).await? {
        finish(&path, store).await?;
    }
    let key_place = KeyPlace::find(&config.master_key_file);
    let old = master_key(&key_place, store).await?.key;
    let given = new_key_file.map(given_key).transpose()?;
    let KeyPlace::File(path) = &key_place else {
        let text = given.context(
            "this master key does not come from a file of ours: write a new one to a file, like \
             `openssl rand -base64 32`, and say which with --new-key-file",
        )?;
        let new = different(&old, &text)?;
        store.change_master_key(&old, &new).await?;
        return Ok(rotated(&old, &new, Some(key_place.name(false))));
    };
    let text = given.map_or_else(MasterKey::generate, Ok)?;
    let new = different(&old, &text)?;
    write_next(path, &text)?;
    store.change_master_key(&old, &new).await?;
    put_in_place(path, new.fingerprint())?;
    Ok(rotated(&old, &new, None))
}

fn rotated(old: &MasterKey, new: &MasterKey, to_do: Option<String>) -> Rotated {
    Rotated { old: old.fingerprint().into(), new: new.fingerprint().into(), to_do }
}

fn given_key(path: &Path) -> anyhow::Result<String> {
    read_key_file(path, true)?.with_context(|| format!("there is no {}", path.display()))
}

fn different(old: &MasterKey, text: &str) -> anyhow::Result<MasterKey> {
    let new = MasterKey::from_base64(text)?;
    ensure!(new.fingerprint() != old.fingerprint(), "the new master key is the present one");
    Ok(new)
}

/// Two rotations at the same time would write over each other's new key. `None`: there is another.
fn only_rotation(data_dir: &Path) -> anyhow::Result<Option<File>> {
    let path = data_dir.join("key-rotate.lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.with_context(|| format!("opening {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).context(format!("locking {}", path.display()))
        }
    }
}

/// Beside the present key, durably. One that a broken rotation left there was never the store's.
fn write_next(path: &Path, text: &str) -> anyhow::Result<PathBuf> {
    let next = next_key_file(path);
    files::replace_private(&next, text.as_bytes())
        .with_context(|| format!("writing the new master key to {}", next.display()))?;
    Ok(next)
}

/// The store wants the key of this fingerprint: it replaces its predecessor, unless it has already.
/// Under the lock of [`only_rotation`].
fn put_in_place(path: &Path, wanted: &str) -> anyhow::Result<()> {
    let next = next_key_file(path);
    let key = read_key_file(&next, true)?.map(|text| MasterKey::from_base64(&text)).transpose()?;
    if key.is_none_or(|key| key.fingerprint() != wanted) {
        return fitting(&KeyPlace::File(path.to_owned()), wanted).map(drop);
    }
    std::fs::rename(next, path)
        .and_then(|()| files::sync_directory(path))
        .with_context(|| format!("replacing {}", path.display()))
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
