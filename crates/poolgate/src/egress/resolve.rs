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
use futures_util::future::{BoxFuture, Shared};
use hyper::rt::Executor;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use crate::config::{is_forbidden, is_private, is_this_machine};

/// So long an answer is gone by when there is no other.
const GOOD_FOR: Duration = Duration::from_mins(10);
/// So long a name that could not be resolved is not asked for again.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// A resolver that is slower than this is not waited for where there is an answer to go by.
const PATIENCE: Duration = Duration::from_secs(2);

type Found = std::vec::IntoIter<SocketAddr>;
type Answer = Result<Vec<SocketAddr>, Failure>;
type Asked = BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// An error that several may be told.
#[derive(Clone, Debug)]
struct Failure(io::ErrorKind, String);

/// How far a name may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Public,
    ThisMachine,
    /// Into private networks too.
    Private,
}

/// What names mean, and meant. They are an operator's, and few.
pub struct Names {
    ask: Box<dyn Fn(String) -> Asked + Send + Sync>,
    pub(super) patience: Duration,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Default)]
struct Known {
    good: Option<(Instant, Vec<SocketAddr>)>,
    failed: Option<(Instant, Failure)>,
    /// For all who want to know; it runs to its end, whoever waits.
    asking: Option<(Instant, Shared<BoxFuture<'static, Answer>>)>,
}

impl Names {
    /// By the system's resolver.
    pub fn system() -> Self {
        Self::by(|name| async move { Ok(lookup_host((name, 0)).await?.collect()) }.boxed())
    }

    pub(super) fn by(ask: impl Fn(String) -> Asked + Send + Sync + 'static) -> Self {
        Self { ask: Box::new(ask), patience: PATIENCE, known: Mutex::default() }
    }

    /// Those of `host`, a name or an address, with `port`.
    pub async fn lookup(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        private: bool,
    ) -> io::Result<Found> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return allowed(vec![SocketAddr::new(address, port)], Reach::Private);
        }
        let reach = match host {
            _ if private => Reach::Private,
            // The one name that says itself that it is no public one.
            "localhost" => Reach::ThisMachine,
            _ => Reach::Public,
        };
        let found = self.find(host).await;
        let mut found = found.map_err(|Failure(kind, words)| io::Error::new(kind, words))?;
        for address in &mut found {
            address.set_port(port);
        }
        allowed(found, reach)
    }

    async fn find(self: &Arc<Self>, name: &str) -> Answer {
        let (asked, instead) = {
            let (mut all, now) = (self.known.lock(), Instant::now());
            let known = all.entry(name.to_owned()).or_default();
            let instead = match known.before(now, self.patience) {
                Before::Instead(answer) => return answer,
                Before::Ask(instead) => instead,
            };
            let (_, asked) = known.asking.get_or_insert_with(|| (now, self.ask(name)));
            (asked.clone(), instead)
        };
        let Some(good) = instead else { return asked.await };
        timeout(self.patience, asked).await.unwrap_or_else(|_| {
            tracing::warn!(name, "the resolver does not answer: its last addresses are used");
            Ok(good)
        })
    }

    fn ask(self: &Arc<Self>, name: &str) -> Shared<BoxFuture<'static, Answer>> {
        let (this, name) = (Arc::clone(self), name.to_owned());
        let asked = async move {
            let found = (this.ask)(name.clone()).await;
            let found = found.map_err(|error| Failure(error.kind(), error.to_string()));
            this.known.lock().entry(name.clone()).or_default().after(&name, found, Instant::now())
        };
        let asked = asked.boxed().shared();
        TokioExecutor::new().execute(asked.clone().map(drop));
        asked
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// What to do for a name.
enum Before {
    /// And to wait, where there is nothing to go by.
    Ask(Option<Vec<SocketAddr>>),
    Instead(Answer),
}

impl Known {
    fn good(&self, now: Instant) -> Option<Vec<SocketAddr>> {
        self.good.as_ref().filter(|(at, _)| now < *at + GOOD_FOR).map(|(_, found)| found.clone())
    }

    fn before(&self, now: Instant, patience: Duration) -> Before {
        let good = self.good(now);
        let patience = if good.is_some() { patience } else { FAILED_FOR };
        let hangs = self.asking.as_ref().is_some_and(|(since, _)| now >= *since + patience);
        let hangs =
            hangs.then(|| Failure(io::ErrorKind::TimedOut, "the resolver does not answer".into()));
        let failed = self.failed.as_ref().filter(|(at, _)| now < *at + FAILED_FOR);
        match (good, failed.map(|(_, failure)| failure.clone()).or(hangs)) {
            (Some(good), Some(_)) => Before::Instead(Ok(good)),
            (None, Some(failure)) => Before::Instead(Err(failure)),
            (good, None) => Before::Ask(good),
        }
    }

