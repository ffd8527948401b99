//! Every scripted misbehaviour of a WebSocket, as a client sees it.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use poolgate_sim::{Account, End, Entry, Fault, Garbage, Phase, Scenario, Sim};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{PATIENCE, say};
use crate::socket::{Socket, Stop, chained, create, warm_up};

async fn sim() -> Sim {
    Sim::start(Scenario::default()).await.unwrap()
}

/// The status, headers and body with which a handshake was refused.
async fn refused(account: &Account) -> (u16, String, Value) {
    match Socket::attempt(account).await.err() {
        Some(Error::Http(response)) => {
            let mark = response.headers().get("x-mark").map_or("", |mark| mark.to_str().unwrap());
            let body = response.body().as_deref().unwrap_or_default();
            (response.status().as_u16(), mark.to_owned(), serde_json::from_slice(body).unwrap())
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn handshakes_are_refused_as_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.fault(Fault::Status {
        status: 418,
        headers: vec![("x-mark".to_owned(), "m".to_owned())],
        body: r#"{"a":"b"}"#.to_owned(),
    });
    assert_eq!(refused(&alice).await, (418, "m".to_owned(), json!({"a": "b"})));
    #[rustfmt::skip]
    let cases = [
        (Fault::usage_limit_reached(), 429, "/error/type", "usage_limit_reached"),
        (Fault::unauthorized(),        401, "/error/code", "token_expired"),
        (Fault::overloaded_529(),      503, "/error/code", "server_is_overloaded"),
    ];
    for (fault, status, pointer, value) in cases {
        alice.fault(fault);
        let (got, _, body) = refused(&alice).await;
        assert_eq!((got, body.pointer(pointer)), (status, Some(&json!(value))));
    }
    assert_eq!(alice.open_sockets(), 0);
    let shakes = sim.journal();
    assert!(shakes.iter().all(|entry| !entry.is_socket() && entry.end == Some(End::Complete)));
    assert_eq!(shakes[0].status, Some(418));
}

#[tokio::test]
async fn handshakes_break_as_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.own_port().await.unwrap();
    for fault in [Fault::close_before_head(), Fault::garbage(Garbage::Socket)] {
        alice.fault(fault);
        assert!(!matches!(Socket::attempt(&alice).await.err(), None | Some(Error::Http(_))));
    }
    alice.fault(Fault::stall(Phase::Head));
    sim.clear_journal();
    let asking = tokio::spawn({
        let alice = alice.clone();
        async move { Socket::attempt(&alice).await.is_ok() }
    });
    assert!(sim.wait_for(|journal| journal.len() == 1, PATIENCE).await);
    asking.abort();
    assert!(sim.wait_for(|journal| journal[0].end == Some(End::ClientGone), PATIENCE).await);

    let mut socket = Socket::open(&alice).await;
    alice.refuse_connections();
    assert_eq!(socket.listen().await.stop, Stop::Broken, "its sockets go with the port");
    assert!(matches!(Socket::attempt(&alice).await.err(), Some(Error::Io(_))));
    alice.accept_connections().await.unwrap();
    assert_eq!(Socket::open(&alice).await.say("hi").await.stop, Stop::Answered);
}

#[tokio::test]
async fn turns_go_wrong_as_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let opening = 3; // The limits, created, in progress.
    let output = |events| Phase::Output(events);
    #[rustfmt::skip]
    let cases = [
        //                                        what it does             events   outputs  then                  status
        (Fault::close_before_head(),              Stop::Broken,            0,       0,       End::Fault,           200),
        (Fault::cut_before_output(),              Stop::Broken,            opening, 0,       End::Fault,           200),
        (Fault::cut_after_output(2),              Stop::Broken,            7,       2,       End::Fault,           200),
        (Fault::cut(100),                         Stop::Broken,            0,       0,       End::Fault,           200),
        (Fault::Reset { after_bytes: 0 },         Stop::Broken,            0,       0,       End::Fault,           200),
        (Fault::garbage(Garbage::Socket),         Stop::Broken,            0,       0,       End::Fault,           200),
        (Fault::close_frame(Phase::Head, 1000),   Stop::Closed(1000),      0,       0,       End::Fault,           200),
        (Fault::close_frame(Phase::Body, 1008),   Stop::Closed(1008),      opening, 0,       End::Fault,           200),
        (Fault::close_frame(output(1), 1011),     Stop::Closed(1011),      6,       1,       End::Fault,           200),
        (Fault::close_frame(output(3), 1012),     Stop::Closed(1012),      8,       3,       End::Fault,           200),
        (Fault::error_frame(Phase::Head, 429, "slow_down"), Stop::Answered, 1,      0,       End::Complete,        429),
        (Fault::error_frame(Phase::Body, 500, "oops"),      Stop::Answered, 4,      0,       End::Complete,        200),
        (Fault::error_frame(output(2), 503, "oops"),        Stop::Answered, 8,      2,       End::Complete,        200),
        (Fault::error_event_before_output(),      Stop::Answered,          4,       0,       End::Complete,        200),
        (Fault::error_event_after_output(1),      Stop::Answered,          7,       1,       End::Complete,        200),
        (Fault::garbage(Garbage::Events),         Stop::Answered,          1,       0,       End::Complete,        200),
    ];
    for (fault, stop, events, outputs, end, status) in cases {
        let name = format!("{fault:?}");
        alice.fault(fault).turns();
        let mut socket = Socket::open(&alice).await;
        assert_eq!(socket.ask(&warm_up()).await.stop, Stop::Answered, "{name} spares warm-ups");
        sim.clear_journal();
        let heard = socket.say("hi").await;
        assert_eq!(
            (heard.stop, heard.events.len(), heard.outputs()),
            (stop, events, outputs),
            "{name}"
        );
        let ended = |journal: &[Entry]| journal[0].end.is_some();
        assert!(sim.wait_for(ended, PATIENCE).await, "{name}");
        let turn = sim.journal().remove(0);
        assert_eq!((turn.end, turn.status), (Some(end), Some(status)), "{name}");
        assert_eq!(turn.output_events_sent as usize, outputs, "{name}");
        if stop == Stop::Answered {
            assert_eq!(socket.say("hi").await.outputs(), 4, "{name} is over, and the socket open");
        }
    }
    assert_eq!(alice.pending_faults(), 0);
}

