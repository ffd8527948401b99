//! Connections of clients, each a task of its own, from accepting to closing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::respond::respond;
use super::socket;
use super::state::State;
use super::tls::Tls;
use super::transport::{Transport, watch_peer};
use super::wire::{Patience, Wire};
use crate::app::App;
use crate::config::Listener;
use crate::metrics::Shed;
use crate::strict::{HEAD_MAX, HEADERS_MAX};
use crate::workers::{Place, Workers};

const H2_STREAMS: u32 = 100;
const H2_WINDOW: u32 = 1 << 20;
/// Bytes of one answer that wait for a client on HTTP/2.
const H2_SEND_BUFFER: usize = 64 << 10;
const H2_PING: Duration = Duration::from_secs(20);
/// Bytes that are read ahead, and bytes of an answer that wait for the client. Larger than any head.
const H1_BUFFER: usize = 256 << 10;
/// While there is no room for another connection, idle ones are closed so often.
const ROOM_EVERY: Duration = Duration::from_secs(1);
/// Connections from one address.
const PER_ADDRESS: usize = 256;
/// How long a connection that was just made may take to send its first request when all are closed.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// What all connections are to do; later ones include the earlier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    #[default]
    Serve,
    /// Finish what runs, then close.
    Close,
    /// Say a last word where there is one.
    Cut,
    End,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    stage: Stage,
    /// Raised when idle connections are to make room.
    round: u32,
}

#[derive(Debug)]
pub struct Connections {
    pub app: Arc<App>,
    pub tls: Option<Arc<Tls>>,
    builder: auto::Builder<TokioExecutor>,
    settings: Listener,
    orders: watch::Sender<Orders>,
    open: TaskTracker,
    /// Those that have not sent a request yet.
    fresh: TaskTracker,
    seats: Arc<Semaphore>,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Room for one connection, given back when it is over, as a WebSocket too.
#[derive(Debug)]
pub struct Seat {
    _any: OwnedSemaphorePermit,
    _place: Place,
    address: IpAddr,
    addresses: Weak<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(addresses) = self.addresses.upgrade() else { return };
        let mut addresses = addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

impl Connections {
    pub fn new(app: Arc<App>, tls: Option<Arc<Tls>>) -> Self {
        let settings = app.config.listener.clone();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // It runs from the end of the request before; `Wire` bounds the head itself.
            .header_read_timeout(settings.keep_alive.max(settings.head_timeout * 2))
            .max_headers(HEADERS_MAX)
            .max_buf_size(H1_BUFFER);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER)
            .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(H2_PING);
        // Each client may need a descriptor more, for its upstream, and the store needs some too.
        let descriptors = socket::descriptors().map_or(usize::MAX, |count| count / 5 * 4);
        let seats = settings.connections.min(descriptors).min(Semaphore::MAX_PERMITS);
        Self {
            app,
            tls,
            builder,
            settings,
            orders: watch::Sender::default(),
            open: TaskTracker::new(),
            fresh: TaskTracker::new(),
            seats: Arc::new(Semaphore::new(seats)),
            addresses: Arc::default(),
        }
    }

    /// Room for one more; as long as there is none, idle connections are closed.
    pub async fn seat(&self) -> OwnedSemaphorePermit {
        if let Some(seat) = self.try_seat() {
            return seat;
        }
        tracing::warn!("as many connections as there may be: idle ones are closed");
        let mut seat = pin!(Arc::clone(&self.seats).acquire_owned());
        loop {
            self.close_idle();
            if let Ok(seat) = timeout(ROOM_EVERY, seat.as_mut()).await {
                return seat.expect("it is never closed");
            }
        }
    }

    pub fn try_seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seats).try_acquire_owned().ok()
    }

    pub fn close_idle(&self) {
        self.orders.send_modify(|orders| orders.round = orders.round.wrapping_add(1));
    }

    pub fn order(&self, stage: Stage) {
        self.orders.send_modify(|orders| orders.stage = stage);
    }

    /// Resolves when none is left.
    pub async fn closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// Resolves when each has sent a request, or has had time to.
    pub async fn begun(&self) {
        self.fresh.close();
        let _ = timeout(FIRST_REQUEST, self.fresh.wait()).await;
    }

    /// To the worker with the fewest connections, which takes the socket over into its own runtime.
    pub fn hand_over(
        self: &Arc<Self>,
        stream: std::net::TcpStream,
        address: IpAddr,
        any: OwnedSemaphorePermit,
        workers: &Workers,
    ) {
        let address = address.to_canonical();
        let most = self
            .settings
            .per_address
            .unwrap_or_else(|| if address.is_loopback() { 0 } else { PER_ADDRESS });
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_default();
        if most > 0 && *count >= most {
            self.app.metrics.shed(Shed::Connections);
            tracing::debug!("more connections than one address may have");
            return;
        }
        *count += 1;
        drop(addresses);
        let (this, addresses) = (Arc::clone(self), Arc::downgrade(&self.addresses));
        let fresh = self.fresh.token();
        workers.run(move |place| {
            let seat = Seat { _any: any, _place: place, address, addresses };
            match TcpStream::from_std(stream) {
                Ok(stream) => {
                    let open = this.open.token();
                    let app = Arc::clone(&this.app);
                    app.tasks.spawn(async move {
                        this.serve(stream, seat, fresh).await;
                        drop(open);
                    });
                }
                Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
            }
        });
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, seat: Seat, fresh: TaskTrackerToken) {
        if let Err(error) = watch_peer(&stream) {
            tracing::debug!(%error, "settings of a connection");
        }
        let mut orders = self.orders.subscribe();
        let ended = orders.wait_for(|orders| orders.stage == Stage::End);
        let Some(transport) = (tokio::select! {
            transport = self.secure(stream) => transport,
            _ = ended => None,
        }) else {
            return;
        };
        let state = Arc::new(State { address: Some(seat.address), ..State::default() });
        let Listener { head_timeout: head, keep_alive: first, write_timeout: write, .. } =
            self.settings;
        let wire = Wire::new(transport, Arc::clone(&state), Patience { head, first, write }, seat);
        let (app, of) = (Arc::clone(&self.app), Arc::clone(&state));
        let service = service_fn(move |request| {
            // It is large, and would be moved twice on its way into hyper.
            let answer = Box::pin(respond(Arc::clone(&app), Arc::clone(&of), request));
            async { Ok::<_, Infallible>(answer.await) }
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(wire), service);
        let connection = pin!(connection.into_owned());
        let mut watch = Watch {
            state,
            settings: &self.settings,
            fresh: Some(fresh),
            began: Instant::now(),
            round: self.orders.borrow().round,
            close_by: None,
            is_closing: false,
            look_at: None,
        };
        // Errors here are the client's: a connection cut, or bytes that are no HTTP.
        if let Some(Err(error)) = watch.over(connection, self.orders.subscribe()).await {
            tracing::debug!(error, "connection ended");
        }
    }

    /// `None`: the client and we came to no terms.
    async fn secure(&self, stream: TcpStream) -> Option<Transport> {
        let Some(tls) = &self.tls else { return Some(Transport::Plain(stream)) };
        match timeout(self.settings.handshake_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => Some(Transport::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS");
                None
            }
            Err(_) => {
                tracing::debug!("the handshake of TLS took too long");
                None
            }
        }
    }
}

