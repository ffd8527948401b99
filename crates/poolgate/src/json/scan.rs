//! One pass over a body as it arrives: is it JSON, how deep, and where do the members of the
//! outermost object stand.
//!
//! A pushdown automaton over bytes that may be cut anywhere. Most bytes of a prompt are inside
//! strings, and [`plain`] skips those. What it accepts is what `serde_json` accepts; a
//! property test holds the two against each other.

use std::ops::Range;

use super::{Invalid, MAX_DEPTH, MAX_MEMBERS, plain};

/// A member of the outermost object, by position in the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// With its quotes.
    pub key: Range<usize>,
    pub value: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    /// After a comma in an object.
    Key,
    Colon,
    CommaOrEnd,
    Done,
    InString {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// So many hexadecimal digits to come.
    Hex {
        key: bool,
        left: u8,
    },
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Literal(&'static [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

#[derive(Debug)]
pub struct Scan {
    state: State,
    /// One bit per open container, the innermost lowest: 1 for an object.
    stack: u128,
    depth: usize,
    /// Bytes seen before the present piece.
    before: usize,
    top_is_object: bool,
    key: Range<usize>,
    value_start: usize,
    members: Vec<Span>,
    /// The beginning of a character that the last piece cut.
    torn: Vec<u8>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            state: State::Value,
            stack: 0,
            depth: 0,
            before: 0,
            top_is_object: false,
            key: 0..0,
            value_start: 0,
            members: Vec::with_capacity(16),
            torn: Vec::new(),
        }
    }
}

