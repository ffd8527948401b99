//! What each kind of failure does to the account and to the request.

use poolgate_sim::Fault;
use serde_json::json;

use super::*;

struct Row {
    name: &'static str,
    fault: Fault,
    forever: bool,
    /// What the client gets, and who was asked.
    status: u16,
    asked: &'static [&'static str],
    /// What became of `a`, and for how many seconds.
    state: &'static str,
    left: Option<i64>,
}

fn row(
    name: &'static str,
    fault: Fault,
    asked: &'static [&'static str],
    state: &'static str,
    left: impl Into<Option<i64>>,
) -> Row {
    Row { name, fault, forever: true, status: 200, asked, state, left: left.into() }
}

fn relayed(name: &'static str, fault: Fault, status: u16) -> Row {
    Row { status, ..row(name, fault, &["a"], "ready", None) }
}

fn once(row: Row) -> Row {
    Row { forever: false, ..row }
}

const AB: &[&str] = &["a", "b"];
const AAB: &[&str] = &["a", "a", "b"];

fn error(status: u16, error: &serde_json::Value) -> Fault {
    answer(status, &[], &json!({ "error": error }).to_string())
}

fn sub2api_rows() -> Vec<Row> {
    let code = |status, code: &str| error(status, &json!({"code": code, "message": "m"}));
    let text = |status, text: &str| error(status, &json!({"message": text}));
    let html = answer(403, &[("content-type", "text/html")], "<html>blocked</html>");
    let week = 7 * 86_400;
    vec![
        row("sub2api F1: 403 forbidden_error", Fault::forbidden_error(), AB, "cooling", 600),
        row(
            "sub2api F4, codex-lb D2: 429, resets in 7 d",
            Fault::UsageLimit { resets_in_s: Some(604_800) },
            AB,
            "limited",
            week,
        ),
        row("sub2api F5: 529", answer(529, &[], ""), AB, "ready", None),
        row("sub2api F6: 502", Fault::server_error(502), AAB, "ready", None),
        row("sub2api F7: 520", Fault::server_error(520), AAB, "ready", None),
        row("sub2api F7: 524", Fault::server_error(524), AAB, "ready", None),
        relayed(
            "sub2api F8: 502 with a context-window code",
            code(502, "context_length_exceeded"),
            502,
        ),
        relayed("sub2api F12: 400", text(400, "bad"), 400),
        row("sub2api F13: 403 as a web page", html, AB, "ready", None),
        once(row(
            "sub2api L7, codex-lb D9: it fails before output",
            Fault::cut_before_output(),
            AB,
            "ready",
            None,
        )),
        once(row(
            "sub2api L3, L8, codex-lb D1: 503, then 200",
            Fault::server_error(503),
            &["a", "a"],
            "ready",
            None,
        )),
    ]
}

fn more_rows() -> Vec<Row> {
    let code = |status, code: &str| error(status, &json!({"code": code, "message": "m"}));
    let text = |status, text: &str| error(status, &json!({"message": text}));
    vec![
        row("sub2api L9: 402", answer(402, &[], "{}"), AB, "deactivated", None),
        relayed("sub2api L10: 413", text(413, "too large"), 413),
        relayed("sub2api L12: a policy's 403", code(403, "cyber_policy"), 400),
        relayed("sub2api L13: 400 with a capacity text", text(400, "model at capacity"), 400),
        row(
            "sub2api L14: workspace_suspended in a 502",
            code(502, "workspace_suspended"),
            AB,
            "deactivated",
            None,
        ),
        row(
            "sub2api L15: suspended by its text only",
            text(502, "account suspended"),
            AAB,
            "ready",
            None,
        ),
        row("sub2api L16: no such model", code(404, "model_not_found"), AB, "ready", None),
        row(
            "sub2api R4: a reset as text in the body",
            error(429, &json!({"code": "rate_limit_exceeded", "resets_in_seconds": "120"})),
            AB,
            "limited",
            120,
        ),
        row("sub2api R6: 429 and nothing else", answer(429, &[], "{}"), AB, "limited", 5),
        row("codex-lb D4: insufficient_quota", code(429, "insufficient_quota"), AB, "limited", 300),
        once(row(
            "codex-lb D5: 401, and a refresh cures it",
            Fault::unauthorized(),
            &["a", "a"],
            "ready",
            None,
        )),
        row("codex-lb D7, sub2api K1: 401 again", Fault::unauthorized(), AAB, "cooling", 600),
        relayed(
            "codex-lb D10: invalid request",
            error(400, &json!({"type": "invalid_request_error"})),
            400,
        ),
        row(
            "codex-lb D11: not with this sign-in",
            answer(
                400,
                &[],
                r#"{"detail":"The 'x' model is not supported when using Codex with a ChatGPT account."}"#,
            ),
            AB,
            "ready",
            None,
        ),
        row(
            "spec §6: identity verification",
            text(400, "Identity verification required"),
            AB,
            "disabled",
            None,
        ),
        row(
            "spec §6: an event's 429, till the nearest reset",
            Fault::failed_with("rate_limit_exceeded", "m"),
            AB,
            "limited",
            600,
        ),
        row(
            "spec §6: overloaded, in an event",
            Fault::failed_with("server_is_overloaded", "m"),
            AB,
            "ready",
            None,
        ),
    ]
}

