//! The body of an upstream's answer, from wherever it comes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::connections::Connections;
use super::sockets::Turn;
use crate::config::Place;
use crate::json::TextBody;

pub enum Received {
    Http(Held),
    Turn(Box<Turn>),
    /// Of one that came encoded.
    Decoded(ReaderStream<Pin<Box<dyn AsyncRead + Send>>>),
    /// Of our own making, where an upstream has said yes without a body.
    Whole(Full<Bytes>),
}

/// A body breaks off before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the socket closed")]
    Socket,
    #[error("its encoding: {0}")]
    Encoding(#[from] io::Error),
}

/// The body of an HTTP answer. Its end gives the connection back; dropped before, it closes it.
#[derive(Debug)]
pub struct Held {
    body: Incoming,
    back: Option<Back>,
}

type Back = (Arc<Connections>, Arc<Place>, SendRequest<TextBody>);

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(held) => held.fmt(f),
            Self::Turn(turn) => turn.fmt(f),
            Self::Decoded(_) => f.write_str("Decoded"),
            Self::Whole(body) => body.fmt(f),
        }
    }
}

impl Received {
    pub(super) fn new(body: Incoming, back: Option<Back>) -> Self {
        let mut held = Held { body, back };
        held.give_back_at_end();
        Self::Http(held)
    }
}

impl Held {
    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some((connections, place, sender)) = self.back.take()
        {
            connections.put(place, sender);
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => {
                if let Some((connections, place, sender)) = self.back.take() {
                    connections.put(place, sender);
                }
            }
            Some(Ok(_)) => self.give_back_at_end(),
            Some(Err(_)) => self.back = None,
        }
        Poll::Ready(frame)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Http(held) => {
                held.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Turn(turn) => {
                turn.poll_event(cx).map(|event| event.map(|event| event.map(Frame::data)))
            }
            Self::Decoded(pieces) => Pin::new(pieces)
                .poll_next(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(Into::into))),
            Self::Whole(body) => {
                let frame = Pin::new(body).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(held) => held.body.is_end_stream(),
            Self::Turn(turn) => turn.is_over(),
            Self::Decoded(_) => false,
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(held) => held.body.size_hint(),
            Self::Turn(_) | Self::Decoded(_) => SizeHint::new(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}
