//! A server's socket that can end in ways HTTP does not provide for.
//!
//! How it ends is decided by the request being served and happens when the connection is dropped,
//! after hyper has given up on it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Not a status line, not even text.
const JUNK: &[u8] = b"\x00\xffSIM?\r\n\x07 junk, not HTTP \xfe\xfd\r\n\r\n";

const RESET: u8 = 1;
const GARBAGE: u8 = 2;

/// How the connection is to end, if not by a plain close.
#[derive(Debug, Default)]
pub struct Ending(AtomicU8);

impl Ending {
    pub fn with_reset(&self) {
        self.0.store(RESET, Ordering::Relaxed);
    }

    pub fn with_garbage(&self) {
        self.0.store(GARBAGE, Ordering::Relaxed);
    }
}

pub struct Wire {
    stream: TcpStream,
    ending: std::sync::Arc<Ending>,
}

impl Wire {
    pub fn new(stream: TcpStream, ending: std::sync::Arc<Ending>) -> Self {
        Self { stream, ending }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Nobody is left to tell that either failed.
        match self.ending.0.load(Ordering::Relaxed) {
            RESET => drop(self.stream.set_zero_linger()),
            GARBAGE => drop(self.stream.try_write(JUNK)),
            _ => {}
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
