//! The writing side: append-only segments of lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BEGIN, Begin, END, End};
use crate::store::SpoolPosition;

/// A new segment is begun beyond this size; segments taken over whole are deleted.
const SEGMENT_MAX: u64 = 16 << 20;
/// What files here are, by their names' ends: lines, or that a process writes them.
const SEGMENT: &str = "spool";
const PROCESS: &str = "lock";
/// Few lines are longer.
const LINE: usize = 2048;

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    /// Shared for appending, which the file system keeps apart; alone for changing the segment.
    writer: RwLock<Writer>,
    /// Bytes appended and taken over since the start; their difference is what waits.
    appended: AtomicU64,
    moved: watch::Sender<u64>,
    dirty: AtomicBool,
    /// When everything appended before was in the store.
    caught_up: Mutex<Instant>,
    /// The last write failed. Until one succeeds no request is taken on.
    failing: AtomicBool,
    /// Ends of requests that were running by then; counted as appended, and written first of all.
    held: Mutex<Vec<Vec<u8>>>,
    /// The first segment of ours; those before it are of earlier processes.
    first: u64,
    /// Locked as long as this process may write here.
    alive: Mutex<Option<File>>,
    /// Cancelled when what earlier processes left is in the store.
    pub taken_over: CancellationToken,
}

#[derive(Debug)]
struct Writer {
    file: File,
    segment: u64,
    length: AtomicU64,
}

