//! A client's connection as hyper sees it: heads that were checked, and an end to patience.
//!
//! An HTTP/1 head is kept back until it is whole and `strict` has nothing against it; a bad one is
//! exchanged for a request that our own service answers, in the dialect of its path, and after which
//! nothing more is read. Bodies pass straight through and are only followed to where they end. HTTP/2,
//! which begins with its preface, and what comes after an upgrade are left alone.
//!
//! hyper has one time-out for waiting for a head and for receiving it, and none for a client that
//! takes nothing. Both are kept here.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::Seat;
use super::state::{Answered, State};
use super::transport::Transport;
use crate::strict::{self, Chunks, Fault, Framing, HEAD_MAX};

/// The method of the request that stands in for a bad one.
pub const REFUSED: &str = "!";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Most heads, with what small requests have behind them.
const AT_ONCE: usize = 8 << 10;
/// Read while it is not known whether an upgrade comes.
const EARLY_MAX: usize = 16 << 10;
/// A client whose request was refused early may go on sending for so long: closing on it would reset
/// the connection, and the client would see that instead of the reason.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub head: Duration,
    /// For the first byte of all.
    pub first: Duration,
    pub write: Duration,
}

#[derive(Debug)]
pub struct Wire {
    inner: Transport,
    state: Arc<State>,
    patience: Patience,
    reading: Reading,
    /// Read, and not yet given on.
    held: BytesMut,
    /// How many bytes of `held` may be given on.
    checked: usize,
    /// How many were searched for the end of a head.
    searched: usize,
    is_first: bool,
    first_alarm: Alarm,
    head_alarm: Alarm,
    write_alarm: Alarm,
    linger: Option<Linger>,
    /// All was said.
    is_shut: bool,
    _seat: Seat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Head,
    Length(u64),
    Chunked(Chunks),
    /// A WebSocket was asked for and not yet given.
    Upgrading,
    Raw,
    /// The stand-in was given; there is nothing more to say.
    Refused,
}

#[derive(Debug, Default)]
struct Linger {
    alarm: Alarm,
    took: usize,
}

/// A timer that is made when it is first needed, and kept.
#[derive(Debug, Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    is_set: bool,
}

impl Alarm {
    /// Sets it if it is not set, and says whether it went off.
    fn poll(&mut self, cx: &mut Context<'_>, after: Duration) -> bool {
        if !std::mem::replace(&mut self.is_set, true) {
            let at = Instant::now() + after;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(at),
                None => self.sleep = Some(Box::pin(sleep_until(at))),
            }
        }
        self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }

    fn clear(&mut self) {
        self.is_set = false;
    }
}

impl Wire {
    pub fn new(inner: Transport, state: Arc<State>, patience: Patience, seat: Seat) -> Self {
        Self {
            inner,
            state,
            patience,
            reading: Reading::Head,
            held: BytesMut::new(),
            checked: 0,
            searched: 0,
            is_first: true,
            first_alarm: Alarm::default(),
            head_alarm: Alarm::default(),
            write_alarm: Alarm::default(),
            linger: None,
            is_shut: false,
            _seat: seat,
        }
    }

    /// Goes through `held` for as far as that can be judged; false: more must be read.
    fn judge(&mut self) -> io::Result<bool> {
        if self.held.is_empty() {
            return Ok(false);
        }
        match self.reading {
            Reading::Head => return Ok(self.judge_head()),
            Reading::Raw => self.checked = self.held.len(),
            Reading::Length(_) | Reading::Chunked(_) => {
                let took = follow(&mut self.reading, &self.held)?;
                self.checked = took;
            }
            Reading::Upgrading | Reading::Refused => return Ok(false),
        }
        Ok(true)
    }

    fn judge_head(&mut self) -> bool {
        if self.is_first && self.held.starts_with(PREFACE) {
            self.reading = Reading::Raw;
            return true;
        }
        // An empty line before a request is an old habit of some clients (RFC 9112, 2.2).
        while self.searched == 0 && self.held.starts_with(b"\r\n") {
            self.held.advance(2);
        }
        let Some(end) = strict::head_end(&self.held, self.searched) else {
            self.searched = self.held.len();
            if self.held.len() > HEAD_MAX {
                self.refuse(Fault::HeadTooLarge);
                return true;
            }
            return false;
        };
        if end > HEAD_MAX {
            self.refuse(Fault::HeadTooLarge);
            return true;
        }
        match strict::check(&self.held[..end]) {
            Ok(framing) => {
                self.reading = match framing {
                    Framing::Length(0) => Reading::Head,
                    Framing::Length(length) => Reading::Length(length),
                    Framing::Chunked => Reading::Chunked(Chunks::default()),
                    Framing::Upgrade => {
                        self.state.answered.set(Answered::NotYet);
                        Reading::Upgrading
                    }
                };
                self.checked = end;
                (self.searched, self.is_first) = (0, false);
                self.head_alarm.clear();
            }
            Err(fault) => self.refuse(fault),
        }
        true
    }

    fn refuse(&mut self, mut fault: Fault) {
        // What does not end may be a target that does not.
        let line = memchr::memchr(b'\n', &self.held).unwrap_or(self.held.len());
        if fault == Fault::HeadTooLarge && line > strict::TARGET_MAX {
            fault = Fault::TargetTooLong;
        }
        let path = strict::path_of(&self.held);
        let instead =
            format!("{REFUSED} {path} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n");
        self.held = BytesMut::from(instead.as_bytes());
        self.checked = self.held.len();
        self.state.fault.lock().replace(fault);
        self.reading = Reading::Refused;
    }

