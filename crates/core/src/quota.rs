//! Quota windows: what upstreams say about them, and what those readings add up to.
//!
//! A window is found by its quota limit and its length, never by its position in an answer: both
//! providers swap "primary" and "secondary" now and then. `used` is what has been consumed; a fresh
//! account that reports 1 percent is 1 percent used.
//!
//! Readings arrive late and out of order, so merging has rules. Headers and events come from
//! answers that may be older than what is known: they move a reset only forward, and lower `used`
//! only when the reset moved; what they say of a window that is over by then says nothing of the one
//! that runs. A usage poll asks for the truth, and may set both either way, unless something newer is
//! known already; it names all windows of a limit, so one that it leaves out is gone. A part of a
//! window that is missing leaves the stored part alone. Past its reset a window counts as empty until
//! new data come; if those name no reset, it is unknown, and if they name only a reset, it is empty.

use std::time::Duration;

use crate::account::Caps;
use crate::units::{Fraction, Timestamp};

pub const FIVE_HOURS: Duration = Duration::from_hours(5);
pub const WEEK: Duration = Duration::from_hours(168);
/// Of plans that count by the month.
pub const MONTH: Duration = Duration::from_hours(30 * 24);

/// A reset has moved only if it differs by more than this; providers round it differently from
/// answer to answer.
const RESET_MOVED: Duration = Duration::from_mins(1);

/// A snapshot this old no longer pauses an account, nor ranks it, nor holds against a newer one.
pub const STALE_AFTER: Duration = Duration::from_hours(2);

/// Lengths this close are of one window: some answers say 299 minutes, or 10079.
const SAME_LENGTH: Duration = Duration::from_mins(1);

pub fn is_same_length(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) <= SAME_LENGTH
}

