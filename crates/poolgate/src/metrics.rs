//! Figures of the whole process, counted where things happen and read by whoever scrapes them.
//!
//! Requests touch only atomics at places known when the program was compiled: no lock, and no search
//! for a label. `admin/metrics` names the figures and puts them into Prometheus's format.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use poolgate_core::account::Surface;
use poolgate_core::outcome::Outcome;

use crate::keys::KeyLimit;

/// Ends of a histogram's buckets, in milliseconds; there is one more for all that is longer.
pub const BOUNDS_MS: [u64; 16] =
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000];
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// Durations. Cheap to add to from many threads; a reading may miss what is being added.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub fn observe(&self, span: Duration) {
        let us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS.partition_point(|bound| bound * 1000 < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts by bucket, and the sum of all.
    pub fn read(&self) -> ([u64; BUCKETS], Duration) {
        let counts = from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        (counts, Duration::from_micros(self.sum_us.load(Ordering::Relaxed)))
    }
}

/// The counts of one enum's values.
#[derive(Debug)]
pub struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Counts<N> {
    pub fn add(&self, index: usize) {
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> [u64; N] {
        from_fn(|i| self.0[i].load(Ordering::Relaxed))
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    /// Refused or failed before anything was relayed.
    Refused,
    ClientLeft,
    UpstreamBroke,
    /// We ended it: at the end of the drain, or because the key was revoked.
    Interrupted,
}

impl Ending {
    pub const ALL: [Self; 5] =
        [Self::Complete, Self::Refused, Self::ClientLeft, Self::UpstreamBroke, Self::Interrupted];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::ClientLeft => "client_left",
            Self::UpstreamBroke => "upstream_broke",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Statuses by their first digit; first those of requests that came to none.
pub const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// From the arrival of a request: to its first attempt, to the head of the answer, to the first byte
/// for the client, to its end.
pub const PHASES: [&str; 4] = ["queue", "head", "first_byte", "total"];

/// Why a request is refused for which there would be a place: what we lack, or who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    Memory,
    /// It could not be recorded.
    Spool,
    Draining,
    /// Too many wrong keys from its address.
    Strangers,
    /// A connection more than its address may have, closed at once.
    Connections,
}

impl Shed {
    pub const ALL: [Self; 5] =
        [Self::Memory, Self::Spool, Self::Draining, Self::Strangers, Self::Connections];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Spool => "spool",
            Self::Draining => "draining",
            Self::Strangers => "strangers",
            Self::Connections => "connections",
        }
    }
}

/// What became of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    Renewed,
    /// For now.
    Failed,
    /// A person must act.
    Refused,
    /// We had no room to ask.
    Shed,
}

impl Refreshed {
    pub const ALL: [Self; 4] = [Self::Renewed, Self::Failed, Self::Refused, Self::Shed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Shed => "shed",
        }
    }
}

pub type ByEnding = [[u64; CLASSES.len()]; Ending::ALL.len()];

#[derive(Debug, Default)]
pub struct Metrics {
    surfaces: [OfSurface; Surface::ALL.len()],
    pub attempts: Counts<{ Outcome::NAMES.len() }>,
    pub refreshes: Counts<{ Refreshed::ALL.len() }>,
    pub key_refusals: Counts<{ KeyLimit::NAMES.len() }>,
    sheds: Counts<{ Shed::ALL.len() }>,
}

#[derive(Debug, Default)]
struct OfSurface {
    requests: [Counts<{ CLASSES.len() }>; Ending::ALL.len()],
    phases: [Histogram; PHASES.len()],
}

impl Metrics {
    pub fn shed(&self, why: Shed) {
        self.sheds.add(why as usize);
    }

    pub fn sheds(&self) -> [u64; Shed::ALL.len()] {
        self.sheds.read()
    }

    /// A request has ended. `phases`: in the order of [`PHASES`]; `None`: it did not come so far.
    pub fn ended(
        &self,
        surface: Surface,
        ending: Ending,
        status: u16,
        phases: [Option<Duration>; PHASES.len()],
    ) {
        let of = &self.surfaces[surface as usize];
        let class = usize::from(status / 100);
        of.requests[ending as usize].add(if class < CLASSES.len() { class } else { 0 });
        for (histogram, span) in of.phases.iter().zip(phases) {
            if let Some(span) = span {
                histogram.observe(span);
            }
        }
    }

    pub fn attempt(&self, outcome: Outcome) {
        self.attempts.add(outcome.index());
    }

    pub fn requests(&self, surface: Surface) -> ByEnding {
        from_fn(|i| self.surfaces[surface as usize].requests[i].read())
    }

    pub fn phases(&self, surface: Surface) -> &[Histogram; PHASES.len()] {
        &self.surfaces[surface as usize].phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_that_ends_at_or_after_them() {
        let histogram = Histogram::default();
        let spans = [0, 1000, 1001, 5000, 300_000_000, 300_000_001];
        for us in spans {
            histogram.observe(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.read();
        let mut want = [0; BUCKETS];
        (want[0], want[1], want[2], want[15], want[16]) = (2, 1, 1, 1, 1);
        assert_eq!(counts, want);
        assert_eq!(sum, Duration::from_micros(spans.iter().sum()));
    }

    #[test]
    fn every_value_has_a_place_of_its_own() {
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, index);
        }
        for (index, refreshed) in Refreshed::ALL.into_iter().enumerate() {
            assert_eq!(refreshed as usize, index);
        }
        for (index, surface) in Surface::ALL.into_iter().enumerate() {
            assert_eq!(surface as usize, index);
        }
    }

    #[test]
    fn a_request_counts_once_and_in_the_phases_it_came_to() {
        let metrics = Metrics::default();
        let second = Some(Duration::from_secs(1));
        metrics.ended(Surface::Chat, Ending::Complete, 200, [second; 4]);
        metrics.ended(Surface::Chat, Ending::Refused, 429, [None, None, None, second]);
        metrics.ended(Surface::Chat, Ending::ClientLeft, 0, [None, None, None, second]);
        let requests = metrics.requests(Surface::Chat);
        assert_eq!((requests[0][2], requests[1][4], requests[2][0]), (1, 1, 1));
        let count = |h: &Histogram| h.read().0.iter().sum::<u64>();
        let counted = metrics.phases(Surface::Chat).each_ref().map(count);
        assert_eq!(counted, [1, 1, 1, 3]);
        assert_eq!(metrics.requests(Surface::Responses), ByEnding::default());
    }
}
