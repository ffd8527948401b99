//! How an account's places are reached.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};

use super::Proxy;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Way {
    /// `None`: directly.
    pub proxy: Option<Arc<Proxy>>,
    /// Names may lead into private networks, as `private_upstream` allows.
    pub private: bool,
}

impl Way {
    /// Of calls that are for no account, to where an operator's command says.
    pub const ANYWHERE: Self = Self { proxy: None, private: true };
}

/// What follows the name of a place.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.private {
            f.write_str(" (private)")?;
        }
        self.proxy.as_ref().map_or(Ok(()), |proxy| write!(f, " through {proxy}"))
    }
}

/// Where connections lead, and by which way: they are kept by it. Worked out once for each account,
/// since every request needs it.
#[derive(Clone, Debug)]
pub struct Place {
    pub scheme: Scheme,
    pub authority: Authority,
    pub way: Way,
    /// As it is named in a request: without the port that goes without saying.
    pub host: HeaderValue,
    hash: u64,
}

impl Place {
    /// `None`: the URL names no host.
    pub fn of(url: &Uri, way: Way) -> Option<Self> {
        let (scheme, authority) = (url.scheme()?.clone(), url.authority()?.clone());
        let standard = if scheme == Scheme::HTTPS { Some(443) } else { Some(80) };
        let host = match authority.port_u16() {
            port if port == standard => authority.host(),
            _ => authority.as_str(),
        };
        let host = HeaderValue::from_str(host).ok()?;
        let mut hasher = DefaultHasher::new();
        (&scheme, &authority, &way).hash(&mut hasher);
        Some(Self { scheme, authority, way, host, hash: hasher.finish() })
    }
}

/// Scheme and authority, e.g. `https://api.openai.com`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.scheme == other.scheme
            && self.authority == other.authority
            && self.way == other.way
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_they_are_called() {
        for (url, host) in [
            ("https://api.openai.com/v1/x?y=1", "api.openai.com"),
            ("https://api.openai.com:443/", "api.openai.com"),
            ("http://h:80/", "h"),
            ("http://h:8080", "h:8080"),
            ("https://[::1]:8443/a", "[::1]:8443"),
        ] {
            let place = Place::of(&Uri::from_static(url), Way::default()).unwrap();
            assert_eq!(place.host, host, "{url}");
        }
    }

    #[test]
    fn places_differ_by_host_and_by_way() {
        let place = |url, way| Place::of(&Uri::from_static(url), way).unwrap();
        let here = place("https://a/x", Way::default());
        assert_eq!(here, place("https://a/y", Way::default()));
        for other in ["https://b/x", "http://a/x", "https://a:1/x"] {
            assert_ne!(here, place(other, Way::default()), "{other}");
        }
        assert_ne!(here, place("https://a/x", Way::ANYWHERE));
    }
}