impl Spool {
    /// Starts a segment of its own, so that a line torn by an earlier crash stays the last of its
    /// file, and a process that is ending can go on with the one before.
    pub(super) fn open(dir: &Path, max_bytes: u64, position: SpoolPosition) -> io::Result<Self> {
        crate::files::create_private_dir(dir)?;
        let last = segments(dir)?.last().copied().unwrap_or(0).max(position.segment);
        let first = last + 1;
        let writer = Writer::create(dir, first)?;
        let alive = File::create(dir.join(format!("{first:012}.{PROCESS}")))?;
        alive.try_lock()?;
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            writer: RwLock::new(writer),
            appended: AtomicU64::new(0),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
            caught_up: Mutex::new(Instant::now()),
            failing: AtomicBool::new(false),
            held: Mutex::default(),
            first,
            alive: Mutex::new(Some(alive)),
            taken_over: CancellationToken::new(),
        })
    }

    /// Counts in what earlier processes left behind `position`.
    pub(super) fn inherit(&self, position: SpoolPosition) -> io::Result<()> {
        let left =
            segments(&self.dir)?.into_iter().filter(|segment| self.is_left(*segment, position));
        let size = |segment| std::fs::metadata(self.path(segment)).map_or(0, |file| file.len());
        let waiting: u64 = left.map(size).sum();
        let taken = if self.path(position.segment).exists() { position.offset } else { 0 };
        self.appended.fetch_add(waiting.saturating_sub(taken), Ordering::Relaxed);
        Ok(())
    }

    fn is_left(&self, segment: u64, position: SpoolPosition) -> bool {
        (position.segment..self.first).contains(&segment)
    }

    /// Whether earlier processes left anything behind `position`.
    pub(super) fn has_left(&self, position: SpoolPosition) -> io::Result<bool> {
        Ok(self.first_from(position.segment)?.is_some_and(|found| self.is_left(found, position)))
    }

    /// Whether an earlier process still writes its records here. Forgets those that are gone.
    pub(super) fn has_elders(&self) -> io::Result<bool> {
        for (process, path) in processes(&self.dir)? {
            if process < self.first {
                if is_running(&path)? {
                    return Ok(true);
                }
                // Another that waits may have been faster.
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(false)
    }

    /// Nothing more is written here: the next process may take over what was.
    pub(super) fn leave(&self) {
        *self.alive.lock() = None;
    }

    /// For a process that serves nothing: it has room for nothing and touches no file.
    pub fn unused() -> Self {
        let file = File::open("/dev/null").expect("every Unix has it");
        Self {
            dir: PathBuf::new(),
            max_bytes: 0,
            writer: RwLock::new(Writer { file, segment: 0, length: AtomicU64::new(0) }),
            appended: AtomicU64::new(0),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
            caught_up: Mutex::new(Instant::now()),
            failing: AtomicBool::new(false),
            held: Mutex::default(),
            first: 0,
            alive: Mutex::default(),
            taken_over: CancellationToken::new(),
        }
    }

    pub fn begin(&self, begin: &Begin<'_>) -> io::Result<()> {
        self.append(BEGIN, &begin.id, begin, None::<&()>)
    }

    pub fn end(&self, end: &End<'_, impl Serialize>) -> io::Result<()> {
        self.append(END, &end.begin.id, end, Some(&end.decisions))
    }

    /// Whether another request may be taken on.
    pub fn has_room(&self) -> bool {
        self.waiting() < self.max_bytes && !self.failing.load(Ordering::Relaxed)
    }

    /// Bytes not yet in the store.
    pub fn waiting(&self) -> u64 {
        self.appended.load(Ordering::Relaxed).saturating_sub(*self.moved.borrow())
    }

    /// How long the oldest record that waits may have waited.
    pub fn lag(&self) -> Duration {
        if self.waiting() == 0 { Duration::ZERO } else { self.caught_up.lock().elapsed() }
    }

    /// Waits until everything appended so far is in the store.
    pub async fn drained(&self) {
        let goal = self.appended.load(Ordering::Relaxed);
        let mut moved = self.moved.subscribe();
        // The sender is `self`, so it cannot go away.
        let _ = moved.wait_for(|moved| *moved >= goal).await;
    }

    /// A begin that cannot be written is an error, since its request can still be refused. An end is
    /// held here until the disk takes it.
    fn append(
        &self,
        kind: u8,
        id: &str,
        record: &impl Serialize,
        decisions: Option<&impl Serialize>,
    ) -> io::Result<()> {
        let line = line(kind, id, record, decisions)?;
        let written = if self.failing.load(Ordering::Relaxed) {
            Err(ErrorKind::StorageFull.into())
        } else {
            self.write(&line)
        };
        let Err(error) = written else {
            self.appended.fetch_add(length(&line), Ordering::Relaxed);
            return Ok(());
        };
        let mut held = self.held.lock();
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the spool cannot be written: requests are refused");
        }
        if kind == BEGIN {
            return Err(error);
        }
        self.appended.fetch_add(length(&line), Ordering::Relaxed);
        held.push(line);
        Ok(())
    }

    /// Writes what is held, if the disk takes it again. Returns how many lines are left.
    pub(super) fn retry(&self) -> usize {
        if !self.failing.load(Ordering::Relaxed) {
            return 0;
        }
        let mut held = self.held.lock();
        // With nothing to write, an empty line shows whether it could be.
        let probe = if held.is_empty() { self.write_counted(b"\n") } else { Ok(()) };
        let written = held.iter().take_while(|line| self.write(line).is_ok()).count();
        held.drain(..written);
        if probe.is_ok() && held.is_empty() {
            self.failing.store(false, Ordering::Relaxed);
            tracing::warn!(lines = written, "the spool can be written again");
        }
        held.len()
    }

    fn write_counted(&self, line: &[u8]) -> io::Result<()> {
        self.write(line)?;
        self.appended.fetch_add(length(line), Ordering::Relaxed);
        Ok(())
    }

    /// One `write`, so that lines of two threads never mix. A part of a line counts as appended here,
    /// because it is passed over later; a whole one is counted by the caller.
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let writer = self.writer.read();
        let written = loop {
            match append(&writer.file, line) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => break written?,
            }
        };
        let bytes = u64::try_from(written).unwrap_or(0);
        let size = writer.length.fetch_add(bytes, Ordering::Relaxed) + bytes;
        drop(writer);
        self.dirty.store(true, Ordering::Relaxed);
        if written < line.len() {
            self.appended.fetch_add(bytes, Ordering::Relaxed);
            return Err(ErrorKind::StorageFull.into());
        }
        if size >= SEGMENT_MAX {
            self.begin_segment();
        }
        Ok(())
    }

    fn begin_segment(&self) {
        let mut writer = self.writer.write();
        if writer.length.load(Ordering::Relaxed) < SEGMENT_MAX {
            return;
        }
        // Failing to begin a segment is no reason to lose a line: the old one goes on.
        if let Ok(next) = Writer::create(&self.dir, writer.segment + 1) {
            *writer = next;
        }
    }

    /// Makes what was appended survive a power cut.
    pub(super) async fn sync(&self) {
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let Ok(file) = self.writer.read().file.try_clone() else {
            return;
        };
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
        if !matches!(synced, Ok(Ok(()))) {
            tracing::error!("the spool cannot be synced to disk");
        }
    }

    /// The segment being written; all below it are final.
    pub(super) fn current_segment(&self) -> u64 {
        self.writer.read().segment
    }

    pub(super) fn has_news(&self) -> bool {
        self.waiting() > 0
    }

    pub(super) fn note_caught_up(&self) {
        *self.caught_up.lock() = Instant::now();
    }

    pub(super) fn note_moved(&self, bytes: u64) {
        self.moved.send_modify(|moved| *moved += bytes);
    }

    pub(super) fn path(&self, segment: u64) -> PathBuf {
        path(&self.dir, segment)
    }

    /// The first segment at or after `segment` that exists.
    pub(super) fn first_from(&self, segment: u64) -> io::Result<Option<u64>> {
        Ok(segments(&self.dir)?.into_iter().find(|found| *found >= segment))
    }
}

