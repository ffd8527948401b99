//! Usage is asked for in the background: when, of whom, and what its answers and failures do.

use std::time::Duration;

use http::Method;
use poolgate::clock::Clock;
use poolgate::pool::AccountView;
use poolgate_core::units::Fraction;
use poolgate_sim::{Account, End, Entry, Fault, Phase};
use serde_json::{Value, json};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, messages, responses};

const WHAM: &str = "/backend-api/wham/usage";
const CLAUDE: &str = "/api/oauth/usage";
const FIVE_HOURS: Duration = Duration::from_hours(5);
/// Well below the ten seconds that a poll may take.
const SOON: Duration = Duration::from_secs(7);
const WEEK: Duration = Duration::from_hours(168);

/// A gateway that polls.
async fn polling<T>(add: impl FnOnce(&mut Setup) -> T) -> (Harness, T) {
    let mut setup = Setup::new().await;
    setup.polls = true;
    let added = add(&mut setup);
    (setup.start().await, added)
}

fn view(h: &Harness, name: &str) -> AccountView {
    let all = h.app.pool.view(h.clock.now()).accounts;
    all.into_iter().find(|account| account.name == name).expect("it exists")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn usage_calls(all: &[Entry]) -> Vec<&Entry> {
    all.iter().filter(|e| e.path.ends_with("/usage")).collect()
}

/// How often usage was asked for, answered or not.
fn polls(h: &Harness) -> usize {
    usage_calls(&h.sim.journal()).len()
}

/// Waits for that many polls to be answered, and for what they said to be taken over.
async fn polled(h: &Harness, times: usize) {
    let answered = |all: &[Entry]| {
        let done = |e: &&&Entry| e.end.is_some();
        usage_calls(all).iter().filter(done).count() >= times
    };
    if !h.sim.wait_for(answered, PATIENCE).await {
        let journal = h.sim.journal();
        let told: Vec<_> =
            usage_calls(&journal).iter().map(|e| (e.started.elapsed(), e.status, e.end)).collect();
        panic!("no {times} polls: {told:?}");
    }
    until("the polls are over", || h.app.pool.polls_running() == 0).await;
}

/// Nobody would be asked now.
fn nobody_is_due(h: &Harness) -> bool {
    h.app.pool.due_polls(h.clock.now(), 99, || Fraction::ZERO).is_empty()
}

fn used(h: &Harness, name: &str) -> Vec<f64> {
    view(h, name).windows.iter().map(|w| w.used_percent).collect()
}

fn fill(account: &Account, five_hours: f64, week: f64) {
    account.set_used(FIVE_HOURS, five_hours).set_used(WEEK, week);
}

#[tokio::test]
async fn a_new_accounts_windows_are_known_before_its_first_request() {
    let (h, _) = polling(|s| {
        fill(&s.codex("a"), 0.12, 0.34);
        fill(&s.claude("c"), 0.56, 0.07);
        (s.openai("key"), s.anthropic("other"))
    })
    .await;
    polled(&h, 2).await;
    assert_eq!((used(&h, "a"), used(&h, "c")), (vec![12.0, 34.0], vec![56.0, 7.0]));
    assert!(view(&h, "a").heard_at.is_some() && view(&h, "key").heard_at.is_none());
    let journal = h.sim.journal();
    let about = |e: &&Entry| e.method == Method::GET;
    let mut asked: Vec<_> =
        journal.iter().filter(about).filter_map(|e| e.account.as_deref()).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["a", "c"], "API keys are not polled");
    for entry in usage_calls(&journal) {
        assert!(entry.header("user-agent").unwrap().starts_with("poolgate/"));
        assert!(entry.header("authorization").unwrap().starts_with("Bearer "));
    }
    h.finish().await;
}

#[tokio::test]
async fn spec_3_4_an_hour_after_the_last_data_and_shortly_after_a_reset() {
    let (h, a) = polling(|s| s.codex("a")).await;
    polled(&h, 1).await;
    h.clock.advance(Duration::from_mins(40));
    h.post(CODEX, &responses("hi", true)).await;
    h.clock.advance(Duration::from_mins(59));
    assert!(nobody_is_due(&h), "it was served forty minutes after the poll");
    a.window(FIVE_HOURS, 100.0, 7.0, Duration::from_hours(2));
    h.clock.advance(Duration::from_mins(2));
    polled(&h, 2).await;
    assert!((used(&h, "a")[0] - 7.0).abs() < 0.1);
    h.clock.advance(Duration::from_mins(18));
    assert!(nobody_is_due(&h), "the reset is ahead");
    h.clock.advance(Duration::from_mins(3));
    polled(&h, 3).await;
    h.finish().await;
}

