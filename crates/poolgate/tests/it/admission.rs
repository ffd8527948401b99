//! Lanes and stages: beyond their size poolgate refuses at once and politely, and everything else goes
//! on.

use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use poolgate::admin::read_token;
use poolgate::admission::{Bound, Level, Permit};
use poolgate::clock::Clock;
use poolgate::config::RawLimits;
use poolgate_core::account::Surface;
use poolgate_core::availability::Ask;
use poolgate_core::outcome::{Attempt, Outcome};
use poolgate_sim::Account;
use serde_json::json;

use crate::canary;
use crate::harness::{Answer, Harness, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::{BETA, Client, connect, create, said, until};

/// A gateway with the codex account `a`, whose limits are `limits`.
pub async fn bounded(limits: RawLimits) -> (Harness, Account) {
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    setup.raw.limits = RawLimits { drain_timeout_s: Some(5), ..limits };
    (setup.start().await, a)
}

/// An answer that has begun, and ends when it is dropped.
pub async fn endless(h: &Harness) -> Response<Incoming> {
    let bearer = format!("Bearer {}", h.key);
    let body = responses("hi [[events=5000]] [[gap_ms=20]]", true).to_string();
    let url = format!("{}{CODEX}", h.url);
    let headers = [("authorization", bearer.as_str())];
    let mut response = h.request(Method::POST, &url, &headers, body.into()).await;
    assert!(response.body_mut().frame().await.unwrap().unwrap().is_data());
    response
}

pub fn in_use(h: &Harness, bound: Bound) -> usize {
    h.app.admission.level(bound).in_use
}

pub fn fill(h: &Harness, bound: Bound) -> Vec<Permit> {
    let Level { in_use, size, .. } = h.app.admission.level(bound);
    (in_use..size).map(|_| h.app.admission.enter(bound).unwrap()).collect()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// A refusal of ours: 429, its code, a time, and what its message names.
pub fn assert_refused(answer: &Answer, by: &str) {
    assert_eq!((answer.status.as_u16(), answer.code()), (429, "proxy_overloaded"), "{by}");
    assert_eq!(header(answer, "retry-after"), "5", "{by}");
    assert!(answer.text().contains(by), "{by} in {}", answer.text());
}

async fn admin(h: &Harness, path: &str) -> Answer {
    let token = format!("Bearer {}", read_token(&h.app.config.data_dir).unwrap());
    h.send(Method::GET, path, &[("authorization", &token)], "".into()).await
}

/// codex-lb H1, H2: a full lane refuses at once, and no other one notices.
#[tokio::test]
async fn codex_lb_h1_a_full_lane_refuses_at_once_and_h2_the_others_go_on() {
    let (h, _) = bounded(RawLimits { proxy_http: Some(1), ..RawLimits::default() }).await;
    let running = endless(&h).await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert_refused(&got, "in the proxy_http lane");
    assert_eq!(got.json()["error"]["type"], "rate_limit_error");
    let got = h.post("/v1/messages", &messages("hi", true)).await;
    assert_refused(&got, "in the proxy_http lane");
    assert_eq!(
        (&got.json()["type"], &got.json()["error"]["type"]),
        (&json!("error"), &json!("rate_limit_error"))
    );
    assert_refused(&h.get("/v1/models", &[]).await, "in the proxy_http lane");
    assert_eq!(h.asked(), ["a"], "nothing of them reached the account");
    assert_eq!(h.app.pool.in_flight(), 1);

    let compact = json!({"model": "gpt-5.5", "input": []});
    assert_eq!(h.post("/v1/responses/compact", &compact).await.status, 200);
    let mut socket = Client::open(&h).await;
    socket.next().await.unwrap().unwrap();
    assert_eq!(said(&socket.turn(&create("hi")).await), "completed");
    assert_eq!(h.get("/v1/usage", &[]).await.status, 200);
    assert_eq!(admin(&h, "/api/admin/status").await.status, 200);
    assert_eq!(h.get("/healthz", &[]).await.status, 200);

    drop((running, socket));
    until("the place is given back", || in_use(&h, Bound::ProxyHttp) == 0).await;
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    let refused = "SELECT surface, status, account_id FROM requests WHERE code = 'proxy_overloaded'
                   ORDER BY surface";
    let want = [["messages", "429", "NULL"], ["responses", "429", "NULL"]];
    assert_eq!(h.rows(refused).await, want, "each refused request has its row");
    h.finish().await;
}

/// codex-lb H3, H4: a socket is refused as a plain HTTP answer, and its place comes back with its
/// end.
#[tokio::test]
async fn codex_lb_h3_a_socket_is_refused_before_its_upgrade_and_h4_admitted_after_another() {
    let (h, _) = bounded(RawLimits { proxy_websocket: Some(1), ..RawLimits::default() }).await;
    let first = Client::open(&h).await;
    let (status, body) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("proxy_overloaded")));
    let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
    assert_refused(&h.get(CODEX, &upgrade).await, "in the proxy_websocket lane");
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    drop(first);
    until("the place is given back", || in_use(&h, Bound::ProxyWebsocket) == 0).await;
    Client::open(&h).await;
    h.finish().await;
}

