//! How one of several able accounts is picked: by order, by chance, or by a score.
//!
//! Scores look at the windows the request spends: the ordinary limit's, or a gated model's own.
//! A window that is stale says nothing and is left out.

use std::cmp::Ordering;
use std::time::Duration;

use crate::availability::{Account, Ask};
use crate::quota::{STALE_AFTER, Window};
use crate::units::{Fraction, Timestamp};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In proportion to what each account can still give until its windows reset.
    #[default]
    Headroom,
    /// Most weekly quota left, weighted by plan and by how soon it would be lost.
    LeastUsed,
    /// The next one in order, each time.
    RoundRobin,
    Random,
    /// The first one in order; sessions do not stick.
    Fallback,
    /// At random, in proportion to the weekly units left.
    CapacityWeighted,
    /// Among the five that could spend fastest until their reset, at random by the square of that.
    RelativeAvailability,
    /// The fullest 5-hour window first, to keep others whole.
    FillFirst,
    /// The smallest plan first.
    SequentialDrain,
    /// The soonest weekly reset first, by day.
    ResetDrain,
    /// The first account of the pool, or nobody.
    Single,
}

impl Strategy {
    pub const ALL: [Self; 11] = [
        Self::Headroom,
        Self::LeastUsed,
        Self::RoundRobin,
        Self::Random,
        Self::Fallback,
        Self::CapacityWeighted,
        Self::RelativeAvailability,
        Self::FillFirst,
        Self::SequentialDrain,
        Self::ResetDrain,
        Self::Single,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::LeastUsed => "least-used",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Fallback => "fallback",
            Self::CapacityWeighted => "capacity-weighted",
            Self::RelativeAvailability => "relative-availability",
            Self::FillFirst => "fill-first",
            Self::SequentialDrain => "sequential-drain",
            Self::ResetDrain => "reset-drain",
            Self::Single => "single",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }

    /// Whether a session keeps its account while that account can serve.
    pub const fn sticks(self) -> bool {
        !matches!(self, Self::Fallback)
    }
}

/// One pick among able accounts.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    pub ask: Ask<'a>,
    /// Counts choices; drives round-robin.
    pub turn: u64,
    /// Drives the random strategies.
    pub seed: u64,
    pub now: Timestamp,
}

impl Pick<'_> {
    /// What `strategy` thinks of the account: higher is better. `None`: it does not score.
    pub fn score(&self, strategy: Strategy, account: &Account) -> Option<f64> {
        let windows = Windows::of(account, self.ask, self.now);
        Some(match strategy {
            Strategy::Headroom => windows.headroom(),
            Strategy::LeastUsed => windows.least_used(),
            Strategy::CapacityWeighted => windows.weekly_left(),
            Strategy::RelativeAvailability => windows.weekly_left() / windows.seconds_to_weekly(),
            Strategy::FillFirst => windows.used_short(),
            Strategy::SequentialDrain => -account.weight,
            Strategy::ResetDrain => windows.reset_drain(),
            Strategy::RoundRobin | Strategy::Random | Strategy::Fallback | Strategy::Single => {
                return None;
            }
        })
    }

    /// What scores are made of.
    pub fn parts(&self, account: &Account) -> Parts {
        let windows = Windows::of(account, self.ask, self.now);
        let part = |window: Option<&Window>| {
            let window = window?;
            Some((windows.left(Some(window)), windows.until_reset(window)))
        };
        Parts {
            short: part(windows.short),
            weekly: part(windows.weekly),
            in_flight: account.in_flight,
            errors: account.health.errors,
        }
    }

    /// What the request's week has been used of: in percent; nothing where that is unknown.
    pub fn weekly_used(&self, account: &Account) -> f64 {
        let is_gated = self.ask.gate.is_some_and(|gate| gate.governs(account.plan.as_deref()));
        let weekly = if is_gated {
            Windows::of(account, self.ask, self.now).weekly
        } else {
            account.quota.weekly()
        };
        weekly.map_or(0.0, |w| w.used_at(self.now).percent())
    }

    /// `open` is not empty, and in the order of `all`, who take turns. Ties go to the first.
    pub fn among<'a>(
        &self,
        strategy: Strategy,
        open: &[&'a Account],
        all: &[&Account],
    ) -> &'a Account {
        let score = |account: &Account| self.score(strategy, account).unwrap_or(0.0);
        match strategy {
            Strategy::Fallback | Strategy::Single => open[0],
            Strategy::Random => self.nth(open),
            Strategy::RoundRobin => self.next_in_turn(open, all),
            Strategy::LeastUsed
            | Strategy::FillFirst
            | Strategy::SequentialDrain
            | Strategy::ResetDrain => best(open, score),
            Strategy::Headroom | Strategy::CapacityWeighted => {
                self.draw(open, score).unwrap_or_else(|| self.nth(open))
            }
            Strategy::RelativeAvailability => {
                let mut ranked: Vec<&Account> = open.to_vec();
                ranked.sort_by(|a, b| score(b).total_cmp(&score(a)));
                ranked.truncate(5);
                let top = score(ranked[0]).max(f64::MIN_POSITIVE);
                let relative = |account: &Account| {
                    let share = score(account) / top;
                    if share < 0.1 { 0.0 } else { share * share }
                };
                self.draw(&ranked, relative).unwrap_or_else(|| self.nth(open))
            }
        }
    }

    fn nth<'a>(&self, open: &[&'a Account]) -> &'a Account {
        let count = u64::try_from(open.len()).unwrap_or(1);
        open[usize::try_from(mix(self.seed) % count).unwrap_or(0)]
    }

    /// Counted over all who take turns, so that an account that drops out does not shift the turn of
    /// the others.
    fn next_in_turn<'a>(&self, open: &[&'a Account], all: &[&Account]) -> &'a Account {
        let count = u64::try_from(all.len()).unwrap_or(1).max(1);
        let start = usize::try_from(self.turn % count).unwrap_or(0);
        let mut order = all[start..].iter().chain(&all[..start]);
        order.find_map(|a| open.iter().find(|o| o.id == a.id)).copied().unwrap_or(open[0])
    }

    /// Draws in proportion to the scores; `None` when all are zero.
    fn draw<'a>(
        &self,
        open: &[&'a Account],
        score: impl Fn(&Account) -> f64,
    ) -> Option<&'a Account> {
        let scores: Vec<f64> = open.iter().map(|a| score(a).max(0.0)).collect();
        let total: f64 = scores.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let mut point = unit(self.seed) * total;
        for (account, score) in open.iter().zip(&scores) {
            if point < *score {
                return Some(account);
            }
            point -= score;
        }
        // Rounding may leave a hair: the last that has any score takes it.
        open.iter().zip(&scores).rev().find(|(_, score)| **score > 0.0).map(|(account, _)| *account)
    }
}