impl Scan {
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        self.check_utf8(bytes)?;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at = match (self.state, byte) {
                (State::InString { key }, _) => self.in_string(bytes, at, key)?,
                // What most tokens of a prompt are; the same as `step` would do.
                (State::Colon, b':') => {
                    self.state = State::Value;
                    at + 1
                }
                (State::CommaOrEnd, b',') => {
                    self.state = if self.in_object() { State::Key } else { State::Value };
                    at + 1
                }
                (State::Value, b'"') if self.depth > 1 => {
                    self.in_string_from(bytes, at + 1, false)?
                }
                (State::Key | State::KeyOrEnd, b'"') if self.depth > 1 => {
                    self.in_string_from(bytes, at + 1, true)?
                }
                _ => self.step(byte, at)?,
            };
        }
        self.before += bytes.len();
        Ok(())
    }

    /// Members of the outermost object.
    pub fn finish(mut self) -> Result<Vec<Span>, Invalid> {
        if !self.torn.is_empty() {
            return Err(Invalid::NotUtf8);
        }
        if let State::Number(number) = self.state
            && number.may_end()
        {
            self.end_value(0);
        }
        match self.state {
            State::Done if self.members.len() > MAX_MEMBERS => Err(Invalid::TooManyFields),
            State::Done if self.top_is_object => Ok(self.members),
            State::Done => Err(Invalid::NotAnObject),
            State::Value if self.depth == 0 => Err(Invalid::Empty),
            _ => Err(Invalid::Syntax("it ends too early".into())),
        }
    }

    fn wrong(&self, at: usize) -> Invalid {
        Invalid::Syntax(format!("unexpected byte at position {}", self.before + at))
    }

    fn in_string_from(&mut self, bytes: &[u8], at: usize, key: bool) -> Result<usize, Invalid> {
        self.state = State::InString { key };
        self.in_string(bytes, at, key)
    }

    /// Skips to the end of the string, or of the piece.
    fn in_string(&mut self, bytes: &[u8], mut at: usize, key: bool) -> Result<usize, Invalid> {
        // Most strings are keys and kinds, and end before this.
        if let Some(sixteen) = bytes[at..].first_chunk() {
            let specials = plain::specials(sixteen);
            let special = at + specials.trailing_zeros() as usize;
            if specials == 0 {
                at += 16;
            } else if plain::is_escape_at(bytes, special) {
                at = special + 2;
            } else {
                return self.special(bytes, special, key);
            }
        }
        at = plain::end(bytes, at);
        if at < bytes.len() {
            return self.special(bytes, at, key);
        }
        Ok(at)
    }

    /// A byte that ends plain text: `\u`, and an escape cut by the piece's end, go on by steps.
    fn special(&mut self, bytes: &[u8], at: usize, key: bool) -> Result<usize, Invalid> {
        match bytes[at] {
            b'\\' => self.state = State::Escape { key },
            b'"' => self.end_string(at + 1, key),
            _ => return Err(self.wrong(at)),
        }
        Ok(at + 1)
    }

    fn end_string(&mut self, end: usize, key: bool) {
        if !key {
            self.end_value(end);
            return;
        }
        if self.depth == 1 {
            self.key.end = self.before + end;
        }
        self.state = State::Colon;
    }

    /// One byte outside a string's plain text; gives the position of the next.
    fn step(&mut self, byte: u8, at: usize) -> Result<usize, Invalid> {
        match self.state {
            State::Escape { key } => {
                self.state = match byte {
                    b'u' => State::Hex { key, left: 4 },
                    _ if plain::is_escape(byte) => State::InString { key },
                    _ => return Err(self.wrong(at)),
                };
                return Ok(at + 1);
            }
            State::Hex { key, left } if byte.is_ascii_hexdigit() => {
                let left = left - 1;
                self.state =
                    if left == 0 { State::InString { key } } else { State::Hex { key, left } };
                return Ok(at + 1);
            }
            State::Number(number) => {
                if let Some(next) = number.next(byte) {
                    self.state = State::Number(next);
                    return Ok(at + 1);
                }
                if !number.may_end() {
                    return Err(self.wrong(at));
                }
                // The byte belongs to what follows.
                self.end_value(at);
                return Ok(at);
            }
            State::Literal(rest) if rest[0] == byte => {
                if rest.len() == 1 {
                    self.end_value(at + 1);
                } else {
                    self.state = State::Literal(&rest[1..]);
                }
                return Ok(at + 1);
            }
            State::Hex { .. } | State::Literal(_) => return Err(self.wrong(at)),
            _ => {}
        }
        if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            self.token(byte, at)?;
        }
        Ok(at + 1)
    }

    fn token(&mut self, byte: u8, at: usize) -> Result<(), Invalid> {
        match (self.state, byte) {
            (
                State::Value | State::ValueOrEnd,
                b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n',
            ) => {
                if self.depth <= 1 {
                    self.value_start = self.before + at;
                }
                self.begin_value(byte)
            }
            (State::KeyOrEnd | State::Key, b'"') => {
                if self.depth == 1 {
                    self.key.start = self.before + at;
                }
                self.state = State::InString { key: true };
                Ok(())
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(())
            }
            (State::CommaOrEnd, b',') => {
                self.state = if self.in_object() { State::Key } else { State::Value };
                Ok(())
            }
            (State::ValueOrEnd, b']') | (State::KeyOrEnd, b'}') => self.close(at),
            (State::CommaOrEnd, b'}') if self.in_object() => self.close(at),
            (State::CommaOrEnd, b']') if !self.in_object() => self.close(at),
            _ => Err(self.wrong(at)),
        }
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), Invalid> {
        self.state = match byte {
            b'{' | b'[' => {
                if self.depth == MAX_DEPTH {
                    return Err(Invalid::TooDeep);
                }
                let object = byte == b'{';
                self.top_is_object |= self.depth == 0 && object;
                self.stack = self.stack << 1 | u128::from(object);
                self.depth += 1;
                if object { State::KeyOrEnd } else { State::ValueOrEnd }
            }
            b'"' => State::InString { key: false },
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b't' => State::Literal(b"rue"),
            b'f' => State::Literal(b"alse"),
            b'n' => State::Literal(b"ull"),
            _ => State::Number(Number::Integer),
        };
        Ok(())
    }

    fn in_object(&self) -> bool {
        self.stack & 1 == 1
    }

    #[expect(clippy::unnecessary_wraps, reason = "an arm of `token`, whose others can fail")]
    fn close(&mut self, at: usize) -> Result<(), Invalid> {
        self.stack >>= 1;
        self.depth -= 1;
        self.end_value(at + 1);
        Ok(())
    }

    /// A value ends before `end` of the present piece.
    fn end_value(&mut self, end: usize) {
        if self.depth == 1 && self.top_is_object {
            // One too many says so, and is the last that is kept.
            if self.members.len() <= MAX_MEMBERS {
                let value = self.value_start..self.before + end;
                self.members.push(Span { key: self.key.clone(), value });
            }
        }
        self.state = if self.depth == 0 { State::Done } else { State::CommaOrEnd };
    }

    /// Checks the piece, and the character that it and the one before may share.
    fn check_utf8(&mut self, mut bytes: &[u8]) -> Result<(), Invalid> {
        while !self.torn.is_empty() && !bytes.is_empty() {
            self.torn.push(bytes[0]);
            bytes = &bytes[1..];
            match std::str::from_utf8(&self.torn) {
                Ok(_) => self.torn.clear(),
                Err(error) if error.error_len().is_some() => return Err(Invalid::NotUtf8),
                Err(_) => {}
            }
        }
        // Looked at first because it is several times as fast, and true of most code.
        if bytes.is_ascii() {
            return Ok(());
        }
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(Invalid::NotUtf8),
            Err(error) => {
                self.torn.extend_from_slice(&bytes[error.valid_up_to()..]);
                Ok(())
            }
        }
    }
}

