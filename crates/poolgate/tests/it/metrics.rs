//! What Prometheus reads.

use http::Method;
use poolgate::admin::read_token;
use poolgate::admission::Bound;
use poolgate::config::RawLimits;
use poolgate_sim::Fault;

use crate::admission::{fill, in_use};
use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{Client, create, said};

async fn page(h: &Harness) -> String {
    let token = format!("Bearer {}", read_token(&h.app.config.data_dir).unwrap());
    let got = h.send(Method::GET, "/metrics", &[("authorization", &token)], "".into()).await;
    assert_eq!(got.status, 200);
    assert!(got.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics"));
    got.text()
}

/// The value of the row that begins so.
fn value(page: &str, row: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {row} in {page}")).parse().unwrap()
}

#[tokio::test]
async fn spec_9_what_happened_is_counted_once_and_refusals_of_ours_apart() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.codex("a");
    setup.codex("b");
    setup.raw.limits = RawLimits {
        drain_timeout_s: Some(5),
        dashboard: Some(1),
        response_create: Some(7),
        ..RawLimits::default()
    };
    let h = setup.start().await;
    let wait = std::time::Duration::from_secs(30);
    a.fault(Fault::rate_limited(wait)).times(1);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(h.post("/v1/responses", &responses("hi", false)).await.status, 200);
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    let held = fill(&h, Bound::ResponseCreate);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 429);
    drop(held);
    h.app.memory.judge(95, 100);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.code(), "proxy_unavailable");
    assert_eq!(said(&client.turn(&create("hi")).await), "proxy_unavailable");
    h.app.memory.judge(50, 100);
    // It is outside of all lanes.
    let held = fill(&h, Bound::Dashboard);
    let page = page(&h).await;
    drop(held);
    let rows = [
        ("poolgate_requests_total{surface=\"responses\",outcome=\"complete\",status=\"2xx\"}", 3.0),
        ("poolgate_requests_total{surface=\"responses\",outcome=\"refused\",status=\"4xx\"}", 1.0),
        ("poolgate_request_seconds_count{surface=\"responses\",phase=\"total\"}", 4.0),
        ("poolgate_request_seconds_count{surface=\"responses\",phase=\"head\"}", 3.0),
        ("poolgate_request_seconds_count{surface=\"chat\",phase=\"total\"}", 0.0),
        ("poolgate_attempts_total{outcome=\"served\"}", 3.0),
        ("poolgate_attempts_total{outcome=\"rate_limited\"}", 1.0),
        ("poolgate_attempts_total{outcome=\"shed\"}", 0.0),
        ("poolgate_account_failovers_total{account=\"a\"}", 1.0),
        ("poolgate_account_state{account=\"a\",state=\"limited\"}", 1.0),
        ("poolgate_account_state{account=\"b\",state=\"ready\"}", 1.0),
        ("poolgate_account_in_flight{account=\"b\"}", 0.0),
        ("poolgate_admission_refusals_total{kind=\"stage\",name=\"response_create\"}", 1.0),
        ("poolgate_admission_refusals_total{kind=\"lane\",name=\"proxy_http\"}", 0.0),
        ("poolgate_admission_size{kind=\"stage\",name=\"response_create\"}", 7.0),
        ("poolgate_admission_in_use{kind=\"lane\",name=\"dashboard\"}", 1.0),
        ("poolgate_admission_in_use{kind=\"lane\",name=\"proxy_websocket\"}", 1.0),
        ("poolgate_sockets", 1.0),
        ("poolgate_sheds_total{reason=\"memory\"}", 2.0),
        ("poolgate_sheds_total{reason=\"spool\"}", 0.0),
        ("poolgate_waiting_requests", 0.0),
    ];
    for (row, want) in rows {
        assert!((value(&page, row) - want).abs() < 1e-9, "{row}: {}", value(&page, row));
    }
    assert!(value(&page, "poolgate_resident_memory_bytes") > 1e6);
    assert!(value(&page, "poolgate_connect_seconds_count") >= 2.0);
    assert!(!page.contains("gpt-5.5"), "no text of a client");
    assert_eq!(in_use(&h, Bound::ProxyHttp), 0);
    drop(client);
    h.finish().await;
}

/// reliability AUTH-1, MET-1.
#[tokio::test]
async fn figures_are_the_operators_and_each_is_explained() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    assert_eq!(h.send(Method::GET, "/metrics", &[], "".into()).await.status, 401);
    assert_eq!(h.get("/metrics", &[]).await.status, 401, "a client's key is not enough");
    let page = page(&h).await;
    let manual =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
    let manual = manual.unwrap();
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let mut count = 0;
    for name in names {
        assert!(manual.contains(&format!("`{name}`")), "{name} is not explained");
        count += 1;
    }
    assert_eq!(count, manual.matches("| `poolgate_").count(), "each row is a figure");
    assert!(page.ends_with("# EOF\n"));
    h.finish().await;
}
