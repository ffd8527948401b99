//! Keeping two processes from renewing one sign-in at the same time.
//!
//! A `.credentials.json` is locked as Claude Code locks it: by a directory beside the file's own, made
//! by its holder, touched every five seconds, and taken over when it has not been for ten. Nothing of
//! the kind is known of the Codex CLI; there, and for stored sign-ins, poolgate locks against itself
//! with a file that the system unlocks when its holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use poolgate_core::refresh::{LOCK_HEARTBEAT, LockStep, lock_step};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::{Clock, SystemClock};
use crate::tasks::Tasks;

/// Longer than a refresh takes.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Held until dropped.
#[derive(Debug)]
pub enum Lock {
    File(File),
    Directory(Directory),
}

/// Waits for the lock file `path`, which stays behind when it is unlocked.
pub async fn file(path: &Path) -> Result<Lock, String> {
    let trouble = |error: io::Error| format!("locking {}: {error}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(trouble)?;
    let take = async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(trouble(error)),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    let taken = tokio::time::timeout(PATIENCE, take).await;
    taken.map_err(|_| format!("{} is locked by another gateway", path.display()))??;
    Ok(Lock::File(file))
}

/// A lock in Claude Code's protocol.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Ours, should another process have taken it for a dead one's and made its own. While it is open
    /// no other can have its number.
    made: File,
    _heartbeat: DropGuard,
}

/// Locks the directory that `file` is in.
pub async fn directory(file: &Path, tasks: &Tasks) -> Result<Lock, String> {
    let trouble = |error: io::Error| format!("locking {}: {error}", file.display());
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut path =
        parent.unwrap_or(Path::new(".")).canonicalize().map_err(trouble)?.into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let held = || format!("{} is held by another process", path.display());
    let taken = tokio::time::timeout(PATIENCE, take(&path)).await.map_err(|_| held())?;
    let made = taken.map_err(trouble)?.ok_or_else(held)?;
    let stop = CancellationToken::new();
    let (ended, beaten) = (stop.clone(), made.try_clone().map_err(trouble)?);
    let name = path.clone();
    tasks.spawn(async move {
        while ended.run_until_cancelled(tokio::time::sleep(LOCK_HEARTBEAT)).await.is_some() {
            if let Err(error) = beaten.set_modified(now()) {
                tracing::warn!(%error, lock = %name.display(), "a lock could not be kept fresh");
            }
        }
    });
    Ok(Lock::Directory(Directory { path, made, _heartbeat: stop.drop_guard() }))
}

/// The directory, made; `None`: somebody holds it.
async fn take(path: &Path) -> io::Result<Option<File>> {
    let mut attempt = 1;
    loop {
        match std::fs::create_dir(path) {
            Ok(()) => return File::open(path).map(Some),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let found = match File::open(path) {
            Ok(found) => found,
            // It has gone meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match lock_step(attempt, age(&found)?) {
            LockStep::TakeOver if claim(path, &found) => {
                // Its holder may have touched it in the last moment.
                if lock_step(attempt, age(&found)?) == LockStep::TakeOver {
                    let removed = std::fs::remove_dir(path);
                    removed.or_else(|error| match error.kind() {
                        ErrorKind::NotFound => Ok(()),
                        _ => Err(error),
                    })?;
                }
            }
            LockStep::TakeOver => tokio::time::sleep(LOOK_EVERY).await,
            LockStep::Wait => {
                let wait = Duration::from_millis(rand::random_range(1000..2000));
                tokio::time::sleep(wait).await;
                attempt += 1;
            }
            LockStep::GiveUp => return Ok(None),
        }
    }
}

/// Only who has claimed a lock removes it: two who see the same dead one must not both remove what is
/// at its place, which may be the other's new one. False: another is at it, or there is another lock.
fn claim(path: &Path, found: &File) -> bool {
    let is_it = || -> io::Result<bool> {
        let (there, found) = (std::fs::metadata(path)?, found.metadata()?);
        Ok((there.dev(), there.ino()) == (found.dev(), found.ino()))
    };
    // File systems that lock no directories are left to the look that follows.
    !matches!(found.try_lock(), Err(TryLockError::WouldBlock)) && is_it().unwrap_or(false)
}

/// The files' times are the machine's, whatever our own clock was moved to.
fn age(lock: &File) -> io::Result<Duration> {
    Ok(now().duration_since(lock.metadata()?.modified()?).unwrap_or_default())
}

fn now() -> SystemTime {
    let ms = u64::try_from(SystemClock.now().0).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

impl Drop for Directory {
    fn drop(&mut self) {
        if claim(&self.path, &self.made) {
            // Whoever comes next finds it stale in ten seconds, should this fail.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap().join("claude");
        std::fs::create_dir(&home).unwrap();
        let lock = home.with_extension("lock");
        (dir, home.join(".credentials.json"), lock)
    }

    fn age_of(lock: &Path) -> Duration {
        age(&File::open(lock).unwrap()).unwrap()
    }

    fn set_age(lock: &Path, age: Duration) {
        File::open(lock).unwrap().set_modified(now() - age).unwrap();
    }

    /// multiplexer 18.1 #7.
    #[tokio::test]
    async fn multiplexer_18_1_7_a_held_lock_is_waited_for_and_then_given_up() {
        let (_dir, file, lock) = place();
        std::fs::create_dir(&lock).unwrap();
        let began = tokio::time::Instant::now();
        assert!(directory(&file, &Tasks::default()).await.is_err());
        let waited = began.elapsed();
        assert!(waited >= Duration::from_secs(5), "five pauses of 1 to 2 s: {waited:?}");
        assert!(lock.exists(), "it is not ours to remove");
    }

    /// multiplexer 18.1 #7.
    #[tokio::test]
    async fn multiplexer_18_1_7_a_stale_lock_is_taken_over_and_ours_is_released() {
        let (_dir, file, lock) = place();
        std::fs::create_dir(&lock).unwrap();
        set_age(&lock, Duration::from_secs(11));
        let began = tokio::time::Instant::now();
        let held = directory(&file, &Tasks::default()).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "at once");
        assert!(age_of(&lock) < Duration::from_secs(5), "made anew");
        drop(held);
        assert!(!lock.exists());
    }

    #[tokio::test]
    async fn a_held_lock_is_touched_every_five_seconds() {
        let (_dir, file, lock) = place();
        let held = directory(&file, &Tasks::default()).await.unwrap();
        set_age(&lock, Duration::from_secs(9));
        let touched = async {
            while age_of(&lock) > LOCK_HEARTBEAT {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LOCK_HEARTBEAT * 3, touched).await.expect("it is touched");
        drop(held);
    }

    #[tokio::test]
    async fn a_lock_that_another_took_over_is_left_to_it() {
        let (_dir, file, lock) = place();
        let held = directory(&file, &Tasks::default()).await.unwrap();
        std::fs::remove_dir(&lock).unwrap();
        std::fs::create_dir(&lock).unwrap();
        drop(held);
        assert!(lock.exists());
    }

    #[test]
    fn multiplexer_18_1_7_of_two_who_see_a_stale_lock_only_one_removes_it() {
        let (_dir, _file, lock) = place();
        std::fs::create_dir(&lock).unwrap();
        let [first, second] = [(), ()].map(|()| File::open(&lock).unwrap());
        assert!(claim(&lock, &first));
        assert!(!claim(&lock, &second), "the first one is at it");
        std::fs::remove_dir(&lock).unwrap();
        std::fs::create_dir(&lock).unwrap();
        drop(first);
        assert!(!claim(&lock, &second), "what is there now is the first one's");
    }
}
