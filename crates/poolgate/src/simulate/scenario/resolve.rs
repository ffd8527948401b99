//! From a scenario as written to what the simulation uses: defaults, bounds, and all mistakes.

use std::collections::HashSet;
use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::quota::Limit;

use super::raw::{RawAccount, RawScenario, RawSession, RawTraffic, RawUser};
use super::{
    LaneSpec, Listed, Member, Model, START, Scenario, Traffic, UNITS_PER_WEIGHT, User,
    WEEKLY_IN_FIVE_HOURS, WhenRefused,
};

#[derive(Debug, thiserror::Error)]
#[error("{} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct ScenarioError(Vec<String>);

const MODEL: &str = "gpt-5.5";
/// A made-up turn costs at most this many times the mean, so that no single one decides a window.
pub const LARGEST_TURN: f64 = 8.0;

/// Reads numbers of one table, and keeps what is wrong with them.
struct Reader<'a> {
    table: String,
    wrong: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn number(
        &mut self,
        field: &str,
        given: Option<f64>,
        default: f64,
        least: f64,
        most: f64,
    ) -> f64 {
        let value = given.unwrap_or(default);
        // NaN is in no range.
        if !(least..=most).contains(&value) {
            self.complain(&format!("{field} = {value} must be from {least} to {most}"));
            return default;
        }
        value
    }

    fn span(
        &mut self,
        field: &str,
        given: Option<f64>,
        default: f64,
        unit_s: f64,
        most: f64,
    ) -> Duration {
        Duration::from_secs_f64(self.number(field, given, default, 0.0, most) * unit_s)
    }

    fn complain(&mut self, problem: &str) {
        self.wrong.push(format!("{}: {problem}", self.table));
    }
}

impl RawScenario {
    pub fn resolve(self, name: &str, demands: bool) -> Result<Scenario, ScenarioError> {
        let mut wrong = Vec::new();
        let mut top = Reader { table: "scenario".into(), wrong: &mut wrong };
        let period = Duration::from_secs_f64(
            top.number("days", self.days.or(Some(0.0)), 1.0, 1.0 / 24.0, 366.0) * 86_400.0,
        );
        let rebalance_threshold = self
            .rebalance_threshold
            .map(|t| top.number("rebalance_threshold", Some(t), 1.0, 0.0, 1e4));
        if self.account.is_empty() {
            top.complain("there is no [[account]]");
        }
        if demands && self.traffic.is_empty() && self.session.is_empty() {
            top.complain("nothing is wanted: there is neither [[traffic]] nor [[session]]");
        }
        let accounts = accounts(self.account, &mut wrong);
        let mut models: Vec<Model> = Vec::new();
        let user = self.user.resolve(&mut wrong);
        let numbered = |what: &str, i: usize| format!("{what} {}", i + 1);
        let mut traffic = Vec::new();
        for (i, raw) in self.traffic.into_iter().enumerate() {
            let table = numbered("traffic", i);
            traffic.push(raw.resolve(&mut models, Reader { table, wrong: &mut wrong }));
        }
        let hours = period.as_secs_f64() / 3600.0;
        let mut sessions = Vec::new();
        for (i, raw) in self.session.into_iter().enumerate() {
            let table = numbered("session", i);
            sessions.push(raw.resolve(hours, &mut models, Reader { table, wrong: &mut wrong }));
        }
        let scenario = Scenario {
            name: name.to_owned(),
            about: self.about,
            start: START,
            period,
            seed: self.seed,
            poll: self.poll,
            rebalance_threshold,
            accounts,
            traffic,
            sessions,
            user,
            models,
        };
        if wrong.is_empty() {
            fits(&scenario, &mut wrong);
        }
        if wrong.is_empty() { Ok(scenario) } else { Err(ScenarioError(wrong)) }
    }
}

