//! What a run comes to.

use std::ops::AddAssign;

/// Counts and units; after averaging over runs, means of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Turns that sessions consist of.
    pub wanted: f64,
    pub served: f64,
    /// Wanted and never served.
    pub lost: f64,
    /// The same as work: units at the cost of a warm cache.
    pub wanted_units: f64,
    pub served_units: f64,
    /// What served turns cost beyond that, for cold caches.
    pub cold_units: f64,
    /// Times a user was told that nobody can serve.
    pub refusals: f64,
    /// Turns served on another account than the turn of that session before.
    pub moves: f64,
    /// Attempts that an account's provider refused.
    pub failed_attempts: f64,
    /// What the weeks that ended had held for the pool, and what of it nobody had used.
    pub reset_units: f64,
    pub unused_units: f64,
}

impl Figures {
    pub fn lost_percent(&self) -> f64 {
        percent(self.lost, self.wanted)
    }

    pub fn lost_work_percent(&self) -> f64 {
        // Sums of the same numbers in another order may differ by a hair.
        percent((self.wanted_units - self.served_units).max(0.0), self.wanted_units)
    }

    /// Of what served turns cost in all.
    pub fn cold_percent(&self) -> f64 {
        percent(self.cold_units, self.served_units + self.cold_units)
    }

    pub fn unused_percent(&self) -> f64 {
        percent(self.unused_units, self.reset_units)
    }

    fn all(&mut self) -> [&mut f64; 11] {
        [
            &mut self.wanted,
            &mut self.served,
            &mut self.lost,
            &mut self.wanted_units,
            &mut self.served_units,
            &mut self.cold_units,
            &mut self.refusals,
            &mut self.moves,
            &mut self.failed_attempts,
            &mut self.reset_units,
            &mut self.unused_units,
        ]
    }

    /// The mean over runs, of which there is one at least.
    #[expect(clippy::cast_precision_loss, reason = "a few runs")]
    pub fn mean(runs: &[Self]) -> Self {
        let mut mean = Self::default();
        for run in runs {
            mean += *run;
        }
        for figure in mean.all() {
            *figure /= runs.len() as f64;
        }
        mean
    }
}

impl AddAssign for Figures {
    fn add_assign(&mut self, mut other: Self) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }
}

pub fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}
