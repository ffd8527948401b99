//! Connections of one thread, kept for the next request to the same place.
//!
//! hyper does the protocol; this only remembers who is idle. A general client does it too, for 14,000
//! of a small request's 190,000 instructions where this takes 5,000 (callgrind): it makes a task to
//! watch each connection come back, and hashes, formats and boxes on the way. Here a body hands its
//! connection back at its end, and whoever takes one looks whether it is still good.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::dial::Dialer;
use super::received::Received;
use super::{SendError, Unreachable, cause};
use crate::config::Place;
use crate::json::TextBody;
use crate::ws::{Socket, derive_accept_key};

/// Upstreams close idle connections themselves, most of them later than this.
const IDLE_FOR: Duration = Duration::from_mins(1);
/// A connection that was closed while it was idle shows within a round trip or two. What is lost later
/// may have been worked on.
const STALE_WITHIN: Duration = Duration::from_secs(1);
/// What is gathered for one write, and read at one go from an upstream that is fast. A body of 1 MB cost a
/// tenth more with half of it.
const BUFFER_MAX: usize = 512 << 10;

#[derive(Debug)]
pub struct Connections {
    dialer: Dialer,
    idle: Mutex<HashMap<Arc<Place>, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<TextBody>,
    since: Instant,
}

/// What became of an upgrade.
#[derive(Debug)]
pub enum Upgrade {
    /// With the headers of the answer.
    Open(HeaderMap, Socket),
    Refused(Response<Received>),
}

impl Connections {
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, idle: Mutex::default() }
    }

    /// To the head of the answer.
    pub async fn send(
        self: &Arc<Self>,
        mut request: Request<TextBody>,
        place: &Arc<Place>,
    ) -> Result<Response<Received>, SendError> {
        request.headers_mut().insert(header::HOST, place.host.clone());
        loop {
            let (mut sender, used) = match self.take(place) {
                Some((sender, at)) => (sender, Some(at)),
                // Boxed: seldom needed, and large.
                None => (Box::pin(self.connect(place)).await?, None),
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let back = Some((Arc::clone(self), Arc::clone(place), sender));
                    return Ok(response.map(|body| Received::new(body, back)));
                }
                // The upstream closed it while it was idle: nothing has been sent.
                Err(mut error) => match error.take_message().filter(|_| used.is_some()) {
                    Some(unsent) => request = unsent,
                    None => return Err(self.lost(place, used, &error.into_error())),
                },
            }
        }
    }

    /// Who closes one idle connection has often closed them all.
    fn lost(&self, place: &Place, used: Option<Instant>, error: &hyper::Error) -> SendError {
        let text = cause(error);
        match used {
            Some(at) if at.elapsed() < STALE_WITHIN && is_gone(error) => {
                self.idle.lock().remove(place);
                SendError::Stale(text)
            }
            _ => SendError::Broke(text),
        }
    }

    /// A connection of its own, and the upstream's answer to an upgrade.
    pub async fn upgrade(
        &self,
        mut request: Request<TextBody>,
        place: &Arc<Place>,
    ) -> Result<Upgrade, SendError> {
        request.headers_mut().insert(header::HOST, place.host.clone());
        let accept =
            request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        let mut sender = self.connect(place).await?;
        let broke = |error: hyper::Error| SendError::Broke(cause(&error));
        let mut response = sender.send_request(request).await.map_err(broke)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Upgrade::Refused(response.map(|body| Received::new(body, None))));
        }
        let told = response.headers();
        let is_accepted = told.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes)
            == accept.as_deref().map(str::as_bytes);
        // We offer no extension; with one that it uses all the same, its frames would be misread.
        if !is_accepted || told.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err(SendError::Broke("it opened a socket that was not asked for".into()));
        }
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(broke)?;
        let head = response.into_parts().0.headers;
        Ok(Upgrade::Open(head, Socket::client(upgraded).await))
    }

    fn take(&self, place: &Place) -> Option<(SendRequest<TextBody>, Instant)> {
        let mut idle = self.idle.lock();
        let here = idle.get_mut(place)?;
        let now = Instant::now();
        // The latest first: the others may become old and be closed. One that has just come back may
        // need a moment to be ready.
        let good = |idle: &Idle| idle.sender.is_ready() && now < idle.since + IDLE_FOR;
        let at = here.iter().rposition(good)?;
        Some((here.swap_remove(at).sender, now))
    }

    pub(super) fn put(&self, place: Arc<Place>, sender: SendRequest<TextBody>) {
        if !sender.is_closed() {
            let idle = Idle { sender, since: Instant::now() };
            self.idle.lock().entry(place).or_default().push(idle);
        }
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self) {
        let now = Instant::now();
        let good = |idle: &Idle| !idle.sender.is_closed() && now < idle.since + IDLE_FOR;
        self.idle.lock().retain(|_, here| {
            here.retain(good);
            !here.is_empty()
        });
    }

    async fn connect(&self, place: &Place) -> Result<SendRequest<TextBody>, SendError> {
        let stream = self.dialer.dial(place).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .handshake(stream)
            .await
            .map_err(|error| Unreachable::of(&error))?;
        TokioExecutor::new().execute(async move {
            // Whoever waits for the answer is told as well.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        Ok(sender)
    }
}

/// Closed or reset, before there was an answer.
fn is_gone(error: &hyper::Error) -> bool {
    use std::io::ErrorKind;
    let io = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let kind = io.map(std::io::Error::kind);
    error.is_incomplete_message()
        || matches!(
            kind,
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
        )
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
