use serde_json::json;

use super::*;
use crate::clock::SystemClock;
use crate::config::{Config, RawConfig};
use crate::keys::generate;
use crate::ws::tests::pair;

async fn session(dir: &std::path::Path) -> Session {
    let data_dir = Some(dir.join("data"));
    let config = Config::resolve(RawConfig { data_dir, ..RawConfig::default() }).unwrap();
    let app = App::start(config, Arc::new(SystemClock)).await.unwrap();
    let (key, new) = generate("test".into(), vec![], vec![], None).unwrap();
    app.store.add_client_key(&new, app.clock.now()).await.unwrap();
    app.reload().await.unwrap();
    let key = app.keys.find(&key, app.clock.now()).unwrap();
    Session {
        app: Arc::clone(&app),
        caller: Caller { key },
        headers: Arc::default(),
        query: None,
        home: SessionKey::default(),
        is_named: false,
        named: None,
        turn_state: None,
        slot: Slot::default(),
        contract: Contract::Strict,
        asks: (String::new(), None),
        had_turns: false,
        had_first: false,
        moves: None,
        told: None,
        _permit: Permit::default(),
    }
}

/// reliability §9: a client that is gone without a word is noticed while it has a turn.
#[tokio::test]
async fn a_client_is_watched_during_a_turn_and_not_between_two() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(dir.path()).await;
    let app = Arc::clone(&session.app);
    let (mut client, mut theirs) = pair().await;
    let create = Bytes::from_static(br#"{"type":"response.create","model":"m","input":[]}"#);
    let line = app.pool.line();

    // Behind somebody else in the line it waits.
    let ahead = line.join(0, 0).unwrap();
    theirs.say(create.clone()).await;
    let waits = async {
        while line.waiting() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = session.serve(&mut client) => panic!("the socket stays"),
        () = waits => {}
    }
    assert!(client.is_watched());

    // There is no account.
    drop(ahead);
    theirs.say(create).await;
    tokio::select! {
        biased;
        _ = session.serve(&mut client) => panic!("the socket stays"),
        refused = theirs.said() => assert!(matches!(refused, Some(Said::Text(_)))),
    }
    assert!(!client.is_watched());
}

#[tokio::test]
async fn a_turn_belongs_where_it_says_unless_its_handshake_did() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(dir.path()).await;
    let home = session.home;
    let key = session.caller.key.id;
    let long = "x".repeat(NAME_MAX + 1);
    let turns = ["a", "b", "", "b", "a", &long, &long, "a"];
    for name in turns {
        let document = json!({"prompt_cache_key": name}).to_string();
        let document = Document::parse(document.into()).unwrap();
        let want = if name.is_empty() { home } else { scoped(key, name) };
        assert!(session.session(&document) == want, "{name}");
        assert!(session.named.as_ref().is_none_or(|(name, _)| name.len() <= NAME_MAX));
        session.is_named = true;
        assert!(session.session(&document) == home, "{name}, and its handshake named another");
        session.is_named = false;
    }
}