    /// What was read while it was unknown whether an upgrade comes.
    fn learn_of_upgrade(&mut self) {
        if self.reading == Reading::Upgrading {
            match self.state.answered.get() {
                Answered::NotYet => {}
                Answered::Upgraded => self.reading = Reading::Raw,
                Answered::Refused => self.reading = Reading::Head,
            }
        }
    }

    fn hold_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        read_some(Pin::new(&mut self.inner), cx, &mut self.held)
    }

    /// Straight into hyper's buffer; what is beyond the end of a body is taken back.
    fn read_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let took = follow(&mut self.reading, &buf.filled()[before..])?;
        self.held.extend_from_slice(&buf.filled()[before + took..]);
        buf.set_filled(before + took);
        Poll::Ready(Ok(()))
    }

    fn poll_read_checked(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.checked > 0 {
                let n = self.checked.min(buf.remaining());
                buf.put_slice(&self.held[..n]);
                self.held.advance(n);
                self.checked -= n;
                if self.held.is_empty() {
                    // An idle connection holds no buffer.
                    self.held = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            self.learn_of_upgrade();
            if self.judge()? {
                continue;
            }
            match self.reading {
                Reading::Raw => return Pin::new(&mut self.inner).poll_read(cx, buf),
                Reading::Length(_) | Reading::Chunked(_) => return self.read_body(cx, buf),
                Reading::Refused => return Poll::Pending,
                Reading::Upgrading if self.held.len() >= EARLY_MAX => return Poll::Pending,
                Reading::Upgrading => {
                    if ready!(self.hold_more(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Head => match self.hold_more(cx)? {
                    Poll::Ready(0) => return Poll::Ready(Ok(())),
                    Poll::Ready(_) => {}
                    Poll::Pending => ready!(self.poll_late(cx))?,
                },
            }
        }
    }

    /// Ready when a head that has begun took too long, and is refused; an error when nothing ever came.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            if self.is_first && self.first_alarm.poll(cx, self.patience.first) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // Between two requests hyper watches.
            return Poll::Pending;
        }
        if !self.head_alarm.poll(cx, self.patience.head) {
            return Poll::Pending;
        }
        self.refuse(Fault::HeadTimeout);
        Poll::Ready(Ok(()))
    }

    /// Passes on what a write came to, unless nothing could be written for too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.write_alarm.clear();
        } else if self.write_alarm.poll(cx, self.patience.write) {
            tracing::debug!("a client took nothing for too long");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        wrote
    }

    /// Whether the client may still be sending what nobody will read.
    fn is_mid_request(&self) -> bool {
        match self.reading {
            Reading::Head => !self.held.is_empty(),
            Reading::Raw => false,
            _ => true,
        }
    }
}

/// How many of `bytes` belong to the body that is being read.
fn follow(reading: &mut Reading, bytes: &[u8]) -> io::Result<usize> {
    let (took, is_over) = match reading {
        Reading::Length(left) => {
            let took = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= took as u64;
            (took, *left == 0)
        }
        Reading::Chunked(chunks) => {
            let took = chunks.feed(bytes).map_err(io::Error::other)?;
            (took, chunks.is_done())
        }
        _ => (bytes.len(), false),
    };
    if is_over {
        *reading = Reading::Head;
    }
    Ok(took)
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_read_checked(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.watch(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.watch(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Without TLS there is nothing to flush, and that says nothing of what is being written.
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        if flushed.is_ready() { flushed } else { this.watch(cx, flushed) }
    }

    /// Ends our side, and reads on for a moment where the client was not done.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_shut = true;
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.watch(cx, shut))?;
            if !this.is_mid_request() {
                return Poll::Ready(Ok(()));
            }
            this.linger = Some(Linger::default());
        }
        let Some(linger) = &mut this.linger else { return Poll::Ready(Ok(())) };
        loop {
            if linger.alarm.poll(cx, LINGER) || linger.took > LINGER_MAX {
                return Poll::Ready(Ok(()));
            }
            this.held.clear();
            match ready!(read_some(Pin::new(&mut this.inner), cx, &mut this.held)) {
                Ok(0) | Err(_) => return Poll::Ready(Ok(())),
                Ok(n) => linger.took += n,
            }
        }
    }
}

impl Drop for Wire {
    /// Where an answer ends with its connection, one that broke off would look complete.
    fn drop(&mut self) {
        if self.state.ends_with_connection.get() && !self.is_shut {
            self.inner.reset();
        }
    }
}

/// By way of the stack: whoever is waited for holds no memory, and a small request comes at one go.
fn read_some(
    inner: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    held: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let mut space = [MaybeUninit::uninit(); AT_ONCE];
    let mut read = ReadBuf::uninit(&mut space);
    ready!(inner.poll_read(cx, &mut read))?;
    held.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_small_request_is_read_at_one_go() {
        let (mut held, mut cx) = (BytesMut::new(), Context::from_waker(Waker::noop()));
        let request = [b'x'; 1200];
        let read = read_some(Pin::new(&mut &request[..]), &mut cx, &mut held);
        assert!(matches!(read, Poll::Ready(Ok(1200))), "{read:?}");
        assert_eq!(held, &request[..]);
    }

    #[test]
    fn who_is_waited_for_holds_no_memory() {
        let (mut held, mut cx) = (BytesMut::new(), Context::from_waker(Waker::noop()));
        let (mut silent, _other) = tokio::io::duplex(64);
        assert!(read_some(Pin::new(&mut silent), &mut cx, &mut held).is_pending());
        assert_eq!(held.capacity(), 0);
    }
}
