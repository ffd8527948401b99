//! What one step of a request takes of the room that all requests share.
//!
//! Starting a response takes a place from when it is sent until the upstream says that it has been
//! created, so that many slow starts cannot pile up behind one upstream. What waits its turn on a
//! socket has not got that far and takes nothing. Full means that the request is told at once: no
//! account is charged, and none other is tried.
//!
//! An answer in one piece never says that it has been created: its place would be taken for as long as
//! it is generated, so that a few slow ones would keep everybody out. It takes none. A compaction does,
//! streamed or not: its stage is its own, and is meant to bound all of it.

use poolgate_core::account::Surface;

use super::Call;
use super::peek::Purpose;
use crate::admission::{Bound, Overload, Permit};
use crate::app::App;

/// A place for the start of this call's response; `streams`: the upstream will stream it.
pub fn create(app: &App, call: &Call, streams: bool) -> Result<Permit, Overload> {
    match (call.surface, call.head.purpose) {
        (Surface::Chat | Surface::Messages | Surface::CountTokens, _) => Ok(Permit::default()),
        (_, Purpose::Compaction) => app.admission.enter(Bound::CompactResponseCreate),
        _ if !streams => Ok(Permit::default()),
        // It makes no response worth waiting for, and the request behind it wants the warm socket.
        (_, Purpose::WarmUp) if call.over.is_some() => {
            Ok(app.admission.enter_if_free(Bound::ResponseCreate))
        }
        (_, Purpose::WarmUp | Purpose::Answer) => app.admission.enter(Bound::ResponseCreate),
    }
}
