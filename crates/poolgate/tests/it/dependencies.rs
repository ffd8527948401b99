//! What the gateway depends on and cannot serve for: its store, names, the time of day. Each goes
//! away and comes back under a running gateway.

use std::path::PathBuf;
use std::time::Duration;

use poolgate::clock::Clock;
use poolgate_core::units::Timestamp;
use poolgate_sim::Fault;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::harness::{Answer, Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};

async fn ask(h: &Harness) -> Answer {
    h.post(CODEX, &responses("hi", true)).await
}

fn complete(count: i64) -> Vec<(String, i64)> {
    vec![("complete".to_owned(), count)]
}

fn database(h: &Harness) -> PathBuf {
    h.app.config.data_dir.join("poolgate.db")
}

/// Somebody else's connection.
async fn other(h: &Harness) -> SqlitePool {
    SqlitePool::connect_with(SqliteConnectOptions::new().filename(database(h))).await.unwrap()
}

/// As with a disk that is full or was mounted read-only: what is read is there, nothing is taken.
#[tokio::test]
async fn a_store_that_takes_nothing_is_waited_for_and_then_given_all() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    setup.raw.limits.spool_max_bytes = Some(4096);
    let h = setup.start().await;
    let other = other(&h).await;
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON requests
                  BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END";
    sqlx::query(refuse).execute(&other).await.unwrap();
    let mut served = 0;
    let refused = loop {
        let answer = ask(&h).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 100, "the spool is full at some time");
    };
    assert!(served > 2, "only {served} requests before the spool was full");
    assert_eq!((refused.status.as_u16(), refused.code()), (503, "proxy_unavailable"));
    assert!(refused.headers.contains_key("retry-after"));
    sqlx::query("DROP TRIGGER full").execute(&other).await.unwrap();
    other.close().await;
    assert_eq!(h.outcomes().await, complete(served), "all of them, and by itself");
    assert_eq!(ask(&h).await.status, 200);
    h.finish().await;
}

#[tokio::test]
async fn a_database_that_is_moved_away_is_waited_for() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    assert_eq!(ask(&h).await.status, 200);
    assert_eq!(h.outcomes().await, complete(1));
    let away = h.dir.path().join("away.db");
    std::fs::rename(database(&h), &away).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&h).await.status, 200, "nobody waits for it");
    }
    let moved = tokio::time::timeout(Duration::from_secs(2), h.app.spool.drained()).await;
    assert!(moved.is_err(), "records go nowhere while it is away");
    std::fs::rename(&away, database(&h)).unwrap();
    assert_eq!(h.outcomes().await, complete(4));
    let h = h.restart().await;
    assert_eq!(h.outcomes().await, complete(4), "and the file has them");
    h.finish().await;
}

/// A backup that is put in its place is left as it is until a restart.
#[tokio::test]
async fn another_file_in_the_databases_place_is_not_mixed_with_it() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let away = h.dir.path().join("away.db");
    std::fs::rename(database(&h), &away).unwrap();
    std::fs::write(database(&h), b"a backup").unwrap();
    assert_eq!(ask(&h).await.status, 200);
    let moved = tokio::time::timeout(Duration::from_secs(2), h.app.spool.drained()).await;
    assert!(moved.is_err(), "records go into neither");
    assert_eq!(std::fs::read(database(&h)).unwrap(), b"a backup");
    std::fs::rename(&away, database(&h)).unwrap();
    assert_eq!(h.outcomes().await, complete(1));
    h.finish().await;
}

#[tokio::test]
async fn an_account_whose_name_does_not_resolve_costs_the_others_nothing() {
    let (h, (_, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        let accounts = (s.codex("a"), s.codex("b"));
        let lost = s.settings("a");
        lost.base_url = Some("http://nowhere.invalid/backend-api/codex".into());
        lost.private_upstream = true;
        accounts
    })
    .await;
    for _ in 0..10 {
        assert_eq!(ask(&h).await.status, 200);
    }
    assert_eq!(h.asked(), vec!["b"; 10]);
    // With nobody else, it is said at once that it cannot be now.
    b.fault(Fault::usage_limit_reached());
    let answer = tokio::time::timeout(PATIENCE, ask(&h)).await.unwrap();
    assert!(answer.status.is_server_error() || answer.status == 429, "{}", answer.status);
    assert!(answer.headers.contains_key("retry-after"), "{}", answer.text());
    h.finish().await;
}

/// Waits until the gateway has looked at its clock and its store.
async fn looked(h: &Harness) {
    let accounts = h.app.pool.accounts();
    let last = accounts.last().unwrap().id;
    let is = async |state: &str| {
        let is = async {
            while h.app.pool.view(h.clock.now()).accounts.last().unwrap().state != state {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is).await.expect("it looks");
    };
    h.app.store.pause(last).await.unwrap();
    is("paused").await;
    h.app.store.resume(last, h.clock.now()).await.unwrap();
    is("ready").await;
}

/// Five hours on and eight back, under a stream and beside an account that was told to wait a minute.
#[tokio::test]
async fn a_clock_that_jumps_ends_no_stream_and_lengthens_no_pause() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let jumps = async {
        let is_asked = |entries: &[poolgate_sim::Entry]| !entries.is_empty();
        assert!(h.sim.wait_for(is_asked, PATIENCE).await);
        h.clock.advance(Duration::from_hours(5));
        looked(&h).await;
        assert_eq!(ask(&h).await.status, 200);
        h.sim.clear_journal();
        a.fault(Fault::rate_limited(Duration::from_mins(1))).times(1);
        assert_eq!(ask(&h).await.status, 200);
        assert_eq!(h.asked(), ["a", "b"]);
        h.clock.set_back(Duration::from_hours(8));
        // The pause is what it was.
        let noticed = async {
            let until = || h.app.pool.view(h.clock.now()).accounts[0].until.unwrap();
            while h.clock.now().until(Timestamp(until())) > Duration::from_mins(1) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, noticed).await.expect("it is noticed");
        assert_eq!(ask(&h).await.status, 200);
        assert_eq!(h.asked(), ["a", "b", "b"], "it still lasts");
        h.clock.advance(Duration::from_mins(1));
        assert_eq!(ask(&h).await.status, 200);
        assert_eq!(h.asked(), ["a", "b", "b", "a"]);
    };
    let slow = responses("hi [[events=80]] [[gap_ms=20]]", true);
    let (stream, ()) = tokio::join!(h.post(CODEX, &slow), jumps);
    assert!(!stream.cut && stream.text().contains("response.completed"));
    let odd = "SELECT COUNT(*) FROM requests WHERE total_ms < 0 OR ended_at < started_at";
    assert_eq!(h.rows(odd).await, [["0"]]);
    assert_eq!(h.outcomes().await, complete(5));
    h.finish().await;
}