#[tokio::test]
async fn each_failure_before_output() {
    for Row { name, fault, forever, status, asked, state, left } in
        sub2api_rows().into_iter().chain(more_rows())
    {
        let (h, a, _) = pair(|_| {}).await;
        let script = a.fault(fault);
        drop(if forever { script.forever() } else { script.times(1) });
        let got = h.post(CODEX, &responses("hi", true)).await;
        assert_eq!((got.status.as_u16(), got.cut), (status, false), "{name}: {}", got.text());
        assert_eq!(h.asked(), asked, "{name}");
        assert_eq!(view(&h, "a").state, state, "{name}");
        let close = |(got, want): (Option<i64>, Option<i64>)| match (got, want) {
            (Some(got), Some(want)) => (want - 5..=want + 1).contains(&got),
            (got, want) => got == want,
        };
        let got = seconds_left(&h, "a");
        assert!(close((got, left)), "{name}: {got:?} seconds left, not {left:?}");
        assert_eq!(view(&h, "b").state, "ready", "{name}");
        h.finish().await;
    }
}

/// sub2api F1, F2, F14.
#[tokio::test]
async fn sub2api_f1_f2_f14_strikes_are_counted_and_a_success_clears_them() {
    let (h, a, _) = pair(|_| {}).await;
    let strike = async || {
        a.fault(Fault::forbidden_error()).times(1);
        assert_eq!(who(&h).await, "b");
        let seen = view(&h, "a");
        h.clock.advance(Duration::from_mins(11));
        (seen.state, seen.problem.unwrap_or_default())
    };
    let cooling = |n: u32| ("cooling".to_owned(), format!("OpenAI 403 temporary cooldown ({n}/3)"));
    assert_eq!(strike().await, cooling(1), "sub2api F1");
    assert_eq!(strike().await, cooling(2));
    assert_eq!(who(&h).await, "a");
    assert_eq!(strike().await, cooling(1), "sub2api F14: cleared by a success");
    assert_eq!(strike().await, cooling(2));
    let (state, problem) = strike().await;
    assert_eq!(state, "disabled", "sub2api F2: the third");
    assert!(problem.contains("poolgate account resume a"), "{problem}");
    assert_eq!(who(&h).await, "b", "and no clock brings it back");
    h.finish().await;
}

#[tokio::test]
async fn spec_6_counting_tokens_clears_no_strike() {
    let (h, c) = Harness::start(|s: &mut Setup| s.claude("c")).await;
    let body = crate::requests::messages("hi", false);
    let count = async || h.post("/v1/messages/count_tokens", &body).await.status;
    assert_eq!(count().await, 200);
    c.fault(Fault::forbidden_error()).times(1);
    assert_eq!(h.post("/v1/messages", &body).await.status, 529);
    h.clock.advance(Duration::from_mins(11));
    assert_eq!(count().await, 200);
    c.fault(Fault::forbidden_error()).times(1);
    h.post("/v1/messages", &body).await;
    assert_eq!(view(&h, "c").problem.as_deref(), Some("Anthropic 403 temporary cooldown (2/3)"));
    h.finish().await;
}

