//! Sealing of secrets at rest.
//!
//! An envelope: every secret in the data directory is sealed with one random data key, and the data key
//! with the master key, which comes from outside ([`KeyPlace`]). So another master key means to seal
//! one row anew, and a running gateway, which holds the data key, does not notice.
//!
//! AES-256-GCM-SIV forgives a repeated nonce. The place of a value is associated data: one copied
//! elsewhere does not open.

mod place;

use std::fmt;

use anyhow::{Context, bail};
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

pub use place::{FoundKey, KeyPlace, next as next_key_file, read as read_key_file};

use crate::secret::sha256;

const KEY_LEN: usize = 32;
/// Binds the sealed data key.
const DATA_KEY: &str = "data_key";

/// What seals the data key, and nothing else.
pub struct MasterKey {
    cipher: Cipher,
    fingerprint: String,
}

/// What seals secrets.
pub struct DataKey(Cipher);

struct Cipher(LessSafeKey);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({}…)", self.fingerprint)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl MasterKey {
    /// 32 random bytes, in base64 and a line of their own.
    pub fn generate() -> anyhow::Result<String> {
        Ok(STANDARD.encode(random_bytes::<KEY_LEN>()?) + "\n")
    }

    pub fn from_base64(text: &str) -> anyhow::Result<Self> {
        // The decoder's own words would quote a byte of the key.
        let bytes = STANDARD.decode(text.trim()).ok().context("a master key is in base64")?;
        let bytes: [u8; KEY_LEN] =
            bytes.try_into().ok().context("a master key is 32 bytes in base64")?;
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            bail!("a master key is 32 random bytes, not one byte 32 times");
        }
        let digest = sha256(&[b"poolgate master key".as_slice(), &bytes].concat());
        Ok(Self { cipher: Cipher::new(&bytes), fingerprint: URL_SAFE_NO_PAD.encode(&digest[..12]) })
    }

    /// Tells keys apart without revealing them; kept in the store to find a wrong key at start.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A new data key, and the same sealed.
    pub fn new_data_key(&self) -> anyhow::Result<(DataKey, Vec<u8>)> {
        let bytes = random_bytes::<KEY_LEN>()?;
        Ok((DataKey(Cipher::new(&bytes)), self.cipher.seal(DATA_KEY, &bytes)?))
    }

    pub fn data_key(&self, sealed: &[u8]) -> anyhow::Result<DataKey> {
        let bytes: [u8; KEY_LEN] =
            self.cipher.open(DATA_KEY, sealed)?.try_into().ok().context("the data key is cut")?;
        Ok(DataKey(Cipher::new(&bytes)))
    }

    /// The data key, sealed by `new` from now on.
    pub fn hand_over(&self, sealed: &[u8], new: &Self) -> anyhow::Result<Vec<u8>> {
        new.cipher.seal(DATA_KEY, &self.cipher.open(DATA_KEY, sealed)?)
    }

    /// What was sealed by the master key itself, before there was a data key.
    pub fn open_direct(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.cipher.open(place, sealed)
    }

    #[cfg(test)]
    pub fn seal_direct(&self, place: &str, plain: &[u8]) -> Vec<u8> {
        self.cipher.seal(place, plain).unwrap()
    }
}

impl DataKey {
    /// Seals `plain` for `place` (table, row, column): nonce, then ciphertext.
    pub fn seal(&self, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.0.seal(place, plain)
    }

    pub fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.0.open(place, sealed)
    }
}

impl Cipher {
    fn new(bytes: &[u8; KEY_LEN]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM_SIV, bytes).expect("32 bytes fit AES-256");
        Self(LessSafeKey::new(key))
    }

    fn seal(&self, place: &str, plain: &[u8]) -> anyhow::Result<Vec<u8>> {
        let nonce = random_bytes::<NONCE_LEN>()?;
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

    fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
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

fn random_bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    aws_lc_rs::rand::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> MasterKey {
        MasterKey::from_base64(&MasterKey::generate().unwrap()).expect("a good key")
    }

    #[test]
    fn opens_only_with_its_key_and_in_its_place() {
        let (key, _) = key().new_data_key().unwrap();
        let (other, _) = self::key().new_data_key().unwrap();
        let sealed = key.seal("accounts/1", b"token").unwrap();
        assert_eq!(key.open("accounts/1", &sealed).unwrap(), b"token");
        assert!(other.open("accounts/1", &sealed).is_err(), "another key");
        assert!(key.open("accounts/2", &sealed).is_err(), "another place");
        assert!(key.open("accounts/1", &sealed[..20]).is_err(), "cut");
        assert!(!sealed.windows(5).any(|w| w == b"token"));
    }

    #[test]
    fn the_data_key_outlives_the_master_key() {
        let (old, new) = (key(), key());
        let (data_key, sealed) = old.new_data_key().unwrap();
        let value = data_key.seal("x", b"token").unwrap();
        let handed = old.hand_over(&sealed, &new).unwrap();
        assert_eq!(new.data_key(&handed).unwrap().open("x", &value).unwrap(), b"token");
        assert!(old.data_key(&handed).is_err(), "the old one opens it no longer");
        assert!(new.data_key(&sealed).is_err(), "nor the new one what was before");
    }

    #[test]
    fn says_nothing_when_printed() {
        let text = MasterKey::generate().unwrap();
        let key = MasterKey::from_base64(&text).unwrap();
        let printed = format!("{key:?} {:?}", key.new_data_key().unwrap());
        assert!(!printed.contains(text.trim()) && printed.contains("DataKey(…)"), "{printed}");
    }

    #[test]
    fn refuses_keys_of_the_wrong_shape() {
        let zeros = STANDARD.encode([0; 32]);
        for text in ["", "!!", "c2hvcnQ=", &zeros] {
            assert!(MasterKey::from_base64(text).is_err(), "{text}");
        }
    }
}
