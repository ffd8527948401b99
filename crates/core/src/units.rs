//! Time and shares as types, so that a percent cannot pass for a fraction, nor seconds for
//! milliseconds.

use std::time::Duration;

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Reads an upstream's Unix seconds. Values outside the years 1970–9999 are `None`: they are
    /// mistakes, and arithmetic on them would overflow later.
    pub fn from_unix_seconds(seconds: i64) -> Option<Self> {
        (0..=253_402_300_799).contains(&seconds).then(|| Self(seconds * 1000))
    }

    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time from `self` to `later`; zero when `later` has already been.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// Share of a whole in parts per million, `0..=1_000_000`. An integer, so that it derives `Ord`.
///
/// There are two constructors and no other conversion: Codex reports percent, Anthropic a fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fraction(u32);

impl Fraction {
    pub const ZERO: Self = Self(0);
    pub const ONE: Self = Self(1_000_000);

    /// Reads an upstream's `0..=100`. Above 100 is "spent", not an error; NaN and negatives are
    /// `None`. The value 1 is one percent, never the whole.
    pub fn from_percent(percent: f64) -> Option<Self> {
        Self::from_share(percent / 100.0)
    }

    /// Reads an upstream's `0..=1`. Above 1 is "spent"; NaN and negatives are `None`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=1e6")]
    pub fn from_share(share: f64) -> Option<Self> {
        (share.is_finite() && share >= 0.0).then(|| Self((share.min(1.0) * 1e6).round() as u32))
    }

    pub const fn from_ppm(ppm: u32) -> Self {
        Self(if ppm > 1_000_000 { 1_000_000 } else { ppm })
    }

    pub const fn ppm(self) -> u32 {
        self.0
    }

    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1e4
    }

    pub fn share(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// What is left of `self` after `used`; zero when nothing is.
    #[must_use]
    pub const fn less(self, used: Self) -> Self {
        Self(self.0.saturating_sub(used.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_percent_and_share_without_confusing_them() {
        let cases = [
            ("1 percent is 1 percent", Fraction::from_percent(1.0), Some(10_000)),
            ("2 percent", Fraction::from_percent(2.0), Some(20_000)),
            ("a share of 1 is everything", Fraction::from_share(1.0), Some(1_000_000)),
            ("over the top is spent", Fraction::from_percent(130.0), Some(1_000_000)),
            ("a hair of it", Fraction::from_share(0.000_001), Some(1)),
            ("negative", Fraction::from_percent(-1.0), None),
            ("not a number", Fraction::from_share(f64::NAN), None),
            ("infinite", Fraction::from_percent(f64::INFINITY), None),
        ];
        for (name, got, want) in cases {
            assert_eq!(got.map(Fraction::ppm), want, "{name}");
        }
    }

    #[test]
    fn timestamps_saturate_and_refuse_nonsense() {
        assert_eq!(Timestamp::from_unix_seconds(-5), None);
        assert_eq!(Timestamp::from_unix_seconds(i64::MAX), None);
        let at = Timestamp::from_unix_seconds(1_795_312_935).expect("a plain date");
        assert_eq!(at.unix_seconds(), 1_795_312_935);
        assert_eq!(at.until(at.minus(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(at.until(at.plus(Duration::from_secs(3))), Duration::from_secs(3));
        assert_eq!(Timestamp(i64::MAX).plus(Duration::MAX), Timestamp(i64::MAX));
    }
}
