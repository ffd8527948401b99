//! What reads strangers' bytes, against inputs that nobody would send: no panic, and the promises
//! that each target states.
//!
//! `make test` replays the corpus (`fuzz/corpus`) and a few thousand seeded changes of it; with
//! `POOLGATE_SOAK` they go on for a minute. The same functions are libFuzzer's targets
//! (`make fuzz`), which are better at finding something new.

mod body;
mod config;
mod events;
mod head;
mod input;
mod mutate;
mod socket;

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

/// Bounds of the ordinary run, whichever comes first.
const CHANGES: usize = 10_000;
const AT_MOST: Duration = Duration::from_secs(6);
const SOAK: Duration = Duration::from_mins(1);

/// Says which input broke the target.
struct Tried<'a>(&'a [u8]);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("broken by b\"{}\"", self.0.escape_ascii());
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn fuzz(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 5, "{target} has no corpus to speak of");
    let soak = std::env::var_os("POOLGATE_SOAK").is_some();
    let (most, until) = if soak { (usize::MAX, SOAK) } else { (CHANGES, AT_MOST) };
    let until = Instant::now() + until;
    let seed = if soak { rand::random() } else { 1 };
    println!("{target}: {} inputs, seed {seed}", corpus.len());
    let changed = mutate::Mutations::new(&corpus, seed).take(most);
    let mut tried = 0_usize;
    for input in corpus.iter().cloned().chain(changed) {
        let _tried = Tried(&input);
        run(&input);
        tried += 1;
        if tried.is_multiple_of(64) && tried > corpus.len() && Instant::now() > until {
            break;
        }
    }
    println!("{target}: {tried} tried");
}

#[test]
fn any_head_is_refused_or_understood_once() {
    fuzz("head", head::run);
}

#[test]
fn any_stream_is_read_and_passed_on_the_same_however_it_is_cut() {
    fuzz("events", events::run);
}

#[test]
fn any_body_is_read_as_serde_reads_it_and_changed_only_where_it_should_be() {
    fuzz("body", body::run);
}

#[test]
fn any_frames_end_a_socket_or_are_messages() {
    fuzz("socket", socket::run);
}

#[test]
fn any_text_is_a_configuration_or_a_list_of_mistakes() {
    fuzz("config", config::run);
}

/// libFuzzer's targets are a workspace of their own, which is built only by `make fuzz`.
#[test]
fn the_lock_of_the_fuzz_targets_knows_every_dependency() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| -> toml::Table {
        std::fs::read_to_string(root.join(path)).unwrap().parse().unwrap()
    };
    let lock = read("fuzz/Cargo.lock");
    let locked = lock["package"].as_array().unwrap();
    for (folder, package) in
        [("core", "poolgate-core"), ("poolgate", "poolgate"), ("sim", "poolgate-sim")]
    {
        let own = locked.iter().find(|p| p["name"].as_str() == Some(package)).unwrap();
        let empty = Vec::new();
        let known = own.get("dependencies").and_then(|d| d.as_array()).unwrap_or(&empty);
        let known: Vec<&str> = known.iter().filter_map(|d| d.as_str()?.split(' ').next()).collect();
        let manifest = read(&format!("crates/{folder}/Cargo.toml"));
        for name in manifest.get("dependencies").and_then(|d| d.as_table()).into_iter().flatten() {
            let name = name.0;
            assert!(
                known.contains(&name.as_str()),
                "{package} needs {name}: cargo update --workspace in fuzz/"
            );
        }
    }
}
