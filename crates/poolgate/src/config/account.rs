//! One account as configured: checked, and with the defaults of its kind filled in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use poolgate_core::account::{Caps, Kind, Speaks};
use poolgate_core::units::Fraction;
use serde::{Deserialize, Serialize};

use super::address::{is_forbidden, is_private};
use super::{Place, ProxyUrl, Way};

/// As written in `[[account]]`, given to `poolgate account add`, and kept in the store.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawAccount {
    pub name: String,
    pub kind: String,
    /// A live `auth.json` or `.credentials.json`, shared with the vendor's own client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<PathBuf>,
    /// Name of the environment variable that holds the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// The upstream is in a private network: its name may lead there, and plain http is allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private_upstream: bool,
    /// All calls for the account go through it, or nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyUrl>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_weight: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_5h: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_weekly: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_5h: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_weekly: Option<u32>,
    /// Patterns of the models it may serve; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// What a `compatible` upstream speaks: `responses`, `chat`, `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaks: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// Sealed in the database.
    Stored,
    AuthFile(PathBuf),
    KeyEnv(String),
    KeyFile(PathBuf),
}

/// Where an account's requests go. Parsed once; nothing a client sends has a say in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub place: Arc<Place>,
    /// Path prefix without a trailing slash, e.g. `/v1`.
    pub prefix: String,
    pub token_url: Option<Uri>,
}

impl Upstream {
    #[cfg(test)]
    pub fn at(origin: &'static str, prefix: &str) -> Self {
        let place = Place::of(&Uri::from_static(origin), Way::default());
        Self { place: Arc::new(place.unwrap()), prefix: prefix.into(), token_url: None }
    }

    /// What a connection is made to first: the proxy, else the upstream.
    pub fn first_hop(&self) -> String {
        let Place { way, .. } = &*self.place;
        way.proxy.as_ref().map_or_else(|| self.place.to_string(), ToString::to_string)
    }
}

#[derive(Clone, Debug)]
pub struct AccountSpec {
    pub name: String,
    pub kind: Kind,
    pub source: CredentialSource,
    pub upstream: Upstream,
    pub priority: i32,
    /// `None`: by plan.
    pub plan_weight: Option<f64>,
    pub caps: Caps,
    pub models: Vec<String>,
    pub speaks: Speaks,
    /// Zero: any number.
    pub max_concurrency: u32,
    /// As it was written, for the store.
    pub raw: RawAccount,
}

impl RawAccount {
    /// An account whose credential is in the store, besides what a file could say.
    pub fn resolve_stored(self) -> Result<AccountSpec, Vec<String>> {
        self.resolve_with(Some(CredentialSource::Stored))
    }

    pub fn resolve(self) -> Result<AccountSpec, Vec<String>> {
        self.resolve_with(None)
    }

    fn resolve_with(self, stored: Option<CredentialSource>) -> Result<AccountSpec, Vec<String>> {
        let mut wrong = Vec::new();
        if self.name.trim().is_empty()
            || self.name.len() > 64
            || self.name.contains(char::is_control)
        {
            wrong.push("name: 1 to 64 printable characters".into());
        }
        let Some(kind) = Kind::from_name(&self.kind) else {
            let known = Kind::ALL.map(Kind::name).join(", ");
            wrong.push(format!("kind {:?} is none of {known}", self.kind));
            return Err(wrong);
        };
        let source = self.source(kind, stored, &mut wrong);
        let upstream = self.upstream(kind, &mut wrong);
        let caps = Caps {
            five_hour: cap("5h", self.reserve_5h, self.limit_5h, &mut wrong),
            weekly: cap("weekly", self.reserve_weekly, self.limit_weekly, &mut wrong),
        };
        if self.plan_weight.is_some_and(|w| !w.is_finite() || w <= 0.0) {
            wrong.push("plan_weight: must be more than zero".into());
        }
        let speaks = speaks(kind, self.speaks.as_deref(), &mut wrong);
        match (source, upstream) {
            (Some(source), Some(upstream)) if wrong.is_empty() => Ok(AccountSpec {
                name: self.name.clone(),
                kind,
                source,
                upstream,
                priority: self.priority.unwrap_or(kind.default_priority()),
                plan_weight: self.plan_weight,
                caps,
                models: self.models.clone(),
                speaks,
                max_concurrency: self.max_concurrency.unwrap_or(0),
                raw: self,
            }),
            _ => Err(wrong),
        }
    }

