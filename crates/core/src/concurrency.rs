//! How many attempts at the same time an account's upstream takes, as learnt from its refusals.
//!
//! A lone 429 is about a rate, and a pause cures it. Several at once, with no quota spent, say that
//! too much runs at the same time: the limit falls to half of what did, and rises by one each time a
//! limit's worth of requests has been served since, at most once a minute. Back at what was refused
//! it is forgotten. Nothing is learnt above what an operator allows.

use std::time::Duration;

use crate::units::Timestamp;

/// Refusals this close to each other are one burst.
const BURST_WITHIN: Duration = Duration::from_secs(10);
/// So many of them teach something.
const BURST: u32 = 2;
const RAISE_EVERY: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concurrency {
    learnt: Option<Learnt>,
    refusals: u32,
    burst_since: Timestamp,
    /// Most that ran when one of the burst was refused.
    peak: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Learnt {
    limit: u32,
    /// What was too much.
    refused_at: u32,
    /// When the limit was last changed.
    changed_at: Timestamp,
    /// Since then, of requests sent since then.
    served: u32,
}

impl Concurrency {
    /// `None`: nothing is known to be too much.
    pub fn limit(&self) -> Option<u32> {
        self.learnt.map(|learnt| learnt.limit)
    }

    /// A request sent at `sent_at` was told 429, and no quota is spent; `in_flight` ran, itself
    /// included.
    pub fn refused(&mut self, in_flight: u32, sent_at: Timestamp, now: Timestamp) {
        if self.learnt.is_some_and(|learnt| sent_at < learnt.changed_at) {
            // It was sent when more was allowed: that has been learnt already.
            return;
        }
        if self.refusals == 0 || now > self.burst_since.plus(BURST_WITHIN) {
            (self.refusals, self.burst_since, self.peak) = (0, now, 0);
        }
        self.refusals += 1;
        self.peak = self.peak.max(in_flight);
        if self.refusals < BURST || self.peak < 2 {
            return;
        }
        let limit = self.limit().unwrap_or(u32::MAX).min((self.peak / 2).max(1));
        self.learnt = Some(Learnt { limit, refused_at: self.peak, changed_at: now, served: 0 });
        self.refusals = 0;
    }

    /// A request sent at `sent_at` was served.
    pub fn served(&mut self, sent_at: Timestamp, now: Timestamp) {
        let Some(learnt) = &mut self.learnt else { return };
        if sent_at < learnt.changed_at {
            return;
        }
        learnt.served = learnt.served.saturating_add(1);
        if learnt.served >= learnt.limit && learnt.changed_at.plus(RAISE_EVERY) <= now {
            (learnt.limit, learnt.served, learnt.changed_at) = (learnt.limit + 1, 0, now);
            if learnt.limit >= learnt.refused_at {
                self.learnt = None;
            }
        }
    }

    /// The wall clock was set back by `by`.
    pub fn set_back(&mut self, by: Duration) {
        self.burst_since = self.burst_since.minus(by);
        if let Some(learnt) = &mut self.learnt {
            learnt.changed_at = learnt.changed_at.minus(by);
        }
    }

    /// One of the refusals was the request's own fault.
    pub fn take_back(&mut self) {
        self.refusals = self.refusals.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(1_795_300_000_000 + seconds * 1000)
    }

    /// Refusals: how many ran, when it was sent, when it was refused.
    #[test]
    #[rustfmt::skip]
    fn learns_from_bursts() {
        let cases: [(&str, &[(u32, i64, i64)], Option<u32>); 9] = [
            ("nothing",                          &[],                                    None),
            ("one is about a rate",              &[(9, 0, 1)],                           None),
            ("two at once",                      &[(9, 0, 1), (8, 0, 1)],                Some(4)),
            ("the most that ran counts",         &[(4, 0, 1), (12, 0, 2)],               Some(6)),
            ("too far apart",                    &[(9, 0, 1), (9, 11, 12)],              None),
            ("one alone is not too many",        &[(1, 0, 1), (1, 1, 2)],                None),
            ("never below one",                  &[(2, 0, 1), (2, 0, 1)],                Some(1)),
            ("the rest of a burst is old news",  &[(9, 0, 1), (8, 0, 1), (7, 0, 2), (6, 0, 2)], Some(4)),
            ("still too many",                   &[(9, 0, 1), (8, 0, 1), (4, 2, 3), (3, 2, 3)], Some(2)),
        ];
        for (name, refusals, want) in cases {
            let mut concurrency = Concurrency::default();
            for (in_flight, sent_at, now) in refusals {
                concurrency.refused(*in_flight, at(*sent_at), at(*now));
            }
            assert_eq!(concurrency.limit(), want, "{name}");
        }
    }

    fn learnt() -> Concurrency {
        let mut concurrency = Concurrency::default();
        concurrency.refused(6, at(0), at(0));
        concurrency.refused(6, at(0), at(0));
        assert_eq!(concurrency.limit(), Some(3));
        concurrency
    }

    #[test]
    fn rises_slowly_and_is_forgotten_where_it_began() {
        let mut concurrency = learnt();
        let mut limits = Vec::new();
        for second in 1..=300 {
            concurrency.served(at(second), at(second));
            if limits.last() != Some(&concurrency.limit()) {
                limits.push(concurrency.limit());
            }
        }
        assert_eq!(limits, [Some(3), Some(4), Some(5), None]);
    }

    #[test]
    fn rises_only_with_what_was_sent_since_and_served() {
        let mut concurrency = learnt();
        for _ in 0..100 {
            concurrency.served(at(-1), at(90));
        }
        assert_eq!(concurrency.limit(), Some(3), "sent before");
        concurrency.served(at(80), at(90));
        concurrency.served(at(80), at(90));
        assert_eq!(concurrency.limit(), Some(3), "too few");
        concurrency.served(at(80), at(90));
        assert_eq!(concurrency.limit(), Some(4));
        for _ in 0..100 {
            concurrency.served(at(91), at(100));
        }
        assert_eq!(concurrency.limit(), Some(4), "too soon");
    }

    /// Or what is sent from then on would teach nothing, and raise nothing, for as long as it jumped.
    #[test]
    fn a_clock_that_is_set_back_lowers_nothing_for_longer() {
        let (hours, early) = (Duration::from_hours(3), -3 * 3600);
        let mut concurrency = learnt();
        concurrency.set_back(hours);
        (0..3).for_each(|_| concurrency.served(at(early + 61), at(early + 62)));
        assert_eq!(concurrency.limit(), Some(4), "raised");
        let mut concurrency = learnt();
        concurrency.set_back(hours);
        (0..2).for_each(|_| concurrency.refused(2, at(early + 1), at(early + 2)));
        assert_eq!(concurrency.limit(), Some(1), "lowered");
        let mut begun = Concurrency::default();
        begun.refused(6, at(0), at(0));
        begun.set_back(hours);
        begun.refused(6, at(early + 60), at(early + 60));
        assert_eq!(begun.limit(), None, "two of one burst are seconds apart");
    }

    #[test]
    fn what_is_taken_back_is_no_part_of_a_burst() {
        let mut concurrency = Concurrency::default();
        concurrency.refused(6, at(0), at(0));
        concurrency.take_back();
        concurrency.refused(6, at(0), at(1));
        assert_eq!(concurrency.limit(), None);
    }
}