/// codex-lb H7: what is not of the proxy has a lane of its own, and says so in its own shape.
#[tokio::test]
async fn codex_lb_h7_a_full_dashboard_refuses_with_a_detail() {
    let (h, _) = bounded(RawLimits { dashboard: Some(2), ..RawLimits::default() }).await;
    let held = fill(&h, Bound::Dashboard);
    assert_eq!(held.len(), 2);
    for path in ["/api/admin/status", "/nowhere"] {
        let got = admin(&h, path).await;
        assert_refused(&got, "in the dashboard lane");
        assert!(got.json()["detail"].as_str().unwrap().contains("dashboard"), "{path}");
    }
    for path in ["/v1/usage", "/v1/pool/status", "/backend-api/wham/usage", "/v1/nowhere"] {
        let got = h.get(path, &[]).await;
        assert_refused(&got, "in the dashboard lane");
        assert_eq!(got.json()["error"]["type"], "rate_limit_error", "{path}");
    }
    assert_eq!(h.get("/api/admin/status", &[]).await.status, 401, "a stranger is told that first");
    assert_eq!(h.get("/readyz", &[]).await.status, 200);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    drop(held);
    assert_eq!(admin(&h, "/api/admin/status").await.status, 200);
    assert_eq!(admin(&h, "/nowhere").await.status, 404);
    assert_eq!(in_use(&h, Bound::Dashboard), 0);
    h.finish().await;
}

#[tokio::test]
async fn spec_9_a_watcher_leaves_the_dashboard_with_its_first_line() {
    let (h, _) = bounded(RawLimits { dashboard: Some(1), ..RawLimits::default() }).await;
    let bearer = format!("Bearer {}", h.key);
    let url = format!("{}/v1/pool/status?watch=true", h.url);
    let headers = [("authorization", bearer.as_str())];
    let mut watched = h.request(Method::GET, &url, &headers, "".into()).await;
    assert!(watched.body_mut().frame().await.unwrap().unwrap().is_data());
    assert_eq!((in_use(&h, Bound::Dashboard), in_use(&h, Bound::Watch)), (0, 1));
    assert_eq!(h.get("/v1/usage", &[]).await.status, 200);
    let others = fill(&h, Bound::Watch);
    assert_eq!(others.len(), 63);
    assert_refused(&h.get("/v1/pool/status?watch=true", &[]).await, "in the watch lane");
    assert_eq!(in_use(&h, Bound::Dashboard), 0);
    drop((watched, others));
    until("the place is given back", || in_use(&h, Bound::Watch) == 0).await;
    h.finish().await;
}

/// codex-lb H18: each refusal is one line that says where, and its own figure.
#[tokio::test]
async fn codex_lb_h18_each_refusal_is_one_line_of_the_log() {
    canary::listen();
    let limits = RawLimits {
        proxy: Some(1),
        dashboard: Some(1),
        proxy_compact: Some(1),
        ..RawLimits::default()
    };
    let (h, _) = bounded(limits).await;
    let lanes = [Bound::ProxyHttp, Bound::ProxyWebsocket, Bound::ProxyCompact, Bound::Dashboard];
    let held: Vec<Permit> = lanes.iter().flat_map(|bound| fill(&h, *bound)).collect();
    let refused = h.post("/v1/responses", &responses("hi", true)).await;
    let id = header(&refused, "x-poolgate-request-id").to_owned();
    h.post("/backend-api/codex/responses/compact", &json!({"model": "m", "input": []})).await;
    connect(&h, &[BETA]).await.err().unwrap();
    h.get("/v1/pool/status?watch=true", &[]).await;
    h.get("/some/where?secret=1", &[]).await;
    let log = canary::logged();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("proxy_admission_rejected")).collect();
    let want = [
        ("http", "/v1/responses", "proxy_http"),
        ("http", "/backend-api/codex/responses/compact", "proxy_compact"),
        ("websocket", "/backend-api/codex/responses", "proxy_websocket"),
        ("http", "/v1/pool/status", "dashboard"),
        ("http", "unknown", "dashboard"),
    ];
    assert_eq!(lines.len(), want.len(), "{lines:#?}");
    for (line, (scope, path, lane)) in lines.iter().zip(want) {
        for part in [
            format!("scope=\"{scope}\""),
            format!("path=\"{path}\""),
            format!("lane=\"{lane}\""),
            "status=429".into(),
            "available=0".into(),
            format!("poolgate is temporarily overloaded in the {lane} lane"),
        ] {
            assert!(line.contains(&part), "{part} in {line}");
        }
        assert!(line.contains("WARN") && !line.contains("stage="), "{line}");
    }
    assert!(lines[0].contains(&format!("request_id=\"{id}\"")), "{}", lines[0]);
    assert!(!log.contains("secret=1"), "no query in the log");
    let level = h.app.admission.level(Bound::Dashboard);
    assert_eq!(level, Level { in_use: 1, size: 1, refused: 2 });
    drop(held);
    h.finish().await;
}

#[tokio::test]
async fn spec_9_what_an_account_was_learnt_to_take_is_shown() {
    let (h, _) = bounded(RawLimits::default()).await;
    let account = h.app.pool.accounts().remove(0);
    let running = [endless(&h).await, endless(&h).await, endless(&h).await, endless(&h).await];
    let now = h.clock.now();
    let ask = Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None };
    let at = Attempt { ask, sent_at: now, now, refreshed: false };
    for _ in 0..2 {
        h.app.pool.settle(&account, Outcome::RateLimited { until: now }, at);
    }
    let shown = admin(&h, "/api/admin/status").await.json()["accounts"][0].clone();
    assert_eq!((&shown["state"], &shown["concurrency"]), (&json!("ready"), &json!(2)));
    assert_eq!(shown["problem"], "refused more than 2 at the same time");
    let why = admin(&h, "/api/admin/why?model=gpt-5.5").await.json()["accounts"][0].clone();
    assert_eq!((&why["verdict"], &why["concurrency"]), (&json!("busy"), &json!(2)));
    drop(running);
    until("they are over", || h.app.pool.in_flight() == 0).await;
    let why = admin(&h, "/api/admin/why?model=gpt-5.5").await.json()["accounts"][0].clone();
    assert_eq!(why["verdict"], "ready");
    h.finish().await;
}
