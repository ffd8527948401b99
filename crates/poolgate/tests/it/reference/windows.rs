//! What answers say about windows, and when a window pauses its account.

use futures_util::future::join_all;
use poolgate::providers::usage;
use poolgate_sim::Fault;

use super::*;
use crate::requests::messages;

fn used(h: &Harness, name: &str) -> Vec<(String, f64)> {
    view(h, name).windows.into_iter().map(|w| (w.name, w.used_percent)).collect()
}

fn windows(five: f64, week: f64) -> Vec<(String, f64)> {
    vec![("5h".into(), five), ("weekly".into(), week)]
}

/// sub2api C1.
#[tokio::test]
async fn sub2api_c1_one_percent_used_is_one_percent_also_when_swapped() {
    let (h, a, _) = pair(|_| {}).await;
    let stream = stream_of(&h, &a, &responses("hi", true)).await;
    let swapped = [
        EVENTS,
        ("x-codex-primary-used-percent", "2"),
        ("x-codex-primary-window-minutes", "10080"),
        ("x-codex-secondary-used-percent", "1"),
        ("x-codex-secondary-window-minutes", "300"),
    ];
    a.fault(answer(200, &swapped, &stream)).times(1);
    assert_eq!(who(&h).await, "a");
    assert_eq!(used(&h, "a"), windows(1.0, 2.0));
    assert_eq!(view(&h, "a").state, "ready", "sub2api C12");
    a.fault(answer(200, &[EVENTS], &stream)).times(1);
    assert_eq!(who(&h).await, "a");
    assert_eq!(used(&h, "a"), windows(1.0, 2.0), "sub2api C9: no headers, nothing changed");
    let credits =
        [EVENTS, ("x-codex-credits-balance", "7"), ("x-codex-secondary-used-percent", "4")];
    a.fault(answer(200, &credits, &stream)).times(1);
    assert_eq!(who(&h).await, "a");
    assert_eq!(used(&h, "a"), windows(1.0, 4.0), "multiplexer 18.2 #19: the other one is kept");
    h.finish().await;
}

/// sub2api C10.
#[tokio::test]
async fn sub2api_c10_a_429_updates_the_snapshot_and_says_until_when() {
    let (h, a, _) = pair(|_| {}).await;
    a.window(WEEK, 1000.0, 300.0, Duration::from_hours(72));
    a.window(FIVE_HOURS, 100.0, 100.0, Duration::from_hours(1));
    assert_eq!(who(&h).await, "b");
    assert_eq!(used(&h, "a"), windows(100.0, 30.0));
    let left = seconds_left(&h, "a").unwrap();
    assert!((3590..=3601).contains(&left), "sub2api R2: {left}");
    a.window(WEEK, 1000.0, 1000.0, Duration::from_hours(72));
    h.sim.advance(Duration::from_mins(61));
    h.clock.advance(Duration::from_mins(61));
    assert_eq!(who(&h).await, "b");
    let left = seconds_left(&h, "a").unwrap();
    assert!(left > 70 * 3600, "sub2api R1, multiplexer 18.2 #29: the week's reset: {left}");
    h.finish().await;
}

#[tokio::test]
async fn codexs_event_is_read_like_headers() {
    let limits = |used: u32| {
        format!(
            "event: codex.rate_limits\ndata: {{\"type\":\"codex.rate_limits\",\"rate_limits\":\
             {{\"primary\":{{\"used_percent\":{used}.0,\"window_minutes\":300}},\
             \"secondary\":{{\"used_percent\":9.0,\"window_minutes\":10080}}}}}}\n\n"
        )
    };
    let (h, a, _) = pair(|_| {}).await;
    let plain = stream_of(&h, &a, &responses("hi", true)).await;
    // At the front; and behind output and so many bytes that the answer comes in pieces.
    let early = |used| format!("{}{plain}", limits(used));
    let padding = format!(": {}\n\n", "x".repeat(1000)).repeat(1000);
    let late = |used| {
        let end = "event: response.completed";
        plain.replace(end, &format!("{padding}{}{end}", limits(used)))
    };
    let cases = [(early(11), true, 11.0), (late(22), true, 22.0), (late(33), false, 33.0)];
    for (stream, streams, want) in cases {
        a.fault(answer(200, &[EVENTS], &stream)).times(1);
        let got = h.post("/v1/responses", &responses("hi", streams)).await;
        assert!(!got.text().contains("codex."), "it stays behind");
        assert_eq!((got.status.as_u16(), got.cut), (200, false));
        assert_eq!(used(&h, "a"), windows(want, 9.0), "streams: {streams}");
    }
    h.finish().await;
}

