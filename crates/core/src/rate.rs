//! How many requests a client key may begin within any minute.
//!
//! The begin of each of the last minute's requests is kept, so that the limit holds for every minute,
//! wherever it is laid, and the answer to "when is the next one free" is exact.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::Timestamp;

const MINUTE: Duration = Duration::from_mins(1);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Oldest first, no more than are allowed.
    begun: VecDeque<Timestamp>,
}

impl Rate {
    /// Begun within the last minute.
    pub fn count(&self, now: Timestamp) -> usize {
        self.begun.iter().filter(|at| **at <= now && now < at.plus(MINUTE)).count()
    }

    /// Of a request that was counted in then: it has not begun after all.
    pub fn forget(&mut self, at: Timestamp) {
        if let Some(place) = self.begun.iter().position(|begun| *begun == at) {
            self.begun.remove(place);
        }
    }

    /// Counts a request in, or says how long until one may begin.
    pub fn begin(&mut self, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        // A clock that was set back must not keep the key waiting for its old time.
        self.begun.retain(|at| *at <= now && now < at.plus(MINUTE));
        let allowed = usize::try_from(per_minute).unwrap_or(usize::MAX);
        match self.begun.len().checked_sub(allowed) {
            None => {
                self.begun.push_back(now);
                Ok(())
            }
            // One is free when so many have left the minute that fewer than allowed are in it.
            Some(beyond) => {
                Err(self.begun.get(beyond).map_or(MINUTE, |at| now.until(at.plus(MINUTE))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    #[test]
    fn so_many_in_any_minute() {
        let mut rate = Rate::default();
        // Seconds, and the wait in seconds if it is refused.
        let cases = [
            (0, Ok(())),
            (10, Ok(())),
            (20, Ok(())),
            (30, Err(30)),
            (59, Err(1)),
            (60, Ok(())),
            (61, Err(9)),
            (70, Ok(())),
            (71, Err(9)),
            (200, Ok(())),
        ];
        for (second, want) in cases {
            let got = rate.begin(3, NOW.plus(Duration::from_secs(second)));
            assert_eq!(got, want.map_err(Duration::from_secs), "at {second} s");
        }
    }

    #[test]
    fn what_is_forgotten_has_not_begun() {
        let mut rate = Rate::default();
        let at = |second| NOW.plus(Duration::from_secs(second));
        for second in [0, 0, 10] {
            rate.begin(3, at(second)).unwrap();
        }
        rate.forget(at(0));
        assert_eq!(rate.count(at(20)), 2, "one of the two of that moment");
        rate.forget(at(5));
        assert_eq!(rate.count(at(20)), 2, "nothing began then");
        rate.begin(3, at(20)).unwrap();
        assert_eq!(rate.begin(3, at(20)), Err(Duration::from_secs(40)), "the other still counts");
    }

    #[test]
    fn a_limit_that_was_lowered_counts_from_now_on() {
        let mut rate = Rate::default();
        for second in 0..5 {
            rate.begin(9, NOW.plus(Duration::from_secs(second))).unwrap();
        }
        let wait = rate.begin(2, NOW.plus(Duration::from_secs(5)));
        assert_eq!(wait, Err(Duration::from_secs(58)), "when only one is left in the minute");
    }

    #[test]
    fn a_clock_that_is_set_back_costs_nothing() {
        let mut rate = Rate::default();
        rate.begin(1, NOW).unwrap();
        assert!(rate.begin(1, NOW.minus(Duration::from_hours(1))).is_ok());
    }
}
