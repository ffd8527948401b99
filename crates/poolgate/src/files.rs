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

/// Replaces `path` by rename, so that a reader or a crash sees the old content or the new one.
/// The content is on disk when this returns.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link keeps pointing to the file it points to.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut temporary: PathBuf = path.clone();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    temporary.set_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4().simple()));
    let written = create_private(&temporary, content)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .and_then(|()| sync_directory(&path));
    if written.is_err() {
        // Best effort: what matters is the error that brought us here.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn sync_directory(path: &Path) -> io::Result<()> {
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
    }
}
