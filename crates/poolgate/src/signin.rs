//! Signing in to a subscription, as plain values: begun, shown to a person, and finished with what
//! their browser brought back. Nothing here prints, asks or waits for people.
//!
//! A sign-in exists in memory only, until its tokens are stored: one that is given up leaves nothing
//! behind. Its state and its verifier (RFC 7636, S256) never leave this process but in the URL that
//! was asked for, the verifier not even there; what comes back without the state is not ours. Codes
//! and tokens are in no message. Facts of the wire: docs/providers.md, "Signing in".

mod callback;
mod device;
mod exchange;
mod keep;
mod listener;
mod query;
mod vendor;

use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;

pub use callback::{CallbackError, Return};
pub use device::{Device, Progress};
pub use keep::{KeepError, Keeper};
pub use listener::{Listener, Page};
pub use vendor::Vendor;

use crate::credentials::{Identity, SignIn};
use crate::egress::Egress;
use crate::secret::{Secret, random_token, sha256};
use vendor::Redirect;

/// How long a person has (codex-lb §2.3).
pub const TIME_LIMIT: Duration = Duration::from_mins(15);

/// Messages are for the person who signs in, and hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    #[error("the sign-in was declined")]
    Declined,
    /// By the vendor, in its own word.
    #[error("the sign-in was refused ({0})")]
    Refused(String),
    #[error("the code has expired or was used before ({0}): begin again")]
    BadCode(String),
    #[error("the device code was not entered in time: begin again")]
    DeviceExpired,
    #[error("there are no device codes for this account: sign in with the browser")]
    NoDeviceCodes,
    #[error("too many sign-ins: try again {}", wait_text(*.0))]
    Slower(Option<Duration>),
    #[error("the vendor answers {0}: try again later")]
    Trouble(String),
    #[error("the vendor cannot be reached: {0}")]
    Unreachable(String),
}

fn wait_text(wait: Option<Duration>) -> String {
    wait.map_or_else(|| "later".into(), |wait| format!("in {} s", wait.as_secs()))
}

/// What a sign-in gave.
#[derive(Clone, Debug)]
pub struct Signed {
    pub sign_in: SignIn,
    pub whose: Identity,
}

impl Signed {
    pub fn kind(&self) -> Kind {
        self.sign_in.kind()
    }
}

/// A sign-in that waits for what a browser brings back.
#[derive(Debug)]
pub struct Browser {
    vendor: Vendor,
    state: Secret,
    verifier: Secret,
    /// Where the callback is waited for on this machine; `None`: it can only be pasted.
    port: Option<u16>,
}

impl Browser {
    pub fn begin(vendor: Vendor, port: Option<u16>) -> anyhow::Result<Self> {
        let (state, verifier) = (Secret::new(random_token()?), Secret::new(random_token()?));
        Ok(Self { vendor, state, verifier, port })
    }

    /// For a browser anywhere.
    pub fn url(&self) -> String {
        self.url_to(self.vendor.remote_redirect(self.port))
    }

    /// For a browser on this machine; `None`: nobody waits for it here.
    pub fn local_url(&self) -> Option<String> {
        Some(self.url_to(Redirect::Loopback(self.port?)))
    }

    fn url_to(&self, redirect: Redirect) -> String {
        use base64::Engine;
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let challenge = engine.encode(sha256(self.verifier.expose().as_bytes()));
        self.vendor.authorize_url(redirect, &challenge, self.state.expose())
    }

    /// What a person pasted: the whole URL of the page, or what the vendor's page showed.
    pub fn pasted(&self, text: &str) -> Result<Return, CallbackError> {
        callback::pasted(text, self.state.expose(), self.vendor.remote_redirect(self.port))
    }

    /// The query of a request to the listener.
    pub fn called_back(&self, query: &str) -> Result<Return, CallbackError> {
        let port = self.port.ok_or(CallbackError::NotACallback)?;
        callback::query(query, self.state.expose(), Redirect::Loopback(port))
    }

    /// Exchanges the code for tokens.
    pub async fn finish(
        &self,
        back: &Return,
        egress: &Egress,
        now: Timestamp,
    ) -> Result<Signed, SignInError> {
        let code = exchange::Code {
            value: &back.code,
            redirect: self.vendor.redirect_uri(back.redirect),
            verifier: &self.verifier,
            state: &self.state,
        };
        exchange::exchange(&self.vendor, &code, egress, now).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Way;

    fn begun(kind: Kind, token_url: &'static str, port: Option<u16>) -> Browser {
        let vendor = Vendor::of(kind, &http::Uri::from_static(token_url), Way::default()).unwrap();
        let mut begun = Browser::begin(vendor, port).unwrap();
        // The example of RFC 7636, appendix B.
        begun.verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        begun.state = Secret::new("the-state");
        begun
    }

    #[test]
    fn urls_are_what_the_vendors_clients_open() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        let codex = begun(Kind::Codex, "https://auth.openai.com/oauth/token", Some(1455));
        let want = format!(
            "https://auth.openai.com/oauth/authorize?response_type=code\
             &client_id=app_EMoamEEZ73f0CkXaXp7hrann\
             &redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback\
             &scope=openid%20profile%20email%20offline_access\
             &code_challenge={challenge}&code_challenge_method=S256\
             &id_token_add_organizations=true&codex_cli_simplified_flow=true&state=the-state"
        );
        assert_eq!(codex.url(), want);
        assert_eq!(codex.local_url(), Some(want));

        let claude = begun(Kind::Claude, "https://platform.claude.com/v1/oauth/token", Some(4000));
        let want = |redirect: &str| {
            format!(
                "https://claude.com/cai/oauth/authorize?code=true\
                 &client_id=9d1c250a-e61b-44d9-88ed-5944d1962f5e&response_type=code\
                 &redirect_uri={redirect}\
                 &scope=user%3Aprofile%20user%3Ainference%20user%3Asessions%3Aclaude_code\
                 %20user%3Amcp_servers%20user%3Afile_upload\
                 &code_challenge={challenge}&code_challenge_method=S256&state=the-state"
            )
        };
        let page = "https%3A%2F%2Fplatform.claude.com%2Foauth%2Fcode%2Fcallback";
        assert_eq!(claude.url(), want(page));
        let local = "http%3A%2F%2Flocalhost%3A4000%2Fcallback";
        assert_eq!(claude.local_url(), Some(want(local)));
    }

    #[test]
    fn without_a_listener_the_address_is_pasted() {
        let codex = begun(Kind::Codex, "https://auth.openai.com/oauth/token", None);
        assert!(codex.url().contains("localhost%3A1455"), "the vendor's own port");
        assert_eq!(codex.local_url(), None);
        assert!(codex.called_back("code=c&state=the-state").is_err());
        assert!(codex.pasted("http://localhost:1455/auth/callback?code=c&state=the-state").is_ok());
    }

    #[test]
    fn two_sign_ins_share_nothing() {
        let url = "https://auth.openai.com/oauth/token";
        let vendor =
            || Vendor::of(Kind::Codex, &http::Uri::from_static(url), Way::default()).unwrap();
        let [a, b] = [(), ()].map(|()| Browser::begin(vendor(), None).unwrap());
        assert_ne!(a.state, b.state);
        assert_ne!(a.verifier, b.verifier);
        assert_ne!(a.state, a.verifier);
        assert!(!a.url().contains(a.verifier.expose()), "only its digest is shown");
        assert!(!format!("{a:?}").contains(a.verifier.expose()));
    }
}
