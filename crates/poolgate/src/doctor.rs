//! What is wrong with an installation, and what to do about it.
//!
//! Everything is looked at as it lies there, beside a running gateway or without one: nothing is made,
//! renewed, brought up to date or written, and no credential is sent anywhere. A check says what was
//! found, and, if that is not well, what to do.

mod accounts;
mod files;
mod reach;
mod stored;

use std::net::SocketAddr;

use poolgate_core::units::Timestamp;
use serde::Serialize;

use crate::admin::Status;
use crate::config::{Config, DEFAULT_POOL};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    Ok,
    /// It works, but not for long, or not for everybody.
    Warning,
    /// Something does not work, or is open to others.
    Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, like `master key` or `account alice`.
    pub about: String,
    pub grade: Grade,
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub problems: usize,
    pub warnings: usize,
    pub checks: Vec<Check>,
}

impl Check {
    fn new(grade: Grade, about: impl Into<String>, found: impl Into<String>, advice: &str) -> Self {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        Self { about: about.into(), grade, found: found.into(), advice }
    }

    fn ok(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Grade::Ok, about, found, "")
    }

    fn warning(about: impl Into<String>, found: impl Into<String>, advice: &str) -> Self {
        Self::new(Grade::Warning, about, found, advice)
    }

    fn problem(about: impl Into<String>, found: impl Into<String>, advice: &str) -> Self {
        Self::new(Grade::Problem, about, found, advice)
    }
}

impl Report {
    pub fn new(checks: Vec<Check>) -> Self {
        let count = |grade| checks.iter().filter(|check| check.grade == grade).count();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            problems: count(Grade::Problem),
            warnings: count(Grade::Warning),
            checks,
        }
    }

    /// The configuration cannot be used, so nothing else can be looked at.
    pub fn unconfigured(error: &anyhow::Error) -> Self {
        let advice = "correct the configuration file: poolgate.example.toml explains every setting";
        Self::new(vec![Check::problem("configuration", format!("{error:#}"), advice)])
    }
}

/// A gateway that may be running on this data.
pub enum Running {
    No,
    /// Something else listens where this one would.
    Elsewhere(SocketAddr),
    Yes(Box<Status>),
    /// Something answers, but not as this gateway would.
    Unclear(String),
}

/// `offline`: no upstream is connected to.
pub async fn examine(config: &Config, running: &Running, now: Timestamp, offline: bool) -> Report {
    let mut checks = vec![configuration(config)];
    checks.extend(files::check(config));
    let store = match stored::open(config).await {
        Ok(store) => store,
        Err(check) => {
            checks.push(check);
            None
        }
    };
    let key = stored::master_key(config, store.as_ref()).await;
    checks.push(key.check);
    match &store {
        Some(store) => {
            let pools = config.pools.iter().map(|pool| pool.name.as_str());
            let pools: Vec<&str> = pools.chain([DEFAULT_POOL]).collect();
            checks.extend(stored::check(store, &pools, now).await);
        }
        None if checks.iter().any(|check| check.about == "database") => {}
        None => checks.push(Check::ok("database", "none yet: the first start makes it")),
    }
    checks.push(gateway(running));
    let accounts = accounts::find(config, store.as_ref(), key.key.as_ref()).await;
    checks.extend(accounts::check(&accounts, key.key.as_ref(), running, now).await);
    checks.extend(pools(config, &accounts));
    if !offline {
        checks.extend(reach::check(&accounts, config.limits.connect_timeout, now).await);
    }
    if let Some(store) = store {
        store.close().await;
    }
    Report::new(checks)
}

fn configuration(config: &Config) -> Check {
    let is_encrypted = config.listener.tls.is_some();
    let found = format!(
        "{} account(s) and {} pool(s) in the file, listening on {}{}",
        config.accounts.len(),
        config.pools.len(),
        config.listen,
        if is_encrypted { " with TLS" } else { "" }
    );
    if config.listen.ip().is_loopback() || is_encrypted {
        return Check::ok("configuration", found);
    }
    let advice =
        "it is reachable from other machines without TLS: set [tls], or put a TLS proxy in front";
    Check::warning("configuration", found, advice)
}

fn gateway(running: &Running) -> Check {
    match running {
        Running::No => Check::ok("gateway", "none is running on this data"),
        Running::Elsewhere(address) => {
            let found = "none is running on this data; something else listens on";
            Check::ok("gateway", format!("{found} {address}, a demo or another gateway perhaps"))
        }
        Running::Unclear(text) => Check::warning(
            "gateway",
            text,
            "see what listens there, or say which gateway is meant: --url, --data",
        ),
        Running::Yes(status) if status.version != env!("CARGO_PKG_VERSION") => Check::warning(
            "gateway",
            format!("version {} is running, this is {}", status.version, env!("CARGO_PKG_VERSION")),
            "restart the gateway",
        ),
        Running::Yes(status) if status.spool_waiting_bytes > RECORDS_WAITING => Check::warning(
            "gateway",
            format!("{} bytes of records wait for the database", status.spool_waiting_bytes),
            "see its log: the database is locked, or its disk is slow or full",
        ),
        Running::Yes(status) => {
            Check::ok("gateway", format!("running, {} request(s) in flight", status.in_flight))
        }
    }
}

/// More than a burst leaves behind.
const RECORDS_WAITING: u64 = 64 << 20;

fn pools(config: &Config, accounts: &[accounts::Found]) -> Vec<Check> {
    let unknown = |name: &&String| !accounts.iter().any(|account| account.name == **name);
    let check = |pool: &crate::config::PoolSpec| {
        let missing: Vec<&str> = pool.members.iter().filter(unknown).map(String::as_str).collect();
        (!missing.is_empty()).then(|| {
            Check::warning(
                format!("pool {}", pool.name),
                format!("there is no account named {}", missing.join(", ")),
                "correct the name in [[pool]], or add the account",
            )
        })
    };
    config.pools.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    #[test]
    fn grades_who_can_listen_to_what_is_said() {
        let tls = "[tls]\ncert_file = \"c\"\nkey_file = \"k\"";
        for (listen, tls, want) in [
            ("127.0.0.1:1", "", Grade::Ok),
            ("0.0.0.0:1", "", Grade::Warning),
            ("0.0.0.0:1", tls, Grade::Ok),
        ] {
            let text = format!("listen = {listen:?}\ndata_dir = \"/d\"\n{tls}");
            let config = Config::resolve(toml::from_str::<RawConfig>(&text).unwrap()).unwrap();
            let check = configuration(&config);
            assert_eq!(check.grade, want, "{check:?}");
            assert_eq!(check.found.contains("with TLS"), !tls.is_empty(), "{check:?}");
        }
    }
}
