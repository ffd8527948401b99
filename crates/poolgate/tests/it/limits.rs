//! What clients are told of limits: the pool's, never one account's.

use std::time::Duration;

use futures_util::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use poolgate::store::KeyLimits;
use poolgate_core::units::Timestamp;
use poolgate_sim::{Account, Fault};
use serde_json::{Value, json};

use crate::harness::{Answer, Harness, PATIENCE, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::Client;

const FIVE_HOURS: Duration = Duration::from_hours(5);
const WEEK: Duration = Duration::from_hours(168);

/// Both windows, hardly moved by what is asked here; resets in 1 hour and in 100.
fn spend(account: &Account, five_hour: f64, weekly: f64) {
    account.window(FIVE_HOURS, 1e9, five_hour * 1e7, Duration::from_hours(1));
    account.window(WEEK, 1e9, weekly * 1e7, Duration::from_hours(100));
}

/// Two accounts of each subscription, in turns, whose caps are their windows: the first has spent
/// 20 and 30 percent, the second 60 and 70. All have been asked once.
async fn pool() -> (Harness, [Account; 4]) {
    pool_and(|_| ()).await
}

async fn pool_and(more: impl FnOnce(&mut Setup)) -> (Harness, [Account; 4]) {
    let (h, accounts) = Harness::start(|s: &mut Setup| {
        s.pool("default", &[], "round-robin");
        let accounts = [s.codex("a"), s.codex("b"), s.claude("c"), s.claude("d")];
        for (account, name) in accounts.iter().zip(["a", "b", "c", "d"]) {
            let settings = s.settings(name);
            (settings.limit_5h, settings.limit_weekly) = (Some(100), Some(100));
            settings.plan_weight = Some(1.0);
            let first = matches!(name, "a" | "c");
            if first { spend(account, 20.0, 30.0) } else { spend(account, 60.0, 70.0) }
        }
        more(s);
        accounts
    })
    .await;
    ask_all(&h).await;
    (h, accounts)
}

/// A round of as many turns as there are accounts.
async fn ask_all(h: &Harness) {
    for (path, body) in [(CODEX, responses("hi", true)), ("/v1/messages", messages("hi", true))] {
        for _ in 0..4 {
            assert_eq!(h.post(path, &body).await.status, 200);
        }
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

/// Names of one provider's limit headers.
fn names(answer: &Answer, prefix: &str) -> Vec<String> {
    let all = answer.headers.keys().map(http::HeaderName::as_str);
    let mut names: Vec<_> = all.filter(|n| n.starts_with(prefix)).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// multiplexer 18.5 #55, #56.
#[tokio::test]
async fn multiplexer_18_5_55_whoever_answers_the_headers_are_the_pools() {
    let (h, _) = pool().await;
    for path in [CODEX, "/v1/responses", CODEX, "/v1/responses"] {
        let got = h.post(path, &responses("hi", true)).await;
        let used = ["primary", "secondary"]
            .map(|window| header(&got, &format!("x-codex-{window}-used-percent")));
        assert_eq!(used, [Some("40.00"), Some("50.00")]);
        assert_eq!(header(&got, "x-codex-secondary-window-minutes"), Some("10080"));
        let reset = header(&got, "x-codex-primary-reset-at").unwrap().parse::<i64>().unwrap();
        assert!((3590..=3601).contains(&(reset - h.app.clock.now().unix_seconds())), "{reset}");
        let want = [
            "x-codex-plan-type",
            "x-codex-primary-reset-at",
            "x-codex-primary-used-percent",
            "x-codex-primary-window-minutes",
            "x-codex-secondary-reset-at",
            "x-codex-secondary-used-percent",
            "x-codex-secondary-window-minutes",
            "x-codex-turn-state",
        ];
        assert_eq!(names(&got, "x-codex-"), want);
    }
    for _ in 0..2 {
        let got = h.post("/v1/messages", &messages("hi", true)).await;
        let unified =
            |name: &str| header(&got, &format!("anthropic-ratelimit-unified-{name}")).unwrap();
        assert_eq!(unified("5h-utilization"), "0.400000");
        assert_eq!(unified("7d-utilization"), "0.500000");
        assert_eq!(unified("status"), "allowed_warning");
        assert_eq!(unified("representative-claim"), "seven_day");
        assert_eq!(unified("reset"), unified("7d-reset"));
        assert_eq!(names(&got, "x-codex-"), [""; 0]);
    }
    h.finish().await;
}

/// multiplexer 18.5 #52.
#[tokio::test]
async fn multiplexer_18_5_52_an_account_that_is_out_counts_no_more() {
    let (h, _) = pool().await;
    let id = h.app.pool.accounts().iter().find(|account| account.name == "b").unwrap().id;
    h.app.store.pause(id).await.unwrap();
    h.app.reload().await.unwrap();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(header(&got, "x-codex-primary-used-percent"), Some("20.00"));
    h.finish().await;
}

/// With two decimals, wherever there are fewer too.
fn used(told: &Value, windows: [&str; 2]) -> [String; 2] {
    windows.map(|window| format!("{:.2}", told[window]["used_percent"].as_f64().unwrap()))
}

/// spec §8: per client key, in each place where limits are told.
#[tokio::test]
async fn each_key_is_told_of_its_own_pools() {
    let (h, _) = pool_and(|s| {
        s.pool("first", &["a", "c"], "fallback");
        s.pool("second", &["b", "d"], "fallback");
    })
    .await;
    for (pools, five_hour, weekly) in [
        (&["first"][..], 20.0, 30.0),
        (&["second"], 60.0, 70.0),
        (&["second", "first"], 40.0, 50.0),
    ] {
        let key = h.new_key(&pools.concat(), pools, &[]).await;
        let bearer = format!("Bearer {key}");
        let as_this = [("authorization", bearer.as_str())];
        let post = async |path, body: Value| {
            h.send(Method::POST, path, &as_this, body.to_string().into()).await
        };
        let get = async |path| h.send(Method::GET, path, &as_this, "".into()).await.json();

        let got = post(CODEX, responses("hi", true)).await;
        let told = ["primary", "secondary"]
            .map(|window| header(&got, &format!("x-codex-{window}-used-percent")));
        let decimals = [five_hour, weekly].map(|percent| format!("{percent:.2}"));
        assert_eq!(told.map(Option::unwrap), decimals, "{pools:?}");
        let got = post("/v1/messages", messages("hi", true)).await;
        let told = ["5h", "7d"].map(|window| {
            header(&got, &format!("anthropic-ratelimit-unified-{window}-utilization"))
        });
        let shares = [five_hour, weekly].map(|percent| format!("{:.6}", percent / 100.0));
        assert_eq!(told.map(Option::unwrap), shares, "{pools:?}");

        for path in ["/api/codex/usage", "/backend-api/wham/usage"] {
            let told = used(&get(path).await["rate_limit"], ["primary_window", "secondary_window"]);
            assert_eq!(told, decimals, "{pools:?}, {path}");
        }
        let status = get("/v1/pool/status").await;
        for provider in ["codex", "claude"] {
            let told = used(&status[provider], ["five_hour", "weekly"]);
            assert_eq!(told, decimals, "{pools:?}, {provider}");
        }
        assert_eq!(get("/v1/usage").await["pool"], status, "{pools:?}");

        let mut client = Client::at(&h.url, &key).await;
        let event = client.next().await.unwrap().unwrap();
        let told = used(&event["rate_limits"], ["primary", "secondary"]);
        assert_eq!(told, decimals, "{pools:?}: {event}");
        let told = ["primary", "secondary"]
            .map(|window| client.head[&format!("x-codex-{window}-used-percent")].to_str().unwrap());
        assert_eq!(told, decimals, "{pools:?}: in the handshake");
    }
    h.finish().await;
}

/// spec §8: who may not serve a key is none of its pool.
#[tokio::test]
async fn each_key_is_told_of_accounts_that_have_its_models() {
    let (h, _) = pool_and(|s| {
        s.settings("a").models = vec!["gpt-5.5".into(), "o3*".into()];
        s.settings("b").models = vec!["gpt-*".into()];
    })
    .await;
    for (models, five_hour) in
        [(&["o3-mini"][..], "20.00"), (&["gpt-4*"], "60.00"), (&["*"], "40.00"), (&[], "40.00")]
    {
        let bearer = format!("Bearer {}", h.new_key(&models.concat(), &[], models).await);
        let as_this = [("authorization", bearer.as_str())];
        let status = h.send(Method::GET, "/v1/pool/status", &as_this, "".into()).await.json();
        assert_eq!(used(&status["codex"], ["five_hour"; 2])[0], five_hour, "{models:?}");
    }
    h.finish().await;
}

#[tokio::test]
async fn accounts_without_windows_tell_no_limits() {
    let (h, _) = Harness::start(|s: &mut Setup| (s.openai("a"), s.anthropic("b"))).await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert_eq!((names(&got, "x-codex-"), names(&got, "x-ocm-")), (vec![], vec![]));
    let got = h.post("/v1/messages", &messages("hi", true)).await;
    assert_eq!(names(&got, "anthropic-ratelimit"), [""; 0]);
    let usage = h.get("/api/codex/usage", &[]).await.json();
    assert_eq!(usage["rate_limit"], Value::Null);
    assert_eq!(h.get("/v1/pool/status", &[]).await.json(), json!({"codex": null, "claude": null}));
    h.finish().await;
}

/// multiplexer 18.4 #43, over HTTP.
#[tokio::test]
async fn multiplexer_18_4_43_an_accounts_event_becomes_the_pools_at_its_place() {
    let (h, accounts) = pool().await;
    let plain = h.direct(&accounts[0], CODEX, &[], &responses("hi", true)).await.text();
    let told = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\",\"rate_limits\":\
                {\"primary\":{\"used_percent\":80.0,\"window_minutes\":300}}}\n\n";
    let end = "event: response.completed";
    let (before, after) = plain.split_once(end).unwrap();
    let body = format!("{before}{told}{end}{after}");
    let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
    for account in &accounts[..2] {
        let (headers, body) = (headers.clone(), body.clone());
        account.fault(Fault::Status { status: 200, headers, body }).forever();
    }
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.text(), plain);
    // Both have said 80 percent now: nothing changes, and all the same it is told.
    for _ in 0..2 {
        let got = h.post(CODEX, &responses("hi", true)).await.text();
        let rest = got.strip_prefix(before).unwrap().strip_suffix(after).unwrap();
        let event = rest.strip_prefix("event: codex.rate_limits\ndata: ").unwrap();
        let event: Value = serde_json::from_str(event.lines().next().unwrap()).unwrap();
        assert_eq!(event["limit_name"], "codex");
        let used = |window: &str| event["rate_limits"][window]["used_percent"].clone();
        assert_eq!(used("secondary"), json!(50.0), "{event}");
        assert!(used("primary") == json!(70.0) || used("primary") == json!(80.0), "{event}");
    }
    h.finish().await;
}

/// The same where the account is another gateway's backend, which is not of the kind that has limits.
#[tokio::test]
async fn another_gateways_limits_reach_no_client() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        let b = s.openai("b");
        let settings = s.settings("b");
        (settings.kind, settings.priority) = ("compatible".into(), Some(0));
        (s.codex("a"), b)
    })
    .await;
    spend(&a, 20.0, 30.0);
    b.fault(Fault::server_error(500)).times(2);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["b", "b", "a"], "the windows of a are known");
    let told = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\",\"rate_limits\":\
                {\"primary\":{\"used_percent\":81.5,\"window_minutes\":300}}}\n\n";
    let plain = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n\
                 event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"output\":[]}}\n\n";
    let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
    let body = format!("{told}{plain}");
    b.fault(Fault::Status { status: 200, headers, body }).forever();
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.text(), plain);
    let got = h.post(CODEX, &responses("hi", true)).await.text();
    let event = got.strip_suffix(plain).unwrap().strip_prefix("event: codex.rate_limits\ndata: ");
    let event: Value = serde_json::from_str(event.unwrap()).unwrap();
    assert_eq!(
        event["rate_limits"]["primary"]["used_percent"],
        json!(20.2),
        "the pool's, of what its cap allows"
    );
    h.finish().await;
}

