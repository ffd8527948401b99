//! Reading a request: its credential and its body, plain.

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_ENCODING};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A plain body may not be longer.
const BODY_MAX_BYTES: u64 = 256 << 20;

/// The body could not be plain.
pub struct Undecodable;

pub async fn decode(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Undecodable> {
    match headers.get(CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(body),
        Some(b"zstd") => drain(ZstdDecoder::new(&*body)).await,
        Some(b"gzip" | b"x-gzip") => drain(GzipDecoder::new(&*body)).await,
        Some(_) => Err(Undecodable),
    }
}

async fn drain(decoder: impl AsyncRead + Unpin) -> Result<Bytes, Undecodable> {
    let mut plain = Vec::new();
    let mut bounded = decoder.take(BODY_MAX_BYTES);
    bounded.read_to_end(&mut plain).await.map_err(|_| Undecodable)?;
    Ok(Bytes::from(plain))
}

/// Who asks, as it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    Bearer(&'a str),
    /// `x-api-key`
    Key(&'a str),
}

impl<'a> Credential<'a> {
    pub fn of(headers: &'a HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if let Some(value) = text(AUTHORIZATION.as_str()) {
            let (scheme, token) = value.split_once(' ')?;
            return scheme.eq_ignore_ascii_case("bearer").then_some(Self::Bearer(token.trim()));
        }
        text("x-api-key").map(Self::Key)
    }

    pub fn token(self) -> &'a str {
        match self {
            Self::Bearer(token) | Self::Key(token) => token,
        }
    }
}
