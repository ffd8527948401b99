//! `GET …/models`: the union of what a key's accounts have.

use crate::harness::{Harness, Setup};

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
