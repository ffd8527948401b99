//! reliability P7: a client may leave at any time, by any way. Its upstream request goes with it, at
//! once, and whatever it held is given back.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use poolgate::admission::Bound;
use poolgate_core::account::Surface;
use poolgate_sim::{End, Entry, Fault, Phase as At};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, chat, messages, responses};
use crate::socket_client::{Client, create, until};

/// Those that leave at a time; a lane that loses a place to each of them is soon full.
const AT_A_TIME: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Half of the body is sent.
    Upload,
    /// The upstream has the request and says nothing.
    Head,
    /// It has begun an answer of which nothing goes out yet.
    Opening,
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Close,
    Reset,
    /// Of the stream alone; its connection stays.
    Http2Reset,
}

#[derive(Clone, Copy)]
struct Route {
    path: &'static str,
    body: fn(&str, bool) -> Value,
    phases: &'static [Phase],
}

impl Route {
    /// Its path at the upstream that serves it first.
    fn upstream(&self) -> &str {
        if self.path.starts_with("/v1/responses") {
            "/backend-api/codex/responses"
        } else {
            self.path
        }
    }
}

const STREAM: &[Phase] = &[Phase::Upload, Phase::Head, Phase::Opening, Phase::Output];
const WHOLE: &[Phase] = &[Phase::Upload, Phase::Head];

const ROUTES: [Route; 6] = [
    Route { path: CODEX, body: responses, phases: STREAM },
    Route { path: "/v1/responses", body: responses, phases: STREAM },
    Route { path: "/v1/chat/completions", body: chat, phases: STREAM },
    Route { path: "/v1/messages", body: messages, phases: STREAM },
    Route { path: "/v1/messages/count_tokens", body: messages, phases: WHOLE },
    Route { path: "/v1/responses/compact", body: compact, phases: WHOLE },
];

fn compact(text: &str, _: bool) -> Value {
    json!({"model": "gpt-5.5", "instructions": "", "input": text})
}

fn fault(phase: Phase) -> Fault {
    Fault::stall(match phase {
        Phase::Upload | Phase::Head => At::Head,
        Phase::Opening => At::Body,
        Phase::Output => At::Output(2),
    })
}

struct Leaver<'a> {
    h: &'a Harness,
    http2: &'a HttpClient<HttpConnector, Full<Bytes>>,
    route: Route,
    phase: Phase,
    leave: Leave,
    name: String,
}

impl Leaver<'_> {
    /// How long the upstream had its request after it had left.
    async fn leave(&self) -> Option<Duration> {
        let left = match self.leave {
            Leave::Http2Reset => self.over_http2().await,
            Leave::Close | Leave::Reset => self.over_http1().await,
        };
        if self.phase == Phase::Upload {
            return None;
        }
        self.upstream("it is cancelled", |entry| entry.end == Some(End::ClientGone)).await;
        Some(left.elapsed())
    }

    fn body(&self) -> String {
        (self.route.body)(&format!("{} [[events=9]]", self.name), true).to_string()
    }

    async fn over_http1(&self) -> Instant {
        let address = self.h.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = self.body();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.route.path,
            self.h.key,
            body.len()
        );
        let sent = if self.phase == Phase::Upload { body.len() / 2 } else { body.len() };
        stream.write_all(&[head.as_bytes(), &body.as_bytes()[..sent]].concat()).await.unwrap();
        self.arrive().await;
        if self.phase == Phase::Output {
            let mut read = Vec::new();
            while memchr::memmem::find(&read, b"delta").is_none() {
                let got = timeout(PATIENCE, stream.read_buf(&mut read)).await.expect("in time");
                assert_ne!(got.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
            }
        }
        if self.leave == Leave::Reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        Instant::now()
    }

    async fn over_http2(&self) -> Instant {
        let bearer = format!("Bearer {}", self.h.key);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", self.h.url, self.route.path))
            .header("authorization", bearer)
            .header("content-type", "application/json")
            .body(Full::from(self.body()))
            .unwrap();
        let answer = self.http2.request(request);
        if self.phase == Phase::Output {
            let mut answer = timeout(PATIENCE, answer).await.expect("in time").unwrap();
            let first = timeout(PATIENCE, answer.body_mut().frame()).await.expect("in time");
            assert!(first.unwrap().unwrap().is_data());
        } else {
            tokio::select! {
                _ = answer => panic!("nobody answers {}", self.name),
                () = self.arrive() => {}
            }
        }
        Instant::now()
    }

    /// As far as the phase has it.
    async fn arrive(&self) {
        match self.phase {
            Phase::Upload => {}
            Phase::Head => self.upstream("it is asked", |_| true).await,
            Phase::Opening | Phase::Output => {
                self.upstream("it has begun", |entry| entry.bytes_sent > 0).await;
            }
        }
    }

    async fn upstream(&self, what: &str, is_so: impl Fn(&Entry) -> bool) {
        let name = self.name.as_bytes();
        let mine = |entry: &Entry| memchr::memmem::find(&entry.body, name).is_some();
        let seen = self.h.sim.wait_for(|all| all.iter().any(|e| mine(e) && is_so(e)), PATIENCE);
        assert!(seen.await, "never: {what}: {} {:?} {:?}", self.name, self.phase, self.leave);
    }
}

