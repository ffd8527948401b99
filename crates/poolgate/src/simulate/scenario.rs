//! A scenario: accounts, what is wanted of them, and what users do when refused.
//!
//! The format is described in `docs/routing.md`. As written it is [`raw`]; here is what it is
//! [`resolve`]d into: defaults filled in, and all mistakes in one list.

mod raw;
mod resolve;
mod shipped;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use poolgate_core::account::{AccountId, Caps, Kind, Speaks, Surface, model_matches};
use poolgate_core::availability::Account as Facts;
use poolgate_core::gate::Gate;
use poolgate_core::health::Health;
use poolgate_core::quota::{Limit, Quota};
use poolgate_core::units::Timestamp;

use crate::gates::Gates;

pub use resolve::LARGEST_TURN;
pub use shipped::SHIPPED;

/// Virtual time begins here: Monday 2026-11-02, 00:00 UTC.
pub const START: Timestamp = Timestamp(1_793_577_600_000);

/// What a plan of weight 1 holds in five hours. It only names the unit.
pub const UNITS_PER_WEIGHT: f64 = 100.0;
/// What a week holds, in 5-hour windows; a planning figure from public reports.
pub const WEEKLY_IN_FIVE_HOURS: f64 = 8.0;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub about: String,
    pub start: Timestamp,
    /// Sessions begin within it.
    pub period: Duration,
    pub seed: u64,
    /// Whether usage is asked for in the background.
    pub poll: bool,
    /// Of `least-used`, in percent points of a weight-1 plan.
    pub rebalance_threshold: Option<f64>,
    pub accounts: Vec<Member>,
    pub traffic: Vec<Traffic>,
    pub sessions: Vec<Listed>,
    pub user: User,
    /// The model names that occur, each once.
    pub models: Vec<Model>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub name: String,
    pub kind: Kind,
    pub plan: Option<String>,
    pub weight: f64,
    /// Patterns; empty: all.
    pub models: Vec<String>,
    /// Attempts at the same time; zero: any number.
    pub max_concurrency: u32,
    /// Units a day that others spend on it.
    pub outside: f64,
    /// The ordinary limit comes first.
    pub lanes: Vec<LaneSpec>,
}

/// The windows of one limit, in units.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneSpec {
    pub limit: Limit,
    pub five_hour: f64,
    pub weekly: f64,
    /// From the start to the first weekly reset.
    pub first_reset: Duration,
    /// Share of the weekly window that is spent at the start.
    pub used: f64,
}

impl LaneSpec {
    /// Units an hour that it can give for ever.
    pub fn rate(&self) -> f64 {
        (self.weekly / 168.0).min(self.five_hour / 5.0)
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub surface: Surface,
    pub gate: Option<Arc<Gate>>,
}

/// Sessions that are made up from a seed.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Units wanted, as a share of what the windows that the model spends could give.
    pub load: f64,
    pub model: usize,
    /// How many sessions begin, relatively, by hour of the day and by weekday from Monday on.
    pub hours: [f64; 24],
    pub weekdays: [f64; 7],
    /// Turns of a session, on average.
    pub turns: f64,
    pub think: Duration,
    pub break_chance: f64,
    pub break_for: Duration,
    pub turn_takes: Duration,
    pub units: f64,
    pub units_spread: f64,
    /// So many sessions begin together, within `burst_within`.
    pub burst: usize,
    pub burst_within: Duration,
}

/// A session that is written down.
#[derive(Clone, Debug)]
pub struct Listed {
    pub starts_after: Duration,
    pub model: usize,
    pub units: Vec<f64>,
    pub think: Duration,
    pub turn_takes: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Cost of a turn that finds no cache, relative to one that does.
    pub cold: f64,
    pub cache_lives: Duration,
    pub when_refused: WhenRefused,
}

