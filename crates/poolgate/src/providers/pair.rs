//! Codex's two windows, wherever they are told: headers, events, usage answers.
//!
//! They come as "primary" and "secondary", and the two swap places now and then, so only their
//! lengths say which is which. When one length is missing it is taken to be the other of the usual
//! two; when both are, the place decides, unless the reset lies too far ahead for five hours.

use std::time::Duration;

use poolgate_core::quota::{FIVE_HOURS, Limit, MONTH, Reading, WEEK, is_same_length};
use poolgate_core::units::{Fraction, Timestamp};

/// Longer than any window that goes by the name of "5h".
const SHORT: Duration = Duration::from_hours(6);

/// One window as told; each part counts on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Half {
    /// 0–100, and it means *used*.
    pub used_percent: Option<f64>,
    pub length: Option<Duration>,
    /// Unix seconds.
    pub resets_at: Option<i64>,
    /// Seconds from the answer on; less than nothing is now.
    pub resets_in: Option<i64>,
}

impl Half {
    fn reset(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.resets_at.filter(|s| *s > 0).and_then(Timestamp::from_unix_seconds);
        let wait = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        at.or_else(|| self.resets_in.map(|seconds| now.plus(wait(seconds))))
    }

    fn known_length(&self) -> Option<Duration> {
        self.length.filter(|length| !length.is_zero())
    }

    /// 0 percent, no length and no reset: the client takes that for no window (Codex CLI 0.169.0).
    fn says_nothing(&self, used: Option<Fraction>, resets_at: Option<Timestamp>) -> bool {
        self.known_length().is_none()
            && resets_at.is_none()
            && used.is_none_or(|used| used == Fraction::ZERO)
    }
}

/// The readings of one limit's two windows, as of `now`.
pub fn pair(
    limit: &Limit,
    primary: Option<Half>,
    secondary: Option<Half>,
    now: Timestamp,
) -> Vec<Reading> {
    let reading = |half: Option<Half>, other: Option<Half>, usual: Duration| {
        let half = half?;
        let used = half.used_percent.and_then(Fraction::from_percent);
        let resets_at = half.reset(now);
        if half.says_nothing(used, resets_at) {
            return None;
        }
        let beside = other.and_then(|other| other.known_length());
        let first = beside.map_or(usual, the_other);
        // Two windows are never of one length.
        let far = if beside.is_some_and(|told| is_same_length(told, WEEK)) { MONTH } else { WEEK };
        let holds = first > SHORT || resets_at.is_none_or(|at| now.until(at) <= SHORT);
        let length = half.known_length().unwrap_or(if holds { first } else { far });
        Some(Reading { limit: limit.clone(), length, used, resets_at })
    };
    let both = [reading(primary, secondary, FIVE_HOURS), reading(secondary, primary, WEEK)];
    both.into_iter().flatten().collect()
}

fn the_other(length: Duration) -> Duration {
    if length <= SHORT { WEEK } else { FIVE_HOURS }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    #[test]
    #[rustfmt::skip]
    fn tells_the_windows_apart() {
        let half = |used: f64, minutes: u64, resets_in: i64| Some(Half {
            used_percent: Some(used),
            length: (minutes > 0).then(|| Duration::from_mins(minutes)),
            resets_at: None,
            resets_in: (resets_in > 0).then_some(resets_in),
        });
        let nobody = None;
        let day = 86_400;
        let cases: [(&str, [Option<Half>; 2], &[(u64, f64)]); 12] = [
            ("by length",                           [half(1.0, 300, 0), half(2.0, 10_080, 0)],  &[(300, 1.0), (10_080, 2.0)]),
            ("sub2api C1: swapped",                 [half(2.0, 10_080, 0), half(1.0, 300, 0)],  &[(10_080, 2.0), (300, 1.0)]),
            ("one length short, the other unknown", [half(1.0, 0, 0), half(2.0, 300, 0)],       &[(10_080, 1.0), (300, 2.0)]),
            ("one length long, the other unknown",  [half(1.0, 10_080, 0), half(2.0, 0, 0)],    &[(10_080, 1.0), (300, 2.0)]),
            ("no lengths: by place",                [half(1.0, 0, 0), half(2.0, 0, 0)],         &[(300, 1.0), (10_080, 2.0)]),
            ("sub2api C4: alone, reset unknown",    [half(42.0, 0, 0), nobody],                 &[(300, 42.0)]),
            ("alone, reset days ahead",             [half(42.0, 0, 3 * day), nobody],           &[(10_080, 42.0)]),
            ("alone, reset weeks ahead",            [half(42.0, 0, 25 * day), nobody],          &[(10_080, 42.0)]),
            ("both long, one told",                 [half(1.0, 10_080, 0), half(2.0, 0, 3 * day)], &[(10_080, 1.0), (43_200, 2.0)]),
            ("a month, and another long one",       [half(1.0, 43_200, 0), half(2.0, 0, 3 * day)], &[(43_200, 1.0), (10_080, 2.0)]),
            ("a month",                             [half(5.0, 43_200, 0), nobody],             &[(43_200, 5.0)]),
            ("an empty one beside",                 [half(0.0, 0, 0), half(2.0, 10_080, 0)],    &[(10_080, 2.0)]),
        ];
        for (name, [primary, secondary], want) in cases {
            let got: Vec<(u64, f64)> = pair(&Limit::Ordinary, primary, secondary, NOW)
                .iter()
                .map(|r| (r.length.as_secs() / 60, r.used.expect("told").percent()))
                .collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn nonsense_is_absence() {
        let odd = Half {
            used_percent: Some(f64::NAN),
            length: Some(Duration::ZERO),
            resets_at: Some(-3),
            resets_in: None,
        };
        assert_eq!(pair(&Limit::Ordinary, Some(odd), None, NOW), []);
        let half = Half { used_percent: Some(130.0), ..odd };
        let [reading] = &pair(&Limit::Ordinary, Some(half), None, NOW)[..] else { panic!("one") };
        assert_eq!((reading.used, reading.resets_at), (Some(Fraction::ONE), None));
    }
}
