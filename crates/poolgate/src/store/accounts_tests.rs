use poolgate_core::refresh::{Fault, Past};

use super::*;
use crate::store::RefreshMark;

fn settings(name: &str) -> RawAccount {
    let kind = "openai".to_owned();
    RawAccount { name: name.into(), kind, key_env: Some("K".into()), ..Default::default() }
}

const NOW: Timestamp = Timestamp(1_000);

#[tokio::test]
async fn names_are_unique_until_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().expect("added");
    assert_eq!(store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap(), None);
    store.put_credential(id, b"sealed", NOW).await.unwrap();
    let before = store.revision().await.unwrap();
    store.remove_account(id, NOW).await.unwrap();
    assert_ne!(store.revision().await.unwrap(), before);
    assert!(store.accounts().await.unwrap().is_empty());
    assert_eq!(store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap(), Some(id));
    assert!(store.accounts().await.unwrap()[0].sealed.is_none(), "the credential is gone");
}

#[tokio::test]
async fn the_file_decides_about_its_own_accounts_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    store.add_account(&settings("mine"), Origin::Cli, NOW).await.unwrap();
    store.sync_config_accounts(&[settings("x"), settings("y")], NOW).await.unwrap();
    store.sync_config_accounts(&[settings("y")], NOW).await.unwrap();
    let names: Vec<String> =
        store.accounts().await.unwrap().into_iter().map(|a| a.settings.name).collect();
    assert_eq!(names, ["mine", "y"]);
}

#[tokio::test]
async fn only_one_of_two_writers_replaces_a_credential() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    store.put_credential(id, b"one", NOW).await.unwrap();
    assert!(store.replace_credential(id, 1, b"two", NOW).await.unwrap());
    assert!(!store.replace_credential(id, 1, b"late", NOW).await.unwrap());
    let sealed = store.accounts().await.unwrap()[0].sealed.clone();
    assert_eq!(sealed, Some((b"two".to_vec(), 2)));
}

/// Whoever still has the first one, and its version, must not take the second for it.
#[tokio::test]
async fn versions_go_on_over_a_removal() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    store.put_credential(id, b"one", NOW).await.unwrap();
    store.remove_account(id, NOW).await.unwrap();
    assert_eq!(store.credential(id).await.unwrap(), None);
    assert!(!store.replace_credential(id, 1, b"late", NOW).await.unwrap(), "it is removed");
    store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap();
    store.put_credential(id, b"two", NOW).await.unwrap();
    assert!(!store.replace_credential(id, 1, b"late", NOW).await.unwrap(), "it is another");
    let (sealed, version) = store.credential(id).await.unwrap().unwrap();
    assert!(sealed == b"two" && version > 1, "{version}");
}

fn window() -> Window {
    Window {
        limit: Limit::Ordinary,
        length: Duration::from_hours(5),
        used: Fraction::from_ppm(1),
        resets_at: None,
        observed_at: NOW,
    }
}

/// A gateway that did not know yet may have written them after the removal.
async fn learn_late(store: &Store, id: AccountId) {
    store.save_quotas(&[(id, Quota::new(vec![window()]))]).await.unwrap();
    let past = Past::Refused(Fault::Reused);
    let mark = RefreshMark { content: [1; 32], past, code: "reused".into() };
    store.mark_refresh(id, &mark).await.unwrap();
}

async fn knows(store: &Store, id: AccountId) -> [bool; 2] {
    let mark = store.refresh_mark(id).await.unwrap();
    [!store.quotas().await.unwrap().is_empty(), mark.is_some()]
}

#[tokio::test]
async fn who_takes_over_a_name_inherits_nothing_learnt_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    store.remove_account(id, NOW).await.unwrap();
    learn_late(&store, id).await;
    let at = Timestamp(NOW.0 + 1);
    assert_eq!(store.add_account(&settings("a"), Origin::Cli, at).await.unwrap(), Some(id));
    assert_eq!(knows(&store, id).await, [false; 2]);
    assert_eq!(store.accounts().await.unwrap()[0].resumed_at, Some(at), "vouched for");

    // The configuration file takes it over: first in the same place, then in another; and a gateway
    // that was stopped finds another place.
    let at_key = |name: &str| RawAccount { key_env: Some(name.into()), ..settings("a") };
    for (config, leaves, kept, pause_kept) in [
        (settings("a"), true, true, true),
        (settings("a"), true, true, true),
        (at_key("OTHER"), true, false, false),
        (at_key("OTHER"), false, true, true),
        (at_key("THIRD"), false, false, true),
    ] {
        learn_late(&store, id).await;
        store.set_stop(id, Some(Stop::ALL[0])).await.unwrap();
        store.pause(id).await.unwrap();
        if leaves {
            store.sync_config_accounts(&[], at).await.unwrap();
        }
        let later = Timestamp(at.0 + 1);
        store.sync_config_accounts(std::slice::from_ref(&config), later).await.unwrap();
        let row = store.accounts().await.unwrap().remove(0);
        let told = format!("{:?}, leaves: {leaves}", config.key_env);
        assert_eq!(knows(&store, id).await, [kept; 2], "{told}");
        assert_eq!((row.stop.is_some(), row.paused), (kept, pause_kept), "{told}");
        assert!(kept || row.resumed_at == Some(later), "{told}: vouched for");
    }
}