/// multiplexer 18.2 #14.
#[tokio::test]
async fn multiplexer_18_2_14_a_429_of_the_usage_endpoint_only_delays_the_next_poll() {
    let (h, _) = polling(|s| {
        let a = s.codex("a");
        let headers = vec![("retry-after".to_owned(), "5".to_owned())];
        let body = r#"{"error":{"type":"usage_limit_reached"}}"#.to_owned();
        a.fault(Fault::Status { status: 429, headers, body }).on(WHAM);
        a
    })
    .await;
    polled(&h, 1).await;
    assert_eq!(view(&h, "a").state, "ready", "it says nothing about the quota");
    h.clock.advance(Duration::from_secs(4));
    assert!(nobody_is_due(&h));
    h.clock.advance(Duration::from_secs(2));
    polled(&h, 2).await;
    assert_eq!(used(&h, "a").len(), 2);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    h.finish().await;
}

/// multiplexer 18.2 #15.
#[tokio::test]
async fn multiplexer_18_2_15_a_client_that_leaves_cancels_no_poll() {
    let (h, ()) = polling(|s| {
        let a = s.codex("a");
        a.fault(Fault::slow_drip(16, Duration::from_millis(40))).on(WHAM);
        a.fault(Fault::stall(Phase::Head)).on("/backend-api/codex/models");
        fill(&a, 0.12, 0.34);
    })
    .await;
    let both_run = |all: &[Entry]| all.len() == 2 && all.iter().all(|e| e.end.is_none());
    tokio::select! {
        _ = h.get("/v1/models", &[]) => panic!("the list never comes"),
        run = h.sim.wait_for(both_run, PATIENCE) => assert!(run, "{:?}", h.sim.journal()),
    }
    let left = |all: &[Entry]| all.iter().any(|e| e.end == Some(End::ClientGone));
    assert!(h.sim.wait_for(left, PATIENCE).await, "the client has left");
    assert_eq!(h.get("/api/admin/status", &[]).await.status, 401);
    polled(&h, 1).await;
    assert_eq!(usage_calls(&h.sim.journal())[0].end, Some(End::Complete), "if slowly");
    assert_eq!((used(&h, "a"), polls(&h)), (vec![12.0, 34.0], 1));
    assert!(nobody_is_due(&h), "it counts as no failure");
    h.finish().await;
}

/// multiplexer 18.2 #20.
#[tokio::test]
async fn multiplexer_18_2_20_failed_polls_back_off_and_never_block_an_own_account() {
    let (h, a) = polling(|s| {
        let a = s.codex("a");
        a.fault(Fault::server_error(503)).on(WHAM).forever();
        a
    })
    .await;
    for (round, seconds) in (1..).zip([60, 120, 240, 300, 300]) {
        polled(&h, round).await;
        assert_eq!(view(&h, "a").state, "ready", "spec §3.4: round {round}");
        // Real time passes too.
        h.clock.advance(Duration::from_secs(seconds - 30));
        assert!(nobody_is_due(&h), "round {round}");
        h.clock.advance(Duration::from_secs(61));
    }
    polled(&h, 6).await;
    a.clear_faults();
    h.clock.advance(Duration::from_secs(331));
    polled(&h, 7).await;
    assert_eq!(used(&h, "a").len(), 2);
    h.finish().await;
}

/// multiplexer 18.2 #22.
#[tokio::test]
async fn multiplexer_18_2_22_an_own_accounts_400_makes_no_storm_of_polls() {
    let (h, a) = polling(|s| s.codex("a")).await;
    polled(&h, 1).await;
    let body = r#"{"error":{"type":"invalid_request_error","message":"no"}}"#;
    a.fault(Fault::status(400, body)).times(20);
    for _ in 0..20 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 400);
    }
    assert!(nobody_is_due(&h));
    assert_eq!(polls(&h), 1);
    h.finish().await;
}

