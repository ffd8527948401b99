//! Names into addresses, for upstreams: what must never be connected to is left out, so that a name
//! that changes its mind reaches nothing either.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;

use crate::config::is_forbidden;

/// The system's resolver, with an eye on what it says.
#[derive(Clone, Debug)]
pub struct Resolver(GaiResolver);

impl Resolver {
    pub fn new() -> Self {
        Self(GaiResolver::new())
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let found = self.0.call(name);
        Box::pin(async move { allowed(found.await?) })
    }
}

/// Those that may be connected to; an error if there were only others.
pub fn allowed(
    found: impl Iterator<Item = SocketAddr>,
) -> io::Result<std::vec::IntoIter<SocketAddr>> {
    let (forbidden, allowed): (Vec<_>, Vec<_>) = found.partition(|found| is_forbidden(found.ip()));
    if allowed.is_empty() && !forbidden.is_empty() {
        return Err(io::Error::other("the name has only addresses that no upstream may have"));
    }
    Ok(allowed.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forbidden_is_left_out() {
        let of = |addresses: &[&str]| {
            let parsed: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            allowed(parsed.into_iter()).map(|left| left.map(|a| a.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["1.1.1.1:443", "169.254.169.254:443"]).unwrap(), ["1.1.1.1:443"]);
        assert!(of(&["169.254.169.254:80", "[fe80::1]:80"]).is_err());
        assert!(of(&[]).unwrap().is_empty());
    }
}
