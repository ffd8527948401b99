//! The two vendors' sign-in documents.
//!
//! Codex `auth.json`: `{"OPENAI_API_KEY", "tokens": {"id_token", "access_token", "refresh_token",
//! "account_id"}, "last_refresh"}` (as Codex CLI 0.169.0 writes it, 2026-11).
//! Claude `.credentials.json`: `{"claudeAiOauth": {"accessToken", "refreshToken", "expiresAt" (ms),
//! "scopes", "subscriptionType", "rateLimitTier"}}` (as other gateways
//! read it; docs/providers.md, "Sign-ins and refresh").

use std::ops::RangeInclusive;
use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::refresh::{EARLY, SKEW};
use poolgate_core::units::Timestamp;
use serde_json::{Map, Value};

use super::{Bearer, jwt_claims, jwt_time};
use crate::secret::{Secret, sha256};

/// A Codex token that does not say when it expires is renewed after this time (multiplexer §4.1).
const CODEX_AGE: Duration = Duration::from_hours(8 * 24);
/// A token is due this part of its lifetime before it expires, if that is later than core's time: one
/// that lives for five minutes is not due when it is given.
const EARLY_PART: u32 = 4;
/// How long a token lives whose issuer does not say, or says something absurd (reliability §6.8).
const UNTOLD: Duration = Duration::from_hours(1);
/// Whatever it says (reliability §6.8).
const LIVES: RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(90 * 24);
/// Ten years, in seconds: more than that is no lifetime.
const ABSURD: f64 = 10.0 * 366.0 * 86_400.0;

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
    /// Seconds. An issuer may write it in any way: no tokens are lost because of it.
    #[serde(default, deserialize_with = "seconds")]
    pub expires_in: Option<f64>,
    pub scope: Option<String>,
    /// Claude: whose they are, `{"uuid", "email_address"}` and `{"uuid"}` (G).
    pub account: Option<Value>,
    pub organization: Option<Value>,
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let value: Value = serde::Deserialize::deserialize(from)?;
    Ok(value.as_f64().or_else(|| value.as_str()?.parse().ok()))
}

impl Grant {
    /// When the access token expires that was given at `now`, for issuers that say it beside the token.
    fn expires_at(&self, now: Timestamp) -> Timestamp {
        let told = self.expires_in.filter(|seconds| (f64::MIN_POSITIVE..ABSURD).contains(seconds));
        let read = || jwt_time(self.access_token.as_ref()?.expose(), "exp");
        let read = || read().map(|at| now.until(at)).filter(|left| !left.is_zero());
        let lives = told.map(Duration::from_secs_f64).or_else(read).unwrap_or(UNTOLD);
        now.plus(lives.clamp(*LIVES.start(), *LIVES.end()))
    }
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

    /// From issue to expiry. `granted_at`: when it came from the issuer, if this process asked for it;
    /// else the token may say. `None`: nobody knows.
    pub fn lifetime(&self, granted_at: Option<Timestamp>) -> Option<Duration> {
        let issued_at = granted_at.or_else(|| jwt_time(self.text("access")?, "iat"))?;
        Some(issued_at.until(self.expires_at()?))
    }

    /// How long before it expires it is due, if that is less than for others because it lives shortly.
    pub fn short_lead(&self, granted_at: Option<Timestamp>) -> Option<Duration> {
        let part = self.lifetime(granted_at)? / EARLY_PART;
        (part < EARLY).then_some(part)
    }

    /// Tells token pairs apart without keeping them.
    pub fn content(&self) -> [u8; 32] {
        let [access, refresh] = ["access", "refresh"].map(|name| self.text(name).unwrap_or(""));
        sha256(format!("{access}\n{refresh}").as_bytes())
    }

    /// When it should be refreshed before its next use; `None`: never. `granted_at` as for
    /// [`Self::lifetime`].
    pub fn due_at(&self, granted_at: Option<Timestamp>) -> Option<Timestamp> {
        self.refresh_token()?;
        match (self.expires_at(), self.kind) {
            (Some(at), _) => Some(at.minus(self.short_lead(granted_at).unwrap_or(EARLY))),
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
                tokens.insert("expiresAt".into(), grant.expires_at(now).0.into());
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
            let is_due = sign_in.due_at(None).is_some_and(|at| at <= NOW);
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

    /// reliability §6.8.
    #[test]
    fn a_grant_without_a_sensible_time_lives_as_long_as_its_token_says_or_an_hour() {
        let by_token = jwt(&format!(r#"{{"exp":{}}}"#, NOW.unix_seconds() + 1800));
        let past = jwt(r#"{"exp":1}"#);
        let day = 86_400;
        #[rustfmt::skip]
        let cases = [
            ("told",                  r#""expires_in":600"#,   "a2",      600),
            ("told as text",          r#""expires_in":"600""#, "a2",      600),
            ("too short",             r#""expires_in":0.5"#,   "a2",      60),
            ("too long",              r#""expires_in":3e7"#,   "a2",      90 * day),
            ("absent",                r#""x":1"#,              "a2",      3600),
            ("null",                  r#""expires_in":null"#,  "a2",      3600),
            ("negative",              r#""expires_in":-1"#,    "a2",      3600),
            ("zero",                  r#""expires_in":0"#,     "a2",      3600),
            ("absurd",                r#""expires_in":1e300"#, "a2",      3600),
            ("no number",             r#""expires_in":[]"#,    "a2",      3600),
            ("the token says",        r#""expires_in":-1"#,    &by_token, 1800),
            ("the token is past",     r#""expires_in":-1"#,    &past,     3600),
        ];
        for (name, told, token, want) in cases {
            let grant = format!(r#"{{"access_token":"{token}",{told}}}"#);
            let grant: Grant = serde_json::from_str(&grant).unwrap();
            // The old one's expiry is not the new one's.
            let renewed = claude(NOW.0 - 1).renewed(&grant, NOW);
            let left = renewed.expires_at().map(|at| NOW.until(at).as_secs());
            assert_eq!(left, Some(want), "{name}");
        }
    }

    /// reliability §6.8.
    #[test]
    fn a_token_that_lives_shortly_is_not_due_when_it_is_given() {
        for (lives, due_in) in [(60, 45), (300, 225), (1200, 900), (3600, 3300)] {
            let sign_in = claude(NOW.0 + lives * 1000);
            assert_eq!(sign_in.due_at(Some(NOW)), Some(Timestamp(NOW.0 + due_in * 1000)));
        }
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
