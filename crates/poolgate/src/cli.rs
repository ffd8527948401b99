//! The command line. Output is for people; `--json` makes it for machines.

mod account;
mod doctor;
mod explain;
mod import;
mod key;
mod key_rotate;
mod login;
mod settings;
mod simulate;
mod status;
mod why;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use crate::app::App;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Overrides};
use crate::serve::{Bound, Server, stop_signal};
use crate::store::Store;
use crate::{demo, ledger, telemetry};

/// One self-hosted gateway that pools LLM accounts.
#[derive(Debug, Parser)]
#[command(name = "poolgate", version, about, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: ./poolgate.toml, then ~/.config/poolgate/poolgate.toml]
    #[arg(long, global = true, env = "POOLGATE_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory, whatever the configuration says
    #[arg(long, global = true)]
    data: Option<PathBuf>,
    /// Print JSON; `serve` then logs in JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve {
        /// Address to listen on, whatever the configuration says
        #[arg(long)]
        listen: Option<String>,
        /// Wait until another gateway on the same data takes on no more, and serve from then on
        #[arg(long)]
        take_over: bool,
    },
    /// Show everything at work: gateway, simulated providers and traffic; needs no account
    Demo {
        /// Address to listen on [default: 127.0.0.1:8080, or a free port]
        #[arg(long)]
        listen: Option<String>,
        /// End by itself after so many seconds
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Accounts: the credentials that serve
    #[command(subcommand)]
    Account(account::Command),
    /// Client keys: what callers show
    #[command(subcommand)]
    Key(key::Command),
    /// Change the master key, which seals stored credentials; a running gateway goes on
    KeyRotate(key_rotate::Command),
    /// How a running gateway's accounts are doing
    Status(status::Status),
    /// Who would serve a request now, and why not the others
    Why(why::Command),
    /// Why a past request went where it went
    Explain(explain::Command),
    /// What is wrong with this installation, and what to do; changes nothing
    Doctor(doctor::Command),
    /// Compare the strategies over weeks of simulated traffic; needs no gateway
    Simulate(simulate::Command),
    /// The configuration
    #[command(subcommand)]
    Config(settings::Command),
}

/// What commands that work on the store need.
struct Context {
    config: Config,
    store: Store,
    clock: SystemClock,
    json: bool,
}

impl Context {
    /// With the accounts and pools of the configuration, which has to be right.
    async fn open(global: &Global) -> anyhow::Result<Self> {
        Self::on(global.load(None)?, global).await
    }

    /// For what the data directory is enough for.
    async fn open_place(global: &Global) -> anyhow::Result<Self> {
        Self::on(global.load_place()?, global).await
    }

    async fn on(config: Config, global: &Global) -> anyhow::Result<Self> {
        if needs_change(&config).await && !ledger::is_left_alone(&config.data_dir) {
            bail!(
                "a gateway of an earlier version is using {}, and this version would have to change \
                 its database: restart the gateway with this version first",
                config.data_dir.display()
            );
        }
        let store = Store::open(&config.data_dir).await?;
        Ok(Self { config, store, clock: SystemClock, json: global.json })
    }

    fn now(&self) -> poolgate_core::units::Timestamp {
        self.clock.now()
    }
}

impl Global {
    fn load(&self, listen: Option<String>) -> anyhow::Result<Config> {
        let overrides = Overrides { listen, data_dir: self.data.clone() };
        Config::load(self.config.as_deref(), overrides)
    }

    /// Mistakes are told, and keep nobody from what needs nothing but the data directory.
    fn load_place(&self) -> anyhow::Result<Config> {
        let overrides = Overrides { listen: None, data_dir: self.data.clone() };
        let (config, wrong) = Config::load_place(self.config.as_deref(), overrides)?;
        if let Some(wrong) = wrong {
            eprintln!("poolgate: warning: {wrong:#}");
            eprintln!("poolgate: going on with the data in {}", config.data_dir.display());
        }
        Ok(config)
    }
}

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Serve { listen, take_over } => serve(&global, listen, take_over).await,
        Command::Demo { listen, seconds } => {
            let stop = stop_signal()?;
            let duration = seconds.map(Duration::from_secs);
            demo::run(demo::Options { listen, json: global.json, duration, stop }).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Account(command) => {
            let context = if command.needs_accounts() {
                Context::open(&global).await?
            } else {
                Context::open_place(&global).await?
            };
            account::run(command, &context).await
        }
        Command::Key(command @ key::Command::Create { .. }) => {
            key::run(command, &Context::open(&global).await?).await
        }
        Command::Key(command) => key::run(command, &Context::open_place(&global).await?).await,
        Command::KeyRotate(command) => {
            key_rotate::run(&command, &Context::open(&global).await?).await
        }
        Command::Status(command) => status::run(&command, &global).await,
        Command::Why(command) => why::run(&command, &global).await,
        Command::Explain(command) => explain::run(&command, &global).await,
        Command::Doctor(command) => doctor::run(&command, &global).await,
        Command::Simulate(command) => simulate::run(command, &global).await,
        Command::Config(command) => settings::run(&command, &global),
    }
}

