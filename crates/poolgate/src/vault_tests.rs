use crate::config::RawConfig;

use super::*;

struct World {
    dir: tempfile::TempDir,
    config: Config,
    store: Store,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let raw = RawConfig { data_dir: Some(dir.path().join("data")), ..RawConfig::default() };
    let config = Config::resolve(raw).unwrap();
    let store = Store::open(&config.data_dir).await.unwrap();
    World { dir, config, store }
}

impl World {
    fn file(&self) -> &Path {
        &self.config.master_key_file
    }

    fn keys(&self) -> Vec<String> {
        let keys = KeyPlace::File(self.file().to_owned()).keys().unwrap();
        keys.iter().map(|found| found.key.fingerprint().to_owned()).collect()
    }

    async fn opens(&self, sealed: &[u8]) {
        let key = unlock(&self.config, &self.store).await.unwrap();
        assert_eq!(key.open("x", sealed).unwrap(), b"token");
    }
}

#[tokio::test]
async fn a_wrong_or_missing_master_key_is_said_with_both_fingerprints_and_none_is_made() {
    let w = world().await;
    unlock(&w.config, &w.store).await.unwrap();
    let right = w.keys()[0].clone();
    let kept = std::fs::read(w.file()).unwrap();
    std::fs::remove_file(w.file()).unwrap();
    let missing = unlock(&w.config, &w.store).await.unwrap_err().to_string();
    assert!(missing.contains(&right) && missing.contains("missing"), "{missing}");
    assert!(!w.file().exists(), "another key would only be in the way");
    files::create_private(w.file(), MasterKey::generate().unwrap().as_bytes()).unwrap();
    let wrong = unlock(&w.config, &w.store).await.unwrap_err().to_string();
    assert!(wrong.contains(&right) && wrong.contains(&w.keys()[0]), "{wrong}");
    std::fs::write(w.file(), kept).unwrap();
    unlock(&w.config, &w.store).await.unwrap();
}

#[tokio::test]
async fn a_rotation_that_ends_after_any_step_leaves_a_key_that_fits() {
    let w = world().await;
    let sealed = unlock(&w.config, &w.store).await.unwrap().seal("x", b"token").unwrap();
    for steps in 0..=3 {
        let place = KeyPlace::File(w.file().to_owned());
        let old = master_key(&place, &w.store).await.unwrap().key;
        let text = MasterKey::generate().unwrap();
        let new = MasterKey::from_base64(&text).unwrap();
        if steps >= 1 {
            write_next(w.file(), &text).unwrap();
        }
        if steps >= 2 {
            w.store.change_master_key(&old, &new).await.unwrap();
        }
        if steps >= 3 {
            put_in_place(w.file(), new.fingerprint()).unwrap();
        }
        w.opens(&sealed).await;
        let want = if steps >= 2 { &new } else { &old };
        assert_eq!(w.keys()[0], want.fingerprint(), "finished, if it had begun: {steps}");
        // And the next rotation is not in the way of what this one left.
        let rotated = rotate(&w.config, &w.store, None).await.unwrap();
        assert_eq!((&rotated.old, w.keys()), (&want.fingerprint().to_owned(), vec![rotated.new]));
        w.opens(&sealed).await;
    }
}

#[tokio::test]
async fn the_operators_own_new_key_is_taken_if_it_is_private_and_new() {
    let w = world().await;
    let sealed = unlock(&w.config, &w.store).await.unwrap().seal("x", b"token").unwrap();
    let given = w.dir.path().join("given.key");
    let rotate = async || rotate(&w.config, &w.store, Some(&given)).await;
    assert!(rotate().await.unwrap_err().to_string().contains("there is no"));
    std::fs::write(&given, MasterKey::generate().unwrap()).unwrap();
    std::fs::set_permissions(&given, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(rotate().await.unwrap_err().to_string().contains("everybody"));
    std::fs::set_permissions(&given, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    rotate().await.unwrap();
    assert_eq!(std::fs::read(w.file()).unwrap(), std::fs::read(&given).unwrap());
    assert!(rotate().await.unwrap_err().to_string().contains("present one"));
    w.opens(&sealed).await;
}

#[tokio::test]
async fn one_rotation_at_a_time() {
    let w = world().await;
    let held = only_rotation(&w.config.data_dir).unwrap();
    assert!(held.is_some());
    assert!(rotate(&w.config, &w.store, None).await.unwrap_err().to_string().contains("another"));
    drop(held);
    rotate(&w.config, &w.store, None).await.unwrap();
}

#[test]
fn a_key_that_the_store_does_not_want_replaces_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let [present, next] = [(), ()].map(|()| MasterKey::generate().unwrap());
    let wanted = MasterKey::from_base64(&present).unwrap();
    files::create_private(&path, present.as_bytes()).unwrap();
    // Another rotation has begun meanwhile.
    write_next(&path, &next).unwrap();
    put_in_place(&path, wanted.fingerprint()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), present);
    assert_eq!(std::fs::read_to_string(next_key_file(&path)).unwrap(), next);
}

#[tokio::test]
async fn a_rotation_under_way_is_left_to_finish_itself() {
    let w = world().await;
    let sealed = unlock(&w.config, &w.store).await.unwrap().seal("x", b"token").unwrap();
    let place = KeyPlace::File(w.file().to_owned());
    let old = master_key(&place, &w.store).await.unwrap().key;
    let held = only_rotation(&w.config.data_dir).unwrap();
    let text = MasterKey::generate().unwrap();
    let new = MasterKey::from_base64(&text).unwrap();
    write_next(w.file(), &text).unwrap();
    w.store.change_master_key(&old, &new).await.unwrap();
    w.opens(&sealed).await;
    assert_eq!(w.keys(), [old.fingerprint(), new.fingerprint()], "both where they were");
    drop(held);
    w.opens(&sealed).await;
    assert_eq!(w.keys(), [new.fingerprint()]);
}

#[tokio::test]
async fn rescued_tokens_of_an_older_version_are_sealed_anew() {
    let w = world().await;
    unlock(&w.config, &w.store).await.unwrap();
    let place = KeyPlace::File(w.file().to_owned());
    let master = master_key(&place, &w.store).await.unwrap().key;
    let dir = w.config.data_dir.join("credentials");
    files::create_private_dir(&dir).unwrap();
    let file = dir.join("7.rescued");
    std::fs::write(&file, master.seal_direct("rescued/7", b"tokens")).unwrap();
    for _ in 0..2 {
        let key = unlock(&w.config, &w.store).await.unwrap();
        assert_eq!(key.open("rescued/7", &std::fs::read(&file).unwrap()).unwrap(), b"tokens");
    }
}
