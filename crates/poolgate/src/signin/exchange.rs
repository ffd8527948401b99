//! Exchanging a code for tokens, and what an issuer's refusals mean.
//!
//! Codex's issuer takes a form (S), Claude's a JSON object that repeats the state (G). A code works
//! once, so nothing is sent twice.

use std::time::Duration;

use http::{Method, StatusCode, Uri};
use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;
use serde_json::json;

use super::callback::word;
use super::query::encoded;
use super::{SignInError, Signed, Vendor};
use crate::credentials::{CLAUDE_CLIENT, CODEX_CLIENT, Grant, SignIn};
use crate::egress::Egress;
use crate::providers::{ErrorFields, retry_after};
use crate::secret::Secret;

/// A person waits; the issuer has much to do the first time.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A code, and what it was asked for with.
pub struct Code<'a> {
    pub value: &'a Secret,
    pub redirect: String,
    pub verifier: &'a Secret,
    pub state: &'a Secret,
}

pub async fn exchange(
    vendor: &Vendor,
    code: &Code<'_>,
    egress: &Egress,
    now: Timestamp,
) -> Result<Signed, SignInError> {
    let (encoding, body) = body(vendor.kind, code);
    let answer = post(egress, vendor, vendor.token_url.clone(), encoding, body, now).await?;
    let body = answer.map_err(Refusal::of_a_code)?;
    // An answer that cannot be read says nothing that may be shown.
    let odd = |what: &str| SignInError::Trouble(what.to_owned());
    let grant: Grant =
        serde_json::from_slice(&body).map_err(|_| odd("something that is no tokens"))?;
    let sign_in = SignIn::issued(vendor.kind, &grant, now).map_err(odd)?;
    // What no header can carry is found here, and not with the first request.
    sign_in.bearer().map_err(|_| odd("tokens that no request can carry"))?;
    let whose = sign_in.identity();
    Ok(Signed { sign_in, whose })
}

fn body(kind: Kind, code: &Code<'_>) -> (&'static str, String) {
    let (value, verifier) = (code.value.expose(), code.verifier.expose());
    if kind == Kind::Codex {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", value),
            ("redirect_uri", &code.redirect),
            ("client_id", CODEX_CLIENT),
            ("code_verifier", verifier),
        ];
        let form = pairs.map(|(name, value)| format!("{name}={}", encoded(value)));
        return ("application/x-www-form-urlencoded", form.join("&"));
    }
    let object = json!({
        "grant_type": "authorization_code",
        "code": value,
        "redirect_uri": code.redirect,
        "client_id": CLAUDE_CLIENT,
        "code_verifier": verifier,
        "state": code.state.expose(),
    });
    ("application/json", object.to_string())
}

/// An answer other than 200.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// The issuer's own word for it; empty: none that may be shown.
    pub code: String,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    fn of_a_code(self) -> SignInError {
        match self.status.as_u16() {
            400 | 401 if self.code == "invalid_client" => SignInError::Refused(self.code),
            400 | 401 => SignInError::BadCode(self.word()),
            403 => SignInError::Refused(self.word()),
            _ => self.trouble(),
        }
    }

    pub fn trouble(self) -> SignInError {
        match self.status.as_u16() {
            429 => SignInError::Slower(self.retry_after),
            status => SignInError::Trouble(format!("status {status}")),
        }
    }

    pub fn word(&self) -> String {
        if self.code.is_empty() {
            format!("status {}", self.status.as_u16())
        } else {
            self.code.clone()
        }
    }
}

/// One call of our own to an issuer.
pub async fn post(
    egress: &Egress,
    vendor: &Vendor,
    url: Uri,
    encoding: &'static str,
    body: String,
    now: Timestamp,
) -> Result<Result<bytes::Bytes, Refusal>, SignInError> {
    let headers = [("content-type", Secret::new(encoding))];
    let call = egress.call(Method::POST, url, &vendor.way, &headers, Some(body), CALL_TIMEOUT);
    let (head, body) =
        call.await.map_err(|error| SignInError::Unreachable(format!("{error:#}")))?;
    if head.status == StatusCode::OK {
        return Ok(Ok(body));
    }
    let fields = ErrorFields::read(&body, now);
    // OAuth's own shape is {"error": "invalid_grant"}, which reads as a message.
    let words = [fields.code, fields.message, fields.kind];
    let code = words.iter().map(|text| word(text)).find(|word| !word.contains(' '));
    let retry_after = retry_after(&head.headers, now);
    Ok(Err(Refusal { status: head.status, code: code.unwrap_or_default(), retry_after }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_what_each_issuer_takes() {
        let secret = Secret::new;
        let (value, verifier, state) = (secret("c/1"), secret("v"), secret("s"));
        let code = Code {
            value: &value,
            redirect: "http://localhost:1455/auth/callback".into(),
            verifier: &verifier,
            state: &state,
        };
        let (encoding, form) = body(Kind::Codex, &code);
        assert_eq!(encoding, "application/x-www-form-urlencoded");
        assert_eq!(
            form,
            "grant_type=authorization_code&code=c%2F1\
             &redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback\
             &client_id=app_EMoamEEZ73f0CkXaXp7hrann&code_verifier=v"
        );
        let (encoding, object) = body(Kind::Claude, &code);
        let object: serde_json::Value = serde_json::from_str(&object).unwrap();
        assert_eq!(encoding, "application/json");
        assert_eq!((&object["code"], &object["state"]), (&json!("c/1"), &json!("s")));
    }

    #[test]
    fn refusals_are_told_apart() {
        let refused = |status, code: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let retry_after = Some(Duration::from_secs(7));
            Refusal { status, code: code.into(), retry_after }.of_a_code().to_string()
        };
        let cases = [
            (400, "invalid_grant", "expired or was used before (invalid_grant)"),
            (400, "", "expired or was used before (status 400)"),
            (401, "invalid_client", "refused (invalid_client)"),
            (403, "account_deactivated", "refused (account_deactivated)"),
            (429, "", "try again in 7 s"),
            (503, "", "answers status 503"),
        ];
        for (status, code, part) in cases {
            let text = refused(status, code);
            assert!(text.contains(part), "{status} {code}: {text}");
        }
    }
}
