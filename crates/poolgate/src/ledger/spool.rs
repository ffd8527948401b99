//! The writing side: append-only segments of lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BEGIN, Begin, END, EVERY, End};
use crate::store::SpoolPosition;
use crate::workers;

/// A new segment is begun beyond this size; segments taken over whole are deleted.
const SEGMENT_MAX: u64 = 16 << 20;
const SYNC_EVERY: u32 = 4;
/// Milliseconds between requests within which others may come in the same turn of a worker.
const CLOSE: i64 = 1;
/// Bytes that the line of a begin fits into.
const BEGIN_USUAL: usize = 256;
/// What files here are, by their names' ends: lines, or that a process writes them.
const SEGMENT: &str = "spool";
const PROCESS: &str = "lock";

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
    /// Segments that were ended, and the folder of those that were begun, since the last sync.
    unsynced: Mutex<Vec<File>>,
    /// When everything appended before was in the store.
    caught_up: Mutex<Instant>,
    /// The last write failed. Until one succeeds no request is taken on.
    failing: AtomicBool,
    /// Ends of requests that were running by then; counted as appended, and written first of all.
    held: Mutex<Vec<Vec<u8>>>,
    /// What each worker gathers.
    together: Box<[Mutex<Together>]>,
    /// The first segment of ours; those before it are of earlier processes.
    first: u64,
    /// Locked as long as this process may write here.
    alive: Mutex<Option<File>>,
    /// Cancelled when what earlier processes left is in the store.
    pub taken_over: CancellationToken,
}

/// Lines of a worker that are written at one go, at the end of the turn in which they came. A write of one
/// line costs 1.6 µs under load, and one of several little more.
#[derive(Debug, Default)]
struct Together {
    lines: Vec<u8>,
    /// Which of them are ends of requests, and must not be lost.
    ends: Vec<Range<usize>>,
    /// How many bytes of them the disk took, when it was asked.
    taken: Arc<OnceLock<usize>>,
    /// When the request began that came last.
    last: i64,
}

impl Together {
    /// Whether the request that begins at `at` has nobody to wait for: no lines are here, and none were
    /// added just before. Beside a busy worker a turn is short; an idle one's caches are cold, and a turn
    /// of it takes 5 µs.
    fn is_alone(&mut self, at: i64) -> bool {
        let before = std::mem::replace(&mut self.last, at);
        self.lines.is_empty() && at - before > CLOSE
    }

    /// Where the line ends, and where will be said what became of it.
    fn add_begin(&mut self, begin: &Begin<'_>) -> io::Result<(usize, Arc<OnceLock<usize>>)> {
        add_begin(&mut self.lines, begin)?;
        Ok((self.lines.len(), Arc::clone(&self.taken)))
    }

    fn add_end(&mut self, end: &End<'_, impl Serialize>) -> io::Result<Arc<OnceLock<usize>>> {
        let start = self.lines.len();
        add_end(&mut self.lines, end)?;
        self.ends.push(start..self.lines.len());
        Ok(Arc::clone(&self.taken))
    }
}

/// Who gathered something sees to it that it is written, by whoever comes first, even where it is dropped.
struct Owed<'a> {
    spool: &'a Spool,
    together: &'a Mutex<Together>,
    taken: Arc<OnceLock<usize>>,
}

impl Owed<'_> {
    /// Returns how many bytes were taken of what was gathered in the same turn.
    fn write(&self) -> usize {
        if self.taken.get().is_none() {
            self.spool.put_together(&mut self.together.lock());
        }
        self.taken.get().copied().unwrap_or(0)
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.write();
    }
}

#[derive(Debug)]
struct Writer {
    file: File,
    segment: u64,
    length: AtomicU64,
    /// How much of a write a test's disk takes.
    #[cfg(test)]
    takes: usize,
}

