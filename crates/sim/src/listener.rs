//! Listening sockets: accepting connections and closing at once when told to.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::server::{self, Connection};
use crate::sim::World;
use crate::wire::{Ending, Wire};

/// hyper hands a body over faster than a client may read it; this much at most.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Taken out on close, so that the port refuses from then on and not only when a task runs.
type Socket = Arc<Mutex<Option<TcpListener>>>;

#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    socket: Socket,
    stop: CancellationToken,
}

impl Listener {
    /// Binds and serves until closed, dropped, or the simulator stops.
    pub async fn bind(world: &Arc<World>, address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        let socket = Arc::new(Mutex::new(Some(socket)));
        let stop = world.tasks.stop.child_token();
        world.tasks.spawn(accept(Arc::clone(world), Arc::clone(&socket), stop.clone()));
        Ok(Self { address, socket, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn close(&mut self) {
        self.socket.lock().take();
        self.stop.cancel();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

async fn accept(world: Arc<World>, socket: Socket, stop: CancellationToken) {
    let next = || {
        std::future::poll_fn(|cx| match &*socket.lock() {
            Some(socket) => socket.poll_accept(cx).map(Some),
            None => Poll::Ready(None),
        })
    };
    while let Some(Some(accepted)) = stop.run_until_cancelled(next()).await {
        match accepted {
            Ok((stream, _)) => {
                let serving = connection(Arc::clone(&world), stream, stop.clone());
                let stop = stop.clone();
                world.tasks.spawn(async move {
                    stop.run_until_cancelled(serving).await;
                });
            }
            // Out of descriptors, most likely: the backlog waits.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    socket.lock().take();
}

async fn connection(world: Arc<World>, stream: TcpStream, stop: CancellationToken) {
    // Only slower without it.
    let _ = stream.set_nodelay(true);
    let ending = Arc::new(Ending::default());
    let io = TokioIo::new(Wire::new(stream, Arc::clone(&ending)));
    let on = Connection { ending, stop };
    let mut builder = Builder::new(world.tasks.clone());
    builder.http1().max_buf_size(WRITE_BUFFER_BYTES).header_read_timeout(None);
    let service = service_fn(move |request| server::serve(Arc::clone(&world), on.clone(), request));
    // How a connection ended is in the journal.
    let _ = pin!(builder.serve_connection_with_upgrades(io, service)).await;
}