/// Places that are taken, of whatever is bounded.
fn places(h: &Harness) -> usize {
    Bound::ALL.into_iter().map(|bound| h.app.admission.level(bound).in_use).sum()
}

/// Requests that have come and gone.
fn ended(h: &Harness) -> usize {
    let ended = |surface| h.app.metrics.requests(surface).iter().flatten().sum::<u64>();
    usize::try_from(Surface::ALL.into_iter().map(ended).sum::<u64>()).unwrap()
}

fn report(what: &str, mut delays: Vec<Duration>) {
    delays.sort_unstable();
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!(
        "{} {what}: cancelled after p50 {:?}, p99 {:?}, at most {:?}",
        delays.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(at(99) < Duration::from_secs(2), "p99 {:?}", at(99));
}

/// 10,000 in the soak.
#[tokio::test]
async fn in_every_phase_on_every_route_by_every_way() {
    let rounds = if std::env::var_os("POOLGATE_SOAK").is_some() { 12 } else { 1 };
    let mut setup = Setup::new().await;
    setup.raw.limits.proxy_http = Some(AT_A_TIME + 4);
    setup.raw.limits.proxy_compact = Some(AT_A_TIME + 4);
    let accounts = [setup.codex("codex"), setup.openai("openai"), setup.claude("claude")];
    let h = setup.start().await;
    let (mut delays, mut left) = (Vec::new(), 0);
    for round in 0..rounds {
        for (number, route) in ROUTES.into_iter().enumerate() {
            for phase in route.phases.iter().copied() {
                for account in &accounts {
                    account.clear_faults();
                    account.fault(fault(phase)).on(route.upstream()).forever();
                }
                for leave in [Leave::Close, Leave::Reset, Leave::Http2Reset] {
                    if (phase, leave) == (Phase::Upload, Leave::Http2Reset) {
                        continue; // Its body is sent at once.
                    }
                    // A connection that takes back a hundred requests is closed.
                    let http2 =
                        HttpClient::builder(TokioExecutor::new()).http2_only(true).build_http();
                    let leavers: Vec<Leaver<'_>> = (0..AT_A_TIME)
                        .map(|n| {
                            let name = format!("leaver-{round}-{number}-{phase:?}-{leave:?}-{n}.");
                            Leaver { h: &h, http2: &http2, route, phase, leave, name }
                        })
                        .collect();
                    left += leavers.len();
                    let all = join_all(leavers.iter().map(Leaver::leave)).await;
                    delays.extend(all.into_iter().flatten());
                    // Those of half a body may not even have been accepted yet.
                    until("all of them have ended", || ended(&h) == left && places(&h) == 0).await;
                    h.sim.clear_journal();
                }
            }
        }
    }
    until("all leases are given back", || h.app.pool.in_flight() == 0).await;
    report("clients left", delays);
    let rows: i64 = h
        .outcomes()
        .await
        .iter()
        .map(|(outcome, count)| {
            assert!(["client_left", "refused"].contains(&outcome.as_str()), "{outcome}");
            count
        })
        .sum();
    assert_eq!(usize::try_from(rows).unwrap(), left, "a row for each");
    for account in &accounts {
        account.clear_faults();
    }
    let body = responses("hi", true);
    let all = join_all((0..AT_A_TIME).map(|_| h.post(CODEX, &body))).await;
    assert!(all.iter().all(|answer| answer.status == 200), "every lane has its places");
    h.finish().await;
}

/// On sockets: by a close frame, by a cut.
#[tokio::test]
async fn in_every_phase_of_a_socket() {
    let rounds = if std::env::var_os("POOLGATE_SOAK").is_some() { 60 } else { 2 };
    let mut setup = Setup::new().await;
    setup.raw.limits.proxy_websocket = Some(AT_A_TIME + 4);
    let a = setup.codex("a");
    let h = setup.start().await;
    let mut delays = Vec::new();
    for round in 0..rounds {
        for phase in [Phase::Head, Phase::Opening, Phase::Output] {
            a.clear_faults();
            a.fault(fault(phase)).turns().forever();
            let leave = async |n: usize| {
                let mut client = Client::open(&h).await;
                client.next().await.unwrap().unwrap();
                let name = format!("leaver-{round}-{phase:?}-{n}.");
                client.send(&create(&format!("{name} [[events=9]]"))).await;
                let mine = |entry: &Entry| {
                    entry.is_turn() && memchr::memmem::find(&entry.body, name.as_bytes()).is_some()
                };
                let began = |e: &Entry| phase == Phase::Head || e.bytes_sent > 0;
                let seen = h.sim.wait_for(|all| all.iter().any(|e| mine(e) && began(e)), PATIENCE);
                assert!(seen.await, "{name}");
                if n.is_multiple_of(2) {
                    client.socket.close(None).await.unwrap();
                }
                drop(client);
                let left = Instant::now();
                let gone = |e: &Entry| mine(e) && e.end == Some(End::ClientGone);
                assert!(h.sim.wait_for(|all| all.iter().any(gone), PATIENCE).await, "{name}");
                left.elapsed()
            };
            delays.extend(join_all((0..AT_A_TIME).map(leave)).await);
            h.sim.clear_journal();
        }
    }
    until("all is given back", || {
        h.app.sockets.is_empty() && places(&h) == 0 && a.open_sockets() == 0
    })
    .await;
    report("sockets left", delays);
    h.finish().await;
}

/// Who waits for an account that is busy.
#[tokio::test]
async fn while_it_waits_in_the_line() {
    let (h, a) = Harness::one_slot().await;
    a.fault(Fault::stall(At::Head)).forever();
    let body = responses("hi", true);
    let waiting = || h.app.pool.line().waiting();
    {
        let mut holder = std::pin::pin!(h.post(CODEX, &body));
        let all = async {
            while h.app.pool.in_flight() == 0 {
                tokio::task::yield_now().await;
            }
            for _ in 0..20 {
                let mut waits = std::pin::pin!(h.post(CODEX, &body));
                let joined = async {
                    while waiting() == 0 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    _ = &mut waits => panic!("nobody answers"),
                    () = joined => {}
                }
            }
        };
        tokio::select! {
            _ = &mut holder => panic!("nobody answers"),
            () = all => {}
        }
    }
    until("the line is empty", || waiting() == 0 && h.app.pool.in_flight() == 0).await;
    a.clear_faults();
    assert_eq!(h.post(CODEX, &body).await.status, 200);
    h.finish().await;
}
