//! An upstream account as it really is, whatever anybody believes about it.

use std::time::Duration;

use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};

/// The model with a limit of its own, and the name of that limit.
pub const SPARK: &str = "gpt-5.3-codex-spark";
pub const SPARK_LIMIT: &str = "codex_bengalfox";

/// Requests that fill a window of the smallest plan.
const IN_FIVE_HOURS: f64 = 200.0;
const IN_WEEK: f64 = 1600.0;

#[derive(Clone, Debug)]
pub struct Window {
    limit: Limit,
    length: Duration,
    /// Requests it holds, and has had.
    holds: f64,
    had: f64,
    /// The first request after a reset starts the next run.
    resets_at: Option<Timestamp>,
}

impl Window {
    fn roll(&mut self, now: Timestamp) {
        if self.resets_at.is_some_and(|at| at <= now) {
            (self.had, self.resets_at) = (0.0, None);
        }
    }

    fn charge(&mut self, now: Timestamp) {
        self.had += 1.0;
        self.resets_at = self.resets_at.or(Some(now.plus(self.length)));
    }

    /// Whole percent, as the upstream tells it.
    fn percent(&self) -> f64 {
        (self.had / self.holds * 100.0).floor().min(100.0)
    }

    fn reading(&self) -> Reading {
        Reading {
            limit: self.limit.clone(),
            length: self.length,
            used: Fraction::from_percent(self.percent()),
            resets_at: self.resets_at,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Truth {
    windows: Vec<Window>,
    pub deactivated: bool,
    /// Answers 503 until then.
    pub out_until: Timestamp,
    /// Times it was asked.
    pub asked: u32,
}

/// What the upstream does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    Served(Vec<Reading>),
    /// 429, with what the windows say.
    Spent(Vec<Reading>),
    Deactivated,
    NoSuchModel,
    Unavailable,
}

impl Truth {
    /// A plan `size` times the smallest; `spark`: it has the model with a limit of its own.
    pub fn new(size: f64, spark: bool) -> Self {
        let window = |limit, length, holds: f64| Window {
            limit,
            length,
            holds: holds * size,
            had: 0.0,
            resets_at: None,
        };
        let mut windows = vec![
            window(Limit::Ordinary, FIVE_HOURS, IN_FIVE_HOURS),
            window(Limit::Ordinary, WEEK, IN_WEEK),
        ];
        if spark {
            windows.push(window(Limit::Named(SPARK_LIMIT.into()), FIVE_HOURS, 60.0));
        }
        Self { windows, deactivated: false, out_until: Timestamp(0), asked: 0 }
    }

    /// The week is spent but for `left` percent, and resets in `hours`.
    pub fn spend_week(&mut self, left: f64, now: Timestamp, hours: u64) {
        let is_week = |w: &&mut Window| w.limit == Limit::Ordinary && w.length == WEEK;
        let window = self.windows.iter_mut().find(is_week).expect("everyone has a week");
        window.had = window.holds * (1.0 - left / 100.0);
        window.resets_at = Some(now.plus(Duration::from_hours(hours)));
    }

    fn spends(model: &str) -> Limit {
        if model == SPARK { Limit::Named(SPARK_LIMIT.into()) } else { Limit::Ordinary }
    }

    fn own(&self, model: &str) -> Vec<&Window> {
        let limit = Self::spends(model);
        self.windows.iter().filter(|w| w.limit == limit).collect()
    }

    /// Would it serve, were it asked? `cap`: the operator wants no more than so many percent used of
    /// an ordinary window.
    pub fn could_serve(&mut self, model: &str, cap: f64, now: Timestamp) -> bool {
        self.windows.iter_mut().for_each(|w| w.roll(now));
        let cap = if model == SPARK { 100.0 } else { cap };
        let own = self.own(model);
        let well = !self.deactivated && self.out_until <= now;
        well && !own.is_empty() && own.iter().all(|w| w.percent() < cap)
    }

    pub fn ask(&mut self, model: &str, now: Timestamp) -> Reply {
        self.asked += 1;
        self.windows.iter_mut().for_each(|w| w.roll(now));
        let told = |truth: &Self| truth.windows.iter().map(Window::reading).collect();
        if self.deactivated {
            return Reply::Deactivated;
        }
        if now < self.out_until {
            return Reply::Unavailable;
        }
        if self.own(model).is_empty() {
            return Reply::NoSuchModel;
        }
        if self.own(model).iter().any(|w| w.had >= w.holds) {
            return Reply::Spent(told(self));
        }
        let limit = Self::spends(model);
        self.windows.iter_mut().filter(|w| w.limit == limit).for_each(|w| w.charge(now));
        Reply::Served(told(self))
    }
}
