//! Configuration: raw as written, then resolved into what the program uses.
//!
//! Layers, later wins: defaults, the file, `POOLGATE__SECTION__KEY` in the environment, flags. Our
//! own format refuses unknown keys, and all mistakes are reported in one list before a port opens.
//! `poolgate.example.toml` is the reference, and a test loads it.

mod account;
mod address;
mod layers;
mod limits;
mod listener;
mod proxy;
mod way;

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use poolgate_core::strategy::Strategy;
use serde::Deserialize;

pub use account::{AccountSpec, CredentialSource, RawAccount, Upstream, at_home};
pub use address::{is_forbidden, is_private, is_this_machine};
pub use limits::{Limits, RawLimits};
pub use listener::{Listener, RawListener, RawTls, Tls};
pub use proxy::{Login, Protocol, Proxy, ProxyUrl};
pub use way::{Place, Way};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    pub listen: Option<String>,
    pub data_dir: Option<PathBuf>,
    pub master_key_file: Option<PathBuf>,
    pub workers: Option<usize>,
    pub listener: RawListener,
    pub tls: Option<RawTls>,
    pub limits: RawLimits,
    pub account: Vec<RawAccount>,
    pub pool: Vec<RawPool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPool {
    pub name: String,
    #[serde(default)]
    pub members: Vec<String>,
    pub strategy: Option<String>,
    pub rebalance_threshold: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    pub master_key_file: PathBuf,
    /// Threads that serve connections; 0: the runtime of the caller does.
    pub workers: usize,
    pub listener: Listener,
    pub limits: Limits,
    pub accounts: Vec<AccountSpec>,
    pub pools: Vec<PoolSpec>,
    /// Where it came from, to be read again; `None`: nowhere, as in tests.
    pub origin: Option<Origin>,
    /// Usage endpoints are asked. No setting: off only in tests that script what an account knows.
    pub polls: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    pub name: String,
    /// Names of accounts, in order.
    pub members: Vec<String>,
    pub strategy: Strategy,
    /// Percent points of a weight-1 plan that a session's account may fall behind the best one
    /// before its sessions move; least-used only.
    pub rebalance_threshold: Option<f64>,
}

/// The pool that holds everything.
pub const DEFAULT_POOL: &str = "default";

#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

/// When a file was written last, and how long it is.
pub type Stamp = (SystemTime, u64);

/// `None`: there is none.
pub fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A configuration file, and what lies over it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// `None`: there was none.
    pub file: Option<PathBuf>,
    /// As it was before it was read.
    pub stamp: Option<Stamp>,
    pub overrides: Overrides,
}

/// What the command line may override.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub listen: Option<String>,
    pub data_dir: Option<PathBuf>,
}

