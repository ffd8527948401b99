//! Renewing sign-ins: what the issuer's answers do, who else may be writing, and who waits.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use poolgate::clock::Clock;
use poolgate::jobs;
use poolgate::pool::AccountView;
use poolgate_sim::{Account, Fault, Phase};
use serde_json::Value;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, messages, responses};

const TOKEN: &str = "/oauth/token";

fn token_calls(h: &Harness) -> usize {
    h.sim.journal().iter().filter(|e| e.path.ends_with("/token")).count()
}

async fn post(h: &Harness) -> StatusCode {
    h.post(CODEX, &responses("hi", true)).await.status
}

fn file(h: &Harness, name: &str) -> PathBuf {
    h.dir.path().join(format!("{name}.json"))
}

fn view(h: &Harness, name: &str) -> AccountView {
    let view = h.app.pool.view(h.clock.now());
    view.accounts.into_iter().find(|account| account.name == name).expect("it is there")
}

/// Two accounts, of which the first is asked first.
async fn pair() -> (Harness, Account, Account) {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        s.raw.limits.response_create = Some(0);
        (s.codex("a"), s.codex("b"))
    })
    .await;
    (h, a, b)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Writes what another program got for `account`, as that program would.
fn others_write(h: &Harness, account: &Account) {
    std::fs::write(file(h, account.name()), account.auth_json()).unwrap();
}

/// multiplexer 18.1 #1.
#[tokio::test]
async fn multiplexer_18_1_1_a_429_with_a_time_is_asked_again_only_after_it() {
    let (h, a, _b) = pair().await;
    a.expire_access_token();
    a.fault(Fault::rate_limited(Duration::from_secs(30))).on(TOKEN);
    let all = join_all((0..100).map(|_| post(&h)));
    assert!(all.await.into_iter().all(|status| status == 200), "the other one served");
    h.clock.advance(Duration::from_secs(20));
    assert_eq!(post(&h).await, 200);
    assert_eq!(token_calls(&h), 1);
    h.clock.advance(Duration::from_secs(11));
    assert_eq!(post(&h).await, 200);
    assert_eq!(token_calls(&h), 2, "one more is tried");
    assert_eq!(h.asked().last().map(String::as_str), Some("a"));
    h.finish().await;
}

/// multiplexer 18.1 #2, #3.
#[tokio::test]
async fn multiplexer_18_1_2_a_429_without_a_time_lasts_until_the_tokens_change() {
    let (h, a, _b) = pair().await;
    a.expire_access_token();
    a.fault(Fault::status(429, "{}")).on(TOKEN).forever();
    let blocked = std::fs::read(file(&h, "a")).unwrap();
    for _ in 0..5 {
        assert_eq!(post(&h).await, 200);
        h.clock.advance(Duration::from_mins(10));
        std::fs::write(file(&h, "a"), &blocked).unwrap();
    }
    until("shown", async || view(&h, "a").state == "unavailable").await;
    let problem = view(&h, "a").problem.unwrap_or_default();
    assert!(problem.starts_with("issuer refuses refresh"), "{problem}");
    assert_eq!(token_calls(&h), 1, "the same tokens are the same tokens");

    a.clear_faults();
    a.renew();
    others_write(&h, &a);
    until("ready", async || view(&h, "a").state == "ready").await;
    h.sim.clear_journal();
    assert_eq!((post(&h).await, h.asked()), (StatusCode::OK, vec!["a".to_owned()]));
    a.expire_access_token();
    assert_eq!(post(&h).await, 200);
    assert_eq!(token_calls(&h), 1, "the new ones are renewed again");
    h.finish().await;
}

/// multiplexer 18.1 #4.
#[tokio::test]
async fn multiplexer_18_1_4_tokens_that_cannot_be_written_are_not_renewed() {
    use std::os::unix::fs::PermissionsExt;
    let (h, a, _b) = pair().await;
    let (path, before) = (file(&h, "a"), a.refresh_token());
    let set_mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o400);
    a.expire_access_token();
    assert_eq!(post(&h).await, 200);
    assert_eq!((token_calls(&h), a.refresh_token()), (0, before), "the refresh token stays good");
    set_mode(0o600);
    h.clock.advance(Duration::from_secs(6));
    assert_eq!(post(&h).await, 200);
    assert_eq!(token_calls(&h), 1);
    h.finish().await;
}

