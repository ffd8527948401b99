use super::*;
use crate::pool::{PoolView, WindowView};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// 2026-11-22 13:53 UTC.
const NOW: i64 = 1_795_355_580_000;

fn window(name: &str, used_percent: f64, resets_in: i64) -> WindowView {
    WindowView { name: name.into(), used_percent, resets_at: Some(NOW + resets_in) }
}

fn account(name: &str, kind: &str, windows: Vec<WindowView>) -> AccountView {
    AccountView {
        name: name.into(),
        kind: kind.into(),
        priority: 0,
        weight: 1.0,
        state: "ready".into(),
        problem: None,
        until: None,
        windows,
        heard_at: Some(NOW - 3 * MINUTE),
        plan: None,
        in_flight: 1,
        concurrency: None,
        concurrency_is_learnt: false,
        attempts: 9,
        served: 8,
        failovers: 1,
    }
}

fn status(accounts: Vec<AccountView>) -> Status {
    Status {
        version: "0.1.0".into(),
        pool: PoolView { accounts },
        in_flight: 2,
        configuration: crate::reconfigure::Outcome::default(),
        spool_waiting_bytes: 0,
        now: NOW,
    }
}

fn small() -> Status {
    let both = vec![window("5h", 19.0, 2 * HOUR + 10 * MINUTE), window("weekly", 40.5, 90 * HOUR)];
    let spent = vec![window("5h", 100.0, 12 * MINUTE), window("weekly", 97.0, 24 * HOUR)];
    let mut limited = account("bob", "claude", spent);
    limited.state = "limited".into();
    limited.until = Some(NOW + 12 * MINUTE);
    status(vec![
        account("alice", "codex", both),
        limited,
        account("carol", "codex", vec![]),
        account("key", "openai", vec![]),
    ])
}

fn plain(status: &Status, width: usize) -> String {
    render(status, Style { width, color: false })
}

#[test]
fn at_80_columns() {
    let want = "\
poolgate 0.1.0  3 of 4 accounts ready  2 running  records all stored

                                                       run-          fail-
account  state          5h left   resets  weekly left  ning  served  overs
alice    ready          ████░  81% 2h10m  ████░░  59%     1       8      1
bob      limited 12m    ░░░░░   0%   12m  █░░░░░   3%     1       8      1
carol    ready          no data yet       no data yet     1       8      1
key      ready          –                 –               1       8      1
";
    assert_eq!(plain(&small(), 80), want);
}

/// What was heard has the windows that it has.
#[test]
fn a_window_that_an_account_has_not_is_no_missing_data() {
    let mut one = small();
    one.pool.accounts[0].windows.pop();
    let alice = plain(&one, 80).lines().nth(4).unwrap().to_owned();
    assert!(alice.contains('–') && !alice.contains("no data"), "{alice}");
}

#[test]
fn with_room_it_spells_things_out() {
    let picture = plain(&small(), 160);
    assert_eq!(
        picture.lines().nth(4).unwrap(),
        "bob      claude  limited until 14:05 UTC (in 12m)     ░░░░░░░░░░   0%    in 12m  \
         █░░░░░░░░░   3% in 1d 00h  3m 00s ago        1       8          1"
    );
    let mut silent = small();
    silent.pool.accounts[1].heard_at = None;
    assert!(plain(&silent, 160).contains("in 1d 00h       never        1"));
}

#[test]
fn no_line_is_wider_than_asked() {
    let mut status = small();
    status.pool.accounts[0].name = "名".repeat(64);
    status.pool.accounts[1].name = "\u{202e}".repeat(21);
    status.pool.accounts[2].problem = Some("a long story\nabout a file ".repeat(9));
    status.pool.accounts[3].windows = vec![window("24h", 3.0, HOUR), window("720h", 3.0, HOUR)];
    for width in 1..200 {
        for line in plain(&status, width).lines() {
            assert!(text::width(line) <= width, "{width}: {line}");
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }
}

#[test]
fn narrow_terminals_lose_the_least_important_columns_first() {
    let cases: [(usize, &[&str], &[&str]); 4] = [
        (100, &["kind", "5h left", "resets", "weekly left", "overs"], &["UTC"]),
        (80, &["account", "state", "5h left", "resets", "weekly left", "served"], &["kind"]),
        (72, &["account", "state", "5h left", "weekly left"], &["resets"]),
        (44, &["account", "state", "5h left"], &["weekly", "served"]),
    ];
    for (width, has, lacks) in cases {
        let picture = plain(&small(), width);
        let titles = picture.lines().take(4).collect::<String>();
        for part in has {
            assert!(titles.contains(part), "{part} at {width}:\n{picture}");
        }
        for part in lacks {
            assert!(!titles.contains(part), "{part} at {width}:\n{picture}");
        }
    }
}

#[test]
fn colours_change_no_text() {
    let colored = render(&small(), Style { width: 80, color: true });
    assert!(colored.contains("\u{1b}[32mready\u{1b}[0m"));
    let mut text = String::new();
    for part in colored.split("\u{1b}[") {
        let skip = if text.is_empty() { 0 } else { part.find('m').map_or(0, |at| at + 1) };
        text.push_str(&part[skip..]);
    }
    let trimmed: String = text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    assert_eq!(trimmed.trim_start_matches("1m"), plain(&small(), 80));
}

#[test]
fn problems_stand_below() {
    let mut status = small();
    status.pool.accounts[0].problem = Some("the file is gone".into());
    assert!(plain(&status, 80).ends_with("\n! alice: the file is gone\n"));
    assert!(plain(&super::tests::status(vec![]), 80).contains("no accounts yet"));
}

#[test]
fn of_the_files_mistakes_all_is_shown() {
    let mut status = small();
    let mistakes = ["a mistake"; 30].join("; ");
    status.configuration.error = Some(mistakes.clone());
    assert!(plain(&status, 80).contains(&mistakes));
}