    fn after(&mut self, name: &str, found: Answer, now: Instant) -> Answer {
        self.asking = None;
        match found {
            Ok(found) => {
                (self.good, self.failed) = (Some((now, found.clone())), None);
                Ok(found)
            }
            Err(failure) => {
                self.failed = Some((now, failure.clone()));
                let good = self.good(now);
                if good.is_some() {
                    tracing::warn!(name, "cannot be resolved: its last addresses are used");
                }
                good.ok_or(failure)
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

/// Those that may be connected to; an error if there were only others.
fn allowed(found: Vec<SocketAddr>, reach: Reach) -> io::Result<Found> {
    let (mut left, mut refused) = (Vec::new(), None);
    for address in found {
        match refusal(address.ip(), reach) {
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

fn refusal(address: IpAddr, reach: Reach) -> Option<&'static str> {
    let is_here = is_this_machine(address);
    match reach {
        _ if is_forbidden(address) => Some("the name has only addresses that no upstream may have"),
        Reach::Public if is_here || is_private(address) => {
            Some("the name leads into a private network: its account needs private_upstream = true")
        }
        Reach::ThisMachine if !is_here => Some("localhost is not this machine here"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::watch;

    use super::*;

    fn left(addresses: &[&str], reach: Reach) -> io::Result<Vec<String>> {
        let parsed = addresses.iter().map(|address| address.parse().unwrap()).collect();
        allowed(parsed, reach).map(|left| left.map(|a| a.to_string()).collect())
    }

    #[test]
    fn what_is_forbidden_is_left_out() {
        for reach in [Reach::Public, Reach::Private] {
            let of = |addresses| left(addresses, reach);
            assert_eq!(of(&["1.1.1.1:443", "169.254.169.254:443"]).unwrap(), ["1.1.1.1:443"]);
            assert!(of(&["169.254.169.254:80", "[fe80::1]:80"]).is_err());
            assert!(of(&[]).unwrap().is_empty());
        }
    }

    #[test]
    fn names_lead_into_private_networks_for_accounts_marked_so_alone() {
        for inside in ["10.0.0.1:1", "127.0.0.1:1", "[::1]:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"]
        {
            let both = [inside, "1.1.1.1:1"];
            assert_eq!(left(&both, Reach::Public).unwrap(), ["1.1.1.1:1"], "{inside}");
            let refused = left(&[inside], Reach::Public).unwrap_err().to_string();
            assert!(refused.contains("private_upstream"), "{refused}");
            assert_eq!(left(&both, Reach::Private).unwrap(), both);
        }
        let here = ["127.0.0.1:1", "10.0.0.1:1", "1.1.1.1:1"];
        assert_eq!(left(&here, Reach::ThisMachine).unwrap(), ["127.0.0.1:1"]);
    }

    #[tokio::test]
    async fn what_was_written_was_looked_at_before() {
        let names = Arc::new(Names::system());
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
            let (found, asked) = match known.before(now, PATIENCE) {
                Before::Instead(answer) => (answer, false),
                Before::Ask(_) => {
                    let says = says.map(|address| vec![address.parse().unwrap()]);
                    let says = says.map_err(|words| Failure(io::ErrorKind::Other, words.into()));
                    (known.after("a.test", says, now), true)
                }
            };
            let found = found.map(|found| found[0].to_string()).map_err(|Failure(_, words)| words);
            let means = means.map(str::to_owned).map_err(str::to_owned);
            assert_eq!((found, asked), (means, asks), "at {at}");
        }
    }

    /// Waits until it is told to answer with an address.
    fn told(
        patience: Duration,
    ) -> (watch::Sender<Option<&'static str>>, Arc<AtomicUsize>, Arc<Names>) {
        let (says, asked) = (watch::Sender::new(None), Arc::new(AtomicUsize::new(0)));
        let (heard, count) = (says.subscribe(), Arc::clone(&asked));
        let mut names = Names::by(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let mut heard = heard.clone();
            async move {
                let address: &str = heard.wait_for(Option::is_some).await.unwrap().unwrap();
                Ok(vec![address.parse().unwrap()])
            }
            .boxed()
        });
        names.patience = patience;
        (says, asked, Arc::new(names))
    }

    #[tokio::test]
    async fn all_who_ask_at_the_same_time_share_one_answer() {
        let (says, asked, names) = told(PATIENCE);
        let many = join_all((0..50).map(|_| names.lookup("a.test", 1, true)));
        let tell = async { says.send_replace(Some("10.0.0.1:0")) };
        let (many, _) = tokio::join!(many, tell);
        assert!(many.into_iter().all(|found| found.is_ok()));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_waited_for_only_where_nothing_is_known() {
        let (says, asked, names) = told(Duration::from_millis(1));
        let find = async |name| {
            let found = names.lookup(name, 1, true).await;
            found.map(|mut found| found.next().unwrap().ip().to_string())
        };
        says.send_replace(Some("10.0.0.1:0"));
        assert_eq!(find("a.test").await.unwrap(), "10.0.0.1");
        says.send_replace(None);
        assert_eq!(find("a.test").await.unwrap(), "10.0.0.1", "by what it meant");
        let again = find("a.test").now_or_never();
        assert_eq!(again.expect("nobody waits a second time").unwrap(), "10.0.0.1");
        let refused = names.lookup("a.test", 1, false).await.unwrap_err();
        assert!(refused.to_string().contains("private_upstream"), "looked at as ever: {refused}");
        assert!(find("b.test").now_or_never().is_none(), "its caller decides");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        // It has gone on asking, and what it learns is not lost.
        says.send_replace(Some("10.0.0.2:0"));
        let learnt = async {
            while find("a.test").await.unwrap() != "10.0.0.2" {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), learnt).await.unwrap();
    }

    #[test]
    fn a_name_that_hangs_fails_at_once_after_five_seconds() {
        let (asked, now) = (pending().boxed().shared(), Instant::now());
        let known = Known { asking: Some((now, asked)), ..Known::default() };
        let at = |seconds| known.before(now + Duration::from_secs(seconds), PATIENCE);
        assert!(matches!(at(4), Before::Ask(None)));
        let Before::Instead(Err(Failure(kind, _))) = at(5) else { panic!("it is waited for") };
        assert_eq!(kind, io::ErrorKind::TimedOut);
    }
}
