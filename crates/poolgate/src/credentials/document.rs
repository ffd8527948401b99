//! The two vendors' sign-in documents.
//!
//! Codex `auth.json`: `{"OPENAI_API_KEY", "tokens": {"id_token", "access_token", "refresh_token",
//! "account_id"}, "last_refresh"}` (as Codex CLI 0.169.0 writes it, 2026-11).
//! Claude `.credentials.json`: `{"claudeAiOauth": {"accessToken", "refreshToken", "expiresAt" (ms),
//! "scopes", "subscriptionType", "rateLimitTier"}}` (as other gateways
//! read it; docs/providers.md, "Sign-ins and refresh").

use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::refresh::{EARLY, SKEW};
use poolgate_core::units::Timestamp;
use serde_json::{Map, Value};

use super::{Bearer, jwt_claims, jwt_time};
use crate::secret::{Secret, sha256};

/// A Codex token that does not say when it expires is renewed after this time (multiplexer §4.1).
const CODEX_AGE: Duration = Duration::from_hours(8 * 24);

#[derive(Clone)]
pub struct SignIn {
    pub(super) kind: Kind,
    /// The whole document, unknown keys included.
    pub(super) document: Map<String, Value>,
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIn").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What a token endpoint gave. Absent parts keep their old value.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Grant {
    pub access_token: Option<Secret>,
    pub refresh_token: Option<Secret>,
    pub id_token: Option<Secret>,
    /// Seconds.
    pub expires_in: Option<f64>,
    pub scope: Option<String>,
    /// Claude: whose they are, `{"uuid", "email_address"}` and `{"uuid"}` (G).
    pub account: Option<Value>,
    pub organization: Option<Value>,
}

