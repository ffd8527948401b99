//! Who takes part: the simulated accounts, and the gateway's configuration for them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use poolgate_sim::{AccountSpec, Kind, Scenario, Sim, WindowSpec};

use crate::config::{Config, RawAccount, RawConfig, RawLimits, RawListener, RawPool};
use crate::files;

/// Simulated seconds in a real one.
const TIME_SCALE: u32 = 150;
const FIVE_HOURS: Duration = Duration::from_hours(5);
const WEEK: Duration = Duration::from_hours(7 * 24);
/// How long a 5-hour window really takes.
pub const WINDOW: Duration = Duration::from_secs(FIVE_HOURS.as_secs() / TIME_SCALE as u64);
/// A running stream takes a few seconds; more than this is a fault.
const DRAIN_S: u64 = 10;

/// One simulated subscription.
struct Subscription {
    kind: Kind,
    name: &'static str,
    plan: &'static str,
    /// Size relative to the smallest plan.
    weight: f64,
    /// Share of the 5-hour window that is used at the start, and of the weekly one.
    used: [f64; 2],
    /// Share of both windows that has passed at the start.
    passed: [f64; 2],
}

/// Sized so that plans run out now and then, and rarely all at the same time.
#[rustfmt::skip]
const SUBSCRIPTIONS: [Subscription; 6] = [
    Subscription { kind: Kind::Codex,  name: "codex-anna",  plan: "plus",    weight: 1.0, used: [0.10, 0.20], passed: [0.10, 0.2] },
    Subscription { kind: Kind::Codex,  name: "codex-ben",   plan: "plus",    weight: 1.0, used: [0.35, 0.45], passed: [0.55, 0.5] },
    Subscription { kind: Kind::Codex,  name: "codex-chloe", plan: "plus",    weight: 1.0, used: [0.85, 0.30], passed: [0.40, 0.3] },
    Subscription { kind: Kind::Codex,  name: "codex-pro",   plan: "pro",     weight: 3.0, used: [0.05, 0.15], passed: [0.25, 0.7] },
    Subscription { kind: Kind::Claude, name: "claude-max",  plan: "max_20x", weight: 3.0, used: [0.20, 0.25], passed: [0.30, 0.4] },
    Subscription { kind: Kind::Claude, name: "claude-pro",  plan: "pro",     weight: 1.0, used: [0.50, 0.40], passed: [0.60, 0.6] },
];

const KEYS: [(Kind, &str); 2] = [(Kind::Openai, "openai-key"), (Kind::Anthropic, "anthropic-key")];

/// Requests that fit into five hours of the smallest plan.
const CAPACITY: f64 = 32.0;
/// Weeks hold this many times what five hours hold.
const WEEKLY: f64 = 25.0;

pub fn scenario() -> Scenario {
    let subscriptions = SUBSCRIPTIONS.iter().map(|one| AccountSpec {
        plan: Some(one.plan.into()),
        windows: Some(vec![
            window(FIVE_HOURS, one.weight * CAPACITY, one.used[0], one.passed[0]),
            window(WEEK, one.weight * CAPACITY * WEEKLY, one.used[1], one.passed[1]),
        ]),
        ..AccountSpec::new(one.kind, one.name)
    });
    let keys = KEYS.iter().map(|(kind, name)| AccountSpec::new(*kind, name));
    Scenario {
        time_scale: f64::from(TIME_SCALE),
        journal: false,
        accounts: subscriptions.chain(keys).collect(),
        ..Scenario::default()
    }
}

fn window(length: Duration, capacity: f64, used: f64, passed: f64) -> WindowSpec {
    let resets_in = length.mul_f64(1.0 - passed);
    WindowSpec {
        length_s: length.as_secs(),
        capacity,
        used: (capacity * used).round(),
        resets_in_s: Some(resets_in.as_secs()),
    }
}

/// Names and kinds of the subscriptions; each is also a pool of its own.
pub fn subscriptions() -> impl Iterator<Item = (&'static str, Kind)> {
    SUBSCRIPTIONS.iter().map(|one| (one.name, one.kind))
}

/// As an operator would write it, with the credentials in files of `folder`.
pub fn config(sim: &Sim, folder: &Path, listen: &str) -> anyhow::Result<Config> {
    let accounts = sim.accounts().into_iter().map(|account| {
        let (base, token, secret) = match account.kind() {
            Kind::Codex => ("/backend-api/codex", Some("/oauth/token"), account.auth_json()),
            Kind::Claude => ("", Some("/v1/oauth/token"), account.credentials_json()),
            Kind::Openai => ("/v1", None, account.api_key()),
            Kind::Anthropic => ("", None, account.api_key()),
        };
        let file = folder.join(account.name());
        files::create_private(&file, secret.as_bytes())
            .with_context(|| format!("writing {}", file.display()))?;
        let (auth_file, key_file) =
            if token.is_some() { (Some(file), None) } else { (None, Some(file)) };
        Ok(RawAccount {
            name: account.name().into(),
            kind: kind_name(account.kind()).into(),
            auth_file,
            key_file,
            base_url: Some(format!("{}{base}", sim.url())),
            token_url: token.map(|path| format!("{}{path}", sim.url())),
            plan_weight: SUBSCRIPTIONS.iter().find(|p| p.name == account.name()).map(|p| p.weight),
            ..RawAccount::default()
        })
    });
    let pools = SUBSCRIPTIONS.iter().map(|one| RawPool {
        name: one.name.into(),
        members: vec![one.name.into()],
        ..RawPool::default()
    });
    let raw = RawConfig {
        listen: Some(listen.into()),
        data_dir: Some(folder.join("data")),
        listener: RawListener { drain_delay_s: Some(0), ..RawListener::default() },
        limits: RawLimits { drain_timeout_s: Some(DRAIN_S), ..RawLimits::default() },
        account: accounts.collect::<anyhow::Result<_>>()?,
        pool: pools.collect(),
        ..RawConfig::default()
    };
    files::create_private_dir(&folder.join("data"))?;
    Ok(Config::resolve(raw)?)
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Codex => "codex",
        Kind::Claude => "claude",
        Kind::Openai => "openai",
        Kind::Anthropic => "anthropic",
    }
}