/// multiplexer 18.2 #30.
#[tokio::test]
async fn multiplexer_18_2_30_a_request_waits_for_no_poll() {
    let (h, all) = polling(|s| ["a", "b", "c", "d"].map(|name| s.codex(name))).await;
    // An answer to the polls of the start that came after the clock is moved would be news.
    polled(&h, 4).await;
    for account in &all {
        account.fault(Fault::stall(Phase::Head)).on(WHAM).forever();
    }
    h.clock.advance(Duration::from_mins(90));
    let waiting = |all: &[Entry]| {
        usage_calls(all).iter().filter(|e| e.status.is_none() && e.end.is_none()).count() == 4
    };
    assert!(h.sim.wait_for(waiting, PATIENCE).await, "all four are being asked");
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert!(waiting(&h.sim.journal()), "and still are");
    let drain = tokio::time::Instant::now();
    h.finish().await;
    assert!(drain.elapsed() < SOON, "a drain waits for no poll");
}

/// codex-lb G1.
#[tokio::test]
async fn codex_lb_g1_a_401_that_says_deactivated_deactivates_at_once() {
    let texts = [
        r#"{"error":{"message":"Your account has been deactivated."}}"#,
        r#"{"error":{"code":"account_deactivated","message":"no"}}"#,
    ];
    for text in texts {
        let (h, _) = polling(|s| {
            let a = s.codex("a");
            a.fault(Fault::status(401, text)).on(WHAM).forever();
            a
        })
        .await;
        polled(&h, 1).await;
        assert_eq!(view(&h, "a").state, "deactivated", "{text}");
        h.clock.advance(Duration::from_hours(9));
        assert!(nobody_is_due(&h), "no more polls");
        assert_eq!(polls(&h), 1);
        h.finish().await;
    }
}

/// codex-lb G2, G3.
#[tokio::test]
async fn codex_lb_g2_g3_an_ambiguous_401_cools_polling_until_time_or_an_operator_ends_it() {
    let (h, a) = polling(|s| {
        let a = s.codex("a");
        a.fault(Fault::unauthorized()).on(WHAM).forever();
        a.fault(Fault::server_error(503)).on("/oauth/token").forever();
        a
    })
    .await;
    polled(&h, 1).await;
    let renewals =
        |h: &Harness| h.sim.journal().iter().filter(|e| e.path.ends_with("/oauth/token")).count();
    assert_eq!((polls(&h), renewals(&h), view(&h, "a").state.as_str()), (1, 1, "ready"));
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "it stays in use");
    h.clock.advance(Duration::from_secs(299));
    assert!(nobody_is_due(&h));
    a.clear_faults();
    h.app.store.resume(h.app.pool.accounts()[0].id, h.clock.now()).await.unwrap();
    polled(&h, 2).await;
    assert_eq!(used(&h, "a").len(), 2, "G3: an operator forces it");
    h.finish().await;
}

/// codex-lb G3.
#[tokio::test]
async fn codex_lb_g3_after_300_seconds_it_is_asked_again() {
    let (h, _) = polling(|s| {
        let a = s.codex("a");
        a.fault(Fault::unauthorized()).on(WHAM).times(2);
        a
    })
    .await;
    polled(&h, 2).await;
    assert_eq!(polls(&h), 2, "once more with a renewed token");
    h.clock.advance(Duration::from_secs(331));
    polled(&h, 3).await;
    assert_eq!(used(&h, "a").len(), 2);
    h.finish().await;
}

/// codex-lb G4.
#[tokio::test]
async fn codex_lb_g4_a_403_never_deactivates() {
    let (h, _) = polling(|s| {
        let c = s.claude("c");
        let body = r#"{"error":{"code":"account_deactivated","message":"deactivated"}}"#;
        c.fault(Fault::status(403, body)).on(CLAUDE);
        c
    })
    .await;
    polled(&h, 1).await;
    assert_eq!(view(&h, "c").state, "ready");
    h.clock.advance(Duration::from_secs(299));
    assert!(nobody_is_due(&h), "it cools");
    h.clock.advance(Duration::from_secs(32));
    polled(&h, 2).await;
    assert_eq!(used(&h, "c").len(), 2);
    h.finish().await;
}

/// codex-lb G5.
#[tokio::test]
async fn codex_lb_g5_a_401_is_answered_by_one_refresh_and_one_retry() {
    let (h, _) = polling(|s| {
        let both = (s.codex("a"), s.claude("c"));
        both.0.expire_access_token();
        both.1.expire_access_token();
        both
    })
    .await;
    polled(&h, 4).await;
    assert_eq!((used(&h, "a").len(), used(&h, "c").len()), (2, 2));
    let renewals = h.sim.journal().iter().filter(|e| e.path.ends_with("/token")).count();
    assert_eq!((polls(&h), renewals), (4, 2));
    h.finish().await;
}