/// spec §8, wire §3: nor do its errors, behind output or before it, whatever the client is and wherever
/// the figures stand.
#[tokio::test]
async fn an_accounts_error_tells_the_pools_limits() {
    let (h, accounts) = pool().await;
    let error = json!({"code": "context_length_exceeded", "message": "too long", "plan_type": "odd",
        "resets_at": 1_795_555_555, "resets_in_seconds": 98_765});
    let headers = json!({"x-codex-credits-balance": "98765", "x-codex-plan-type": "odd"});
    let response = json!({"id": "r", "status": "failed", "error": error, "headers": headers});
    let failed = json!({"type": "response.failed", "response": response});
    let bare = json!({"type": "error", "error": error, "headers": headers, "plan_type": "odd"});
    let told = json!({"code": "context_length_exceeded", "message": "too long"});
    let created = json!({"type": "response.created", "response": {"id": "r"}});
    let text = json!({"type": "response.output_text.delta", "delta": "a"});
    let fail = |answer: Fault| {
        for account in &accounts[..2] {
            account.fault(answer.clone()).times(1);
        }
    };
    let status = |status, kind: &str, body: String| {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Fault::Status { status, headers, body }
    };
    for path in [CODEX, "/v1/responses"] {
        for (failure, at) in [(&failed, "/response"), (&bare, "")] {
            for output in [&[][..], std::slice::from_ref(&text)] {
                let events =
                    [std::slice::from_ref(&created), output, std::slice::from_ref(failure)]
                        .concat();
                let body = events.iter().map(|event| format!("data: {event}\n\n"));
                let answer = status(200, "text/event-stream", body.collect());
                fail(answer.clone());
                let got = h.post(path, &responses("hi", true)).await.text();
                let last = got.lines().rfind(|line| line.starts_with("data: ")).unwrap();
                let last: Value = serde_json::from_str(&last[6..]).unwrap();
                assert_eq!(last.pointer(&format!("{at}/error")), Some(&told), "{path}: {got}");
                let headers = last.pointer(&format!("{at}/headers")).unwrap();
                assert_eq!(headers["x-codex-primary-used-percent"], "40.00", "{path}: {got}");
                assert!(!got.contains("98765") && !got.contains("odd"), "{path}: {got}");
                h.post(path, &responses("the other's", true)).await;

                fail(answer);
                let whole = h.post(path, &responses("hi", false)).await.text();
                assert!(whole.contains("too long") && !whole.contains("odd"), "{path}: {whole}");
                h.post(path, &responses("the other's", false)).await;
            }
        }
        fail(status(400, "application/json", json!({"error": error}).to_string()));
        let got = h.post(path, &responses("hi", true)).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]), (400, &told), "{path}");
        h.post(path, &responses("the other's", true)).await;
    }
    let compact = "/backend-api/codex/responses/compact";
    fail(status(200, "application/json", json!({"error": error, "plan_type": "odd"}).to_string()));
    let got = h.post(compact, &responses("hi", false)).await.text();
    assert!(got.contains("too long") && !got.contains("odd"), "{got}");
    h.finish().await;
}

