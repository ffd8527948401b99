//! Where a chunked body ends (RFC 9112, 7.1).

use super::Fault;

/// Bytes of a chunk's extensions, which mean nothing here.
const EXTENSION_MAX: usize = 256;
/// Bytes of all trailers, which are dropped.
const TRAILERS_MAX: usize = 8 << 10;
/// Digits of a chunk's size.
const DIGITS_MAX: usize = 15;

/// Follows a body through whatever parts it arrives in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    /// Of the chunk: what is left of it.
    size: u64,
    /// Digits, bytes of extensions, or bytes of trailers.
    count: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a trailer's line.
    Trailers,
    Trailer,
    TrailerEnd,
    LastLf,
    Done,
}

impl Chunks {
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// How many of `bytes` belong to the body: all, unless it ends among them.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut n = 0;
        while n < bytes.len() && self.at != At::Done {
            if self.at == At::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let took = left.min(bytes.len() - n);
                self.size -= took as u64;
                n += took;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.at = self.step(bytes[n])?;
            n += 1;
        }
        Ok(n)
    }

    fn step(&mut self, byte: u8) -> Result<At, Fault> {
        let wrong = Err(Fault::Malformed("a chunk"));
        Ok(match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.count += 1;
                if self.count > DIGITS_MAX {
                    return wrong;
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            (At::Size, b';') if self.count > 0 => {
                self.count = 0;
                At::Extension
            }
            (At::Size, b'\r') if self.count > 0 => At::SizeEnd,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, b'\t' | b' '..=b'~') => {
                self.count += 1;
                if self.count > EXTENSION_MAX {
                    return wrong;
                }
                At::Extension
            }
            (At::SizeEnd, b'\n') => {
                self.count = 0;
                if self.size == 0 { At::Trailers } else { At::Data }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Trailers, b'\r') => At::LastLf,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::Trailers | At::Trailer, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count += 1;
                if self.count > TRAILERS_MAX {
                    return wrong;
                }
                At::Trailer
            }
            (At::TrailerEnd, b'\n') => At::Trailers,
            (At::LastLf, b'\n') => At::Done,
            _ => return wrong,
        })
    }
}