#[tokio::test]
async fn a_sign_in_that_is_gone_for_good_needs_a_login() {
    let (h, _) = polling(|s| {
        let a = s.codex("a");
        a.expire_access_token();
        a.revoke();
        a
    })
    .await;
    polled(&h, 1).await;
    assert_eq!(view(&h, "a").state, "needs_login");
    h.clock.advance(Duration::from_hours(9));
    assert!(nobody_is_due(&h));
    h.finish().await;
}

/// spec §6: what the new tokens are refused for outlives the next look at them.
#[tokio::test]
async fn a_poll_that_renews_does_not_end_what_its_own_tokens_are_refused_for() {
    let (h, a) = polling(|s| s.codex("a")).await;
    polled(&h, 1).await;
    let look = || h.app.pool.follow_credential(h.app.pool.accounts()[0].id, h.clock.now());
    look();
    let gone = r#"{"error":{"code":"token_revoked","message":"no"}}"#;
    a.fault(Fault::status(401, gone)).on(WHAM).forever();
    h.clock.advance(Duration::from_mins(80));
    polled(&h, 3).await;
    look();
    assert_eq!(view(&h, "a").state, "needs_login");
    h.finish().await;
}

/// codex-lb G12.
#[tokio::test]
async fn codex_lb_g12_a_removed_account_leaves_the_poller_at_once() {
    let (h, _) = polling(|s| {
        let a = s.codex("a");
        a.fault(Fault::stall(Phase::Head)).on(WHAM).forever();
        a
    })
    .await;
    assert!(h.sim.wait_for(|all| !usage_calls(all).is_empty(), PATIENCE).await);
    let id = h.app.pool.accounts()[0].id;
    h.app.store.remove_account(id, h.clock.now()).await.unwrap();
    let dropped = |all: &[Entry]| usage_calls(all)[0].end == Some(End::ClientGone);
    assert!(h.sim.wait_for(dropped, PATIENCE).await, "the running one is given up");
    let poll = usage_calls(&h.sim.journal())[0].clone();
    assert!(poll.ended.unwrap() - poll.started < SOON, "not only when it took too long");
    h.clock.advance(Duration::from_hours(2));
    assert!(nobody_is_due(&h));
    assert!(h.app.pool.accounts().is_empty());
    assert_eq!(h.rows("SELECT * FROM quota_windows").await, Vec::<Vec<String>>::new());
    h.finish().await;
}

/// Both accounts are in order; the week of `a` is spent by a snapshot that is two hours old.
async fn stale(a_says: impl FnOnce(&Account)) -> (Harness, Account) {
    let (h, (a, _)) = polling(|s| {
        s.in_order();
        let both = (s.codex("a"), s.codex("b"));
        fill(&both.0, 0.1, 1.0);
        both
    })
    .await;
    polled(&h, 2).await;
    assert_eq!(view(&h, "a").state, "limited");
    a.fault(Fault::server_error(500)).on(WHAM).times(1);
    h.clock.advance(Duration::from_mins(61) + Duration::from_secs(31));
    polled(&h, 4).await;
    a_says(&a);
    h.sim.clear_journal();
    h.clock.advance(Duration::from_mins(59));
    (h, a)
}

/// spec §3.5.
#[tokio::test]
async fn spec_3_5_a_stale_snapshot_is_checked_by_a_poll_before_a_request_has_to() {
    let (h, _a) = stale(|a| fill(a, 0.1, 0.2)).await;
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    polled(&h, 1).await;
    assert_eq!(used(&h, "a"), vec![10.0, 20.0]);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked().pop().as_deref(), Some("a"), "it serves again");
    h.finish().await;
}

/// spec §3.5.
#[tokio::test]
async fn spec_3_5_if_the_poll_fails_one_request_finds_out() {
    let refuses = |a: &Account| {
        a.fault(Fault::server_error(500)).on(WHAM).forever();
    };
    let (h, _) = stale(refuses).await;
    polled(&h, 1).await;
    let body = responses("hi", true);
    let statuses = futures_util::future::join_all(
        (0..20).map(async |_| h.post(CODEX, &body).await.status.as_u16()),
    );
    assert!(statuses.await.iter().all(|status| *status == 200));
    let probes = h.asked().iter().filter(|name| *name == "a").count();
    assert_eq!(probes, 1, "{:?}", h.asked());
    h.finish().await;
}