#[tokio::test]
async fn error_frames_say_what_they_were_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let mut socket = Socket::open(&alice).await;
    alice.fault(Fault::ErrorFrame {
        phase: Phase::Output(1),
        status: 429,
        code: "rate_limit_exceeded".to_owned(),
        headers: vec![
            ("retry-after".to_owned(), "7".to_owned()),
            ("x-codex-primary-used-percent".to_owned(), "88".to_owned()),
        ],
    });
    let heard = socket.say("hi").await;
    let error = heard.last();
    assert_eq!((&error["type"], &error["status"]), (&json!("error"), &json!(429)));
    assert_eq!(error["error"]["code"], "rate_limit_exceeded");
    assert_eq!(error["headers"]["retry-after"], "7");
    assert_eq!(error["headers"]["x-codex-primary-used-percent"], "88");
    assert_eq!(error["headers"]["x-codex-plan-type"], "plus");

    alice.fault(Fault::usage_limit_reached()).turns();
    let spent = socket.say("hi").await;
    assert_eq!((spent.kinds(), &spent.last()["status"]), (vec!["error"], &json!(429)));
    assert_eq!(spent.last()["error"]["type"], "usage_limit_reached");
    assert_eq!(spent.last()["headers"]["x-codex-primary-used-percent"], "100");
    alice.fault(Fault::status(402, "gone")).turns();
    assert_eq!(socket.say("hi").await.last()["error"]["message"], "gone");
    alice.fault(Fault::failed_with("rate_limit_exceeded", "later")).turns();
    let failed = socket.say("hi").await;
    assert_eq!(failed.last()["response"]["error"]["code"], "rate_limit_exceeded");
    let begun = failed.events[1]["response"]["id"].as_str().unwrap();
    let refused = socket.ask(&chained("hi", begun)).await;
    assert_eq!(refused.last()["error"]["code"], "previous_response_not_found", "it failed");

    alice.fault(Fault::connection_limit());
    let limit = socket.say("hi").await;
    assert_eq!((limit.kinds(), &limit.last()["status"]), (vec!["error"], &json!(400)));
    assert_eq!(limit.last()["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(socket.listen().await.stop, Stop::Closed(1000));
}

#[tokio::test]
async fn stalls_last_and_let_the_rest_of_the_socket_live() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    for (phase, outputs) in [(Phase::Head, 0), (Phase::Body, 0), (Phase::Output(2), 2)] {
        alice.fault(Fault::stall(phase)).turns();
        let mut socket = Socket::open(&alice).await;
        sim.clear_journal();
        socket.send(&create("hi")).await;
        let sent = |journal: &[Entry]| {
            journal.first().is_some_and(|turn| {
                turn.output_events_sent == outputs && (phase == Phase::Head || turn.bytes_sent > 0)
            })
        };
        assert!(sim.wait_for(sent, PATIENCE).await);
        let refused = socket.say("again").await;
        assert_eq!(refused.last()["error"]["code"], "response_in_progress");
        assert_eq!(refused.outputs(), outputs as usize);
        socket.ws.send(Message::Ping("p".into())).await.unwrap();
        let pong = tokio::time::timeout(PATIENCE, socket.ws.next()).await.unwrap();
        assert_eq!(pong.unwrap().unwrap(), Message::Pong("p".into()));
        assert_eq!(sim.journal()[0].end, None);
        drop(socket);
        assert!(sim.wait_for(|journal| journal[0].end == Some(End::ClientGone), PATIENCE).await);
    }
}

