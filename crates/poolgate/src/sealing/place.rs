//! Where the master key comes from: the environment, else a systemd credential, else a file.
//!
//! Each has a second place for the next key, so that a rotation may be broken off anywhere: whichever
//! of the two fits the fingerprint in the store is used.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::MasterKey;
use crate::files;

const VARIABLE: &str = "POOLGATE_MASTER_KEY";
const NEXT_VARIABLE: &str = "POOLGATE_MASTER_KEY_NEW";
/// Name of the systemd credential (`LoadCredential=poolgate.key:…`).
const CREDENTIAL: &str = "poolgate.key";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    Environment,
    /// systemd put it there, readable by this service alone.
    Credential(PathBuf),
    File(PathBuf),
}

/// A key that lies at its place, or is to follow the one that does.
#[derive(Debug)]
pub struct FoundKey {
    pub key: MasterKey,
    /// Where it was found, for people.
    pub place: String,
    pub is_next: bool,
}

impl KeyPlace {
    /// `file`: what the configuration says.
    pub fn find(file: &Path) -> Self {
        Self::choose(
            std::env::var_os(VARIABLE).is_some(),
            std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            file,
        )
    }

    fn choose(in_environment: bool, credentials: Option<PathBuf>, file: &Path) -> Self {
        if in_environment {
            return Self::Environment;
        }
        let credential = credentials.map(|dir| dir.join(CREDENTIAL)).filter(|path| path.exists());
        credential.map_or_else(|| Self::File(file.to_owned()), Self::Credential)
    }

    /// The keys that are there: the present one, the next one, both or none.
    pub fn keys(&self) -> anyhow::Result<Vec<FoundKey>> {
        let mut found = Vec::new();
        for is_next in [false, true] {
            let place = self.name(is_next);
            let text = match self {
                Self::Environment => variable(if is_next { NEXT_VARIABLE } else { VARIABLE })?,
                Self::Credential(path) | Self::File(path) => {
                    let path = if is_next { next(path) } else { path.clone() };
                    read(&path, matches!(self, Self::File(_)))?
                }
            };
            if let Some(text) = text {
                let key = MasterKey::from_base64(&text);
                let key = key.with_context(|| format!("the master key in {place}"))?;
                found.push(FoundKey { key, place, is_next });
            }
        }
        Ok(found)
    }

    /// For people.
    pub fn name(&self, is_next: bool) -> String {
        match self {
            Self::Environment if is_next => NEXT_VARIABLE.into(),
            Self::Environment => VARIABLE.into(),
            Self::Credential(path) | Self::File(path) if is_next => {
                next(path).display().to_string()
            }
            Self::Credential(path) | Self::File(path) => path.display().to_string(),
        }
    }

    /// Makes a first key; the key of whoever was faster, if somebody was.
    pub fn create(&self) -> anyhow::Result<()> {
        let Self::File(path) = self else { return Ok(()) };
        let made = files::create_private_whole(path, MasterKey::generate()?.as_bytes());
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made.with_context(|| format!("writing a new master key to {}", path.display())),
        }
    }
}

/// Beside it, so that a rename puts it in its place.
pub fn next(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn variable(name: &str) -> anyhow::Result<Option<String>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    text.into_string().ok().with_context(|| format!("{name} is not text")).map(Some)
}

/// `private`: others must not be able to read it.
pub fn read(path: &Path, private: bool) -> anyhow::Result<Option<String>> {
    let context = || format!("reading the master key {}", path.display());
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(context)?,
    };
    let mode = std::fs::metadata(path).with_context(context)?.permissions().mode() & 0o777;
    let is_open = mode & 0o007 != 0;
    ensure!(
        !(private && is_open),
        "everybody can read the master key {} (mode {mode:03o}): chmod 600 {0}, and rotate it with \
         poolgate key-rotate",
        path.display()
    );
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_first_then_systemd_then_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let with = dir.path().join("with");
        std::fs::create_dir(&with).unwrap();
        std::fs::write(with.join(CREDENTIAL), MasterKey::generate().unwrap()).unwrap();
        let file = dir.path().join("master.key");
        let choose = |environment, credentials: Option<&Path>| {
            KeyPlace::choose(environment, credentials.map(Path::to_owned), &file)
        };
        assert_eq!(choose(true, Some(&with)), KeyPlace::Environment);
        assert_eq!(choose(false, Some(&with)), KeyPlace::Credential(with.join(CREDENTIAL)));
        assert_eq!(choose(false, Some(dir.path())), KeyPlace::File(file.clone()), "not among them");
        assert_eq!(choose(false, None), KeyPlace::File(file.clone()));
    }

    #[test]
    fn a_file_that_everybody_can_read_is_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let place = KeyPlace::File(dir.path().join("master.key"));
        assert!(place.keys().unwrap().is_empty());
        place.create().unwrap();
        let fingerprint = place.keys().unwrap()[0].key.fingerprint().to_owned();
        place.create().unwrap();
        assert_eq!(place.keys().unwrap()[0].key.fingerprint(), fingerprint, "it is kept");
        let path = dir.path().join("master.key");
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(place.keys().is_ok(), good, "{mode:o}");
        }
        // systemd's own is its business.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(KeyPlace::Credential(path).keys().unwrap().len(), 1);
    }
}
