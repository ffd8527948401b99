//! Who is chosen.

use futures_util::future::{join, join_all};
use http::Method;
use poolgate_core::line::PLACES;
use poolgate_sim::{Account, Fault};
use serde_json::{Value, json};

use super::*;
use crate::harness::PATIENCE;
use crate::requests::messages;

/// sub2api S1.
#[tokio::test]
async fn sub2api_s1_a_busy_account_is_passed_over() {
    let (h, a, _) = pair(|s| s.settings("a").max_concurrency = Some(1)).await;
    a.fault(Fault::slow_drip(400, Duration::from_millis(20))).times(1);
    let body = responses("hi", true);
    let first = h.post(CODEX, &body);
    let second = async {
        assert!(h.sim.wait_for(|all| !all.is_empty(), PATIENCE).await);
        h.post(CODEX, &body).await
    };
    let (first, second) = join(first, second).await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert_eq!(h.asked(), ["a", "b"]);
    h.finish().await;
}

/// sub2api S2.
#[tokio::test]
async fn sub2api_s2_a_higher_priority_number_serves_only_when_no_lower_one_can() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        let both = (s.codex("a"), s.codex("b"));
        s.settings("b").priority = Some(5);
        both
    })
    .await;
    for _ in 0..5 {
        assert_eq!(who(&h).await, "a");
    }
    a.fault(Fault::usage_limit_reached()).forever();
    assert_eq!(who(&h).await, "b");
    h.finish().await;
}

/// sub2api S7.
#[tokio::test]
async fn sub2api_s7_a_request_waits_for_the_only_slot() {
    let (h, a) = Harness::one_slot().await;
    a.fault(Fault::slow_drip(400, Duration::from_millis(20))).times(1);
    let body = responses("hi", true);
    let (first, second) = join(h.post(CODEX, &body), h.post(CODEX, &body)).await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert_eq!(h.asked(), ["a", "a"]);
    h.finish().await;
}

/// codex-lb E12.
#[tokio::test]
async fn codex_lb_e12_the_only_account_rests_and_the_client_is_told_for_how_long() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::server_error(500)).forever();
    let body = responses("hi", true);
    // A rest of over a minute, which nobody waits for.
    while seconds_left(&h, "a").is_none_or(|left| left <= 60) {
        let rest = seconds_left(&h, "a").unwrap_or(0);
        h.clock.advance(Duration::from_secs(u64::try_from(rest).unwrap() + 1));
        h.post(CODEX, &body).await;
    }
    let before = h.asked().len();
    let got = h.post(CODEX, &body).await;
    let seconds: i64 = got.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!((got.status.as_u16(), h.asked().len()), (503, before), "{}", got.text());
    assert!((60..=300).contains(&seconds), "{seconds}");
    h.finish().await;
}

