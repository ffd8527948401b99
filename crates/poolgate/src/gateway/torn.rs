//! What goes on as it comes, but for an error that has come in part: whose account it is, is found in the whole
//! of it alone. Where a `Splitter` holds events back, this is not needed.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// Most events have said by then what they are.
const UNTOLD: usize = 32;
/// Nobody may have us hold more.
const HELD_MAX: usize = 64 << 10;
/// Of a word that is looked for, or of an event's end, as much may have come in the piece before.
const SEAM: usize = 5;

/// The event under way, as far as it has come.
#[derive(Debug, Default)]
pub struct Torn {
    /// What has not gone on: it may be an error.
    held: BytesMut,
    size: usize,
    /// A word in it says so.
    says_error: bool,
    /// Its last bytes, whether they have gone on or not.
    last: Vec<u8>,
}

impl Torn {
    /// The bytes that may go on now. `is_between`: an event is known to end with them, whichever its lines' ends.
    pub fn pass(&mut self, bytes: Bytes, is_between: bool) -> Bytes {
        if self.size == 0 && (is_between || is_event_end(&bytes)) {
            return bytes;
        }
        // Each byte is looked at once, and the last few twice.
        let seam = self.last.len();
        let mut look = [&self.last[..], &bytes].concat();
        let end = if is_between { look.len() } else { last_end(&look) };
        let mut on = BytesMut::new();
        if end > seam {
            on = std::mem::take(self).held;
            on.extend_from_slice(&look[seam..end]);
            look.drain(..end);
        }
        self.says_error |= says_error(&look);
        self.last = look[look.len().saturating_sub(SEAM)..].to_vec();
        let new = if end > seam { &look[..] } else { &look[seam..] };
        self.size += new.len();
        self.held.extend_from_slice(new);
        if !self.is_to_be_held() {
            on.unsplit(std::mem::take(&mut self.held));
        }
        on.freeze()
    }

    /// Text with such a word in it waits for the end of its event, too.
    fn is_to_be_held(&self) -> bool {
        self.size < UNTOLD || self.says_error && self.held.len() <= HELD_MAX
    }

    /// Nothing of the event under way has gone on.
    pub fn holds_all(&self) -> bool {
        self.size > 0 && self.held.len() == self.size
    }

    /// What is left at the end of the stream.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }
}

fn says_error(part: &[u8]) -> bool {
    let has = |word: &str| memmem::find(part, word.as_bytes()).is_some();
    has("error") || has("failed")
}

/// Where the last event ends that has; zero: none.
fn last_end(bytes: &[u8]) -> usize {
    let end = |blank: &[u8]| memmem::rfind(bytes, blank).map_or(0, |at| at + blank.len());
    end(b"\n\n").max(end(b"\r\n\r\n"))
}

pub fn is_event_end(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stream: &str, size: usize) -> Vec<String> {
        let mut torn = Torn::default();
        let mut all: Vec<Bytes> = stream
            .as_bytes()
            .chunks(size)
            .map(|piece| torn.pass(Bytes::copy_from_slice(piece), false))
            .collect();
        all.push(torn.rest());
        let text = |piece: Bytes| String::from_utf8(piece.into()).unwrap();
        all.into_iter().map(text).filter(|piece| !piece.is_empty()).collect()
    }

    /// spec §6: so that what is to be removed from it is found.
    #[test]
    fn an_error_goes_on_in_one_piece() {
        let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n";
        for error in [
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"of ann@x.org\"}}\n\n",
            "event: error\r\ndata: {\"error\":{\"message\":\"of ann@x.org\"}}\r\n\r\n",
            "data: {\"error\":{\"message\":\"of ann@x.org\"}}\n\n",
            "data: {\"type\":\"response.failed\",\"response\":{\"of\":\"ann@x.org\"}}\n\n",
            "data: {\"error\":\"of ann@x.org, the last word\"}\n",
            "data: {\"id\":\"gen-1\",\"choices\":[{\"index\":0}],\"error\":{\"message\":\"of ann@x.org\"}}\n\n",
        ] {
            let stream = [text, error].concat();
            for size in (1..stream.len()).chain([stream.len()]) {
                let got = pieces(&stream, size);
                assert_eq!(got.concat(), stream, "{size}");
                let whole = got.iter().filter(|piece| piece.contains("of")).count();
                assert!(got.iter().any(|piece| piece.contains("ann@x.org")), "{size}: {got:?}");
                assert_eq!(whole, 1, "{size}: {got:?}");
            }
        }
    }

    #[test]
    fn all_else_goes_on_as_it_comes() {
        let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n";
        assert_eq!(pieces(&text.repeat(2), text.len() / 2 + 1).len(), 4);
        assert_eq!(pieces(text, text.len()), [text]);
        let mut torn = Torn::default();
        let old = Bytes::from_static(b"data: an error, of old\r\r");
        assert_eq!(torn.pass(old.clone(), true), old);
        assert_eq!(torn.pass(old.slice(..9), false), "");
        assert!(torn.holds_all());
        assert_eq!(torn.pass(old.slice(9..), true), old);
        assert!(!torn.holds_all(), "no event is under way");
        let endless = format!("data: an error {}", "x".repeat(4 * HELD_MAX));
        let first = &pieces(&endless, HELD_MAX)[0];
        assert!(first.len() > HELD_MAX, "{}", first.len());
    }
}
