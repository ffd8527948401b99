//! The real clients through the gateway to the simulator: Codex, Claude Code and the Python SDKs.
//! `make setup` installs them. They run one at a time (`.config/nextest.toml`), because each is a
//! large process and is timed.
//!
//! Each asks once with all accounts well, and again while the first chosen account fails in every
//! listed way. Its own retries are off where they can be, so it cannot notice and recover by itself.

mod app_server;
#[path = "../shared/canary.rs"]
#[expect(dead_code, reason = "the other test binary uses more of it")]
mod canary;
mod drivers;
#[path = "../shared/harness.rs"]
#[expect(dead_code, reason = "the other test binary uses more of it")]
mod harness;
mod long;

use drivers::{Codex, Output, Retries, Sdk, claude_print, codex_exec, codex_signed_in, python_sdk};
use harness::{Harness, Setup};
use poolgate::clock::Clock;
use poolgate_sim::{Account, Fault, Phase};
use serde_json::{Value, json};

/// How the first chosen account is. `None`: well.
const CASES: [(&str, Option<fn() -> Fault>); 5] = [
    ("all well", None),
    ("429 usage_limit_reached", Some(Fault::usage_limit_reached)),
    ("403 forbidden_error", Some(Fault::forbidden_error)),
    ("401", Some(Fault::unauthorized)),
    ("cut before output", Some(Fault::cut_before_output)),
];

const PROMPT: &str = "Say it. [[say=four words of answer]]";
const ANSWER: &str = "four words of answer";

/// Runs `ask` in every case, over two accounts added by `add`.
async fn in_every_case(
    add: impl Fn(&mut Setup, &str) -> Account,
    ask: impl AsyncFn(&Harness) -> Output,
) {
    for (name, fault) in CASES {
        let (h, first) = Harness::start(|s: &mut Setup| {
            s.in_order();
            let first = add(s, "first");
            add(s, "second");
            first
        })
        .await;
        if let Some(fault) = fault {
            first.fault(fault()).forever();
        }
        let output = ask(&h).await;
        assert!(output.status_ok, "{name}: {output:?}");
        assert_eq!(output.stdout.trim(), ANSWER, "{name}: {output:?}");
        let asked = h.asked();
        assert_eq!(asked[0], "first", "{name}: {asked:?}");
        assert_eq!(asked.contains(&"second".to_owned()), fault.is_some(), "{name}: {asked:?}");
        h.outcomes().await;
        let rows = h.rows("SELECT outcome, code FROM requests ORDER BY outcome").await;
        assert_eq!(rows[0], ["complete", "NULL"], "{name}");
        // On a socket, Codex asks in full for a turn whose socket is gone.
        let asked_anew = |row: &Vec<String>| row[1] == "previous_response_not_found";
        assert!(rows[1..].iter().all(asked_anew), "{name}: one request, once: {rows:?}");
        h.finish().await;
    }
}

#[tokio::test]
async fn codex_with_a_custom_provider() {
    in_every_case(Setup::codex, async |h| {
        let base = format!("{}/backend-api/codex", h.url);
        codex_exec(&base, &h.key, Codex::CustomProvider, PROMPT).await
    })
    .await;
}

#[tokio::test]
async fn codex_with_its_built_in_provider() {
    in_every_case(Setup::codex, async |h| {
        codex_exec(&format!("{}/v1", h.url), &h.key, Codex::BuiltIn, PROMPT).await
    })
    .await;
}