#[tokio::test]
async fn a_slow_drip_is_fragments_of_the_same_events() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.request_cost(0.0);
    let mut socket = Socket::open(&alice).await;
    let whole = socket.say("hä").await;
    alice.fault(Fault::slow_drip(40, Duration::from_millis(1))).turns();
    let dripped = socket.say("hä").await;
    assert_eq!((dripped.kinds(), dripped.outputs()), (whole.kinds(), 4));

    // Seen without a client that joins fragments: the first frame of the answer is not final.
    alice.fault(Fault::slow_drip(40, Duration::ZERO)).turns();
    socket.send(&create("hi")).await;
    let mut head = [0; 2];
    socket.ws.get_mut().read_exact(&mut head).await.unwrap();
    assert_eq!(head, [0x01, 40], "text, more to come, 40 bytes");
}

#[tokio::test]
async fn garbage_is_no_frame() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let mut socket = Socket::open(&alice).await;
    alice.fault(Fault::garbage(Garbage::Socket)).turns();
    socket.send(&create("hi")).await;
    let mut bytes = Vec::new();
    socket.ws.get_mut().read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.starts_with(b"\x00\xffSIM"));
}

#[tokio::test]
async fn a_socket_closes_between_turns_after_as_many_as_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.fault(Fault::close_after_turn(1000)).after(1);
    let mut socket = Socket::open(&alice).await;
    assert_eq!(socket.ask(&warm_up()).await.stop, Stop::Answered);
    for _ in 0..2 {
        let turn = socket.say("hi").await;
        assert_eq!((turn.stop, turn.outputs()), (Stop::Answered, 4));
    }
    assert_eq!(socket.listen().await.stop, Stop::Closed(1000));
    assert!(sim.wait_for(|journal| journal[0].end.is_some(), PATIENCE).await);
    let ends: Vec<_> = sim.journal().iter().map(|entry| entry.end).collect();
    assert_eq!(ends, [Some(End::Complete); 4]);
}

