//! The request body: bounded, and decoded.
//!
//! What arrives is kept as it came, so that an untouched body can be forwarded untouched; fields are
//! read from the decoded text. Nothing of a body that breaks a rule reaches an upstream.

use std::io;
use std::time::Duration;

use async_compression::tokio::bufread::{DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::config::Limits;
use crate::error::Error;
use crate::json::{Document, Invalid, Scan, Text};

/// Bytes per second that a body must come at, behind which it may be by the time it may pause.
const BODY_RATE: usize = 1 << 10;
const RATIO_MAX: usize = 100;
/// How long a refused client may go on sending, and how many bytes.
const DISCARD_FOR: Duration = Duration::from_secs(2);
const DISCARD_MAX: usize = 64 << 10;
/// Below this a high ratio is harmless, and common: a prompt of blanks compresses well.
const RATIO_FROM: usize = 1 << 20;
/// Parsing more than this at once would hold up other requests of the thread.
const PARSE_INLINE: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    Deflate,
    Zstd,
}

#[derive(Clone, Debug)]
pub struct Payload {
    /// As the client sent it.
    pub wire: Text,
    pub encoding: Option<Encoding>,
    pub document: Document,
}

impl Encoding {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }
}

pub async fn read(
    headers: &HeaderMap,
    body: &mut Incoming,
    limits: &Limits,
) -> Result<Payload, Error> {
    check_content_type(headers)?;
    let Some(encoding) = encoding(headers)? else {
        // Scanned as it arrives; a body that breaks a rule is refused before its end.
        let mut scan = Scan::default();
        let wire = collect(body, limits, |part| scan.feed(part)).await?;
        let document = Document::scanned(wire.clone(), scan)?;
        return Ok(Payload { wire, encoding: None, document });
    };
    let wire = collect(body, limits, |_| Ok(())).await?;
    let text = decode(&wire.to_bytes(), encoding, limits.decoded_max).await?;
    let document = if text.len() > PARSE_INLINE {
        let parsed = tokio::task::spawn_blocking(move || Document::parse(text)).await;
        parsed.map_err(|_| Error::Internal)??
    } else {
        Document::parse(text)?
    };
    Ok(Payload { wire, encoding: Some(encoding), document })
}

/// Absent is taken for JSON; clients that send something else say so.
fn check_content_type(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Error::WrongContentType)
    }
}

pub fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Error> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Error::WrongEncoding);
    }
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(None),
        "gzip" | "x-gzip" => Ok(Some(Encoding::Gzip)),
        "deflate" => Ok(Some(Encoding::Deflate)),
        "zstd" => Ok(Some(Encoding::Zstd)),
        _ => Err(Error::WrongEncoding),
    }
}

/// Reads what a refused client still sends, for a moment: closing on it would reset the connection,
/// and the client would see that instead of the reason.
/// False: it goes on.
pub async fn discard(body: &mut Incoming) -> bool {
    let read = async {
        let mut took = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            took += frame.data_ref().map_or(0, Bytes::len);
            if took > DISCARD_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DISCARD_FOR, read).await.unwrap_or(false)
}

async fn collect(
    body: &mut Incoming,
    limits: &Limits,
    mut check: impl FnMut(&[u8]) -> Result<(), Invalid>,
) -> Result<Text, Error> {
    let limit = limits.body_max;
    let too_large = || Error::TooLarge { limit, decoded: false };
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        return Err(too_large());
    }
    let mut text = Text::default();
    let began = Instant::now();
    loop {
        let frame = if let Some(frame) = body.frame().now_or_never() {
            frame
        } else {
            let patience = patience(limits, began.elapsed(), text.len());
            let frame = tokio::time::timeout(patience, body.frame()).await;
            frame.map_err(|_| Error::BodyTimeout)?
        };
        let Some(frame) = frame else { return Ok(text) };
        let Ok(part) = frame.map_err(|_| Error::BodyCut)?.into_data() else { continue };
        if text.len() + part.len() > limit {
            return Err(too_large());
        }
        check(&part)?;
        text.push(part);
    }
}

/// How long the next part of a body may take.
fn patience(limits: &Limits, elapsed: Duration, arrived: usize) -> Duration {
    let whole = limits.body_timeout.saturating_sub(elapsed);
    let earned = Duration::from_secs((arrived / BODY_RATE) as u64) + limits.body_idle_timeout;
    limits.body_idle_timeout.min(whole).min(earned.saturating_sub(elapsed))
}

/// 8 MiB, which every decoder should support and no encoder should exceed (RFC 8878, 3.1.1.1.2): a frame
/// may ask for any amount of memory before its first byte.
pub const ZSTD_WINDOW_LOG: u32 = 23;