/// What a score is made of, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Of the 5-hour window: what is left up to its cap, and the time to its reset.
    pub short: Option<(Fraction, Duration)>,
    /// The same of the weekly window.
    pub weekly: Option<(Fraction, Duration)>,
    pub in_flight: u32,
    pub errors: u32,
}

/// A weekly window holds about this many 5-hour windows. A planning figure from public reports; it
/// only has to put the two windows of one account on one scale.
pub const WEEKLY_IN_FIVE_HOURS: f64 = 8.0;
const WEEK_HOURS: f64 = 168.0;

/// The windows of one account that a request spends, as far as they are known and fresh.
struct Windows<'a> {
    account: &'a Account,
    now: Timestamp,
    short: Option<&'a Window>,
    weekly: Option<&'a Window>,
}

impl<'a> Windows<'a> {
    fn of(account: &'a Account, ask: Ask<'a>, now: Timestamp) -> Self {
        let mut found = Self { account, now, short: None, weekly: None };
        let mut take = |w: &'a Window| {
            let place = if w.is_short() { &mut found.short } else { &mut found.weekly };
            // Of several, the fuller one: what it says is what will bite.
            if place.is_none_or(|known: &Window| known.used_at(now) < w.used_at(now)) {
                *place = Some(w);
            }
        };
        if let Some(gate) = ask.gate.filter(|gate| gate.governs(account.plan.as_deref())) {
            gate.windows(account, now).for_each(&mut take);
            // A missing weekly window of a gated limit never borrows the ordinary one; the short
            // one stands in.
            found.weekly = found.weekly.or(found.short);
        } else {
            let fresh = |w: &&Window| now < w.observed_at.plus(STALE_AFTER) || w.has_reset(now);
            account.quota.ordinary().filter(fresh).for_each(&mut take);
        }
        found
    }

    /// Cap − used; the cap when the window is unknown.
    fn left(&self, window: Option<&Window>) -> Fraction {
        let caps = self.account.caps;
        window.map_or(caps.weekly, |w| w.cap(caps).less(w.used_at(self.now)))
    }

    /// The whole length when the reset is unknown or past.
    fn until_reset(&self, window: &Window) -> Duration {
        let ahead = window.resets_at.filter(|at| self.now < *at);
        ahead.map_or(window.length, |at| self.now.until(at))
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a few weeks")]
    fn hours_to_reset(&self, window: &Window) -> f64 {
        match window.resets_at {
            Some(at) if self.now < at => (at.0 - self.now.0) as f64 / 3.6e6,
            _ => window.length.as_secs_f64() / 3600.0,
        }
    }

    /// (cap − used) · weight · 168 / max(hours to reset, 1), of the weekly window; unknown reset:
    /// factor 1.
    fn least_used(&self) -> f64 {
        let known = self.weekly.filter(|w| w.resets_at.is_some_and(|at| self.now < at));
        let factor = known.map_or(1.0, |w| WEEK_HOURS / self.hours_to_reset(w).max(1.0));
        self.left(self.weekly).percent() * self.account.weight * factor
    }

    /// The rate, in 5-hour windows of a weight-1 plan per hour, that the account can keep up until
    /// its windows reset; lessened by what is in flight and by recent errors.
    fn headroom(&self) -> f64 {
        let weight = self.account.weight;
        let rate = |w: &Window| {
            let (units, least) =
                if w.is_short() { (1.0, 0.5) } else { (WEEKLY_IN_FIVE_HOURS, 1.0) };
            self.left(Some(w)).share() * units * weight / self.hours_to_reset(w).max(least)
        };
        let known = [self.short, self.weekly].into_iter().flatten();
        let sustainable = known.map(rate).min_by(f64::total_cmp);
        let unknown = weight * WEEKLY_IN_FIVE_HOURS / WEEK_HOURS;
        let busy = 1.0 + f64::from(self.account.in_flight) / (4.0 * weight);
        // Each error in a row halves it.
        let errors = f64::from(1_u32 << self.account.health.errors.min(8));
        sustainable.unwrap_or(unknown) / busy / errors
    }

    fn weekly_left(&self) -> f64 {
        self.left(self.weekly).share() * self.account.weight
    }

    fn seconds_to_weekly(&self) -> f64 {
        let hours = self.weekly.map_or(WEEK_HOURS, |w| self.hours_to_reset(w));
        (hours * 3600.0).max(300.0)
    }

    fn used_short(&self) -> f64 {
        self.short.map_or(0.0, |w| w.used_at(self.now).share())
    }

    /// Days to the weekly reset count most, then what is left of the short window.
    fn reset_drain(&self) -> f64 {
        let days = (self.seconds_to_weekly() / 86_400.0).floor();
        -days * 10.0 + self.left(self.short).share()
    }
}