/// On its socket: what breaks or runs dry there, behind output too, costs the user nothing.
#[tokio::test]
async fn codex_goes_on_when_its_socket_does_not() {
    let faults: [fn() -> Fault; 5] = [
        || Fault::cut_after_output(2),
        || Fault::close_frame(Phase::Output(1), 1012),
        Fault::connection_limit,
        || Fault::error_frame(Phase::Head, 429, "usage_limit_reached"),
        || Fault::error_event_after_output(1),
    ];
    for fault in faults {
        let (h, (a, _)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.codex("first"), s.codex("second"))
        })
        .await;
        a.fault(fault()).turns().times(1);
        let base = format!("{}/backend-api/codex", h.url);
        let output = codex_exec(&base, &h.key, Codex::Sockets, PROMPT).await;
        let name = format!("{:?}", fault());
        assert_eq!(a.pending_faults(), 0, "{name}: it met it");
        assert!(output.status_ok, "{name}: {output:?}");
        assert_eq!(output.stdout.trim(), ANSWER, "{name}: {output:?}");
        let journal = h.sim.journal();
        assert!(journal.iter().any(poolgate_sim::Entry::is_turn), "{name}: over a socket");
        assert!(!journal.iter().any(|entry| entry.method == "POST"), "{name}: and nowhere else");
        h.finish().await;
    }
}

#[tokio::test]
async fn codex_on_an_api_key() {
    in_every_case(Setup::openai, async |h| {
        codex_exec(&format!("{}/v1", h.url), &h.key, Codex::CustomProvider, PROMPT).await
    })
    .await;
}

#[tokio::test]
async fn claude_code() {
    in_every_case(Setup::claude, async |h| {
        claude_print(&h.url, &h.key, PROMPT, Retries::Off).await
    })
    .await;
}

#[tokio::test]
async fn claude_code_on_an_api_key() {
    in_every_case(Setup::anthropic, async |h| {
        claude_print(&h.url, &h.key, PROMPT, Retries::Off).await
    })
    .await;
}

/// On its own account, and on a subscription: of Codex's own events it knows none.
#[tokio::test]
async fn openai_sdk_socket() {
    for add in [Setup::openai, Setup::codex] {
        let (h, _) = Harness::start(|s: &mut Setup| add(s, "a")).await;
        let v1 = format!("{}/v1", h.url);
        let output = python_sdk(Sdk::OpenAiSocket, &v1, &h.key, PROMPT, false, Retries::Off).await;
        assert!(output.status_ok, "{output:?}");
        assert_eq!(output.stdout.trim(), [ANSWER, ANSWER].join("\n"), "{output:?}");
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 2)]);
        h.finish().await;
    }
}

#[tokio::test]
async fn openai_sdk_responses() {
    for stream in [true, false] {
        in_every_case(Setup::codex, async |h| {
            python_sdk(
                Sdk::OpenAiResponses,
                &format!("{}/v1", h.url),
                &h.key,
                PROMPT,
                stream,
                Retries::Off,
            )
            .await
        })
        .await;
    }
}

#[tokio::test]
async fn openai_sdk_chat() {
    for stream in [true, false] {
        in_every_case(Setup::openai, async |h| {
            python_sdk(
                Sdk::OpenAiChat,
                &format!("{}/v1", h.url),
                &h.key,
                PROMPT,
                stream,
                Retries::Off,
            )
            .await
        })
        .await;
    }
}

#[tokio::test]
async fn anthropic_sdk() {
    for stream in [true, false] {
        in_every_case(Setup::claude, async |h| {
            python_sdk(Sdk::AnthropicMessages, &h.url, &h.key, PROMPT, stream, Retries::Off).await
        })
        .await;
    }
}

