//! Between a connection and the library that speaks on it, which is given one frame at a time.
//!
//! The library's buffers grow to the largest message that has passed, and stay so: a socket on which a
//! conversation of a megabyte was sent would hold two, idle. As it never has more than the end of a message
//! here, it can be exchanged between two messages for one with empty buffers.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;
use tokio_util::io::poll_read_buf;

/// Read at once: of many small frames, and of a large one.
const AHEAD: usize = 4 << 10;
const AHEAD_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct Frames<Io> {
    /// `None`: taken.
    io: Option<Io>,
    /// Read, and not given yet. It holds no memory while it is empty and nothing comes.
    ahead: BytesMut,
    /// Of the present frame, bytes that are to be given.
    left: u64,
    /// Of the present message, frames are to come.
    is_in_message: bool,
}

impl<Io> Frames<Io> {
    pub fn new(io: Io) -> Self {
        Self { io: Some(io), ahead: BytesMut::new(), left: 0, is_in_message: false }
    }

    /// All that was given are whole messages.
    pub const fn is_between_messages(&self) -> bool {
        self.left == 0 && !self.is_in_message
    }

    /// With what it has read, for another library; this one is of no use any more.
    pub fn hand_over(&mut self) -> Self {
        Self {
            io: self.io.take(),
            ahead: std::mem::take(&mut self.ahead),
            left: self.left,
            is_in_message: self.is_in_message,
        }
    }

    fn io(&mut self) -> io::Result<Pin<&mut Io>>
    where
        Io: Unpin,
    {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// How long the next frame is, if that is known; what is none is for the library to refuse.
    fn next(&mut self) -> bool {
        let mut cursor = Cursor::new(&self.ahead);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => return false,
            Ok(Some((header, length))) => {
                self.left = cursor.position().saturating_add(length);
                if matches!(header.opcode, OpCode::Data(_)) {
                    self.is_in_message = !header.is_final;
                }
            }
            Err(_) => self.left = u64::MAX,
        }
        true
    }
}

impl<Io: AsyncRead + Unpin> Frames<Io> {
    /// False: the other end has closed.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let want = usize::try_from(self.left).unwrap_or(AHEAD_MAX).clamp(AHEAD, AHEAD_MAX);
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.reserve(want);
        let read = poll_read_buf(self.io()?, cx, &mut ahead);
        if !ahead.is_empty() {
            self.ahead = ahead;
        }
        read.map_ok(|count| count > 0)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Frames<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.left == 0 && !this.next() {
            if !ready!(this.poll_more(cx))? {
                // The beginning of a head, which is no frame.
                this.left = this.ahead.len() as u64;
                break;
            }
        }
        if this.ahead.is_empty() && this.left > 0 && !ready!(this.poll_more(cx))? {
            return Poll::Ready(Ok(()));
        }
        let left = usize::try_from(this.left).unwrap_or(usize::MAX);
        let count = left.min(this.ahead.len()).min(out.remaining());
        out.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        this.left -= count as u64;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Frames<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use tokio::io::AsyncReadExt;
    use tokio_util::io::StreamReader;

    use super::*;

    /// A head and what stands behind it; unmasked, of less than 64 KiB.
    fn frame(first: u8, length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut frame = match length {
            0..126 => vec![first, low],
            _ => vec![first, 126, high, low],
        };
        frame.resize(frame.len() + usize::from(length), b'x');
        frame
    }

    /// RFC 6455, 5.2: text, its continuations, a ping between them, and a text in one frame.
    fn conversation() -> (Vec<u8>, Vec<usize>) {
        let all = [
            frame(0x01, 9_000),
            frame(0x89, 0),
            frame(0x00, 0),
            frame(0x80, 125),
            frame(0x8a, 4),
            frame(0x81, 126),
        ];
        let ends = all.iter().scan(0, |at, frame| {
            *at += frame.len();
            Some(*at)
        });
        (all.concat(), ends.collect())
    }

    #[tokio::test]
    async fn gives_a_frame_at_a_time_however_it_comes() {
        let (bytes, ends) = conversation();
        for size in [1, 2, 3, 100, 4_096, 9_004, bytes.len()] {
            let pieces = bytes.chunks(size).map(Bytes::copy_from_slice).map(Ok::<_, io::Error>);
            let mut frames = Frames::new(StreamReader::new(stream::iter(pieces)));
            let (mut got, mut between) = (Vec::new(), Vec::new());
            let mut room = [0; 1_000];
            loop {
                let count = frames.read(&mut room).await.unwrap();
                if count == 0 {
                    break;
                }
                let passed =
                    ends.iter().filter(|end| got.len() < **end && **end < got.len() + count);
                assert_eq!(passed.count(), 0, "{size}: two frames in one read");
                got.extend_from_slice(&room[..count]);
                if frames.is_between_messages() {
                    between.push(got.len());
                    frames = frames.hand_over();
                }
            }
            assert!(got == bytes, "{size}");
            assert_eq!(between, ends[3..], "{size}: behind the ends of messages, and pings there");
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_goes_on_as_it_is() {
        for bytes in [&b"\x83\x01x, and more"[..], b"\x81", b"\x81\x7e\x01", b"\x81\x05abc", b""] {
            let mut frames = Frames::new(bytes);
            let mut got = Vec::new();
            frames.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, bytes);
        }
        let mut taken = Frames::new(&b"x"[..]);
        drop(taken.hand_over());
        assert_eq!(taken.read_u8().await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
}