/// The simulator shares no type with the gateway: what one writes the other must read.
#[tokio::test]
async fn usage_answers_are_read_and_taken_over() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let asks = [(&a, "/backend-api/wham/usage"), (&c, "/api/oauth/usage")];
    for (account, _) in asks {
        account.window(FIVE_HOURS, 100.0, 12.0, Duration::from_hours(2));
        account.window(WEEK, 100.0, 34.0, Duration::from_hours(50));
        account.fault(Fault::UsageLimit { resets_in_s: Some(7200) }).times(1);
    }
    h.post(CODEX, &responses("hi", true)).await;
    h.post("/v1/messages", &messages("hi", true)).await;
    for (account, path) in asks {
        let name = account.name();
        assert_eq!(view(&h, name).state, "limited", "{name}");
        h.clock.advance(Duration::from_secs(1));
        let bearer = format!("Bearer {}", account.credential());
        let headers = [
            ("authorization", bearer.as_str()),
            ("chatgpt-account-id", &account.account_id()),
            ("anthropic-beta", "oauth-2025-04-20"),
        ];
        let url = format!("{}{path}", h.sim.url());
        let answer = h.request(http::Method::GET, &url, &headers, bytes::Bytes::new()).await;
        let answer = crate::harness::collect(answer).await;
        let now = h.clock.now();
        let usage = match name {
            "a" => usage::codex::usage(&answer.body, now),
            _ => usage::claude::usage(&answer.body),
        };
        let usage = usage.unwrap_or_else(|| panic!("{name}: {}", answer.text()));
        assert_eq!(usage.plan.as_deref(), (name == "a").then_some("plus"));
        assert!(usage.credits.is_some(), "{name}");
        let known = h.app.pool.accounts().into_iter().find(|a| a.name == name).unwrap();
        h.app.pool.polled(&known, &usage, now, now);
        assert_eq!(used(&h, name), windows(12.0, 34.0), "{name}");
        assert_eq!(view(&h, name).state, "ready", "{name}: a poll below the cap ends the limit");
        let seconds = view(&h, name).windows[0].resets_at.unwrap() / 1000 - now.unix_seconds();
        assert!((7190..=7201).contains(&seconds), "{name}: {seconds}");
    }
    h.finish().await;
}

#[tokio::test]
async fn sub2api_12_2_a_window_at_its_cap_pauses_the_account() {
    // Used shares of 5h and week, caps in percent, and who serves.
    let cases = [
        ("P1", [0.95, 0.10], [Some(95), None], "b"),
        ("P2", [0.80, 0.10], [Some(95), None], "a"),
        ("P3", [0.10, 0.95], [None, Some(95)], "b"),
        ("P4, but for the cap of 99 % that is there unset", [0.99, 0.10], [None, None], "b"),
        ("P6", [0.99, 0.10], [Some(100), None], "a"),
        ("P7", [0.99, 0.96], [Some(100), Some(95)], "b"),
    ];
    for (name, [five, week], [limit_5h, limit_weekly], want) in cases {
        let (h, a, _) = pair(|s| {
            s.settings("a").limit_5h = limit_5h;
            s.settings("a").limit_weekly = limit_weekly;
        })
        .await;
        a.set_used(FIVE_HOURS, five).set_used(WEEK, week);
        assert_eq!(who(&h).await, "a", "sub2api {name}: unknown yet");
        assert_eq!(who(&h).await, want, "sub2api {name}");
        h.finish().await;
    }
}

