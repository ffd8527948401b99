//! `poolgate demo`: the real gateway between simulated providers and made-up developers.
//!
//! Nothing here is a mock of the gateway: it is configured, started and drained as `serve` does it,
//! and the traffic comes in through its socket. Only the other two ends are simulated. Everything
//! lives in a private temporary folder that is gone afterwards.

mod client;
mod faults;
mod folder;
mod guide;
mod output;
mod request;
mod screen;
mod tally;
mod traffic;
mod watch;
mod world;

#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use poolgate_sim::Sim;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::clock::SystemClock;
use crate::keys;
use crate::serve::Server;

use folder::Folder;
use guide::Guide;
use output::Output;
use tally::Tally;

#[derive(Debug)]
pub struct Options {
    /// `None`: the usual address, or any free port if that is taken.
    pub listen: Option<String>,
    /// One JSON object per line instead of text.
    pub json: bool,
    /// `None`: until `stop`.
    pub duration: Option<Duration>,
    /// Ends the demo early, as on a signal.
    pub stop: CancellationToken,
}

const LISTEN: &str = "127.0.0.1:8080";

/// Runs the demo on standard output until it is stopped, its time is over, or it breaks.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let output = Output::stdout(options.json);
    run_on(options, output).await.map(drop)
}

/// The parts of a running demo.
struct Demo {
    app: Arc<App>,
    sim: Sim,
    url: String,
    key: String,
    tally: Tally,
    /// No new requests; the gateway drains.
    stop: CancellationToken,
}

async fn run_on(options: Options, output: Output) -> anyhow::Result<Tally> {
    let folder = Folder::create()?;
    let sim = Sim::start(world::scenario()).await.context("starting the simulator")?;
    let (listen, note) = choose_address(options.listen.as_deref());
    let config = world::config(&sim, folder.path(), &listen)?;
    let app = App::start(config, Arc::new(SystemClock)).await?;
    let served = serve(&options, output, &app, sim, note).await;
    // The folder goes when nothing writes there any more, whatever happened.
    app.tasks.drain(Duration::from_secs(5)).await;
    app.store.close().await;
    served
}

async fn serve(
    options: &Options,
    mut output: Output,
    app: &Arc<App>,
    sim: Sim,
    note: Option<String>,
) -> anyhow::Result<Tally> {
    let app = Arc::clone(app);
    let server = Server::bind(Arc::clone(&app))?;
    let url = format!("http://{}", reachable(server.address));
    let key = client_key(&app, "demo", Vec::new()).await?;
    let (tally, stop) = (Tally::new(Arc::clone(&app.clock)), CancellationToken::new());
    let demo = Demo { app, sim, url, key, tally, stop };
    if output.guide(&Guide::new(&demo, note)).is_err() {
        // Whoever read this has gone, as in `poolgate demo | head`.
        demo.stop.cancel();
    }
    let served = CancellationToken::new();
    let serving = async {
        let clean = server.run(demo.stop.clone()).await;
        served.cancel();
        clean
    };
    let (clean, (), (), (), broke) = tokio::join!(
        serving,
        traffic::run(&demo),
        faults::run(&demo),
        output.follow(&demo, &served),
        until_over(options, &demo),
    );
    let Demo { sim, tally, .. } = demo;
    sim.stop().await;
    // Whoever read this may have gone.
    let _ = output.finish(&tally, clean);
    anyhow::ensure!(!broke, "a background task of the gateway ended by itself");
    Ok(tally)
}

/// Waits for whatever ends the demo, and stops it. `true`: the gateway itself gave up.
async fn until_over(options: &Options, demo: &Demo) -> bool {
    let time_is_up = async {
        match options.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    // A closed terminal: unlike a server, the demo has nobody left to run for.
    let mut hangup = signal(SignalKind::hangup()).ok();
    let broke = tokio::select! {
        // The drain ends the gateway's tasks too, so why it began is asked first.
        biased;
        () = demo.stop.cancelled() => false,
        () = options.stop.cancelled() => false,
        Some(()) = async { hangup.as_mut()?.recv().await } => false,
        () = time_is_up => false,
        () = demo.app.tasks.stop.cancelled() => true,
    };
    demo.stop.cancel();
    broke
}

/// The address to listen on, and a word about it if it is not the usual one.
fn choose_address(wanted: Option<&str>) -> (String, Option<String>) {
    if let Some(wanted) = wanted {
        return (wanted.to_owned(), None);
    }
    if TcpListener::bind(LISTEN).is_ok() {
        return (LISTEN.into(), None);
    }
    let note = format!("{LISTEN} is taken, so this is another port (--listen chooses one).");
    ("127.0.0.1:0".into(), Some(note))
}

/// An address that listens everywhere is reached by the local one.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// `pools`: those it may use; none: the default one, which holds all accounts.
async fn client_key(app: &App, name: &str, pools: Vec<String>) -> anyhow::Result<String> {
    let (key, row) = keys::generate(name.into(), pools, Vec::new(), None)?;
    app.store.add_client_key(&row, app.clock.now()).await?;
    app.reload().await?;
    Ok(key)
}
