//! reliability P10: three times what a lane can take. What is admitted is served as ever, the rest is
//! refused at once, and nobody else notices.

use std::time::Duration;

use futures_util::future::join_all;
use poolgate::clock::Clock;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::harness::{Answer, Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{Client, create, said};

const LANE: u32 = 50;

struct Load {
    served: Vec<Duration>,
    refused: Vec<Duration>,
    took: Duration,
}

impl Load {
    fn goodput(&self) -> f64 {
        f64::from(u32::try_from(self.served.len()).unwrap()) / self.took.as_secs_f64()
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

/// Asks `times` as often as the lane can take it, whatever comes back (an open loop).
async fn load(h: &Harness, times: f64, answer: Duration, during: Duration) -> Load {
    let each = answer.div_f64(f64::from(LANE) * times);
    let count = during.div_duration_f64(each).round();
    let body = responses(&format!("hi [[first_ms={}]]", answer.as_millis()), true);
    let start = Instant::now();
    let ask = async |number: f64| {
        let due = start + each.mul_f64(number);
        sleep_until(due).await;
        let answer = h.post(CODEX, &body).await;
        (answer, due.elapsed())
    };
    let numbers = std::iter::successors(Some(0.0), |n| Some(n + 1.0)).take_while(|n| *n < count);
    let answers: Vec<(Answer, Duration)> = join_all(numbers.map(ask)).await;
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    for (answer, time) in answers {
        match answer.status.as_u16() {
            200 => served.push(time),
            429 => {
                assert_eq!(answer.code(), "proxy_overloaded");
                assert_eq!(answer.headers["retry-after"], "5");
                refused.push(time);
            }
            _ => panic!("{}", answer.text()),
        }
    }
    Load { served, refused, took: start.elapsed() }
}

/// Longer in the soak. A build without optimisation, which asks too, cannot do the 1,500 requests a
/// second of an upstream that takes 100 ms (`cargo nextest run --cargo-profile perf`).
#[tokio::test]
async fn three_times_what_a_lane_can_take_is_refused_at_once_and_the_rest_served_as_ever() {
    let soak = std::env::var_os("POOLGATE_SOAK").is_some();
    let answer = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 100 });
    let during = Duration::from_secs(if soak { 30 } else { 4 });
    let mut setup = Setup::new().await;
    setup.raw.limits.proxy_http = Some(LANE as usize);
    setup.codex("a");
    let h = setup.start().await;
    // Just below what fits, so that nothing is refused by chance.
    let mut once = load(&h, 0.9, answer, during).await;
    let others = async {
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        assert_eq!(said(&client.turn(&create("hi")).await), "completed", "sockets");
        assert_eq!(h.get("/v1/usage", &[]).await.status, 200, "the dashboard's");
        let compact = json!({"model": "gpt-5.5", "instructions": "", "input": "hi"});
        assert_eq!(h.post("/v1/responses/compact", &compact).await.status, 200, "compaction");
        assert_eq!(h.get("/healthz", &[]).await.status, 200);
        drop(client);
    };
    let (mut thrice, ()) = tokio::join!(load(&h, 3.0, answer, during), others);
    let goodput = thrice.goodput() / once.goodput();
    let (p99, p99_once) = (percentile(&mut thrice.served, 99), percentile(&mut once.served, 99));
    let refusal = percentile(&mut thrice.refused, 99);
    println!(
        "goodput {:.1}/s at 0.9, {:.1}/s at 3 ({goodput:.2}); p99 of the admitted {p99_once:?}, {p99:?}; \
         {} refused, p50 {:?}, p99 {refusal:?}",
        once.goodput(),
        thrice.goodput(),
        thrice.refused.len(),
        percentile(&mut thrice.refused, 50),
    );
    assert!(goodput >= 0.9, "{goodput}");
    assert!(p99 <= 2 * p99_once, "{p99:?}, and {p99_once:?} before");
    assert!(refusal < answer / 2, "{refusal:?}");
    assert!(thrice.refused.len() > thrice.served.len(), "two of three do not fit");
    assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].state, "ready", "no account is charged");
    h.finish().await;
}