/// multiplexer 18.1 #5.
#[tokio::test]
async fn multiplexer_18_1_5_what_another_process_wrote_meanwhile_is_used_and_kept() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.expire_access_token();
    a.fault(Fault::slow_drip(64, Duration::from_millis(20))).on(TOKEN);
    let other = async {
        let asked =
            |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path == TOKEN && e.bytes_sent > 0);
        assert!(h.sim.wait_for(asked, PATIENCE).await);
        a.renew();
        others_write(&h, &a);
    };
    let (status, ()) = tokio::join!(post(&h), other);
    assert_eq!(status, 200);
    let written: Value = serde_json::from_slice(&std::fs::read(file(&h, "a")).unwrap()).unwrap();
    assert_eq!(written["tokens"]["refresh_token"], a.refresh_token(), "not overwritten");
    let last = h.sim.journal().pop().expect("the answer");
    assert_eq!(last.header("authorization"), Some(format!("Bearer {}", a.credential()).as_str()));
    h.finish().await;
}

/// multiplexer 18.1 #5, #6: ours fails, because the other one was faster.
#[tokio::test]
async fn multiplexer_18_1_6_a_failed_refresh_gives_way_to_what_another_process_wrote() {
    for fault in [None, Some(Fault::slow_drip(8, Duration::from_millis(20)))] {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        // The other one has used our refresh token already, and has not written yet.
        a.renew();
        a.expire_access_token();
        a.renew();
        if let Some(fault) = fault {
            a.fault(fault).on(TOKEN);
        }
        let other = async {
            let refused = |all: &[poolgate_sim::Entry]| {
                all.iter().any(|e| e.path == TOKEN && e.status.is_some())
            };
            assert!(h.sim.wait_for(refused, PATIENCE).await);
            others_write(&h, &a);
        };
        let (status, ()) = tokio::join!(post(&h), other);
        assert_eq!((status, token_calls(&h)), (StatusCode::OK, 1));
        assert_eq!(view(&h, "a").state, "ready", "it was never logged out");
        h.finish().await;
    }
}

/// Its only refresh has given tokens that could not be saved, because the file was away; it is back.
async fn unsaved(h: &Harness, a: &Account, back: impl FnOnce()) {
    let path = file(h, a.name());
    let old = std::fs::read(&path).unwrap();
    a.expire_access_token();
    a.fault(Fault::slow_drip(64, Duration::from_millis(20))).on(TOKEN);
    let taken_away = async {
        let asked =
            |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path == TOKEN && e.bytes_sent > 0);
        assert!(h.sim.wait_for(asked, PATIENCE).await);
        std::fs::remove_file(&path).unwrap();
    };
    tokio::join!(post(h), taken_away);
    until("kept", async || {
        std::fs::exists(h.dir.path().join("data/credentials/1.rescued")).unwrap()
    })
    .await;
    let problem = view(h, a.name()).problem;
    assert!(problem.is_some(), "it is shown");
    back();
    std::fs::write(&path, &old).unwrap();
}

/// multiplexer 18.1 #8.
#[tokio::test]
async fn multiplexer_18_1_8_tokens_that_could_not_be_saved_are_kept_and_shown() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let path = file(&h, "a");
    unsaved(&h, &a, || {}).await;
    until("saved", async || {
        let written: Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_default();
        written["tokens"]["refresh_token"] == a.refresh_token()
    })
    .await;
    until("served", async || post(&h).await == 200).await;
    assert_eq!(token_calls(&h), 1);
    h.finish().await;
}

/// multiplexer 18.1 #9: the token is sent once; when no answer came, a second call asks what became
/// of it, once the present token has failed.
#[tokio::test]
async fn multiplexer_18_1_9_a_lost_answer_is_not_asked_for_again_at_once() {
    let (h, a, _b) = pair().await;
    a.revoke_on_reuse();
    a.expire_access_token();
    a.fault(Fault::close_before_head()).on(TOKEN);
    for _ in 0..3 {
        assert_eq!(post(&h).await, 200);
    }
    assert_eq!(token_calls(&h), 1);
    h.clock.advance(Duration::from_secs(6));
    assert_eq!((post(&h).await, token_calls(&h)), (StatusCode::OK, 2));
    assert_eq!(view(&h, "a").state, "ready", "the issuer had not exchanged it");

    // It exchanges the tokens, and the answer is lost.
    a.expire_access_token();
    a.fault(Fault::cut(0)).on(TOKEN);
    assert_eq!(post(&h).await, 200);
    h.clock.advance(Duration::from_secs(6));
    assert_eq!((post(&h).await, token_calls(&h)), (StatusCode::OK, 4));
    until("shown", async || view(&h, "a").state == "needs_login").await;
    let problem = view(&h, "a").problem.unwrap_or_default();
    assert!(problem.contains("refresh_token_reused"), "{problem}");
    h.finish().await;
}

