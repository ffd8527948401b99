//! Codex over a long time: several turns with tools on one socket, while accounts run dry, sockets
//! break and the gateway is restarted.

use std::time::Duration;

use poolgate_sim::{Account, Entry, Fault, Phase};

use serde_json::Value;

use crate::ANSWER;
use crate::app_server::{AppServer, Shown};
use crate::drivers::Codex;
use crate::harness::{Harness, Setup};

const PROMPT: &str = "Do it. [[steps=3]][[say=four words of answer]]";

const FIVE_HOURS: Duration = Duration::from_hours(5);

fn went_well(shown: &Shown) -> bool {
    shown.status == "completed" && shown.text == ANSWER && shown.commands == 3
}

async fn start() -> (Harness, Account, Account, AppServer) {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("first"), s.codex("second"))
    })
    .await;
    let base = format!("{}/backend-api/codex", h.url);
    let codex = AppServer::start(&base, &h.key, Codex::Sockets).await;
    (h, a, b, codex)
}

fn turns(h: &Harness) -> Vec<Entry> {
    h.sim.journal().into_iter().filter(Entry::is_turn).collect()
}

/// Two turns of the user with three commands each, all on one socket, each going on from the last.
#[tokio::test]
async fn codex_goes_from_turn_to_turn_with_tools_on_one_socket() {
    let (h, _, _, mut codex) = start().await;
    for _ in 0..2 {
        let shown = codex.turn(PROMPT).await;
        assert!(went_well(&shown), "{shown:?}");
    }
    let turns = turns(&h);
    let socket = |turn: &Entry| turn.socket;
    assert!(turns.iter().all(|turn| socket(turn) == socket(&turns[0])), "one socket");
    let chained = |turn: &&Entry| {
        let body: Value = serde_json::from_slice(&turn.body).unwrap();
        body["previous_response_id"].is_string()
    };
    assert_eq!((turns.len(), turns.iter().filter(chained).count()), (9, 8), "a warm-up first");
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 8)]);
    h.finish().await;
}

/// In the middle of its work the account runs dry. What Codex shows is what the pool has left.
#[tokio::test]
async fn codex_goes_on_when_its_account_runs_dry_between_two_commands() {
    let (h, a, b, mut codex) = start().await;
    b.set_used(FIVE_HOURS, 0.2);
    a.fault(Fault::usage_limit_reached()).turns().after(2).forever();
    for _ in 0..2 {
        let shown = codex.turn(PROMPT).await;
        assert!(went_well(&shown), "{shown:?}");
    }
    assert_eq!(codex.shown_used, Some(60), "one is spent, of the other a fifth is used");
    let names: Vec<_> = turns(&h).into_iter().filter_map(|turn| turn.account).collect();
    let moves = names.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!((names[0].as_str(), moves), ("first", 1), "it moved once: {names:?}");
    h.finish().await;
}

/// Sockets that break between two commands, before and during output.
#[tokio::test]
async fn codex_goes_on_when_sockets_break_between_two_commands() {
    let faults: [fn() -> Fault; 5] = [
        || Fault::close_frame(Phase::Head, 1011),
        Fault::cut_before_output,
        || Fault::cut_after_output(1),
        Fault::connection_limit,
        || Fault::CloseAfterTurn { code: 1000 },
    ];
    for fault in faults {
        let (h, a, _, mut codex) = start().await;
        let name = format!("{:?}", fault());
        a.fault(fault()).turns().after(2).times(1);
        for _ in 0..2 {
            let shown = codex.turn(PROMPT).await;
            assert_eq!(
                (shown.status.as_str(), shown.text.as_str()),
                ("completed", ANSWER),
                "{name}: {shown:?}"
            );
        }
        assert_eq!(a.pending_faults(), 0, "{name}: it met it");
        let journal = h.sim.journal();
        assert!(!journal.iter().any(|entry| entry.method == "POST"), "{name}: never over HTTP");
        h.finish().await;
    }
}

/// The gateway is restarted while Codex works: it connects again and goes on.
#[tokio::test]
async fn codex_goes_on_over_a_restart_of_the_gateway() {
    let (h, _, _, mut codex) = start().await;
    let shown = codex.turn(PROMPT).await;
    assert!(went_well(&shown), "{shown:?}");
    // While nothing is asked, and in the middle of a turn.
    let h = h.restart().await;
    let shown = codex.turn(PROMPT).await;
    assert!(went_well(&shown), "{shown:?}");
    let before = turns(&h).len();
    let restart = async {
        while turns(&h).len() <= before {
            tokio::task::yield_now().await;
        }
        h.restart().await
    };
    let long = PROMPT.replace("steps=3", "steps=12");
    let (h, shown) = tokio::join!(restart, codex.turn(&long));
    assert_eq!((shown.status.as_str(), shown.text.as_str()), ("completed", ANSWER), "{shown:?}");
    assert!(shown.commands >= 12, "{shown:?}");
    let journal = h.sim.journal();
    assert!(!journal.iter().any(|entry| entry.method == "POST"), "never over HTTP");
    let rows = h.rows("SELECT COUNT(*) FROM requests WHERE outcome = 'interrupted'").await;
    assert_eq!(rows, [["0"]], "the drain waited for what was under way");
    h.finish().await;
}