impl SignIn {
    pub fn parse(kind: Kind, bytes: &[u8]) -> Result<Self, String> {
        // serde's message would quote the content.
        let document = serde_json::from_slice(bytes)
            .map_err(|e| format!("not a JSON object (line {}, column {})", e.line(), e.column()))?;
        let sign_in = Self { kind, document };
        if sign_in.text("access").is_none_or(str::is_empty) {
            return Err(match kind {
                Kind::Codex
                    if sign_in.document.get("OPENAI_API_KEY").is_some_and(Value::is_string) =>
                {
                    "the file holds an API key, not a sign-in: add it with kind = \"openai\"".into()
                }
                Kind::Codex => "no tokens.access_token: sign in with the Codex CLI".into(),
                _ => "no claudeAiOauth.accessToken: sign in with Claude Code".into(),
            });
        }
        Ok(sign_in)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A field under both vendors' names.
    fn text(&self, field: &str) -> Option<&str> {
        let (group, name) = match (self.kind, field) {
            (Kind::Codex, "access") => ("tokens", "access_token"),
            (Kind::Codex, "refresh") => ("tokens", "refresh_token"),
            (Kind::Codex, "id") => ("tokens", "id_token"),
            (Kind::Codex, "account") => ("tokens", "account_id"),
            (_, "access") => ("claudeAiOauth", "accessToken"),
            (_, "refresh") => ("claudeAiOauth", "refreshToken"),
            _ => return None,
        };
        self.document.get(group)?.get(name)?.as_str()
    }

    pub fn bearer(&self) -> Result<Bearer, String> {
        Bearer::new(self.text("access").unwrap_or_default(), self.chatgpt_account().as_deref())
    }

    pub fn refresh_token(&self) -> Option<&str> {
        self.text("refresh").filter(|token| !token.is_empty())
    }

    /// The scopes to ask for again; an empty list for Codex, whose request does not vary.
    pub fn scopes(&self) -> Vec<&str> {
        let scopes = self.document.get("claudeAiOauth").and_then(|oauth| oauth.get("scopes"));
        scopes.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// From the document, else from the token's claims.
    pub(super) fn chatgpt_account(&self) -> Option<String> {
        if self.kind != Kind::Codex {
            return None;
        }
        self.text("account").map(str::to_owned).or_else(|| self.chatgpt_claim("chatgpt_account_id"))
    }

    pub(super) fn chatgpt_claim(&self, name: &str) -> Option<String> {
        let tokens = [self.text("id"), self.text("access")];
        tokens.into_iter().flatten().filter_map(jwt_claims).find_map(|claims| {
            let own = claims.get("https://api.openai.com/auth")?;
            Some(own.get(name)?.as_str()?.to_owned())
        })
    }

    /// In the provider's words: `plus`, `pro`, `max` …; Claude's tier, where there is one, after a
    /// slash.
    pub fn plan(&self) -> Option<String> {
        if self.kind == Kind::Codex {
            return self.chatgpt_claim("chatgpt_plan_type");
        }
        let oauth = self.document.get("claudeAiOauth")?;
        let plan = oauth.get("subscriptionType")?.as_str()?;
        let tier = oauth.get("rateLimitTier").and_then(Value::as_str);
        Some(tier.map_or_else(|| plan.to_owned(), |tier| format!("{plan}/{tier}")))
    }

    pub fn claude_account_uuid(&self) -> Option<String> {
        Some(self.document.get("oauthAccount")?.get("accountUuid")?.as_str()?.to_owned())
    }

    pub fn expires_at(&self) -> Option<Timestamp> {
        if self.kind == Kind::Codex {
            return jwt_time(self.text("access")?, "exp");
        }
        let oauth = self.document.get("claudeAiOauth")?;
        let ms = oauth.get("expiresAt")?.as_i64()?;
        (ms > 0).then_some(Timestamp(ms))
    }

    /// Or as good as that.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at().is_some_and(|at| at.minus(SKEW) <= now)
    }

    /// From issue to expiry; `None`: the token does not say.
    pub fn lifetime(&self) -> Option<Duration> {
        let issued_at = jwt_time(self.text("access")?, "iat")?;
        Some(issued_at.until(self.expires_at()?))
    }

    /// Tells token pairs apart without keeping them.
    pub fn content(&self) -> [u8; 32] {
        let [access, refresh] = ["access", "refresh"].map(|name| self.text(name).unwrap_or(""));
        sha256(format!("{access}\n{refresh}").as_bytes())
    }

    /// When it should be refreshed before its next use; `None`: never.
    pub fn due_at(&self) -> Option<Timestamp> {
        self.refresh_token()?;
        match (self.expires_at(), self.kind) {
            (Some(at), _) => Some(at.minus(EARLY)),
            (None, Kind::Codex) => {
                Some(self.last_refresh().map_or(Timestamp::default(), |at| at.plus(CODEX_AGE)))
            }
            (None, _) => None,
        }
    }

    pub fn last_refresh(&self) -> Option<Timestamp> {
        let text = self.document.get("last_refresh")?.as_str()?;
        Some(Timestamp(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()))
    }

    /// The document after a refresh at `now`.
    #[must_use]
    pub fn renewed(&self, grant: &Grant, now: Timestamp) -> Self {
        let mut document = self.document.clone();
        let (group, names) = match self.kind {
            Kind::Codex => ("tokens", ["access_token", "refresh_token"]),
            _ => ("claudeAiOauth", ["accessToken", "refreshToken"]),
        };
        let values = [&grant.access_token, &grant.refresh_token];
        if let Some(tokens) = document.get_mut(group).and_then(Value::as_object_mut) {
            let mut put = |name: &str, value: &Option<Secret>| {
                if let Some(value) = value.as_ref().filter(|value| !value.expose().is_empty()) {
                    tokens.insert(name.to_owned(), value.expose().into());
                }
            };
            names.iter().zip(values).for_each(|(name, value)| put(name, value));
            if self.kind == Kind::Codex {
                put("id_token", &grant.id_token);
            } else {
                if let Some(lifetime) = grant.expires_in {
                    let lifetime = Duration::from_secs_f64(lifetime.clamp(60.0, 90.0 * 86_400.0));
                    tokens.insert("expiresAt".into(), now.plus(lifetime).0.into());
                }
                if let Some(scope) = &grant.scope {
                    let scopes: Vec<Value> = scope.split_whitespace().map(Into::into).collect();
                    tokens.insert("scopes".into(), scopes.into());
                }
            }
        }
        if self.kind == Kind::Codex {
            let at = jiff::Timestamp::from_millisecond(now.0).unwrap_or_default();
            document.insert("last_refresh".into(), at.to_string().into());
        }
        Self { kind: self.kind, document }
    }

    /// As its vendor's client writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.document).expect("a JSON object can be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn jwt(claims: &str) -> String {
        use base64::Engine;
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
        format!("e30.{payload}.x")
    }

