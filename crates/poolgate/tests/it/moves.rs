//! Requests and sessions that move: off an account that becomes unable while they wait, off one that
//! fell behind, and with a history that another account cannot read.

use std::time::Duration;

use futures_util::future::join;
use poolgate::clock::Clock;
use poolgate_sim::{Fault, Phase};
use serde_json::json;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::until;

#[tokio::test]
async fn requests_that_wait_for_a_head_leave_an_account_that_becomes_unable() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.fault(Fault::stall(Phase::Head)).times(1);
    let body = responses("hi", true);
    let waits = h.post(CODEX, &body);
    let spends = async {
        assert!(h.sim.wait_for(|all| !all.is_empty(), PATIENCE).await, "the first one waits");
        a.fault(Fault::usage_limit_reached()).forever();
        h.post(CODEX, &body).await
    };
    let (waited, spent) = join(waits, spends).await;
    assert_eq!((waited.status.as_u16(), spent.status.as_u16()), (200, 200));
    assert_eq!(h.asked(), ["a", "a", "b", "b"]);
    let rows = h.rows("SELECT outcome FROM attempts ORDER BY outcome").await;
    assert_eq!(rows.concat(), ["moved", "quota_spent"]);
    h.finish().await;
}

#[tokio::test]
async fn a_running_stream_of_an_account_that_becomes_unable_finishes() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let long = responses("hi [[events=20]] [[gap_ms=20]]", true);
    let want = h.direct(&a, CODEX, &[], &long).await;
    h.sim.clear_journal();
    let streams = h.post(CODEX, &long);
    let spends = async {
        let begun = |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.output_events_sent > 1);
        assert!(h.sim.wait_for(begun, PATIENCE).await);
        a.fault(Fault::usage_limit_reached()).forever();
        h.post(CODEX, &responses("short", true)).await
    };
    let (streamed, spent) = join(streams, spends).await;
    assert_eq!((&streamed.body, streamed.cut, spent.status.as_u16()), (&want.body, false, 200));
    h.finish().await;
}

/// multiplexer 18.3 #36.
#[tokio::test]
async fn sessions_leave_an_account_that_fell_behind_the_threshold() {
    let week = Duration::from_hours(168);
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.pool("default", &[], "least-used");
        s.raw.pool[0].rebalance_threshold = Some(20.0);
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let headers = [("session-id", "s-1")];
    let turn = async || {
        let got = h.post_with(CODEX, &headers, &responses("hi", true)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        h.asked().pop().unwrap()
    };
    assert_eq!(turn().await, "a");
    // The other one is known too, and less used.
    h.post_with(CODEX, &[("session-id", "s-2")], &responses("hi", true)).await;
    b.set_used(week, 0.05);
    h.post_with(CODEX, &[("session-id", "s-2")], &responses("hi", true)).await;
    a.set_used(week, 0.20);
    assert_eq!(turn().await, "a", "15 points are within 20");
    a.set_used(week, 0.40);
    turn().await;
    assert_eq!(turn().await, "b", "35 are not");
    h.finish().await;
}

/// spec §5: clients count by the dozen, which has limits of its own and warms no cache.
#[tokio::test]
async fn a_refused_count_moves_no_session() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.claude("a"), s.claude("b"))
    })
    .await;
    let session = [("x-claude-code-session-id", "s-1")];
    let ask = async |path| {
        let got = h.post_with(path, &session, &messages("hi", false)).await;
        assert_eq!(got.status, 200, "{}", got.text());
    };
    ask("/v1/messages").await;
    a.fault(Fault::rate_limited(Duration::from_mins(5))).on("/v1/messages/count_tokens").times(1);
    ask("/v1/messages/count_tokens").await;
    ask("/v1/messages").await;
    assert_eq!(h.asked(), ["a", "a", "b", "a"]);
    h.finish().await;
}

#[tokio::test]
async fn a_history_another_account_wrote_is_sent_again_without_what_cannot_be_read() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let mut body = responses("hi", true);
    let foreign =
        json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA-somebody-else-00"});
    body["input"].as_array_mut().unwrap().insert(0, foreign);
    let got = h.post(CODEX, &body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let sent: Vec<String> = h.sim.journal().iter().map(poolgate_sim::Entry::text).collect();
    assert!(sent[0].contains("somebody-else") && !sent[1].contains("somebody-else"), "{sent:?}");
    let rows = h.rows("SELECT outcome FROM attempts ORDER BY n").await;
    assert_eq!(rows.concat(), ["foreign_state"]);
    drop(a);
    h.finish().await;
}

