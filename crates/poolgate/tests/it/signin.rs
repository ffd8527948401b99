//! Signing in by the command line: the real binary, a browser made of plain requests, and a gateway
//! that runs on the same data.

mod import;
mod login;

use std::path::{Path, PathBuf};

use http::Method;
use poolgate::clock::Clock;
use poolgate_sim::{Account, DevicePoll, Fault, Kind};
use serde_json::Value;
use tokio::process::Command;

use crate::cli::run;
use crate::harness::{Answer, Harness, PATIENCE, Setup, collect};
use crate::requests::{CODEX, messages, responses};
use login::Login;

fn data(h: &Harness) -> PathBuf {
    h.dir.path().join("data")
}

/// Where the account's provider is.
fn places(account: &Account) -> [String; 4] {
    let url = account.url();
    let (token, base) = match account.kind() {
        Kind::Codex => ("/oauth/token", "/backend-api/codex"),
        _ => ("/v1/oauth/token", ""),
    };
    ["--token-url".into(), url.clone() + token, "--base-url".into(), url + base]
}

async fn get(h: &Harness, url: &str) -> Answer {
    let answer = h.request(Method::GET, url, &[], bytes::Bytes::new()).await;
    tokio::time::timeout(PATIENCE, collect(answer)).await.expect("a page")
}

/// Where the sign-in page sends the browser.
async fn back(h: &Harness, url: &str) -> String {
    let page = get(h, url).await;
    assert_eq!(page.status, 302, "{}", page.text());
    page.headers["location"].to_str().unwrap().to_owned()
}

/// What a person copies from the vendor's own page.
async fn code_shown(h: &Harness, url: &str) -> String {
    let page = get(h, &back(h, url).await).await.text();
    page.split(['<', '>']).find(|part| part.contains('#')).unwrap().to_owned()
}

async fn accounts(data: &Path) -> Value {
    let output = run(data, &["account", "list", "--json"], "").await;
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {what}"));
}

async fn served(h: &Harness, kind: Kind) -> bool {
    let answer = match kind {
        Kind::Codex => h.post(CODEX, &responses("hi", true)).await,
        _ => h.post("/v1/messages", &messages("hi", true)).await,
    };
    answer.status == 200
}

fn state(h: &Harness, name: &str) -> String {
    let view = h.app.pool.view(h.clock.now());
    view.accounts.into_iter().find(|account| account.name == name).expect("it is there").state
}

/// None of the account's secrets stands in this text.
fn holds_no_secret(text: &str, account: &Account) {
    for secret in [account.credential(), account.refresh_token()] {
        assert!(!text.contains(&secret), "{text}");
    }
}

async fn sign_in(h: &Harness, args: &[&str]) -> (bool, String) {
    let login = Login::with_browser(&data(h), args).await;
    let url = back(h, &login.url).await;
    get(h, &url).await;
    login.end().await
}

fn with_places<'a>(args: &[&'a str], places: &'a [String; 4]) -> Vec<&'a str> {
    args.iter().copied().chain(places.iter().map(String::as_str)).collect()
}

