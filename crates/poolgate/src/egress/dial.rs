//! Making connections: directly, or through an account's proxy, and never directly instead.
//!
//! Proxies are spoken to over plain TCP. The upstream's TLS runs inside, so that a proxy sees a name
//! and a port. `CONNECT` and `socks5h` are given the name as it stands in the URL.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::resolve::{Names, Resolver};
use super::{USER_AGENT, Unreachable, cause};
use crate::config::{Login, Place, Protocol, Proxy};
use crate::metrics::Histogram;

/// A peer that is silent is asked after so long whether it is still there, ...
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// ... and so often again before it is given up.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_RETRIES: u32 = 3;
/// What was sent must have been acknowledged by then.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_mins(1);

type Tcp = TokioIo<TcpStream>;
pub type Stream = MaybeHttpsStream<Tcp>;

#[derive(Clone, Debug)]
pub struct Dialer {
    tls: Arc<rustls::ClientConfig>,
    names: Arc<Names>,
    /// A proxy may be anywhere: who named it is who could mark the account.
    proxies: HttpConnector<Resolver>,
    public: HttpsConnector<HttpConnector<Resolver>>,
    private: HttpsConnector<HttpConnector<Resolver>>,
    connect_timeout: Duration,
    connects: Arc<Histogram>,
}

impl Dialer {
    pub fn new(
        tls: rustls::ClientConfig,
        connect_timeout: Duration,
        connects: Arc<Histogram>,
        mut names: Names,
    ) -> Self {
        // In the time for a connection there is the connecting too.
        names.patience = names.patience.min(connect_timeout / 2);
        let names = Arc::new(names);
        let tcp = |private| tcp(connect_timeout, Resolver { names: Arc::clone(&names), private });
        let direct = |private| {
            HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .wrap_connector(tcp(private))
        };
        let (public, private) = (direct(false), direct(true));
        let proxies = tcp(true);
        Self { tls: Arc::new(tls), names, proxies, public, private, connect_timeout, connects }
    }

    pub async fn dial(&self, place: &Place) -> Result<Stream, Unreachable> {
        let Place { scheme, authority, way, .. } = place;
        let by = way.proxy.as_ref().map(|proxy| proxy.address.to_string());
        let late = || Unreachable::new("no connection in time", false).through(by.clone());
        let dialled = async {
            let Some(proxy) = &way.proxy else {
                let uri = origin(scheme.clone(), authority.clone())?;
                let direct = if way.private { &self.private } else { &self.public };
                let stream = direct.clone().call(uri).await;
                return stream.map_err(|error| Unreachable::of(&*error));
            };
            let tunnel = self.tunnel(proxy, way.private, scheme, authority).await;
            let tunnel = tunnel.map_err(|error| error.through(by.clone()))?;
            let uri = origin(scheme.clone(), authority.clone())?;
            // TLS is spoken with the upstream: its failures are the upstream's.
            let mut inside = HttpsConnector::from((Made(Some(tunnel)), Arc::clone(&self.tls)));
            inside.call(uri).await.map_err(|error| Unreachable::of(&*error))
        };
        let began = Instant::now();
        let answer = timeout(self.connect_timeout, dialled).await;
        self.connects.observe(began.elapsed());
        answer.unwrap_or_else(|_| Err(late()))
    }

    /// Through the proxy to the upstream's port.
    async fn tunnel(
        &self,
        proxy: &Proxy,
        private: bool,
        scheme: &Scheme,
        authority: &Authority,
    ) -> Result<Tcp, Unreachable> {
        let near = self.proxies.clone().call(origin(Scheme::HTTP, proxy.address.clone())?).await;
        let near = near.map_err(|error| Unreachable::of(&error))?;
        let standard = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(standard));
        match proxy.protocol {
            Protocol::Http => connect(near, host, port, proxy.login.as_ref()).await,
            Protocol::Socks5 => {
                let name = host.trim_matches(['[', ']']);
                let found = self.names.lookup(name, port, private).await;
                let found = found.map_err(|error| Unreachable::of(&error))?.next();
                let found =
                    found.ok_or_else(|| Unreachable::new("the name has no address", true))?;
                socks(near, &found.to_string(), proxy.login.as_ref()).await
            }
            Protocol::Socks5h => socks(near, &format!("{host}:{port}"), proxy.login.as_ref()).await,
        }
    }
}

