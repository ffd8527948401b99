//! The process from start to end: bind, serve, drain.
//!
//! The first SIGTERM or SIGINT makes `/readyz` refuse, so that a load balancer looks elsewhere; a
//! moment later nothing more is accepted, and running requests have the drain time-out to finish. What
//! still runs then is told so and cut. A second signal ends at once.

mod connection;
pub mod memory;
mod respond;
mod sending;
mod socket;
mod state;
pub mod strangers;
pub mod tls;
mod transport;
mod wire;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::workers::Workers;
use connection::{Connections, Stage};
use tls::Tls;

/// When no descriptor is free, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For background tasks, after the last request.
const TASKS_GRACE: Duration = Duration::from_secs(10);
/// For last words to requests that are cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A bound listener, serving once `run` is polled.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    bound: Bound,
    pub address: SocketAddr,
}

/// A socket that clients may connect to, where they wait until a server accepts them.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    /// Somebody else holds the socket too, and what waits in it is for the next process.
    is_handed_over: bool,
}

impl Bound {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let settings = &config.listener;
        let tls = settings.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
        let (listener, is_handed_over) = socket::listen(config.listen, settings.reuse_port)?;
        Ok(Self { listener, tls, is_handed_over })
    }
}

impl Server {
    pub fn bind(app: Arc<App>) -> anyhow::Result<Self> {
        let bound = Bound::new(&app.config)?;
        Ok(Self { app, address: bound.listener.local_addr()?, bound })
    }

    pub fn on(bound: Bound, app: Arc<App>) -> anyhow::Result<Self> {
        Ok(Self { app, address: bound.listener.local_addr()?, bound })
    }

    pub fn is_encrypted(&self) -> bool {
        self.bound.tls.is_some()
    }

    /// Serves until `stop`, then drains. `false`: requests were still running at the time-out.
    pub async fn run(self, stop: CancellationToken) -> bool {
        let Self { app, bound: Bound { listener, tls, is_handed_over }, .. } = self;
        let workers = match Workers::start(app.config.workers) {
            Ok(workers) => workers,
            Err(error) => {
                tracing::error!(%error, "worker threads could not be started");
                return false;
            }
        };
        watch(&app, tls.clone());
        let connections = Arc::new(Connections::new(Arc::clone(&app), tls));
        {
            let mut accepting = pin!(accept(&connections, &listener, &workers));
            stop.run_until_cancelled(accepting.as_mut()).await;
            app.leaving.cancel();
            let _ = timeout(app.config.listener.drain_delay, accepting).await;
        }
        if !is_handed_over {
            accept_waiting(&connections, listener, &workers);
        }
        connections.order(Stage::Close);
        connections.begun().await;
        app.draining.cancel();
        let drained = async { tokio::join!(connections.closed(), app.sockets.closed()) };
        let finish = timeout(app.limits().drain_timeout, drained).await;
        if finish.is_err() {
            cut(&app, &connections).await;
        }
        let tasks_ended = app.tasks.drain(TASKS_GRACE).await;
        workers.finish().await;
        finish.is_ok() && tasks_ended
    }
}

async fn accept(connections: &Arc<Connections>, listener: &TcpListener, workers: &Workers) {
    loop {
        let seat = connections.seat().await;
        let accepted = listener.accept().await;
        let accepted = accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer)));
        match accepted {
            Ok((stream, peer)) => connections.hand_over(stream, peer.ip(), seat, workers),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                if is_out_of_descriptors(&error) {
                    connections.close_idle();
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// For the process, or for the machine.
fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Takes on those that the kernel has let in already; closing the socket would reset them.
fn accept_waiting(connections: &Arc<Connections>, listener: TcpListener, workers: &Workers) {
    let Ok(listener) = listener.into_std() else { return };
    while let Some(seat) = connections.try_seat()
        && let Ok((stream, peer)) = listener.accept()
    {
        if stream.set_nonblocking(true).is_ok() {
            connections.hand_over(stream, peer.ip(), seat, workers);
        }
    }
}

/// Ends what did not end by itself.
async fn cut(app: &App, connections: &Connections) {
    app.cutting.store(true, Ordering::Relaxed);
    connections.order(Stage::Cut);
    app.sockets.abort.cancel();
    let _ = timeout(LAST_WORDS, async { tokio::join!(connections.closed(), app.sockets.closed()) })
        .await;
    connections.order(Stage::End);
    connections.closed().await;
    app.sockets.closed().await;
}

/// Memory, and the files of the certificate.
fn watch(app: &Arc<App>, tls: Option<Arc<Tls>>) {
    let job = Arc::clone(app);
    if let Some(gauge) = memory::Gauge::new(app.config.listener.memory_max) {
        app.tasks.supervise("watch memory", async move { watch_memory(&job, &gauge).await });
    }
    let job = Arc::clone(app);
    if let Some(tls) = tls {
        app.tasks.supervise("watch the certificate", async move { tls::follow(&job, &tls).await });
    }
}

const MEMORY_EVERY: Duration = Duration::from_millis(500);

async fn watch_memory(app: &App, gauge: &memory::Gauge) {
    let pause = || app.tasks.stop.run_until_cancelled(tokio::time::sleep(MEMORY_EVERY));
    while pause().await.is_some() {
        if let Some(used) = gauge.used()
            && app.memory.judge(used, gauge.most)
        {
            let level = app.memory.level();
            tracing::warn!(?level, used_bytes = used, max_bytes = gauge.most, "memory");
        }
    }
}

/// Cancelled at the first SIGTERM or SIGINT; a second one ends the process.
pub fn stop_signal() -> anyhow::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "it must outlive the drain of all tasks")]
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        next().await;
        token.cancel();
        next().await;
        tracing::warn!("second signal: ending at once");
        crate::telemetry::flush();
        #[expect(clippy::disallowed_methods, reason = "asked to, twice; the spool survives it")]
        std::process::exit(130);
    });
    Ok(stop)
}
