//! `poolgate simulate`: how the strategies would do over weeks, on made-up traffic or the gateway's
//! own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use poolgate_core::strategy::Strategy;

use super::{Global, say};
use crate::simulate::{
    Comparison, Demand, SHIPPED, Scale, Scenario, TOKENS_PER_UNIT, begins, compare, from_log,
    members, table,
};
use crate::store::History;

#[derive(Debug, Args)]
pub struct Command {
    /// Scenario files, or names of shipped ones [default: all that are shipped]
    scenario: Vec<PathBuf>,
    /// A strategy to compare; may be repeated [default: all]
    #[arg(long)]
    strategy: Vec<String>,
    /// Seed of the first run [default: the scenario's]
    #[arg(long)]
    seed: Option<u64>,
    /// Runs, each with the next seed; figures are their means
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// List the shipped scenarios
    #[arg(long, conflicts_with_all = ["scenario", "log"])]
    list: bool,
    /// What a gateway recorded is what is wanted: its database, or its data directory. Accounts and
    /// users are those of the scenario file, if one is given, else its subscriptions
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
    /// With --log: how many tokens of fresh input make a unit [default: 20000]
    #[arg(long, value_name = "N", requires = "log")]
    tokens_per_unit: Option<f64>,
    /// With --log: let a unit be so large that this share of the capacity is wanted
    #[arg(long, value_name = "SHARE", requires = "log", conflicts_with = "tokens_per_unit")]
    load: Option<f64>,
}

pub async fn run(command: Command, global: &Global) -> anyhow::Result<ExitCode> {
    if command.list {
        list(global.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let strategies = strategies(&command.strategy)?;
    let mut comparisons: Vec<Comparison> = Vec::new();
    let mut compared = |scenario: &Scenario, demand: &dyn Fn(u64) -> Demand| {
        let first = command.seed.unwrap_or(scenario.seed);
        let seeds = (0..u64::from(command.runs)).map(|run| first.wrapping_add(run));
        let demands: Vec<_> = seeds.map(|seed| (seed, demand(seed))).collect();
        let comparison = compare(scenario, &strategies, &demands);
        if global.json {
            comparisons.push(comparison);
        } else {
            say(&table(&comparison));
        }
    };
    if let Some(path) = &command.log {
        let logged = logged(path, &command).await?;
        compared(&logged.0, &|_| logged.1.clone());
    } else {
        for scenario in scenarios(&command.scenario)? {
            compared(&scenario, &|seed| Demand::of(&scenario, seed));
        }
    }
    if global.json {
        say(&serde_json::to_string(&comparisons)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn strategies(names: &[String]) -> anyhow::Result<Vec<Strategy>> {
    if names.is_empty() {
        return Ok(Strategy::ALL.to_vec());
    }
    let known = || Strategy::ALL.map(Strategy::name).join(", ");
    let read = |name: &String| {
        Strategy::from_name(name)
            .with_context(|| format!("strategy {name:?} is none of {}", known()))
    };
    names.iter().map(read).collect()
}

/// Names of shipped scenarios are tried where there is no such file.
fn scenarios(given: &[PathBuf]) -> anyhow::Result<Vec<Scenario>> {
    let shipped = |(name, text): &(&str, &str)| Scenario::parse(name, text);
    if given.is_empty() {
        return SHIPPED.iter().map(shipped).collect();
    }
    let read = |path: &PathBuf| {
        let named = |(name, _): &&(&str, &str)| Path::new(name) == path;
        match SHIPPED.iter().find(named).filter(|_| !path.exists()) {
            Some(found) => shipped(found),
            None => Scenario::read(path),
        }
    };
    given.iter().map(read).collect()
}

async fn logged(path: &Path, command: &Command) -> anyhow::Result<(Scenario, Demand)> {
    let history = History::open(path).await?;
    let requests = history.requests().await?;
    let start = begins(&requests).context("the log holds no request")?;
    let scenario = match &command.scenario[..] {
        [] => Scenario::of_accounts(members(&history.accounts().await?, start)),
        [file] => Scenario::read_accounts(file)?,
        _ => bail!("one scenario file at most can give the accounts for --log"),
    };
    history.close().await;
    ensure!(
        !scenario.accounts.is_empty(),
        "the gateway has no codex or claude account: give a scenario file with some"
    );
    let positive = |name: &str, value: f64| {
        ensure!(value.is_finite() && value > 0.0, "{name} must be more than 0");
        Ok(value)
    };
    let scale = match command.load {
        Some(load) => Scale::Load(positive("--load", load)?),
        None => Scale::TokensPerUnit(positive(
            "--tokens-per-unit",
            command.tokens_per_unit.unwrap_or(TOKENS_PER_UNIT),
        )?),
    };
    let logged = from_log(&requests, scenario, scale).context("the log holds no request")?;
    let sessions = logged.demand.sessions.len();
    ensure!(sessions > 0, "none of {} requests has tokens and an account", requests.len());
    let mut scenario = logged.scenario;
    scenario.about = format!(
        "{} requests of {} in {sessions} guessed sessions; {} left out (refused, without tokens, or \
         of a model that no account here serves)",
        logged.used,
        path.display(),
        logged.left_out
    );
    Ok((scenario, logged.demand))
}

fn list(json: bool) -> anyhow::Result<()> {
    let scenarios = scenarios(&[])?;
    if json {
        let entry = |s: &Scenario| serde_json::json!({ "name": s.name, "about": s.about });
        let list: serde_json::Value = scenarios.iter().map(entry).collect();
        say(&list.to_string());
    } else {
        for scenario in scenarios {
            say(&format!("{:<16} {}", scenario.name, scenario.about));
        }
    }
    Ok(())
}
