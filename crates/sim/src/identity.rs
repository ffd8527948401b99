//! Identifiers made from names and texts by hashing, so that they are the same in every run.

use std::hash::{DefaultHasher, Hash, Hasher};

/// 128 bits of the parts, in their order.
pub fn hash(parts: &[&str]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        parts.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// 32 hex digits.
pub fn hex(parts: &[&str]) -> String {
    format!("{:032x}", hash(parts))
}

/// In the form of a UUID (version 5).
pub fn uuid(parts: &[&str]) -> String {
    let h = hash(parts);
    format!(
        "{:08x}-{:04x}-5{:03x}-8{:03x}-{:012x}",
        h >> 96,
        h >> 80 & 0xffff,
        h >> 64 & 0xfff,
        h >> 48 & 0xfff,
        h & 0xffff_ffff_ffff
    )
}

/// What names an account at its provider.
#[derive(Debug)]
pub struct Identity {
    pub name: String,
    /// The workspace (codex) or account UUID (claude).
    pub account_id: String,
    pub user_id: String,
    pub organization_id: String,
    pub email: String,
}

impl Identity {
    pub fn new(kind: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            account_id: uuid(&["account", kind, name]),
            user_id: format!("user-{}", &hex(&["user", kind, name])[..24]),
            organization_id: uuid(&["organization", kind, name]),
            email: format!("{name}@example.invalid"),
        }
    }
}

/// Prefix of every opaque content of this simulator.
const OPAQUE: &str = "gAAAAsim-";

/// Content which only `account` can read again.
pub fn seal(account: &str, text: &str) -> String {
    format!("{OPAQUE}{account}-{}", hex(&["sealed", account, text]))
}

/// Whether `account` made this content.
pub fn is_sealed_by(content: &str, account: &str) -> bool {
    content
        .strip_prefix(OPAQUE)
        .and_then(|rest| rest.strip_prefix(account))
        .is_some_and(|rest| rest.len() == 33 && rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_content_belongs_to_its_maker_only() {
        let content = seal("al", "text");
        assert!(is_sealed_by(&content, "al"));
        assert!(!is_sealed_by(&content, "a"));
        assert!(!is_sealed_by(&content, "al-"));
        assert!(!is_sealed_by("gAAAA-other", "al"));
    }

    #[test]
    fn a_uuid_has_the_form_of_one() {
        let id = uuid(&["account", "codex", "alice"]);
        let lengths: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
    }
}
