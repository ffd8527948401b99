//! Bytes in pieces, as they came off the socket: cut, spliced and sent on without being copied
//! together.

use std::borrow::Cow;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

/// Smaller pieces are joined, so that a client that sends byte by byte costs bytes and not pieces.
const SMALL: usize = 4 << 10;

#[derive(Clone, Debug, Default)]
pub struct Text {
    parts: Vec<Bytes>,
    length: usize,
}

impl Text {
    pub fn push(&mut self, part: Bytes) {
        self.length += part.len();
        match self.parts.last_mut() {
            _ if part.is_empty() => {}
            Some(last) if part.len() < SMALL && last.len() < SMALL => {
                let mut joined = BytesMut::with_capacity(2 * SMALL);
                joined.extend_from_slice(last);
                joined.extend_from_slice(&part);
                *last = joined.freeze();
            }
            _ => self.parts.push(part),
        }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The bytes of `range`; copied only if they lie in several pieces.
    pub fn slice(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        let mut pieces = self.pieces(range).map(|(part, at)| &part[at]);
        let first = pieces.next().unwrap_or_default();
        match pieces.next() {
            None => Cow::Borrowed(first),
            Some(second) => {
                let rest = pieces.flatten();
                Cow::Owned(first.iter().chain(second).chain(rest).copied().collect())
            }
        }
    }

    /// Appends `range` of `other`, without copying.
    pub fn append(&mut self, other: &Self, range: Range<usize>) {
        for (part, at) in other.pieces(range) {
            self.length += at.len();
            self.parts.push(part.slice(at));
        }
    }

    /// All of it in one piece.
    pub fn to_bytes(&self) -> Bytes {
        match self.parts.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            parts => Bytes::from(parts.concat()),
        }
    }

    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = (&Bytes, Range<usize>)> {
        let mut start = 0;
        self.parts.iter().filter_map(move |part| {
            let (from, to) = (start, start + part.len());
            start = to;
            let (a, b) = (range.start.max(from), range.end.min(to));
            (a < b).then(|| (part, a - from..b - from))
        })
    }
}

impl From<Bytes> for Text {
    fn from(part: Bytes) -> Self {
        let mut text = Self::default();
        text.push(part);
        text
    }
}

/// A text as the body of a request, of known length.
#[derive(Debug)]
pub struct TextBody {
    parts: std::vec::IntoIter<Bytes>,
    left: usize,
}

impl From<Text> for TextBody {
    fn from(text: Text) -> Self {
        Self { left: text.length, parts: text.parts.into_iter() }
    }
}

impl Body for TextBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let next = this.parts.next();
        this.left -= next.as_ref().map_or(0, Bytes::len);
        Poll::Ready(next.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[&str]) -> Text {
        Text {
            parts: parts.iter().map(|p| Bytes::copy_from_slice(p.as_bytes())).collect(),
            length: parts.iter().map(|p| p.len()).sum(),
        }
    }

    #[test]
    fn slices_across_pieces() {
        let text = text(&["abc", "de", "fgh"]);
        for (range, want) in
            [(0..8, "abcdefgh"), (1..2, "b"), (2..6, "cdef"), (5..8, "fgh"), (3..3, "")]
        {
            assert_eq!(text.slice(range.clone()), want.as_bytes(), "{range:?}");
            let mut cut = Text::default();
            cut.append(&text, range);
            assert_eq!((cut.to_bytes().as_ref(), cut.len()), (want.as_bytes(), want.len()));
        }
    }

    #[test]
    fn byte_by_byte_stays_few_pieces() {
        let mut text = Text::default();
        (0..10_000).for_each(|_| text.push(Bytes::from_static(b"x")));
        assert_eq!(text.len(), 10_000);
        assert!(text.parts().len() <= 4, "{}", text.parts().len());
    }
}
