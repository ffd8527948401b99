//! Canaries: secrets that tests put in, and the search for them in everything that comes out.
//!
//! What comes out is kept here as *sinks*: the log at its most talkative level, answers, what commands
//! print, files of the data directory. A secret is searched for raw, in base64 wherever its first byte
//! falls, URL-encoded, escaped as in JSON, and in hexadecimal; of a long one its ends, so that a piece
//! of it is found as well.
//!
//! Off unless [`listen`] was called or `POOLGATE_CANARIES` is set: then every test that ends with
//! `Harness::finish` searches (`make soak`).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use poolgate_sim::Sim;
use tracing_subscriber::fmt::MakeWriter;

/// Of a secret longer than two of these, the two ends are searched for.
const PIECE: usize = 24;
/// Shorter would be found by chance.
const LEAST: usize = 8;
/// A search looks these bytes up first.
type Start = [u8; LEAST];

static ON: AtomicBool = AtomicBool::new(false);
static SECRETS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
static SINKS: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());

pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed) || std::env::var_os("POOLGATE_CANARIES").is_some()
}

/// From now on everything that is logged in this process is a sink.
pub fn listen() {
    ON.store(true, Ordering::Relaxed);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(Log);
    // The second test of a process finds it there.
    let _ = subscriber.try_init();
}

/// Registers a secret. `what` it is stands in reports.
pub fn secret(what: &str, text: &str) {
    assert!(text.len() >= LEAST, "{what} is too short to be searched for");
    SECRETS.lock().insert(text.to_owned(), what.to_owned());
}

/// Every credential that the simulated providers ever gave out.
pub fn secrets_of(sim: &Sim) {
    for token in sim.credentials() {
        secret("a provider's credential", &token);
    }
}

/// Keeps what came out somewhere.
pub fn sink(name: &str, bytes: &[u8]) {
    if is_on() {
        SINKS.lock().entry(name.to_owned()).or_default().extend_from_slice(bytes);
    }
}

/// Whose purpose is to hold a secret, and the operator's own file.
const EXEMPT: [&str; 3] = ["master.key", "admin.token", "poolgate.toml"];

/// The files of a data directory.
pub fn sink_files(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            sink_files(&path);
        } else if EXEMPT.iter().all(|exempt| name != *exempt) {
            let bytes = std::fs::read(&path).unwrap_or_default();
            SINKS.lock().insert(format!("file {}", path.display()), bytes);
        }
    }
}

/// What was logged since [`listen`].
pub fn logged() -> String {
    String::from_utf8_lossy(SINKS.lock().get("the log").map_or(&[][..], Vec::as_slice)).into_owned()
}

/// Bytes searched, by sink.
pub fn sizes() -> BTreeMap<String, usize> {
    SINKS.lock().iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect()
}

/// Where which secret was found, in which form, with what stands before it.
pub fn search() -> Vec<String> {
    let needles = Needles::of(&SECRETS.lock());
    let sinks = SINKS.lock();
    sinks.iter().flat_map(|(name, bytes)| needles.find(name, bytes)).collect()
}

/// Searches, and forgets what was searched.
pub fn check() {
    if is_on() {
        let found = search();
        SINKS.lock().clear();
        assert!(found.is_empty(), "{} secrets came out: {found:#?}", found.len());
    }
}

struct Needles {
    by_start: HashMap<Start, Vec<(Vec<u8>, String)>>,
    /// By the first two bytes: whether any needle begins with them.
    begins: Vec<bool>,
}

impl Needles {
    fn of(secrets: &BTreeMap<String, String>) -> Self {
        let mut needles = Self { by_start: HashMap::new(), begins: vec![false; 1 << 16] };
        for (text, what) in secrets {
            for piece in pieces(text.as_bytes()) {
                for (form, needle) in forms(piece) {
                    let start: Start = needle[..LEAST].try_into().unwrap();
                    needles.begins[usize::from(u16::from_be_bytes([start[0], start[1]]))] = true;
                    let here = needles.by_start.entry(start).or_default();
                    if here.iter().all(|(known, _)| *known != needle) {
                        here.push((needle, format!("{what}, {form}")));
                    }
                }
            }
        }
        needles
    }

    fn find(&self, name: &str, bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for (at, window) in bytes.windows(LEAST).enumerate() {
            if !self.begins[usize::from(u16::from_be_bytes([window[0], window[1]]))] {
                continue;
            }
            let start: Start = window.try_into().unwrap();
            for (needle, what) in self.by_start.get(&start).into_iter().flatten() {
                if bytes[at..].starts_with(needle) {
                    let before = String::from_utf8_lossy(&bytes[at.saturating_sub(120)..at]);
                    found.push(format!("{what}, in {name}, after {before:?}"));
                }
            }
        }
        found
    }
}

fn pieces(secret: &[u8]) -> Vec<&[u8]> {
    if secret.len() <= 2 * PIECE {
        return vec![secret];
    }
    vec![&secret[..PIECE], &secret[secret.len() - PIECE..]]
}

