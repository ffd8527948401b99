//! The builder that scripts a fault.

use std::sync::Arc;

use super::Inner;
use crate::fault::{Fault, HANDSHAKES, Script, TURNS, WARM_UPS};

/// A fault about to be scripted: it takes effect when this value is dropped, which is at the end
/// of the statement `account.fault(…).times(2).on("/v1/messages");`.
///
/// By default it hits one model call (responses, compact, chat completions, messages) of the
/// account; polls of usage, models and tokens pass it by. Of what a WebSocket does, faults that
/// are a whole answer hit the handshake, all others a turn; [`Self::turns`] and
/// [`Self::warm_ups`] say otherwise. Of several scripted faults the oldest that fits is taken.
#[derive(Debug)]
pub struct ScriptedFault {
    account: Arc<Inner>,
    script: Option<Script>,
}

#[expect(clippy::return_self_not_must_use, reason = "dropping the value is what scripts it")]
impl ScriptedFault {
    pub(super) fn new(account: Arc<Inner>, fault: Fault) -> Self {
        Self { account, script: Some(Script { fault, times: Some(1), after: 0, on: None }) }
    }

    /// Hits the next `times` requests.
    pub fn times(mut self, times: u32) -> Self {
        self.script().times = Some(times);
        self
    }

    /// Hits every request until [`super::Account::clear_faults`].
    pub fn forever(mut self) -> Self {
        self.script().times = None;
        self
    }

    /// Hits requests to paths that begin so, model calls or not; `"/"` means all.
    pub fn on(mut self, prefix: &str) -> Self {
        self.script().on = Some(prefix.to_owned());
        self
    }

    /// Lets so many pass that it could hit.
    pub fn after(mut self, passes: u32) -> Self {
        self.script().after = passes;
        self
    }

    /// Hits handshakes of sockets.
    pub fn on_handshakes(self) -> Self {
        self.on(HANDSHAKES)
    }

    /// Hits turns of sockets, warm-ups not included.
    pub fn turns(self) -> Self {
        self.on(TURNS)
    }

    /// Hits warm-ups of sockets.
    pub fn warm_ups(self) -> Self {
        self.on(WARM_UPS)
    }

    fn script(&mut self) -> &mut Script {
        self.script.as_mut().expect("taken only by drop")
    }
}

impl Drop for ScriptedFault {
    fn drop(&mut self) {
        if let Some(script) = self.script.take() {
            self.account.state.lock().faults.push(script);
        }
    }
}