#[tokio::test]
async fn spec_9_requests_that_wait_are_served_in_turn() {
    let (h, a) = Harness::one_slot().await;
    a.fault(Fault::slow_drip(400, Duration::from_millis(20))).times(1);
    let other = format!("Bearer {}", h.new_key("other", &[], &[]).await);
    let ours = format!("Bearer {}", h.key);
    let one = async |name: &'static str, key: &str, before: usize| {
        let pool = &h.app.pool;
        while pool.in_flight() as usize + pool.line().waiting() < before {
            tokio::task::yield_now().await;
        }
        let headers = [("authorization", key), ("content-type", "application/json")];
        let body = responses(name, true).to_string();
        assert_eq!(h.send(Method::POST, CODEX, &headers, body.into()).await.status, 200);
    };
    tokio::join!(
        one("first", &ours, 0),
        one("second", &ours, 1),
        one("third", &ours, 2),
        one("fourth", &ours, 3),
        one("another key's", &other, 4),
    );
    let served: Vec<String> = h
        .sim
        .journal()
        .iter()
        .map(|entry| serde_json::from_slice::<Value>(&entry.body).unwrap())
        .map(|body| body["input"][0]["content"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(served, ["first", "second", "another key's", "third", "fourth"]);
    assert_eq!(h.app.pool.line().waiting(), 0);
    h.finish().await;
}

#[tokio::test]
async fn spec_9_nobody_overtakes_a_full_line() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let body = responses("hi", true);
    let bearer = format!("Bearer {}", h.new_key("other", &[], &[]).await);
    a.fault(Fault::rate_limited(Duration::from_secs(30))).times(1);
    assert_eq!(h.post(CODEX, &body).await.status, 503);
    let line = h.app.pool.line();
    let waiting = join_all((0..PLACES).map(|_| h.post(CODEX, &body)));
    let newcomers = async {
        let all_have_looked = async || {
            while line.waiting() < PLACES || line.is_calling() {
                tokio::task::yield_now().await;
            }
        };
        all_have_looked().await;
        let other = h.post("/v1/messages", &messages("hi", true)).await;
        assert_eq!((other.status.as_u16(), line.waiting()), (200, PLACES), "nobody waits for this");
        all_have_looked().await;
        // The account can serve again, and those in the line have not heard of it.
        h.clock.advance(Duration::from_secs(31));
        let same = h.post(CODEX, &body).await;
        assert_eq!((same.status.as_u16(), line.waiting()), (503, PLACES), "{}", same.text());
        // One of another key is given the place of the last, and everybody is called.
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let fair = h.send(Method::POST, CODEX, &headers, body.to_string().into()).await;
        assert_eq!(fair.status, 200, "{}", fair.text());
    };
    let (all, ()) = join(waiting, newcomers).await;
    let mut statuses: Vec<u16> = all.iter().map(|got| got.status.as_u16()).collect();
    statuses.sort_unstable();
    let want = [vec![200; PLACES - 1], vec![503]].concat();
    assert_eq!(statuses, want, "whoever lost its place is not served before the others");
    assert_eq!(line.waiting(), 0);
    h.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spec_9_nobody_in_the_line_is_forgotten() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        ["a", "b"].map(|name| {
            s.codex(name);
            s.settings(name).max_concurrency = Some(1);
        })
    })
    .await;
    for _ in 0..5 {
        let body = responses("hi", true);
        let all = join_all((0..60).map(|_| h.post(CODEX, &body))).await;
        assert!(all.iter().all(|got| got.status == 200));
    }
    assert_eq!((h.app.pool.line().waiting(), h.app.pool.in_flight()), (0, 0));
    h.finish().await;
}

/// sub2api S15.
#[tokio::test]
async fn sub2api_s15_a_model_enabled_nowhere_is_not_found() {
    let (h, _, _) = pair(|s| {
        for name in ["a", "b"] {
            s.settings(name).models = vec!["o4*".into()];
        }
    })
    .await;
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.code()), (404, "model_not_found"), "{}", got.text());
    assert!(h.asked().is_empty());
    h.finish().await;
}

/// codex-lb E9.
#[tokio::test]
async fn codex_lb_e9_one_session_name_of_two_keys_is_two_sessions() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        s.pool("default", &[], "round-robin");
        ["a", "b"].map(|name| s.codex(name))
    })
    .await;
    let other = h.new_key("other", &[], &[]).await;
    let mut body = responses("hi", true);
    body["prompt_cache_key"] = json!("same");
    let ask = async |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let got = h.send(http::Method::POST, CODEX, &headers, body.to_string().into()).await;
        assert_eq!(got.status, 200, "{}", got.text());
        h.asked().pop().unwrap()
    };
    let mine = ask(&h.key).await;
    let theirs = ask(&other).await;
    assert_ne!(mine, theirs, "round-robin gave the second session the next account");
    assert_eq!((ask(&h.key).await, ask(&other).await), (mine, theirs), "codex-lb E3, sub2api S3");
    h.finish().await;
}

/// codex-lb E18.
#[tokio::test]
async fn codex_lb_e18_a_key_is_served_by_its_own_pools_or_not_at_all() {
    let (h, _, _) = pair(|s| s.pool("mine", &["a"], "fallback")).await;
    let key = h.new_key("scoped", &["mine"], &[]).await;
    let id = h.app.pool.accounts().iter().find(|a| a.name == "a").unwrap().id;
    h.app.store.pause(id).await.unwrap();
    h.app.reload().await.unwrap();
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = responses("hi", true).to_string();
    let got = h.send(http::Method::POST, CODEX, &headers, body.into()).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "no_accounts"), "{}", got.text());
    assert!(h.asked().is_empty(), "b was left alone");
    h.finish().await;
}

/// codex-lb E16.
#[tokio::test]
async fn codex_lb_e16_a_limit_ends_with_its_reset() {
    let (h, a, _) = pair(|_| {}).await;
    a.fault(Fault::UsageLimit { resets_in_s: Some(1200) }).times(1);
    assert_eq!([who(&h).await, who(&h).await], ["b", "b"]);
    h.clock.advance(Duration::from_secs(1202));
    assert_eq!(who(&h).await, "a");
    h.finish().await;
}

