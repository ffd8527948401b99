//! Names into addresses, for upstreams: what may not be connected to is left out, so that a name
//! that changes its mind reaches nothing either. Written addresses were looked at with the settings;
//! what only the system's resolver takes for an address (`10.1`, `2130706433`) counts as a name.
//!
//! A resolver that fails stops nobody: what a name meant in the last ten minutes it still means
//! (reliability §8). Each new connection asks again, so that a change is followed at once.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use crate::config::{is_forbidden, is_private};

/// So long an answer is gone by when there is no other.
const GOOD_FOR: Duration = Duration::from_mins(10);
/// So long a name that could not be resolved is not asked for again.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// A resolver that is slower than this is not waited for where there is an answer to go by.
const PATIENCE: Duration = Duration::from_secs(2);

type Found = std::vec::IntoIter<SocketAddr>;
type Asked = BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// What names mean, and meant. They are an operator's, and few.
pub struct Names {
    ask: Box<dyn Fn(String) -> Asked + Send + Sync>,
    patience: Duration,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Default)]
struct Known {
    good: Option<(Instant, Vec<SocketAddr>)>,
    /// With the words of the error.
    failed: Option<(Instant, io::ErrorKind, String)>,
}

impl Names {
    /// By the system's resolver.
    pub fn system() -> Self {
        Self::by(|name| {
            async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }.boxed()
        })
    }

    pub(super) fn by(ask: impl Fn(String) -> Asked + Send + Sync + 'static) -> Self {
        Self { ask: Box::new(ask), patience: PATIENCE, known: Mutex::default() }
    }

    /// Those of `host`, a name or an address, with `port`.
    pub async fn lookup(&self, host: &str, port: u16, private: bool) -> io::Result<Found> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return allowed(vec![SocketAddr::new(address, port)], true);
        }
        let mut found = self.find(host).await?;
        for address in &mut found {
            address.set_port(port);
        }
        allowed(found, private || is_local(host))
    }

    async fn find(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let instead = match self.known.lock().get(name) {
            Some(known) => known.before(Instant::now()),
            None => Before::Ask,
        };
        let asked = (self.ask)(name.to_owned());
        let found = match instead {
            Before::Instead(answer) => return answer,
            Before::Ask => asked.await,
            Before::AskShortly => timeout(self.patience, asked).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer"))
            }),
        };
        self.known.lock().entry(name.to_owned()).or_default().after(name, found, Instant::now())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// What to do for a name.
enum Before {
    /// As long as it takes.
    Ask,
    /// There is an answer to go by.
    AskShortly,
    Instead(io::Result<Vec<SocketAddr>>),
}

impl Known {
    fn good(&self, now: Instant) -> Option<&Vec<SocketAddr>> {
        self.good.as_ref().filter(|(at, _)| now < *at + GOOD_FOR).map(|(_, found)| found)
    }

    fn before(&self, now: Instant) -> Before {
        let failed = self.failed.as_ref().filter(|(at, ..)| now < *at + FAILED_FOR);
        match (self.good(now), failed) {
            (Some(good), Some(_)) => Before::Instead(Ok(good.clone())),
            (Some(_), None) => Before::AskShortly,
            (None, Some((_, kind, words))) => {
                Before::Instead(Err(io::Error::new(*kind, words.clone())))
            }
            (None, None) => Before::Ask,
        }
    }

    fn after(
        &mut self,
        name: &str,
        found: io::Result<Vec<SocketAddr>>,
        now: Instant,
    ) -> io::Result<Vec<SocketAddr>> {
        match found {
            Ok(found) => {
                *self = Self { good: Some((now, found.clone())), failed: None };
                Ok(found)
            }
            Err(error) => {
                self.failed = Some((now, error.kind(), error.to_string()));
                let good = self.good(now).cloned().ok_or(error);
                if good.is_ok() {
                    tracing::warn!(name, "cannot be resolved: its last addresses are used");
                }
                good
            }
        }
    }
}

/// The names of accounts that are marked private, or of those that are not.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub names: Arc<Names>,
    /// They may lead into private networks, and to this machine.
    pub private: bool,
}

impl Service<Name> for Resolver {
    type Response = Found;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Found>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { names, private } = self.clone();
        async move { names.lookup(name.as_str(), 0, private).await }.boxed()
    }
}

/// The one name that says itself that it is no public one. It cannot be made to mean another machine.
fn is_local(name: &str) -> bool {
    name == "localhost"
}

/// Those that may be connected to; an error if there were only others.
fn allowed(found: Vec<SocketAddr>, private: bool) -> io::Result<Found> {
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
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn left(addresses: &[&str], private: bool) -> io::Result<Vec<String>> {
        let parsed = addresses.iter().map(|address| address.parse().unwrap()).collect();
        allowed(parsed, private).map(|left| left.map(|a| a.to_string()).collect())
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
        let names = Names::system();
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
            assert_eq!(names.lookup(host, 1, private).await.is_ok(), found, "{host} {private}");
        }
    }

    /// What a name means at a time, in seconds, while the resolver says something; and whether it is
    /// asked.
    #[test]
    fn reliability_8_a_name_means_for_ten_minutes_what_it_meant() {
        let (good, other, gone) = (Ok("1.1.1.1:0"), Ok("2.2.2.2:0"), Err("Name does not resolve"));
        let (mut known, began) = (Known::default(), Instant::now());
        for (at, says, means, asks) in [
            (0, gone, gone, true),
            (4, good, gone, false),
            (5, good, good, true),
            // A change is followed at once.
            (6, other, other, true),
            (7, gone, other, true),
            (11, good, other, false),
            (13, gone, other, true),
            (605, gone, other, true),
            (606, good, gone, false),
            (612, good, good, true),
        ] {
            let now = began + Duration::from_secs(at);
            let (found, asked) = match known.before(now) {
                Before::Instead(answer) => (answer, false),
                Before::Ask | Before::AskShortly => {
                    let says = says.map(|address| vec![address.parse().unwrap()]);
                    (known.after("a.test", says.map_err(io::Error::other), now), true)
                }
            };
            let found = found.map(|found| found[0].to_string()).map_err(|error| error.to_string());
            let means = means.map(str::to_owned).map_err(str::to_owned);
            assert_eq!((found, asked), (means, asks), "at {at}");
        }
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_waited_for_only_where_nothing_is_known() {
        let hangs = Arc::new(AtomicBool::new(false));
        let mut names = Names::by({
            let hangs = Arc::clone(&hangs);
            move |_| {
                if hangs.load(Ordering::Relaxed) {
                    return pending().boxed();
                }
                ready(Ok(vec!["10.0.0.1:0".parse().unwrap()])).boxed()
            }
        });
        names.patience = Duration::from_millis(1);
        names.lookup("a.test", 1, true).await.unwrap();
        hangs.store(true, Ordering::Relaxed);
        names.lookup("a.test", 1, true).await.expect("by what it meant");
        let again = names.lookup("a.test", 1, true).now_or_never();
        assert!(again.expect("it is not asked for").is_ok());
        let refused = names.lookup("a.test", 1, false).await.unwrap_err();
        assert!(refused.to_string().contains("private_upstream"), "looked at as ever: {refused}");
        assert!(names.lookup("b.test", 1, true).now_or_never().is_none(), "its caller decides");
    }
}
