//! Accounts behind proxies: every call goes through, or nowhere.
//!
//! The upstreams' names end in `.invalid` and mean something to the test's proxy alone: a call that went
//! any other way could not arrive.

use futures_util::FutureExt;
use poolgate::config::ProxyUrl;
use poolgate_sim::{Account, Entry};

use crate::cli::{json, run, run_with};
use crate::harness::{Harness, PATIENCE, Setup};
use crate::proxies::{Manner, TestProxy};
use crate::requests::{CODEX, responses};

const LOGIN: (&str, &str) = ("team", "p@ss w:rd%");
const WRITTEN: &str = "team:p%40ss%20w%3Ard%25";

fn url(protocol: &str, login: &str, proxy: &TestProxy) -> String {
    let at = if login.is_empty() { "" } else { "@" };
    format!("{protocol}://{login}{at}{}", proxy.address)
}

/// The account's places get names that only the proxy knows.
fn put_behind(setup: &mut Setup, name: &str, proxy: Option<&str>) {
    let settings = setup.settings(name);
    settings.proxy = proxy.map(ProxyUrl::new);
    settings.private_upstream = true;
    for place in [&mut settings.base_url, &mut settings.token_url].into_iter().flatten() {
        *place = place.replace("127.0.0.1", &format!("{name}.invalid"));
    }
}

fn paths(all: &[Entry]) -> Vec<String> {
    all.iter().map(|entry| entry.path.clone()).collect()
}

/// spec §2.
#[tokio::test]
async fn every_call_for_an_account_goes_through_its_proxy() {
    for (protocol, login) in
        [("http", None), ("http", Some(LOGIN)), ("socks5h", None), ("socks5h", Some(LOGIN))]
    {
        let mut setup = Setup::new().await;
        setup.polls = true;
        let a = setup.codex("a");
        let proxy = TestProxy::start(&setup.sim.url(), login).await;
        let written = url(protocol, if login.is_some() { WRITTEN } else { "" }, &proxy);
        put_behind(&mut setup, "a", Some(&written));
        let h = setup.start().await;
        let polled = |all: &[Entry]| all.iter().any(|e| e.path.ends_with("/wham/usage"));
        assert!(h.sim.wait_for(polled, PATIENCE).await, "{protocol}: usage");
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "{protocol}");
        a.expire_access_token();
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "{protocol}: renewed");
        let models = h.get("/v1/models", &[]).await;
        assert_eq!(models.status, 200, "{protocol}: {}", models.text());
        let journal = paths(&h.sim.journal());
        for path in ["/wham/usage", "/responses", "/oauth/token", "/models"] {
            assert!(journal.iter().any(|p| p.ends_with(path)), "{protocol} {path}: {journal:?}");
        }
        let asked = proxy.asked();
        assert!(
            !asked.is_empty() && asked.iter().all(|to| to.starts_with("a.invalid:")),
            "{asked:?}"
        );
        assert_eq!(proxy.refused(), 0);
        let (data, sent) = (h.app.config.data_dir.clone(), asked.len());
        let tested = json(&data, &["account", "test", "a"]).await;
        assert_eq!(tested["works"], true, "{protocol}: {tested}");
        assert!(proxy.asked().len() > sent, "{protocol}: account test");
        h.finish().await;
    }
}

#[tokio::test]
async fn socks5_is_given_an_address_and_socks5h_the_name() {
    for (protocol, host) in [("socks5", "127.0.0.1"), ("socks5h", "localhost")] {
        let mut setup = Setup::new().await;
        setup.openai("a");
        let proxy = TestProxy::start(&setup.sim.url(), None).await;
        let settings = setup.settings("a");
        settings.proxy = Some(ProxyUrl::new(url(protocol, "", &proxy)));
        settings.base_url = settings.base_url.as_ref().map(|u| u.replace("127.0.0.1", "localhost"));
        let h = setup.start().await;
        assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
        let asked = proxy.asked();
        assert!(asked[0].starts_with(&format!("{host}:")), "{protocol}: {asked:?}");
        h.finish().await;
    }
}