/// The Codex CLI and poolgate use one sign-in file. It has no lock; each finds what the other wrote.
/// The issuer gives a refresh token one use, and whoever uses one twice ends the sign-in.
#[tokio::test]
async fn codex_and_poolgate_share_a_sign_in_through_twenty_expiries() {
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    a.revoke_on_reuse();
    let home = setup.dir.path().join("codex");
    std::fs::create_dir(&home).unwrap();
    let file = home.join("auth.json");
    poolgate::files::create_private(&file, a.auth_json().as_bytes()).unwrap();
    setup.settings("a").auth_file = Some(file.clone());
    // It wants an https origin here, and does not use it while its models are at another one.
    let workspace = json!({"id": a.account_id(), "plan_type": "plus", "structure": "personal",
        "name": "a", "workspace_backend_origin": "https://chatgpt.com",
        "account_routing_override": "NO_CONSTRAINT"});
    let check = json!({"accounts": [workspace], "default_account_id": a.account_id(),
        "account_ordering": [a.account_id()]});
    let fault = Fault::status(200, &check.to_string());
    a.fault(fault).on("/backend-api/wham/accounts/check").forever();
    let h = setup.start().await;
    let codex = async || {
        let output = codex_signed_in(&home, &h.sim.url(), PROMPT).await;
        assert!(output.status_ok && output.stdout.trim() == ANSWER, "{output:?}");
    };
    let poolgate = async || {
        let content = json!([{"type": "input_text", "text": "hi"}]);
        let input = json!([{"type": "message", "role": "user", "content": content}]);
        let body = json!({"model": "gpt-5.5", "stream": true, "store": false, "input": input});
        let answer = h.post("/v1/responses", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    for round in 0..20 {
        h.sim.clear_journal();
        a.expire_access_token();
        if round % 2 == 0 {
            codex().await;
            poolgate().await;
        } else {
            poolgate().await;
            codex().await;
        }
        let renewed: Vec<(bool, Option<u16>)> = h
            .sim
            .journal()
            .iter()
            .filter(|entry| entry.path == "/oauth/token")
            .map(|entry| {
                let by = entry.header("user-agent").unwrap_or_default();
                (by.starts_with("poolgate/"), entry.status)
            })
            .collect();
        let by_poolgate = round % 2 == 1;
        let good = renewed.iter().all(|call| *call == (by_poolgate, Some(200)));
        // Of several requests that Codex makes at a time, each may renew.
        let once = renewed.len() == 1 || (!by_poolgate && !renewed.is_empty());
        assert!(good && once, "round {round}: by poolgate, status: {renewed:?}");
        let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(document["tokens"]["refresh_token"], a.refresh_token(), "round {round}");
    }
    assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].state, "ready");
    h.finish().await;
}

/// A pool that is spent is told to Codex in its own terms: it stops at once and shows the time.
#[tokio::test]
async fn codex_shows_when_a_spent_pool_resets() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    let base = format!("{}/backend-api/codex", h.url);
    let output = codex_exec(&base, &h.key, Codex::BuiltIn, PROMPT).await;
    assert!(!output.status_ok);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("hit your usage limit") && said.contains("ry again at"), "{output:?}");
    assert!(h.asked().len() <= 1, "it stopped at once: {:?}", h.asked());
    h.finish().await;
}

/// Claude Code stops without retrying, though it may, and prints our message with the time.
#[tokio::test]
async fn claude_code_shows_when_a_spent_pool_resets() {
    let (h, c) = Harness::start(|s: &mut Setup| s.claude("c")).await;
    c.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    let output = claude_print(&h.url, &h.key, PROMPT, Retries::AsUsual).await;
    assert!(!output.status_ok);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains(" UTC"), "{output:?}");
    assert_eq!(h.outcomes().await, [("refused".to_owned(), 1)], "it asked once: {output:?}");
    h.finish().await;
}

/// A reset hours away must not put an SDK to sleep until then.
#[tokio::test]
async fn sdks_fail_at_once_when_a_pool_is_spent_for_hours() {
    let (h, spent) =
        Harness::start(|s: &mut Setup| [s.codex("a"), s.openai("b"), s.claude("c")]).await;
    for account in spent {
        account.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    }
    let v1 = format!("{}/v1", h.url);
    let sdks =
        [(Sdk::OpenAiResponses, &v1), (Sdk::OpenAiChat, &v1), (Sdk::AnthropicMessages, &h.url)];
    for (n, (sdk, base)) in sdks.into_iter().enumerate() {
        let output = python_sdk(sdk, base, &h.key, PROMPT, true, Retries::AsUsual).await;
        assert!(!output.status_ok && !output.stderr.contains("killed after"), "{output:?}");
        assert!(output.stderr.contains("Error code: "), "{output:?}");
        let asked = i64::try_from(n + 1).unwrap();
        assert_eq!(h.outcomes().await, [("refused".to_owned(), asked)], "once: {output:?}");
    }
    h.finish().await;
}
