//! An answer in an encoding that nobody asked for, without it: what cannot be read can be neither judged nor
//! counted, nor relieved of what it tells of its account.

use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use futures_util::StreamExt;
use http_body_util::BodyDataStream;
use tokio::io::AsyncRead;
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
    let encoded = StreamReader::new(Box::pin(pieces));
    let reader: Pin<Box<dyn AsyncRead + Send>> = match encoding {
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(encoded);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Encoding::Deflate => Box::pin(ZlibDecoder::new(encoded)),
        Encoding::Zstd => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
            let mut decoder = ZstdDecoder::with_params(encoded, &[window]);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
    };
    Received::Decoded(ReaderStream::new(reader))
}