    fn codex(exp: i64) -> SignIn {
        let access = jwt(&format!(
            r#"{{"exp":{exp},"https://api.openai.com/auth":{{"chatgpt_account_id":"acc-1","chatgpt_plan_type":"plus"}}}}"#
        ));
        let text = format!(
            r#"{{"OPENAI_API_KEY":null,"tokens":{{"access_token":"{access}","refresh_token":"r1","new":1}},"mine":true}}"#
        );
        SignIn::parse(Kind::Codex, text.as_bytes()).unwrap()
    }

    fn claude(expires_at: i64) -> SignIn {
        let text = format!(
            r#"{{"claudeAiOauth":{{"accessToken":"a1","refreshToken":"r1","expiresAt":{expires_at},
                "scopes":["user:inference"],"subscriptionType":"max","rateLimitTier":"default_claude_max_20x"}},"mcpOAuth":{{}}}}"#
        );
        SignIn::parse(Kind::Claude, text.as_bytes()).unwrap()
    }

    #[test]
    fn knows_when_it_is_due() {
        let seconds = NOW.unix_seconds();
        let cases = [
            ("fresh", codex(seconds + 3600), false, false),
            ("soon", codex(seconds + 299), true, false),
            ("clocks differ", codex(seconds + 30), true, true),
            ("past", codex(seconds - 1), true, true),
            ("fresh", claude((seconds + 3600) * 1000), false, false),
            ("past", claude((seconds - 1) * 1000), true, true),
            ("no date", claude(0), false, false),
        ];
        for (name, sign_in, due, expired) in cases {
            let is_due = sign_in.due_at().is_some_and(|at| at <= NOW);
            assert_eq!((is_due, sign_in.is_expired(NOW)), (due, expired), "{name}");
        }
    }

    #[test]
    fn a_renewal_keeps_what_it_does_not_know() {
        let grant = Grant {
            access_token: Some(Secret::new("a2")),
            refresh_token: Some(Secret::new("r2")),
            expires_in: Some(3600.0),
            ..Grant::default()
        };
        let codex = codex(0).renewed(&grant, NOW);
        assert_eq!((codex.text("access"), codex.refresh_token()), (Some("a2"), Some("r2")));
        let written: Value = serde_json::from_slice(&codex.to_bytes()).unwrap();
        assert_eq!((&written["mine"], &written["tokens"]["new"]), (&true.into(), &1.into()));
        let claude = claude(0).renewed(&grant, NOW);
        let written: Value = serde_json::from_slice(&claude.to_bytes()).unwrap();
        assert!(written.get("mcpOAuth").is_some());
        assert_eq!(written["claudeAiOauth"]["expiresAt"], NOW.0 + 3_600_000);
        let unchanged = claude.renewed(&Grant::default(), NOW);
        assert_eq!(unchanged.refresh_token(), Some("r2"), "a missing refresh token is kept");
    }

    #[test]
    fn reads_identity_and_plan() {
        assert_eq!(codex(1).bearer().unwrap().account_id.unwrap(), "acc-1");
        assert_eq!(codex(1).plan().as_deref(), Some("plus"));
        assert_eq!(claude(1).plan().as_deref(), Some("max/default_claude_max_20x"));
    }

    #[test]
    fn refuses_without_quoting() {
        for (kind, text) in [
            (Kind::Codex, "sk-secret"),
            (Kind::Codex, r#"{"tokens":{}}"#),
            (Kind::Codex, r#"{"OPENAI_API_KEY":"sk-secret"}"#),
            (Kind::Claude, r#"{"claudeAiOauth":{"accessToken":""}}"#),
        ] {
            let error = SignIn::parse(kind, text.as_bytes()).unwrap_err();
            assert!(!error.contains("sk-secret"), "{error}");
        }
    }
}