impl Config {
    /// Reads `file`, or the first that exists of `./poolgate.toml` and the user's configuration.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> anyhow::Result<Self> {
        Written::read(file, overrides)?.resolve()
    }

    /// For what needs the data directory and none of the accounts: mistakes are given back beside
    /// what is certain all the same, so that they keep nobody from revoking a key.
    pub fn load_place(
        file: Option<&Path>,
        overrides: Overrides,
    ) -> anyhow::Result<(Self, Option<anyhow::Error>)> {
        let error = match Self::load(file, overrides.clone()) {
            Ok(config) => return Ok((config, None)),
            Err(error) => error,
        };
        let written = Written::read(file, overrides.clone()).ok();
        let written = written.filter(Written::knows_data_dir).or_else(|| {
            // What lies over the file, whatever stands in it.
            let over = Written::over(toml::Table::new(), Origin { overrides, ..Origin::default() });
            over.ok().filter(|over| over.raw.data_dir.is_some())
        });
        match written.and_then(Written::place_only) {
            Some(config) => Ok((config, Some(error))),
            None => Err(error),
        }
    }

    /// As the file is now.
    pub fn load_again(origin: &Origin) -> anyhow::Result<Self> {
        Self::load(origin.file.as_deref(), origin.overrides.clone())
    }

    pub fn resolve(raw: RawConfig) -> Result<Self, ConfigError> {
        Self::resolve_beside(raw, Vec::new())
    }

    /// With the mistakes that were found before.
    fn resolve_beside(raw: RawConfig, mut wrong: Vec<String>) -> Result<Self, ConfigError> {
        let listen = raw.listen.as_deref().unwrap_or("127.0.0.1:8080");
        let listen =
            listen.parse().map_err(|e| wrong.push(format!("listen = {listen:?}: {e}"))).ok();
        let data_dir = raw.data_dir.map(|dir| account::at_home(&dir)).or_else(default_data_dir);
        if data_dir.is_none() {
            wrong.push("data_dir: not set, and neither POOLGATE_DATA nor HOME is".into());
        }
        let mut names = HashSet::new();
        let mut accounts = Vec::new();
        for account in raw.account {
            let name = account.name.clone();
            if !names.insert(name.clone()) {
                wrong.push(format!("account {name:?}: the name is used twice"));
            }
            match account.resolve() {
                Ok(spec) => accounts.push(spec),
                Err(errors) => {
                    wrong.extend(errors.into_iter().map(|e| format!("account {name:?}: {e}")));
                }
            }
        }
        let pools = resolve_pools(raw.pool, &mut wrong);
        let listener = Listener::from_raw(&raw.listener, raw.tls.as_ref());
        let limits = Limits::from_raw(&raw.limits);
        wrong.extend(listener.mistakes().into_iter().chain(limits.mistakes()));
        match (listen, data_dir) {
            (Some(listen), Some(data_dir)) if wrong.is_empty() => Ok(Self {
                listen,
                master_key_file: raw
                    .master_key_file
                    .map_or_else(|| data_dir.join("master.key"), |file| account::at_home(&file)),
                data_dir,
                workers: raw.workers.unwrap_or_else(cores),
                listener,
                limits,
                accounts,
                pools,
                origin: None,
                polls: true,
            }),
            _ => Err(ConfigError(wrong)),
        }
    }
}

/// All layers, before they mean anything, with the mistakes found so far.
struct Written {
    raw: RawConfig,
    wrong: Vec<String>,
    variables: Vec<layers::Variable>,
    origin: Origin,
}

impl Written {
    fn read(file: Option<&Path>, overrides: Overrides) -> anyhow::Result<Self> {
        let file = file.map(Path::to_owned).or_else(find_file);
        let stamp = file.as_deref().and_then(stamp);
        let table = match &file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
                layers::parse(&text).with_context(|| format!("in {}", path.display()))?
            }
            None => toml::Table::new(),
        };
        Self::over(table, Origin { file, stamp, overrides })
    }

    /// The environment and the command line over the file's `table`.
    fn over(mut table: toml::Table, origin: Origin) -> anyhow::Result<Self> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let (variables, mut wrong) = layers::merge_environment(&mut table, variables);
        wrong.extend(layers::take_malformed(&mut table));
        let mut raw =
            RawConfig::deserialize(table).with_context(|| place(&origin, !variables.is_empty()))?;
        let overrides = origin.overrides.clone();
        raw.listen = overrides.listen.or(raw.listen);
        raw.data_dir = overrides.data_dir.or(raw.data_dir);
        Ok(Self { raw, wrong, variables, origin })
    }

    fn resolve(self) -> anyhow::Result<Config> {
        let Self { raw, wrong, variables, origin } = self;
        let has_variables =
            !variables.is_empty() || wrong.iter().any(|w| w.starts_with("POOLGATE__"));
        let config = Config::resolve_beside(raw, wrong).map_err(|ConfigError(wrong)| {
            ConfigError(wrong.into_iter().map(|m| layers::blame(&variables, m)).collect())
        });
        let config = config.with_context(|| place(&origin, has_variables))?;
        Ok(Config { origin: Some(origin), ..config })
    }

    /// Not if what is wrong may have been meant for it.
    fn knows_data_dir(&self) -> bool {
        self.raw.data_dir.is_some() || !self.wrong.iter().any(|mistake| is_about_data_dir(mistake))
    }

    /// Where it is and how it is reached, without anything that serves.
    fn place_only(self) -> Option<Config> {
        let RawConfig { listen, data_dir, master_key_file, tls, .. } = self.raw;
        let listen = listen.filter(|listen| listen.parse::<SocketAddr>().is_ok());
        let raw = RawConfig { listen, data_dir, master_key_file, tls, ..RawConfig::default() };
        Config::resolve(raw).ok()
    }
}

