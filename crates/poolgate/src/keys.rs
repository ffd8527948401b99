//! Client keys in memory: what authenticating a caller costs a lookup and no more.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use poolgate_core::rate::Rate;
use poolgate_core::units::Timestamp;

use crate::secret::{random_token, sha256};
use crate::store::{ClientKeyRow, KeyLimits, NewClientKey};

/// Prefix of every client key, for people and for scanners of leaked secrets.
const PREFIX: &str = "pg-";
/// Characters of a key that may be shown.
const HINT: usize = 9;

/// A key, and what of it is in use.
#[derive(Debug)]
pub struct ClientKey {
    row: ClientKeyRow,
    usage: Arc<Usage>,
}

/// Of one key, across reloads.
#[derive(Debug, Default)]
struct Usage {
    running: AtomicU32,
    rate: Mutex<Rate>,
    /// As it was read last: whoever still holds the key, a socket or a long answer, looks here.
    /// In milliseconds since the Unix epoch.
    valid_before: AtomicI64,
}

/// Why a request is refused whose key has enough of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyLimit {
    #[error("this key may run {0} requests at the same time")]
    Concurrency(u32),
    #[error("this key may begin {per_minute} requests a minute")]
    Rate { per_minute: u32, retry_after: Duration },
}

impl KeyLimit {
    pub const NAMES: [&str; 2] = ["concurrency", "requests_per_minute"];

    /// Its place in [`Self::NAMES`].
    pub const fn index(&self) -> usize {
        match self {
            Self::Concurrency(_) => 0,
            Self::Rate { .. } => 1,
        }
    }
}

/// A place among a key's running requests, if those are limited; given back when dropped. One among those
/// of the last minute is kept, unless it is uncounted.
#[derive(Debug, Default)]
#[must_use = "dropped, it gives the place back"]
pub struct KeyPermit {
    running: Option<Arc<Usage>>,
    begun: Option<(Arc<Usage>, Timestamp)>,
}

impl KeyPermit {
    /// As if the request had not begun.
    pub fn uncount(mut self) {
        if let Some((usage, at)) = self.begun.take() {
            usage.rate.lock().forget(at);
        }
    }
}

