//! The proxy that all calls for an account go through.
//!
//! Its login is a secret, and in the store it is sealed: `socks5h://host:port#…`. Whatever prints or
//! serialises a [`ProxyUrl`] gives the address alone.

use std::fmt;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::uri::Authority;
use serde::{Deserialize, Serialize, Serializer};

use crate::sealing::DataKey;
use crate::secret::Secret;

/// SOCKS has one byte for the length of each (RFC 1929).
const LOGIN_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `CONNECT`, whatever the upstream's scheme.
    Http,
    /// Names are resolved here.
    Socks5,
    /// Names are resolved by the proxy.
    Socks5h,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    pub protocol: Protocol,
    /// Host and port.
    pub address: Authority,
    pub login: Option<Login>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Login {
    pub user: Secret,
    pub password: Secret,
}

/// As it was written, or with the login sealed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ProxyUrl(Secret);

/// `scheme://login@address#sealed`
struct Parts<'a> {
    scheme: &'a str,
    login: Option<&'a str>,
    address: &'a str,
    sealed: Option<&'a str>,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.protocol.name(), self.address)
    }
}

impl ProxyUrl {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Secret::new(text))
    }

    fn parts(&self) -> Option<Parts<'_>> {
        let (scheme, rest) = self.0.expose().trim().split_once("://")?;
        // A password may hold any character but those that end an authority.
        let (login, rest) =
            rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (rest, sealed) =
            rest.split_once('#').map_or((rest, None), |(rest, sealed)| (rest, Some(sealed)));
        Some(Parts { scheme, login, address: rest.strip_suffix('/').unwrap_or(rest), sealed })
    }

    /// What is wrong with it is said without quoting it.
    pub fn parse(&self) -> Result<Proxy, &'static str> {
        let form = "must be http://, socks5:// or socks5h://, a host and a port";
        let Parts { scheme, login, address, sealed } = self.parts().ok_or(form)?;
        let protocol = match scheme {
            "http" => Protocol::Http,
            "socks5" => Protocol::Socks5,
            "socks5h" => Protocol::Socks5h,
            "https" => {
                return Err("TLS to the proxy itself is not supported: http, socks5, socks5h");
            }
            _ => return Err(form),
        };
        if sealed.is_some() {
            return Err("its login is sealed, and cannot be opened");
        }
        let address: Authority = address.parse().map_err(|_| form)?;
        if address.host().is_empty() || address.port_u16().is_none_or(|port| port == 0) {
            return Err(form);
        }
        Ok(Proxy { protocol, address, login: login.map(Login::parse).transpose()? })
    }

    /// Without a login.
    pub fn shown(&self) -> String {
        let parts = self.parts();
        parts.map_or_else(String::new, |Parts { scheme, address, .. }| {
            format!("{scheme}://{address}")
        })
    }

    /// For the store.
    pub fn sealed(&self, key: &DataKey, account: &str) -> anyhow::Result<Self> {
        let Some(Parts { login: Some(login), sealed: None, .. }) = self.parts() else {
            return Ok(self.clone());
        };
        let sealed = key.seal(&place(account), login.as_bytes())?;
        Ok(Self::new(format!("{}#{}", self.shown(), URL_SAFE_NO_PAD.encode(sealed))))
    }

    pub fn opened(&self, key: &DataKey, account: &str) -> anyhow::Result<Self> {
        let Some(Parts { scheme, address, sealed: Some(sealed), .. }) = self.parts() else {
            return Ok(self.clone());
        };
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok().context("the proxy's login is damaged")?;
        let login = String::from_utf8(key.open(&place(account), &sealed)?)?;
        Ok(Self::new(format!("{scheme}://{login}@{address}")))
    }
}

/// Binds a sealed login to its account.
fn place(account: &str) -> String {
    format!("proxies/{account}")
}

