//! Files that hold secrets: readable by the owner only, and replaced whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Creates `path` with mode 0600; an existing file is an error.
pub fn create_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The same, but nobody ever sees it without its whole content.
pub fn create_private_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let (_, temporary) = temporary(path);
    let made = create_private(&temporary, content)
        .and_then(|()| std::fs::hard_link(&temporary, path))
        .and_then(|()| sync_directory(path));
    let _ = std::fs::remove_file(&temporary);
    made
}

/// Beside `path`, or beside the file that it links to.
fn temporary(path: &Path) -> (PathBuf, PathBuf) {
    // A link keeps pointing to the file it points to.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut temporary: PathBuf = path.clone();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    temporary.set_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4().simple()));
    (path, temporary)
}

/// Replaces `path` without waiting for the disk: the end of this process loses nothing, a power cut
/// may.
pub fn replace_private_soon(path: &Path, content: &[u8]) -> io::Result<()> {
    let (path, temporary) = temporary(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?
        .write_all(content)?;
    std::fs::rename(&temporary, &path)
}

/// Replaces `path` by rename, so that a reader or a crash sees the old content or the new one.
/// The content is on disk when this returns.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let (path, temporary) = temporary(path);
    let written = create_private(&temporary, content)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .and_then(|()| sync_directory(&path));
    if written.is_err() {
        // Best effort: what matters is the error that brought us here.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// The same for a file that others use too: one that cannot be replaced, such as a single file
/// mounted into a container, is written in place.
pub fn replace_shared(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_private(path, content).or_else(|error| {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            // In place it would be torn.
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(content)?;
        file.set_len(content.len() as u64)?;
        file.sync_all()
    })
}

/// Whether a shared file may and can be rewritten. Write-protected means no, also for root.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.permissions().readonly() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is write-protected"));
    }
    // In place is possible where replacing is not.
    OpenOptions::new().write(true).open(path)?;
    Ok(())
}

/// Makes renames beside `path` durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Makes a directory that only the owner can enter; existing ones are left as they are.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.json");
        replace_private(&path, b"one").unwrap();
        replace_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing left behind");
        assert!(create_private(&path, b"x").is_err());
        assert!(create_private_whole(&path, b"x").is_err());
        create_private_whole(&dir.path().join("other"), b"x").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing left behind");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        // Its name leaves no room for that of a temporary file beside it.
        let path = dir.path().join("x".repeat(250));
        std::fs::write(&path, b"a long old content").unwrap();
        assert!(replace_private(&path, b"new").is_err());
        check_replaceable(&path).unwrap();
        replace_shared(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn write_protected_means_no() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        create_private(&path, b"{}").unwrap();
        check_replaceable(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(check_replaceable(&path).is_err());
        assert!(check_replaceable(&dir.path().join("none")).is_err());
    }
}
