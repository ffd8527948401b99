//! The gateway's own ledger as what is wanted.
//!
//! A row tells time, key, model and tokens, but not the session. So sessions are guessed: a request
//! goes on with the session of the same key and model that ended last before it, if that was within
//! an hour; a request that overlaps it belongs to another one. Refused requests are left out, since
//! nobody knows which of them came back later: a log of a pool that was short understates what was
//! wanted. What a turn would have cost with a cold cache is known (what was read from the cache is
//! then read at full price); what it would have cost with a warm one, where it found none, is not, and
//! it is taken to cost the same.

use std::collections::HashMap;
use std::time::Duration;

use poolgate_core::account::{Kind, Surface};
use poolgate_core::affinity::SOFT_FOR;
use poolgate_core::quota::{Limit, WEEK};
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;

use super::arrivals::{Demand, Session, Turn};
use super::scenario::{LaneSpec, Member, Model, Scenario, UNITS_PER_WEIGHT, WEEKLY_IN_FIVE_HOURS};
use crate::store::{PastAccount, PastRequest};

/// Tokens to one unit, where nothing better is known: a weight-1 plan then holds two million in five
/// hours. A planning figure.
pub const TOKENS_PER_UNIT: f64 = 20_000.0;

/// What a token counts, relative to one of fresh input, after the usual ratios of list prices.
const OUTPUT: f64 = 5.0;
const CACHE_READ: f64 = 0.1;
const CACHE_WRITE: f64 = 1.25;

/// How large a unit is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    TokensPerUnit(f64),
    /// So that this share of what the windows can give is wanted.
    Load(f64),
}

#[derive(Clone, Debug)]
pub struct Logged {
    pub scenario: Scenario,
    pub demand: Demand,
    /// Rows that count, and those that do not: refused, still running, without tokens, or of a
    /// model that none of the accounts serves.
    pub used: usize,
    pub left_out: usize,
}

/// The subscriptions among the accounts. Their plans are sealed with their credentials, so a weight
/// that was not configured is taken to be 1.
pub fn members(accounts: &[PastAccount], start: Timestamp) -> Vec<Member> {
    let subscriptions = accounts.iter().filter_map(|account| {
        let kind = Kind::from_name(&account.settings.kind).filter(|kind| kind.is_subscription())?;
        Some((account, kind))
    });
    let member = |(account, kind): (&PastAccount, Kind)| {
        let settings = &account.settings;
        let weight = settings.plan_weight.unwrap_or(1.0);
        let five_hour = UNITS_PER_WEIGHT * weight;
        let first_reset = until_reset(account.weekly_reset.unwrap_or(start), start);
        Member {
            name: settings.name.clone(),
            kind,
            plan: None,
            weight,
            models: settings.models.clone(),
            max_concurrency: settings.max_concurrency.unwrap_or(0),
            outside: 0.0,
            lanes: vec![LaneSpec {
                limit: Limit::Ordinary,
                five_hour,
                weekly: WEEKLY_IN_FIVE_HOURS * five_hour,
                first_reset,
                used: 1.0 - first_reset.as_secs_f64() / WEEK.as_secs_f64(),
            }],
        }
    };
    subscriptions.map(member).collect()
}

/// A reset of some week, as the first one after `start`.
fn until_reset(reset: Timestamp, start: Timestamp) -> Duration {
    let week = i64::try_from(WEEK.as_millis()).unwrap_or(i64::MAX);
    let after = (reset.0 - start.0).rem_euclid(week);
    Duration::from_millis(u64::try_from(if after == 0 { week } else { after }).unwrap_or(0))
}

/// When a log begins: midnight before its first request.
pub fn begins(requests: &[PastRequest]) -> Option<Timestamp> {
    let first = requests.iter().map(|request| request.at).min()?;
    Some(Timestamp(first.0 - first.0.rem_euclid(86_400_000)))
}

/// `scenario` gives accounts and users; what is wanted, and when, comes from the log.
pub fn from_log(requests: &[PastRequest], mut scenario: Scenario, scale: Scale) -> Option<Logged> {
    scenario.start = begins(requests)?;
    scenario.period = Duration::ZERO;
    (scenario.traffic, scenario.sessions, scenario.models) = (vec![], vec![], vec![]);
    let mut sessions: Vec<Session> = Vec::new();
    let mut open: HashMap<(i64, usize), Vec<(Timestamp, usize)>> = HashMap::new();
    let mut used = 0;
    for request in requests {
        let Some(turn) = turn(request) else { continue };
        let Some(model) = model(&mut scenario, request) else { continue };
        used += 1;
        let ended_at = request.at.plus(request.took);
        scenario.period = scenario.period.max(scenario.start.until(ended_at));
        let candidates = open.entry((request.key, model)).or_default();
        candidates.retain(|(ended, _)| request.at < ended.plus(SOFT_FOR));
        let before = candidates.iter_mut().filter(|(ended, _)| *ended <= request.at);
        if let Some((ended, session)) = before.max_by_key(|(ended, _)| *ended) {
            let think = ended.until(request.at);
            sessions[*session].turns.push(Turn { think, ..turn });
            *ended = ended_at;
        } else {
            candidates.push((ended_at, sessions.len()));
            sessions.push(Session { starts_at: request.at, model, turns: vec![turn] });
        }
    }
    let mut demand = Demand { sessions };
    let tokens_per_unit = match scale {
        Scale::TokensPerUnit(tokens) => tokens,
        Scale::Load(load) => demand.units() / (scenario.capacity_of_all() * load),
    };
    for turn in demand.sessions.iter_mut().flat_map(|session| &mut session.turns) {
        turn.warm /= tokens_per_unit;
        turn.cold /= tokens_per_unit;
    }
    Some(Logged { scenario, demand, used, left_out: requests.len() - used })
}

