//! `GET …/models`: the union of what a key's accounts have.

use std::time::Duration;

use poolgate_sim::{Account, Fault, Phase};

use crate::harness::{Harness, PATIENCE, Setup};

async fn ids(h: &Harness) -> Vec<String> {
    let list = h.get("/v1/models", &[]).await.json();
    let entries = list["data"].as_array().expect("a list").iter();
    entries.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

/// How often the models of this account were asked for.
fn asked_of(h: &Harness, account: &Account) -> usize {
    let is_one = |e: &&poolgate_sim::Entry| {
        e.path.ends_with("/models") && e.account.as_deref() == Some(account.name())
    };
    h.sim.journal().iter().filter(is_one).count()
}

#[tokio::test]
async fn each_client_gets_the_list_it_reads() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        (s.codex("a"), s.codex("b"), s.openai("key"), s.claude("c"))
    })
    .await;
    let openai = h.get("/v1/models", &[]).await.json();
    let ids: Vec<&str> =
        openai["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"gpt-5.5"), "{ids:?}");
    let unique: std::collections::HashSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "each model once: {ids:?}");

    let codex = h.get("/backend-api/codex/models?client_version=0.169.0", &[]).await;
    assert!(codex.json()["models"][0]["slug"].is_string(), "{}", codex.text());
    let etag = codex.headers["etag"].to_str().unwrap();
    let again =
        h.get("/backend-api/codex/models?client_version=0.169.0", &[("if-none-match", etag)]).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));

    let anthropic =
        h.get("/v1/models?limit=1000", &[("anthropic-version", "2023-06-01")]).await.json();
    assert_eq!(anthropic["data"][0]["type"], "model");
    assert_eq!(anthropic["first_id"], anthropic["data"][0]["id"]);
    let calls = h.sim.journal().len();
    assert_eq!(calls, 4, "each account was asked once");
    h.finish().await;
}

#[tokio::test]
async fn an_account_that_does_not_answer_leaves_the_others_lists() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.openai("key"))).await;
    a.fault(poolgate_sim::Fault::server_error(500)).on("/").forever();
    assert_eq!(h.get("/v1/models", &[]).await.status, 200);
    let none = h.get("/v1/models", &[("anthropic-version", "2023-06-01")]).await;
    assert_eq!((none.status.as_u16(), none.code()), (404, "no_fitting_account"));
    assert_eq!(none.json()["type"], "error");
    h.finish().await;
}

/// The list of one is not kept from its clients by another that hangs, nor asked for again and again.
#[tokio::test]
async fn an_account_that_hangs_is_asked_once_and_holds_the_others_up_for_little() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.openai("key"))).await;
    a.fault(Fault::stall(Phase::Head)).on("/").forever();
    let both = async || tokio::join!(ids(&h), ids(&h));
    let listed = tokio::time::timeout(Duration::from_secs(10), both()).await;
    let (one, two) = listed.expect("not as long as it hangs");
    assert!(one == two && !one.is_empty());
    assert_eq!(asked_of(&h, &a), 1, "by one for both");
    h.finish().await;
}

/// A failure is kept for half a minute, and a list that is old is served while it is renewed.
#[tokio::test]
async fn an_old_list_is_served_at_once_and_a_failure_is_not_repeated() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    a.fault(Fault::server_error(500)).on("/").times(1);
    for _ in 0..3 {
        assert_eq!(h.get("/v1/models", &[]).await.status, 502);
    }
    assert_eq!(asked_of(&h, &a), 1, "it failed just now");
    h.clock.advance(Duration::from_secs(31));
    let list = ids(&h).await;
    assert_eq!(asked_of(&h, &a), 2);
    h.clock.advance(Duration::from_mins(11));
    a.fault(Fault::stall(Phase::Head)).on("/").forever();
    for _ in 0..3 {
        assert_eq!(ids(&h).await, list, "at once");
    }
    let renewed = |all: &[poolgate_sim::Entry]| all.len() == 3;
    assert!(h.sim.wait_for(renewed, PATIENCE).await, "beside them");
    h.finish().await;
}

/// What only an operator can bring back is not advertised.
#[tokio::test]
async fn an_account_that_is_paused_or_stopped_is_left_out_and_not_asked() {
    use poolgate_core::health::Stop;
    let (h, (a, b)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.openai("b"))).await;
    let status = async |path: &str| {
        let got = h.get(path, &[]).await;
        (got.status.as_u16(), got.code().to_owned())
    };
    let (openai, codex) = ("/v1/models", "/backend-api/codex/models?client_version=0.169.0");
    assert_eq!((status(openai).await.0, status(codex).await.0), (200, 200));
    let accounts = h.app.pool.accounts();
    let id = |name| accounts.iter().find(|account| account.name == name).unwrap().id;
    h.app.store.pause(id("a")).await.unwrap();
    h.app.reload().await.unwrap();
    h.clock.advance(Duration::from_mins(11));
    let nobody = (503, "no_accounts".to_owned());
    assert_eq!((status(openai).await.0, status(codex).await), (200, nobody.clone()));
    h.app.store.set_stop(id("b"), Some(Stop::Disabled)).await.unwrap();
    h.app.reload().await.unwrap();
    h.clock.advance(Duration::from_mins(11));
    assert_eq!(status(openai).await, nobody);
    let renewed = |all: &[poolgate_sim::Entry]| all.len() == 3;
    assert!(h.sim.wait_for(renewed, PATIENCE).await);
    assert_eq!((asked_of(&h, &a), asked_of(&h, &b)), (1, 2), "while they served");
    h.finish().await;
}

/// A list is one owner's, at one upstream.
#[tokio::test]
async fn a_list_does_not_outlive_its_account() {
    let mut setup = Setup::new().await;
    let a = setup.openai("a");
    let h = setup.start().await;
    ids(&h).await;
    let mut config = h.app.config.clone();
    let mut raw = config.accounts[0].raw.clone();
    raw.base_url = Some(format!("{}/v1/", a.url().replace("127.0.0.1", "localhost")));
    config.accounts = vec![raw.resolve().unwrap()];
    h.app.reconfigure(&config).await.unwrap();
    ids(&h).await;
    assert_eq!(asked_of(&h, &a), 2, "it is another upstream");

    let (mine, sim) = (h.dir.path().join("a.json"), &h.sim);
    let [ann, bob] = ["ann", "bob"].map(|name| sim.codex(name));
    std::fs::write(&mine, ann.auth_json()).unwrap();
    let raw = poolgate::config::RawAccount {
        name: "shared".into(),
        kind: "codex".into(),
        auth_file: Some(mine.clone()),
        base_url: Some(format!("{}/backend-api/codex", ann.url())),
        ..Default::default()
    };
    config.accounts = vec![raw.resolve().unwrap()];
    h.app.reconfigure(&config).await.unwrap();
    ids(&h).await;
    std::fs::write(&mine, bob.auth_json()).unwrap();
    let noticed = async {
        while asked_of(&h, &bob) == 0 {
            ids(&h).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("his list is asked for");
    assert_eq!(asked_of(&h, &ann), 1);
    h.finish().await;
}