/// sub2api P8.
#[tokio::test]
async fn sub2api_p8_a_reset_that_has_passed_ends_the_pause() {
    let (h, a, _) = pair(|_| {}).await;
    a.window(FIVE_HOURS, 1000.0, 995.0, Duration::from_mins(30));
    assert_eq!([who(&h).await, who(&h).await], ["a", "b"]);
    h.clock.advance(Duration::from_mins(31));
    h.sim.advance(Duration::from_mins(31));
    assert_eq!(who(&h).await, "a", "sub2api P8, multiplexer 18.2 #28");
    h.finish().await;
}

/// sub2api P17.
#[tokio::test]
async fn sub2api_p17_fifty_requests_meet_a_stale_account_and_one_probes() {
    let (h, a, _) = pair(|_| {}).await;
    a.set_used(WEEK, 0.995);
    assert_eq!([who(&h).await, who(&h).await], ["a", "b"]);
    h.sim.clear_journal();
    h.clock.advance(Duration::from_mins(121));
    a.fault(Fault::stall(poolgate_sim::Phase::Head)).times(1);
    let body = responses("hi", true);
    let (one, many) = (h.post(CODEX, &body), async {
        assert!(h.sim.wait_for(|all| !all.is_empty(), crate::harness::PATIENCE).await);
        let many = join_all((0..49).map(async |_| h.post(CODEX, &body).await.status)).await;
        // The probe gets no answer: a pause sends it elsewhere.
        h.app.store.pause(h.app.pool.accounts()[0].id).await.unwrap();
        h.app.reload().await.unwrap();
        many
    });
    let (_, many) = futures_util::future::join(one, many).await;
    assert!(many.into_iter().all(|status| status == 200));
    let probes = h.asked().iter().filter(|name| *name == "a").count();
    assert_eq!(probes, 1, "{:?}", h.asked());
    h.finish().await;
}

/// sub2api P19.
#[tokio::test]
async fn sub2api_p19_a_probe_that_finds_the_same_pauses_again() {
    let (h, a, _) = pair(|_| {}).await;
    a.set_used(WEEK, 0.995);
    assert_eq!([who(&h).await, who(&h).await], ["a", "b"]);
    h.clock.advance(Duration::from_mins(121));
    assert_eq!([who(&h).await, who(&h).await], ["a", "b"], "sub2api P10, P19");
    h.finish().await;
}

/// sub2api R9. A family's window is told by name, or by a claim alone.
#[tokio::test]
async fn sub2api_r9_a_model_familys_limit_leaves_other_models_alone() {
    for claimed in [None, Some("seven_day_opus"), Some("seven_day_unheard_of")] {
        let (h, (c, _)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.claude("c"), s.claude("d"))
        })
        .await;
        let at = (h.clock.now().unix_seconds() + 5 * 86_400).to_string();
        let of_window = [("7d_oi-status", "rejected"), ("7d_oi-reset", at.as_str())];
        let claim = [
            ("status", "rejected"),
            ("representative-claim", claimed.unwrap_or_default()),
            ("reset", at.as_str()),
        ];
        let told = if claimed.is_none() { &of_window[..] } else { &claim[..] };
        let name = |name: &str| format!("anthropic-ratelimit-unified-{name}");
        let told: Vec<_> = told.iter().map(|(part, value)| (name(part), *value)).collect();
        let mut headers: Vec<_> =
            told.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        // For as long as the family's window; nobody else has to wait for that.
        headers.push(("retry-after", "432000"));
        let body = r#"{"type":"error","error":{"type":"rate_limit_error","message":"spent"}}"#;
        c.fault(answer(429, &headers, body)).times(1);
        let ask = async |model: &str| {
            let mut body = messages("hi", true);
            body["model"] = model.into();
            assert_eq!(h.post("/v1/messages", &body).await.status, 200, "{model}");
            h.asked().pop().unwrap()
        };
        assert_eq!(ask("claude-opus-5-5").await, "d");
        assert_eq!(ask("claude-opus-5-5").await, "d", "it cools that model there");
        assert_eq!(ask("claude-haiku-4-5").await, "c", "and no other");
        assert_eq!(view(&h, "c").state, "ready");
        h.finish().await;
    }
}
