//! `docs/decisions.md` names a test for each rule: it must exist, and carry the row's id, so that a
//! search for either finds the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every test of the workspace by `module::name`, with the file it is in.
fn tests() -> BTreeMap<String, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for package in ["core", "poolgate"] {
        for part in ["src", "tests"] {
            walk(&root.join(package).join(part), &mut files);
        }
    }
    let mut tests = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let module = module(&file);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
            if let Some(name) = name.and_then(|rest| rest.split('(').next())
                && std::mem::take(&mut is_test)
            {
                tests.insert(format!("{module}::{name}"), file.clone());
            }
        }
    }
    tests
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `quota_tests.rs` and `quota.rs` are `quota`; `pool/tests.rs` is `pool`.
fn module(file: &Path) -> String {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    match stem {
        "tests" | "main" => file.parent().unwrap().file_name().unwrap().to_str().unwrap().into(),
        stem => stem.strip_suffix("_tests").unwrap_or(stem).into(),
    }
}

/// `F1` in "F1, F2" but not in "F12".
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let next = text[at + word.len()..].chars().next();
        let before = text[..at].chars().next_back();
        !next.is_some_and(|c| c.is_ascii_digit())
            && !before.is_some_and(|c| c.is_ascii_alphanumeric())
    })
}

#[test]
fn every_test_in_the_index_exists_and_carries_its_rows_id() {
    let index = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/decisions.md");
    let text = fs::read_to_string(index).unwrap();
    let tests = tests();
    let (mut named, mut section, mut missing) = (0, "", Vec::new());
    for line in text.lines() {
        section = line.strip_prefix("## ").unwrap_or(section);
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, ids, _, shown_by, _] = cells[..] else { continue };
        let names: Vec<&str> =
            shown_by.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        let files: Vec<String> = names
            .iter()
            .map(|name| {
                let file = tests.get(*name).unwrap_or_else(|| panic!("no test {name}: {line}"));
                fs::read_to_string(file).unwrap()
            })
            .collect();
        named += names.len();
        if section.starts_with("spec") || names.is_empty() {
            continue;
        }
        for id in ids.split(", ") {
            let found = files.iter().any(|file| has_word(file, id) || in_a_range(file, id));
            if !found {
                missing.push(format!("{section}: {id} is not in {names:?}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 150, "only {named} names were found: has the table changed its shape?");
}

/// `F2` is in "F1–F3".
fn in_a_range(text: &str, id: &str) -> bool {
    let split = |id: &str| -> Option<(String, u32)> {
        let at = id.find(|c: char| c.is_ascii_digit())?;
        Some((id[..at].to_owned(), id[at..].parse().ok()?))
    };
    let Some((letter, number)) = split(id) else { return false };
    text.match_indices('–').any(|(at, dash)| {
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || c == '#');
        let from = text[..at].rsplit(is_end).next().and_then(split);
        let to = text[at + dash.len()..].split(is_end).next().and_then(split);
        let (Some(from), Some(to)) = (from, to) else { return false };
        from.0 == letter && to.0 == letter && (from.1..=to.1).contains(&number)
    })
}
