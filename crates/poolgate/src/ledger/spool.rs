//! The writing side: append-only segments of lines.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{BEGIN, Begin, END, End};
use crate::store::SpoolPosition;

/// A new segment is begun beyond this size; segments taken over whole are deleted.
const SEGMENT_MAX: u64 = 16 << 20;
/// Few lines are longer.
const LINE: usize = 1024;

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
}

#[derive(Debug)]
struct Writer {
    file: File,
    segment: u64,
    length: AtomicU64,
}

impl Spool {
    /// Starts a segment of its own, so that a line torn by an earlier crash stays the last of its
    /// file.
    pub(super) fn open(dir: &Path, max_bytes: u64, position: SpoolPosition) -> io::Result<Self> {
        crate::files::create_private_dir(dir)?;
        let segments = segments(dir)?;
        let last = segments.last().copied().unwrap_or(0).max(position.segment);
        let waiting: u64 = segments
            .iter()
            .filter(|segment| **segment >= position.segment)
            .filter_map(|segment| std::fs::metadata(path(dir, *segment)).ok())
            .map(|metadata| metadata.len())
            .sum();
        let taken = std::fs::metadata(path(dir, position.segment)).map_or(0, |_| position.offset);
        let writer = Writer::create(dir, last + 1)?;
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            writer: RwLock::new(writer),
            appended: AtomicU64::new(waiting.saturating_sub(taken)),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
            caught_up: Mutex::new(Instant::now()),
        })
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
        self.waiting() < self.max_bytes
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

    /// One `write`, so that lines of two threads never mix. It begins with a line feed too: a line
    /// torn by a full disk must not take the next one with it.
    fn append(
        &self,
        kind: u8,
        id: &str,
        record: &impl Serialize,
        decisions: Option<&impl Serialize>,
    ) -> io::Result<()> {
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
        let bytes = u64::try_from(line.len()).unwrap_or(0);
        let writer = self.writer.read();
        // Appending, whatever the offset (pwrite(2), BUGS); a plain write would have the two threads
        // wait for the file's own position.
        writer.file.write_all_at(&line, 0)?;
        let length = writer.length.fetch_add(bytes, Ordering::Relaxed) + bytes;
        drop(writer);
        self.appended.fetch_add(bytes, Ordering::Relaxed);
        self.dirty.store(true, Ordering::Relaxed);
        if length >= SEGMENT_MAX {
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

fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:012}.spool"))
}

impl Writer {
    fn create(dir: &Path, segment: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(path(dir, segment))?;
        Ok(Self { file, segment, length: AtomicU64::new(0) })
    }
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments: Vec<u64> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".spool")?.parse().ok())
        .collect();
    segments.sort_unstable();
    Ok(segments)
}
