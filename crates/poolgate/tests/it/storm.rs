//! Sockets under random faults: whatever happens, nothing of them stays.
//!
//! 30 s here, 20 minutes with `make soak`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use poolgate::clock::Clock;
use poolgate_sim::{Account, Fault, Garbage, Phase};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{Harness, Setup};
use crate::idle::resident;
use crate::socket_client::{Client, chained, create, id, said};

const CLIENTS: usize = 16;
/// With accounts resting, a request may wait a minute. These clients leave before, at any moment.
const PATIENCE: Duration = Duration::from_secs(3);

fn faults() -> Vec<Fault> {
    vec![
        Fault::cut_before_output(),
        Fault::cut_after_output(2),
        Fault::error_event_before_output(),
        Fault::error_event_after_output(1),
        Fault::error_frame(Phase::Head, 500, "server_error"),
        Fault::error_frame(Phase::Output(1), 429, "rate_limit_exceeded"),
        Fault::close_frame(Phase::Body, 1011),
        Fault::close_frame(Phase::Output(1), 1012),
        Fault::close_after_turn(1000),
        Fault::connection_limit(),
        Fault::garbage(Garbage::Events),
        Fault::garbage(Garbage::Socket),
        Fault::close_before_head(),
        Fault::server_error(503),
        Fault::rate_limited(Duration::from_secs(1)),
    ]
}

/// Makes trouble until `until`.
async fn trouble(accounts: &[Account], until: Instant, mut random: rand::rngs::StdRng) {
    while Instant::now() < until {
        let account = accounts.choose(&mut random).unwrap();
        match random.random_range(0..20) {
            0 => account.cut_sockets(),
            1 => account.close_sockets(1000),
            // One at a time: with more in store than is met, nobody is ever well.
            _ if account.pending_faults() > 0 => 0,
            _ => {
                account.fault(faults().choose(&mut random).unwrap().clone()).times(1);
                0
            }
        };
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
    }
}

/// Accounts that fail all the time rest for minutes, and nothing is stirred meanwhile: an operator
/// calls them back.
async fn call_back(h: &Harness, until: Instant) {
    while Instant::now() < until {
        for account in h.app.pool.accounts() {
            h.app.store.resume(account.id, h.clock.now()).await.unwrap();
        }
        h.app.reload().await.unwrap();
        sleep(Duration::from_secs(2)).await;
    }
}

/// Turn after turn like Codex: in full after a break, on a new socket when the old one is gone.
async fn client(h: &Harness, until: Instant, served: &AtomicU64) {
    while Instant::now() < until {
        let opened = timeout(PATIENCE, Client::try_at(&h.url, &h.key)).await;
        let Ok(Some(mut client)) = opened else { continue };
        let mut last: Option<String> = None;
        for n in 0..20 {
            let text = format!("turn {n} [[events=3]]");
            let frame: Value = last.as_ref().map_or_else(|| create(&text), |id| chained(&text, id));
            let Ok(Some(events)) = timeout(PATIENCE, client.try_turn(&frame)).await else { break };
            last = (said(&events) == "completed").then(|| id(&events));
            served.fetch_add(u64::from(last.is_some()), Ordering::Relaxed);
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// What the process holds, eight times in `span`; the simulator and its journal, which is bounded, are
/// in it.
async fn memory(span: Duration) -> Vec<u64> {
    let mut samples = Vec::new();
    for _ in 0..8 {
        sleep(span / 8).await;
        samples.push(resident(std::process::id()));
    }
    samples
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_random_faults_sockets_leave_nothing() {
    let soak = std::env::var_os("POOLGATE_SOAK").is_some();
    let span = Duration::from_secs(if soak { 1200 } else { 30 });
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let (h, accounts) =
        Harness::start(|s: &mut Setup| ["a", "b", "c", "d"].map(|name| s.codex(name))).await;
    let until = Instant::now() + span;
    let served = Arc::new(AtomicU64::new(0));
    let clients = join_all((0..CLIENTS).map(|_| client(&h, until, &served)));
    let random = rand::rngs::StdRng::seed_from_u64(seed);
    let ((), (), (), held) = tokio::join!(
        async { drop(clients.await) },
        trouble(&accounts, until, random),
        call_back(&h, until),
        memory(span)
    );
    let served = served.load(Ordering::Relaxed);
    println!("{served} turns served in {span:?}");
    println!("KiB held, each eighth of it: {held:?}");
    // At first everything fills up that is bounded: the journal, pools, caches.
    assert!(!soak || held[7] < held[3] + held[3] / 5, "it grows: {held:?}");
    assert!(served > span.as_secs(), "only {served} turns were served");
    let gone = async {
        let upstream = || accounts.iter().map(Account::open_sockets).sum::<usize>();
        let waiting = || h.app.pool.line().waiting() + h.app.pool.in_flight() as usize;
        // A client that left while its handshake waited is noticed a moment later.
        while !h.app.sockets.is_empty() || upstream() > 0 || waiting() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.expect("nothing is left");
    for account in &accounts {
        account.clear_faults();
    }
    h.finish().await;
}