/// Nobody is limited by it: only the upstream's own words say when to come back.
#[tokio::test]
async fn spec_6_a_count_that_all_refuse_is_told_when_to_come_back() {
    let body = crate::requests::messages("hi", false);
    let many: Vec<String> = ('a'..='k').map(String::from).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for names in [&["c"][..], &["c", "d"], &many] {
        let (h, all) = Harness::start(|s: &mut Setup| {
            s.in_order();
            names.iter().map(|name| s.claude(name)).collect::<Vec<_>>()
        })
        .await;
        for account in &all {
            let fault = Fault::rate_limited(Duration::from_secs(30));
            account.fault(fault).on("/v1/messages/count_tokens").forever();
        }
        let got = h.post("/v1/messages/count_tokens", &body).await;
        assert_eq!(got.status, 429, "{names:?}: {}", got.text());
        assert_eq!(got.headers["retry-after"], "30");
        assert_eq!(h.asked(), names[..names.len().min(10)]);
        assert_eq!(h.post("/v1/messages", &body).await.status, 200, "not limited");
        h.finish().await;
    }
}

#[tokio::test]
async fn what_a_count_was_told_is_not_forgotten_with_the_next_account() {
    let later = || Fault::rate_limited(Duration::from_hours(9));
    for other in [Fault::server_error(500), later()] {
        let (h, (c, d)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.claude("c"), s.claude("d"))
        })
        .await;
        let counts = "/v1/messages/count_tokens";
        c.fault(Fault::rate_limited(Duration::from_secs(30))).on(counts).forever();
        d.fault(other).on(counts).forever();
        let got = h.post(counts, &crate::requests::messages("hi", false)).await;
        let told = (got.status.as_u16(), &got.headers["retry-after"]);
        assert_eq!(told, (429, &"30".parse().unwrap()));
        h.finish().await;
    }
}

/// The client's status and the row's, and a failover only where another account follows.
#[tokio::test]
async fn spec_10_a_row_says_what_its_client_got() {
    let (h, (c, d)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.claude("c"), s.claude("d"))
    })
    .await;
    let body = crate::requests::messages("hi", false);
    for account in [&c, &d] {
        account.fault(Fault::forbidden_error()).times(1);
    }
    let got = h.post("/v1/messages", &body).await;
    assert_eq!(got.status, 529, "{}", got.text());
    assert!(got.text().contains("; the last one asked: "), "{}", got.text());
    assert_eq!(h.rows("SELECT status FROM requests").await, [["529"]]);
    assert_eq!((view(&h, "c").failovers, view(&h, "d").failovers), (1, 0));
    h.finish().await;
}

/// The other way round: what cannot be healed by counting is not caused by it.
#[tokio::test]
async fn spec_6_counting_tokens_strikes_nobody() {
    let (h, c) = Harness::start(|s: &mut Setup| s.claude("c")).await;
    let body = crate::requests::messages("hi", false);
    for fault in [Fault::forbidden_error(), Fault::server_error(500)] {
        c.fault(fault).on("/v1/messages/count_tokens").forever();
        for _ in 0..3 {
            let got = h.post("/v1/messages/count_tokens", &body).await;
            assert!(got.status.is_server_error(), "{}", got.text());
        }
        c.clear_faults();
        assert_eq!(view(&h, "c").state, "ready");
        assert_eq!(h.post("/v1/messages", &body).await.status, 200);
    }
    h.finish().await;
}