/// spec §6: each account that cannot read them is asked once without them.
#[tokio::test]
async fn what_one_account_cannot_read_the_next_is_spared_too() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let mut body = responses("hi", true);
    let foreign =
        json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA-somebody-else-00"});
    body["input"].as_array_mut().unwrap().insert(0, foreign);
    let unreadable = r#"{"error":{"code":"invalid_encrypted_content","message":"no"}}"#;
    a.fault(Fault::status(400, unreadable)).times(1);
    a.fault(Fault::rate_limited(Duration::from_mins(5))).times(1);
    let got = h.post(CODEX, &body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(h.asked(), ["a", "a", "b", "b"]);
    h.finish().await;
}

/// spec §6: what there is nothing to cut out of is relayed, and not sent once more.
#[tokio::test]
async fn a_history_without_such_parts_is_not_sent_again() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let unreadable = r#"{"error":{"code":"invalid_encrypted_content","message":"no"}}"#;
    a.fault(Fault::status(400, unreadable)).forever();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (400, unreadable));
    a.clear_faults();
    a.fault(Fault::failed_with("invalid_encrypted_content", "no")).times(1);
    let got = h.post(CODEX, &responses("hi", true)).await;
    let code = &got.json()["error"]["code"];
    assert_eq!((got.status.as_u16(), code), (400, &json!("invalid_encrypted_content")));
    assert_eq!(h.asked().len(), 2);
    h.finish().await;
}

/// spec §6: a request that is moved off an account has not failed there, and waits for it like any other.
#[tokio::test]
async fn who_is_moved_off_the_only_account_waits_for_it() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::stall(Phase::Head)).times(1);
    let body = responses("hi", true);
    let stalled = async { h.post(CODEX, &body).await.status };
    let refused = async {
        until("the first one waits", || h.asked().len() == 1).await;
        a.fault(Fault::rate_limited(Duration::from_secs(1))).times(1);
        h.post(CODEX, &body).await.status
    };
    let (first, second) = tokio::join!(stalled, refused);
    assert_eq!((first.as_u16(), second.as_u16()), (200, 503), "the other one has failed on it");
    h.finish().await;
}

#[tokio::test]
async fn three_accounts_that_say_the_same_put_the_request_at_fault() {
    let words = r#"{"type":"error","error":{"type":"rate_limit_error","message":"Long context needs extra credits."}}"#;
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        ["a", "b", "c", "d"].map(|name| s.claude(name))
    })
    .await;
    for (n, account) in accounts.iter().enumerate() {
        // Each refusal has an id of its own (wire §7).
        let body = words.replace("}}", &format!("}},\"request_id\":\"req_011CSHoEeqs{n}\"}}"));
        account.fault(Fault::status(429, &body)).times(1);
    }
    let got = h.post("/v1/messages", &messages("long", true)).await;
    assert_eq!(got.status, 429);
    assert!(got.text().contains("Long context needs"), "{}", got.text());
    assert_eq!(h.asked(), ["a", "b", "c"], "the fourth was spared");
    accounts[3].clear_faults();
    assert_eq!(h.post("/v1/messages", &messages("short", true)).await.status, 200);
    assert_eq!(h.asked()[3], "a", "and nobody was penalised");
    h.finish().await;
}

/// spec §6: limits that say when they end are the accounts' own, however alike they sound.
#[tokio::test]
async fn accounts_that_say_when_to_come_back_speak_of_themselves() {
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        ["a", "b", "c", "d"].map(|name| s.claude(name))
    })
    .await;
    for account in &accounts[..3] {
        account.fault(Fault::rate_limited(Duration::from_mins(5))).times(1);
    }
    assert_eq!(h.post("/v1/messages", &messages("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a", "b", "c", "d"]);
    h.finish().await;
}

