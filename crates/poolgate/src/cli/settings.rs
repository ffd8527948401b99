//! `poolgate config`: is it right, and what does it come to?

use std::process::ExitCode;

use clap::Subcommand;
use poolgate_core::account::{Kind, Speaks};
use serde_json::json;

use super::{Global, show};
use crate::config::{AccountSpec, Config};
use crate::serve::tls::Tls;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read it and report all mistakes
    Check,
    /// Show what it comes to, with defaults filled in; no secrets
    Print,
}

pub fn run(command: &Command, global: &Global) -> anyhow::Result<ExitCode> {
    let config = global.load(None)?;
    match command {
        Command::Check => {
            if let Some(files) = config.listener.tls.clone() {
                Tls::new(files)?;
            }
            let (accounts, pools) = (config.accounts.len(), config.pools.len());
            show(global.json, &json!({"ok": true, "accounts": accounts, "pools": pools}), || {
                format!("the configuration is right: {accounts} account(s), {pools} pool(s)")
            });
        }
        Command::Print => {
            let value = describe(&config);
            show(global.json, &value, || serde_json::to_string_pretty(&value).unwrap_or_default());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Of those that may speak one or another.
fn speaks(account: &AccountSpec) -> Option<Vec<&'static str>> {
    let Speaks { responses, chat, messages } = account.speaks;
    let all = [("responses", responses), ("chat", chat), ("messages", messages)];
    let spoken = all.into_iter().filter(|(_, speaks)| *speaks).map(|(word, _)| word);
    (account.kind == Kind::Compatible).then(|| spoken.collect())
}

fn describe(config: &Config) -> serde_json::Value {
    let accounts: Vec<_> = config
        .accounts
        .iter()
        .map(|a| {
            json!({"settings": a.raw, "name": a.name, "kind": a.kind.name(),
                "upstream": format!("{}{}", a.upstream.place, a.upstream.prefix),
                "priority": a.priority, "cap_5h_percent": a.caps.five_hour.percent(),
                "cap_weekly_percent": a.caps.weekly.percent(), "models": a.models,
                "plan_weight": a.plan_weight, "speaks": speaks(a),
                "max_concurrency": a.max_concurrency})
        })
        .collect();
    let pools: Vec<_> = config
        .pools
        .iter()
        .map(|p| {
            json!({"name": p.name, "members": p.members, "strategy": p.strategy.name(),
                "rebalance_threshold": p.rebalance_threshold})
        })
        .collect();
    let (limits, listener) = (&config.limits, &config.listener);
    let mut shown = json!({
        "listen": config.listen.to_string(),
        "data_dir": config.data_dir,
        "master_key_file": config.master_key_file,
        "workers": config.workers,
        "tls": listener.tls.as_ref().map(|tls| {
            json!({"cert_file": tls.cert_file, "key_file": tls.key_file})
        }),
        "listener": {
            "reuse_port": listener.reuse_port,
            "connections": listener.connections,
            "connections_per_address": listener.per_address,
            "requests_per_connection": listener.requests,
            "handshake_timeout_s": listener.handshake_timeout.as_secs(),
            "head_timeout_s": listener.head_timeout.as_secs(),
            "keep_alive_s": listener.keep_alive.as_secs(),
            "write_timeout_s": listener.write_timeout.as_secs(),
            "drain_delay_s": listener.drain_delay.as_secs(),
            "memory_max_bytes": listener.memory_max,
        },
        "limits": {
            "body_idle_timeout_s": limits.body_idle_timeout.as_secs(),
            "body_timeout_s": limits.body_timeout.as_secs(),
            "body_max_bytes": limits.body_max,
            "decoded_max_bytes": limits.decoded_max,
            "spool_max_bytes": limits.spool_max,
            "connect_timeout_s": limits.connect_timeout.as_secs(),
            "stream_head_timeout_s": limits.stream_head_timeout.as_secs(),
            "head_timeout_s": limits.head_timeout.as_secs(),
            "stream_idle_timeout_s": limits.stream_idle_timeout.as_secs(),
            "socket_idle_timeout_s": limits.socket_idle_timeout.as_secs(),
            "request_timeout_s": limits.request_timeout.as_secs(),
            "drain_timeout_s": limits.drain_timeout.as_secs(),
        },
        "accounts": accounts,
        "pools": pools,
    });
    for (name, size) in limits.sizes() {
        shown["limits"][name] = size.into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    #[test]
    fn every_setting_of_the_example_is_shown() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../poolgate.example.toml");
        let example = std::fs::read_to_string(path).unwrap();
        let all: String = example
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let settings: toml::Table = all.parse().unwrap();
        let config = Config::resolve(toml::from_str::<RawConfig>(&all).unwrap()).unwrap();
        let shown = describe(&config);
        let compatible =
            shown["accounts"].as_array().unwrap().iter().find(|a| a["speaks"].is_array());
        assert!(compatible.is_some_and(|account| account.get("plan_weight").is_some()));
        assert!(shown["pools"][0].get("rebalance_threshold").is_some());
        let mut missing = Vec::new();
        for (name, value) in &settings {
            // Accounts and pools are tested by what they come to.
            if shown.get(name).is_none() && !value.is_array() {
                missing.push(name.clone());
            }
            for inner in value.as_table().into_iter().flat_map(toml::Table::keys) {
                // It stands for two others, which are there.
                if shown[name].get(inner).is_none() && inner != "proxy" {
                    missing.push(format!("{name}.{inner}"));
                }
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
    }
}
