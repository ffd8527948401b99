//! The simulator's time: the wall clock, plus what a test added, with compressed durations.
//!
//! Simulated durations (windows and their phase) are divided by the scale and become real ones;
//! instants are always real, so a reset is reported for the moment at which it happens.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

#[derive(Debug)]
pub struct Clock {
    scale: f64,
    ahead: AtomicI64,
}

impl Clock {
    /// `scale`: simulated seconds in one real second; not above 0 counts as 1.
    pub fn new(scale: f64) -> Self {
        let scale = if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        Self { scale, ahead: AtomicI64::new(0) }
    }

    pub fn now(&self) -> Millis {
        let wall = UNIX_EPOCH.elapsed().unwrap_or_default();
        millis(wall) + self.ahead.load(Ordering::Relaxed)
    }

    /// Moves this clock forward by real time `by`.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(millis(by), Ordering::Relaxed);
    }

    /// The real length of a simulated duration; at least 1 ms unless it was zero.
    pub fn compress(&self, simulated: Duration) -> Millis {
        let real = simulated.div_f64(self.scale);
        if simulated.is_zero() { 0 } else { millis(real).max(1) }
    }
}

pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 4)
}

/// Whole seconds, rounded up: at the reported second the thing has happened.
pub fn ceil_seconds(at: Millis) -> i64 {
    at.div_euclid(1000) + i64::from(at.rem_euclid(1000) != 0)
}

/// RFC 3339 in UTC.
pub fn rfc3339(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at).unwrap_or_default().to_string()
}