/// The same without a word, and in the body instead of a header.
#[tokio::test]
async fn limits_that_differ_in_nothing_but_their_reset_are_limits() {
    for error in [
        r#"{"type":"rate_limit_error","resets_at":RESET}"#,
        r#"{"type":"rate_limit_error","resets_in_seconds":98RESET}"#,
        r#"{"type":"rate_limit_error","message":"Slow, please.","resets_at":RESET}"#,
        r#"{"type":"rate_limit_error"}"#,
        r#"{"code":429,"message":null}"#,
    ] {
        let (h, accounts) = Harness::start(|s: &mut Setup| {
            s.in_order();
            ["a", "b", "c", "d"].map(|name| s.codex(name))
        })
        .await;
        let in_a_minute = h.clock.now().unix_seconds() + 60;
        for (account, n) in accounts.iter().zip(in_a_minute..).take(3) {
            let error = error.replace("98RESET", &(n - in_a_minute + 40).to_string());
            let error = error.replace("RESET", &n.to_string());
            account.fault(Fault::status(429, &format!(r#"{{"error":{error}}}"#))).times(1);
        }
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "{error}");
        assert_eq!(h.asked(), ["a", "b", "c", "d"], "{error}");
        h.post(CODEX, &responses("another", true)).await;
        assert_eq!(h.asked()[4..], ["d"], "{error}: the others rest");
        h.finish().await;
    }
}

/// An error in an envelope that nobody knows, written without blanks.
#[tokio::test]
async fn different_words_in_a_strange_envelope_are_different() {
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        ["a", "b", "c", "d"].map(|name| s.codex(name))
    })
    .await;
    for (account, text) in accounts.iter().zip(["one", "two", "one"]) {
        let body = format!(r#"{{"errors":[{{"text":"{text}","at":1795300000}}]}}"#);
        account.fault(Fault::status(403, &body)).times(1);
    }
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a", "b", "c", "d"]);
    h.finish().await;
}

/// wire §0: an SDK would sleep for an hour.
#[tokio::test]
async fn nobody_is_told_to_sleep_for_long_in_an_upstreams_words() {
    let (h, accounts) = Harness::start(|s: &mut Setup| ["a", "b"].map(|name| s.claude(name))).await;
    for (seconds, want) in [("3600", Some("false")), ("30", None)] {
        for account in &accounts {
            let headers = vec![("retry-after".to_owned(), seconds.to_owned())];
            let body = r#"{"type":"error","error":{"type":"overloaded_error","message":"no"}}"#;
            let body = body.to_owned();
            account.fault(Fault::Status { status: 529, headers, body }).times(1);
        }
        let got = h.post("/v1/messages", &messages("hi", true)).await;
        assert_eq!(got.status, 529);
        assert_eq!(got.headers["retry-after"], seconds);
        assert_eq!(got.headers.get("x-should-retry").map(|v| v.to_str().unwrap()), want);
        h.clock.advance(Duration::from_mins(5));
    }
    h.finish().await;
}

#[tokio::test]
async fn a_request_at_fault_is_taken_back_with_all_its_retries() {
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        ["a", "b", "c"].map(|name| s.codex(name))
    })
    .await;
    for account in &accounts {
        account.fault(Fault::status(500, r#"{"error":{"message":"odd"}}"#)).forever();
    }
    for _ in 0..3 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 500);
    }
    assert_eq!(h.asked().len(), 18, "each account twice for each request");
    let accounts = h.app.pool.view(h.clock.now()).accounts;
    let states: Vec<&str> = accounts.iter().map(|account| account.state.as_str()).collect();
    assert_eq!(states, ["ready", "ready", "ready"]);
    h.finish().await;
}

/// multiplexer 18.4 #49: the answer whose own head says that the account is over its cap is finished.
#[tokio::test]
async fn multiplexer_18_4_49_an_answer_whose_head_crosses_the_cap_is_finished() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.set_used(Duration::from_hours(168), 0.995);
    let got = h.post(CODEX, &responses("hi [[gap_ms=20]]", true)).await;
    assert_eq!((got.status.as_u16(), h.asked()), (200, vec!["a".to_owned()]));
    assert!(got.text().contains("response.completed"));
    h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(h.asked(), ["a", "b"], "the next goes elsewhere");
    h.finish().await;
}

/// sub2api P10, P11.
#[tokio::test]
async fn a_poisoned_snapshot_is_probed_by_one_request_after_two_hours() {
    let week = Duration::from_hours(168);
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.set_used(week, 0.995);
    for _ in 0..2 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    }
    assert_eq!(h.asked(), ["a", "b"], "99.5 % used: paused");
    a.set_used(week, 0.01);
    h.clock.advance(Duration::from_mins(110));
    h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(h.asked().pop().unwrap(), "b", "not yet stale");
    h.clock.advance(Duration::from_mins(11));
    h.post(CODEX, &responses("hi", true)).await;
    h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(h.asked()[3..], ["a", "a"], "probed, healed, and in use again");
    h.finish().await;
}
