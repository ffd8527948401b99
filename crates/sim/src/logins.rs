//! Sign-ins under way: who sits at the browser, which codes were handed out, and for what.
//!
//! One short lock. A code works once, for the redirect and the challenge it was asked for with.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;

use crate::account::Inner;
use crate::identity::hex;
use crate::kind::Kind;

/// What a poll for a device code is answered before the person has finished; afterwards it is
/// granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevicePoll {
    Pending,
    SlowDown,
    Expired,
    Denied,
}

/// What whoever opens the sign-in page does there.
#[derive(Clone, Debug)]
pub enum Person {
    SignsIn(Arc<Inner>),
    Declines,
}

/// An authorization code that was handed out.
#[derive(Clone, Debug)]
pub struct Code {
    pub account: Arc<Inner>,
    pub redirect: String,
    /// SHA-256 of the verifier, in base64.
    pub challenge: String,
    pub state: String,
}

/// A device code that somebody polls for.
#[derive(Debug)]
struct Device {
    user_code: String,
    answers: VecDeque<DevicePoll>,
}

/// How device codes are given out.
#[derive(Clone, Debug)]
struct DevicePlan {
    interval_s: u64,
    answers: Vec<DevicePoll>,
}

#[derive(Debug)]
struct State {
    people: Vec<(Kind, Person)>,
    codes: HashMap<String, Code>,
    devices: HashMap<String, Device>,
    /// `None`: there is no such endpoint.
    plan: Option<DevicePlan>,
    serial: u64,
}

#[derive(Debug)]
pub struct Logins(Mutex<State>);

impl Default for Logins {
    fn default() -> Self {
        let plan = DevicePlan { interval_s: 5, answers: vec![DevicePoll::Pending] };
        Self(Mutex::new(State {
            people: Vec::new(),
            codes: HashMap::new(),
            devices: HashMap::new(),
            plan: Some(plan),
            serial: 0,
        }))
    }
}

/// A new device code, for the answer.
pub struct NewDevice {
    pub id: String,
    pub user_code: String,
    pub interval_s: u64,
}

impl Logins {
    /// From now on that is who opens the page of this kind.
    pub fn seat(&self, kind: Kind, person: Person) {
        let mut state = self.0.lock();
        state.people.retain(|(seated, _)| *seated != kind);
        state.people.push((kind, person));
    }

    pub fn person(&self, kind: Kind) -> Option<Person> {
        let state = self.0.lock();
        state.people.iter().find(|(seated, _)| *seated == kind).map(|(_, person)| person.clone())
    }

    pub fn hand_out(&self, code: Code) -> String {
        let mut state = self.0.lock();
        let name = format!("ac_{}", state.next("code"));
        state.codes.insert(name.clone(), code);
        name
    }

    pub fn peek(&self, code: &str) -> Option<Arc<Inner>> {
        self.0.lock().codes.get(code).map(|code| Arc::clone(&code.account))
    }

    /// Takes a code; whatever is wrong with the rest of the request, it is spent.
    pub fn spend(&self, code: &str) -> Option<Code> {
        self.0.lock().codes.remove(code)
    }

    pub fn expire_codes(&self) {
        self.0.lock().codes.clear();
    }

    pub fn plan_devices(&self, plan: Option<(u64, &[DevicePoll])>) {
        self.0.lock().plan =
            plan.map(|(interval_s, answers)| DevicePlan { interval_s, answers: answers.to_vec() });
    }

    pub fn new_device(&self) -> Option<NewDevice> {
        let mut state = self.0.lock();
        let DevicePlan { interval_s, answers } = state.plan.clone()?;
        let id = format!("deviceauth_{}", state.next("device"));
        let letters = state.next("user").to_uppercase();
        let user_code = format!("{}-{}", &letters[..4], &letters[4..9]);
        let device = Device { user_code: user_code.clone(), answers: answers.into() };
        state.devices.insert(id.clone(), device);
        Some(NewDevice { id, user_code, interval_s })
    }

    /// `None`: the person has finished. A code that nobody was given has expired.
    pub fn poll_device(&self, id: &str, user_code: &str) -> Option<DevicePoll> {
        let mut state = self.0.lock();
        let device = state.devices.get_mut(id).filter(|device| device.user_code == user_code);
        let Some(device) = device else { return Some(DevicePoll::Expired) };
        let answer = device.answers.pop_front();
        if !matches!(answer, Some(DevicePoll::Pending | DevicePoll::SlowDown)) {
            state.devices.remove(id);
        }
        answer
    }
}

impl State {
    fn next(&mut self, what: &str) -> String {
        self.serial += 1;
        hex(&[what, &self.serial.to_string()])
    }
}

/// The challenge that belongs to a verifier (RFC 7636, S256).
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()))
}

/// Pairs of a query or a form, decoded; what does not decode is left out.
pub fn pairs(text: &str) -> HashMap<String, String> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((decoded(name)?, decoded(value)?))
    };
    text.split('&').filter_map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// For a query.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7636, appendix B.
    #[test]
    fn the_challenge_is_the_rfcs() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(challenge(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn queries_are_read_as_they_were_written() {
        let text = "a b/ä&=+%";
        assert_eq!(pairs(&format!("x={}&y=1+2", encoded(text)))["x"], text);
        assert_eq!(pairs("x=1+2%2B")["x"], "1 2+");
        assert!(pairs("x=%zz&y=%4").is_empty());
    }
}
