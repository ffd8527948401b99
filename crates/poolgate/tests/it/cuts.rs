//! reliability P8: an upstream's answer cut at every byte. No prefix of it looks complete to the client: it
//! is given the whole, by asking again where nothing was out yet, or something that is visibly broken.

use poolgate_sim::{Account, Fault};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::harness::{Answer, Harness, Setup};
use crate::odd_upstreams::{heard, with};
use crate::requests::{CODEX, chat, messages, responses};
use crate::socket_client::{Client, create, kinds, pair, said};

const TEXT: &str = "hi [[say=four words of answer]][[events=3]]";

/// How often it was whole and how often broken.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    whole: usize,
    broken: usize,
}

/// `ends`: what only a complete answer holds; `None`: nothing less than all of it is one.
async fn cut_everywhere(
    add: impl Fn(&mut Setup, &str) -> Account,
    path: &str,
    body: Value,
    ends: Option<&str>,
    cuts: impl Fn(usize) -> Vec<usize>,
) -> Count {
    let (h, a) = Harness::start(|s: &mut Setup| {
        s.in_order();
        let a = add(s, "a");
        add(s, "b");
        a
    })
    .await;
    let whole = h.post(path, &body).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    assert!(!whole.cut && ends.is_none_or(|ends| whole.text().contains(ends)));
    let length = h.sim.journal().last().unwrap().bytes_sent;
    let mut count = Count::default();
    for at in cuts(usize::try_from(length).unwrap()) {
        a.fault(Fault::cut(at)).times(1);
        let answer = h.post(path, &body).await;
        assert_eq!(a.pending_faults(), 0, "cut at {at}");
        if looks_whole(&answer, ends) {
            assert_eq!(answer.body, whole.body, "cut at {at}");
            count.whole += 1;
        } else {
            count.broken += 1;
        }
        // An account rests after three errors in a row.
        assert_eq!(h.post(path, &body).await.body, whole.body, "after a cut at {at}");
    }
    h.finish().await;
    count
}

/// As a client judges that reads no more than it must: an event ends with an empty line.
fn looks_whole(answer: &Answer, ends: Option<&str>) -> bool {
    let text = answer.text();
    let events = text.rsplit_once("\n\n").map_or("", |(events, _)| events);
    let ended = ends.is_some_and(|ends| events.contains(ends));
    answer.status == 200 && (!answer.cut || ended)
}

fn every(length: usize) -> Vec<usize> {
    (0..length).collect()
}

/// These are long, as each of several events holds the whole response.
fn every_few(length: usize) -> Vec<usize> {
    let step = if std::env::var_os("POOLGATE_SOAK").is_some() { 1 } else { 11 };
    (0..length).step_by(step).collect()
}

#[tokio::test]
async fn a_codex_stream() {
    let body = responses(TEXT, true);
    let count =
        cut_everywhere(Setup::codex, CODEX, body, Some("response.completed"), every_few).await;
    assert!(count.whole > 50 && count.broken > 50, "{count:?}");
}

#[tokio::test]
async fn a_chat_stream() {
    let body = chat(TEXT, true);
    let path = "/v1/chat/completions";
    let count = cut_everywhere(Setup::openai, path, body, Some("[DONE]"), every).await;
    assert!(count.whole > 100 && count.broken > 100, "{count:?}");
}

#[tokio::test]
async fn a_messages_stream() {
    let body = messages(TEXT, true);
    let path = "/v1/messages";
    let count = cut_everywhere(Setup::claude, path, body, Some("message_stop"), every).await;
    assert!(count.whole > 100 && count.broken > 100, "{count:?}");
}

/// One that is withheld until it is whole is asked for again, whatever is missing.
#[tokio::test]
async fn a_document() {
    let path = "/v1/messages";
    let body = messages(TEXT, false);
    let count = cut_everywhere(Setup::claude, path, body, None, every).await;
    assert_eq!(count.broken, 0);
    let body = chat(TEXT, false);
    let path = "/v1/chat/completions";
    let count = cut_everywhere(Setup::openai, path, body, None, every).await;
    assert_eq!(count.broken, 0);
}

/// Too large to be withheld: broken behind what can be.
#[tokio::test]
async fn a_large_document() {
    let body = chat("hi [[bytes=200000]]", false);
    let path = "/v1/chat/completions";
    let some =
        |length: usize| vec![0, 1, 60_000, 90_000, 150_000, length - 100, length - 2, length - 1];
    let count = cut_everywhere(Setup::openai, path, body, None, some).await;
    assert!(count.whole >= 3 && count.broken >= 4, "{count:?}");
}

/// A client that does not stream of an upstream that does is put its answer together from events.
#[tokio::test]
async fn an_answer_put_together() {
    let body = responses(TEXT, false);
    let count = cut_everywhere(Setup::codex, "/v1/responses", body, None, every_few).await;
    assert!(count.whole > 50 && count.broken > 50, "{count:?}");
}

#[tokio::test]
async fn a_turn_on_a_socket() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let whole = text_of(&client.turn(&create(TEXT)).await);
    let length = usize::try_from(h.sim.journal().last().unwrap().bytes_sent).unwrap();
    drop(client);
    let mut broken = 0;
    for at in (0..length).step_by(50) {
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        a.fault(Fault::cut(at)).turns().times(1);
        let events = client.turn(&create(TEXT)).await;
        if said(&events) == "completed" {
            assert_eq!(text_of(&events), whole, "cut at {at}");
        } else {
            assert_eq!(kinds(&events).last().unwrap(), &"response.failed", "cut at {at}");
            broken += 1;
        }
        let mut other = Client::open(&h).await;
        other.next().await.unwrap().unwrap();
        assert_eq!(said(&other.turn(&create(TEXT)).await), "completed", "after a cut at {at}");
    }
    assert!(broken > 10 && broken < length / 50, "{broken} of {}", length / 50);
    h.finish().await;
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"].as_str()).collect()
}

/// spec §6: of an event that is held back the client has nothing. It stands between two and is told of the break,
/// and what is left at a tidy end hides no secret.
#[tokio::test]
async fn what_is_held_of_an_event_is_neither_in_the_way_nor_passed_unread() {
    let delta = r#"{"type":"response.output_text.delta","delta":"a"}"#;
    let stop =
        r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
    let error = r#"{"error":{"message":"no KEY"#;
    for (path, text, part, want) in [
        ("/v1/responses", delta, r#"{"type":"#, "upstream_broke"),
        ("/v1/responses", delta, error, "upstream_broke"),
        ("/v1/chat/completions", stop, error, "no Bearer [removed]"),
    ] {
        let h = with(move |mut stream, _| async move {
            let request = heard(&mut stream).await.unwrap();
            let bearer = request.lines().find_map(|line| line.strip_prefix("authorization: "));
            let part = part.replace("KEY", bearer.unwrap());
            // With a length that is not kept, the end is a break.
            let length = if text == stop { "" } else { "content-length: 9999\r\n" };
            let head = format!("HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n{length}\r\n");
            stream.write_all(format!("{head}data: {text}\n\n").as_bytes()).await.unwrap();
            stream.write_all(format!("data: {part}").as_bytes()).await.unwrap();
        })
        .await;
        let body = if text == stop { chat("hi", true) } else { responses("hi", true) };
        let got = h.post(path, &body).await.text();
        assert!(got.starts_with(&format!("data: {text}\n\n")), "{got}");
        assert!(got.contains(want), "{got}");
        h.finish().await;
    }
}
