//! `poolgate key`: client keys.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Subcommand;
use poolgate_core::units::Timestamp;
use serde_json::json;

use super::{Context, show};
use crate::error::clock_text;
use crate::keys::generate;
use crate::store::{ClientKeyRow, KeyLimits, NewClientKey};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key and show it, once
    Create {
        name: String,
        /// Pool it may use; repeat for more [default: the pool "default"]
        #[arg(long = "pool")]
        pools: Vec<String>,
        /// Pattern of models it may use, `*` for any text; repeat for more [default: all]
        #[arg(long = "model")]
        models: Vec<String>,
        /// Valid for so many days [default: until revoked]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        days: Option<u32>,
        /// Requests at the same time [default: any number]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        concurrency: Option<u32>,
        /// Requests begun within any minute [default: any number]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        requests_per_minute: Option<u32>,
    },
    /// List keys
    List,
    /// Revoke a key for good; a running gateway knows within a second
    Revoke { name: String },
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create { name, pools, models, days, concurrency, requests_per_minute } => {
            let limits = KeyLimits { concurrency, requests_per_minute };
            create(context, name, pools, models, (days, limits)).await?;
        }
        Command::List => list(context).await?,
        Command::Revoke { name } => {
            ensure!(
                context.store.revoke_client_key(&name, context.now()).await?,
                "there is no valid key named {name:?}: see poolgate key list"
            );
            show(context.json, &json!({"revoked": name}), || format!("revoked {name}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(
    context: &Context,
    name: String,
    pools: Vec<String>,
    models: Vec<String>,
    (days, limits): (Option<u32>, KeyLimits),
) -> anyhow::Result<()> {
    let bad = name.trim().is_empty() || name.len() > 64 || name.contains(char::is_control);
    ensure!(!bad, "the name must be 1 to 64 printable characters");
    let known = |pool: &String| {
        pool == crate::config::DEFAULT_POOL || context.config.pools.iter().any(|p| p.name == *pool)
    };
    if let Some(pool) = pools.iter().find(|pool| !known(pool)) {
        bail!("there is no pool named {pool:?} in the configuration");
    }
    let now = context.now();
    let expires_at = days.map(|days| now.plus(Duration::from_hours(24) * days));
    let (key, new) = generate(name.clone(), pools, models, expires_at)?;
    let new = NewClientKey { limits, ..new };
    ensure!(
        context.store.add_client_key(&new, now).await?,
        "there is a key named {name:?} already; names are not used again, even of revoked keys"
    );
    show(context.json, &json!({"name": name, "key": key}), || {
        format!("{key}\n\nThis is the key {name:?}. It is shown only now: keep it safe.")
    });
    Ok(())
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let (rows, now) = (context.store.client_keys().await?, context.now());
    let as_json: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({"name": row.name, "hint": row.hint, "pools": row.pools, "models": row.models,
                "valid": row.is_valid(now), "created_at": row.created_at.0,
                "concurrency": row.limits.concurrency,
                "requests_per_minute": row.limits.requests_per_minute,
                "expires_at": row.expires_at.map(|at| at.0), "revoked_at": row.revoked_at.map(|at| at.0)})
        })
        .collect();
    show(context.json, &json!(as_json), || {
        if rows.is_empty() {
            return "no keys yet: poolgate key create NAME".into();
        }
        let lines: Vec<String> = rows.iter().map(|row| line(row, now)).collect();
        lines.join("\n")
    });
    Ok(())
}

fn line(row: &ClientKeyRow, now: Timestamp) -> String {
    let state = match (row.revoked_at, row.expires_at) {
        (Some(at), _) => format!("revoked {}", clock_text(at)),
        (None, Some(at)) if at <= now => format!("expired {}", clock_text(at)),
        (None, Some(at)) => format!("valid until {}", clock_text(at)),
        (None, None) => "valid".into(),
    };
    let pools = if row.pools.is_empty() { "default".into() } else { row.pools.join(", ") };
    let limit = |most: Option<u32>, what| most.map(|most| format!("  {most} {what}"));
    let limits = [
        limit(row.limits.concurrency, "at once"),
        limit(row.limits.requests_per_minute, "a minute"),
    ];
    let limits: String = limits.into_iter().flatten().collect();
    format!("{:<24} {}…  {state}  pools: {pools}{limits}", row.name, row.hint)
}