impl Default for User {
    fn default() -> Self {
        Self {
            cold: 2.5,
            cache_lives: Duration::from_mins(5),
            when_refused: WhenRefused::Wait { patience: Duration::from_hours(2) },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WhenRefused {
    GiveUp,
    /// Comes back at the time that was told, unless the session would be delayed by more than this.
    Wait {
        patience: Duration,
    },
    Retry {
        after: Duration,
        times: u32,
    },
}

impl Scenario {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let (name, text) = read(path)?;
        Self::parse(&name, &text).with_context(|| format!("in {}", path.display()))
    }

    pub fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let raw: raw::RawScenario = toml::from_str(text)?;
        Ok(raw.resolve(name, true)?)
    }

    /// The file's accounts and users; what is wanted comes from elsewhere.
    pub fn read_accounts(path: &Path) -> anyhow::Result<Self> {
        let (name, text) = read(path)?;
        let place = || format!("in {}", path.display());
        let raw: raw::RawScenario = toml::from_str(&text).with_context(place)?;
        raw.without_demand().resolve(&name, false).with_context(place)
    }

    /// Of accounts alone; what is wanted comes from elsewhere.
    pub fn of_accounts(accounts: Vec<Member>) -> Self {
        Self {
            name: "log".into(),
            about: String::new(),
            start: START,
            period: Duration::ZERO,
            seed: 1,
            poll: true,
            rebalance_threshold: None,
            accounts,
            traffic: vec![],
            sessions: vec![],
            user: User::default(),
            models: vec![],
        }
    }

    /// The lane that `model` spends on each account; `None`: it does not serve the model.
    pub fn lanes(&self, model: &Model) -> Vec<Option<usize>> {
        self.accounts.iter().map(|account| account.lane(model)).collect()
    }

    /// Units that the windows which `model` spends can give in the period.
    pub fn capacity(&self, model: &Model) -> f64 {
        let hours = self.period.as_secs_f64() / 3600.0;
        let rate =
            |account: &Member| account.lane(model).map_or(0.0, |lane| account.lanes[lane].rate());
        self.accounts.iter().map(rate).sum::<f64>() * hours
    }

    /// The same of all windows that any of the models spends, each once.
    pub fn capacity_of_all(&self) -> f64 {
        let lanes: BTreeSet<(usize, usize)> = self
            .models
            .iter()
            .flat_map(|model| self.lanes(model).into_iter().enumerate())
            .filter_map(|(account, lane)| Some((account, lane?)))
            .collect();
        let rate = |(account, lane): &(usize, usize)| self.accounts[*account].lanes[*lane].rate();
        lanes.iter().map(rate).sum::<f64>() * self.period.as_secs_f64() / 3600.0
    }

    pub fn end(&self) -> Timestamp {
        self.start.plus(self.period)
    }
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text))
}

impl Model {
    pub fn new(name: &str) -> Self {
        let surface =
            if name.starts_with("claude") { Surface::Messages } else { Surface::Responses };
        Self { name: name.to_owned(), surface, gate: Gates::builtin().of(name).cloned() }
    }
}

impl Member {
    fn lane(&self, model: &Model) -> Option<usize> {
        let enabled = self.models.is_empty()
            || self.models.iter().any(|pattern| model_matches(pattern, &model.name));
        if !enabled || !self.kind.serves(model.surface, Speaks::default()) {
            return None;
        }
        let gate = model.gate.as_ref().filter(|gate| gate.governs(self.plan.as_deref()));
        // Without the limit of its own, a model spends the ordinary one.
        let is_own = |gate: &Gate, lane: &LaneSpec| matches!(&lane.limit, Limit::Named(name) if gate.is_named(name));
        gate.and_then(|gate| self.lanes.iter().position(|lane| is_own(gate, lane))).or(Some(0))
    }

