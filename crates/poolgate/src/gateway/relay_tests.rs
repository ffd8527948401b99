use std::collections::VecDeque;
use std::future::poll_fn;

use futures_util::FutureExt;

use super::*;
use crate::admission::Permit;
use crate::clock::SystemClock;
use crate::config::{Config, RawAccount, RawConfig};
use crate::egress::{Leg, Slot, Turn};
use crate::keys::generate;
use crate::pool::Wish;
use crate::providers::Tap;
use crate::ws::tests::pair;

const HOUR: Duration = Duration::from_hours(1);

/// A gateway with one account, and a client's key.
async fn gateway(dir: &std::path::Path) -> (Arc<App>, Arc<ClientKey>) {
    let file = dir.join("key");
    crate::files::create_private(&file, b"sk-a").unwrap();
    let mut raw = RawConfig { data_dir: Some(dir.join("data")), ..RawConfig::default() };
    let (name, kind) = ("a".into(), "openai".into());
    raw.account.push(RawAccount { name, kind, key_file: Some(file), ..RawAccount::default() });
    let app = App::start(Config::resolve(raw).unwrap(), Arc::new(SystemClock)).await.unwrap();
    let (key, new) = generate("test".into(), vec![], vec![], None).unwrap();
    app.store.add_client_key(&new, app.clock.now()).await.unwrap();
    app.reload().await.unwrap();
    let key = app.keys.find(&key, app.clock.now()).unwrap();
    (app, key)
}

/// reliability §8, §9: what came half an hour ago was the last that was more than a sign of life.
#[tokio::test]
async fn reliability_8_an_answer_that_only_lives_ends_after_half_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let (app, key) = gateway(dir.path()).await;
    for (said, ends) in [("keepalive", true), ("response.output_text.delta", false)] {
        let (mut upstream, socket) = pair().await;
        let wish = Wish {
            pools: &[],
            ask: Ask { surface: Surface::Responses, model: "m", gate: None },
            session: None,
            owner: None,
            leg: None,
            turn: None,
            tried: &[],
            seed: 0,
        };
        let now = app.clock.now();
        let lease = app.pool.lease(&wish, now).unwrap();
        let leg = Box::new(Leg::new(lease.account.id, 0, socket));
        let begin = Turn::begin(leg, Slot::default(), Bytes::from_static(b"{}"), HOUR);
        let created = Bytes::from_static(br#"{"type":"response.created"}"#);
        let (turn, _) = tokio::join!(begin, upstream.say(created));
        let opening = Box::new(Opening {
            held: VecDeque::new(),
            rest: Some(Received::Turn(Box::new(turn.unwrap()))),
            tap: Tap::messages(Surface::Responses, now),
            create: Permit::default(),
        });
        let of = Relayed {
            surface: Surface::Responses,
            model: "m".into(),
            key: Arc::clone(&key),
            stores: false,
            gate: None,
            codex_events: None,
            deadline: Instant::now() + HOUR,
            is_ours: false,
        };
        let record = Record::unrecorded(Arc::clone(&app));
        let admitted = Admitted::default();
        let mut relay = Relay::new(Arc::clone(&app), lease, record, admitted, opening, of);
        let next = async |relay: &mut Relay| poll_fn(|cx| relay.poll_next(cx)).now_or_never();
        assert!(matches!(next(&mut relay).await, Some(Some(Ok(_)))));

        let before = Instant::now() - HOUR / 2;
        relay.span = Span::new(before, HOUR, Instant::now() + HOUR);
        relay.alarm = Box::pin(sleep_until(before));
        relay.opening.tap.moved = false;
        upstream.say(format!(r#"{{"type":"{said}"}}"#).into()).await;
        assert!(matches!(next(&mut relay).await, Some(Some(Ok(_)))), "it is heard");
        let told = next(&mut relay).await.map(|told| told.unwrap().unwrap());
        assert_eq!(told.is_some(), ends, "{said}: {told:?}");
        if let Some(told) = told {
            assert!(told.ends_with(b"the answer is incomplete\"}}}"), "{told:?}");
        }
    }
}
