//! Queries and forms: pairs, percent-encoded.

/// RFC 3986: everything but letters, digits and `-._~`.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => {
                // Writing to a text cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// The pairs of a query, in order; `None`: it is not one.
pub fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        Some((decoded(name)?, decoded(value)?))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
                u8::try_from(value).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let text = "a b/ä&=+%~";
        assert_eq!(encoded("a b/&"), "a%20b%2F%26");
        let read = pairs(&format!("x={}&y=1+2", encoded(text))).unwrap();
        assert_eq!(read, [("x".into(), text.into()), ("y".into(), "1 2".into())]);
        for bad in ["x", "x=%", "x=%4", "x=%zz", "x=%+1", "x=%ff"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
    }
}
