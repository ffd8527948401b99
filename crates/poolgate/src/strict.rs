//! What an HTTP/1 request must look like on the wire, so that nobody before us can have read it
//! otherwise than we do (RFC 9112; request smuggling). Pure: bytes in, an answer out.
//!
//! hyper reads heads too, and forgives: a length beside `chunked`, a length said twice, lines that end
//! in a bare line feed. Two readers that forgive differently disagree on where a request ends. So
//! whatever is not exactly one way to say it is refused here, before hyper sees it.

mod chunks;

#[cfg(test)]
mod tests;

pub use chunks::Chunks;

/// RFC 9110 asks for 8000 at least.
pub const TARGET_MAX: usize = 8 << 10;
pub const HEAD_MAX: usize = 32 << 10;
pub const HEADERS_MAX: usize = 100;
/// Digits of a length: more cannot be a number of bytes.
const LENGTH_DIGITS: usize = 18;

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the request is not valid HTTP: {0}")]
    Malformed(&'static str),
    #[error("this method is not served")]
    Method,
    #[error("the request target is longer than {TARGET_MAX} bytes")]
    TargetTooLong,
    #[error(
        "the request head is larger than {HEAD_MAX} bytes, or has more than {HEADERS_MAX} fields"
    )]
    HeadTooLarge,
    #[error("the request head did not arrive in time")]
    HeadTimeout,
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; mostly none.
    Length(u64),
    Chunked,
    /// Maybe no HTTP: the client asks for a WebSocket.
    Upgrade,
}

/// Where the head that begins at the start of `bytes` ends. `from`: what was searched before.
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at).find_map(|at| {
        match &bytes[at + 1..] {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        }
    })
}

/// Reads a whole head, up to and with its empty line.
pub fn check(head: &[u8]) -> Result<Framing, Fault> {
    let mut lines = Lines(head);
    let host = request_line(lines.next_line()?.unwrap_or_default())?;
    let mut fields = Fields::default();
    let mut count = 0;
    while let Some(line) = lines.next_line()? {
        if line.is_empty() {
            return fields.framing(host);
        }
        count += 1;
        if count > HEADERS_MAX {
            return Err(Fault::HeadTooLarge);
        }
        fields.read(line)?;
    }
    Err(Fault::Malformed("the head does not end"))
}

/// The path of the target as far as it is sane, for an answer in the caller's dialect.
pub fn path_of(head: &[u8]) -> &str {
    let target = head.split(|byte| *byte == b' ' || *byte == b'\n').nth(1).unwrap_or_default();
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(byte);
    match std::str::from_utf8(path) {
        Ok(text) if text.starts_with('/') && path.len() < 256 && path.iter().all(plain) => text,
        _ => "/",
    }
}

struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    /// Without its end, which must be CRLF.
    fn next_line(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        let Some(at) = memchr::memchr(b'\n', self.0) else { return Ok(None) };
        let line = self.0[..at].strip_suffix(b"\r");
        let line = line.ok_or(Fault::Malformed("a line does not end in CR LF"))?;
        self.0 = &self.0[at + 1..];
        Ok(Some(line))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Start<'a> {
    version_1_1: bool,
    /// Of a target in absolute form.
    authority: Option<&'a [u8]>,
}

fn request_line(line: &[u8]) -> Result<Start<'_>, Fault> {
    let malformed = Err(Fault::Malformed("the request line"));
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return malformed;
    };
    if target.is_empty() || !is_token(method) {
        return malformed;
    }
    if target.len() > TARGET_MAX {
        return Err(Fault::TargetTooLong);
    }
    if method == b"CONNECT" || method == b"TRACE" {
        return Err(Fault::Method);
    }
    if any(target, |byte| byte <= b' ' || byte >= 0x7f || byte == b'#') {
        return Err(Fault::Malformed("the target has a character that does not belong there"));
    }
    let version_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return malformed,
    };
    let authority = match target {
        [b'/', ..] => None,
        b"*" if method == b"OPTIONS" => None,
        _ => Some(authority_of(target)?),
    };
    Ok(Start { version_1_1, authority })
}

