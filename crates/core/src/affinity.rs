//! Which account a session belongs to.
//!
//! A session stays where its prompt cache is warm for an hour after its last request. The map is
//! bounded: when full, the session idle the longest is forgotten, which costs a cache miss and
//! nothing else.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::account::AccountId;
use crate::units::Timestamp;

pub const SOFT_FOR: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub struct Affinity<K> {
    homes: HashMap<K, Home>,
    capacity: usize,
    lasting: Duration,
}

/// Where a session was placed from: sessions of other pools are not moved along with it.
pub type Scope = u64;

#[derive(Clone, Copy, Debug)]
struct Home {
    account: AccountId,
    scope: Scope,
    seen_at: Timestamp,
}

impl<K: Eq + Hash + Clone> Affinity<K> {
    pub fn new(capacity: usize, lasting: Duration) -> Self {
        Self { homes: HashMap::new(), capacity, lasting }
    }

    pub fn len(&self) -> usize {
        self.homes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    pub fn home(&self, session: &K, now: Timestamp) -> Option<AccountId> {
        let home = self.homes.get(session)?;
        (now < home.seen_at.plus(self.lasting)).then_some(home.account)
    }

    /// The session was sent to `account` at `now`.
    pub fn settle(&mut self, session: K, account: AccountId, scope: Scope, now: Timestamp) {
        if self.homes.len() >= self.capacity && !self.homes.contains_key(&session) {
            self.make_room(now);
        }
        self.homes.insert(session, Home { account, scope, seen_at: now });
    }

    /// Forgets all sessions that `scope` placed on `account`.
    pub fn evict(&mut self, account: AccountId, scope: Scope) {
        self.homes.retain(|_, home| home.account != account || home.scope != scope);
    }

    /// Drops what has expired; if that is nothing, the older half, so that the next sweep is far.
    fn make_room(&mut self, now: Timestamp) {
        let lasting = self.lasting;
        self.homes.retain(|_, home| now < home.seen_at.plus(lasting));
        if self.homes.len() >= self.capacity {
            let mut seen: Vec<Timestamp> = self.homes.values().map(|home| home.seen_at).collect();
            let middle = seen.len() / 2;
            let (_, median, _) = seen.select_nth_unstable(middle);
            let median = *median;
            self.homes.retain(|_, home| home.seen_at > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    /// multiplexer 18.3 #39: sliding. codex-lb E4.
    #[test]
    fn slides_and_expires() {
        let mut map = Affinity::new(10, SOFT_FOR);
        map.settle("s", AccountId(1), 0, NOW);
        let almost = NOW.plus(SOFT_FOR.checked_sub(Duration::from_secs(1)).unwrap());
        assert_eq!(map.home(&"s", almost), Some(AccountId(1)));
        map.settle("s", AccountId(1), 0, almost);
        assert_eq!(map.home(&"s", NOW.plus(SOFT_FOR)), Some(AccountId(1)), "it slides");
        assert_eq!(map.home(&"s", almost.plus(SOFT_FOR)), None);
    }

    /// multiplexer 18.3 #37.
    #[test]
    fn evicts_one_pools_sessions_only() {
        let mut map = Affinity::new(10, SOFT_FOR);
        for (session, account, scope) in [("a", 1, 7), ("b", 1, 8), ("c", 2, 7)] {
            map.settle(session, AccountId(account), scope, NOW);
        }
        map.evict(AccountId(1), 7);
        let homes = ["a", "b", "c"].map(|session| map.home(&session, NOW).map(|id| id.0));
        assert_eq!(homes, [None, Some(1), Some(2)]);
    }

    #[test]
    fn stays_bounded_and_keeps_the_recent() {
        let mut map = Affinity::new(100, SOFT_FOR);
        for i in 0..1000_i64 {
            map.settle(
                i,
                AccountId(i),
                0,
                NOW.plus(Duration::from_millis(u64::try_from(i).unwrap())),
            );
            assert!(map.len() <= 100);
            assert_eq!(map.home(&i, NOW), Some(AccountId(i)), "the newest is always there");
        }
    }
}