#[tokio::test]
async fn a_browser_that_comes_back_adds_an_account_that_serves() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    let places = places(&a);
    let args = with_places(&["codex", "--name", "mine", "--priority", "3"], &places);
    let login = Login::with_browser(&data(&h), &args).await;
    let url = back(&h, &login.url).await;
    let (callback, _) = url.split_once('?').unwrap();

    // Any page in the browser can knock; only who knows the state is heard.
    let strangers = ["?code=x&state=y", "?error=access_denied", "?error=access_denied&state=y", ""];
    for query in strangers {
        let page = get(&h, &format!("{callback}{query}")).await;
        assert_eq!(page.status, 400, "{query}: {}", page.text());
    }
    let root = callback.strip_suffix("/auth/callback").unwrap();
    assert_eq!(get(&h, &format!("{root}/favicon.ico")).await.status, 404);
    assert_eq!(get(&h, &format!("{root}/cancel")).await.status, 404);

    let page = get(&h, &url).await;
    assert!(page.status == 200 && page.text().contains("signed in"), "{}", page.text());
    let (ok, said) = login.end().await;
    assert!(ok && said.contains("signed in as a@example.invalid; added mine"), "{said}");
    holds_no_secret(&said, &a);
    until("served", async || served(&h, Kind::Codex).await).await;
    assert_eq!(accounts(&data(&h)).await[0]["credential"], "stored");
    let settings = h.rows("SELECT settings FROM accounts").await;
    assert!(settings[0][0].contains(r#""priority":3"#), "{settings:?}");
    h.finish().await;
}

#[tokio::test]
async fn what_the_browser_shows_may_be_pasted_instead() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.sim.codex("a"), s.sim.claude("c"))).await;
    let places_of = [places(&a), places(&c)];
    let args = with_places(&["codex"], &places_of[0]);
    let mut login = Login::with_browser(&data(&h), &args).await;
    let url = back(&h, &login.url).await;
    let (_, query) = url.split_once('?').unwrap();
    login.paste("").await;
    login.paste("what?").await;
    let other = query.replace("state=", "state=x");
    login.paste(&format!("http://localhost:1455/auth/callback?{other}")).await;
    login.paste(&url).await;
    let (ok, said) = login.end().await;
    assert!(ok && said.contains("added codex"), "{said}");
    assert!(said.contains("no callback") && said.contains("another sign-in"), "{said}");

    let args = with_places(&["claude", "--name", "max"], &places_of[1]);
    let mut login = Login::with_browser(&data(&h), &args).await;
    let code = code_shown(&h, &login.url).await;
    login.paste(code.split('#').next().unwrap()).await;
    login.paste(&code).await;
    let (ok, said) = login.end().await;
    assert!(ok && said.contains("signed in as c@example.invalid; added max"), "{said}");
    assert!(said.contains("only a part"), "a code without its state: {said}");
    for (kind, account) in [(Kind::Codex, a), (Kind::Claude, c)] {
        holds_no_secret(&said, &account);
        until("served", async || served(&h, kind).await).await;
    }
    h.finish().await;
}

/// A browser on this machine need not paste Claude's code: it is sent back here.
#[tokio::test]
async fn claude_comes_back_to_this_machine_too() {
    let (h, c) = Harness::start(|s: &mut Setup| s.sim.claude("c")).await;
    let places = places(&c);
    let args = with_places(&["claude", "--json", "--callback-port", "0"], &places);
    let mut login = Login::start_silently(&data(&h), &args);
    let line = login.line(|line| line.starts_with('{')).await;
    let asked: Value = serde_json::from_str(&line).unwrap();
    assert!(asked["open"].as_str().unwrap().contains("oauth%2Fcode%2Fcallback"), "{asked}");
    let url = back(&h, asked["open_here"].as_str().unwrap()).await;
    assert_eq!(get(&h, &url).await.status, 200);
    let (ok, said) = login.end().await;
    assert!(ok, "{said}");
    let told: Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        (&told["added"], &told["signed_in_as"]),
        (&"claude".into(), &"c@example.invalid".into())
    );
    until("served", async || served(&h, Kind::Claude).await).await;
    h.finish().await;
}

/// codex-lb §2.3: a leftover listener on the vendor's port takes no code.
#[tokio::test]
async fn where_no_browser_can_come_back_its_address_is_pasted() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    let squatter = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = squatter.local_addr().unwrap().port().to_string();
    let places = places(&a);
    let args = with_places(&["codex", "--callback-port", &port], &places);
    let mut login = Login::start(&data(&h), &args).await;
    let url = back(&h, &login.url).await;
    assert!(url.starts_with("http://localhost:1455/auth/callback?"), "{url}");
    login.paste(&url).await;
    let (ok, said) = login.end().await;
    assert!(ok && said.contains("no browser can come back by itself"), "{said}");
    drop(squatter);
    h.finish().await;
}