/// Somebody serves each model, and the largest turn fits into the smallest window it may meet.
fn fits(scenario: &Scenario, wrong: &mut Vec<String>) {
    let largest = scenario.traffic.iter().map(|t| (t.model, t.units * LARGEST_TURN)).chain(
        scenario.sessions.iter().map(|s| (s.model, s.units.iter().fold(0.0, |a, b| b.max(a)))),
    );
    for (model, units) in largest {
        let model = &scenario.models[model];
        let served = scenario.accounts.iter().zip(scenario.lanes(model));
        let windows = served.filter_map(|(account, lane)| Some(account.lanes[lane?].five_hour));
        match windows.min_by(f64::total_cmp) {
            None => wrong.push(format!("model {:?}: no account serves it", model.name)),
            Some(window) if units * scenario.user.cold > window => wrong.push(format!(
                "model {:?}: units: a turn may cost {:.1}, and a 5-hour window holds {window}",
                model.name,
                units * scenario.user.cold
            )),
            Some(_) => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few accounts")]
fn accounts(raw: Vec<RawAccount>, wrong: &mut Vec<String>) -> Vec<Member> {
    let all: u32 = raw.iter().map(|account| account.count.unwrap_or(1)).sum();
    if all > 1000 {
        wrong.push(format!("scenario: {all} accounts are too many; at most 1000"));
        return Vec::new();
    }
    let mut members: Vec<Member> = Vec::new();
    let mut names = HashSet::new();
    for account in raw {
        let count = account.count.unwrap_or(1);
        let table = format!("account {:?}", account.name);
        let mut reader = Reader { table, wrong };
        if count == 0 {
            reader.complain("count must be at least 1");
        }
        for n in 1..=count {
            let name =
                if count == 1 { account.name.clone() } else { format!("{}-{n}", account.name) };
            // Unless said otherwise, weeks begin evenly spread.
            let spread = (members.len() as f64 + 0.5) / f64::from(all.max(1)) * 168.0;
            if !names.insert(name.clone()) {
                reader.complain(&format!("the name {name:?} is used twice"));
            }
            let member = account.member(name, spread, &mut reader);
            members.push(member);
        }
    }
    // Accounts of one entry make the same mistakes.
    wrong.dedup();
    members
}

impl RawAccount {
    fn member(&self, name: String, spread_h: f64, reader: &mut Reader<'_>) -> Member {
        let kind = match self.kind.as_deref() {
            None | Some("codex") => Kind::Codex,
            Some("claude") => Kind::Claude,
            Some(other) => {
                reader.complain(&format!("kind {other:?} is neither codex nor claude"));
                Kind::Codex
            }
        };
        let weight = reader.number("weight", self.weight, 1.0, 1e-3, 1e4);
        let five_hour =
            reader.number("five_hour", self.five_hour, UNITS_PER_WEIGHT * weight, 1e-3, 1e9);
        let weekly =
            reader.number("weekly", self.weekly, WEEKLY_IN_FIVE_HOURS * five_hour, 1e-3, 1e9);
        let reset_h = reader.number("weekly_reset_h", self.weekly_reset_h, spread_h, 0.01, 168.0);
        let used = reader.number("used", self.used, 1.0 - reset_h / 168.0, 0.0, 1.0);
        let lane = |limit, five_hour, weekly| LaneSpec {
            limit,
            five_hour,
            weekly,
            first_reset: Duration::from_secs_f64(reset_h * 3600.0),
            used,
        };
        let mut lanes = vec![lane(Limit::Ordinary, five_hour, weekly)];
        for limit in &self.limit {
            let five_hour = reader.number("limit five_hour", Some(limit.five_hour), 1.0, 1e-3, 1e9);
            let usual = WEEKLY_IN_FIVE_HOURS * five_hour;
            let weekly = reader.number("limit weekly", limit.weekly, usual, 1e-3, 1e9);
            lanes.push(lane(Limit::Named(limit.name.clone()), five_hour, weekly));
        }
        Member {
            name,
            kind,
            plan: self.plan.clone(),
            weight,
            models: self.models.clone(),
            max_concurrency: self.concurrency,
            outside: reader.number("outside", self.outside, 0.0, 0.0, 1e9),
            lanes,
        }
    }
}

impl RawTraffic {
    fn resolve(self, models: &mut Vec<Model>, mut reader: Reader<'_>) -> Traffic {
        let r = &mut reader;
        Traffic {
            load: r.number("load", Some(self.load), 1.0, 1e-3, 100.0),
            model: model(self.model, models),
            hours: weights("hours", self.hours, r),
            weekdays: weights("weekdays", self.weekdays, r),
            turns: r.number("turns", self.turns, 12.0, 1.0, 1000.0),
            think: r.span("think_s", self.think_s, 60.0, 1.0, 86_400.0),
            break_chance: r.number("break_chance", self.break_chance, 0.05, 0.0, 1.0),
            break_for: r.span("break_min", self.break_min, 40.0, 60.0, 10_080.0),
            turn_takes: r.span("turn_s", self.turn_s, 30.0, 1.0, 3600.0),
            units: r.number("units", self.units, 1.0, 1e-3, 1e6),
            units_spread: r.number("units_spread", self.units_spread, 0.8, 0.0, 3.0),
            burst: usize::try_from(self.burst.unwrap_or(1).max(1)).unwrap_or(1),
            burst_within: r.span("burst_min", self.burst_min, 10.0, 60.0, 1440.0),
        }
    }
}

impl RawSession {
    fn resolve(self, hours: f64, models: &mut Vec<Model>, mut reader: Reader<'_>) -> Listed {
        let r = &mut reader;
        if self.units.is_empty() {
            r.complain("units must list the cost of each turn");
        }
        for units in &self.units {
            r.number("units", Some(*units), 1.0, 1e-6, 1e9);
        }
        Listed {
            starts_after: r.span("at_h", Some(self.at_h), 0.0, 3600.0, hours),
            model: model(self.model, models),
            think: r.span("think_s", self.think_s, 60.0, 1.0, 86_400.0),
            turn_takes: r.span("turn_s", self.turn_s, 30.0, 1.0, 3600.0),
            units: self.units,
        }
    }
}

impl RawUser {
    fn resolve(self, wrong: &mut Vec<String>) -> User {
        let mut reader = Reader { table: "user".into(), wrong };
        let r = &mut reader;
        let hour = 3600.0;
        let patience = r.span("patience_h", self.patience_h, 2.0, hour, 168.0);
        let after = r.number("retry_min", self.retry_min, 15.0, 0.1, 1440.0);
        let retries = self.retries.unwrap_or(3);
        if retries > 1000 {
            r.complain("retries must be at most 1000");
        }
        let (when_refused, waits, retries_too) = match self.after_refusal.as_deref() {
            Some("give_up") => (WhenRefused::GiveUp, false, false),
            None | Some("wait") => (WhenRefused::Wait { patience }, true, false),
            Some("retry") => {
                let after = Duration::from_secs_f64(after * 60.0);
                (WhenRefused::Retry { after, times: retries }, false, true)
            }
            Some(other) => {
                r.complain(&format!("after_refusal {other:?} is none of give_up, wait, retry"));
                (WhenRefused::GiveUp, true, true)
            }
        };
        if self.patience_h.is_some() && !waits {
            r.complain("patience_h has a meaning only with after_refusal = \"wait\"");
        }
        if (self.retry_min.is_some() || self.retries.is_some()) && !retries_too {
            r.complain("retry_min and retries have a meaning only with after_refusal = \"retry\"");
        }
        User {
            cold: r.number("cold", self.cold, User::default().cold, 1.0, 100.0),
            cache_lives: r.span("cache_min", self.cache_min, 5.0, 60.0, 10_080.0),
            when_refused,
        }
    }
}

fn model(name: Option<String>, models: &mut Vec<Model>) -> usize {
    let name = name.unwrap_or_else(|| MODEL.to_owned());
    models.iter().position(|model| model.name == name).unwrap_or_else(|| {
        models.push(Model::new(&name));
        models.len() - 1
    })
}

/// Relative numbers, at least one of them positive; none given: all alike.
fn weights<const N: usize>(
    field: &str,
    given: Option<Vec<f64>>,
    reader: &mut Reader<'_>,
) -> [f64; N] {
    let Some(given) = given else {
        return [1.0; N];
    };
    let fine = given.iter().all(|w| w.is_finite() && *w >= 0.0) && given.iter().any(|w| *w > 0.0);
    match <[f64; N]>::try_from(given) {
        Ok(weights) if fine => weights,
        _ => {
            reader.complain(&format!("{field} must be {N} numbers, none negative, not all 0"));
            [1.0; N]
        }
    }
}
