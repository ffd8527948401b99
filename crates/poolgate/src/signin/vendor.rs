//! Where each vendor's sign-in lives, and what its pages are asked.

use http::Uri;
use poolgate_core::account::Kind;

use super::query::encoded;
use crate::config::Way;
use crate::credentials::{CLAUDE_CLIENT, CLAUDE_SCOPES, CODEX_CLIENT};

/// The ports that Codex's client may be called back at: no other redirect is registered.
const CODEX_PORTS: [u16; 2] = [1455, 1457];
/// Any port is taken for Claude's client: the system gives a free one.
const CLAUDE_PORTS: [u16; 1] = [0];
const CODEX_SCOPES: &str = "openid profile email offline_access";
const CLAUDE_ORIGIN: &str = "https://platform.claude.com";

/// Where the vendor sends the browser with the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// This port of the machine that the browser runs on.
    Loopback(u16),
    /// The vendor's own page, which shows the code.
    Page,
}

#[derive(Clone, Debug)]
pub struct Vendor {
    pub kind: Kind,
    pub token_url: Uri,
    /// The account's: its calls go by it or nowhere.
    pub way: Way,
    /// What stands before the paths of its endpoints.
    issuer: String,
}

impl Vendor {
    /// The pages are found beside the token endpoint, wherever that is.
    pub fn of(kind: Kind, token_url: &Uri, way: Way) -> Result<Self, String> {
        let path = match kind {
            Kind::Codex => "/oauth/token",
            Kind::Claude => "/v1/oauth/token",
            _ => return Err(format!("{} accounts have a key, not a sign-in", kind.name())),
        };
        let text = token_url.to_string();
        let issuer = text.strip_suffix(path).ok_or_else(|| {
            format!("token_url must end in {path}: where to sign in follows from it")
        })?;
        Ok(Self { kind, token_url: token_url.clone(), way, issuer: issuer.to_owned() })
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        if self.kind == Kind::Codex { "ChatGPT" } else { "Claude" }
    }

    /// Where a callback may be waited for, the best first.
    pub fn ports(&self) -> &'static [u16] {
        if self.kind == Kind::Codex { &CODEX_PORTS } else { &CLAUDE_PORTS }
    }

    pub fn callback_path(&self) -> &'static str {
        if self.kind == Kind::Codex { "/auth/callback" } else { "/callback" }
    }

    /// The way back from a browser that may be on another machine.
    pub fn remote_redirect(&self, port: Option<u16>) -> Redirect {
        match self.kind {
            Kind::Codex => Redirect::Loopback(port.unwrap_or(CODEX_PORTS[0])),
            _ => Redirect::Page,
        }
    }

    pub fn redirect_uri(&self, redirect: Redirect) -> String {
        match redirect {
            Redirect::Loopback(port) => {
                format!("http://localhost:{port}{}", self.callback_path())
            }
            Redirect::Page => format!("{}/oauth/code/callback", self.issuer),
        }
    }

    /// What Codex's device codes are asked for at, and the redirect they stand for.
    pub fn device_url(&self, step: &str) -> String {
        format!("{}/api/accounts/deviceauth/{step}", self.issuer)
    }

    pub fn device_redirect(&self) -> String {
        format!("{}/deviceauth/callback", self.issuer)
    }

    /// Where a person enters a device code.
    pub fn device_page(&self) -> String {
        format!("{}/codex/device", self.issuer)
    }

    pub fn authorize_url(&self, redirect: Redirect, challenge: &str, state: &str) -> String {
        let redirect = self.redirect_uri(redirect);
        let (page, pairs) = if self.kind == Kind::Codex {
            let pairs = [
                ("response_type", "code"),
                ("client_id", CODEX_CLIENT),
                ("redirect_uri", &redirect),
                ("scope", CODEX_SCOPES),
                ("code_challenge", challenge),
                ("code_challenge_method", "S256"),
                ("id_token_add_organizations", "true"),
                ("codex_cli_simplified_flow", "true"),
                ("state", state),
            ];
            (format!("{}/oauth/authorize", self.issuer), pairs.to_vec())
        } else {
            let pairs = [
                // Asks the page to show the code.
                ("code", "true"),
                ("client_id", CLAUDE_CLIENT),
                ("response_type", "code"),
                ("redirect_uri", &redirect),
                ("scope", CLAUDE_SCOPES),
                ("code_challenge", challenge),
                ("code_challenge_method", "S256"),
                ("state", state),
            ];
            // The page for subscriptions has a place of its own.
            let page = match self.issuer.as_str() {
                CLAUDE_ORIGIN => "https://claude.com/cai/oauth/authorize".to_owned(),
                issuer => format!("{issuer}/oauth/authorize"),
            };
            (page, pairs.to_vec())
        };
        let pair = |(name, value): (&str, &str)| format!("{name}={}", encoded(value));
        let query: Vec<String> = pairs.into_iter().map(pair).collect();
        format!("{page}?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_stand_beside_the_token_endpoint() {
        let of = |kind, url: &'static str| Vendor::of(kind, &Uri::from_static(url), Way::default());
        let codex = of(Kind::Codex, "http://127.0.0.1:1/x/oauth/token").unwrap();
        assert_eq!(codex.device_page(), "http://127.0.0.1:1/x/codex/device");
        assert_eq!(
            codex.device_url("usercode"),
            "http://127.0.0.1:1/x/api/accounts/deviceauth/usercode"
        );
        let claude = of(Kind::Claude, "http://127.0.0.1:1/v1/oauth/token").unwrap();
        let url = claude.authorize_url(Redirect::Page, "c", "s");
        assert!(url.starts_with("http://127.0.0.1:1/oauth/authorize?"), "{url}");
        assert!(of(Kind::Codex, "http://127.0.0.1:1/token").unwrap_err().contains("/oauth/token"));
        assert!(of(Kind::OpenAi, "http://127.0.0.1:1/oauth/token").unwrap_err().contains("a key"));
    }
}
