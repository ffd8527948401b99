//! Secrets that cannot be printed, and their sealing at rest.
//!
//! A [`Secret`] has no `Display`, no `Serialize`, and a `Debug` that says nothing; `expose` is the
//! one way in, easy to search for. Sealed values use AES-256-GCM-SIV, which forgives a repeated
//! nonce, with the place of the value as associated data: a row copied elsewhere does not open.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// 256 bits from the system, as URL-safe text.
pub fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// The key that seals stored credentials.
pub struct MasterKey(LessSafeKey, [u8; 32]);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

const MASTER_KEY_ENV: &str = "POOLGATE_MASTER_KEY";

impl MasterKey {
    pub fn from_base64(text: &str) -> anyhow::Result<Self> {
        let bytes = STANDARD.decode(text.trim()).context("the master key is not base64")?;
        let bytes: [u8; 32] =
            bytes.try_into().ok().context("the master key must be 32 bytes in base64")?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, &bytes).expect("32 bytes fit AES-256");
        let fingerprint = sha256(&[b"poolgate master key".as_slice(), &bytes].concat());
        Ok(Self(LessSafeKey::new(key), fingerprint))
    }

    /// From `POOLGATE_MASTER_KEY`, else a systemd credential `poolgate.key`, else `file`, which is
    /// made with a fresh key when it does not exist.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        if let Some(key) = Self::existing(file)? {
            return Ok(key);
        }
        let mut bytes = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut bytes).context("the system gives no random bytes")?;
        let text = STANDARD.encode(bytes) + "\n";
        crate::files::create_private(file, text.as_bytes())
            .with_context(|| format!("writing a new master key to {}", file.display()))?;
        Self::from_base64(&text)
    }

    /// The same, without making one.
    pub fn existing(file: &Path) -> anyhow::Result<Option<Self>> {
        if let Some(text) = std::env::var_os(MASTER_KEY_ENV) {
            let text = text.into_string().ok().context("POOLGATE_MASTER_KEY is not text")?;
            return Self::from_base64(&text).context(MASTER_KEY_ENV).map(Some);
        }
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|dir| Path::new(&dir).join("poolgate.key"))
            .filter(|path| path.exists());
        let path = credential.as_deref().unwrap_or(file);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the master key {}", path.display()))?;
        Self::from_base64(&text).with_context(|| format!("master key {}", path.display())).map(Some)
    }

    /// Tells keys apart without revealing them; kept in the store to find a wrong key at start.
    pub fn fingerprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.1[..12])
    }

    /// Seals `plain` for `place` (table, row, column): nonce, then ciphertext.
    pub fn seal(&self, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut nonce = [0_u8; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).context("the system gives no random bytes")?;
        let mut sealed = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_bytes()),
                &mut sealed,
            )
            .ok()
            .context("sealing failed")?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            bail!("sealed value at {place} is too short");
        };
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(place.as_bytes()), &mut plain);
        let length =
            opened.ok().with_context(|| format!("wrong key, or value moved: {place}"))?.len();
        plain.truncate(length);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MasterKey {
        MasterKey::from_base64(&STANDARD.encode([byte; 32])).expect("a good key")
    }

    #[test]
    fn opens_only_with_its_key_and_in_its_place() {
        let sealed = key(1).seal("accounts/1", b"token").unwrap();
        assert_eq!(key(1).open("accounts/1", &sealed).unwrap(), b"token");
        assert!(key(2).open("accounts/1", &sealed).is_err(), "another key");
        assert!(key(1).open("accounts/2", &sealed).is_err(), "another place");
        assert!(key(1).open("accounts/1", &sealed[..20]).is_err(), "cut");
        assert!(!sealed.windows(5).any(|w| w == b"token"));
    }

    #[test]
    fn says_nothing_when_printed() {
        assert!(!format!("{:?} {:?}", Secret::new("hunter2"), key(1)).contains("hunter2"));
    }

    #[test]
    fn refuses_keys_of_the_wrong_shape() {
        for text in ["", "!!", "c2hvcnQ="] {
            assert!(MasterKey::from_base64(text).is_err(), "{text}");
        }
    }
}