/// multiplexer 18.1 #9: while the present token works, nothing is risked.
#[tokio::test]
async fn a_lost_answer_leaves_a_good_token_in_use() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::close_before_head()).on(TOKEN);
    h.clock.advance(Duration::from_secs(3400));
    for _ in 0..3 {
        assert_eq!(post(&h).await, 200);
        let asked = |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path == TOKEN);
        assert!(h.sim.wait_for(asked, PATIENCE).await);
        h.clock.advance(Duration::from_secs(20));
    }
    assert_eq!(token_calls(&h), 1);
    h.finish().await;
}

/// multiplexer 18.1 #11.
#[tokio::test]
async fn multiplexer_18_1_11_a_429_without_a_sensible_time_does_not_loop() {
    let (h, a, _b) = pair().await;
    let headers = vec![("retry-after".to_owned(), "0".to_owned())];
    a.fault(Fault::Status { status: 429, headers, body: "{}".into() }).forever();
    assert_eq!(post(&h).await, 200);
    assert_eq!(h.asked(), ["a", "b"]);
    h.finish().await;
}

/// multiplexer 18.1 #12; codex-lb D7.
#[tokio::test]
async fn multiplexer_18_1_12_a_second_401_is_not_answered_by_a_second_refresh() {
    let (h, a, _b) = pair().await;
    a.fault(Fault::unauthorized()).forever();
    assert_eq!(post(&h).await, 200);
    assert_eq!((h.asked(), token_calls(&h)), (vec!["a".into(), "a".into(), "b".into()], 1));
    h.finish().await;
}

/// codex-lb G7: after five seconds one more call.
#[tokio::test]
async fn codex_lb_g7_a_failure_is_remembered_for_five_seconds() {
    let (h, a, _b) = pair().await;
    a.expire_access_token();
    a.fault(Fault::server_error(500)).on(TOKEN).forever();
    for seconds in [0, 2, 2] {
        h.clock.advance(Duration::from_secs(seconds));
        assert_eq!(post(&h).await, 200);
    }
    assert_eq!(token_calls(&h), 1);
    h.clock.advance(Duration::from_secs(2));
    assert_eq!(post(&h).await, 200);
    assert_eq!(token_calls(&h), 2);
    h.finish().await;
}

/// codex-lb G8.
#[tokio::test]
async fn codex_lb_g8_a_new_sign_in_within_the_five_seconds_is_used_at_once() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.expire_access_token();
    a.revoke();
    assert_ne!(post(&h).await, 200);
    a.renew();
    others_write(&h, &a);
    until("used", async || post(&h).await == 200).await;
    assert_eq!(token_calls(&h), 1);
    h.finish().await;
}

/// codex-lb G10.
#[tokio::test]
async fn codex_lb_g10_a_leader_that_leaves_does_not_take_the_flight_along() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.expire_access_token();
    a.fault(Fault::slow_drip(64, Duration::from_millis(20))).on(TOKEN);
    let asked =
        |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path == TOKEN && e.bytes_sent > 0);
    tokio::select! {
        _ = post(&h) => panic!("the leader was to leave first"),
        seen = h.sim.wait_for(asked, PATIENCE) => assert!(seen),
    }
    let joined = join_all((0..10).map(|_| post(&h))).await;
    assert!(joined.into_iter().all(|status| status == 200));
    assert_eq!(token_calls(&h), 1);
    h.finish().await;
}

/// Who is refused with a newer token than the one that is being renewed is not sent out with it again;
/// and who is refused with a token that was only found in the file has not had its renewal yet.
#[tokio::test]
async fn a_flight_that_was_begun_for_an_older_token_does_not_bring_back_the_refused_one() {
    let (h, a, _b) = pair().await;
    a.expire_access_token();
    a.fault(Fault::slow_drip(32, Duration::from_millis(20))).on(TOKEN);
    let asked =
        |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path == TOKEN && e.bytes_sent > 0);
    let newer = async {
        assert!(h.sim.wait_for(asked, PATIENCE).await);
        a.renew();
        others_write(&h, &a);
        h.app.pool.accounts()[0].credential.reload().await;
        a.expire_access_token();
        h.sim.clear_journal();
        assert_eq!(post(&h).await, 200);
        assert_eq!((h.asked().last().map(String::as_str), token_calls(&h)), (Some("a"), 1));
    };
    tokio::join!(async { assert_eq!(post(&h).await, 200) }, newer);
    let asked = h.asked();
    assert!(asked.iter().all(|name| name == "a"), "{asked:?}");
    assert_eq!(view(&h, "a").state, "ready");
    h.finish().await;
}

