//! The pool as people see it: one row per account, for `poolgate status` and the demo.

use poolgate_core::account::Kind;
use poolgate_core::availability::{Account as Facts, Reason, slots, state};
use poolgate_core::health::{Cause, Stop};
use poolgate_core::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::Pool;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolView {
    pub accounts: Vec<AccountView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountView {
    pub name: String,
    pub kind: String,
    pub priority: i32,
    pub weight: f64,
    /// `ready`, or the reason why not.
    pub state: String,
    /// Why there is no usable credential, or what else an operator should know.
    pub problem: Option<String>,
    /// When the state ends, in milliseconds since the Unix epoch; unknown: absent.
    pub until: Option<i64>,
    pub windows: Vec<WindowView>,
    /// When its upstream last answered anything; never: absent.
    #[serde(default)]
    pub heard_at: Option<i64>,
    /// In the provider's words.
    #[serde(default)]
    pub plan: Option<String>,
    pub in_flight: u32,
    /// Most attempts at the same time; any number: absent.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// The upstream was learnt to take no more than that.
    #[serde(default)]
    pub concurrency_is_learnt: bool,
    pub attempts: u64,
    pub served: u64,
    pub failovers: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowView {
    /// `5h`, `weekly`, else the length in hours.
    pub name: String,
    pub used_percent: f64,
    pub resets_at: Option<i64>,
}

/// Why it is resting, when its state alone does not say.
fn cooling(facts: &Facts, refusal: Option<Reason>) -> Option<String> {
    let provider = match facts.kind {
        Kind::Codex | Kind::OpenAi | Kind::Compatible => "OpenAI",
        Kind::Claude | Kind::Anthropic => "Anthropic",
    };
    match refusal? {
        Reason::Cooling { cause: Cause::Quota | Cause::Rate, .. } => None,
        Reason::Cooling { cause, .. } => Some(cause.text(provider)),
        _ => None,
    }
}

/// What stopped it, and what ends that. The refusal itself is in the log.
fn stopped(facts: &Facts, name: &str) -> Option<String> {
    match facts.health.stop? {
        Stop::Disabled => {
            Some(format!("{DISABLED}: poolgate account resume {name} once that is mended"))
        }
        Stop::Deactivated => {
            Some(format!("{DEACTIVATED}: poolgate account resume {name} once that is settled"))
        }
        Stop::NeedsLogin if facts.kind.is_subscription() => Some(format!(
            "its sign-in was refused for good: poolgate account login {} --name {name}",
            facts.kind.name()
        )),
        Stop::NeedsLogin => Some("its key was refused for good".into()),
    }
}

/// Why an account was stopped, as far as the kind of its stop tells.
pub const DISABLED: &str =
    "its upstream said that it is disabled or out of credit, or refused it three times";
pub const DEACTIVATED: &str = "its provider said that it is deactivated, or unpaid";

fn is_learnt(facts: &Facts) -> bool {
    let learnt = facts.health.concurrency.limit();
    learnt.is_some() && learnt == slots(facts)
}

/// It takes less at the same time than it was allowed to.
fn crowded(facts: &Facts) -> Option<String> {
    let limit = slots(facts).filter(|_| is_learnt(facts))?;
    Some(format!("refused more than {limit} at the same time"))
}

impl Pool {
    pub fn view(&self, now: Timestamp) -> PoolView {
        let state = self.state.lock();
        let accounts = state.live.iter().map(|live| {
            let facts = &live.facts;
            let refusal = self::state(facts, now).err();
            let windows = facts.quota.ordinary().map(|window| WindowView {
                name: match window.length.as_secs() / 3600 {
                    168 => "weekly".into(),
                    hours => format!("{hours}h"),
                },
                used_percent: window.used_at(now).percent(),
                resets_at: window.resets_at.filter(|at| *at > now).map(|at| at.0),
            });
            AccountView {
                name: live.account.name.clone(),
                kind: facts.kind.name().into(),
                priority: facts.priority,
                weight: facts.weight,
                state: refusal.map_or("ready", Reason::name).into(),
                problem: (live.account.credential.problem())
                    .or_else(|| stopped(facts, &live.account.name))
                    .or_else(|| cooling(facts, refusal))
                    .or_else(|| crowded(facts)),
                until: refusal.and_then(Reason::until).map(|at| at.0),
                windows: windows.collect(),
                heard_at: live.heard_at.map(|at| at.0),
                plan: facts.plan.clone(),
                in_flight: facts.in_flight,
                concurrency: slots(facts),
                concurrency_is_learnt: is_learnt(facts),
                attempts: live.counters.attempts,
                served: live.counters.served,
                failovers: live.counters.failovers,
            }
        });
        PoolView { accounts: accounts.collect() }
    }
}
