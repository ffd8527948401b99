//! Quota windows of an account: they fill with each answered request and empty on their phase.
//!
//! Lengths, capacities and shares are simulated; instants are real (see [`crate::clock`]). Each
//! instant reported in whole seconds is rounded up, so at that second the reset has happened.

use std::time::Duration;

use crate::clock::{Clock, Millis, ceil_seconds};

#[derive(Debug)]
struct Window {
    /// As reported to clients.
    length: Duration,
    capacity: f64,
    used: f64,
    /// Real time between resets, at least 1 ms.
    period: Millis,
    resets_at: Millis,
}

/// One window as it is reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub length: Duration,
    /// 0 to 1; more than was there is reported as 1.
    pub used: f64,
    /// Unix seconds.
    pub resets_at: i64,
    pub resets_in_seconds: i64,
}

impl Reading {
    pub fn is_spent(&self) -> bool {
        self.used >= 1.0
    }

    /// 0 to 100 with at most two decimals.
    pub fn percent(&self) -> f64 {
        (self.used * 10_000.0).round() / 100.0
    }
}

#[derive(Debug)]
pub struct Quota {
    /// By length, the shortest first.
    windows: Vec<Window>,
    /// Units one answered request costs.
    cost: f64,
}

impl Quota {
    pub fn none() -> Self {
        Self { windows: Vec::new(), cost: 1.0 }
    }

    pub fn clear(&mut self) {
        self.windows.clear();
    }

    pub fn set_cost(&mut self, units: f64) {
        self.cost = units;
    }

    /// Adds the window, or replaces the one of the same length.
    pub fn set(
        &mut self,
        clock: &Clock,
        length: Duration,
        capacity: f64,
        used: f64,
        resets_in: Duration,
    ) {
        self.windows.retain(|window| window.length != length);
        let period = clock.compress(length).max(1);
        let resets_at = clock.now() + clock.compress(resets_in);
        self.windows.push(Window { length, capacity, used, period, resets_at });
        self.windows.sort_by_key(|window| window.length);
    }

    /// Sets the used share of the window of this length; `false` if there is none.
    pub fn set_used(&mut self, now: Millis, length: Duration, fraction: f64) -> bool {
        self.roll(now);
        let window = self.windows.iter_mut().find(|window| window.length == length);
        window.map(|window| window.used = fraction * window.capacity).is_some()
    }

    /// Charges one request and gives the readings after it.
    ///
    /// # Errors
    /// A window is spent, nothing was charged: the readings as they are.
    pub fn charge(&mut self, now: Millis) -> Result<Vec<Reading>, Vec<Reading>> {
        self.roll(now);
        if self.windows.iter().any(|window| window.used >= window.capacity) {
            return Err(self.readings(now));
        }
        for window in &mut self.windows {
            window.used += self.cost;
        }
        Ok(self.readings(now))
    }

    pub fn readings(&mut self, now: Millis) -> Vec<Reading> {
        self.roll(now);
        let reading = |window: &Window| Reading {
            length: window.length,
            used: (window.used / window.capacity).clamp(0.0, 1.0),
            resets_at: ceil_seconds(window.resets_at),
            resets_in_seconds: ceil_seconds(window.resets_at - now),
        };
        self.windows.iter().map(reading).collect()
    }

    /// Lets the resets happen that are due.
    fn roll(&mut self, now: Millis) {
        for window in &mut self.windows {
            if window.resets_at <= now {
                let missed = (now - window.resets_at) / window.period + 1;
                window.resets_at += missed * window.period;
                window.used = 0.0;
            }
        }
    }
}

/// The window that says when a spent account serves again: the spent one that resets last, else
/// the shortest.
pub fn blocking(readings: &[Reading]) -> Option<Reading> {
    let spent = readings.iter().filter(|reading| reading.is_spent());
    spent.max_by_key(|reading| reading.resets_at).or(readings.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn fills_refuses_and_resets_on_its_phase() {
        let clock = Clock::new(3600.0);
        let mut quota = Quota::none();
        quota.set(&clock, HOUR * 5, 2.0, 0.0, HOUR);
        let start = clock.now();
        assert!(!quota.charge(start).unwrap()[0].is_spent());
        assert!(quota.charge(start).unwrap()[0].is_spent());
        let spent = quota.charge(start).unwrap_err()[0];
        assert!((1..=2).contains(&spent.resets_in_seconds), "an hour is one second");
        let after = quota.readings(start + 1_000)[0];
        assert!(after.used.abs() < 1e-9);
        assert!((start + 5_000..start + 7_100).contains(&(after.resets_at * 1000)));
    }

    #[test]
    fn the_last_spent_window_blocks() {
        let clock = Clock::new(1.0);
        let mut quota = Quota::none();
        quota.set(&clock, HOUR, 10.0, 10.0, HOUR);
        quota.set(&clock, HOUR * 24, 10.0, 1.0, HOUR * 3);
        let now = clock.now();
        assert_eq!(blocking(&quota.readings(now)).unwrap().length, HOUR);
        assert!(quota.set_used(now, HOUR * 24, 1.0));
        assert_eq!(blocking(&quota.readings(now)).unwrap().length, HOUR * 24);
        assert!(!quota.set_used(now, HOUR * 2, 1.0));
    }
}