/// Of a target in absolute form.
fn authority_of(target: &[u8]) -> Result<&[u8], Fault> {
    let rest = target.strip_prefix(b"http://").or_else(|| target.strip_prefix(b"https://"));
    let rest = rest.ok_or(Fault::Malformed("the target is neither a path nor a URL"))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    Ok(&rest[..end.unwrap_or(rest.len())])
}

#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl<'a> Fields<'a> {
    fn read(&mut self, line: &'a [u8]) -> Result<(), Fault> {
        let colon =
            memchr::memchr(b':', line).ok_or(Fault::Malformed("a field without a colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A space before the colon, and a line that goes on from the one before, end up here too.
        if !is_token(name) {
            return Err(Fault::Malformed("the name of a field"));
        }
        if any(value, |byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            return Err(Fault::Malformed("a control character in a field"));
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host.is_some() {
                    return Err(Fault::Malformed("more than one Host"));
                }
                if !is_authority(value) {
                    return Err(Fault::Malformed("Host is not a host and maybe a port"));
                }
                self.host = Some(value);
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade |= offers_socket(value);
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Fault::Malformed("more than one Content-Length"));
                }
                self.length = Some(length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed("Transfer-Encoding is not just `chunked`"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, start: Start<'_>) -> Result<Framing, Fault> {
        match (start.authority, self.host) {
            (None, None) if start.version_1_1 => return Err(Fault::Malformed("Host is missing")),
            (Some(authority), host) if !is_authority(authority) || host != Some(authority) => {
                return Err(Fault::Malformed("the target is of another host"));
            }
            _ => {}
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Fault::Malformed("both Content-Length and Transfer-Encoding")),
            (true, None) if !start.version_1_1 => {
                Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"))
            }
            (true, _) | (_, Some(1..)) if self.upgrade => {
                Err(Fault::Malformed("an upgrade with a body"))
            }
            (true, None) => Ok(Framing::Chunked),
            (false, _) if self.upgrade => Ok(Framing::Upgrade),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// Whether an Upgrade field names the one protocol that is upgraded to here, which may be one of
/// several (RFC 9110, 7.8).
pub fn offers_socket(value: &[u8]) -> bool {
    let mut offered = value.split(|byte| *byte == b',');
    offered.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// No sign, no list, no zeros in front.
fn length(value: &[u8]) -> Result<u64, Fault> {
    let wrong = Fault::Malformed("Content-Length is not a plain number");
    let plain = (1..=LENGTH_DIGITS).contains(&value.len())
        && value.iter().all(u8::is_ascii_digit)
        && (value.len() == 1 || value[0] != b'0');
    let text = std::str::from_utf8(value).ok().filter(|_| plain);
    text.and_then(|text| text.parse().ok()).ok_or(wrong)
}

/// `host[:port]`, as in a Host field.
pub fn is_authority(value: &[u8]) -> bool {
    let (host, port) = if let [b'[', rest @ ..] = value {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        let address = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        (address.parse::<std::net::Ipv6Addr>().is_ok(), &rest[end + 1..])
    } else {
        let end = memchr::memchr(b':', value).unwrap_or(value.len());
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        (end > 0 && value[..end].iter().all(plain), &value[end..])
    };
    host && match port {
        [] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// What names and methods are made of (RFC 9110, 5.6.2). A table: each byte of each name is looked up.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let others = b"!#$%&'*+-.^_`|~";
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| TOKEN[usize::from(*byte)])
}

/// Looks at all bytes, whatever the first says: so it looks at sixteen at once.
fn any(text: &[u8], is_bad: impl Fn(u8) -> bool) -> bool {
    text.iter().fold(false, |bad, byte| bad | is_bad(*byte))
}