/// spec §2, §6. Nothing is sent, nothing goes around, and the client is not told where our proxies are.
#[tokio::test]
async fn a_proxy_that_fails_is_a_failed_connection_and_never_a_direct_one() {
    let cases = [
        ("http", Some(Manner::Refuses), "", "it answered 403 to CONNECT"),
        ("http", Some(Manner::CannotReach), "", "it answered 502 to CONNECT"),
        ("http", Some(Manner::Closes), "", "proxy "),
        ("http", Some(Manner::Babbles), "", "proxy "),
        ("http", Some(Manner::Hangs), "", "no connection in time"),
        ("http", Some(Manner::Well), "team:wrong", "it refuses this user name and password"),
        ("http", Some(Manner::Well), "-", "it wants a user name and password"),
        ("http", None, "", "refused"),
        ("socks5h", Some(Manner::Refuses), "", "SOCKS: "),
        ("socks5h", Some(Manner::CannotReach), "", "SOCKS: "),
        ("socks5h", Some(Manner::Closes), "", "proxy "),
        ("socks5h", Some(Manner::Babbles), "", "proxy "),
        ("socks5h", Some(Manner::Hangs), "", "no connection in time"),
        ("socks5h", Some(Manner::Well), "team:wrong", "it refuses this user name and password"),
        ("socks5h", Some(Manner::Well), "-", "it wants a user name and password"),
        ("socks5", None, "", "refused"),
    ];
    for (protocol, manner, login, words) in cases {
        let name = format!("{protocol} {manner:?} {login:?}");
        let mut setup = Setup::new().await;
        setup.raw.limits.connect_timeout_s = Some(1);
        setup.openai("a");
        let proxy = TestProxy::start(&setup.sim.url(), Some(LOGIN)).await;
        let login = match login {
            "" => WRITTEN,
            "-" => "",
            other => other,
        };
        // The upstream itself could be reached.
        setup.settings("a").proxy = Some(ProxyUrl::new(url(protocol, login, &proxy)));
        match manner {
            Some(manner) => proxy.is(manner),
            None => proxy.stop(),
        }
        let h = setup.start().await;
        let got = h.post("/v1/responses", &responses("hi", true)).await;
        assert_eq!(got.status, 502, "{name}: {}", got.text());
        let port = proxy.address.port().to_string();
        assert!(!got.text().contains(&port) && !got.text().contains("team"), "{}", got.text());
        let models = h.get("/v1/models", &[]).await;
        assert!(!models.text().contains(&port), "{}", models.text());
        let data = h.app.config.data_dir.clone();
        let tested = run(&data, &["account", "test", "a", "--json"], "").await;
        let said = String::from_utf8_lossy(&tested.stdout).into_owned();
        assert!(!tested.status.success() && said.contains(words), "{name}: {said}");
        assert!(!said.contains("team") && !said.contains("wrong"), "{said}");
        assert_eq!(paths(&h.sim.journal()), [""; 0], "{name}: nothing arrives");
        h.finish().await;
    }
}

/// spec §6: a proxy that is away is its accounts' trouble, and the others serve.
#[tokio::test]
async fn an_account_whose_proxy_is_away_is_left_for_the_next() {
    let mut setup = Setup::new().await;
    setup.in_order();
    setup.openai("a");
    setup.openai("b");
    let proxy = TestProxy::start(&setup.sim.url(), None).await;
    setup.settings("a").proxy = Some(ProxyUrl::new(url("http", "", &proxy)));
    let h = setup.start().await;
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a"]);
    // Its connection is lost, so that a new one is needed.
    let a = h.sim.account("a").unwrap();
    a.fault(poolgate_sim::Fault::close_before_head());
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
    proxy.is(Manner::Refuses);
    let (tried, asked) = (proxy.asked().len(), h.asked());
    a.fault(poolgate_sim::Fault::close_before_head());
    for _ in 0..2 {
        assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
    }
    assert!(proxy.asked().len() > tried, "its proxy was asked");
    assert_eq!(h.asked()[asked.len()..].last().unwrap(), "b");
    h.finish().await;
}

/// Connections are kept by their way, too: one made through a proxy serves no other account.
#[tokio::test]
async fn accounts_at_one_upstream_share_no_connection_across_proxies() {
    let mut setup = Setup::new().await;
    setup.pool("default", &[], "round-robin");
    let proxies = [
        TestProxy::start(&setup.sim.url(), None).await,
        TestProxy::start(&setup.sim.url(), None).await,
    ];
    for (name, proxy) in ["a", "b"].iter().zip(&proxies) {
        setup.openai(name);
        setup.settings(name).proxy = Some(ProxyUrl::new(url("http", "", proxy)));
    }
    setup.openai("c");
    let h = setup.start().await;
    for _ in 0..6 {
        assert_eq!(h.post("/v1/responses", &responses("hi", false)).await.status, 200);
    }
    for (name, proxy) in ["a", "b"].iter().zip(&proxies) {
        let asked = h.asked().iter().filter(|asked| asked == name).count();
        assert_eq!((asked, proxy.asked().is_empty()), (2, false), "{name}");
    }
    h.finish().await;
}