/// codex-lb K13.
#[tokio::test]
async fn codex_lb_k13_a_device_code_is_waited_for_and_the_tokens_are_sealed() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    h.sim.device_codes(1, &[DevicePoll::Pending, DevicePoll::Pending]);
    let places = places(&a);
    let args = with_places(&["codex", "--device"], &places);
    let mut login = Login::start(&data(&h), &args).await;
    assert!(login.url.ends_with("/codex/device"), "{}", login.url);
    login.line(|line| line.trim().len() == 10 && line.contains('-')).await;
    let (ok, said) = login.end().await;
    assert!(ok && said.contains("signed in as a@example.invalid; added codex"), "{said}");
    holds_no_secret(&said, &a);
    let polls = h.sim.journal().iter().filter(|e| e.path.ends_with("deviceauth/token")).count();
    assert_eq!(polls, 3, "twice too early");
    until("served", async || served(&h, Kind::Codex).await).await;
    for name in ["poolgate.db", "poolgate.db-wal"] {
        let bytes = std::fs::read(data(&h).join(name)).unwrap_or_default();
        let token = a.refresh_token();
        let held = bytes.windows(token.len()).any(|window| window == token.as_bytes());
        assert!(!held, "{name} holds a token");
    }
    h.finish().await;
}

#[tokio::test]
async fn a_device_code_that_comes_to_nothing_says_why() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    let places = places(&a);
    let args = with_places(&["account", "login", "codex", "--device"], &places);
    for (poll, words) in
        [(DevicePoll::Expired, "not entered in time"), (DevicePoll::Denied, "was declined")]
    {
        h.sim.device_codes(1, &[poll]);
        let output = run(&data(&h), &args, "").await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(words), "{error}");
    }
    h.sim.no_device_codes();
    let output = run(&data(&h), &args, "").await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("no device codes"), "{error}");
    assert_eq!(accounts(&data(&h)).await.as_array().unwrap().len(), 0);
    h.finish().await;
}

#[tokio::test]
async fn who_declines_or_comes_too_late_changes_nothing() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    let places = places(&a);
    let args = with_places(&["codex"], &places);
    let tokens = a.refresh_token();

    let login = Login::with_browser(&data(&h), &args).await;
    let url = back(&h, &login.url).await;
    h.sim.expire_codes();
    let page = get(&h, &url).await;
    assert!(page.status == 400 && page.text().contains("has expired"), "{}", page.text());
    let (ok, said) = login.end().await;
    assert!(!ok && said.contains("invalid_grant") && said.contains("begin again"), "{said}");

    h.sim.declines(Kind::Codex);
    let login = Login::with_browser(&data(&h), &args).await;
    let url = back(&h, &login.url).await;
    let page = get(&h, &url).await;
    assert!(page.status == 400 && page.text().contains("declined"), "{}", page.text());
    let (ok, said) = login.end().await;
    assert!(!ok && said.contains("the sign-in was declined"), "{said}");
    assert_eq!(accounts(&data(&h)).await.as_array().unwrap().len(), 0);
    assert_eq!(a.refresh_token(), tokens, "no code was exchanged");
    h.finish().await;
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing_behind() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    let places = places(&a);
    let args = with_places(&["codex", "--timeout", "1"], &places);
    let login = Login::with_browser(&data(&h), &args).await;
    let late = back(&h, &login.url).await;
    let (ok, said) = login.end().await;
    assert!(!ok && said.contains("nobody signed in within 1 s"), "{said}");

    let args = with_places(&["codex"], &places);
    let mut login = Login::with_browser(&data(&h), &args).await;
    let pid = login.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let status =
        tokio::time::timeout(PATIENCE, login.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(130));
    for url in [late, back(&h, &login.url).await] {
        let port = url.split([':', '/']).find_map(|part| part.parse::<u16>().ok()).unwrap();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens");
    }
    assert_eq!(accounts(&data(&h)).await.as_array().unwrap().len(), 0);
    h.finish().await;
}