/// The ways in which bytes get into text.
fn forms(piece: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex = |upper: bool| {
        piece.iter().fold(String::new(), |mut text, byte| {
            let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
            text
        })
    };
    let url = |plus: bool| {
        piece.iter().fold(String::new(), |mut text, byte| {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(*byte));
                }
                b' ' if plus => text.push('+'),
                byte => write!(text, "%{byte:02X}").unwrap(),
            }
            text
        })
    };
    let text = String::from_utf8_lossy(piece).into_owned();
    let escape = |text: &str| {
        let quoted = serde_json::to_string(text).unwrap();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let once = escape(&text);
    let mut all = vec![
        ("raw", piece.to_vec()),
        ("URL-encoded", url(false).into_bytes()),
        ("URL-encoded, as in forms", url(true).into_bytes()),
        ("as in JSON", once.clone().into_bytes()),
        ("as in JSON with escaped slashes", once.replace('/', "\\/").into_bytes()),
        ("as in JSON within JSON", escape(&once).into_bytes()),
        ("as Rust prints it", text.escape_debug().to_string().into_bytes()),
        ("hexadecimal", hex(false).into_bytes()),
        ("hexadecimal", hex(true).into_bytes()),
    ];
    for before in 0..3 {
        let shifted = [&[0; 2][..before], piece].concat();
        // Characters that its neighbours have a say in are left out.
        let (from, to) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
        for text in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            all.push(("base64", text.as_bytes()[from..to].to_vec()));
        }
    }
    all
}

/// Where this process logs to.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sink("the log", bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "pass word/\"with\\ everything é+?";

    fn found_in(sink: &[u8]) -> Vec<String> {
        let secrets = [(SECRET.to_owned(), "it".to_owned())];
        Needles::of(&secrets.into()).find("x", sink)
    }

    /// reliability P5.
    #[test]
    fn finds_a_planted_secret_in_each_form_wherever_it_stands() {
        for before in ["", "a", "ab", "abc"] {
            let with = format!("{before}{SECRET}xyz");
            let json = serde_json::to_string(&with).unwrap();
            let plants = [
                ("raw", with.clone()),
                ("base64", STANDARD_NO_PAD.encode(&with)),
                ("base64 for URLs", URL_SAFE_NO_PAD.encode(&with)),
                ("JSON", json.clone()),
                ("JSON, slashes", json.replace('/', "\\/")),
                ("JSON in JSON", serde_json::to_string(&json).unwrap()),
                (
                    "URL",
                    with.bytes().fold(String::new(), |text, byte| match byte {
                        b'a'..=b'z' => text + &char::from(byte).to_string(),
                        _ => text + &format!("%{byte:02X}"),
                    }),
                ),
                ("Debug", format!("{with:?}")),
                ("hex", with.bytes().map(|byte| format!("{byte:02x}")).collect()),
                ("HEX", with.bytes().map(|byte| format!("{byte:02X}")).collect()),
            ];
            for (form, planted) in plants {
                let sink = format!("noise {planted} noise");
                assert!(!found_in(sink.as_bytes()).is_empty(), "{form} behind {before:?}");
                let broken = sink.replace("ord", "rod").replace("b3Jk", "AAAA");
                let broken = broken.replace("6f7264", "000000").replace("6F7264", "000000");
                let is_base64 = form.starts_with("base64");
                assert!(is_base64 || found_in(broken.as_bytes()).is_empty(), "{form}: not it");
            }
        }
        assert!(found_in(b"nothing to see here").is_empty());
    }

    #[test]
    fn finds_a_long_secret_that_was_cut() {
        let secret: String = ('a'..='z').chain('A'..='Z').chain('0'..='9').collect();
        let needles = Needles::of(&[(secret.clone(), "it".to_owned())].into());
        assert_eq!(needles.find("x", &secret.as_bytes()[..30]).len(), 1);
        assert_eq!(needles.find("x", &secret.as_bytes()[30..]).len(), 1);
        assert_eq!(needles.find("x", &secret.as_bytes()[20..40]).len(), 0);
    }

    /// The sinks are really searched.
    #[test]
    fn what_is_logged_said_or_written_is_found() {
        listen();
        secret("a planted one", "canary-in-a-coal-mine");
        tracing::trace!(token = "canary-in-a-coal-mine", "planted");
        sink("an answer", b"{\"t\":\"canary-in-a-coal-mine\"}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), STANDARD_NO_PAD.encode("1canary-in-a-coal-mine"))
            .unwrap();
        sink_files(dir.path());
        let found = search();
        for sink in ["the log", "an answer", "file "] {
            assert!(
                found.iter().any(|hit| hit.contains(&format!("in {sink}"))),
                "{sink}: {found:?}"
            );
        }
        SINKS.lock().clear();
        SECRETS.lock().remove("canary-in-a-coal-mine");
    }
}