#[tokio::test]
async fn a_403_about_usage_is_a_limit_only_if_a_window_bears_it_out() {
    let body =
        r#"{"error":{"type":"forbidden_error","message":"The usage limit has been reached"}}"#;
    let (h, a, _) = pair(|_| {}).await;
    let at = (h.clock.now().unix_seconds() + 7200).to_string();
    let spent = [
        ("x-codex-primary-used-percent", "100"),
        ("x-codex-primary-window-minutes", "300"),
        ("x-codex-primary-reset-at", at.as_str()),
    ];
    a.fault(answer(403, &spent, body)).times(1);
    assert_eq!(who(&h).await, "b");
    assert_eq!(view(&h, "a").state, "limited");
    assert!((7195..=7201).contains(&seconds_left(&h, "a").unwrap()));
    h.finish().await;
    let (h, a, _) = pair(|_| {}).await;
    a.fault(answer(403, &[], body)).times(1);
    assert_eq!(who(&h).await, "b");
    assert_eq!(view(&h, "a").state, "cooling", "sub2api F1: the words alone are a strike");
    h.finish().await;
}

/// An error that its own retry cures leaves nothing behind: there is no third in a row.
#[tokio::test]
async fn an_account_that_recovers_each_time_is_not_rested() {
    let (h, a, _) = pair(|_| {}).await;
    for _ in 0..4 {
        a.fault(Fault::server_error(500)).times(1);
        assert_eq!(who(&h).await, "a");
    }
    assert_eq!(h.asked(), ["a"; 8]);
    h.finish().await;
}

/// sub2api F15.
#[tokio::test]
async fn sub2api_f15_a_refused_connection_rests_the_account_and_the_other_answers() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.sim.codex("a");
    a.own_port().await.unwrap();
    setup.add_codex(&a);
    setup.codex("b");
    let h = setup.start().await;
    a.refuse_connections();
    let body = json!({"model": "gpt-5.5", "input": [], "instructions": "be brief"});
    let got = h.post("/v1/responses/compact", &body).await;
    assert_eq!((got.status.as_u16(), h.asked()), (200, vec!["b".to_owned()]));
    let seen = view(&h, "a");
    assert_eq!(seen.state, "cooling");
    assert_eq!(seen.problem.as_deref(), Some("its upstream cannot be reached"));
    assert!((595..=601).contains(&seconds_left(&h, "a").unwrap()));
    h.finish().await;
}

/// codex-lb D15.
#[tokio::test]
async fn codex_lb_d15_when_no_upstream_can_be_reached_nobody_is_penalised() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let accounts = ["a", "b"].map(|name| setup.sim.codex(name));
    for account in &accounts {
        account.own_port().await.unwrap();
        setup.add_codex(account);
    }
    let h = setup.start().await;
    accounts.iter().for_each(poolgate_sim::Account::refuse_connections);
    for _ in 0..4 {
        let got = h.post(CODEX, &responses("hi", true)).await;
        assert_eq!(got.status, 502, "{}", got.text());
    }
    for account in &accounts {
        account.accept_connections().await.unwrap();
    }
    assert_eq!(who(&h).await, "a", "the first is as good as ever");
    assert_eq!((view(&h, "a").state, view(&h, "b").state), ("ready".into(), "ready".into()));
    h.finish().await;
}

/// codex-lb D12.
#[tokio::test]
async fn codex_lb_d12_at_most_three_accounts_are_asked() {
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        ["a", "b", "c", "d"].map(|name| s.codex(name))
    })
    .await;
    // Not the very same words, which would put the request at fault.
    for (account, text) in accounts.iter().zip(["one", "two", "three", "four"]) {
        account.fault(error(500, &json!({ "message": text }))).forever();
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.status, 502, "{}", got.text());
    assert_eq!(h.asked(), ["a", "a", "b", "b", "c", "c"], "sub2api L1: each, and once again");
    h.finish().await;
}

