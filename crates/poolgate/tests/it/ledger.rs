//! The ledger: one row per request, whatever the database does meanwhile.

use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{BETA, connect};

/// Another process that holds the database's write lock, as a backup or a careless shell would, until
/// its connection is closed.
async fn lock(h: &Harness) -> SqliteConnection {
    let file = h.app.config.data_dir.join("poolgate.db");
    let mut other = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    other
}

#[tokio::test]
async fn no_request_waits_for_a_locked_database_and_no_row_is_lost() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let lock = lock(&h).await;
    let (until, mut served, mut slowest) =
        (Instant::now() + Duration::from_secs(5), 0, Duration::ZERO);
    while Instant::now() < until {
        let began = Instant::now();
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
        slowest = slowest.max(began.elapsed());
        served += 1;
    }
    assert!(served > 50, "only {served} requests in 5 s");
    assert!(slowest < Duration::from_secs(2), "one waited {slowest:?}");
    assert!(h.app.spool.waiting() > 0, "the records are waiting in the spool");
    lock.close().await.unwrap();
    assert_eq!(h.outcomes().await, [("complete".to_owned(), served)]);
    h.finish().await;
}

#[tokio::test]
async fn attempts_and_refusals_have_their_rows() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.fault(poolgate_sim::Fault::usage_limit_reached()).times(1);
    h.post(CODEX, &responses("hi", true)).await;
    h.post(CODEX, &serde_json::json!({"model": ""})).await;
    let rows = h.rows("SELECT n, outcome, status FROM attempts").await;
    assert_eq!(rows, [["1", "quota_spent", "429"]]);
    let rows = h.rows("SELECT outcome, status, code, account_id FROM requests").await;
    assert_eq!(
        rows,
        [["complete", "200", "NULL", "2"], ["refused", "400", "missing_model", "NULL"]]
    );
    h.finish().await;
}

#[tokio::test]
async fn every_byte_of_an_answer_is_counted() {
    let (h, _) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let json = h.post("/v1/responses", &responses("hi", false)).await;
    let stream = h.post("/v1/responses", &responses("hi", true)).await;
    assert!(h.outcomes().await.iter().all(|(outcome, _)| outcome == "complete"));
    let rows = h.rows("SELECT bytes, first_ms IS NOT NULL FROM requests ORDER BY id").await;
    let sizes = [json, stream].map(|answer| answer.body.len().to_string());
    assert_eq!(rows, sizes.map(|size| [size, "1".to_owned()]));
    h.finish().await;
}

#[tokio::test]
async fn a_full_spool_refuses_instead_of_dropping() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    setup.raw.limits.spool_max_bytes = Some(1);
    let h = setup.start().await;
    let lock = lock(&h).await;
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "proxy_unavailable"));
    assert!(got.headers.contains_key("retry-after"));
    let (status, body) = connect(&h, &[BETA]).await.err().expect("no socket is opened either");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("proxy_unavailable")));
    assert_eq!(h.asked(), ["a"]);
    lock.close().await.unwrap();
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)]);
    h.finish().await;
}
