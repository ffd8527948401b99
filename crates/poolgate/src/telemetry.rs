//! Where log lines go: standard error, as text for people or JSON for machines.
//!
//! One event, once, where it is handled; ids as fields. No credential, body or prompt is ever a
//! field: secrets have a type that cannot be printed, and bodies are not given to `tracing`.
//!
//! Nobody waits for the reader of the log. Lines go through a bounded queue to a thread of their own;
//! when that stands still they are dropped, counted, and the count is the next line to be written.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait, most of them below 300 bytes.
const WAITING_MAX: usize = 4096;
/// At the end of the process, for what still waits.
const FLUSH_FOR: Duration = Duration::from_secs(1);

static LINES: OnceLock<Lines> = OnceLock::new();

/// `RUST_LOG` decides what is shown; by default our own events from `info`, others' from `warn`.
/// What is given back writes the last lines when it is dropped.
pub fn init(json: bool) -> Flush {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,poolgate=info"));
    let lines = LINES.get_or_init(|| Lines::to(io::stderr()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        .with_ansi(io::stderr().is_terminal());
    // A second call, in a test, changes nothing.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
    Flush
}

#[derive(Debug)]
pub struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        flush();
    }
}

/// Waits until all lines so far are written, but not for a reader who reads no more.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_FOR);
    }
}

#[derive(Clone, Debug)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: Mutex<Counts>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    waiting: usize,
    dropped: u64,
}

impl Lines {
    fn to(out: impl Write + Send + 'static) -> Self {
        let (queue, lines) = sync_channel(WAITING_MAX);
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        // Without the thread nothing reads the queue, and every line is dropped: no reason to stop.
        let _ = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(out, &lines, &shared));
        Self { queue, state }
    }

    fn flush(&self, at_most: Duration) {
        let mut counts = self.state.counts.lock();
        self.state.written.wait_while_for(&mut counts, |counts| counts.waiting > 0, at_most);
    }
}

/// Until nobody can log any more. A broken sink is passed over: there is nobody to tell.
fn write_lines(mut out: impl Write, lines: &Receiver<Vec<u8>>, state: &State) {
    for line in lines {
        let dropped = std::mem::take(&mut state.counts.lock().dropped);
        let _ = out.write_all(&line);
        if dropped > 0 {
            let _ = writeln!(out, "{dropped} log lines were dropped: nobody read them in time");
        }
        let _ = out.flush();
        state.counts.lock().waiting -= 1;
        state.written.notify_all();
    }
}

impl Write for Lines {
    /// One line at a time, as `tracing_subscriber` writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut counts = self.state.counts.lock();
        match self.queue.try_send(line.to_vec()) {
            Ok(()) => counts.waiting += 1,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => counts.dropped += 1,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes nothing until it may.
    struct Gate(Arc<Mutex<()>>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.0.lock();
            self.1.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let (gate, seen) = (Arc::<Mutex<()>>::default(), Arc::<Mutex<Vec<u8>>>::default());
        let closed = gate.lock();
        let mut lines = Lines::to(Gate(Arc::clone(&gate), Arc::clone(&seen)));
        for n in 0..WAITING_MAX + 1000 {
            lines.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        lines.flush(Duration::ZERO);
        assert!(seen.lock().is_empty(), "and nobody has waited");
        drop(closed);
        lines.flush(Duration::from_secs(20));
        let seen = String::from_utf8(seen.lock().clone()).unwrap();
        let (told, written): (Vec<&str>, Vec<&str>) =
            seen.lines().partition(|line| line.ends_with("nobody read them in time"));
        let dropped: usize =
            told.iter().map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
        assert!((1..=2).contains(&told.len()), "{told:?}");
        // The thread may have taken one line before the queue was full.
        assert!((WAITING_MAX..=WAITING_MAX + 1).contains(&written.len()), "{}", written.len());
        assert_eq!(written.len() + dropped, WAITING_MAX + 1000);
        assert_eq!(written[1], "line 1", "in order");
    }
}