/// Nobody can tell which of two is read, so that nothing can be cut out; but what was understood is told.
#[tokio::test]
async fn an_error_that_says_something_twice_is_told_in_its_words() {
    let (h, accounts) = pool().await;
    let error = r#"{"code":"context_length_exceeded","message":"too long","plan_type":"odd"}"#;
    let twice = format!(r#"{{"error":{error},"error":{error}}}"#);
    let delta = r#"data: {"type":"response.output_text.delta","delta":"a"}"#;
    let stream = |failure: &str| format!("{delta}\n\ndata: {failure}\n\n");
    let failed = format!(r#"{{"type":"response.failed","response":{twice}}}"#);
    let bare = twice.replacen('{', r#"{"type":"error","#, 1);
    for path in [CODEX, "/v1/responses"] {
        for (code, kind, body, at) in [
            (400, "application/json", twice.clone(), "/error"),
            (200, "text/event-stream", stream(&failed), "/response/error"),
            (200, "text/event-stream", stream(&bare), "/error"),
        ] {
            let headers = vec![("content-type".to_owned(), kind.to_owned())];
            for account in &accounts[..2] {
                let (headers, body) = (headers.clone(), body.clone());
                account.fault(Fault::Status { status: code, headers, body }).times(1);
            }
            let got = h.post(path, &responses("hi", true)).await;
            let text = got.text();
            let last = text.lines().rfind(|line| !line.is_empty()).unwrap();
            let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).unwrap();
            let told = last.pointer(at).unwrap();
            assert_eq!((got.status.as_u16(), &told["message"]), (code, &json!("too long")));
            assert_eq!(told["code"], "context_length_exceeded", "{path}: {text}");
            assert!(!text.contains("odd"), "{path}: {text}");
            h.post(path, &responses("the other's", true)).await;
        }
    }
    h.finish().await;
}

#[tokio::test]
async fn who_asks_is_told_the_pools_limits() {
    let (h, _) = pool().await;
    for path in ["/backend-api/wham/usage", "/api/codex/usage"] {
        let usage = h.get(path, &[]).await.json();
        let window = &usage["rate_limit"]["secondary_window"];
        assert_eq!(
            (&window["used_percent"], &window["limit_window_seconds"]),
            (&json!(50), &json!(604_800))
        );
        assert_eq!(usage["rate_limit"]["allowed"], true);
        let text = usage.to_string();
        assert!(!text.contains("account_id") && !text.contains("email"), "{text}");
    }
    let status = h.get("/v1/pool/status", &[]).await.json();
    assert_eq!(status["codex"]["five_hour"]["used_percent"], 40.0);
    assert_eq!(status["claude"]["weekly"]["used_percent"], 50.0);
    assert_eq!(status["claude"]["plan_weight"], 2.0);
    assert_eq!(h.send(Method::GET, "/v1/pool/status", &[], "".into()).await.status, 401);

    h.outcomes().await;
    let usage = h.get("/v1/usage", &[]).await.json();
    let day = &usage["used"][0];
    assert_eq!(
        (&day["period"], &day["requests"], &day["refused"]),
        (&json!("day"), &json!(8), &json!(0))
    );
    assert!(day["output_tokens"].as_i64().unwrap() > 0);
    assert_eq!(usage["pool"], status);
    let other = h.new_key("other", &[], &[]).await;
    let got = h.send(Method::GET, "/v1/usage", &[("x-api-key", &other)], "".into()).await.json();
    assert_eq!((&got["key"], &got["used"][2]["requests"]), (&json!("other"), &json!(0)));
    assert_eq!(got["limits"], json!([]));
    let limits = KeyLimits { concurrency: Some(2), requests_per_minute: Some(5) };
    let limited = h.limited_key("limited", limits).await;
    let bearer = format!("Bearer {limited}");
    let headers = [("authorization", bearer.as_str())];
    let got = h.send(Method::POST, CODEX, &headers, responses("hi", true).to_string().into()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let got = h.send(Method::GET, "/v1/usage", &headers, "".into()).await.json();
    let rate = json!({"limit": "requests_per_minute", "max": 5, "used": 1});
    assert_eq!(got["limits"], json!([{"limit": "concurrency", "max": 2, "used": 0}, rate]));
    h.clock.advance(Duration::from_hours(48));
    let usage = h.get("/v1/usage", &[]).await.json();
    let requests: Vec<&Value> =
        usage["used"].as_array().unwrap().iter().map(|p| &p["requests"]).collect();
    assert_eq!(requests, [0, 8, 8], "day, week, month");
    h.finish().await;
}

/// The next line of a watched status; `None`: it has ended.
async fn line(body: &mut Incoming) -> Option<Value> {
    let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("in time")?;
    let data = frame.unwrap().into_data().unwrap();
    assert_eq!(data.last(), Some(&b'\n'), "a frame is a line");
    Some(serde_json::from_slice(&data).unwrap())
}

/// multiplexer 18.4 #45: a change is told, a reset's too, and nothing else.
#[tokio::test]
async fn multiplexer_18_4_45_watchers_hear_of_each_change() {
    let (h, accounts) = pool().await;
    let bearer = format!("Bearer {}", h.key);
    let url = format!("{}/v1/pool/status?watch=true", h.url);
    let watch = async || {
        let headers = [("authorization", bearer.as_str())];
        let got = h.request(Method::GET, &url, &headers, "".into()).await;
        assert_eq!(got.headers()["content-type"], "application/x-ndjson");
        got.into_body()
    };
    let (mut one, mut other) = (watch().await, watch().await);
    for body in [&mut one, &mut other] {
        assert_eq!(line(body).await.unwrap()["codex"]["five_hour"]["used_percent"], 40.0);
    }
    spend(&accounts[0], 40.0, 30.0);
    spend(&accounts[1], 60.0, 70.0);
    ask_all(&h).await;
    let mut told = line(&mut one).await.unwrap();
    while told["codex"]["five_hour"]["used_percent"] != 50.0 {
        told = line(&mut one).await.unwrap();
    }
    let reset = told["codex"]["five_hour"]["resets_at"].as_i64().unwrap();
    for account in &accounts[..2] {
        account.window(FIVE_HOURS, 1e9, 5e8, Duration::from_hours(3));
    }
    ask_all(&h).await;
    let later = |told: &Value| told["codex"]["five_hour"]["resets_at"].as_i64().unwrap() - reset;
    while later(&told) < 7100 {
        told = line(&mut one).await.unwrap();
    }
    drop(other);
    h.app.store.revoke_client_key("test", Timestamp(1)).await.unwrap();
    h.app.reload().await.unwrap();
    assert_eq!(line(&mut one).await, None, "a revoked key hears nothing more");
    h.finish().await;
}

/// multiplexer 18.4 #45: nothing changed, nothing is told, though both are looked after every second or
/// more often, and somebody is served meanwhile; a reset that has moved is told to both.
#[tokio::test]
async fn multiplexer_18_4_45_who_hears_of_changes_hears_of_nothing_else() {
    let (h, accounts) = pool().await;
    let mut client = Client::open(&h).await;
    let bearer = format!("Bearer {}", h.key);
    let url = format!("{}/v1/pool/status?watch=true", h.url);
    let headers = [("authorization", bearer.as_str())];
    let mut watched = h.request(Method::GET, &url, &headers, "".into()).await.into_body();
    let event = client.next().await.unwrap().unwrap();
    let told = event["rate_limits"]["primary"].clone();
    assert_eq!(told["used_percent"], 40.0);
    assert_eq!(line(&mut watched).await.unwrap()["codex"]["five_hour"]["used_percent"], 40.0);

    let silence = Duration::from_millis(2500);
    let (socket, status, ()) = tokio::join!(
        tokio::time::timeout(silence, client.socket.next()),
        tokio::time::timeout(silence, watched.frame()),
        ask_all(&h),
    );
    assert!(socket.is_err(), "the socket: {socket:?}");
    assert!(status.is_err(), "the watcher: {status:?}");

    for account in &accounts[..2] {
        let used = account.used(FIVE_HOURS).unwrap() * 1e9;
        account.window(FIVE_HOURS, 1e9, used, Duration::from_hours(3));
    }
    ask_all(&h).await;
    let was = told["reset_at"].as_i64().unwrap();
    let mut reset = was;
    while reset - was < 7100 {
        // The first account's is told by itself, maybe.
        let event = client.next().await.unwrap().unwrap();
        let told = &event["rate_limits"]["primary"];
        assert_eq!(told["used_percent"], 40.0);
        reset = told["reset_at"].as_i64().unwrap();
    }
    while line(&mut watched).await.unwrap()["codex"]["five_hour"]["resets_at"] != reset {}
    drop((client, watched));
    h.finish().await;
}

#[tokio::test]
async fn a_spent_pool_says_so_with_its_own_figures() {
    let (h, accounts) = pool().await;
    for account in &accounts {
        account.window(FIVE_HOURS, 100.0, 100.0, Duration::from_hours(2));
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.code()), (429, "usage_limit_reached"));
    assert_eq!(got.json()["error"]["plan_type"], "plus");
    assert_eq!(header(&got, "x-codex-primary-used-percent"), Some("100.00"));
    let reset = header(&got, "x-codex-primary-reset-at").unwrap();
    assert_eq!(got.json()["error"]["resets_at"].to_string(), reset);
    let got = h.post("/v1/messages", &messages("hi", true)).await;
    assert_eq!(header(&got, "anthropic-ratelimit-unified-status"), Some("rejected"));
    assert_eq!(header(&got, "anthropic-ratelimit-unified-5h-utilization"), Some("1.000000"));
    h.finish().await;
}

/// spec §6: also when each account is at its cap in another window.
#[tokio::test]
async fn a_pool_that_is_spent_here_and_there_is_spent() {
    let (h, [a, b, c, d]) = pool_and(|s| {
        for name in ["a", "b", "c", "d"] {
            s.settings(name).limit_5h = Some(80);
            s.settings(name).limit_weekly = Some(80);
        }
    })
    .await;
    for (account, length) in [(a, FIVE_HOURS), (b, WEEK), (c, FIVE_HOURS), (d, WEEK)] {
        account.window(length, 1e9, 9e8, Duration::from_hours(2));
    }
    for (path, body) in [(CODEX, responses("hi", true)), ("/v1/messages", messages("hi", true))] {
        for status in [200, 200, 429] {
            assert_eq!(h.post(path, &body).await.status, status, "{path}");
        }
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.code(), "usage_limit_reached");
    let told = ["primary", "secondary"].map(|w| header(&got, &format!("x-codex-{w}-used-percent")));
    assert_eq!(told, [Some("87.50"), Some("68.75")], "the means of 100 and 75, of 37.5 and 100");
    let usage = h.get("/backend-api/wham/usage", &[]).await.json();
    let [allowed, reached] = ["allowed", "limit_reached"].map(|name| &usage["rate_limit"][name]);
    assert_eq!((allowed, reached), (&json!(false), &json!(true)));
    let got = h.post("/v1/messages", &messages("hi", true)).await;
    let unified = |name: &str| header(&got, &format!("anthropic-ratelimit-unified-{name}"));
    assert_eq!(
        (unified("status"), unified("5h-utilization")),
        (Some("rejected"), Some("0.875000"))
    );
    assert!(unified("representative-claim").is_some());
    h.finish().await;
}