#[tokio::test]
async fn plans_and_weights_are_learnt_and_an_operators_word_stands() {
    let (h, _) = polling(|s| {
        let all = (s.codex("a"), s.claude("c"), s.claude("d"));
        s.settings("d").plan_weight = Some(3.0);
        for account in [&all.1, &all.2] {
            account.tier("default_claude_max_20x");
        }
        all.0.plan("pro");
        all
    })
    .await;
    let weight = |name| view(&h, name).weight;
    let all = || ["a", "c", "d"].map(|name| weight(name).to_string()).join(" ");
    until("all are known", || view(&h, "d").plan.as_deref() == Some("max/default_claude_max_20x"))
        .await;
    until("all are known", || weight("a") > 1.0 && weight("c") > 5.0).await;
    assert_eq!(all(), "10 10 3", "spec §2");
    h.app.reload().await.unwrap();
    assert_eq!(all(), "10 10 3", "a reload forgets nothing");
    h.finish().await;
}

#[tokio::test]
async fn the_uuid_that_the_profile_tells_goes_out_with_requests() {
    let (h, c) = polling(|s| s.claude("c")).await;
    let account = h.app.pool.accounts().remove(0);
    until("the uuid is known", || account.credential.claude_account_uuid().is_some()).await;
    let mut body = messages("hi", true);
    let user = json!({"device_id": "d", "account_uuid": "another", "session_id": "s"});
    body["metadata"] = json!({"user_id": user.to_string()});
    assert_eq!(h.post("/v1/messages", &body).await.status, 200);
    let journal = h.sim.journal();
    let sent = journal.iter().rfind(|e| e.path == "/v1/messages").unwrap();
    let sent: Value = serde_json::from_slice(&sent.body).unwrap();
    let user: Value = serde_json::from_str(sent["metadata"]["user_id"].as_str().unwrap()).unwrap();
    assert_eq!((&user["account_uuid"], &user["device_id"]), (&c.account_id().into(), &"d".into()));
    h.finish().await;
}

/// spec §6: as its tokens say, or its profile.
#[tokio::test]
async fn an_error_names_no_person() {
    let (h, (a, c)) = polling(|s| (s.codex("a"), s.claude("c"))).await;
    let mut claude = h.app.pool.accounts();
    claude.retain(|account| account.name == "c");
    until("its profile is known", || claude[0].credential.claude_account_uuid().is_some()).await;
    let message = |account: &Account, other: String| {
        format!("{}, {} of {other} may not", account.email(), account.account_id())
    };
    for (account, other, path, body) in [
        (&a, a.user_id(), CODEX, responses("hi", true)),
        (&c, c.organization_id(), "/v1/messages", messages("hi", true)),
    ] {
        let error = json!({"error": {"code": "odd", "message": message(account, other)}});
        account.fault(Fault::status(400, &error.to_string())).times(1);
        let told = h.post(path, &body).await.json();
        assert_eq!(told["error"]["message"], "[removed], [removed] of [removed] may not");
    }
    h.finish().await;
}

#[tokio::test]
async fn the_uuid_of_before_goes_out_with_nobody_elses_tokens() {
    let (h, (_, d)) = polling(|s| (s.claude("c"), s.sim.claude("d"))).await;
    let account = h.app.pool.accounts().remove(0);
    until("the uuid is known", || account.credential.claude_account_uuid().is_some()).await;
    d.fault(Fault::server_error(503)).on("/api/oauth/profile").forever();
    std::fs::write(h.dir.path().join("c.json"), d.credentials_json()).unwrap();
    let token = account.credential.ready(h.clock.now()).unwrap();
    until("it is d's", || account.credential.ready(h.clock.now()).unwrap() != token).await;
    assert_eq!(account.credential.claude_account_uuid(), None, "whose it is has to be learnt");
    d.clear_faults();
    h.app.pool.credential_exchanged(account.id);
    until("d's is known", || {
        account.credential.claude_account_uuid().as_deref() == Some(&*d.account_id())
    })
    .await;
    h.finish().await;
}

/// codex-lb G12, spec §3.4: pauses too.
#[tokio::test]
async fn who_is_paused_is_left_alone_until_resumed() {
    let (h, _) = polling(|s| s.codex("a")).await;
    polled(&h, 1).await;
    let id = h.app.pool.accounts()[0].id;
    h.app.store.pause(id).await.unwrap();
    h.app.reload().await.unwrap();
    h.clock.advance(Duration::from_hours(3));
    assert!(nobody_is_due(&h));
    h.app.store.resume(id, h.clock.now()).await.unwrap();
    polled(&h, 2).await;
    h.finish().await;
}
