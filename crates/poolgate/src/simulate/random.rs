//! A small seeded generator, our own so that a seed gives the same figures in every version.

/// `SplitMix64`. Streams made by [`Random::fork`] are independent, so that a draw more in one place
/// changes nothing in another.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[must_use]
    pub fn fork(&self, name: u64) -> Self {
        let mut mixed = Self(self.0 ^ name.wrapping_mul(0xd1b5_4a32_d192_ed03));
        Self(mixed.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0.0 ≤ x < 1.0`
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// By the mean of the values, and the standard deviation of their logarithm.
    pub fn log_normal(&mut self, mean: f64, spread: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        mean * (spread * normal - spread * spread / 2.0).exp()
    }

    /// How often, the first time included, until a chance of 1 / `mean` ends it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=10_000")]
    pub fn geometric(&mut self, mean: f64) -> usize {
        if mean <= 1.0 {
            return 1;
        }
        let more = (1.0 - self.unit()).ln() / (1.0 - 1.0 / mean).ln();
        1 + more.min(10_000.0) as usize
    }

    /// An index, in proportion to `weights`, of which one at least is positive.
    pub fn among(&mut self, weights: &[f64]) -> usize {
        let mut point = self.unit() * weights.iter().sum::<f64>();
        for (i, weight) in weights.iter().enumerate() {
            if point < *weight {
                return i;
            }
            point -= weight;
        }
        weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn means_are_as_asked() {
        let mut random = Random::new(7);
        let mut mean = |draw: &mut dyn FnMut(&mut Random) -> f64| {
            (0..100_000).map(|_| draw(&mut random)).sum::<f64>() / 100_000.0
        };
        let cases = [
            ("unit", mean(&mut Random::unit), 0.5),
            ("exponential", mean(&mut |r| r.exponential(3.0)), 3.0),
            ("log-normal", mean(&mut |r| r.log_normal(2.0, 0.8)), 2.0),
            ("geometric", mean(&mut |r| r.geometric(12.0) as f64), 12.0),
            ("geometric of one", mean(&mut |r| r.geometric(1.0) as f64), 1.0),
            ("among", mean(&mut |r| r.among(&[1.0, 0.0, 3.0]) as f64), 1.5),
        ];
        for (name, got, want) in cases {
            assert!((got - want).abs() < 0.03 * want, "{name}: wanted {want}, got {got}");
        }
    }

    #[test]
    fn forks_differ_and_repeat() {
        let seed = Random::new(1);
        let first = |random: &Random| random.clone().next();
        assert_eq!(first(&seed.fork(1)), first(&seed.fork(1)));
        assert_ne!(first(&seed.fork(1)), first(&seed.fork(2)));
        assert_ne!(first(&seed.fork(1)), first(&Random::new(2).fork(1)));
    }
}
