//! `poolgate simulate`, as someone with a scenario of their own meets it.

use std::path::Path;

use poolgate::ledger::{Begin, Ended};
use poolgate::store::{SpoolPosition, Store};
use serde_json::Value;
use tokio::process::Command;

async fn simulate(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_poolgate"))
        .arg("simulate")
        .args(args)
        .env_remove("POOLGATE_CONFIG")
        .env("HOME", dir)
        .current_dir(dir)
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

const SCENARIO: &str = "about = 'Two'\ndays = 2\n[[account]]\nname = 'a'\ncount = 2\n\
                        [[traffic]]\nload = 1.0\n";

#[tokio::test]
async fn compares_strategies_for_people_and_machines() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.toml"), SCENARIO).unwrap();
    let args = ["mine.toml", "--strategy", "headroom", "--strategy", "single", "--runs", "2"];
    let text = simulate(dir.path(), &args).await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "mine: Two");
    assert!(lines[1].contains("2 accounts") && lines[1].contains("mean of 2 runs"), "{text}");
    assert!(lines[4].starts_with("headroom ") && lines[5].starts_with("single "), "{text}");
    assert_eq!(simulate(dir.path(), &args).await.unwrap(), text, "the same every time");
    let json = simulate(dir.path(), &[&args[..], &["--json"]].concat()).await.unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["strategies"][1]["strategy"], "single");
    let lost = |i: usize| json[0]["strategies"][i]["lost_percent"].as_f64().unwrap();
    assert!(lost(0) < lost(1), "{json}");
    let other = simulate(dir.path(), &[&args[..], &["--seed", "9"]].concat()).await.unwrap();
    assert_ne!(other, text);
}

#[tokio::test]
async fn mistakes_are_told_with_file_and_field() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.toml"), SCENARIO.replace("load = 1.0", "load = 0"))
        .unwrap();
    std::fs::write(dir.path().join("odd.toml"), format!("{SCENARIO}speed = 3\n")).unwrap();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["bad.toml"], &["bad.toml", "traffic 1: load"]),
        (&["odd.toml"], &["odd.toml", "speed"]),
        (&["nowhere.toml"], &["nowhere.toml"]),
        (&["equal", "--strategy", "best"], &["\"best\"", "headroom"]),
        (&["--load", "1"], &["--log"]),
    ];
    for (args, wanted) in cases {
        let error = simulate(dir.path(), args).await.unwrap_err();
        assert!(wanted.iter().all(|word| error.contains(word)), "{args:?}: {error}");
    }
}

#[tokio::test]
async fn lists_what_is_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let list = simulate(dir.path(), &["--list"]).await.unwrap();
    let names: Vec<&str> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() >= 6 && names.contains(&"bursty-team"), "{list}");
}

#[tokio::test]
async fn the_gateways_own_log_can_be_what_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let end = |i: i64| Ended {
        begin: Begin {
            id: format!("{i:04}").into(),
            at: 1_795_300_000_000 + i * 60_000,
            key: i % 3,
            surface: "responses".into(),
            model: "gpt-5.5".into(),
            ..Begin::default()
        },
        outcome: "complete".into(),
        total_ms: 5000,
        input: Some(20_000),
        output: Some(1000),
        ..Ended::default()
    };
    let ends: Vec<Ended<'_>> = (0..300).map(end).collect();
    let mut recording = store.recording().await.unwrap();
    recording.ends(&ends).await.unwrap();
    recording.commit(None, SpoolPosition::default()).await.unwrap();
    store.close().await;
    std::fs::write(dir.path().join("pool.toml"), "[[account]]\nname = 'a'\n").unwrap();
    let args = ["pool.toml", "--log", ".", "--runs", "1", "--strategy", "headroom"];
    let text = simulate(dir.path(), &args).await.unwrap();
    assert!(text.contains("300 requests of . in 3 guessed sessions; 0 left out"), "{text}");
    assert!(text.contains("1 account, 300 turns"), "{text}");
    let scaled = simulate(dir.path(), &[&args[..], &["--load", "0.5"]].concat()).await.unwrap();
    assert!(scaled.contains("load 0.50"), "{scaled}");
    let error = simulate(dir.path(), &["--log", "."]).await.unwrap_err();
    assert!(error.contains("no codex or claude account"), "{error}");
}
