//! reliability P6: one account of two fails, in every way there is. Everything that the other can carry is
//! served, and an account that fails fast draws no traffic for being idle.

use futures_util::StreamExt;
use futures_util::stream::iter;
use poolgate_sim::{Account, Fault, Garbage, Phase};
use tokio::net::TcpListener;

use crate::harness::{Harness, Setup};
use crate::requests::responses;

const REQUESTS: usize = 100;
const AT_A_TIME: usize = 8;

/// How the bad account is bad.
enum Bad {
    Answers(Fault),
    /// Its address, to which nothing listens.
    Refuses,
    /// It accepts, and never says a word of TLS.
    Silent(TcpListener),
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

async fn start(bad: &Bad) -> (Harness, Account) {
    let mut setup = Setup::new().await;
    setup.raw.limits.stream_head_timeout_s = Some(1);
    setup.raw.limits.connect_timeout_s = Some(1);
    let a = setup.openai("bad");
    setup.openai("good");
    match bad {
        Bad::Answers(fault) => {
            a.fault(fault.clone()).forever();
        }
        Bad::Refuses => {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
            setup.settings("bad").base_url = Some(format!("http://127.0.0.1:{}/v1", port(&free)));
        }
        Bad::Silent(listener) => {
            let url = format!("https://127.0.0.1:{}/v1", port(listener));
            setup.settings("bad").base_url = Some(url);
        }
    }
    (setup.start().await, a)
}

async fn others_are_served(name: &str, bad: Bad) {
    let (h, _) = start(&bad).await;
    let body = responses("hi", true);
    let ask = |_| h.post("/v1/responses", &body);
    let answers: Vec<_> = iter(0..REQUESTS).map(ask).buffer_unordered(AT_A_TIME).collect().await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert!(answer.text().contains("response.completed"), "{name}");
    }
    let asked = h.asked().iter().filter(|account| *account == "bad").count();
    // Those that were under way when it failed first, and once more for some of them.
    assert!(asked <= 3 * AT_A_TIME, "{name}: the bad one was asked {asked} times");
    let tried = h.rows("SELECT COUNT(*) FROM attempts").await;
    let failed: usize = tried[0][0].parse().unwrap();
    assert!((1..=3 * AT_A_TIME).contains(&failed), "{name}: it was tried {failed} times");
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 100)], "{name}");
    h.finish().await;
}

#[tokio::test]
async fn it_fails_at_once() {
    for (name, fault) in [
        ("500", Fault::server_error(500)),
        ("503", Fault::server_error(503)),
        ("401", Fault::unauthorized()),
        ("403", Fault::forbidden_error()),
        ("429", Fault::usage_limit_reached()),
        ("closes", Fault::close_before_head()),
        ("resets", Fault::Reset { after_bytes: 0 }),
        ("no HTTP", Fault::garbage(Garbage::Socket)),
        ("no events", Fault::garbage(Garbage::Events)),
        ("cut", Fault::cut_before_output()),
    ] {
        others_are_served(name, Bad::Answers(fault)).await;
    }
    others_are_served("refuses", Bad::Refuses).await;
}

#[tokio::test]
async fn it_stalls_before_its_head() {
    others_are_served("stalls", Bad::Answers(Fault::stall(Phase::Head))).await;
}

#[tokio::test]
async fn it_never_answers_tls() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    others_are_served("silent", Bad::Silent(silent)).await;
}
