//! Lanes: how many requests of a kind may be served at once. Full means refused at once, before the
//! body is read; nobody queues here.

use std::sync::Arc;

use poolgate_core::account::Surface;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::error::Error;

/// Streams that tell of changes.
const WATCHERS: usize = 64;

#[derive(Debug)]
pub struct Lanes {
    http: Lane,
    compact: Lane,
    watch: Lane,
    socket: Lane,
}

/// `None`: unlimited.
#[derive(Debug)]
struct Lane(Option<Arc<Semaphore>>);

/// Room in all lanes the request needs; given back when dropped.
#[derive(Debug, Default)]
pub struct Permit {
    _slots: [Option<OwnedSemaphorePermit>; 2],
}

impl Lanes {
    pub fn new(limits: &Limits) -> Self {
        let lane = |size: usize| Lane((size > 0).then(|| Arc::new(Semaphore::new(size))));
        Self {
            http: lane(limits.proxy_http),
            compact: lane(limits.proxy_compact),
            watch: lane(WATCHERS),
            socket: lane(limits.proxy_websocket),
        }
    }

    /// For a stream that tells of changes for as long as somebody listens.
    pub fn watch(&self) -> Result<Permit, Error> {
        Ok(Permit { _slots: [self.watch.enter()?, None] })
    }

    /// For a client's socket, until it is closed.
    pub fn socket(&self) -> Result<Permit, Error> {
        Ok(Permit { _slots: [self.socket.enter()?, None] })
    }

    pub fn admit(&self, surface: Surface) -> Result<Permit, Error> {
        let compact = match surface {
            Surface::Compact => self.compact.enter()?,
            _ => None,
        };
        Ok(Permit { _slots: [self.http.enter()?, compact] })
    }
}

impl Lane {
    fn enter(&self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let Some(slots) = &self.0 else {
            return Ok(None);
        };
        Arc::clone(slots).try_acquire_owned().map(Some).map_err(|_| Error::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_isolated_and_give_back() {
        let lanes = Lanes::new(&Limits { proxy_http: 2, proxy_compact: 1, ..Limits::default() });
        let compact = lanes.admit(Surface::Compact).unwrap();
        assert!(lanes.admit(Surface::Compact).is_err());
        let chat = lanes.admit(Surface::Chat).unwrap();
        assert!(lanes.admit(Surface::Chat).is_err());
        drop(compact);
        assert!(lanes.admit(Surface::Messages).is_ok());
        drop(chat);
        let unlimited = Lanes::new(&Limits { proxy_http: 0, ..Limits::default() });
        let many: Vec<_> = (0..500).map(|_| unlimited.admit(Surface::Chat).unwrap()).collect();
        assert_eq!(many.len(), 500);
    }
}
