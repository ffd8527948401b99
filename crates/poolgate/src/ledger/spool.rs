//! The writing side: append-only segments of lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::{BEGIN, Begin, END, End};
use crate::store::SpoolPosition;

/// A new segment is begun beyond this size; segments taken over whole are deleted.
const SEGMENT_MAX: u64 = 16 << 20;
/// Few lines are longer.
const LINE: usize = 512;

#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    writer: Mutex<Writer>,
    /// Bytes appended and taken over since the start; their difference is what waits.
    appended: AtomicU64,
    moved: watch::Sender<u64>,
    dirty: AtomicBool,
}

#[derive(Debug)]
struct Writer {
    file: File,
    segment: u64,
    length: u64,
    /// The last write failed part-way: the next line must not be glued to its rest.
    torn: bool,
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
        let writer =
            Writer { file: create(dir, last + 1)?, segment: last + 1, length: 0, torn: false };
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            writer: Mutex::new(writer),
            appended: AtomicU64::new(waiting.saturating_sub(taken)),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
        })
    }

    /// For a process that serves nothing: it has room for nothing and touches no file.
    pub fn unused() -> Self {
        let file = File::open("/dev/null").expect("every Unix has it");
        Self {
            dir: PathBuf::new(),
            max_bytes: 0,
            writer: Mutex::new(Writer { file, segment: 0, length: 0, torn: false }),
            appended: AtomicU64::new(0),
            moved: watch::Sender::new(0),
            dirty: AtomicBool::new(false),
        }
    }

    pub fn begin(&self, begin: &Begin<'_>) -> io::Result<()> {
        self.append(BEGIN, begin)
    }

    pub fn end(&self, end: &End<'_>) -> io::Result<()> {
        self.append(END, end)
    }

    /// Whether another request may be taken on.
    pub fn has_room(&self) -> bool {
        self.waiting() < self.max_bytes
    }

    /// Bytes not yet in the store.
    pub fn waiting(&self) -> u64 {
        self.appended.load(Ordering::Relaxed).saturating_sub(*self.moved.borrow())
    }

    /// Waits until everything appended so far is in the store.
    pub async fn drained(&self) {
        let goal = self.appended.load(Ordering::Relaxed);
        let mut moved = self.moved.subscribe();
        // The sender is `self`, so it cannot go away.
        let _ = moved.wait_for(|moved| *moved >= goal).await;
    }

    fn append(&self, kind: u8, record: &impl Serialize) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(LINE);
        bytes.push(kind);
        serde_json::to_writer(&mut bytes, record)?;
        bytes.push(b'\n');
        let mut writer = self.writer.lock();
        if std::mem::take(&mut writer.torn) {
            bytes.insert(0, b'\n');
        }
        let length = u64::try_from(bytes.len()).unwrap_or(0);
        if let Err(error) = writer.file.write_all(&bytes) {
            writer.torn = true;
            return Err(error);
        }
        writer.length += length;
        self.appended.fetch_add(length, Ordering::Relaxed);
        self.dirty.store(true, Ordering::Relaxed);
        if writer.length >= SEGMENT_MAX {
            let segment = writer.segment + 1;
            // Failing to begin a segment is no reason to lose a line: this one goes on.
            if let Ok(file) = create(&self.dir, segment) {
                *writer = Writer { file, segment, length: 0, torn: false };
            }
        }
        Ok(())
    }

    /// Makes what was appended survive a power cut.
    pub(super) async fn sync(&self) {
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let Ok(file) = self.writer.lock().file.try_clone() else {
            return;
        };
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
        if !matches!(synced, Ok(Ok(()))) {
            tracing::error!("the spool cannot be synced to disk");
        }
    }

    /// The segment being written; all below it are final.
    pub(super) fn current_segment(&self) -> u64 {
        self.writer.lock().segment
    }

    pub(super) fn has_news(&self) -> bool {
        self.waiting() > 0
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

fn create(dir: &Path, segment: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path(dir, segment))
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments: Vec<u64> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".spool")?.parse().ok())
        .collect();
    segments.sort_unstable();
    Ok(segments)
}
