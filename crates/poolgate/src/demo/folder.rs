//! A private temporary folder that removes itself.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::files;

#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn create() -> anyhow::Result<Self> {
        let name = format!("poolgate-demo-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        files::create_private_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: it holds credentials of the simulator only.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
