//! Runs the simulator on its own, for a demo or as the upstream of a load test.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use poolgate_sim::{Account, Kind, Scenario, Sim};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulates LLM providers: `ChatGPT` (codex), `OpenAI`, Anthropic and Claude subscriptions.
#[derive(Parser)]
#[command(name = "poolgate-sim", version)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one. Default: the scenario's.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// JSON file with the accounts. Default: 2 codex, 1 claude, 1 openai key, 1 anthropic key.
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// Worker threads; 1 costs the least CPU per request.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut scenario = match &arguments.scenario {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => Scenario::demo(),
    };
    if let Some(listen) = arguments.listen {
        scenario.listen = listen;
    }
    let mut runtime = match arguments.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(arguments.threads.max(1)).enable_all().build()?;
    runtime.block_on(run(scenario))?;
    Ok(())
}

async fn run(scenario: Scenario) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sim = Sim::start(scenario).await?;
    print(&sim)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sim.stop().await;
    Ok(())
}

/// One line per fact, so that scripts can read them: what, whose, value.
fn print(sim: &Sim) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "url\t-\t{}", sim.url())?;
    for account in sim.accounts() {
        let (what, credentials) = credentials(&account);
        writeln!(out, "{what}\t{}\t{credentials}", account.name())?;
        if account.url() != sim.url() {
            writeln!(out, "url\t{}\t{}", account.name(), account.url())?;
        }
    }
    out.flush()
}

fn credentials(account: &Account) -> (&'static str, String) {
    match account.kind() {
        Kind::Codex => ("codex auth.json", account.auth_json()),
        Kind::Claude => ("claude .credentials.json", account.credentials_json()),
        Kind::Openai => ("openai key", account.api_key()),
        Kind::Anthropic => ("anthropic key", account.api_key()),
    }
}