/// codex-lb K14.
#[tokio::test]
async fn codex_lb_k14_another_identity_is_refused_unless_it_is_meant() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| (s.sim.codex("a"), s.sim.codex("b"))).await;
    let places = places(&a);
    a.signs_in();
    let (ok, said) = sign_in(&h, &with_places(&["codex", "--name", "mine"], &places)).await;
    assert!(ok, "{said}");
    let sealed = async || h.rows("SELECT hex(sealed) FROM credentials").await;
    let before = sealed().await;

    b.signs_in();
    let (ok, said) = sign_in(&h, &["codex", "--name", "mine"]).await;
    assert!(
        !ok && said.contains("mine is a@example.invalid") && said.contains("--replace"),
        "{said}"
    );
    holds_no_secret(&said, &b);
    assert_eq!(sealed().await, before, "nothing was changed");
    until("served", async || served(&h, Kind::Codex).await).await;
    assert_eq!(h.asked().last().map(String::as_str), Some("a"));

    let (ok, said) = sign_in(&h, &["codex", "--name", "mine", "--replace"]).await;
    assert!(ok && said.contains("signed in as b@example.invalid"), "{said}");
    until("b's", async || {
        served(&h, Kind::Codex).await && h.asked().last().is_some_and(|name| name == "b")
    })
    .await;

    // By a second name it would be counted twice.
    let (ok, said) = sign_in(&h, &with_places(&["codex", "--name", "twice"], &places)).await;
    assert!(!ok && said.contains(r#"is the account "mine" already"#), "{said}");
    let (ok, said) = sign_in(&h, &with_places(&["codex"], &places)).await;
    assert!(ok && said.contains("mine has a new sign-in"), "without a name: {said}");
    assert_eq!(accounts(&data(&h)).await.as_array().unwrap().len(), 1);
    a.signs_in();
    let (ok, said) = sign_in(&h, &with_places(&["codex", "--name", "old"], &places)).await;
    assert!(ok && said.contains("added old"), "{said}");
    b.signs_in();
    let (ok, said) = sign_in(&h, &["codex", "--name", "old"]).await;
    assert!(!ok && said.contains(r#"the account "mine" already"#), "nor an old one: {said}");
    h.finish().await;
}

/// What was known of the one before says nothing of who is there now: neither the quota, nor what
/// went wrong.
#[tokio::test]
async fn another_person_begins_with_nothing_known() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.sim.codex("b"))).await;
    let file = h.dir.path().join("a.json");
    let windows = || h.app.pool.view(h.clock.now()).accounts.remove(0).windows.len();
    let spend = async |account: &Account| {
        account.fault(Fault::usage_limit_reached()).times(1);
        assert!(!served(&h, Kind::Codex).await);
        assert_eq!((state(&h, "a").as_str(), windows()), ("limited", 2));
    };
    spend(&a).await;
    std::fs::write(&file, b.auth_json()).unwrap();
    until("b serves", async || state(&h, "a") == "ready").await;
    assert_eq!(windows(), 0, "by the file");
    assert!(served(&h, Kind::Codex).await);
    assert_eq!(h.asked().last().map(String::as_str), Some("b"));
    spend(&b).await;
    a.signs_in();
    let (ok, said) = sign_in(&h, &["codex", "--name", "a", "--replace"]).await;
    assert!(ok, "{said}");
    until("by the command", async || (state(&h, "a").as_str(), windows()) == ("ready", 0)).await;
    h.finish().await;
}

