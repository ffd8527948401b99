//! Bounds on work in progress: lanes for requests of one kind, stages for one step of many requests.
//!
//! Full means refused at once; nobody queues here. A place is taken in one atomic step, belongs to
//! its [`Permit`], and is given back when that is dropped, so exactly once on every end. A refusal is
//! ours: it says nothing about an account, and no other account would help.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    ProxyHttp,
    ProxyWebsocket,
    ProxyCompact,
    Dashboard,
    /// Streams that tell of changes, once they have told their first.
    Watch,
    TokenRefresh,
    UpstreamWebsocketConnect,
    ResponseCreate,
    CompactResponseCreate,
}

impl Bound {
    pub const ALL: [Self; 9] = [
        Self::ProxyHttp,
        Self::ProxyWebsocket,
        Self::ProxyCompact,
        Self::Dashboard,
        Self::Watch,
        Self::TokenRefresh,
        Self::UpstreamWebsocketConnect,
        Self::ResponseCreate,
        Self::CompactResponseCreate,
    ];

    /// Stable word for settings, messages, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProxyHttp => "proxy_http",
            Self::ProxyWebsocket => "proxy_websocket",
            Self::ProxyCompact => "proxy_compact",
            Self::Dashboard => "dashboard",
            Self::Watch => "watch",
            Self::TokenRefresh => "token_refresh",
            Self::UpstreamWebsocketConnect => "upstream_websocket_connect",
            Self::ResponseCreate => "response_create",
            Self::CompactResponseCreate => "compact_response_create",
        }
    }

    /// A lane holds a request from before its body is read to its end; a stage only one step of it.
    pub const fn is_lane(self) -> bool {
        matches!(
            self,
            Self::ProxyHttp
                | Self::ProxyWebsocket
                | Self::ProxyCompact
                | Self::Dashboard
                | Self::Watch
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("poolgate is temporarily overloaded {}", where_text(*.0))]
pub struct Overload(pub Bound);

fn where_text(bound: Bound) -> String {
    let name = bound.name();
    if bound.is_lane() { format!("in the {name} lane") } else { format!("during {name}") }
}

#[derive(Debug)]
pub struct Admission([Room; Bound::ALL.len()]);

#[derive(Debug)]
struct Room {
    slots: Arc<Semaphore>,
    /// Zero: unlimited.
    size: usize,
    refused: AtomicU64,
}

/// A place in a lane or stage, if any; given back when dropped.
#[derive(Debug, Default)]
#[must_use = "dropped, it gives the place back"]
pub struct Permit(Option<OwnedSemaphorePermit>);

impl Permit {
    pub fn release(&mut self) {
        self.0 = None;
    }
}

/// How full a lane or stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub in_use: usize,
    /// Zero: unlimited.
    pub size: usize,
    /// Refusals since the start.
    pub refused: u64,
}

impl Admission {
    pub fn new(limits: &Limits) -> Self {
        Self(Bound::ALL.map(|bound| Room::new(limits.size_of(bound))))
    }

    fn room(&self, bound: Bound) -> &Room {
        &self.0[bound as usize]
    }

    pub fn enter(&self, bound: Bound) -> Result<Permit, Overload> {
        let room = self.room(bound);
        room.take().ok_or_else(|| {
            room.refused.fetch_add(1, Ordering::Relaxed);
            Overload(bound)
        })
    }

    /// For what goes on without a place too: nobody is refused.
    pub fn enter_if_free(&self, bound: Bound) -> Permit {
        self.room(bound).take().unwrap_or_default()
    }

    pub fn level(&self, bound: Bound) -> Level {
        let Room { slots, size, refused } = self.room(bound);
        let in_use = Room::capacity(*size) - slots.available_permits();
        Level { in_use, size: *size, refused: refused.load(Ordering::Relaxed) }
    }
}

impl Room {
    fn new(size: usize) -> Self {
        let slots = Arc::new(Semaphore::new(Self::capacity(size)));
        Self { slots, size, refused: AtomicU64::new(0) }
    }

    const fn capacity(size: usize) -> usize {
        if size == 0 || size > Semaphore::MAX_PERMITS { Semaphore::MAX_PERMITS } else { size }
    }

    fn take(&self) -> Option<Permit> {
        Arc::clone(&self.slots).try_acquire_owned().ok().map(|permit| Permit(Some(permit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    #[test]
    fn each_bound_has_a_place_of_its_own() {
        for (index, bound) in Bound::ALL.into_iter().enumerate() {
            assert_eq!(bound as usize, index, "{bound:?}");
        }
    }

    #[test]
    fn rooms_are_isolated_and_places_come_back_once() {
        let limits =
            Limits { proxy_http: 2, proxy_compact: 1, response_create: 0, ..Limits::default() };
        let admission = Admission::new(&limits);
        let level = |bound| admission.level(bound);
        let compact = admission.enter(Bound::ProxyCompact).unwrap();
        assert_eq!(
            admission.enter(Bound::ProxyCompact).unwrap_err(),
            Overload(Bound::ProxyCompact)
        );
        let mut http = [Bound::ProxyHttp; 2].map(|bound| admission.enter(bound).unwrap());
        assert!(admission.enter(Bound::ProxyHttp).is_err());
        assert!(admission.enter(Bound::Dashboard).is_ok());
        http[0].release();
        http[0].release();
        let want = Level { in_use: 1, size: 2, refused: 1 };
        assert_eq!(level(Bound::ProxyHttp), want, "given back once, though released twice");
        drop((compact, http));
        assert_eq!(level(Bound::ProxyCompact), Level { in_use: 0, size: 1, refused: 1 });
        let many: Vec<_> =
            (0..500).map(|_| admission.enter(Bound::ResponseCreate).unwrap()).collect();
        let want = Level { in_use: many.len(), size: 0, refused: 0 };
        assert_eq!(level(Bound::ResponseCreate), want, "zero is unlimited");
    }

    #[test]
    fn of_many_at_once_no_more_enter_than_may() {
        let admission = Admission::new(&Limits { proxy_http: 10, ..Limits::default() });
        let held = parking_lot::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let entered = admission.enter(Bound::ProxyHttp);
                        held.lock().extend(entered);
                    }
                });
            }
        });
        assert_eq!(held.lock().len(), 10);
        let Level { in_use, refused, .. } = admission.level(Bound::ProxyHttp);
        assert_eq!((in_use, refused), (10, 390));
    }

    #[test]
    fn says_where() {
        let text = |bound| Overload(bound).to_string();
        assert_eq!(
            text(Bound::ProxyHttp),
            "poolgate is temporarily overloaded in the proxy_http lane"
        );
        assert_eq!(
            text(Bound::ResponseCreate),
            "poolgate is temporarily overloaded during response_create"
        );
    }
}