/// No window resets later than its length from now; a fifth more is for clocks that differ. A later one would
/// hold against every true one. Lengths over 6 hours may have been guessed, so that a month may be called a
/// week.
fn is_in_reach(resets_at: Timestamp, length: Duration, now: Timestamp) -> bool {
    let length = if length <= SHORT { FIVE_HOURS.max(length) } else { MONTH.max(length) };
    resets_at <= now.plus(length + length / 5)
}

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

    /// The long window: of several, the one nearest a week. A free plan has only a monthly one.
    pub fn weekly(&self) -> Option<&Window> {
        self.ordinary().filter(|w| !w.is_short()).min_by_key(|w| w.length.abs_diff(WEEK))
    }

    /// Forgets the windows of additional limits other than `listed` by a poll asked at `asked_at`: an
    /// account that has lost a limit is told so by a list without it.
    pub fn keep_named(&mut self, listed: &[String], asked_at: Timestamp) {
        self.windows.retain(|w| match &w.limit {
            Limit::Ordinary => true,
            Limit::Named(name) => listed.contains(name) || asked_at < w.observed_at,
        });
    }

    /// Forgets the windows that say no: somebody knows better. Returns whether there were any.
    pub fn forget_spent(&mut self, caps: Caps) -> bool {
        let before = self.windows.len();
        self.windows.retain(|w| w.used < w.cap(caps));
        self.windows.len() < before
    }

    /// Takes over the readings of one answer, given at `now`; of a poll, asked then.
    pub fn merge(&mut self, readings: &[Reading], source: Source, now: Timestamp) -> Merged {
        let mut merged = Merged::default();
        for reading in readings {
            self.merge_one(reading, source, now, &mut merged);
        }
        if source == Source::Poll {
            merged.changed |= self.keep_polled(readings, now);
        }
        // An answer that carries any window of a limit proves all of that limit to be alive: an
        // exhausted account that is being served must never look stale.
        for window in &mut self.windows {
            if readings.iter().any(|r| r.limit == window.limit) {
                window.observed_at = window.observed_at.max(now);
            }
        }
        merged
    }

    /// The window that a reading is about.
    fn find(&self, reading: &Reading) -> Option<usize> {
        let apart = |w: &Window| w.length.abs_diff(reading.length);
        let same =
            |w: &Window| w.limit == reading.limit && is_same_length(w.length, reading.length);
        let found = self.windows.iter().enumerate().filter(|(_, w)| same(w));
        found.min_by_key(|(_, w)| apart(w)).map(|(at, _)| at)
    }

    /// Of each limit of which a poll names windows, keeps those alone. Otherwise one that the upstream
    /// has given up, as after a change of plan, would pause the account until its reset: each answer
    /// that names another proves the limit to be alive.
    fn keep_polled(&mut self, readings: &[Reading], asked_at: Timestamp) -> bool {
        let named: Vec<usize> = readings.iter().filter_map(|r| self.find(r)).collect();
        let is_told =
            |limit: &Limit| readings.iter().any(|r| r.limit == *limit && r.used.is_some());
        let (before, mut at) = (self.windows.len(), 0..);
        self.windows.retain(|w| {
            let is_named = at.next().is_some_and(|at| named.contains(&at));
            is_named || asked_at <= w.observed_at || !is_told(&w.limit)
        });
        self.windows.len() < before
    }

    fn merge_one(
        &mut self,
        reading: &Reading,
        source: Source,
        now: Timestamp,
        merged: &mut Merged,
    ) {
        let in_reach = |at: &Timestamp| is_in_reach(*at, reading.length, now);
        let told = reading.resets_at.filter(in_reach);
        let known = self.find(reading).map(|at| &mut self.windows[at]);
        let Some(window) = known else {
            // A reset alone says nothing about consumption; wait for a reading that does.
            let Some(used) = reading.used else {
                return;
            };
            let window = Window {
                limit: reading.limit.clone(),
                length: reading.length,
                used,
                resets_at: told,
                observed_at: now,
            };
            merged.note((Fraction::ZERO, None), &window);
            merged.changed = true;
            self.windows.push(window);
            self.windows.sort_by(|a, b| (&a.limit, a.length).cmp(&(&b.limit, b.length)));
            return;
        };
        // What an older poll found has been overtaken.
        if source == Source::Poll && now < window.observed_at {
            return;
        }
        let before = (window.used, window.resets_at);
        // A window that is stale gives way to anything newer.
        let stale = window.observed_at.plus(STALE_AFTER) <= now;
        // A reset that the clock was wrong for is no better than none.
        let known = window.resets_at.filter(in_reach);
        // An answer begun before that reset, which came late.
        let is_late = |new: Timestamp| {
            let is_another = known.is_none_or(|known| new.plus(RESET_MOVED) < known);
            new <= now && is_another && !stale
        };
        if source == Source::Answer && told.is_some_and(is_late) {
            return;
        }
        let moved = match (known, told) {
            (None, Some(_)) => true,
            (Some(old), Some(new)) => {
                old.plus(RESET_MOVED) < new
                    || (source == Source::Poll && new.plus(RESET_MOVED) < old)
            }
            (_, None) => false,
        };
        // Two readings of one instant have no order: the fuller one stands.
        let asked = source == Source::Poll && window.observed_at < now;
        // A stored window whose reset has passed is empty, whatever number it still carries.
        let may_fall = asked || moved || stale || window.has_reset(now);
        match reading.used {
            Some(used) if may_fall => window.used = used,
            Some(used) => window.used = window.used.max(used),
            // What the window before had consumed is not of this one.
            None if moved && window.has_reset(now) => window.used = Fraction::ZERO,
            None => {}
        }
        if moved {
            window.resets_at = told;
        } else if reading.used.is_some() && told.is_none() && window.has_reset(now) {
            // It would empty the share that has been consumed since.
            window.resets_at = None;
        }
        merged.changed |= before != (window.used, window.resets_at);
        merged.note(before, window);
    }
}

/// What taking over an answer's readings has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Anything but the time of observation, however little.
    pub changed: bool,
    /// Windows that now look different: the share rounds differently at 0.01 %, or the reset is
    /// another one. Worth a line in the log.
    pub seen: Vec<Window>,
}

impl Merged {
    fn note(&mut self, before: (Fraction, Option<Timestamp>), window: &Window) {
        let hundredths = |used: Fraction| (used.ppm() + 50) / 100;
        let share = hundredths(before.0) != hundredths(window.used);
        if share || before.1 != window.resets_at {
            self.seen.push(window.clone());
        }
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