/// In tokens of fresh input; `None`: nothing was spent.
fn turn(request: &PastRequest) -> Option<Turn> {
    if matches!(request.outcome.as_str(), "" | "refused") {
        return None;
    }
    let warm = weighted(request.usage);
    #[expect(clippy::cast_precision_loss, reason = "token counts")]
    let read = request.usage.cache_read.unwrap_or(0) as f64;
    let cold = warm + (1.0 - CACHE_READ) * read;
    (warm > 0.0).then_some(Turn { think: Duration::ZERO, takes: request.took, warm, cold })
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn weighted(usage: TokenUsage) -> f64 {
    let count = |tokens: Option<u64>| tokens.unwrap_or(0) as f64;
    count(usage.input)
        + OUTPUT * count(usage.output)
        + CACHE_READ * count(usage.cache_read)
        + CACHE_WRITE * count(usage.cache_write)
}

/// `None`: no account serves it.
fn model(scenario: &mut Scenario, request: &PastRequest) -> Option<usize> {
    let surface = Surface::ALL.into_iter().find(|surface| surface.name() == request.surface)?;
    let is_it = |model: &Model| model.name == request.model && model.surface == surface;
    if let Some(known) = scenario.models.iter().position(is_it) {
        return Some(known);
    }
    let model = Model { surface, ..Model::new(&request.model) };
    scenario.lanes(&model).iter().flatten().next()?;
    scenario.models.push(model);
    Some(scenario.models.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawAccount;
    use crate::simulate::scenario::tests::scenario;

    /// Some minutes after midnight of the first Monday of November 2026.
    fn request(minute: u32, took_min: u64, key: i64) -> PastRequest {
        PastRequest {
            at: Timestamp(1_793_577_600_000).plus(Duration::from_mins(u64::from(minute))),
            took: Duration::from_mins(took_min),
            key,
            surface: "responses".into(),
            model: "gpt-5.5".into(),
            outcome: "complete".into(),
            usage: TokenUsage { input: Some(1000), output: Some(200), ..TokenUsage::default() },
        }
    }

    fn logged(requests: &[PastRequest], scale: Scale) -> Logged {
        let text = "days = 1\n[[account]]\nname = 'a'\n[[session]]\nat_h = 0\nunits = [1]\n";
        from_log(requests, scenario(text), scale).unwrap()
    }

    #[test]
    fn sessions_are_guessed_from_key_model_and_time() {
        let refused = PastRequest { outcome: "refused".into(), ..request(3, 1, 1) };
        let chat = PastRequest { surface: "chat".into(), ..request(4, 1, 1) };
        let other = PastRequest { model: "gpt-6".into(), ..request(5, 1, 1) };
        let requests = [
            request(0, 2, 1),
            refused,
            chat,
            other,
            request(10, 5, 1),  // goes on with the first
            request(12, 1, 1),  // overlaps it: another session
            request(13, 1, 2),  // another key
            request(20, 1, 1),  // goes on with the one that ended last, at 15
            request(100, 1, 1), // more than an hour later
        ];
        let logged = logged(&requests, Scale::TokensPerUnit(1000.0));
        let sessions = &logged.demand.sessions;
        let turns: Vec<usize> = sessions.iter().map(|session| session.turns.len()).collect();
        assert_eq!((turns, logged.used, logged.left_out), (vec![3, 1, 1, 1, 1], 7, 2));
        let thinks = [1, 2].map(|i| sessions[0].turns[i].think.as_secs() / 60);
        assert_eq!(thinks, [8, 5]);
        assert!((sessions[0].turns[0].warm - 2.0).abs() < 1e-9, "1000 in and 200 out");
        assert_eq!(logged.scenario.period, Duration::from_mins(101));
    }

    #[test]
    fn a_cold_cache_costs_what_was_read_from_it() {
        let usage = TokenUsage {
            input: Some(100),
            output: Some(10),
            cache_read: Some(1000),
            cache_write: Some(40),
            ..TokenUsage::default()
        };
        let logged =
            logged(&[PastRequest { usage, ..request(0, 1, 1) }], Scale::TokensPerUnit(100.0));
        let turn = logged.demand.sessions[0].turns[0];
        assert!((turn.warm - 3.0).abs() < 1e-9 && (turn.cold - 12.0).abs() < 1e-9, "{turn:?}");
    }

    #[test]
    fn a_load_sets_the_size_of_a_unit() {
        let requests: Vec<_> = (0..10).map(|i| request(i * 30, 1, 1)).collect();
        let logged = logged(&requests, Scale::Load(0.5));
        let wanted = logged.scenario.capacity(&logged.scenario.models[0]) * 0.5;
        assert!((logged.demand.units() - wanted).abs() < 1e-6);
    }

    #[test]
    fn accounts_come_from_their_settings() {
        let account = |name: &str, kind: &str, plan_weight| PastAccount {
            settings: RawAccount {
                name: name.into(),
                kind: kind.into(),
                plan_weight,
                ..RawAccount::default()
            },
            weekly_reset: Some(
                Timestamp(1_793_577_600_000).plus(WEEK * 3 + Duration::from_hours(42)),
            ),
        };
        let accounts = [
            account("a", "codex", Some(5.0)),
            account("key", "openai", None),
            account("b", "claude", None),
        ];
        let members = members(&accounts, Timestamp(1_793_577_600_000));
        let got: Vec<_> = members.iter().map(|m| (m.name.as_str(), m.weight)).collect();
        assert_eq!(got, [("a", 5.0), ("b", 1.0)]);
        let lane = &members[0].lanes[0];
        assert_eq!(
            (lane.first_reset, lane.used, lane.weekly),
            (Duration::from_hours(42), 0.75, 4000.0)
        );
    }
}
