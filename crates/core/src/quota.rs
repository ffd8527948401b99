//! Quota windows: what upstreams say about them, and what those readings add up to.
//!
//! A window is found by its quota limit and its length, never by its position in an answer: both
//! providers swap "primary" and "secondary" now and then. `used` is what has been consumed; a fresh
//! account that reports 1 percent is 1 percent used.
//!
//! Readings arrive late and out of order, so merging has rules. Headers and events come from
//! answers that may be older than what is known: they move a reset only forward, and lower `used`
//! only when the reset moved. A usage poll asks for the truth, and may set both either way. A part
//! that is missing leaves the stored part alone. Past its reset a window counts as empty until new
//! data come.

use std::time::Duration;

use crate::account::Caps;
use crate::units::{Fraction, Timestamp};

pub const FIVE_HOURS: Duration = Duration::from_hours(5);
pub const WEEK: Duration = Duration::from_hours(168);

/// A reset has moved only if it differs by more than this; providers round it differently from
/// answer to answer.
const RESET_MOVED: Duration = Duration::from_mins(1);

/// A snapshot this old no longer pauses an account, nor ranks it, nor holds against a newer one.
pub const STALE_AFTER: Duration = Duration::from_hours(2);

/// A 5-hour window and anything like it, as opposed to the weekly one.
const SHORT: Duration = Duration::from_hours(6);

/// Which of a provider's limits a window belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    Ordinary,
    /// An additional limit by the provider's own id, e.g. `codex_bengalfox`.
    Named(String),
}

/// Where a reading came from; decides how much it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Headers or in-band events of an ordinary answer.
    Answer,
    /// The usage endpoint.
    Poll,
}

/// One window as one answer reported it. `None`: this answer did not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub limit: Limit,
    pub length: Duration,
    pub used: Option<Fraction>,
    pub resets_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub limit: Limit,
    pub length: Duration,
    pub used: Fraction,
    /// `None`: the upstream never told us.
    pub resets_at: Option<Timestamp>,
    pub observed_at: Timestamp,
}

impl Window {
    /// Share consumed as of `now`: nothing once the reset has passed.
    pub fn used_at(&self, now: Timestamp) -> Fraction {
        if self.has_reset(now) { Fraction::ZERO } else { self.used }
    }

    pub fn has_reset(&self, now: Timestamp) -> bool {
        self.resets_at.is_some_and(|at| at <= now)
    }

    pub fn is_short(&self) -> bool {
        self.length <= SHORT
    }

    /// The account's cap for a window of this length.
    pub fn cap(&self, caps: Caps) -> Fraction {
        if self.is_short() { caps.five_hour } else { caps.weekly }
    }
}

/// Everything known about an account's windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    windows: Vec<Window>,
}