    /// The account as the decisions see it at first: nothing is known of its windows.
    pub fn facts(&self, id: AccountId) -> Facts {
        Facts {
            id,
            kind: self.kind,
            speaks: Speaks::default(),
            priority: self.kind.default_priority(),
            plan: self.plan.clone(),
            weight: self.weight,
            caps: Caps::default(),
            models: self.models.clone(),
            max_in_flight: self.max_concurrency,
            paused: false,
            has_credential: true,
            quota: Quota::default(),
            health: Health::default(),
            in_flight: 0,
            probing_until: None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn scenario(text: &str) -> Scenario {
        Scenario::parse("test", text).unwrap()
    }

    /// Weight 1: 100 units in 5 hours, 800 in a week, of which nothing is spent.
    pub fn member(kind: &str, weekly_reset_h: f64) -> Member {
        let model = if kind == "claude" { "claude-opus-5-5" } else { "gpt-5.5" };
        let text = format!(
            "days = 1\n[[account]]\nname = 'a'\nkind = '{kind}'\nused = 0\n\
             weekly_reset_h = {weekly_reset_h}\n[[session]]\nat_h = 0\nunits = [1]\n\
             model = '{model}'\n"
        );
        scenario(&text).accounts.remove(0)
    }

    #[test]
    fn every_mistake_is_named_with_its_field() {
        let fine = "days = 7\n[[account]]\nname = 'a'\n[[traffic]]\nload = 1\n";
        Scenario::parse("fine", fine).unwrap();
        let cases = [
            (fine.replace("days = 7", ""), "days"),
            (fine.replace('7', "0"), "days"),
            (fine.replace('7', "400"), "days"),
            (fine.replace("load = 1", "load = 0"), "traffic 1: load"),
            (fine.replace("load = 1", "load = nan"), "traffic 1: load"),
            (fine.replace("load = 1", "load = 1\nhours = [1]"), "hours"),
            (fine.replace("load = 1", &format!("load = 1\nhours = {:?}", [0; 24])), "hours"),
            (fine.replace("load = 1", "load = 1\nspeed = 2"), "speed"),
            (fine.replace("load = 1", "load = 1\nmodel = 'claude-x'"), "no account serves"),
            (fine.replace("load = 1", "load = 1\nunits = 30"), "units"),
            (fine.replace("name = 'a'", "name = 'a'\nweight = -1"), "account \"a\": weight"),
            (fine.replace("name = 'a'", "name = 'a'\nkind = 'openai'"), "account \"a\": kind"),
            (fine.replace("name = 'a'", "name = 'a'\nused = 1.5"), "account \"a\": used"),
            (fine.replace("name = 'a'", "name = 'a'\ncount = 0"), "account \"a\": count"),
            (fine.replace("name = 'a'", "name = 'a'\nweekly_reset_h = 200"), "weekly_reset_h"),
            (format!("{fine}[[account]]\nname = 'a'\n"), "used twice"),
            (format!("{fine}[user]\nafter_refusal = 'cry'\n"), "after_refusal"),
            (format!("{fine}[user]\nretry_min = 3\n"), "retry_min"),
            (format!("{fine}[user]\ncold = 0.5\n"), "user: cold"),
            (format!("{fine}[[session]]\nat_h = 200\nunits = [1]\n"), "session 1: at_h"),
            (format!("{fine}[[session]]\nat_h = 2\nunits = []\n"), "session 1: units"),
            ("days = 7\n[[traffic]]\nload = 1\n".into(), "account"),
            ("days = 7\n[[account]]\nname = 'a'\n".into(), "nothing is wanted"),
        ];
        for (text, want) in cases {
            let error = Scenario::parse("bad", &text).map(|_| ()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(want), "{want:?} not in {error:?} for\n{text}");
        }
    }

    #[test]
    fn counts_and_defaults_are_filled_in() {
        let text =
            "days = 7\n[[account]]\nname = 'p'\ncount = 2\nweight = 5\n[[traffic]]\nload = 1";
        let scenario = scenario(text);
        let names: Vec<_> = scenario.accounts.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["p-1", "p-2"]);
        let lanes = scenario.accounts.iter().map(|a| &a.lanes[0]);
        let lanes: Vec<_> = lanes
            .map(|l| (l.five_hour, l.weekly, l.first_reset.as_secs() / 3600, l.used))
            .collect();
        assert_eq!(lanes, [(500.0, 4000.0, 42, 0.75), (500.0, 4000.0, 126, 0.25)]);
        assert!((scenario.capacity(&scenario.models[0]) - 8000.0).abs() < 1e-6);
    }

    #[test]
    fn a_gated_model_spends_its_own_limit_where_it_is_governed() {
        let text = "days = 7\n[[account]]\nname = 'pro'\nplan = 'pro'\n[[account.limit]]\n\
                    name = 'codex_bengalfox'\nfive_hour = 50\n[[account]]\nname = 'plus'\n\
                    plan = 'plus'\n[[account]]\nname = 'other'\nmodels = ['gpt-5.5']\n\
                    [[traffic]]\nload = 1\nmodel = 'gpt-5.3-codex-spark'\n";
        let scenario = scenario(text);
        assert_eq!(scenario.lanes(&scenario.models[0]), [Some(1), Some(0), None]);
        assert_eq!(scenario.lanes(&Model::new("gpt-5.5")), [Some(0), Some(0), Some(0)]);
        assert_eq!(scenario.lanes(&Model::new("claude-opus-5")), [None, None, None]);
    }
}