/// What becomes of one connection.
struct Watch<'a> {
    state: Arc<State>,
    settings: &'a Listener,
    /// Until the first request.
    fresh: Option<TaskTrackerToken>,
    began: Instant,
    round: u32,
    /// It is to be closed once its first request has come, or then.
    close_by: Option<Instant>,
    is_closing: bool,
    /// When streams are looked at for clients that take nothing.
    look_at: Option<Instant>,
}

impl Watch<'_> {
    /// Until the connection has ended, or was ended (`None`).
    async fn over<C>(
        &mut self,
        mut connection: Pin<&mut C>,
        mut orders: watch::Receiver<Orders>,
    ) -> Option<Result<(), String>>
    where
        C: Closable,
    {
        // One that was given before this began counts too.
        orders.mark_changed();
        loop {
            let close_by = self.close_by.filter(|_| !self.is_closing);
            let wake = close_by.into_iter().chain(self.look_at).min();
            let polled = poll_fn(|cx| match connection.as_mut().poll_on(cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if self.is_news() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            tokio::select! {
                biased;
                ended = polled => if ended.is_some() {
                    return ended;
                },
                _ = orders.changed() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            let now = *orders.borrow_and_update();
            if !self.react(connection.as_mut(), now) {
                return None;
            }
        }
    }

    fn is_news(&self) -> bool {
        let requests = self.state.requests.load(Ordering::Relaxed);
        let is_worn = requests >= self.settings.requests && !self.is_closing;
        (requests > 0 && self.fresh.is_some())
            || is_worn
            || self.state.abused.get()
            || (self.look_at.is_none() && self.state.has_streams())
    }

    /// False: it is over.
    fn react<C: Closable>(&mut self, connection: Pin<&mut C>, orders: Orders) -> bool {
        let now = Instant::now();
        let requests = self.state.requests.load(Ordering::Relaxed);
        if orders.stage == Stage::End || self.state.abused.get() {
            return false;
        }
        if orders.stage == Stage::Cut {
            self.state.wake_streams();
        }
        if requests > 0 {
            self.fresh = None;
        }
        // The first request of a new connection may be on its way.
        let has_come = requests > 0 || now >= self.began + FIRST_REQUEST;
        let is_idle = has_come && self.state.running.load(Ordering::Relaxed) == 0;
        let makes_room =
            std::mem::replace(&mut self.round, orders.round) != orders.round && is_idle;
        let stops = orders.stage >= Stage::Close;
        if stops && self.close_by.is_none() {
            self.close_by = Some(now + FIRST_REQUEST);
        }
        let has_had_time = requests > 0 || self.close_by.is_some_and(|by| by <= now);
        let closes = makes_room || requests >= self.settings.requests || (stops && has_had_time);
        if closes && !self.is_closing {
            self.is_closing = true;
            connection.close();
        }
        self.look_at = self.state.has_streams().then(|| match self.look_at {
            Some(at) if at > now => at,
            _ => {
                self.state.give_up_streams(self.settings.write_timeout, now);
                now + self.settings.write_timeout / 4
            }
        });
        true
    }
}

/// hyper's connection, whatever its types.
trait Closable {
    fn poll_on(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Result<(), String>>;
    fn close(self: Pin<&mut Self>);
}

impl<I, S, B> Closable for auto::UpgradeableConnection<'static, I, S, TokioExecutor>
where
    S: hyper::service::Service<http::Request<hyper::body::Incoming>, Response = http::Response<B>>
        + 'static,
    S::Future: 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    TokioExecutor: hyper_util::server::conn::auto::HttpServerConnExec<S::Future, B>,
{
    fn poll_on(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Result<(), String>> {
        std::future::Future::poll(self, cx).map(|ended| ended.map_err(|error| error.to_string()))
    }

    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