/// The first of the highest.
fn best<'a>(open: &[&'a Account], score: impl Fn(&Account) -> f64) -> &'a Account {
    let mut best = (open[0], score(open[0]));
    for account in &open[1..] {
        let score = score(account);
        if score.total_cmp(&best.1) == Ordering::Greater {
            best = (account, score);
        }
    }
    best.0
}

/// `SplitMix64`: one well-mixed number from a seed.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Surface;
    use crate::availability::tests::{NOW, account, used};

    fn with(mut account: Account, change: impl FnOnce(&mut Account)) -> Account {
        change(&mut account);
        account
    }

    fn pick(seed: u64) -> Pick<'static> {
        let ask = Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None };
        Pick { ask, turn: 0, seed, now: NOW }
    }

    #[test]
    #[rustfmt::skip]
    fn each_strategy_picks_by_its_own_rule() {
        use Strategy::{FillFirst, LeastUsed, ResetDrain, SequentialDrain};
        let heavy = |a| with(a, |a| a.weight = 5.0);
        let cases = [
            ("least-used: most left",      LeastUsed,       vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], 2),
            ("least-used: ties go first",  LeastUsed,       vec![used(1, 5.0, 20.0), used(2, 5.0, 20.0)], 1),
            ("least-used: weight counts",  LeastUsed,       vec![used(1, 5.0, 20.0), heavy(used(2, 5.0, 60.0))], 2),
            ("fill-first: the fullest",    FillFirst,       vec![used(1, 5.0, 20.0), used(2, 70.0, 20.0)], 2),
            ("sequential: the smallest",   SequentialDrain, vec![heavy(used(1, 5.0, 20.0)), used(2, 5.0, 20.0)], 2),
            ("reset-drain: known reset",   ResetDrain,      vec![account(1), used(2, 5.0, 20.0)], 2),
        ];
        for (name, strategy, accounts, want) in cases {
            let all: Vec<&Account> = accounts.iter().collect();
            assert_eq!(pick(1).among(strategy, &all, &all).id.0, want, "{name}");
        }
    }

    #[test]
    fn draws_in_proportion() {
        let accounts = [used(1, 80.0, 0.0), used(2, 20.0, 0.0)];
        let all: Vec<&Account> = accounts.iter().collect();
        for strategy in [Strategy::Headroom, Strategy::CapacityWeighted] {
            let scores: Vec<f64> =
                all.iter().map(|a| pick(1).score(strategy, a).expect("it scores")).collect();
            let first =
                (0..10_000).filter(|s| pick(*s).among(strategy, &all, &all).id.0 == 1).count();
            let share = scores[0] / (scores[0] + scores[1]);
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let got = first as f64 / 10_000.0;
            assert!((got - share).abs() < 0.02, "{strategy:?}: wanted {share}, got {got}");
        }
    }

    #[test]
    fn a_failing_account_attracts_less() {
        let failing = with(account(2), |a| a.health.error(NOW, NOW));
        let score = |a: &Account| pick(1).score(Strategy::Headroom, a);
        assert!(score(&failing) < score(&account(1)));
    }
}
