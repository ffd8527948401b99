//! A client that costs little: HTTP/1.1 by hand, one request after the other on a connection kept
//! open.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::socket::Socket;
use crate::work::{Kind, Work};

const ANSWER_MAX_BYTES: usize = 1 << 20;
/// Names the first event with text.
pub const TEXT: &[u8] = b"response.output_text.delta";

/// How long things took, since the request was begun to be sent.
#[derive(Clone, Copy)]
pub struct Times {
    pub whole: Duration,
    /// To the first byte of the body.
    pub first: Duration,
    /// To the first event with text.
    pub text: Duration,
}

pub enum Connection {
    Http(Http),
    Socket(Box<Socket>),
}

impl Connection {
    pub async fn open(work: &Work) -> io::Result<Self> {
        Ok(match work.kind {
            Kind::Turn => Self::Socket(Box::new(Socket::open(work.address, &work.key).await?)),
            Kind::Json | Kind::Events => Self::Http(Http::open(work.address).await?),
        })
    }

    pub async fn exchange(&mut self, request: &[u8], streams: bool) -> io::Result<Times> {
        match self {
            Self::Http(http) => http.exchange(request, streams).await,
            Self::Socket(socket) => socket.exchange(request).await,
        }
    }

    /// What of the last answer is the same each time.
    pub fn body(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Http(http) => http.body(),
            Self::Socket(socket) => Ok(socket.body()),
        }
    }
}

pub struct Http {
    socket: TcpStream,
    /// The last answer.
    answer: Vec<u8>,
}

/// Where an answer's body ends.
enum End {
    At(usize),
    LastChunk,
}

impl Http {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, answer: Vec::with_capacity(32 << 10) })
    }

    async fn exchange(&mut self, request: &[u8], streams: bool) -> io::Result<Times> {
        let start = Instant::now();
        self.answer.clear();
        self.socket.write_all(request).await?;
        let (mut head, mut first, mut text) = (None, None, None);
        loop {
            if let Some((at, end)) = &head {
                let is_over = match end {
                    End::At(end) => self.answer.len() >= *end,
                    End::LastChunk => self.answer.ends_with(b"\r\n0\r\n\r\n"),
                };
                if first.is_none() && self.answer.len() > *at {
                    first = Some(start.elapsed());
                }
                if streams && text.is_none() && memmem::find(&self.answer[*at..], TEXT).is_some() {
                    text = Some(start.elapsed());
                }
                if is_over {
                    let whole = start.elapsed();
                    return Ok(Times {
                        whole,
                        first: first.unwrap_or(whole),
                        text: text.unwrap_or(whole),
                    });
                }
            }
            if self.answer.len() > ANSWER_MAX_BYTES {
                return Err(io::Error::other("the answer is too long"));
            }
            if self.socket.read_buf(&mut self.answer).await? == 0 {
                return Err(self.strange("the connection was closed"));
            }
            if head.is_none() {
                head = self.head()?;
            }
        }
    }

    /// The last answer's body, without its framing.
    fn body(&self) -> io::Result<Vec<u8>> {
        match self.head()? {
            Some((start, End::At(end))) => Ok(self.answer[start..end].to_vec()),
            Some((start, End::LastChunk)) => {
                joined(&self.answer[start..]).ok_or_else(|| self.strange("torn chunks"))
            }
            None => Err(self.strange("no head")),
        }
    }

    /// Where the body starts and ends; `None` while the head is not whole.
    fn head(&self) -> io::Result<Option<(usize, End)>> {
        let Some(end) = memmem::find(&self.answer, b"\r\n\r\n") else {
            return Ok(None);
        };
        if !self.answer.starts_with(b"HTTP/1.1 200") {
            return Err(self.strange("not a good answer"));
        }
        let start = end + 4;
        let head = String::from_utf8_lossy(&self.answer[..end]).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        Ok(Some((start, length.map_or(End::LastChunk, |length: usize| End::At(start + length)))))
    }

    fn strange(&self, what: &str) -> io::Error {
        let seen = &self.answer[..self.answer.len().min(600)];
        io::Error::other(format!("{what}: {}", String::from_utf8_lossy(seen)))
    }
}

fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = memmem::find(chunks, b"\r\n")?;
        let size = std::str::from_utf8(&chunks[..line]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunks.get(line + 2..line + 2 + size)?);
        chunks = &chunks[line + 2 + size + 2..];
    }
}
