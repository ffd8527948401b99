//! Sign-ins that come from a file, and those that are there already.

use super::*;

/// An imported Claude document does not say whose it is; its first renewal does.
#[tokio::test]
async fn whose_an_imported_sign_in_is_becomes_known_when_it_is_renewed() {
    let (h, (c, d)) = Harness::start(|s: &mut Setup| (s.sim.claude("c"), s.sim.claude("d"))).await;
    let document = h.dir.path().join("c.json");
    std::fs::write(&document, c.credentials_json()).unwrap();
    let (path, places) = (document.to_str().unwrap(), places(&c));
    let add = ["account", "add", "mine", "--kind", "claude", "--import", path];
    assert!(run(&data(&h), &with_places(&add, &places), "").await.status.success());
    let output = run(&data(&h), &["account", "refresh", "mine"], "").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    d.signs_in();
    let mut login = Login::with_browser(&data(&h), &["claude", "--name", "mine"]).await;
    let code = code_shown(&h, &login.url).await;
    login.paste(&code).await;
    let (ok, said) = login.end().await;
    assert!(!ok && said.contains("mine is c@example.invalid"), "{said}");
    h.finish().await;
}

/// As after a downgrade: a sign-in with a browser would be lost, since the name is found taken behind it.
#[tokio::test]
async fn an_account_that_cannot_be_read_keeps_its_name() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.codex("a")).await;
    h.rows(
        r#"INSERT INTO accounts (name, origin, settings, created_at)
           VALUES ('codex', 'cli', '{"of_tomorrow":1}', 0)"#,
    )
    .await;
    let file = h.dir.path().join("sign-in.json");
    std::fs::write(&file, a.auth_json()).unwrap();
    let import = ["account", "import", file.to_str().unwrap()];
    let output = run(&data(&h), &with_places(&import, &places(&a)), "").await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("added codex-2"), "{said}");
    h.finish().await;
}

/// spec §2; reliability §6.9: the file of one who is there already renews the account, unless it is
/// older than what the account has.
#[tokio::test]
async fn a_file_is_imported_once_and_again_only_if_it_is_newer() {
    let (h, (a, b, c)) =
        Harness::start(|s: &mut Setup| (s.sim.codex("a"), s.sim.codex("b"), s.sim.claude("c")))
            .await;
    let file = h.dir.path().join("sign-in.json");
    let import = async |document: &str, args: &[&str]| {
        std::fs::write(&file, document).unwrap();
        let args = [&["account", "import", file.to_str().unwrap()], args].concat();
        let output = run(&data(&h), &args, "").await;
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (of_a, of_c) = (places(&a), places(&c));
    let first = a.auth_json();
    let (ok, said) = import(&first, &with_places(&["--name", "mine"], &of_a)).await;
    assert!(ok && said.contains("of a@example.invalid; added mine"), "{said}");
    let (ok, said) = import(&c.credentials_json(), &with_places(&[], &of_c)).await;
    assert!(ok && said.contains("added claude"), "{said}");
    for kind in [Kind::Codex, Kind::Claude] {
        until("served", async || served(&h, kind).await).await;
    }

    h.sim.advance(std::time::Duration::from_mins(1));
    assert!(run(&data(&h), &["account", "refresh", "mine"], "").await.status.success());
    let (ok, said) = import(&first, &["--name", "mine"]).await;
    assert!(!ok && said.contains("newer sign-in than this file"), "{said}");
    let (ok, said) = import(&first, &[]).await;
    assert!(!ok && said.contains("newer sign-in than this file"), "without a name: {said}");
    let (ok, said) = import(&b.auth_json(), &["--name", "mine"]).await;
    assert!(!ok && said.contains("mine is a@example.invalid"), "{said}");
    assert!(served(&h, Kind::Codex).await, "all that changed nothing");

    h.sim.advance(std::time::Duration::from_mins(1));
    a.renew().expire_access_token();
    let renewed = a.renew().auth_json();
    let (ok, said) = import(&renewed, &[]).await;
    assert!(ok && said.contains("mine has a new sign-in"), "{said}");
    let before = a.refresh_token();
    until("served", async || served(&h, Kind::Codex).await).await;
    assert_eq!(a.refresh_token(), before, "the imported token serves, and none was renewed for it");
    let (ok, said) = import(r#"{"tokens":{"access_token":"secret"}}"#, &[]).await;
    assert!(!ok && said.contains("no refresh token") && !said.contains("secret"), "{said}");
    h.finish().await;
}

/// spec §2: an account is one, however its sign-in came; Claude Code's file does not say whose it is.
#[tokio::test]
async fn a_sign_in_that_is_there_already_is_not_added_under_another_name() {
    let (h, all) = Harness::start(|s: &mut Setup| {
        [("codex", s.sim.codex("a"), s.codex("x")), ("claude", s.sim.claude("c"), s.claude("y"))]
    })
    .await;
    for (kind, account, in_the_file) in all {
        let document = match kind {
            "codex" => account.auth_json(),
            _ => account.credentials_json(),
        };
        let file = h.dir.path().join("sign-in.json");
        std::fs::write(&file, document).unwrap();
        let file = file.to_str().unwrap();
        let other = in_the_file.name();
        let shared = h.dir.path().join(format!("{other}.json"));
        let mine = format!("my_{kind}");
        let add = async |name: &str, how: &str, file: &str| {
            let args = ["account", "add", name, "--kind", kind, how, file];
            let output = run(&data(&h), &with_places(&args, &places(&account)), "").await;
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        };
        let (ok, said) = add(&mine, "--import", file).await;
        assert!(ok, "{said}");
        for how in ["--import", "--auth-file"] {
            let (ok, said) = add("twin", how, file).await;
            assert!(!ok && said.contains(&format!("is the account {mine:?} already")), "{said}");
            let (ok, said) = add("twin", how, shared.to_str().unwrap()).await;
            assert!(!ok && said.contains(&format!("{other:?} already")), "{said}");
        }
        let (ok, said) = add(&mine, "--import", file).await;
        assert!(!ok && said.contains("there is an account named"), "{said}");
    }
    let names: Vec<_> =
        h.app.store.accounts().await.unwrap().into_iter().map(|row| row.settings.name).collect();
    assert_eq!(names, ["x", "y", "my_codex", "my_claude"]);
    h.finish().await;
}
