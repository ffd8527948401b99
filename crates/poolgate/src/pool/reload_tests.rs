//! What of an account goes on over a reload, and what does not.

use super::*;

fn elsewhere(id: i64) -> Loaded {
    let settings = RawAccount { base_url: Some("https://y".into()), ..Default::default() };
    Loaded { whereabouts: Whereabouts::of(&settings), ..loaded(id, 0) }
}

#[test]
fn a_reload_keeps_what_was_learnt() {
    let pool = pool(vec![loaded(1, 1), loaded(2, 0)]);
    let lease = pool.lease(&Wish { tried: &[AccountId(2)], ..wish(None, 1) }, NOW).unwrap();
    pool.settle(&account(&pool, 2), Outcome::Stopped(Stop::NeedsLogin), AT);
    pool.replace(vec![loaded(1, 1), loaded(2, 0), loaded(3, 0)], &[], &[]);
    assert_eq!(pool.in_flight(), 1, "the running attempt still counts");
    let states: Vec<String> = pool.view(NOW).accounts.into_iter().map(|a| a.state).collect();
    assert_eq!(states, ["ready", "needs_login", "ready"], "an unsaved stop stays");
    drop(lease);
    assert_eq!(pool.in_flight(), 0);
}

/// spec §2: whatever has become of its credential, and of an operator's word.
#[test]
fn what_was_learnt_in_one_place_is_not_known_of_another() {
    let pool = pool(vec![loaded(1, 0)]);
    let known = || {
        let view = pool.view(NOW).accounts.remove(0);
        (view.windows.len(), view.state)
    };
    pool.observe(&account(&pool, 1), &weekly(30.0), Source::Answer, NOW);
    pool.settle(&account(&pool, 1), Outcome::Strike, AT);
    assert_eq!(known(), (1, "cooling".into()));
    pool.take_unsaved_quotas();
    pool.replace(vec![elsewhere(1)], &[], &[]);
    assert_eq!(known(), (0, "ready".into()));
    let unsaved = pool.take_unsaved_quotas();
    assert_eq!(unsaved, [(AccountId(1), Quota::default())], "a late save may have brought it back");
}

/// spec §2: what a running request finds is about whoever it was sent to.
#[test]
fn a_request_that_outlives_a_move_tells_nothing_of_the_new_place() {
    let pool = pool(vec![loaded(1, 0)]);
    let known = || {
        let view = pool.view(NOW).accounts.remove(0);
        (view.windows.len(), view.state)
    };
    let running = pool.lease(&wish(None, 1), NOW).unwrap();
    pool.replace(vec![Loaded { plan_weight: Some(2.0), ..loaded(1, 0) }], &[], &[]);
    pool.observe(&running.account, &weekly(30.0), Source::Answer, NOW);
    assert_eq!(known(), (1, "ready".into()), "it is where it was");
    pool.replace(vec![elsewhere(1)], &[], &[]);
    pool.observe(&running.account, &weekly(30.0), Source::Answer, NOW);
    for outcome in [Outcome::TokenRefused { permanent: true }, Outcome::Strike, Outcome::Served] {
        pool.settle(&running.account, outcome, Attempt { refreshed: true, ..AT });
        assert_eq!(known(), (0, "ready".into()), "{outcome:?}");
    }
    assert_eq!(pool.in_flight(), 1, "it still runs");
    let next = pool.lease(&wish(None, 2), NOW).unwrap();
    pool.observe(&next.account, &weekly(100.0), Source::Answer, NOW);
    assert_eq!(known(), (1, "limited".into()));
    drop(running);
    assert_eq!(pool.in_flight(), 1);
}

#[tokio::test]
async fn a_request_that_outlives_its_sign_in_tells_nothing_of_the_next_persons() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sign_in = |token: &str, person: &str| {
        let tokens = serde_json::json!({"accessToken": token, "refreshToken": "r"});
        let who = serde_json::json!({"accountUuid": person});
        let document = serde_json::json!({"claudeAiOauth": tokens, "oauthAccount": who});
        std::fs::write(file.path(), document.to_string()).unwrap();
    };
    let mut one = loaded(1, 0);
    let source = CredentialSource::AuthFile(file.path().to_owned());
    let credential = Arc::new(Credential::new(Kind::Claude, source, None));
    one.account.credential = Arc::clone(&credential);
    let windows = |pool: &Pool| pool.view(NOW).accounts[0].windows.len();
    sign_in("t1", "ann");
    credential.open().await;
    let pool = pool(vec![one]);
    let running = pool.lease(&wish(None, 1), NOW).unwrap();
    for (token, person, want) in [("t2", "ann", 1), ("t3", "bob", 0)] {
        sign_in(token, person);
        assert!(credential.reload().await);
        pool.credential_exchanged(AccountId(1));
        pool.observe(&running.account, &weekly(30.0), Source::Answer, NOW);
        assert_eq!(windows(&pool), want, "{person}");
    }
    let next = pool.lease(&wish(None, 2), NOW).unwrap();
    pool.observe(&next.account, &weekly(30.0), Source::Answer, NOW);
    assert_eq!(windows(&pool), 1);
}

/// spec §11: stops are saved every few seconds, and accounts are reloaded whenever they change.
#[test]
fn no_reload_forgets_a_stop_before_the_store_has_it() {
    let pool = pool(vec![loaded(1, 0)]);
    let stop = Stop::Deactivated;
    pool.settle(&account(&pool, 1), Outcome::Stopped(stop), AT);
    for round in ["first", "second"] {
        pool.begin_reload();
        pool.replace(vec![loaded(1, 0)], &[], &[]);
        assert_eq!(states(&pool, NOW), ["deactivated"], "the {round} reload");
    }
    pool.begin_reload();
    let saved = pool.take_unsaved_stops();
    assert_eq!(saved, [(AccountId(1), Some(stop))], "it is still to be saved");
    pool.replace(vec![loaded(1, 0)], &[], &[]);
    assert_eq!(states(&pool, NOW), ["deactivated"], "it was saved behind the reading");
    assert_eq!(pool.take_unsaved_stops(), []);
    pool.begin_reload();
    pool.replace(vec![loaded(1, 0)], &[], &[]);
    assert_eq!(states(&pool, NOW), ["ready"], "what is in the store counts from then on");
}