fn tcp(connect_timeout: Duration, resolver: Resolver) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEP_ALIVE));
    tcp.set_keepalive_interval(Some(KEEP_ALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp
}

fn origin(scheme: Scheme, authority: Authority) -> Result<Uri, Unreachable> {
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
    uri.map_err(|error| Unreachable::of(&error))
}

/// `CONNECT` (RFC 9110, 9.3.6).
async fn connect(
    near: Tcp,
    host: &str,
    port: u16,
    login: Option<&Login>,
) -> Result<Tcp, Unreachable> {
    let target = format!("{host}:{port}");
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(header::HOST, &target)
        .header(header::USER_AGENT, USER_AGENT)
        .body(Empty::<Bytes>::new())
        .map_err(|error| Unreachable::of(&error))?;
    if let Some(login) = login {
        let basic = STANDARD.encode(format!("{}:{}", login.user.expose(), login.password.expose()));
        let basic = HeaderValue::from_str(&format!("Basic {basic}"));
        let mut basic = basic.map_err(|error| Unreachable::of(&error))?;
        basic.set_sensitive(true);
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, basic);
    }
    let handshake = http1::handshake(near).await;
    let (mut sender, connection) = handshake.map_err(|error| Unreachable::of(&error))?;
    // It is polled beside the question, and ends when the sender is dropped or the stream handed over.
    let asked = async move {
        let response = sender.send_request(request).await.map_err(|e| Unreachable::of(&e))?;
        match response.status() {
            status if status.is_success() => {
                hyper::upgrade::on(response).await.map_err(|error| Unreachable::of(&error))
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(refused_login(login)),
            status => Err(Unreachable::new(
                format!("it answered {} to CONNECT", status.as_u16()),
                status.is_client_error(),
            )),
        }
    };
    let (asked, _) = join(asked, connection.with_upgrades()).await;
    let parts = asked?.downcast::<Tcp>().ok().filter(|parts| parts.read_buf.is_empty());
    // No upstream of ours speaks first.
    Ok(parts.ok_or_else(|| Unreachable::new("it sent more than an answer", false))?.io)
}

/// SOCKS5 (RFC 1928, 1929). `target`: host and port.
async fn socks(near: Tcp, target: &str, login: Option<&Login>) -> Result<Tcp, Unreachable> {
    let target: Authority = target.parse().map_err(|error| Unreachable::of(&error))?;
    let target = origin(Scheme::HTTP, target)?;
    let mut handshake = SocksV5::new(target.clone(), Made(Some(near)));
    if let Some(Login { user, password }) = login {
        handshake = handshake.with_auth(user.expose().into(), password.expose().into());
    }
    handshake.call(target).await.map_err(|error| {
        // Its kinds cannot be named from here; the words are those of hyper-util 0.1.21.
        let text = cause(&error);
        let words = text.rsplit("SOCKS error: ").next().unwrap_or(&text);
        match words {
            "credentials not accepted"
            | "server does not support user/pass authentication"
            | "server implements authentication incorrectly" => refused_login(login),
            words => Unreachable::new(format!("SOCKS: {words}"), words.contains("not allowed")),
        }
    })
}

fn refused_login(login: Option<&Login>) -> Unreachable {
    let words = match login {
        Some(_) => "it refuses this user name and password",
        None => "it wants a user name and password",
    };
    Unreachable::new(words, true)
}

/// A connection that is there already.
struct Made(Option<Tcp>);

impl Service<Uri> for Made {
    type Response = Tcp;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Tcp>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().ok_or_else(|| io::Error::other("it was taken")))
    }
}
