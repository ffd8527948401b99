//! Client keys in memory: what authenticating a caller costs a lookup and no more.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use poolgate_core::units::Timestamp;

use crate::secret::{random_token, sha256};
use crate::store::{ClientKeyRow, NewClientKey};

/// Prefix of every client key, for people and for scanners of leaked secrets.
const PREFIX: &str = "pg-";
/// Characters of a key that may be shown.
const HINT: usize = 9;

#[derive(Debug, Default)]
pub struct Keys(ArcSwap<HashMap<[u8; 32], Arc<ClientKeyRow>>>);

impl Keys {
    pub fn replace(&self, rows: Vec<ClientKeyRow>) {
        let map = rows.into_iter().map(|row| (row.digest, Arc::new(row))).collect();
        self.0.store(Arc::new(map));
    }

    /// The key's row if it is valid. Looked up by full digest: equal time for all that are unknown,
    /// and nothing of the key itself is compared.
    pub fn find(&self, presented: &str, now: Timestamp) -> Option<Arc<ClientKeyRow>> {
        let row = self.0.load().get(&sha256(presented.as_bytes())).cloned()?;
        row.is_valid(now).then_some(row)
    }

    /// It is still valid.
    pub fn is_known(&self, key: &ClientKeyRow, now: Timestamp) -> bool {
        self.0.load().get(&key.digest).is_some_and(|row| row.is_valid(now))
    }

    /// The valid key of that name.
    pub fn named(&self, name: &str, now: Timestamp) -> Option<Arc<ClientKeyRow>> {
        let rows = self.0.load();
        rows.values().find(|row| row.name == name && row.is_valid(now)).cloned()
    }

    pub fn any_valid(&self, now: Timestamp) -> bool {
        self.0.load().values().any(|row| row.is_valid(now))
    }
}

/// A new key, and what of it is stored. The key itself is shown once.
pub fn generate(
    name: String,
    pools: Vec<String>,
    models: Vec<String>,
    expires_at: Option<Timestamp>,
) -> anyhow::Result<(String, NewClientKey)> {
    let key = format!("{PREFIX}{}", random_token()?);
    let (digest, hint) = (sha256(key.as_bytes()), key[..HINT].to_owned());
    Ok((key, NewClientKey { name, digest, hint, pools, models, expires_at }))
}