/// spec §2: a refused token makes the account `needs_login`, the code kept.
#[tokio::test]
async fn what_ended_a_sign_in_is_told_apart() {
    let cases = [
        ("refresh_token_expired", "has expired", "needs_login"),
        ("refresh_token_reused", "used before", "needs_login"),
        ("refresh_token_invalidated", "was revoked", "needs_login"),
        ("invalid_grant", "not valid", "needs_login"),
        ("account_deactivated", "was deactivated", "deactivated"),
    ];
    for (code, words, state) in cases {
        let (h, a, _b) = pair().await;
        a.expire_access_token();
        a.fault(Fault::status(401, &format!(r#"{{"error":{{"code":"{code}"}}}}"#))).on(TOKEN);
        assert_eq!(post(&h).await, 200);
        let AccountView { state: shown, problem, .. } = view(&h, "a");
        let problem = problem.unwrap_or_default();
        assert_eq!(shown, state, "{code}");
        assert!(problem.contains(words) && problem.contains(code), "{problem}");
        h.finish().await;
    }
}

/// The issuer has said it of those tokens; these are others.
#[tokio::test]
async fn a_new_sign_in_in_the_file_ends_what_the_issuer_said_of_the_old_one() {
    for code in ["refresh_token_reused", "account_deactivated"] {
        let (h, a, _b) = pair().await;
        a.expire_access_token();
        a.fault(Fault::status(401, &format!(r#"{{"error":{{"code":"{code}"}}}}"#))).on(TOKEN);
        assert_eq!(post(&h).await, 200);
        assert_ne!(view(&h, "a").state, "ready", "{code}");
        a.clear_faults();
        a.renew();
        others_write(&h, &a);
        until(code, async || view(&h, "a").state == "ready").await;
        assert_eq!(post(&h).await, 200);
        assert_eq!(h.asked().pop().unwrap(), "a", "{code}");
        h.finish().await;
    }
}

/// Whatever the token endpoint does: who has a good token serves, who has none is left.
#[tokio::test]
async fn trouble_at_the_token_endpoint_touches_nobody_with_a_good_token() {
    let storms = [
        Fault::rate_limited(Duration::from_secs(30)),
        Fault::server_error(500),
        Fault::stall(Phase::Head),
    ];
    for storm in storms {
        let (h, (a, b, c)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.codex("a"), s.codex("b"), s.claude("c"))
        })
        .await;
        a.fault(storm.clone()).on(TOKEN).forever();
        a.expire_access_token();
        // Due, but good: renewed beside the requests.
        b.fault(storm.clone()).on(TOKEN).forever();
        c.fault(storm).on("/v1/oauth/token").forever();
        let all = join_all((0..30).map(async |i| match i % 3 {
            0 => h.post("/v1/messages", &messages("hi", true)).await.status,
            _ => post(&h).await,
        }));
        assert!(all.await.into_iter().all(|status| status == 200));
        h.clock.advance(Duration::from_secs(3400));
        let before = tokio::time::Instant::now();
        assert_eq!(post(&h).await, 200);
        assert!(before.elapsed() < Duration::from_secs(4), "a good token waits for nobody");
        h.finish().await;
    }
}

/// The guardian.
#[tokio::test]
async fn an_account_that_nobody_uses_is_renewed_before_its_token_expires() {
    let (h, (a, _c)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let pass = |seconds| {
        h.clock.advance(Duration::from_secs(seconds));
        h.sim.advance(Duration::from_secs(seconds));
    };
    jobs::keep_fresh(&h.app).await;
    assert_eq!(token_calls(&h), 0, "not yet");
    pass(3290);
    jobs::keep_fresh(&h.app).await;
    assert_eq!(token_calls(&h), 1, "an hour's token, five minutes and more ahead");
    let written: Value = serde_json::from_slice(&std::fs::read(file(&h, "a")).unwrap()).unwrap();
    assert_eq!(written["tokens"]["access_token"], a.credential());
    jobs::keep_fresh(&h.app).await;
    assert_eq!(token_calls(&h), 1, "once");
    assert_eq!(post(&h).await, 200);
    h.finish().await;
}

/// reliability §6.8: one call in 30 s, whatever the issuer says; a token that was refused excepted.
#[tokio::test]
async fn an_issuer_that_gives_tokens_which_are_due_at_once_is_asked_seldom() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let ask = async || {
        for _ in 0..3 {
            assert_eq!(post(&h).await, 200);
            assert_eq!(h.post("/v1/messages", &messages("hi", true)).await.status, 200);
            jobs::keep_fresh(&h.app).await;
        }
    };
    let pass = |seconds| {
        h.clock.advance(Duration::from_secs(seconds));
        h.sim.advance(Duration::from_secs(seconds));
    };
    for account in [&a, &c] {
        account.token_lifetime(Duration::from_secs(10));
        account.expire_access_token();
    }
    // What they say is less than the difference of two clocks.
    ask().await;
    assert_eq!(token_calls(&h), 2, "once each");
    pass(5);
    ask().await;
    assert_eq!(token_calls(&h), 2, "and not again");
    pass(3600);
    a.token_lifetime(Duration::from_mins(6));
    c.token_lifetime(Duration::from_mins(6));
    ask().await;
    assert_eq!(token_calls(&h), 4);
    pass(240);
    ask().await;
    assert_eq!(token_calls(&h), 4, "less than five minutes of its six are left, and it is not due");
    h.finish().await;
}

/// Holds the lock that keeps two gateways from renewing a Codex file at the same time.
fn hold_lock(h: &Harness, name: &str) -> std::fs::File {
    let lock = std::fs::File::create(h.dir.path().join(format!(".{name}.json.poolgate.lock")));
    let lock = lock.unwrap();
    lock.lock().unwrap();
    lock
}

/// An account that waits for something of its own does not keep its issuer's other accounts waiting.
#[tokio::test]
async fn a_held_lock_delays_its_own_account_only() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.pool("of-a", &["a"], "fallback");
        s.pool("of-b", &["b"], "fallback");
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let [of_a, of_b] =
        [h.new_key("ka", &["of-a"], &[]).await, h.new_key("kb", &["of-b"], &[]).await];
    let post = async |key: &str| {
        let headers = [("x-api-key", key), ("content-type", "application/json")];
        let body = responses("hi", true).to_string().into();
        h.send(http::Method::POST, CODEX, &headers, body).await.status
    };
    let lock = hold_lock(&h, "a");
    a.expire_access_token();
    let first = async {
        let status = post(&of_a).await;
        assert!(status == 503 || status == 200, "it waits five seconds at most: {status}");
    };
    let second = async {
        let refused = |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.status == Some(401));
        assert!(h.sim.wait_for(refused, PATIENCE).await);
        b.expire_access_token();
        assert_eq!(post(&of_b).await, 200, "its lock is free");
        assert_eq!(token_calls(&h), 1);
        drop(lock);
    };
    tokio::join!(first, second);
    until("served", async || post(&of_a).await == 200).await;
    h.finish().await;
}

/// What waits for a lock, which may take longer than a stop leaves it, asks nobody any more.
#[tokio::test]
async fn a_refresh_that_waits_at_the_stop_is_not_begun() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let lock = hold_lock(&h, "a");
    a.expire_access_token();
    let before = a.refresh_token();
    assert_eq!(post(&h).await, 503, "it waits for a while");
    h.finish().await;
    assert_eq!(a.refresh_token(), before, "nobody was asked");
    drop(lock);
}

/// spec §2: what an issuer said of these tokens holds for every process that has them.
#[tokio::test]
async fn what_another_process_noted_of_the_same_tokens_is_read_before_the_issuer_is_asked() {
    let (h, a, _b) = pair().await;
    let account = h.app.pool.accounts().into_iter().find(|account| account.name == "a").unwrap();
    let content = account.credential.content().unwrap();
    let past = poolgate_core::refresh::Past::Blocked;
    let mark = poolgate::store::RefreshMark { content, past, code: "status 429".into() };
    h.app.store.mark_refresh(account.id, &mark).await.unwrap();
    a.expire_access_token();
    assert_eq!(post(&h).await, 200);
    assert_eq!((h.asked().pop().unwrap().as_str(), token_calls(&h)), ("b", 0));
    until("shown", async || view(&h, "a").state == "unavailable").await;
    h.finish().await;
}

/// spec §2, §10: a lock that is held for long keeps tokens from being saved, and nothing else waiting.
#[tokio::test]
async fn a_key_is_revoked_while_tokens_wait_to_be_saved() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let mut lock = None;
    unsaved(&h, &a, || lock = Some(hold_lock(&h, "a"))).await;
    // As another process would: nobody tells the gateway.
    std::fs::remove_file(file(&h, "b")).unwrap();
    until("noticed", async || view(&h, "b").state == "unavailable").await;
    assert!(h.app.store.revoke_client_key("test", h.clock.now()).await.unwrap());
    until("refused", async || post(&h).await == 401).await;
    drop((lock, b));
    h.finish().await;
}
