//! The scripted faults of an account, and which one a request gets.

use serde::Deserialize;

use super::Fault;

/// A fault, how often and where.
#[derive(Clone, Debug, Deserialize)]
pub struct Script {
    pub fault: Fault,
    /// `None`: for ever.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many that it could hit pass first.
    #[serde(default)]
    pub after: u32,
    /// Path prefix, [`HANDSHAKES`], [`TURNS`] or [`WARM_UPS`]; `None`: model calls.
    #[serde(default)]
    pub on: Option<String>,
}

/// The handshakes of sockets.
pub const HANDSHAKES: &str = "handshakes";
/// The turns of sockets, without warm-ups.
pub const TURNS: &str = "turns";
/// The warm-ups of sockets.
pub const WARM_UPS: &str = "warm_ups";

/// What may be hit: a request to this path, or a frame of a WebSocket.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// Polls, tokens, sign-ins.
    Other(&'a str),
    Model(&'a str),
    Handshake(&'a str),
    Turn,
    WarmUp,
}

impl Call<'_> {
    fn fits(self, script: &Script) -> bool {
        let Script { fault, on, .. } = script;
        match (on.as_deref(), self) {
            (Some(HANDSHAKES), Self::Handshake(_)) => true,
            (Some(on), Self::Other(path) | Self::Model(path) | Self::Handshake(path)) => {
                path.starts_with(on)
            }
            (Some(on), Self::Turn) => on == TURNS,
            (Some(on), Self::WarmUp) => on == WARM_UPS,
            (None, Self::Model(_)) => !fault.is_of_turns(),
            (None, Self::Handshake(_)) => fault.is_of_heads(),
            (None, Self::Turn) => !fault.is_of_heads(),
            (None, Self::Other(_) | Self::WarmUp) => false,
        }
    }
}

/// What an account has been told to do wrong, the oldest first.
#[derive(Debug, Default)]
pub struct Faults(Vec<Script>);

impl Faults {
    pub fn push(&mut self, script: Script) {
        if script.times != Some(0) {
            self.0.push(script);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The fault for this call, counted.
    pub fn take(&mut self, call: Call<'_>) -> Option<Fault> {
        let is_next = |script: &mut Script| {
            let fits = call.fits(script);
            let passes = fits && script.after > 0;
            script.after -= u32::from(passes);
            fits && !passes
        };
        let at = self.0.iter_mut().position(is_next)?;
        match &mut self.0[at].times {
            None => Some(self.0[at].fault.clone()),
            Some(1) => Some(self.0.remove(at).fault),
            Some(times) => {
                *times -= 1;
                Some(self.0[at].fault.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Phase;

    fn script(fault: Fault, times: Option<u32>, on: Option<&str>) -> Script {
        Script { fault, times, after: 0, on: on.map(ToOwned::to_owned) }
    }

    #[test]
    fn takes_the_oldest_fitting_until_it_runs_out() {
        let mut faults = Faults::default();
        faults.push(script(Fault::Forbidden, Some(2), None));
        faults.push(script(Fault::Unauthorized, None, Some("/usage")));
        faults.push(script(Fault::Overloaded, Some(1), None));
        assert!(matches!(faults.take(Call::Other("/usage")), Some(Fault::Unauthorized)));
        assert!(faults.take(Call::Other("/models")).is_none());
        for _ in 0..2 {
            assert!(matches!(faults.take(Call::Model("/call")), Some(Fault::Forbidden)));
        }
        assert!(matches!(faults.take(Call::Model("/call")), Some(Fault::Overloaded)));
        assert!(faults.take(Call::Model("/call")).is_none());
        assert_eq!(faults.len(), 1);
    }

    #[test]
    #[rustfmt::skip]
    fn what_a_fault_hits_unless_told() {
        //                                                                   call  shake  turn   warm-up
        let cases = [
            (script(Fault::Forbidden, None, None),                          [true,  true,  false, false]),
            (script(Fault::CutBeforeOutput, None, None),                    [true,  false, true,  false]),
            (script(Fault::stall(Phase::Head), None, None),                 [true,  true,  false, false]),
            (script(Fault::stall(Phase::Body), None, None),                 [true,  false, true,  false]),
            (script(Fault::close_after_turn(1000), None, None),             [false, false, true,  false]),
            (script(Fault::Forbidden, None, Some(TURNS)),                   [false, false, true,  false]),
            (script(Fault::Forbidden, None, Some(WARM_UPS)),                [false, false, false, true]),
            (script(Fault::Forbidden, None, Some("/v1/")),                  [true,  true,  false, false]),
        ];
        for (script, hits) in cases {
            let calls = [Call::Model("/v1/x"), Call::Handshake("/v1/x"), Call::Turn, Call::WarmUp];
            assert_eq!(calls.map(|call| call.fits(&script)), hits, "{script:?}");
        }
    }

    #[test]
    fn lets_pass_what_it_was_told_to() {
        let mut faults = Faults::default();
        faults.push(Script { after: 2, ..script(Fault::close_after_turn(1000), Some(1), None) });
        let taken = [(); 4].map(|()| faults.take(Call::Turn).is_some());
        assert_eq!(taken, [false, false, true, false]);
    }
}
