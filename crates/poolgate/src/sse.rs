//! Event boundaries in a server-sent event stream.
//!
//! The relay forwards the very bytes and feeds them here beside it, so the scanner may see an event
//! cut at any byte. It follows the WHATWG grammar (LF, CR, CRLF, a leading byte order mark, several
//! `data` lines) and keeps only what is needed: the event's name and its data. An event larger than
//! [`EVENT_MAX`] is passed over: it is relayed all the same, and only its inspection is given up.

/// Larger events are not inspected, nor held back. As much as a message of a socket may hold, and its
/// field's name.
pub const EVENT_MAX: usize = (64 << 20) + 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Empty when the stream names none.
    pub name: &'a [u8],
    pub data: &'a [u8],
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each remembers one byte or line seen before")]
pub struct Scanner {
    /// The unfinished line.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    too_large: bool,
    /// The last byte was CR: an LF right after belongs to it.
    after_cr: bool,
    started: bool,
}

impl Scanner {
    /// Takes the next bytes of the stream, and calls `on` for each event they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on: impl FnMut(Event<'_>)) {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                self.keep(bytes);
                return;
            };
            self.after_cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.end_line(&bytes[..end], &mut on);
            } else {
                self.keep(&bytes[..end]);
                let line = std::mem::take(&mut self.line);
                self.end_line(&line, &mut on);
                // Give the buffer back, to allocate once per stream and not once per line.
                self.line = line;
                self.line.clear();
            }
            bytes = &bytes[end + 1..];
        }
    }

    /// The stream has ended: what stood there without the empty line that ends an event. The grammar
    /// drops it.
    pub fn rest(&mut self, mut on: impl FnMut(Event<'_>)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.end_line(&line, &mut on);
        }
        self.end_line(b"", &mut on);
    }

    /// Nothing of an unfinished event has been seen: the stream could end here tidily.
    pub fn is_between_events(&self) -> bool {
        self.line.is_empty() && !self.has_data && self.name.is_empty() && !self.too_large
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > EVENT_MAX {
            self.pass_over();
        }
        if self.too_large {
            // A comment: all that matters of the line is that it is not empty.
            self.line = b":".to_vec();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    /// Until the empty line that ends the event nothing more of it is kept.
    fn pass_over(&mut self) {
        self.too_large = true;
        self.data = Vec::new();
    }

    fn end_line(&mut self, line: &[u8], on: &mut impl FnMut(Event<'_>)) {
        let mut line = line;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if self.has_data && !self.too_large {
                on(Event { name: &self.name, data: &self.data });
            }
            self.name.clear();
            self.data.clear();
            self.has_data = false;
            self.too_large = false;
            return;
        }
        if self.too_large {
            return;
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match field {
            b"data" => {
                let is_first = !std::mem::replace(&mut self.has_data, true);
                if self.data.len() + usize::from(!is_first) + value.len() > EVENT_MAX {
                    return self.pass_over();
                }
                if !is_first {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut scanner = Scanner::default();
        let mut events = vec![];
        for chunk in chunks {
            scanner.feed(chunk, |event| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                events.push((text(event.name), text(event.data)));
            });
        }
        events
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.into(), data.into())
    }

    #[test]
    fn follows_the_grammar() {
        let cases: [(&str, &[u8], Vec<(String, String)>); 8] = [
            ("plain", b"data: a\n\ndata:b\n\n", vec![event("", "a"), event("", "b")]),
            ("named", b"event: x\ndata: 1\n\ndata: 2\n\n", vec![event("x", "1"), event("", "2")]),
            ("lines", b"data: a\ndata: b\n\n", vec![event("", "a\nb")]),
            ("CRLF", b"event: x\r\ndata: a\r\n\r\n", vec![event("x", "a")]),
            ("CR", b"data: a\r\rdata: b\r\r", vec![event("", "a"), event("", "b")]),
            ("comments", b": hi\n\nid: 7\nretry: 1\ndata: a\n\n", vec![event("", "a")]),
            ("byte order mark", b"\xef\xbb\xbfdata: a\n\n", vec![event("", "a")]),
            ("unfinished", b"data: a\n\ndata: b\n", vec![event("", "a")]),
        ];
        for (name, bytes, want) in cases {
            assert_eq!(scan(&[bytes]), want, "{name}");
        }
    }

    #[test]
    fn knows_whether_it_stands_between_events() {
        let mut scanner = Scanner::default();
        for (bytes, want) in [
            (&b""[..], true),
            (b"da", false),
            (b"ta: x", false),
            (b"\n", false),
            (b"\n", true),
            (b"event: y\n", false),
            (b"data: z\n\n", true),
        ] {
            scanner.feed(bytes, |_| {});
            assert_eq!(scanner.is_between_events(), want, "after {bytes:?}");
        }
    }

    #[test]
    fn passes_over_a_giant_event_and_goes_on() {
        let giant = [b"data: ".as_slice(), &vec![b'x'; EVENT_MAX + 1], b"\n\ndata: a\n\n"].concat();
        let chunks: Vec<&[u8]> = giant.chunks(1 << 20).collect();
        assert_eq!(scan(&chunks), [event("", "a")]);
        assert_eq!(scan(&[&giant]), [event("", "a")]);
    }

    /// However it goes on: with a line that does not end, with many, or with lines that are empty.
    #[test]
    fn of_a_giant_event_nothing_is_kept() {
        let most = [b"data: ".as_slice(), &vec![b'x'; EVENT_MAX - 1000], b"\n"].concat();
        for line in [&b"data: 0123456789\n"[..], b"data\n", b"data: 0123456789"] {
            let mut scanner = Scanner::default();
            scanner.feed(&most, |_| {});
            scanner.feed(&line.repeat((1 << 20) / line.len()), |_| {});
            if !line.ends_with(b"\n") {
                scanner.feed(&most, |_| {});
            }
            let held = scanner.line.capacity() + scanner.data.capacity();
            assert!(held < 100, "{held}");
            assert!(!scanner.is_between_events());
            let mut told = Vec::new();
            scanner.feed(b"\ndata: 1\n\ndata: a\n\n", |event| told.push(event.data.to_vec()));
            assert_eq!(told.last().unwrap(), b"a");
            assert!(told.iter().all(|data| data.len() == 1));
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            lines in prop::collection::vec("(data:|data: |event: |: |id: )?[a-z ]{0,4}", 0..20),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 20),
            cuts in prop::collection::vec(0_usize..200, 0..10),
        ) {
            let text: String =
                lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> =
                cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(scan(&pieces), scan(&[text.as_bytes()]));
        }
    }
}