/// As an older release may have written it: it is about to be replaced.
#[tokio::test]
async fn settings_that_cannot_be_read_any_more_stop_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    learn_late(&store, id).await;
    sqlx::query("UPDATE accounts SET settings = '{'").execute(&store.write).await.unwrap();
    store.sync_config_accounts(&[settings("a")], NOW).await.unwrap();
    assert_eq!(store.accounts().await.unwrap()[0].settings.name, "a");
    assert_eq!(knows(&store, id).await, [false; 2], "who knows what it was about");
}

#[tokio::test]
async fn one_accounts_settings_of_another_release_keep_no_other_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for name in ["a", "b"] {
        store.add_account(&settings(name), Origin::Cli, NOW).await.unwrap().unwrap();
    }
    let newer = r#"UPDATE accounts SET settings = '{"of_tomorrow":1}' WHERE name = 'a'"#;
    sqlx::query(newer).execute(&store.write).await.unwrap();
    let names: Vec<_> =
        store.accounts().await.unwrap().into_iter().map(|a| a.settings.name).collect();
    assert_eq!(names, ["b"]);
    let unread = Unread {
        id: AccountId(1),
        name: "a".into(),
        origin: Origin::Cli,
        paused: false,
        resumed_at: None,
        why: "unknown field `of_tomorrow`".into(),
    };
    assert_eq!(store.all_accounts().await.unwrap().1, [unread]);
}

/// spec §2: the file decides, read-only elsewhere.
#[tokio::test]
async fn what_was_stored_under_a_name_of_the_file_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    store.put_credential(id, b"sealed", NOW).await.unwrap();
    store.sync_config_accounts(&[settings("a")], NOW).await.unwrap();
    assert_eq!(store.accounts().await.unwrap()[0].sealed, None);
    // Nor does it come back with an account that is added later.
    store.sync_config_accounts(&[], NOW).await.unwrap();
    store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap();
    assert_eq!(store.accounts().await.unwrap()[0].sealed, None);
    assert_eq!(store.credential(id).await.unwrap(), None);
}

#[tokio::test]
async fn a_new_sign_in_ends_what_stopped_the_old_one_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    store.put_credential(id, b"old", NOW).await.unwrap();
    store.pause(id).await.unwrap();
    store.save_quotas(&[(id, Quota::new(vec![window()]))]).await.unwrap();
    for (version, stop) in (2..).zip(Stop::ALL) {
        store.set_stop(id, Some(stop)).await.unwrap();
        let past = Past::Refused(Fault::Reused);
        let mark = RefreshMark { content: [1; 32], past, code: "reused".into() };
        store.mark_refresh(id, &mark).await.unwrap();
        let before = store.revision().await.unwrap();
        let at = Timestamp(NOW.0 + version);
        store.signed_in(id, Some(b"new"), false, at).await.unwrap();
        let row = store.accounts().await.unwrap().remove(0);
        assert_eq!((row.stop, row.resumed_at, row.paused), (None, Some(at), true), "{stop:?}");
        assert_eq!(row.sealed, Some((b"new".to_vec(), version)));
        assert_eq!(store.refresh_mark(id).await.unwrap(), None);
        assert_ne!(store.revision().await.unwrap(), before, "a running gateway is told");
    }
    assert_eq!(store.quotas().await.unwrap().len(), 1, "its quota is the same one's");
    store.signed_in(id, None, true, NOW).await.unwrap();
    assert!(store.quotas().await.unwrap().is_empty(), "it was another one's");
    assert!(store.accounts().await.unwrap()[0].sealed.is_some(), "a file's, or what was stored");
}

#[tokio::test]
async fn quotas_survive() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = store.add_account(&settings("a"), Origin::Cli, NOW).await.unwrap().unwrap();
    let window = |limit| Window {
        limit,
        length: Duration::from_hours(5),
        used: Fraction::from_ppm(1234),
        resets_at: Some(Timestamp(9)),
        observed_at: NOW,
    };
    let quota = Quota::new(vec![window(Limit::Ordinary), window(Limit::Named("x".into()))]);
    store.save_quotas(&[(id, quota.clone())]).await.unwrap();
    assert_eq!(store.quotas().await.unwrap(), [(id, quota)]);
    store.save_quotas(&[(id, Quota::default())]).await.unwrap();
    assert!(store.quotas().await.unwrap().is_empty(), "what is known no more is not kept");
}