/// The same person again ends `needs_login`, in a gateway that runs; the rest stays.
#[tokio::test]
async fn signing_in_again_ends_needs_login_at_once() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.sim.codex("a"), s.sim.claude("c"))).await;
    for account in [&a, &c] {
        let (kind, places) = (account.kind(), places(account));
        let name = account.name();
        let vendor = if kind == Kind::Codex { "codex" } else { "claude" };
        let args = ["--name", name, "--plan-weight", "7"];
        let args = with_places(&[&[vendor], args.as_slice()].concat(), &places);
        let mut login = Login::with_browser(&data(&h), &args).await;
        let pasted = match kind {
            Kind::Codex => back(&h, &login.url).await,
            _ => code_shown(&h, &login.url).await,
        };
        login.paste(&pasted).await;
        let (ok, said) = login.end().await;
        assert!(ok, "{said}");
        until("served", async || served(&h, kind).await).await;

        account.revoke();
        until("refused", async || !served(&h, kind).await).await;
        until("needs_login", async || state(&h, name) == "needs_login").await;
        let mut login = Login::with_browser(&data(&h), &[vendor, "--name", name]).await;
        let pasted = match kind {
            Kind::Codex => back(&h, &login.url).await,
            _ => code_shown(&h, &login.url).await,
        };
        login.paste(&pasted).await;
        let (ok, said) = login.end().await;
        assert!(ok && said.contains(&format!("{name} has a new sign-in")), "{said}");
        assert!(!said.contains("not known"), "it is known whose it was: {said}");
        until("ready", async || state(&h, name) == "ready").await;
        assert!(served(&h, kind).await, "{name}");
    }
    let settings = h.rows("SELECT settings FROM accounts").await;
    assert!(settings.iter().all(|row| row[0].contains(r#""plan_weight":7.0"#)), "{settings:?}");
    h.finish().await;
}

/// spec §2: a file that is shared is written back, with what else it holds.
#[tokio::test]
async fn a_shared_file_is_signed_in_again_where_it_is() {
    let mut setup = Setup::new().await;
    let (a, c) = (setup.codex("a"), setup.claude("c"));
    for (account, document) in [(&a, a.auth_json()), (&c, c.credentials_json())] {
        let path = setup.dir.path().join(format!("{}.json", account.name()));
        let mut document: Value = serde_json::from_str(&document).unwrap();
        document["theirs"] = "kept".into();
        std::fs::write(&path, document.to_string()).unwrap();
    }
    let h = setup.start().await;
    let file = |name: &str| h.dir.path().join(format!("{name}.json"));
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap()
    };
    for account in [&a, &c] {
        let name = account.name();
        account.revoke();
        until("needs_login", async || {
            served(&h, account.kind()).await;
            state(&h, name) == "needs_login"
        })
        .await;
        if name == "a" {
            // The file may also be gone.
            std::fs::remove_file(file(name)).unwrap();
        }
        let vendor = if name == "a" { "codex" } else { "claude" };
        let mut login = Login::with_browser(&data(&h), &[vendor, "--name", name]).await;
        let pasted =
            if name == "a" { back(&h, &login.url).await } else { code_shown(&h, &login.url).await };
        login.paste(&pasted).await;
        let (ok, said) = login.end().await;
        assert!(ok, "{said}");
        until("ready", async || state(&h, name) == "ready").await;
        assert!(served(&h, account.kind()).await, "{name}");
    }
    assert_eq!(read("a")["tokens"]["refresh_token"], a.refresh_token());
    let document = read("c");
    assert_eq!(document["claudeAiOauth"]["refreshToken"], c.refresh_token());
    assert_eq!(document["claudeAiOauth"]["subscriptionType"], "max", "the plan is kept");
    assert_eq!(document["theirs"], "kept");
    assert!(document.get("oauthAccount").is_none(), "nothing that Claude Code would not write");
    h.finish().await;
}

/// spec §2: a file that the vendor's client is about to write is left to it.
#[tokio::test]
async fn a_shared_file_that_is_locked_is_not_written() {
    let (h, c) = Harness::start(|s: &mut Setup| s.claude("c")).await;
    let file = h.dir.path().join("c.json");
    let before = std::fs::read(&file).unwrap();
    let mut lock = h.dir.path().canonicalize().unwrap().into_os_string();
    lock.push(".lock");
    let held = PathBuf::from(lock);
    std::fs::create_dir(&held).unwrap();
    let touch = || std::fs::File::open(&held).unwrap().set_modified(now()).unwrap();
    let mut login = Login::with_browser(&data(&h), &["claude", "--name", "c"]).await;
    let code = code_shown(&h, &login.url).await;
    login.paste(&code).await;
    let ended = login.end();
    tokio::pin!(ended);
    let (ok, said) = loop {
        touch();
        tokio::select! {
            ended = &mut ended => break ended,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    };
    assert!(!ok && said.contains("held by another process"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert!(c.kind() == Kind::Claude && held.exists(), "it is not ours to remove");
    std::fs::remove_dir(&held).unwrap();
    h.finish().await;
}

/// The files' times are the machine's.
fn now() -> std::time::SystemTime {
    let ms = u64::try_from(poolgate::clock::SystemClock.now().0).unwrap();
    std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(ms)
}