/// `a` is on a plan with a gated model, `b` comes behind it; and a request for that model.
async fn with_a_gated_model() -> (Harness, Account, Value) {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.sim.codex("a");
    a.plan("pro").renew();
    setup.add_codex(&a);
    setup.codex("b");
    let mut gated = responses("hi", true);
    gated["model"] = "gpt-5.3-codex-spark".into();
    (setup.start().await, a, gated)
}

/// codex-lb F1–F3, F11.
#[tokio::test]
async fn codex_lb_f1_a_gated_model_goes_on_where_the_week_is_spent() {
    let (h, a, gated) = with_a_gated_model().await;
    let stream = stream_of(&h, &a, &gated).await;
    a.fault(Fault::UsageLimit { resets_in_s: Some(259_200) }).times(1);
    assert_eq!(who(&h).await, "b", "the ordinary week is spent on a");
    let limits = [
        EVENTS,
        ("x-codex-bengalfox-primary-used-percent", "10"),
        ("x-codex-bengalfox-primary-window-minutes", "300"),
    ];
    let ask = async || {
        a.fault(answer(200, &limits, &stream)).times(1);
        assert_eq!(h.post(CODEX, &gated).await.status, 200);
        a.clear_faults();
        h.asked().pop().unwrap()
    };
    assert_eq!(ask().await, "b", "codex-lb F5: it rests for 120 s");
    h.clock.advance(Duration::from_secs(121));
    assert_eq!(ask().await, "a", "codex-lb F1");
    assert_eq!(who(&h).await, "b", "codex-lb F2: ordinary requests wait for the reset");
    let seen = view(&h, "a");
    assert_eq!((seen.state.as_str(), seen.windows.len()), ("limited", 2), "codex-lb F11");
    let id = h.app.pool.accounts()[0].id;
    h.app.store.pause(id).await.unwrap();
    h.app.reload().await.unwrap();
    assert_eq!(ask().await, "b", "codex-lb F3: a pause excludes it");
    h.finish().await;
}

/// Where the ordinary quota is spent, though no window says so: what gated requests meet there
/// neither ends that nor is lost beneath it.
#[tokio::test]
async fn gated_answers_neither_end_an_ordinary_limit_nor_vanish_beneath_it() {
    let (h, a, gated) = with_a_gated_model().await;
    let spent = r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":259200}}"#;
    a.fault(Fault::status(429, spent)).times(1);
    assert_eq!(who(&h).await, "b", "spent on a for three days");
    h.clock.advance(Duration::from_secs(121));
    assert_eq!(h.post(CODEX, &gated).await.status, 200);
    assert_eq!(h.asked().pop().unwrap(), "a", "codex-lb F1");
    assert_eq!(who(&h).await, "b", "codex-lb F2: still spent");
    a.fault(Fault::forbidden_error()).forever();
    let before = h.asked().len();
    for _ in 0..3 {
        assert_eq!(h.post(CODEX, &gated).await.status, 200);
    }
    assert_eq!(h.asked()[before..], ["a", "b", "b", "b"], "the first 403 cools it");
    assert_eq!(view(&h, "a").state, "limited", "three requests are not three strikes");
    h.finish().await;
}

#[tokio::test]
async fn a_gated_models_spent_limit_leaves_the_ordinary_work_alone() {
    let (h, a, gated) = with_a_gated_model().await;
    let at = (h.clock.now().unix_seconds() + 3600).to_string();
    let spent = [
        ("x-codex-active-limit", "codex_bengalfox"),
        ("x-codex-bengalfox-primary-used-percent", "100"),
        ("x-codex-bengalfox-primary-window-minutes", "300"),
        ("x-codex-bengalfox-primary-reset-at", at.as_str()),
    ];
    let body =
        r#"{"error":{"type":"usage_limit_reached","message":"The usage limit has been reached"}}"#;
    a.fault(answer(429, &spent, body)).times(1);
    for _ in 0..2 {
        assert_eq!(h.post(CODEX, &gated).await.status, 200);
    }
    assert_eq!(h.asked(), ["a", "b", "b"], "codex-lb Q14");
    assert_eq!(who(&h).await, "a", "codex-lb Q12, F11");
    h.clock.advance(Duration::from_secs(3602));
    assert_eq!(h.post(CODEX, &gated).await.status, 200);
    assert_eq!(h.asked().pop().as_deref(), Some("a"));
    h.finish().await;
}
