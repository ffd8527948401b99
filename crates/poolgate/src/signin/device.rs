//! Codex device codes: a person enters a short code on another machine, and we ask whether they have.
//!
//! Not RFC 8628: the answer is another code, with a verifier that the vendor made (S: Codex CLI;
//! the words of refusals: A, as other clients read them).

use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exchange::{self, Refusal, exchange, post};
use super::{SignInError, Signed, Vendor};
use crate::credentials::CODEX_CLIENT;
use crate::egress::Egress;
use crate::secret::Secret;

/// Asked no more often, whatever the vendor says.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);
/// Where the vendor does not say.
const USUAL: Duration = Duration::from_secs(5);
/// RFC 8628, 3.5.
const SLOWER_BY: Duration = Duration::from_secs(5);

/// A device code that waits for its person.
#[derive(Debug)]
pub struct Device {
    vendor: Vendor,
    id: Secret,
    /// What the person enters; not secret to them, but to everybody else.
    code: Secret,
    /// Between two polls.
    pub interval: Duration,
}

/// What a poll found.
#[derive(Debug)]
pub enum Progress {
    /// Ask again after [`Device::interval`].
    Waiting,
    Signed(Box<Signed>),
}

#[derive(Deserialize)]
struct NewCode {
    device_auth_id: Secret,
    #[serde(alias = "usercode")]
    user_code: Secret,
    /// Seconds, as text.
    interval: Option<Value>,
}

#[derive(Deserialize)]
struct Granted {
    authorization_code: Secret,
    code_verifier: Secret,
}

impl Device {
    pub async fn begin(
        vendor: Vendor,
        egress: &Egress,
        now: Timestamp,
    ) -> Result<Self, SignInError> {
        if vendor.kind != Kind::Codex {
            return Err(SignInError::NoDeviceCodes);
        }
        let body = json!({"client_id": CODEX_CLIENT});
        let answer = call(&vendor, "usercode", &body, egress, now).await?;
        let answer = answer.map_err(|refusal| match refusal.status.as_u16() {
            404 => SignInError::NoDeviceCodes,
            400..=403 => SignInError::Refused(refusal.word()),
            _ => refusal.trouble(),
        })?;
        let new: NewCode = serde_json::from_slice(&answer)
            .map_err(|_| SignInError::Trouble("something that is no device code".into()))?;
        let interval = interval(new.interval.as_ref());
        Ok(Self { vendor, id: new.device_auth_id, code: new.user_code, interval })
    }

    /// Where the code is entered.
    pub fn page(&self) -> String {
        self.vendor.device_page()
    }

    pub fn code(&self) -> &str {
        self.code.expose()
    }

    /// Asks once. What may pass is no error.
    pub async fn poll(&mut self, egress: &Egress, now: Timestamp) -> Result<Progress, SignInError> {
        let body = json!({"device_auth_id": self.id.expose(), "user_code": self.code.expose()});
        let answer = match call(&self.vendor, "token", &body, egress, now).await {
            // A network that was away for a moment.
            Err(SignInError::Unreachable(_)) => return Ok(Progress::Waiting),
            answer => answer?,
        };
        let granted = match answer {
            Ok(granted) => granted,
            Err(refusal) => {
                self.interval = (self.interval + judge(&refusal)?).min(LONGEST);
                return Ok(Progress::Waiting);
            }
        };
        let granted: Granted = serde_json::from_slice(&granted)
            .map_err(|_| SignInError::Trouble("something that is no code".into()))?;
        let code = exchange::Code {
            value: &granted.authorization_code,
            redirect: self.vendor.device_redirect(),
            verifier: &granted.code_verifier,
            state: &Secret::new(""),
        };
        let signed = exchange(&self.vendor, &code, egress, now).await?;
        Ok(Progress::Signed(Box::new(signed)))
    }
}

async fn call(
    vendor: &Vendor,
    step: &str,
    body: &Value,
    egress: &Egress,
    now: Timestamp,
) -> Result<Result<bytes::Bytes, Refusal>, SignInError> {
    let url = vendor.device_url(step).parse();
    let url = url.map_err(|_| SignInError::Unreachable("token_url is no URL".into()))?;
    post(egress, vendor, url, "application/json", body.to_string(), now).await
}

fn interval(said: Option<&Value>) -> Duration {
    let seconds = said.and_then(|value| match value {
        Value::String(text) => text.trim().parse().ok(),
        value => value.as_u64(),
    });
    seconds.map_or(USUAL, Duration::from_secs).clamp(SHORTEST, LONGEST)
}

/// How much longer to wait between polls, or that there is nothing to wait for. The word counts
/// before the status, since 403 and 404 mean "not yet".
fn judge(refusal: &Refusal) -> Result<Duration, SignInError> {
    match (refusal.code.as_str(), refusal.status.as_u16()) {
        ("access_denied", _) => Err(SignInError::Declined),
        ("deviceauth_expired" | "expired_token", _) => Err(SignInError::DeviceExpired),
        ("slow_down", _) | (_, 429) => Ok(SLOWER_BY),
        ("authorization_pending" | "deviceauth_authorization_pending", _)
        | (_, 403 | 404 | 500..=599) => Ok(Duration::ZERO),
        _ => Err(SignInError::Refused(refusal.word())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_to_wait_for() {
        let pending = "deviceauth_authorization_pending";
        let cases: [(&str, u16, Result<u64, &str>); 11] = [
            ("", 403, Ok(0)),
            ("", 404, Ok(0)),
            (pending, 400, Ok(0)),
            ("slow_down", 400, Ok(5)),
            ("slow_down", 403, Ok(5)),
            ("", 429, Ok(5)),
            ("", 502, Ok(0)),
            ("access_denied", 403, Err("declined")),
            ("deviceauth_expired", 403, Err("not entered in time")),
            ("invalid_request", 400, Err("invalid_request")),
            ("", 401, Err("status 401")),
        ];
        for (code, status, want) in cases {
            let status = http::StatusCode::from_u16(status).unwrap();
            let refusal = Refusal { status, code: code.into(), retry_after: None };
            match (judge(&refusal), want) {
                (Ok(more), Ok(seconds)) => assert_eq!(more.as_secs(), seconds, "{refusal:?}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{refusal:?}: {error}");
                }
                (got, want) => panic!("{refusal:?}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn asks_as_often_as_it_is_told_within_reason() {
        let cases = [
            (json!("7"), 7),
            (json!(7), 7),
            (json!("0"), 1),
            (json!(86_400), 60),
            (json!("soon"), 5),
            (json!(null), 5),
        ];
        for (said, seconds) in cases {
            assert_eq!(interval(Some(&said)).as_secs(), seconds, "{said}");
        }
        assert_eq!(interval(None).as_secs(), 5);
    }
}
