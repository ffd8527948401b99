//! The process from start to end: bind, serve, drain.
//!
//! The first SIGTERM or SIGINT stops accepting and lets running requests finish, up to the drain
//! time-out; a second one ends at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::gateway;
use crate::workers::{Place, Workers};

/// For a request's head, and, since hyper's timer runs from the end of the request before, for an
/// idle connection too: shorter would cut connections that clients keep for their next turn.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
const HEADERS_MAX: usize = 100;
const HEAD_MAX_BYTES: usize = 64 << 10;
const H2_STREAMS: u32 = 100;
const H2_WINDOW: u32 = 1 << 20;
/// When no descriptor is free, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For background tasks, after the last request.
const TASKS_GRACE: Duration = Duration::from_secs(10);

/// A bound listener, serving once `run` is polled.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Server {
    pub async fn bind(app: Arc<App>) -> anyhow::Result<Self> {
        let wanted = app.config.listen;
        let listener = TcpListener::bind(wanted)
            .await
            .with_context(|| format!("listening on {wanted}: is something else using the port?"))?;
        let address = listener.local_addr()?;
        Ok(Self { app, listener, address })
    }

    /// Serves until `stop`, then drains. `false`: requests were still running at the time-out.
    pub async fn run(self, stop: CancellationToken) -> bool {
        let Self { app, listener, .. } = self;
        let graceful = GracefulShutdown::new();
        let connections = Arc::new(Connections::new(Arc::clone(&app)));
        let workers = match Workers::start(app.config.workers) {
            Ok(workers) => workers,
            Err(error) => {
                tracing::error!(%error, "worker threads could not be started");
                return false;
            }
        };
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => connections.hand_over(stream, &workers, graceful.watcher()),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        app.draining.cancel();
        drop(listener);
        let drained = async { tokio::join!(graceful.shutdown(), app.sockets.closed()) };
        let finish = tokio::time::timeout(app.config.limits.drain_timeout, drained).await;
        connections.abort.cancel();
        app.sockets.abort.cancel();
        app.sockets.closed().await;
        let tasks_ended = app.tasks.drain(TASKS_GRACE).await;
        workers.finish().await;
        finish.is_ok() && tasks_ended
    }
}

struct Connections {
    app: Arc<App>,
    builder: auto::Builder<TokioExecutor>,
    /// Ends what the drain did not.
    abort: CancellationToken,
}

impl Connections {
    fn new(app: Arc<App>) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_MAX_BYTES.max(256 << 10));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_header_list_size(u32::try_from(HEAD_MAX_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(20));
        Self { app, builder, abort: CancellationToken::new() }
    }

    /// To the worker with the fewest connections, which takes the socket over into its own runtime.
    fn hand_over(self: &Arc<Self>, stream: TcpStream, workers: &Workers, watcher: Watcher) {
        let this = Arc::clone(self);
        match stream.into_std() {
            Ok(stream) => workers.run(move |place| match TcpStream::from_std(stream) {
                Ok(stream) => this.serve(stream, place, watcher),
                Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
            }),
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }

    fn serve(&self, stream: TcpStream, place: Place, watcher: Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "nodelay");
        }
        let app = Arc::clone(&self.app);
        let service = hyper::service::service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { Ok::<_, std::convert::Infallible>(gateway::handle(app, request).await) }
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let connection = connection.into_owned();
        let connection = watcher.watch(connection);
        let abort = self.abort.clone();
        self.app.tasks.spawn(async move {
            let _place = place;
            // Errors here are the client's: a connection cut, or bytes that are no HTTP.
            if let Some(Err(error)) = abort.run_until_cancelled(connection).await {
                tracing::debug!(%error, "connection ended");
            }
        });
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
        #[expect(clippy::disallowed_methods, reason = "asked to, twice; the spool survives it")]
        std::process::exit(130);
    });
    Ok(stop)
}
