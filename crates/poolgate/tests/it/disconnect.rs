//! A client that leaves takes its upstream request with it.

use http::Method;
use http_body_util::BodyExt;
use poolgate_sim::{End, Fault, Phase};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};

async fn wait_gone(h: &Harness) {
    let gone = h.sim.wait_for(|all| all.iter().any(|e| e.end == Some(End::ClientGone)), PATIENCE);
    assert!(gone.await, "the upstream saw nobody leave");
    let freed = async {
        while h.app.pool.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the lease is given back");
}

#[tokio::test]
async fn in_the_middle_of_a_stream() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let bearer = format!("Bearer {}", h.key);
    let body = responses("hi [[events=5000]] [[gap_ms=20]]", true).to_string();
    let url = format!("{}{CODEX}", h.url);
    let headers = [("authorization", bearer.as_str())];
    let mut response = h.request(Method::POST, &url, &headers, body.into()).await;
    let first = response.body_mut().frame().await.unwrap().unwrap();
    assert!(first.is_data());
    drop(response);
    wait_gone(&h).await;
    assert_eq!(h.outcomes().await, [("client_left".to_owned(), 1)]);
    h.finish().await;
}

/// sub2api L5.
#[tokio::test]
async fn before_the_head() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::stall(Phase::Head)).forever();
    let bearer = format!("Bearer {}", h.key);
    let body = responses("hi", true).to_string();
    let url = format!("{}{CODEX}", h.url);
    let headers = [("authorization", bearer.as_str())];
    {
        let mut request = std::pin::pin!(h.request(Method::POST, &url, &headers, body.into()));
        let arrived = h.sim.wait_for(|all| !all.is_empty(), PATIENCE);
        tokio::select! {
            _ = &mut request => panic!("nobody answers"),
            arrived = arrived => assert!(arrived),
        }
    }
    wait_gone(&h).await;
    assert_eq!(h.outcomes().await, [("client_left".to_owned(), 1)]);
    h.finish().await;
}
