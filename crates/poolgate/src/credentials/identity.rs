//! Whose sign-in it is, and documents that begin with a sign-in of ours.
//!
//! `ChatGPT` says it in the tokens' claims. Anthropic's issuer says it beside the tokens (G: as sing-box
//! CCM reads it), and it is kept under `oauthAccount`, as Claude Code's own configuration names it;
//! not in a file that Claude Code shares, where there is no such key.

use poolgate_core::account::Kind;
use poolgate_core::units::Timestamp;
use serde_json::{Map, Value, json};

use super::document::{Grant, SignIn};
use super::jwt_claims;

/// Absent: not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `ChatGPT`'s workspace, Anthropic's organization.
    pub organization: Option<String>,
    /// One seat of it.
    pub person: Option<String>,
    pub email: Option<String>,
}

/// No text says it by chance: it is neither very short nor a word.
pub fn is_telling(name: &str) -> bool {
    name.len() >= if name.contains('@') { 5 } else { 8 }
        && !name.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    Same,
    Other,
    /// Too little is known.
    Unknown,
}

impl Identity {
    /// Two workspaces of one person are two accounts, and so are two people in one workspace. The
    /// address tells people apart only where nothing better does: it can be changed.
    pub fn compare(&self, other: &Self) -> Likeness {
        let equal = |a: &Option<String>, b: &Option<String>| {
            Some(a.as_ref()?.eq_ignore_ascii_case(b.as_ref()?))
        };
        let organization = equal(&self.organization, &other.organization);
        let person =
            equal(&self.person, &other.person).or_else(|| equal(&self.email, &other.email));
        match (organization, person) {
            (Some(false), _) | (_, Some(false)) => Likeness::Other,
            (_, Some(true)) => Likeness::Same,
            (_, None) => Likeness::Unknown,
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        // The address first: another name may be a part of it.
        let all = [&self.email, &self.person, &self.organization];
        all.into_iter().flatten().map(String::as_str).filter(|name| is_telling(name))
    }

    /// For people; `None`: there is nothing they would recognize.
    pub fn name(&self) -> Option<&str> {
        self.email.as_deref().or(self.person.as_deref())
    }
}

/// The group of a document that holds the tokens, and the keys in it that belong to one sign-in.
fn tokens(kind: Kind) -> (&'static str, &'static [&'static str]) {
    match kind {
        Kind::Codex => ("tokens", &["access_token", "refresh_token", "id_token", "account_id"]),
        _ => ("claudeAiOauth", &["accessToken", "refreshToken", "expiresAt", "scopes"]),
    }
}

impl SignIn {
    /// A new document of what an issuer gave for a code.
    pub fn issued(kind: Kind, grant: &Grant, now: Timestamp) -> Result<Self, &'static str> {
        let has = |token: &Option<crate::secret::Secret>| {
            token.as_ref().is_some_and(|token| !token.expose().is_empty())
        };
        if !has(&grant.access_token) || !has(&grant.refresh_token) {
            return Err("an answer without tokens");
        }
        let document = match kind {
            Kind::Codex => json!({"auth_mode": "chatgpt", "OPENAI_API_KEY": null, "tokens": {}}),
            _ => json!({"claudeAiOauth": {}}),
        };
        let document = document.as_object().cloned().unwrap_or_default();
        let mut new = Self { kind, document }.renewed(grant, now).with_identity(grant);
        if let Some(account) = new.identity().organization.filter(|_| kind == Kind::Codex) {
            new.document["tokens"]["account_id"] = account.into();
        }
        Ok(new)
    }

    /// Notes whose the tokens are, if their issuer says so beside them.
    #[must_use]
    pub fn with_identity(mut self, grant: &Grant) -> Self {
        let text = |part: &Option<Value>, name: &str| Some(part.as_ref()?.get(name)?.clone());
        if self.kind() == Kind::Claude
            && let Some(uuid) = text(&grant.account, "uuid")
        {
            let told = json!({
                "accountUuid": uuid,
                "emailAddress": text(&grant.account, "email_address"),
                "organizationUuid": text(&grant.organization, "uuid"),
            });
            self.document.insert("oauthAccount".into(), told);
        }
        self
    }

    /// This sign-in in the place of another, whose document may hold more than the sign-in.
    #[must_use]
    pub fn over(mut self, before: &[u8], is_shared: bool) -> Self {
        let Ok(mut old) = serde_json::from_slice::<Map<String, Value>>(before) else {
            return self;
        };
        let whose = Self { kind: self.kind, document: old.clone() }.identity();
        let is_other = whose.compare(&self.identity()) == Likeness::Other;
        let (group, own) = tokens(self.kind);
        let mut rest = match old.remove(group) {
            Some(Value::Object(rest)) => rest,
            _ => Map::new(),
        };
        rest.retain(|key, _| {
            let of_the_plan = key == "subscriptionType" || key == "rateLimitTier";
            !(own.contains(&key.as_str()) || is_other && of_the_plan)
        });
        if let Some(tokens) = self.document.get_mut(group).and_then(Value::as_object_mut) {
            tokens.extend(rest);
        }
        if is_shared && !old.contains_key("oauthAccount") {
            self.document.remove("oauthAccount");
        }
        if old.contains_key("OPENAI_API_KEY") {
            self.document.remove("OPENAI_API_KEY");
        }
        for (key, value) in old {
            self.document.entry(key).or_insert(value);
        }
        self
    }

    pub fn identity(&self) -> Identity {
        let own = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        if self.kind() != Kind::Codex {
            let told = self.document.get("oauthAccount");
            let get = |name: &str| own(told.and_then(|told| told.get(name)));
            return Identity {
                organization: get("organizationUuid"),
                person: get("accountUuid"),
                email: get("emailAddress"),
            };
        }
        let claims = |name: &str| jwt_claims(self.document.get("tokens")?.get(name)?.as_str()?);
        let (id, access) = (claims("id_token"), claims("access_token"));
        let profile = access.as_ref().and_then(|c| c.get("https://api.openai.com/profile"));
        let email = own(id.as_ref().and_then(|claims| claims.get("email")));
        let person = self.chatgpt_claim("chatgpt_user_id");
        Identity {
            organization: self.chatgpt_account(),
            person: person.or_else(|| self.chatgpt_claim("user_id")),
            email: email.or_else(|| own(profile.and_then(|profile| profile.get("email")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);

    fn who(organization: &str, person: &str, email: &str) -> Identity {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Identity { organization: some(organization), person: some(person), email: some(email) }
    }

    /// codex-lb K14 and §2.3.
    #[test]
    #[rustfmt::skip]
    fn tells_whose_a_sign_in_is() {
        use Likeness::{Other, Same, Unknown};
        let cases = [
            ("the same",                     who("o", "p", "e"), who("o", "p", "e"), Same),
            ("the address has changed",      who("o", "p", "e"), who("o", "p", "f"), Same),
            ("another seat of a workspace",  who("o", "p", ""),  who("o", "q", ""),  Other),
            ("another workspace of one's",   who("o", "p", "e"), who("x", "p", "e"), Other),
            ("only addresses",               who("", "", "a@B"), who("", "", "A@b"), Same),
            ("only addresses, others",       who("", "", "a"),   who("", "", "b"),   Other),
            ("a workspace has many seats",   who("o", "", ""),   who("o", "p", "e"), Unknown),
            ("its seats have addresses",     who("o", "", "e"),  who("o", "p", "e"), Same),
            ("nothing is known",             who("", "", ""),    who("o", "p", "e"), Unknown),
        ];
        for (name, a, b, want) in cases {
            assert_eq!(a.compare(&b), want, "{name}");
            assert_eq!(b.compare(&a), want, "{name}, the other way round");
        }
    }

    #[test]
    fn only_what_no_text_says_by_chance_is_a_name() {
        let names = |who: &Identity| who.names().map(str::to_owned).collect::<Vec<_>>();
        let all = who("6f1c-0a2b", "user-9aXb", "a@b.c");
        assert_eq!(names(&all), ["a@b.c", "user-9aXb", "6f1c-0a2b"]);
        assert_eq!(names(&who("default", "customer", "a@b")), [""; 0]);
        assert_eq!(names(&Identity::default()), [""; 0]);
    }

    fn grant(kind: Kind, person: &str) -> Grant {
        use base64::Engine;
        let claims = json!({
            "email": format!("{person}@x"),
            "https://api.openai.com/auth": {"chatgpt_account_id": "w", "chatgpt_user_id": person},
        });
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
        let secret = |text: String| Some(Secret::new(text));
        let mut grant = Grant {
            access_token: secret("new-access".into()),
            refresh_token: secret("new-refresh".into()),
            scope: Some("a b".into()),
            ..Grant::default()
        };
        if kind == Kind::Codex {
            grant.id_token = secret(format!("e30.{payload}.x"));
        } else {
            grant.expires_in = Some(3600.0);
            grant.account = Some(json!({"uuid": person, "email_address": format!("{person}@x")}));
            grant.organization = Some(json!({"uuid": "w"}));
        }
        grant
    }

    #[test]
    fn a_new_document_says_whose_it_is() {
        for kind in [Kind::Codex, Kind::Claude] {
            let new = SignIn::issued(kind, &grant(kind, "p"), NOW).unwrap();
            assert_eq!(new.identity(), who("w", "p", "p@x"));
            let read = SignIn::parse(kind, &new.to_bytes()).unwrap();
            assert_eq!(read.refresh_token(), Some("new-refresh"));
            assert_eq!(read.identity(), new.identity());
            let missing = Grant { refresh_token: None, ..grant(kind, "p") };
            assert!(SignIn::issued(kind, &missing, NOW).is_err());
        }
        let codex = SignIn::issued(Kind::Codex, &grant(Kind::Codex, "p"), NOW).unwrap();
        assert_eq!(codex.bearer().unwrap().account_id.unwrap(), "w");
    }

    #[test]
    fn what_else_a_document_holds_is_kept() {
        let codex = SignIn::issued(Kind::Codex, &grant(Kind::Codex, "p"), NOW).unwrap();
        let before = br#"{"OPENAI_API_KEY":"k","mine":1,"tokens":{"id_token":"old","access_token":"old","later":2}}"#;
        let over = codex.over(before, true);
        let (document, tokens) = (&over.document, &over.document["tokens"]);
        assert_eq!((&document["mine"], &document["OPENAI_API_KEY"]), (&json!(1), &json!("k")));
        assert_eq!((&tokens["later"], &document["auth_mode"]), (&json!(2), &json!("chatgpt")));
        assert_eq!(tokens["access_token"], "new-access");
        assert_ne!(tokens["id_token"], "old");

        let claude = || SignIn::issued(Kind::Claude, &grant(Kind::Claude, "p"), NOW).unwrap();
        let before = |person: &str| {
            format!(
                r#"{{"mcpOAuth":{{}},"oauthAccount":{{"accountUuid":"{person}"}},
                    "claudeAiOauth":{{"accessToken":"old","expiresAt":5,"subscriptionType":"max"}}}}"#
            )
        };
        let same = claude().over(before("p").as_bytes(), false);
        assert_eq!(same.plan().as_deref(), Some("max"));
        assert!(same.document.contains_key("mcpOAuth"));
        assert_eq!(same.document["claudeAiOauth"]["expiresAt"], NOW.0 + 3_600_000);
        let other = claude().over(before("q").as_bytes(), false);
        assert_eq!(other.plan(), None, "the plan was another person's");
        let shared = claude().over(br#"{"claudeAiOauth":{"accessToken":"old"}}"#, true);
        assert!(!shared.document.contains_key("oauthAccount"), "Claude Code keeps it elsewhere");
        let broken = claude().over(b"{", true);
        assert_eq!(broken.refresh_token(), Some("new-refresh"));
    }
}
