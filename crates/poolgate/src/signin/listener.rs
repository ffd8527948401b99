//! Waiting on this machine for a browser to come back.
//!
//! Bound to 127.0.0.1 and open only while a sign-in waits. One small GET is read per connection, and
//! a few connections at a time, since browsers open some that they never use. Any page in the
//! browser can call it, so what does not carry the state is answered and forgotten. A browser that
//! came back rightly is told in the end whether the sign-in succeeded.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Browser, CallbackError, Return, Vendor};

/// Longest request head that is read, in bytes.
const HEAD_MAX: usize = 16 << 10;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be waited for at the same time.
const CONNECTIONS: usize = 32;

#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    pub port: u16,
}

/// A browser that waits for its page.
#[derive(Debug)]
pub struct Page(TcpStream);

impl Listener {
    /// At the first of the vendor's ports that is free, or at `port`.
    pub async fn bind(vendor: &Vendor, port: Option<u16>) -> io::Result<Self> {
        let mut failure = io::Error::other("no port");
        let given = port.as_ref().map(std::slice::from_ref);
        for port in given.unwrap_or(vendor.ports()) {
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).await {
                Ok(socket) => {
                    let port = socket.local_addr()?.port();
                    return Ok(Self { socket, port });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The browser's answer to `begun`, and the browser. Others are answered on the way. Cancel-safe:
    /// at worst a browser is left without a page.
    pub async fn wait(&self, begun: &Browser, path: &str) -> (Result<Return, CallbackError>, Page) {
        let mut open = FuturesUnordered::new();
        loop {
            let accepts = open.len() < CONNECTIONS;
            let accepted = pin!(self.socket.accept());
            tokio::select! {
                accepted = accepted, if accepts => match accepted {
                    Ok((stream, _)) => open.push(serve(stream, begun, path)),
                    // Too many files are open, say.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(served) = open.next() => if let Some(found) = served {
                    return found;
                },
            }
        }
    }
}

/// `None`: it was not what is waited for.
async fn serve(
    mut stream: TcpStream,
    begun: &Browser,
    path: &str,
) -> Option<(Result<Return, CallbackError>, Page)> {
    let head = tokio::time::timeout(READ_TIMEOUT, read_head(&mut stream)).await.ok()??;
    let Some(target) = target(&head) else {
        answer(&mut stream, "405 Method Not Allowed", "Only a browser belongs here.").await;
        return None;
    };
    let (found, query) = target.split_once('?').unwrap_or((target, ""));
    if found != path {
        answer(&mut stream, "404 Not Found", "There is nothing here.").await;
        return None;
    }
    match begun.called_back(query) {
        Err(error) if !error.is_final() => {
            let text =
                "This does not belong to the sign-in that is waited for. Nothing was changed.";
            answer(&mut stream, "400 Bad Request", text).await;
            None
        }
        back => Some((back, Page(stream))),
    }
}

/// Up to the empty line; `None`: it ended or is too long.
async fn read_head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 2048];
    while head.len() < HEAD_MAX {
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(&part[..count]);
        if head.windows(4).any(|four| four == b"\r\n\r\n") {
            return Some(head);
        }
    }
    None
}

/// What a GET asks for.
fn target(head: &[u8]) -> Option<&str> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    (method == "GET" && target.starts_with('/') && version.starts_with("HTTP/1.")).then_some(target)
}

impl Page {
    /// Tells the browser how it ended. `text` is shown as it is.
    pub async fn show(mut self, succeeded: bool, text: &str) {
        let status = if succeeded { "200 OK" } else { "400 Bad Request" };
        answer(&mut self.0, status, text).await;
    }
}

/// A person's browser that went away misses nothing.
async fn answer(stream: &mut TcpStream, status: &str, text: &str) {
    let body = html(text);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\ncache-control: no-store\r\nreferrer-policy: no-referrer\r\n\
         x-content-type-options: nosniff\r\ncontent-security-policy: default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'\r\n\r\n",
        body.len()
    );
    let write = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await?;
        // What is still to be read would turn the close into a reset, and the page with it.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(WRITE_TIMEOUT, write).await;
}

/// The script takes the code out of the address bar and the history; it is spent, but nobody's.
fn html(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\
         'width=device-width'><title>poolgate</title><style>body{{font:16px/1.5 system-ui;\
         margin:20vh auto;max-width:32em;padding:0 1em;text-align:center;color-scheme:light dark}}\
         </style><h1>poolgate</h1><p>{text}</p>\
         <script>history.replaceState(null,'',location.pathname)</script></html>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_a_get() {
        let cases = [
            (
                "GET /auth/callback?code=c HTTP/1.1\r\nHost: x\r\n\r\n",
                Some("/auth/callback?code=c"),
            ),
            ("GET / HTTP/1.0\r\n\r\n", Some("/")),
            ("POST /auth/callback HTTP/1.1\r\n\r\n", None),
            ("GET http://x/ HTTP/1.1\r\n\r\n", None),
            ("GET /\r\n\r\n", None),
            ("PRI * HTTP/2.0\r\n\r\n", None),
        ];
        for (head, want) in cases {
            assert_eq!(target(head.as_bytes()), want, "{head}");
        }
    }

    #[test]
    fn a_page_shows_text_and_nothing_else() {
        assert!(html("a <b> & c").contains("a &lt;b&gt; &amp; c"));
    }
}
