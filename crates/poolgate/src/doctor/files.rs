//! Who can read and write the gateway's files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Check, Grade};
use crate::admin::TOKEN_FILE;
use crate::config::Config;

pub fn check(config: &Config) -> Vec<Check> {
    let dir = &config.data_dir;
    if !dir.exists() {
        let found = format!("{} is not there yet", dir.display());
        return vec![Check::ok("data directory", found + ": the first start makes it")];
    }
    if !dir.is_dir() {
        let found = format!("{} is no directory", dir.display());
        return vec![Check::problem("data directory", found, "set data_dir to another path")];
    }
    let mut checks = vec![data_dir(dir)];
    let names = ["poolgate.db", "poolgate.db-wal", TOKEN_FILE];
    let files =
        names.map(|name| dir.join(name)).into_iter().chain([config.master_key_file.clone()]);
    checks.extend(files.filter_map(|path| open_to_others("data directory", &path)));
    checks
}

fn data_dir(dir: &Path) -> Check {
    let mode = mode(dir).unwrap_or(0);
    if mode & 0o200 == 0 {
        let found = format!("{} cannot be written", dir.display());
        return Check::problem("data directory", found, &format!("chmod u+w {}", dir.display()));
    }
    if mode & 0o022 != 0 {
        let found = format!("others can put files into {} (mode {mode:03o})", dir.display());
        return Check::problem("data directory", found, &format!("chmod 700 {}", dir.display()));
    }
    Check::ok("data directory", dir.display().to_string())
}

/// A file with secrets in it; `None`: it is private, or not there.
pub fn open_to_others(about: &str, path: &Path) -> Option<Check> {
    let mode = mode(path)?;
    let (grade, who) = match mode {
        _ if mode & 0o007 != 0 => (Grade::Problem, "everybody"),
        _ if mode & 0o070 != 0 => (Grade::Warning, "its group"),
        _ => return None,
    };
    let found = format!("{} is open to {who} (mode {mode:03o})", path.display());
    Some(Check::new(grade, about, found, &format!("chmod 600 {}", path.display())))
}

fn mode(path: &Path) -> Option<u32> {
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_who_can_read_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert_eq!(open_to_others("x", &path), None, "not there");
        std::fs::write(&path, b"s").unwrap();
        let cases = [
            (0o600, None),
            (0o400, None),
            (0o640, Some(Grade::Warning)),
            (0o644, Some(Grade::Problem)),
            (0o601, Some(Grade::Problem)),
        ];
        for (mode, want) in cases {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(open_to_others("x", &path).map(|check| check.grade), want, "{mode:o}");
        }
    }

    #[test]
    fn grades_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            (0o700, Grade::Ok),
            (0o750, Grade::Ok),
            (0o770, Grade::Problem),
            (0o777, Grade::Problem),
            (0o500, Grade::Problem),
        ];
        for (mode, want) in cases {
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(data_dir(dir.path()).grade, want, "{mode:o}");
        }
    }
}