/// Where a running gateway listens, for `poolgate status`; with `https://` in front if it speaks TLS.
const ADDRESS_FILE: &str = "address";

/// Exit status of a second gateway on the same data.
const IN_USE: u8 = 75;

async fn serve(
    global: &Global,
    listen: Option<String>,
    take_over: bool,
) -> anyhow::Result<ExitCode> {
    let _logs = telemetry::init(global.json);
    let stop = stop_signal()?;
    let config = global.load(listen)?;
    crate::files::create_private_dir(&config.data_dir)?;
    let lock = std::fs::File::create(config.data_dir.join("lock"))?;
    let mut bound = None;
    if lock.try_lock().is_err() {
        if !take_over {
            eprintln!("poolgate: another gateway is using {}", config.data_dir.display());
            return Ok(ExitCode::from(IN_USE));
        }
        // From here on clients wait in our queue for what the other does not accept any more.
        bound = Some(Bound::new(&config)?);
        tracing::info!("waiting for the gateway that uses the data to take on no more");
        if stop.run_until_cancelled(until_locked(&lock)).await.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if stop.run_until_cancelled(until_changeable(&config)).await.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    let app = App::start(config, Arc::new(SystemClock)).await?;
    // Whoever comes from then on is the next gateway's.
    let draining = app.draining.clone();
    app.tasks.spawn(async move {
        draining.cancelled().await;
        drop(lock);
    });
    let server = match bound {
        Some(bound) => Server::on(bound, Arc::clone(&app))?,
        None => Server::bind(Arc::clone(&app))?,
    };
    let address = server.address;
    let scheme = if server.is_encrypted() { "https://" } else { "" };
    let written = format!("{scheme}{address}");
    if let Err(error) = std::fs::write(app.config.data_dir.join(ADDRESS_FILE), written) {
        tracing::warn!(%error, "poolgate status will need --url");
    }
    if !address.ip().is_loopback() && !server.is_encrypted() {
        tracing::warn!(%address, "listening beyond this machine without TLS: put a TLS proxy in front");
    }
    let accounts = app.pool.accounts().len();
    tracing::info!(%address, accounts, data = %app.config.data_dir.display(), "serving");
    if accounts == 0 {
        tracing::warn!("no accounts yet: poolgate account login --help, or add --help");
    }
    if !app.keys.any_valid(app.clock.now()) {
        tracing::warn!("no client key yet, so nobody is served: poolgate key create NAME");
    }
    // A task that died ends the process as a signal does.
    let either = tokio_util::sync::CancellationToken::new();
    let (both, tasks) = (either.clone(), app.tasks.stop.clone());
    app.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => tracing::info!("draining"),
            () = tasks.cancelled() => {}
        }
        both.cancel();
    });
    let clean = server.run(either).await;
    app.store.close().await;
    tracing::info!(clean, "stopped");
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const LOCK_EVERY: Duration = Duration::from_millis(20);

async fn until_locked(lock: &std::fs::File) {
    while lock.try_lock().is_err() {
        tokio::time::sleep(LOCK_EVERY).await;
    }
}

/// A gateway that is ending may still write; but not to a database that we would first have to change.
async fn until_changeable(config: &Config) {
    if ledger::is_left_alone(&config.data_dir) || !needs_change(config).await {
        return;
    }
    tracing::info!(
        "the database has to be changed: waiting for the gateway that still writes to it"
    );
    while !ledger::is_left_alone(&config.data_dir) {
        tokio::time::sleep(LOCK_EVERY).await;
    }
}

/// Whether opening the database would change its schema. One that cannot be read says so when it is
/// opened.
async fn needs_change(config: &Config) -> bool {
    let look = async {
        let store = Store::look(&config.data_dir).await?;
        let (found, ours) = store.schema().await?;
        store.close().await;
        anyhow::Ok(found < ours)
    };
    look.await.unwrap_or(false)
}

/// Prints to standard output; a closed pipe is no reason to panic.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a value: for people with `text`, for machines as JSON.
fn show(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    if json {
        say(&value.to_string());
    } else {
        say(&text());
    }
}

fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