impl Drop for KeyPermit {
    fn drop(&mut self) {
        if let Some(usage) = &self.running {
            usage.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Deref for ClientKey {
    type Target = ClientKeyRow;

    fn deref(&self) -> &ClientKeyRow {
        &self.row
    }
}

impl ClientKey {
    /// Its running requests, if those are limited.
    pub fn running(&self) -> u32 {
        self.usage.running.load(Ordering::Relaxed)
    }

    /// It is still valid, whatever has been changed since it was looked up.
    pub fn is_known(&self, now: Timestamp) -> bool {
        now.0 < self.usage.valid_before.load(Ordering::Relaxed)
    }

    /// Of each limit that it has: its name, how many there may be, and how many there are.
    pub fn limits_in_use(&self, now: Timestamp) -> Vec<(&'static str, u32, usize)> {
        let [concurrency, rate] = KeyLimit::NAMES;
        let running = || self.usage.running.load(Ordering::Relaxed) as usize;
        let begun = || self.usage.rate.lock().count(now);
        let concurrency = self.limits.concurrency.map(|most| (concurrency, most, running()));
        let rate = self.limits.requests_per_minute.map(|most| (rate, most, begun()));
        concurrency.into_iter().chain(rate).collect()
    }

    /// Counts a request in. One that is refused counts in neither limit.
    pub fn enter(&self, now: Timestamp) -> Result<KeyPermit, KeyLimit> {
        let mut permit = KeyPermit::default();
        if let Some(most) = self.limits.concurrency {
            let one_more = |running| (running < most).then_some(running + 1);
            let entered =
                self.usage.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
            entered.map_err(|_| KeyLimit::Concurrency(most))?;
            permit.running = Some(Arc::clone(&self.usage));
        }
        if let Some(per_minute) = self.limits.requests_per_minute {
            let begun = self.usage.rate.lock().begin(per_minute, now);
            begun.map_err(|retry_after| KeyLimit::Rate { per_minute, retry_after })?;
            permit.begun = Some((Arc::clone(&self.usage), now));
        }
        Ok(permit)
    }
}

#[derive(Debug, Default)]
pub struct Keys(ArcSwap<HashMap<[u8; 32], Arc<ClientKey>>>);

impl Keys {
    /// Takes over the keys as they now are; what runs under them goes on counting.
    pub fn replace(&self, rows: Vec<ClientKeyRow>) {
        let before = self.0.load();
        let usage_of = |row: &ClientKeyRow| {
            let known = before.get(&row.digest).filter(|known| known.id == row.id);
            known.map(|known| Arc::clone(&known.usage)).unwrap_or_default()
        };
        let key = |row: ClientKeyRow| Arc::new(ClientKey { usage: usage_of(&row), row });
        let map: HashMap<_, Arc<ClientKey>> =
            rows.into_iter().map(|row| (row.digest, key(row))).collect();
        // Only those: a valid key is valid at every moment of this.
        let stays = |one: &ClientKey| {
            map.get(&one.digest).is_some_and(|key| Arc::ptr_eq(&key.usage, &one.usage))
        };
        for gone in before.values().filter(|one| !stays(one)) {
            gone.usage.valid_before.store(ClientKeyRow::NEVER.0, Ordering::Relaxed);
        }
        for key in map.values() {
            key.usage.valid_before.store(key.valid_before().0, Ordering::Relaxed);
        }
        self.0.store(Arc::new(map));
    }

    /// The key's row if it is valid. Looked up by full digest: equal time for all that are unknown,
    /// and nothing of the key itself is compared.
    pub fn find(&self, presented: &str, now: Timestamp) -> Option<Arc<ClientKey>> {
        let row = self.0.load().get(&sha256(presented.as_bytes())).cloned()?;
        row.is_valid(now).then_some(row)
    }

    /// The valid key of that name.
    pub fn named(&self, name: &str, now: Timestamp) -> Option<Arc<ClientKey>> {
        let rows = self.0.load();
        rows.values().find(|row| row.name == name && row.is_valid(now)).cloned()
    }

    pub fn any_valid(&self, now: Timestamp) -> bool {
        self.0.load().values().any(|row| row.is_valid(now))
    }
}

/// A new key without limits, and what of it is stored. The key itself is shown once.
pub fn generate(
    name: String,
    pools: Vec<String>,
    models: Vec<String>,
    expires_at: Option<Timestamp>,
) -> anyhow::Result<(String, NewClientKey)> {
    let key = format!("{PREFIX}{}", random_token()?);
    let (digest, hint) = (sha256(key.as_bytes()), key[..HINT].to_owned());
    let limits = KeyLimits::default();
    Ok((key, NewClientKey { name, digest, hint, pools, models, expires_at, limits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1000);

    fn row(id: i64) -> ClientKeyRow {
        ClientKeyRow {
            id,
            name: id.to_string(),
            digest: [7; 32],
            hint: String::new(),
            pools: vec![],
            models: vec![],
            created_at: Timestamp(0),
            expires_at: None,
            revoked_at: None,
            limits: KeyLimits::default(),
        }
    }

    #[test]
    fn who_holds_a_key_sees_what_becomes_of_it() {
        let ended = ClientKeyRow { revoked_at: Some(NOW), ..row(1) };
        let until = |at| ClientKeyRow { expires_at: Some(Timestamp(at)), ..row(1) };
        let cases = [
            ("the same", vec![row(1)], true),
            ("revoked", vec![ended], false),
            ("gone", vec![], false),
            ("another under its digest", vec![row(2)], false),
            ("ends in a moment", vec![until(1001)], true),
            ("ends now", vec![until(1000)], false),
        ];
        for (name, rows, want) in cases {
            let keys = Keys::default();
            keys.replace(vec![row(1)]);
            let held = Arc::clone(&keys.0.load()[&[7; 32]]);
            assert!(held.is_known(NOW));
            keys.replace(rows);
            assert_eq!(held.is_known(NOW), want, "{name}");
            keys.replace(vec![row(1)]);
            let comes_back = !matches!(name, "gone" | "another under its digest");
            assert_eq!(held.is_known(NOW), comes_back, "{name}, and back");
        }
    }
}