/// On Linux a write at an offset appends all the same (pwrite(2), BUGS), and threads do not wait for
/// the file's own position.
#[cfg(target_os = "linux")]
fn append(file: &File, line: &[u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, line, 0)
}

/// Elsewhere it would write where it says, over what is there.
#[cfg(not(target_os = "linux"))]
fn append(mut file: &File, line: &[u8]) -> io::Result<usize> {
    io::Write::write(&mut file, line)
}

/// It begins with a line feed too: a line torn by a full disk must not take the next one with it.
fn line(
    kind: u8,
    id: &str,
    record: &impl Serialize,
    decisions: Option<&impl Serialize>,
) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(LINE);
    line.extend([b'\n', kind]);
    line.extend(id.as_bytes());
    serde_json::to_writer(&mut line, record)?;
    if let Some(decisions) = decisions {
        // JSON has no tab of its own: in text it is escaped.
        line.push(b'\t');
        serde_json::to_writer(&mut line, decisions)?;
    }
    line.push(b'\n');
    Ok(line)
}

fn length(line: &[u8]) -> u64 {
    u64::try_from(line.len()).unwrap_or(0)
}

fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:012}.{SEGMENT}"))
}

impl Writer {
    fn create(dir: &Path, segment: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(path(dir, segment))?;
        Ok(Self { file, segment, length: AtomicU64::new(0) })
    }
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments: Vec<u64> = numbered(dir, SEGMENT)?.into_iter().map(|(n, _)| n).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Those that write here, or did, by their first segments.
fn processes(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    numbered(dir, PROCESS)
}

fn numbered(dir: &Path, extension: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |path: PathBuf| {
        let is_one = path.extension()? == extension;
        let number = path.file_stem()?.to_str()?.parse().ok()?;
        is_one.then_some((number, path))
    };
    let files = std::fs::read_dir(dir)?;
    Ok(files.filter_map(|entry| number(entry.ok()?.path())).collect())
}

fn is_running(process: &Path) -> io::Result<bool> {
    let process = match File::open(process) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match process.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether no process writes to the spool in `dir`.
pub(super) fn is_left_alone(dir: &Path) -> io::Result<bool> {
    for (_, path) in processes(dir)? {
        if is_running(&path)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn who_is_gone_is_forgotten_by_whoever_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Spool::open(dir.path(), 1 << 20, SpoolPosition::default()).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert!(!first.has_elders().unwrap());
        assert!(second.has_elders().unwrap() && third.has_elders().unwrap());
        let mut known = processes(dir.path()).unwrap();
        known.sort_unstable();
        drop(first);
        assert!(!second.has_elders().unwrap());
        assert!(!is_running(&known[0].1).unwrap(), "its file is gone, and that is no error");
        assert!(third.has_elders().unwrap() && !is_left_alone(dir.path()).unwrap());
        second.leave();
        assert!(!third.has_elders().unwrap());
        drop(third);
        assert!(is_left_alone(dir.path()).unwrap());
    }

    /// `/dev/full` takes nothing, as a full disk does.
    #[test]
    fn a_line_that_the_disk_does_not_take_is_held_and_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20, SpoolPosition::default()).unwrap();
        let begin = Begin { id: Cow::Borrowed("a"), ..Begin::default() };
        let end =
            || End::<()> { begin: Begin { id: "a".into(), ..Begin::default() }, ..End::default() };
        spool.begin(&begin).unwrap();
        let before = spool.waiting();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut spool.writer.write().file, full);
        spool.end(&end()).expect("it is held");
        assert!(!spool.has_room());
        assert_eq!(spool.retry(), 1, "still full");
        let other = Begin { id: Cow::Borrowed("b"), ..Begin::default() };
        assert!(spool.begin(&other).is_err(), "its request can be refused");
        let waiting = spool.waiting();
        assert!(waiting > before, "what is held waits too");
        spool.writer.write().file = disk;
        assert!(!spool.has_room(), "nobody has tried");
        assert_eq!(spool.retry(), 0);
        assert!(spool.has_room());
        assert_eq!(spool.waiting(), waiting);
        let text = std::fs::read_to_string(spool.path(spool.current_segment())).unwrap();
        assert_eq!(text.len() as u64, waiting);
        assert_eq!(text.matches("\nBa[").count() + text.matches("\nEa[").count(), 2, "{text}");
    }
}