/// spec §6: ten accounts for limits. The eleventh is told of, and neither asked nor counted.
#[tokio::test]
async fn spec_6_at_most_ten_accounts_are_asked_for_limits() {
    const NAMES: [&str; 11] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.in_order();
        NAMES.map(|name| s.codex(name))
    })
    .await;
    for account in &accounts {
        account.fault(Fault::usage_limit_reached()).forever();
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert!(got.status.is_client_error() || got.status.is_server_error(), "{}", got.text());
    assert_eq!(h.asked(), NAMES[..10]);
    let attempts = NAMES.map(|name| view(&h, name).attempts);
    assert_eq!(attempts, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    h.finish().await;
}

/// codex-lb D13.
#[tokio::test]
async fn codex_lb_d13_an_exhausted_pool_names_the_earliest_reset() {
    let (h, a, b) = pair(|_| {}).await;
    for (account, seconds) in [(&a, 9000), (&b, 600)] {
        account.fault(Fault::UsageLimit { resets_in_s: Some(seconds) }).forever();
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.code()), (429, "usage_limit_reached"), "sub2api S16");
    let seconds = got.json()["error"]["resets_in_seconds"].as_i64().unwrap();
    assert!((595..=601).contains(&seconds), "{seconds}");
    h.finish().await;
}

/// sub2api L17.
#[tokio::test]
async fn sub2api_l17_the_last_upstreams_wait_reaches_the_client() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::rate_limited(Duration::from_mins(5))).forever();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.status, 503, "a rate is no quota: {}", got.text());
    let seconds: u64 = got.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((295..=300).contains(&seconds), "{seconds}");
    h.finish().await;
}

/// sub2api L6; codex-lb D8.
#[tokio::test]
async fn sub2api_l6_codex_lb_d8_after_the_first_delta_nothing_is_asked_again() {
    let (h, a, _) = pair(|_| {}).await;
    a.fault(Fault::error_event_after_output(1)).times(1);
    let got = h.post(CODEX, &responses("hi [[events=9]]", true)).await;
    assert!(got.text().contains("response.failed"), "{}", got.text());
    assert_eq!(h.asked(), ["a"]);
    h.finish().await;
}

/// multiplexer 18.2 #23.
#[tokio::test]
async fn multiplexer_18_2_23_a_clients_own_mistake_is_told_and_not_retried() {
    let (h, a, _) = pair(|_| {}).await;
    let body = r#"{"error":{"message":"Unknown parameter: 'x'.","type":"invalid_request_error"}}"#;
    a.fault(answer(400, &[], body)).forever();
    for round in 1..=3 {
        let got = h.post(CODEX, &responses("hi", true)).await;
        assert_eq!((got.status.as_u16(), got.text().as_str()), (400, body));
        assert_eq!(h.asked().len(), round, "once each time, and never on b");
    }
    h.finish().await;
}

/// What is withheld until output begins: at most 64 KiB, and for at most 2 s.
#[tokio::test]
async fn spec_6_the_commit_point_has_two_bounds() {
    let event = "event: response.in_progress\ndata: {\"type\":\"response.in_progress\"}\n\n";
    let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n";
    // More than is read at one go: what comes together is seen together.
    for (bytes, asked) in [(60 << 10, vec!["a", "a"]), (600 << 10, vec!["a"])] {
        let (h, a, _) = pair(|_| {}).await;
        let preamble = event.repeat(bytes / event.len());
        a.fault(answer(200, &[EVENTS], &format!("{preamble}{failed}"))).times(1);
        let got = h.post(CODEX, &responses("hi", true)).await;
        let relayed = got.text().contains("response.failed");
        assert_eq!((got.status.as_u16(), relayed), (200, asked.len() == 1), "{bytes} bytes");
        assert_eq!(h.asked(), asked, "{bytes} bytes without output, then a failure");
        h.finish().await;
    }
    let (h, a, _) = pair(|_| {}).await;
    a.fault(Fault::stall(poolgate_sim::Phase::Body)).times(1);
    let bearer = format!("Bearer {}", h.key);
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let url = format!("{}{CODEX}", h.url);
    let body = responses("hi", true).to_string();
    let head = h.request(http::Method::POST, &url, &headers, body.into()).await;
    assert_eq!(head.status(), 200, "released after 2 s");
    assert_eq!(h.asked(), ["a"]);
    drop(head);
    h.finish().await;
}

#[tokio::test]
async fn spec_6_a_limit_that_ends_within_a_minute_is_waited_for() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::rate_limited(Duration::from_secs(1))).times(1);
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "accounts_unavailable"), "{}", got.text());
    assert_eq!(who(&h).await, "a", "the next one waits that second");
    h.finish().await;
}