    fn source(
        &self,
        kind: Kind,
        stored: Option<CredentialSource>,
        wrong: &mut Vec<String>,
    ) -> Option<CredentialSource> {
        let given: Vec<CredentialSource> = [
            stored,
            self.auth_file.as_deref().map(at_home).map(CredentialSource::AuthFile),
            self.key_env.clone().map(CredentialSource::KeyEnv),
            self.key_file.as_deref().map(at_home).map(CredentialSource::KeyFile),
        ]
        .into_iter()
        .flatten()
        .collect();
        let wanted = if kind.is_subscription() { "auth_file" } else { "key_env or key_file" };
        match given.as_slice() {
            [] => wrong.push(format!("{wanted} is missing")),
            [CredentialSource::AuthFile(_)] if !kind.is_subscription() => {
                wrong.push(format!("auth_file is for sign-ins; {} needs {wanted}", kind.name()));
            }
            [CredentialSource::KeyEnv(_) | CredentialSource::KeyFile(_)]
                if kind.is_subscription() =>
            {
                wrong.push(format!("{} needs {wanted}, not a key", kind.name()));
            }
            [one] => return Some(one.clone()),
            _ => wrong.push("give only one of auth_file, key_env, key_file".into()),
        }
        None
    }

    fn upstream(&self, kind: Kind, wrong: &mut Vec<String>) -> Option<Upstream> {
        let (base, token) = match kind {
            Kind::Codex => (
                Some("https://chatgpt.com/backend-api/codex"),
                Some("https://auth.openai.com/oauth/token"),
            ),
            Kind::Claude => (
                Some("https://api.anthropic.com"),
                Some("https://platform.claude.com/v1/oauth/token"),
            ),
            Kind::OpenAi => (Some("https://api.openai.com/v1"), None),
            Kind::Anthropic => (Some("https://api.anthropic.com"), None),
            Kind::Compatible => (None, None),
        };
        let Some(base) = self.base_url.as_deref().or(base) else {
            wrong.push("base_url is missing".into());
            return None;
        };
        let base = self.url("base_url", base, wrong)?;
        let token_url = match (self.token_url.as_deref(), token) {
            (Some(_), None) => {
                wrong.push("token_url is for sign-ins".into());
                return None;
            }
            (given, default) => match given.or(default) {
                Some(url) => Some(self.url("token_url", url, wrong)?),
                None => None,
            },
        };
        let proxy = self.proxy.as_ref().map(ProxyUrl::parse).transpose();
        let proxy = proxy.map_err(|why| wrong.push(format!("proxy: {why}"))).ok()?;
        let way = Way { proxy: proxy.map(Arc::new), private: self.private_upstream };
        Some(Upstream {
            place: Arc::new(Place::of(&base, way)?),
            prefix: base.path().trim_end_matches('/').to_owned(),
            token_url,
        })
    }

    /// https, or http to this machine or a network marked private; no user, query or fragment.
    fn url(&self, field: &str, text: &str, wrong: &mut Vec<String>) -> Option<Uri> {
        let mut refuse = |why: &str| {
            wrong.push(format!("{field} = {text:?}: {why}"));
            None
        };
        let Ok(uri) = text.parse::<Uri>() else {
            return refuse("is not a URL");
        };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refuse("must begin with https://");
        };
        if authority.as_str().contains('@') || text.contains(['?', '#']) {
            return refuse("must not carry a user, a query or a fragment");
        }
        let host = authority.host().trim_matches(['[', ']']);
        let local = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        match host.parse::<std::net::IpAddr>() {
            Ok(address) if is_forbidden(address) => return refuse("no upstream may be there"),
            Ok(address) if is_private(address) && !self.private_upstream => {
                return refuse("a private address needs private_upstream = true");
            }
            _ => {}
        }
        match scheme {
            "https" => Some(uri),
            "http" if local || self.private_upstream => Some(uri),
            "http" => refuse("plain http needs private_upstream = true"),
            _ => refuse("must begin with https://"),
        }
    }
}

/// Fills in a leading `~/`.
pub fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path.to_owned(),
    }
}

fn cap(
    window: &str,
    reserve: Option<u32>,
    limit: Option<u32>,
    wrong: &mut Vec<String>,
) -> Fraction {
    let percent = match (reserve, limit) {
        (None, None) => 99,
        (Some(reserve @ 1..=99), None) => 100 - reserve,
        (None, Some(limit @ 1..=100)) => limit,
        (Some(_), Some(_)) => {
            wrong.push(format!("reserve_{window} and limit_{window} exclude each other"));
            99
        }
        (Some(_), None) => {
            wrong.push(format!("reserve_{window}: 1 to 99"));
            99
        }
        (None, Some(_)) => {
            wrong.push(format!("limit_{window}: 1 to 100"));
            99
        }
    };
    Fraction::from_ppm(percent * 10_000)
}