impl Spool {
    /// Starts a segment of its own, so that a line torn by an earlier crash stays the last of its
    /// file, and a process that is ending can go on with the one before.
    pub(super) fn open(
        dir: &Path,
        max_bytes: u64,
        position: SpoolPosition,
        workers: usize,
    ) -> io::Result<Self> {
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
            dirty: AtomicBool::new(true),
            unsynced: Mutex::new(vec![File::open(dir)?]),
            caught_up: Mutex::new(Instant::now()),
            failing: AtomicBool::new(false),
            held: Mutex::default(),
            together: (0..workers).map(|_| Mutex::default()).collect(),
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
            writer: RwLock::new(Writer::new(file, 0)),
            appended: AtomicU64::new(0),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
            unsynced: Mutex::default(),
            caught_up: Mutex::new(Instant::now()),
            failing: AtomicBool::new(false),
            held: Mutex::default(),
            together: Box::default(),
            first: 0,
            alive: Mutex::default(),
            taken_over: CancellationToken::new(),
        }
    }

    /// Resolves when it is written: together with what else this worker gathers in this turn, unless it comes
    /// alone. An error: it is not, and its request can still be refused.
    pub async fn begin(&self, begin: &Begin<'_>) -> io::Result<()> {
        let is_alone = |together: &&Mutex<Together>| together.lock().is_alone(begin.at);
        let is_taken = if let Some(together) = self.together().filter(|one| !is_alone(one)) {
            let (end, taken) = together.lock().add_begin(begin)?;
            let owed = Owed { spool: self, together, taken };
            workers::next_turn().await;
            owed.write() >= end
        } else {
            let mut line = Vec::with_capacity(BEGIN_USUAL);
            add_begin(&mut line, begin)?;
            self.put(&line) == line.len()
        };
        if is_taken { Ok(()) } else { Err(ErrorKind::StorageFull.into()) }
    }

    /// What the disk does not take is held here until it does.
    pub fn end(&self, end: &End<'_, impl Serialize>) -> io::Result<()> {
        if let Some(together) = self.together() {
            let mut together = together.lock();
            together.add_end(end)?;
            self.put_together(&mut together);
        } else {
            let mut line = Vec::new();
            add_end(&mut line, end)?;
            if self.put(&line) < line.len() {
                self.hold(line);
            }
        }
        Ok(())
    }

    /// As [`Self::end`], and resolves when it is written or held, together with what else this worker
    /// gathers in this turn.
    pub async fn end_with_others(&self, end: &End<'_, impl Serialize>) -> io::Result<()> {
        let Some(together) = self.together() else { return self.end(end) };
        let taken = together.lock().add_end(end)?;
        let owed = Owed { spool: self, together, taken };
        workers::next_turn().await;
        owed.write();
        Ok(())
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

    /// `None`: this thread is no worker, and writes each line by itself.
    fn together(&self) -> Option<&Mutex<Together>> {
        self.together.get(workers::index().checked_sub(1)?)
    }

    fn put_together(&self, together: &mut Together) {
        let Together { lines, ends, taken, .. } = together;
        let put = self.put(lines);
        let _ = std::mem::take(taken).set(put);
        for end in ends.drain(..).filter(|end| end.end > put) {
            self.hold(lines[end].to_vec());
        }
        lines.clear();
    }

    fn hold(&self, line: Vec<u8>) {
        let mut held = self.held.lock();
        self.appended.fetch_add(length(&line), Ordering::Relaxed);
        held.push(line);
        // It may have been found to work again since.
        self.failing.store(true, Ordering::Relaxed);
    }

    /// Returns how many bytes the disk took: all of them, unless the disk fails.
    fn put(&self, lines: &[u8]) -> usize {
        if self.failing.load(Ordering::Relaxed) {
            return 0;
        }
        let (put, written) = self.write(lines);
        self.appended.fetch_add(length(&lines[..put]), Ordering::Relaxed);
        if let Err(error) = written {
            let _held = self.held.lock();
            if !self.failing.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "the spool cannot be written: requests are refused");
            }
        }
        put
    }

    /// Writes what is held, if the disk takes it again. Returns how many lines are left.
    pub(super) fn retry(&self) -> usize {
        if !self.failing.load(Ordering::Relaxed) {
            return 0;
        }
        let mut held = self.held.lock();
        // With nothing to write, an empty line shows whether it could be.
        let works = !held.is_empty() || self.put_again(b"\n", 0);
        let written = held.iter().take_while(|line| self.put_again(line, line.len())).count();
        held.drain(..written);
        if works && held.is_empty() {
            self.failing.store(false, Ordering::Relaxed);
            tracing::warn!(lines = written, "the spool can be written again");
        }
        held.len()
    }

    /// Whether the disk took all of `line`. `counted`: so much of it is counted as appended already, if
    /// it is whole; a part is counted here, because it is passed over later.
    fn put_again(&self, line: &[u8], counted: usize) -> bool {
        let (put, _) = self.write(line);
        let is_whole = put == line.len();
        let uncounted = if is_whole { put - counted } else { put };
        self.appended.fetch_add(u64::try_from(uncounted).unwrap_or(0), Ordering::Relaxed);
        is_whole
    }

    /// One `write`, so that lines of two threads never mix. Returns how many bytes of it were taken;
    /// fewer than all are an error.
    fn write(&self, lines: &[u8]) -> (usize, io::Result<()>) {
        let writer = self.writer.read();
        let all = lines.len();
        #[cfg(test)]
        let lines = &lines[..all.min(writer.takes)];
        let written = loop {
            match append(&writer.file, lines) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (0, Err(error)),
                Ok(written) => break written,
            }
        };
        let bytes = u64::try_from(written).unwrap_or(0);
        let size = writer.length.fetch_add(bytes, Ordering::Relaxed) + bytes;
        drop(writer);
        self.dirty.store(true, Ordering::Relaxed);
        if written < all {
            return (written, Err(ErrorKind::StorageFull.into()));
        }
        if size >= SEGMENT_MAX {
            self.begin_segment();
        }
        (written, Ok(()))
    }

    fn begin_segment(&self) {
        let mut writer = self.writer.write();
        if writer.length.load(Ordering::Relaxed) < SEGMENT_MAX {
            return;
        }
        // Failing to begin a segment is no reason to lose a line: the old one goes on.
        let folder = File::open(&self.dir);
        if let Ok(next) = Writer::create(&self.dir, writer.segment + 1) {
            let ended = std::mem::replace(&mut *writer, next).file;
            self.unsynced.lock().extend(std::iter::once(ended).chain(folder));
        }
    }

    /// Looks after the disk until `stop`, whatever the store does.
    pub(super) async fn tend(&self, stop: CancellationToken) {
        let mut round = 0_u32;
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            round = round.wrapping_add(1);
            self.retry();
            if round.is_multiple_of(SYNC_EVERY) {
                self.sync().await;
            }
        }
        self.sync().await;
    }

    /// Makes what was appended survive a power cut.
    pub(super) async fn sync(&self) {
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let Ok(file) = self.writer.read().file.try_clone() else {
            // For want of descriptors, which is no reason to forget it.
            self.dirty.store(true, Ordering::Relaxed);
            return;
        };
        // Looked up after the segment was: one that is ended now is among them, or is `file`.
        let mut files = std::mem::take(&mut *self.unsynced.lock());
        files.push(file);
        let sync = move || files.iter().try_for_each(File::sync_data);
        if !matches!(tokio::task::spawn_blocking(sync).await, Ok(Ok(()))) {
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

fn add_begin(lines: &mut Vec<u8>, begin: &Begin<'_>) -> io::Result<()> {
    add(lines, BEGIN, &begin.id, |line| serde_json::to_writer(line, begin))
}

fn add_end(lines: &mut Vec<u8>, end: &End<'_, impl Serialize>) -> io::Result<()> {
    add(lines, END, &end.begin.id, |line| {
        serde_json::to_writer(&mut *line, end)?;
        // JSON has no tab of its own: in text it is escaped.
        line.push(b'\t');
        serde_json::to_writer(line, &end.decisions)
    })
}

/// A line begins with a line feed too: one torn by a full disk must not take the next one with it.
fn add(
    lines: &mut Vec<u8>,
    kind: u8,
    id: &str,
    rest: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
) -> io::Result<()> {
    let start = lines.len();
    lines.extend([b'\n', kind]);
    lines.extend(id.as_bytes());
    // No part of a line is left behind.
    rest(lines).inspect_err(|_| lines.truncate(start))?;
    lines.push(b'\n');
    Ok(())
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
        Ok(Self::new(file, segment))
    }

    fn new(file: File, segment: u64) -> Self {
        Self {
            file,
            segment,
            length: AtomicU64::new(0),
            #[cfg(test)]
            takes: usize::MAX,
        }
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
#[path = "spool_tests.rs"]
mod tests;