async fn answers(h: &Harness, wanted: u16) {
    let reached = async {
        while h.post("/v1/responses", &responses("hi", true)).await.status != wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("the running gateway noticed");
}

/// The whole of what the command line and the store know of it.
#[tokio::test]
async fn an_operator_gives_an_account_a_proxy_and_its_login_is_sealed_and_never_shown() {
    let (h, a): (Harness, Account) = Harness::start(|s: &mut Setup| s.sim.openai("a")).await;
    let data = h.app.config.data_dir.clone();
    let proxy = TestProxy::start(&h.sim.url(), Some(LOGIN)).await;
    let base = format!("{}/v1", a.url().replace("127.0.0.1", "only-there.invalid"));
    let right = url("socks5h", WRITTEN, &proxy);
    let wrong = url("http", "team:no-such-password", &proxy);
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--private-upstream"];
    let add = [&add[..], &["--base-url", &base, "--proxy", &wrong]].concat();
    assert!(run(&data, &add, &a.api_key()).await.status.success());
    answers(&h, 502).await;
    let change = ["account", "proxy", "mine"];
    let env = [("POOLGATE_PROXY", right.as_str())];
    let changed = run_with(&data, &change, "", &env).await;
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    answers(&h, 200).await;
    let listed = json(&data, &["account", "list"]).await;
    assert_eq!(listed[0]["proxy"], format!("socks5h://{}", proxy.address));
    let doctor = run(&data, &["doctor", "--json"], "").await;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains(&format!("through socks5h://{}", proxy.address)), "{said}");
    let bad = run(&data, &["account", "proxy", "mine", "--proxy", "ftp://u:hunter2@x:1"], "").await;
    let bad = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(bad.contains("must be http://") && !bad.contains("hunter2"), "{bad}");
    for file in ["poolgate.db", "poolgate.db-wal"] {
        let bytes = std::fs::read(data.join(file)).unwrap_or_default();
        for secret in ["p%40ss", LOGIN.1, "no-such-password"] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in {file}");
        }
    }
    let direct = ["account", "proxy", "mine", "--no-proxy"];
    assert!(run_with(&data, &direct, "", &env).await.status.success());
    answers(&h, 502).await;
    h.finish().await;
}

/// spec §2: nothing but an account's own settings chooses a way.
#[tokio::test]
async fn proxies_of_the_environment_are_not_used() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.openai("a")).await;
    let data = h.app.config.data_dir.clone();
    let proxy = TestProxy::start(&h.sim.url(), None).await;
    let base = format!("{}/v1", a.url());
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--base-url", &base];
    assert!(run(&data, &add, &a.api_key()).await.status.success());
    let proxy_url = url("http", "", &proxy);
    let env = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
        .map(|name| (name, proxy_url.as_str()));
    let tested = run_with(&data, &["account", "test", "mine"], "", &env).await;
    assert!(tested.status.success());
    assert_eq!(proxy.asked(), [""; 0]);
    h.finish().await;
}

/// The upstream's TLS is inside the tunnel, and names the upstream.
#[tokio::test]
async fn tls_goes_through_the_tunnel_to_the_upstream() {
    use tokio::io::AsyncReadExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    for protocol in ["http", "socks5h"] {
        let mut setup = Setup::new().await;
        setup.raw.limits.connect_timeout_s = Some(1);
        setup.openai("a");
        let proxy = TestProxy::start(&upstream, None).await;
        let settings = setup.settings("a");
        settings.proxy = Some(ProxyUrl::new(url(protocol, "", &proxy)));
        settings.base_url = Some("https://secure.invalid/v1".into());
        let h = setup.start().await;
        let body = responses("hi", true);
        let seen = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = vec![0; 64];
            stream.read_exact(&mut hello).await.unwrap();
            let mut rest = vec![0; usize::from(u16::from_be_bytes([hello[3], hello[4]])) + 5 - 64];
            stream.read_exact(&mut rest).await.unwrap();
            hello.extend(rest);
            hello
        };
        let (got, hello) = tokio::time::timeout(PATIENCE, async {
            tokio::join!(h.post("/v1/responses", &body), seen)
        })
        .await
        .unwrap();
        assert_eq!(got.status, 502);
        assert_eq!(hello[0], 0x16, "a TLS handshake");
        let name = b"secure.invalid";
        assert!(hello.windows(name.len()).any(|window| window == name), "for the upstream's name");
        assert_eq!(proxy.asked()[0], "secure.invalid:443", "{protocol}");
        h.finish().await;
    }
}

/// reliability SSRF-2: where a name leads counts, for each account by itself. `0x7f000001` is a name to
/// whoever reads the settings, and an address to the system's resolver.
#[tokio::test]
async fn a_name_that_leads_into_a_private_network_needs_an_account_marked_so() {
    for proxied in [false, true] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut setup = Setup::new().await;
        setup.in_order();
        setup.openai("unmarked");
        setup.openai("marked");
        let proxy = TestProxy::start(&setup.sim.url(), None).await;
        let way = proxied.then(|| ProxyUrl::new(url("socks5", "", &proxy)));
        let unmarked = setup.settings("unmarked");
        unmarked.base_url = Some(format!("https://0x7f000001:{port}/v1"));
        unmarked.proxy.clone_from(&way);
        let marked = setup.settings("marked");
        marked.base_url =
            marked.base_url.as_ref().map(|url| url.replace("127.0.0.1", "0x7f000001"));
        (marked.private_upstream, marked.proxy) = (true, way);
        let h = setup.start().await;
        assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200, "{proxied}");
        assert_eq!(h.asked(), ["marked"], "{proxied}");
        assert!(listener.accept().now_or_never().is_none(), "nothing of the other arrives");
        assert_eq!(proxy.asked().len(), usize::from(proxied));
        let data = h.app.config.data_dir.clone();
        let doctor = run(&data, &["doctor", "--json"], "").await;
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.contains("its account needs private_upstream = true; for unmarked"), "{said}");
        h.finish().await;
    }
}