fn speaks(kind: Kind, given: Option<&[String]>, wrong: &mut Vec<String>) -> Speaks {
    let Some(given) = given else {
        return Speaks::default();
    };
    if kind != Kind::Compatible {
        wrong.push("speaks is for compatible accounts".into());
    }
    let mut speaks = Speaks { responses: false, chat: false, messages: false };
    for word in given {
        match word.as_str() {
            "responses" => speaks.responses = true,
            "chat" => speaks.chat = true,
            "messages" => speaks.messages = true,
            _ => wrong.push(format!("speaks: {word:?} is none of responses, chat, messages")),
        }
    }
    speaks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: &str) -> RawAccount {
        let key_env = (kind != "codex" && kind != "claude").then(|| "KEY".to_owned());
        let auth_file = key_env.is_none().then(|| "auth.json".into());
        let base_url = (kind == "compatible").then(|| "https://llm.example/api/v1/".to_owned());
        let (name, kind) = ("a".to_owned(), kind.to_owned());
        RawAccount { name, kind, auth_file, key_env, base_url, ..Default::default() }
    }

    #[test]
    fn fills_in_the_defaults_of_the_kind() {
        let codex = raw("codex").resolve().unwrap();
        assert_eq!(codex.upstream.prefix, "/backend-api/codex");
        assert_eq!((codex.priority, codex.caps.weekly.percent()), (0, 99.0));
        let compatible = raw("compatible").resolve().unwrap();
        assert_eq!(compatible.upstream.place.to_string(), "https://llm.example");
        assert_eq!(compatible.upstream.prefix, "/api/v1");
        assert_eq!(compatible.priority, 1);
    }

    #[test]
    #[rustfmt::skip]
    fn refuses() {
        type Edit = fn(&mut RawAccount);
        let cases: [(&str, &str, Edit, &str); 15] = [
            ("no name",         "codex",      |a| a.name.clear(),                               "name"),
            ("a key for a sign-in", "codex",  |a| { a.auth_file = None; a.key_env = Some("K".into()); }, "not a key"),
            ("a file for a key", "openai",    |a| { a.key_env = None; a.auth_file = Some("f".into()); }, "for sign-ins"),
            ("two sources",     "openai",     |a| a.key_file = Some("f".into()),                "only one"),
            ("no base",         "compatible", |a| a.base_url = None,                            "base_url is missing"),
            ("plain http",      "compatible", |a| a.base_url = Some("http://10.0.0.1/v1".into()), "private_upstream"),
            ("a private address", "compatible", |a| a.base_url = Some("https://192.168.0.1/v1".into()), "private_upstream"),
            ("a cloud's secrets", "compatible", |a| { a.base_url = Some("http://169.254.169.254/v1".into()); a.private_upstream = true; }, "no upstream may be there"),
            ("a port of the link", "compatible", |a| a.base_url = Some("https://[fe80::1]/v1".into()), "no upstream may be there"),
            ("a user in it",    "compatible", |a| a.base_url = Some("https://u:p@x/v1".into()), "must not carry"),
            ("a proxy of TLS",  "codex",      |a| a.proxy = Some(ProxyUrl::new("https://p:1")), "not supported"),
            ("two caps",        "codex",      |a| { a.reserve_5h = Some(5); a.limit_5h = Some(90); }, "exclude each other"),
            ("reserve of 100",  "codex",      |a| a.reserve_weekly = Some(100),                 "1 to 99"),
            ("limit of 0",      "codex",      |a| a.limit_weekly = Some(0),                     "1 to 100"),
            ("speaks Latin",    "compatible", |a| a.speaks = Some(vec!["latin".into()]),        "latin"),
        ];
        for (name, kind, edit, part) in cases {
            let mut account = raw(kind);
            edit(&mut account);
            let errors = account.resolve().expect_err(name).join("; ");
            assert!(errors.contains(part), "{name}: {errors}");
        }
    }

    #[test]
    fn plain_http_to_this_machine_or_a_private_network() {
        for (base, private) in [("http://127.0.0.1:1/v1", false), ("http://10.0.0.1/v1", true)] {
            let account = RawAccount {
                base_url: Some(base.into()),
                private_upstream: private,
                ..raw("compatible")
            };
            assert!(account.resolve().is_ok(), "{base}");
        }
    }
}
