//! The way out: connections to upstreams.
//!
//! One HTTP/1.1 client for all: a stream has its connection to itself, so cancelling is closing, and
//! no stream waits behind another's window. Nothing is followed, decoded or added on the way.

mod connections;
mod dial;
mod pinned;
mod received;
mod resolve;
mod sockets;
mod unreachable;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Limited};

use crate::config::{Place, Way};
use crate::json::{Text, TextBody};
use crate::metrics::Histogram;
use crate::secret::Secret;
use crate::workers;

use connections::Connections;
pub use connections::Upgrade;
use dial::Dialer;
pub use received::{BodyError, Received};
use resolve::Names;
pub use sockets::{Interjected, Leg, NotBegun, Slot, Turn};
pub use unreachable::Unreachable;

pub const USER_AGENT: &str = concat!("poolgate/", env!("CARGO_PKG_VERSION"));

/// Most a small answer of a provider's own endpoint may hold.
const SMALL_MAX: usize = 4 << 20;

/// Connections of each worker, and those of all other threads, so that a request and the connection
/// it uses stay on one thread.
#[derive(Clone, Debug)]
pub struct Egress {
    connections: Arc<[Arc<Connections>]>,
    connects: Arc<Histogram>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Connect(#[from] Unreachable),
    #[error("the connection broke: {0}")]
    Broke(String),
    /// A kept connection was gone when it was used again: most likely the upstream had closed it while
    /// the request was on its way. On a new one it may be sent once more.
    #[error("a kept connection was gone: {0}")]
    Stale(String),
    #[error("no answer in time")]
    Timeout,
}

impl Egress {
    pub fn new(connect_timeout: Duration, workers: usize) -> anyhow::Result<Self> {
        Ok(Self::over(tls_config()?, connect_timeout, workers))
    }

    /// For one host alone, which is known by its certificate.
    pub fn pinned(cert_file: &Path, connect_timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self::over(pinned::config(cert_file)?, connect_timeout, 0))
    }

    fn over(tls: rustls::ClientConfig, connect_timeout: Duration, workers: usize) -> Self {
        let connects = Arc::new(Histogram::default());
        let dialer = Dialer::new(tls, connect_timeout, Arc::clone(&connects), Names::system());
        let connections = |_| Arc::new(Connections::new(dialer.clone()));
        Self { connections: (0..=workers).map(connections).collect(), connects }
    }

    fn mine(&self) -> &Arc<Connections> {
        &self.connections[workers::index() % self.connections.len()]
    }

    /// To the head of the answer. Dropping the future, or later the body, closes the connection.
    /// `request` has a path alone, and no `host`; nothing of it goes anywhere else, or by another way.
    pub async fn send(
        &self,
        request: Request<TextBody>,
        place: &Arc<Place>,
        head_timeout: Duration,
    ) -> Result<Response<Received>, SendError> {
        let answer = tokio::time::timeout(head_timeout, self.mine().send(request, place)).await;
        answer.unwrap_or(Err(SendError::Timeout))
    }

    /// A socket of its own.
    pub async fn upgrade(
        &self,
        request: Request<TextBody>,
        place: &Arc<Place>,
        within: Duration,
    ) -> Result<Upgrade, SendError> {
        let answer = tokio::time::timeout(within, self.mine().upgrade(request, place)).await;
        answer.unwrap_or(Err(SendError::Timeout))
    }

    /// Closes connections that have been idle for too long.
    pub fn sweep(&self) {
        self.connections.iter().for_each(|connections| connections.sweep());
    }

    /// How long new connections took, failed ones too.
    pub fn connects(&self) -> &Histogram {
        &self.connects
    }

    /// A call of our own, with a small JSON answer read whole. The body is JSON unless `headers` say
    /// otherwise.
    pub async fn call(
        &self,
        method: Method,
        uri: Uri,
        way: &Way,
        headers: &[(&'static str, Secret)],
        body: Option<String>,
        timeout: Duration,
    ) -> anyhow::Result<(http::response::Parts, Bytes)> {
        let place = Arc::new(Place::of(&uri, way.clone()).context("a URL without a host")?);
        let path = uri.into_parts().path_and_query.context("a URL without a path")?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "identity");
        if body.is_some() && headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, value.expose());
        }
        let request = request.body(Text::from(Bytes::from(body.unwrap_or_default())).into())?;
        let answer = async {
            let (head, body) = self.send(request, &place, timeout).await?.into_parts();
            let body = Limited::new(body, SMALL_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
            anyhow::Ok((head, body.to_bytes()))
        };
        tokio::time::timeout(timeout, answer).await.context("no answer in time")?
    }
}

/// The innermost cause says most: "connection refused" rather than "client error (Connect)".
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Trusts what the system trusts, which may include a company's own authority; on a system without
/// certificates, Mozilla's list.
fn tls_config() -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
