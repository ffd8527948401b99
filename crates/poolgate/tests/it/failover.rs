//! A failing account is left before the client sees a byte.

use poolgate_sim::Fault;
use serde_json::json;

use crate::harness::{Harness, Setup};

#[tokio::test]
async fn every_failure_before_output_is_answered_by_another_account() {
    let faults: [(&str, fn() -> Fault); 9] = [
        ("429 usage limit", Fault::usage_limit_reached),
        ("403", Fault::forbidden_error),
        ("401", Fault::unauthorized),
        ("500", || Fault::server_error(500)),
        ("503", || Fault::server_error(503)),
        ("529", Fault::overloaded_529),
        ("cut before output", Fault::cut_before_output),
        (
            "error event before output",
            Fault::error_event_before_output,
        ),
        ("closed before the head", Fault::close_before_head),
    ];
    for (name, fault) in faults {
        let (h, (a, b)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.codex("a"), s.codex("b"))
        })
        .await;
        let body = json!({"model": "gpt-5.5", "stream": true, "store": false, "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]});
        let want = h
            .direct(&b, "/backend-api/codex/responses", &[], &body)
            .await;
        h.sim.clear_journal();
        a.fault(fault()).forever();
        let got = h.post("/backend-api/codex/responses", &body).await;
        assert_eq!(
            (got.status.as_u16(), &got.body, got.cut),
            (200, &want.body, false),
            "{name}"
        );
        let asked = h.asked();
        assert_eq!(
            (asked[0].as_str(), asked[asked.len() - 1].as_str()),
            ("a", "b"),
            "{name}: {asked:?}"
        );
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)], "{name}");
        h.finish().await;
    }
}
