//! An answer in an encoding that nobody asked for, without it: what cannot be read can be neither judged nor
//! counted, nor relieved of what it tells of its account.

use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyDataStream;
use tokio::io::{AsyncBufReadExt, AsyncRead};
use tokio::task::yield_now;
use tokio_util::io::{ReaderStream, StreamReader};

use super::read::{Encoding, ZSTD_WINDOW_LOG};
use crate::egress::Received;

/// As it comes: what the upstream has flushed goes on.
pub fn decoded(body: Received, encoding: Encoding) -> Received {
    let pieces = BodyDataStream::new(body).then(async |piece| {
        // A decoder that meets an error forgets what it has read before; waiting, it hands that on first.
        if piece.is_err() {
            yield_now().await;
        }
        piece.map_err(io::Error::other)
    });
    let mut encoded = StreamReader::new(Box::pin(pieces));
    let reader: Pin<Box<dyn AsyncRead + Send>> = match encoding {
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(encoded);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        // RFC 9110 means zlib by it; some servers send the bare format. That never begins as zlib does: it
        // would be a stored block, padded with more than noughts.
        Encoding::Deflate => Box::pin(StreamReader::new(Box::pin(
            stream::once(async move {
                let is_zlib = encoded.fill_buf().await?.first().is_some_and(|byte| byte & 0xf == 8);
                let reader: Pin<Box<dyn AsyncRead + Send>> = if is_zlib {
                    Box::pin(ZlibDecoder::new(encoded))
                } else {
                    Box::pin(DeflateDecoder::new(encoded))
                };
                io::Result::Ok(ReaderStream::new(reader))
            })
            .try_flatten(),
        ))),
        Encoding::Zstd => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
            let mut decoder = ZstdDecoder::with_params(encoded, &[window]);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
    };
    Received::Decoded(ReaderStream::new(reader))
}