impl Number {
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus, b'1'..=b'9') | (Self::Integer, b'0'..=b'9') => Self::Integer,
            (Self::Zero | Self::Integer, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Integer | Self::Fraction, b'e' | b'E') => Self::E,
            (Self::E, b'+' | b'-') => Self::Sign,
            (Self::E | Self::Sign | Self::Exponent, b'0'..=b'9') => Self::Exponent,
            _ => return None,
        })
    }

    const fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn scan(pieces: &[&[u8]]) -> Result<Vec<Span>, Invalid> {
        let mut scan = Scan::default();
        for piece in pieces {
            scan.feed(piece)?;
        }
        scan.finish()
    }

    /// Strings longer than a block, with each escape and end at each place of it.
    #[test]
    fn long_strings_end_where_they_end() {
        for length in 0..200 {
            for (special, valid) in [
                ("", true),
                ("\\n", true),
                ("\\\\\\\"", true),
                ("\\u00e9", true),
                ("\\x", false),
                ("\n", false),
            ] {
                let text = format!("{{\"a\":\"{}{special}yz\",\"b\":1}}", "x".repeat(length));
                let got = scan(&[text.as_bytes()]).map(|spans| spans.len());
                assert_eq!(got.ok(), valid.then_some(2), "{special:?} after {length}");
                for end in 1..20.min(text.len()) {
                    let (one, two) = text.as_bytes().split_at(text.len() - end);
                    let got = scan(&[one, two]).map(|spans| spans.len());
                    assert_eq!(got.ok(), valid.then_some(2), "{special:?} after {length}, cut");
                }
            }
        }
    }

    #[test]
    fn numbers_end_with_the_text_too() {
        assert_eq!(scan(&[b"12"]), Err(Invalid::NotAnObject));
        assert!(matches!(scan(&[b"1."]), Err(Invalid::Syntax(_))));
    }

    /// Text that is nearly JSON, so that both sides of every rule are met.
    fn nearly() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\n",
            "\"a\"",
            "\"\\u00e9\"",
            "\"\\\\\\\"\"",
            "\"é\"",
            "\"\\ud800\"",
            "\"\\x\"",
            "\"\n\"",
            "0",
            "-1",
            "01",
            "1.5",
            "1.",
            "1e5",
            "1E+",
            "true",
            "nul",
            "null",
            "false",
            "\"",
            "-",
            "\"b\":1",
            "\"c\":[1,{}]",
            "\u{feff}",
        ]);
        let soup = prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat());
        let inside = soup.clone().prop_map(|soup| format!("{{{soup}}}"));
        let list = soup.clone().prop_map(|soup| format!("{{\"k\":[{soup}]}}"));
        let deep = soup.clone().prop_map(|soup| format!("{{\"k\":[{{{soup}}}]}}"));
        prop_oneof![soup, inside, list, deep]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn accepts_what_serde_accepts_however_it_is_cut(text in nearly(), cuts in prop::collection::vec(0_usize..60, 0..5)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole = scan(&[bytes]);
            let cut = scan(&pieces);
            let strip = |r: &Result<Vec<Span>, Invalid>| match r {
                Ok(spans) => Ok(spans.clone()),
                Err(error) => Err(matches!(error, Invalid::Syntax(_))),
            };
            prop_assert_eq!(strip(&whole), strip(&cut));
            let valid = serde_json::from_str::<&RawValue>(&text).is_ok();
            let accepted = matches!(whole, Ok(_) | Err(Invalid::NotAnObject));
            prop_assert_eq!(accepted, valid, "{}: {:?}", text, whole);
        }
    }
}