impl Login {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let wrong =
            "user name or password: text of at most 255 bytes, with %XX for what is special";
        let part = |text: &str| {
            let text = percent_decode(text).filter(|text| text.len() <= LOGIN_MAX);
            text.filter(|text| !text.contains(char::is_control)).ok_or(wrong)
        };
        let (user, password) = (part(user)?, part(password)?);
        if user.is_empty() || user.contains(':') {
            return Err(wrong);
        }
        Ok(Self { user: Secret::new(user), password: Secret::new(password) })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for ProxyUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_sealed = self.parts().is_some_and(|parts| parts.sealed.is_some());
        let text = if is_sealed { self.0.expose().to_owned() } else { self.shown() };
        serializer.serialize_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealing::MasterKey;

    #[test]
    fn reads_what_curl_would() {
        let cases = [
            ("http://proxy:3128", Protocol::Http, "proxy:3128", None),
            ("socks5://10.0.0.1:1080/", Protocol::Socks5, "10.0.0.1:1080", None),
            ("socks5h://[::1]:1080", Protocol::Socks5h, "[::1]:1080", None),
            ("http://u:p@proxy:1", Protocol::Http, "proxy:1", Some(("u", "p"))),
            ("http://u@proxy:1", Protocol::Http, "proxy:1", Some(("u", ""))),
            ("http://u:p@ss:w/d@proxy:1", Protocol::Http, "proxy:1", Some(("u", "p@ss:w/d"))),
            ("http://u%40x:%C3%A9%25@proxy:1", Protocol::Http, "proxy:1", Some(("u@x", "é%"))),
        ];
        for (text, protocol, address, login) in cases {
            let proxy = ProxyUrl::new(text).parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            let got = proxy.login.as_ref().map(|l| (l.user.expose(), l.password.expose()));
            assert_eq!((proxy.protocol, proxy.address.as_str(), got), (protocol, address, login));
        }
    }

    #[test]
    fn refuses_without_quoting() {
        for text in [
            "proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "http://:80",
            "https://u:hunter2@proxy:443",
            "ftp://u:hunter2@proxy:21",
            "http://u:hunter2@proxy:80/path",
            "http://u:hunter2%4@proxy:80",
            "http://u:hunter2%0a@proxy:80",
            "http://:hunter2@proxy:80",
            "http://u%3Ax:hunter2@proxy:80",
            "http://u:hunter2@proxy:80#x",
            &format!("http://u:hunter2{}@proxy:80", "x".repeat(250)),
        ] {
            let why = ProxyUrl::new(text).parse().expect_err(text);
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn shows_its_address_alone() {
        for text in ["http://maria:hunter2@proxy:1", "http://maria:hun@ter2@proxy:1"] {
            let url = ProxyUrl::new(text);
            let printed = format!("{url:?} {:?}", url.parse().unwrap());
            let written = serde_json::to_string(&url).unwrap();
            assert_eq!(written, "\"http://proxy:1\"");
            assert!(!printed.contains("ter2") && !printed.contains("maria"), "{printed}");
        }
    }

    #[test]
    fn is_sealed_for_its_account() {
        let master = MasterKey::from_base64(&MasterKey::generate().unwrap()).unwrap();
        let (key, _) = master.new_data_key().unwrap();
        let url = ProxyUrl::new("socks5h://user:p@ss%23@proxy:1");
        let sealed = url.sealed(&key, "a").unwrap();
        assert_eq!(sealed.sealed(&key, "a").unwrap(), sealed, "once is enough");
        assert!(sealed.parse().is_err(), "not usable, and not direct either");
        let written = serde_json::to_string(&sealed).unwrap();
        assert!(written.contains("proxy:1#") && !written.contains("user"), "{written}");
        let read: ProxyUrl = serde_json::from_str(&written).unwrap();
        assert_eq!(read.opened(&key, "a").unwrap(), url);
        assert!(read.opened(&key, "b").is_err(), "another's");
        let open = ProxyUrl::new("http://proxy:1");
        assert_eq!(open.sealed(&key, "a").unwrap().opened(&key, "a").unwrap(), open);
    }
}
