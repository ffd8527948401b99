//! Names into addresses, for upstreams: what may not be connected to is left out, so that a name
//! that changes its mind reaches nothing either. Written addresses were looked at with the settings;
//! what only the system's resolver takes for an address (`10.1`, `2130706433`) counts as a name.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;

use crate::config::{is_forbidden, is_private};

/// The system's resolver, with an eye on what it says.
#[derive(Clone, Debug)]
pub struct Resolver {
    system: GaiResolver,
    private: bool,
}

impl Resolver {
    /// `private`: names may lead into private networks, and to this machine.
    pub fn new(private: bool) -> Self {
        Self { system: GaiResolver::new(), private }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let private = self.private || is_local(name.as_str());
        let found = self.system.call(name);
        Box::pin(async move { allowed(found.await?, private) })
    }
}

/// Like [`Resolver`], for a `host` that may be an address.
pub async fn lookup(
    host: &str,
    port: u16,
    private: bool,
) -> io::Result<std::vec::IntoIter<SocketAddr>> {
    let found = tokio::net::lookup_host((host, port)).await?;
    allowed(found, private || is_local(host) || host.parse::<IpAddr>().is_ok())
}

/// The one name that says itself that it is no public one. It cannot be made to mean another machine.
fn is_local(name: &str) -> bool {
    name == "localhost"
}

/// Those that may be connected to; an error if there were only others.
fn allowed(
    found: impl Iterator<Item = SocketAddr>,
    private: bool,
) -> io::Result<std::vec::IntoIter<SocketAddr>> {
    let (mut left, mut refused) = (Vec::new(), None);
    for address in found {
        match refusal(address.ip(), private) {
            None => left.push(address),
            why => refused = why,
        }
    }
    match refused {
        // It will not mend within seconds.
        Some(why) if left.is_empty() => Err(io::Error::new(io::ErrorKind::HostUnreachable, why)),
        _ => Ok(left.into_iter()),
    }
}

fn refusal(address: IpAddr, private: bool) -> Option<&'static str> {
    let is_inside = is_private(address) || address.to_canonical().is_loopback();
    match address {
        _ if is_forbidden(address) => Some("the name has only addresses that no upstream may have"),
        _ if is_inside && !private => {
            Some("the name leads into a private network: its account needs private_upstream = true")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(addresses: &[&str], private: bool) -> io::Result<Vec<String>> {
        let parsed: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        allowed(parsed.into_iter(), private).map(|left| left.map(|a| a.to_string()).collect())
    }

    #[test]
    fn what_is_forbidden_is_left_out() {
        for private in [false, true] {
            let of = |addresses| left(addresses, private);
            assert_eq!(of(&["1.1.1.1:443", "169.254.169.254:443"]).unwrap(), ["1.1.1.1:443"]);
            assert!(of(&["169.254.169.254:80", "[fe80::1]:80"]).is_err());
            assert!(of(&[]).unwrap().is_empty());
        }
    }

    #[test]
    fn names_lead_into_private_networks_for_accounts_marked_so_alone() {
        for inside in ["10.0.0.1:1", "127.0.0.1:1", "[::1]:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"]
        {
            assert_eq!(left(&[inside, "1.1.1.1:1"], false).unwrap(), ["1.1.1.1:1"], "{inside}");
            assert!(left(&[inside], false).unwrap_err().to_string().contains("private_upstream"));
            assert_eq!(left(&[inside, "1.1.1.1:1"], true).unwrap(), [inside, "1.1.1.1:1"]);
        }
    }

    #[tokio::test]
    async fn what_was_written_was_looked_at_before() {
        for (host, private, found) in [
            ("localhost", false, true),
            ("127.0.0.1", false, true),
            ("10.0.0.1", false, true),
            // The system takes these for addresses, and nobody else does.
            ("127.1", false, false),
            ("2130706433", false, false),
            ("10.1", false, false),
            ("10.1", true, true),
            ("169.254.43518", true, false),
        ] {
            assert_eq!(lookup(host, 1, private).await.is_ok(), found, "{host} {private}");
        }
    }
}