/// A key that nobody knows, at the top, may be its name misspelt.
fn is_about_data_dir(mistake: &str) -> bool {
    let (place, why) = mistake.split_once(": ").unwrap_or_default();
    let is_at_top = !place.contains(['.', ' ']);
    place == "data_dir"
        || (is_at_top && why.starts_with("unknown field"))
        || why.starts_with("unknown field `data_dir`")
}

/// Where mistakes may be.
fn place(origin: &Origin, has_variables: bool) -> String {
    let file = match &origin.file {
        Some(path) => format!("in {}", path.display()),
        None => "without a configuration file".to_owned(),
    };
    if has_variables { format!("{file}, and in the environment") } else { file }
}

fn resolve_pools(raw: Vec<RawPool>, wrong: &mut Vec<String>) -> Vec<PoolSpec> {
    let mut pools: Vec<PoolSpec> = Vec::new();
    for pool in raw {
        let name = &pool.name;
        if pools.iter().any(|known| known.name == *name) {
            wrong.push(format!("pool {name:?}: the name is used twice"));
        }
        if pool.members.is_empty() && name != DEFAULT_POOL {
            wrong.push(format!("pool {name:?}: members are missing"));
        }
        let mut named = HashSet::new();
        // It would count twice in what the pool has left.
        let twice: BTreeSet<&String> =
            pool.members.iter().filter(|member| !named.insert(*member)).collect();
        for member in twice {
            wrong.push(format!("pool {name:?}: member {member:?} is named twice"));
        }
        if pool.rebalance_threshold.is_some_and(|t| !t.is_finite() || t < 0.0) {
            wrong.push(format!("pool {name:?}: rebalance_threshold must not be negative"));
        }
        let strategy = match pool.strategy.as_deref() {
            None => Strategy::default(),
            Some(text) => Strategy::from_name(text).unwrap_or_else(|| {
                let known = Strategy::ALL.map(Strategy::name).join(", ");
                wrong.push(format!("pool {name:?}: strategy {text:?} is none of {known}"));
                Strategy::default()
            }),
        };
        pools.push(PoolSpec {
            name: pool.name,
            members: pool.members,
            strategy,
            rebalance_threshold: pool.rebalance_threshold,
        });
    }
    pools
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn find_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let candidates =
        [Some(PathBuf::from("poolgate.toml")), home.map(|dir| dir.join("poolgate/poolgate.toml"))];
    candidates.into_iter().flatten().find(|path| path.exists())
}

fn default_data_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("POOLGATE_DATA") {
        return Some(dir.into());
    }
    let share = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))?;
    Some(share.join("poolgate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Config, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        Config::resolve(raw).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_is_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../poolgate.example.toml");
        let text = std::fs::read_to_string(path).unwrap();
        let config = resolve(&text).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.accounts.len(), 5, "one of each kind");
        // Uncommented, every line must still be a setting we know.
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        resolve(&all).unwrap();
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let error = resolve(
            r#"
            listen = "nowhere"
            data_dir = "/d"
            [[account]]
            name = "a"
            kind = "gemini"
            key_env = "K"
            [[account]]
            name = "a"
            kind = "codex"
            [[pool]]
            name = "p"
            members = ["a", "b", "a", "a"]
            strategy = "best"
            "#,
        )
        .unwrap_err();
        let twice = "pool \"p\": member \"a\" is named twice";
        for part in ["nowhere", "gemini", "used twice", "auth_file", "\"best\"", twice] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert_eq!(error.matches(twice).count(), 1, "{error}");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(resolve("poll_interval = 60").unwrap_err().contains("poll_interval"));
    }
}