pub async fn decode(wire: &Bytes, encoding: Encoding, limit: usize) -> Result<Bytes, Error> {
    let length = wire.len();
    let input: &[u8] = wire;
    // The upstream reads all of it, however many members it has, and so do we.
    macro_rules! drain_members {
        ($decoder:expr) => {{
            let mut decoder = $decoder;
            decoder.multiple_members(true);
            drain(decoder, length, limit, encoding).await
        }};
    }
    match encoding {
        Encoding::Gzip => drain_members!(GzipDecoder::new(input)),
        Encoding::Zstd => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
            drain_members!(ZstdDecoder::with_params(input, &[window]))
        }
        // RFC 9110 means zlib by "deflate"; some clients send the bare format.
        Encoding::Deflate if is_zlib(input) => drain_members!(ZlibDecoder::new(input)),
        Encoding::Deflate => drain_members!(DeflateDecoder::new(input)),
    }
}

fn is_zlib(input: &[u8]) -> bool {
    matches!(input, [cmf, flg, ..] if cmf & 0x0f == 8 && (u16::from(*cmf) << 8 | u16::from(*flg)) % 31 == 0)
}

async fn drain(
    mut decoder: impl AsyncRead + Unpin,
    encoded: usize,
    limit: usize,
    encoding: Encoding,
) -> Result<Bytes, Error> {
    let mut out = BytesMut::with_capacity(encoded.saturating_mul(4).min(limit).min(1 << 20));
    loop {
        let read: io::Result<usize> = decoder.read_buf(&mut out).await;
        match read {
            Ok(0) => return Ok(out.freeze()),
            Ok(_) if out.len() > limit => {
                return Err(Error::TooLarge { limit, decoded: true });
            }
            Ok(_) if out.len() > RATIO_FROM && out.len() / encoded.max(1) > RATIO_MAX => {
                return Err(Error::Bomb);
            }
            Ok(_) => {}
            Err(_) => return Err(Error::BadEncoding(encoding.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_pause_but_not_trickle() {
        let limits = Limits::default();
        let second = Duration::from_secs(1);
        for (elapsed, arrived, want) in [
            (0, 0, 15 * second),
            (10, 0, 5 * second),
            (60, 60, Duration::ZERO),
            (60, 50 << 10, 5 * second),
            (60, 1 << 20, 15 * second),
            (290, 1 << 20, 10 * second),
            (301, 60 << 20, Duration::ZERO),
        ] {
            let got = patience(&limits, Duration::from_secs(elapsed), arrived);
            assert_eq!(got, want, "{arrived} bytes after {elapsed} s");
        }
    }

    #[tokio::test]
    async fn decodes_within_bounds() {
        use async_compression::tokio::write::{GzipEncoder, ZlibEncoder, ZstdEncoder};
        use tokio::io::AsyncWriteExt;
        let text = br#"{"model":"m"}"#;
        let mut gzip = GzipEncoder::new(Vec::new());
        gzip.write_all(text).await.unwrap();
        gzip.shutdown().await.unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new());
        zlib.write_all(text).await.unwrap();
        zlib.shutdown().await.unwrap();
        let mut bomb = ZstdEncoder::new(Vec::new());
        bomb.write_all(&vec![b' '; 8 << 20]).await.unwrap();
        bomb.shutdown().await.unwrap();
        let run = |bytes: Vec<u8>, encoding| async move {
            decode(&bytes.into(), encoding, 64 << 20).await
        };
        assert_eq!(run(gzip.into_inner(), Encoding::Gzip).await.unwrap(), text.as_slice());
        assert_eq!(run(zlib.into_inner(), Encoding::Deflate).await.unwrap(), text.as_slice());
        let bomb = bomb.into_inner();
        assert!(matches!(run(bomb.clone(), Encoding::Zstd).await, Err(Error::Bomb)));
        let small = decode(&bomb.into(), Encoding::Zstd, 1000).await;
        assert!(matches!(small, Err(Error::TooLarge { decoded: true, .. })));
        assert!(matches!(
            run(b"junk".to_vec(), Encoding::Zstd).await,
            Err(Error::BadEncoding("zstd"))
        ));
    }

    /// RFC 8878: a window of so many bits, no size, and one raw block.
    #[tokio::test]
    async fn a_frame_of_zstd_has_no_window_above_8_mib() {
        let text = br#"{"model":"m"}"#;
        for (log, good) in [(20_u8, true), (23, true), (24, false), (31, false)] {
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
            let block = [(13 << 3) | 1, 0, 0];
            let frame = [&head[..], &block, text].concat();
            let decoded = decode(&frame.into(), Encoding::Zstd, 1000).await;
            match decoded {
                Ok(decoded) => assert!(good && decoded == text.as_slice(), "{log}"),
                Err(error) => assert!(!good && error.parts().0 == 400, "{log}: {error}"),
            }
        }
    }
}
