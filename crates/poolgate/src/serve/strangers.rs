//! Wrong keys, counted by the address they come from. Nobody is locked out: a good key from the same
//! address is served as ever, since the answer alone changes, from "unknown" to "slow down".

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Within one second, from one address (reliability §9).
const FAILURES_MAX: u32 = 50;
const WITHIN: Duration = Duration::from_secs(1);
/// Beyond that, addresses that have been quiet are forgotten.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct Strangers(Mutex<HashMap<IpAddr, Failures>>);

#[derive(Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Strangers {
    /// One more wrong key. True: too many.
    pub fn failed(&self, address: IpAddr, now: Instant) -> bool {
        let mut all = self.0.lock();
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&address) {
            all.retain(|_, failures| now.duration_since(failures.since) < WITHIN);
            if all.len() >= ADDRESSES_MAX {
                return true;
            }
        }
        let failures = all.entry(address).or_insert(Failures { since: now, count: 0 });
        if now.duration_since(failures.since) >= WITHIN {
            *failures = Failures { since: now, count: 0 };
        }
        failures.count += 1;
        failures.count > FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn each_address_has_its_own_second() {
        let strangers = Strangers::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        assert!((0..50).all(|_| !strangers.failed(one, now)));
        assert!(strangers.failed(one, now) && !strangers.failed(other, now));
        assert!(!strangers.failed(one, now + WITHIN));
    }

    #[test]
    fn memory_is_bounded() {
        let strangers = Strangers::default();
        let now = Instant::now();
        for number in 0..5000_u32 {
            strangers.failed(Ipv4Addr::from(number).into(), now);
        }
        assert_eq!(strangers.0.lock().len(), ADDRESSES_MAX);
        assert!(!strangers.failed(IpAddr::from([10, 0, 0, 1]), now + WITHIN));
        assert_eq!(strangers.0.lock().len(), 1);
    }
}