#[tokio::test]
async fn faults_hit_what_they_are_told_to() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.fault(Fault::forbidden_error()).turns().times(2);
    alice.fault(Fault::server_error(500)).warm_ups();
    alice.fault(Fault::close_after_turn(1011));
    alice.fault(Fault::cut_before_output()).on("/backend-api/");
    let mut socket = Socket::open(&alice).await;
    assert_eq!(alice.pending_faults(), 3, "taken by the handshake, which has no output to cut");
    assert_eq!(say(&alice, "hi").await.status, 200);
    assert_eq!(socket.ask(&warm_up()).await.last()["status"], 500);
    assert_eq!(socket.ask(&warm_up()).await.last()["type"], "response.completed");
    for _ in 0..2 {
        assert_eq!(socket.say("hi").await.last()["status"], 403);
    }
    assert_eq!(socket.say("hi").await.outputs(), 4);
    assert_eq!(socket.listen().await.stop, Stop::Closed(1011));
}

#[tokio::test]
async fn sockets_are_counted_pushed_into_closed_and_cut() {
    let sim = sim().await;
    let (alice, bob) = (sim.codex("alice"), sim.codex("bob"));
    let (mut one, mut two) = (Socket::open(&alice).await, Socket::open(&alice).await);
    let mut other = Socket::open(&bob).await;
    assert_eq!((alice.open_sockets(), bob.open_sockets()), (2, 1));

    let unasked = json!({"type": "codex.rate_limits", "limit_name": "unasked"});
    assert_eq!(alice.push_frame(&unasked.to_string()), 2);
    for socket in [&mut one, &mut two] {
        assert_eq!(socket.event().await, Some(unasked.clone()));
    }
    // In the middle of an answer too.
    one.send(&create("[[events=2]][[gap_ms=60000]]")).await;
    assert_eq!(one.event().await.unwrap()["type"], "codex.rate_limits");
    assert_eq!(alice.push_frame(r#"{"type":"odd"}"#), 2);
    assert_eq!(one.event().await.unwrap()["type"], "response.created");
    assert_eq!(one.event().await.unwrap()["type"], "odd");

    assert_eq!(alice.close_sockets(1012), 2);
    assert_eq!(one.listen().await.stop, Stop::Closed(1012));
    assert_eq!(two.listen().await.kinds(), ["odd"], "and then closed");
    let noted = |journal: &[Entry]| {
        journal.iter().filter(|entry| entry.account.as_deref() == Some("alice")).all(|entry| {
            let end = if entry.is_turn() { End::Fault } else { End::Complete };
            entry.end == Some(end)
        })
    };
    assert!(sim.wait_for(noted, PATIENCE).await);
    assert_eq!((alice.open_sockets(), bob.open_sockets()), (0, 1));

    assert_eq!((alice.cut_sockets(), bob.cut_sockets()), (0, 1));
    let cut = other.listen().await;
    assert_eq!((cut.stop, bob.open_sockets()), (Stop::Broken, 0));
    assert_eq!(sim.journal()[2].end, Some(End::Fault));
}

#[tokio::test]
async fn a_socket_that_nobody_reads_from_can_be_cut() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let mut socket = Socket::open(&alice).await;
    // More than fits into the sockets' buffers: the simulator waits in the middle of a frame.
    socket.send(&create("[[bytes=8000000]][[events=1]]")).await;
    let is_answering = |journal: &[Entry]| journal.last().is_some_and(|turn| turn.bytes_sent > 0);
    assert!(sim.wait_for(is_answering, PATIENCE).await);
    assert_eq!(alice.cut_sockets(), 1);
    assert!(sim.wait_for(|journal| journal[0].end == Some(End::Fault), PATIENCE).await);
    assert_eq!(sim.journal()[1].end, Some(End::Fault));
    assert_eq!(alice.open_sockets(), 0);
}