impl Quota {
    pub fn new(windows: Vec<Window>) -> Self {
        Self { windows }
    }

    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Windows of the ordinary limit, which every request spends.
    pub fn ordinary(&self) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(|w| w.limit == Limit::Ordinary)
    }

    pub fn five_hour(&self) -> Option<&Window> {
        self.ordinary().find(|w| w.is_short())
    }

    pub fn weekly(&self) -> Option<&Window> {
        self.ordinary().filter(|w| !w.is_short()).max_by_key(|w| w.length)
    }

    /// Takes over the readings of one answer. Returns whether anything but the time of observation
    /// changed.
    pub fn merge(&mut self, readings: &[Reading], source: Source, now: Timestamp) -> bool {
        let mut changed = false;
        for reading in readings {
            changed |= self.merge_one(reading, source, now);
        }
        // An answer that carries any window of a limit proves all of that limit to be alive: an
        // exhausted account that is being served must never look stale.
        for window in &mut self.windows {
            if readings.iter().any(|r| r.limit == window.limit) {
                window.observed_at = window.observed_at.max(now);
            }
        }
        changed
    }

    fn merge_one(&mut self, reading: &Reading, source: Source, now: Timestamp) -> bool {
        let known = self
            .windows
            .iter_mut()
            .find(|w| w.limit == reading.limit && w.length == reading.length);
        let Some(window) = known else {
            // A reset alone says nothing about consumption; wait for a reading that does.
            let Some(used) = reading.used else {
                return false;
            };
            self.windows.push(Window {
                limit: reading.limit.clone(),
                length: reading.length,
                used,
                resets_at: reading.resets_at,
                observed_at: now,
            });
            self.windows.sort_by(|a, b| (&a.limit, a.length).cmp(&(&b.limit, b.length)));
            return true;
        };
        let before = (window.used, window.resets_at);
        let moved = match (window.resets_at, reading.resets_at) {
            (None, Some(_)) => true,
            (Some(old), Some(new)) => {
                old.plus(RESET_MOVED) < new
                    || (source == Source::Poll && new.plus(RESET_MOVED) < old)
            }
            (_, None) => false,
        };
        // A stored window whose reset has passed is empty, whatever number it still carries; and one
        // that is stale gives way to anything newer.
        let stale = window.observed_at.plus(STALE_AFTER) <= now;
        let may_fall = source == Source::Poll || moved || stale || window.has_reset(now);
        if let Some(used) = reading.used {
            window.used = if may_fall { used } else { window.used.max(used) };
        }
        if moved {
            window.resets_at = reading.resets_at;
        }
        before != (window.used, window.resets_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    #[expect(clippy::unnecessary_wraps, reason = "resets are optional wherever it is used")]
    fn at(minutes: i64) -> Option<Timestamp> {
        Some(Timestamp(NOW.0 + minutes * 60_000))
    }

    fn reading(used: Option<f64>, resets_at: Option<Timestamp>) -> Reading {
        Reading {
            limit: Limit::Ordinary,
            length: FIVE_HOURS,
            used: used.and_then(Fraction::from_percent),
            resets_at,
        }
    }

    fn quota_seen(used: f64, resets_at: Option<Timestamp>, seen_at: Timestamp) -> Quota {
        let mut quota = Quota::default();
        quota.merge(&[reading(Some(used), resets_at)], Source::Poll, seen_at);
        quota
    }

    /// Seen an hour ago.
    fn quota(used: f64, resets_at: Option<Timestamp>) -> Quota {
        quota_seen(used, resets_at, NOW.minus(Duration::from_hours(1)))
    }

    #[test]
    fn used_means_used() {
        let quota = quota(1.0, at(60));
        assert_eq!(quota.five_hour().map(|w| w.used_at(NOW).percent()), Some(1.0));
    }

    #[test]
    #[rustfmt::skip]
    fn merges() {
        use Source::{Answer, Poll};
        let cases = [
            ("rises",                          Answer, reading(Some(50.0), at(60)),  50.0, at(60)),
            ("a late header does not lower",   Answer, reading(Some(10.0), at(60)),  40.0, at(60)),
            ("a poll lowers",                  Poll,   reading(Some(10.0), at(60)),  10.0, at(60)),
            ("a moved reset lowers",           Answer, reading(Some(10.0), at(300)), 10.0, at(300)),
            ("jitter is no move",              Answer, reading(Some(10.0), at(61)),  40.0, at(60)),
            ("headers never move it back",     Answer, reading(Some(10.0), at(10)),  40.0, at(60)),
            ("a poll may move it back",        Poll,   reading(Some(10.0), at(10)),  10.0, at(10)),
            ("a missing reset is kept",        Answer, reading(Some(41.0), None),    41.0, at(60)),
            ("a missing share is kept",        Answer, reading(None, at(300)),       40.0, at(300)),
        ];
        for (name, source, reading, used, resets_at) in cases {
            let mut quota = quota(40.0, at(60));
            quota.merge(&[reading], source, NOW);
            let window = quota.five_hour().expect("the window");
            assert_eq!((window.used.percent(), window.resets_at), (used, resets_at), "{name}");
            assert_eq!(window.observed_at, NOW, "{name}: observed");
        }
    }

    #[test]
    fn a_passed_reset_empties_the_window_and_lets_it_fall() {
        let mut quota = quota(99.0, at(-1));
        assert_eq!(quota.five_hour().map(|w| w.used_at(NOW)), Some(Fraction::ZERO));
        quota.merge(&[reading(Some(3.0), at(299))], Source::Answer, NOW);
        assert_eq!(quota.five_hour().map(|w| w.used.percent()), Some(3.0));
    }

    #[test]
    fn a_stale_snapshot_gives_way_to_a_header() {
        let resets_at = at(600);
        let mut poisoned = quota_seen(99.0, resets_at, NOW.minus(Duration::from_hours(2)));
        poisoned.merge(&[reading(Some(3.0), resets_at)], Source::Answer, NOW);
        assert_eq!(poisoned.five_hour().map(|w| w.used.percent()), Some(3.0));
    }

    #[test]
    fn windows_are_found_by_length() {
        let mut quota = Quota::default();
        let weekly = Reading { length: WEEK, ..reading(Some(7.0), None) };
        quota.merge(&[weekly, reading(Some(3.0), None)], Source::Answer, NOW);
        assert_eq!(quota.five_hour().map(|w| w.used.percent()), Some(3.0));
        assert_eq!(quota.weekly().map(|w| w.used.percent()), Some(7.0));
    }

    #[test]
    fn a_named_limit_is_not_the_ordinary_one() {
        let mut quota = Quota::default();
        let named = Reading { limit: Limit::Named("codex_x".into()), ..reading(Some(100.0), None) };
        quota.merge(&[named], Source::Answer, NOW);
        assert_eq!(quota.five_hour(), None);
    }
}
