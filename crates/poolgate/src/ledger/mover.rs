//! The reading side: carries lines from the spool into the store.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::archive::Gathered;
use super::{BEGIN, Begin, END, EVERY, Ended, Spool};
use crate::clock::Clock;
use crate::store::{ROWS, SpoolPosition, Store};

/// Read at once, into one transaction, which costs a sync of the database's file; a longer single line
/// is read whole all the same.
const BATCH: u64 = 1 << 20;
const RETRY: Duration = Duration::from_secs(1);

pub struct Mover {
    spool: Arc<Spool>,
    store: Store,
    clock: Arc<dyn Clock>,
    position: SpoolPosition,
    right: Right,
}

/// To carry lines: the oldest of the processes that write here has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// An earlier process is ending, and has records to write.
    Anothers,
    /// What it left comes first.
    Taken,
    Ours,
}

/// Whole lines, and the position behind them.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    position: SpoolPosition,
    /// What the spool is rid of with it: the lines, or a torn one at the end of a segment.
    bytes: u64,
}

#[derive(PartialEq, Eq)]
enum Moved {
    Nothing,
    /// What little there was. The next tick takes what came since: a transaction costs far more
    /// than the rows in it, and under load there is always something new.
    Some,
    /// A full batch, or the end of a segment.
    More,
}

impl Mover {
    pub fn new(spool: Arc<Spool>, store: Store, clock: Arc<dyn Clock>) -> Self {
        let position = SpoolPosition::default();
        Self { spool, store, clock, position, right: Right::Anothers }
    }

    /// Carries what an earlier process left, and marks what it left unfinished. Returns whether it was
    /// there to be taken.
    pub async fn take_over(&mut self) -> anyhow::Result<bool> {
        if self.right == Right::Anothers {
            if self.spool.has_elders()? {
                return Ok(false);
            }
            self.position = self.store.spool_position().await.context("reading its position")?;
            self.spool.inherit(self.position)?;
            self.right = Right::Taken;
        }
        if self.right == Right::Taken {
            while self.spool.has_left(self.position)? {
                self.step().await?;
            }
            // None of ours has a row yet.
            let requests = self.store.mark_interrupted(self.clock.now()).await?;
            if requests > 0 {
                tracing::warn!(requests, "marked requests of an earlier process as interrupted");
            }
            self.right = Right::Ours;
            self.spool.taken_over.cancel();
        }
        Ok(true)
    }

    /// Until `stop`, and then once more, so that nothing waits for the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let is_ours = self.right == Right::Ours;
            if (self.spool.has_news() || !is_ours)
                && let Err(error) = self.catch_up().await
            {
                // The lines are safe where they are; the store will be back.
                tracing::warn!(%error, waiting_bytes = self.spool.waiting(), "the store takes no records");
                tokio::time::sleep(RETRY).await;
            } else if is_ours {
                self.spool.note_caught_up();
            }
        }
        let held = self.spool.retry();
        if held > 0 {
            tracing::error!(requests = held, "the disk never took the records of these");
        }
        // Requests end a moment after the stop: whatever they append now is moved here or at the
        // next start.
        if let Err(error) = self.move_all().await {
            tracing::warn!(%error, "records stay in the spool until the next start");
        }
        self.spool.sync().await;
        self.spool.leave();
    }

    /// Moves everything there is.
    async fn move_all(&mut self) -> anyhow::Result<()> {
        if self.take_over().await? {
            while self.step().await? != Moved::Nothing {}
        }
        Ok(())
    }

    /// Moves what there is, and not what comes meanwhile.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        if self.take_over().await? {
            while self.step().await? == Moved::More {}
        }
        Ok(())
    }

    async fn step(&mut self) -> anyhow::Result<Moved> {
        let Some(batch) = self.next_batch()? else {
            return Ok(Moved::Nothing);
        };
        // Checked once, which is cheaper than text by text; a torn line may hold half a character.
        let lines = match std::str::from_utf8(&batch.lines) {
            Ok(lines) => Cow::Borrowed(lines),
            Err(_) => String::from_utf8_lossy(&batch.lines),
        };
        let lines = Lines::split(&lines);
        let mut recording = self.store.recording().await?;
        recording.begins(&lines.begins()).await?;
        let mut decisions = Gathered::default();
        // Few at a time: a batch of them takes a megabyte more, of new memory each time.
        for ends in lines.ends.chunks(ROWS) {
            let ends: Vec<_> = ends.iter().filter_map(Line::ended).collect();
            decisions.add(&ends);
            recording.ends(&ends).await?;
        }
        recording.commit(decisions.pack().await?.as_ref(), batch.position).await?;
        let finished = self.position.segment;
        self.position = batch.position;
        self.spool.note_moved(batch.bytes);
        if batch.position.segment > finished {
            // Best effort: a segment left behind is below the position and never read again.
            let _ = std::fs::remove_file(self.spool.path(finished));
            return Ok(Moved::More);
        }
        Ok(if batch.bytes < BATCH / 2 { Moved::Some } else { Moved::More })
    }

    fn next_batch(&self) -> io::Result<Option<Batch>> {
        // Looked up before reading: a segment is final once a later one was begun.
        let current = self.spool.current_segment();
        let SpoolPosition { mut segment, mut offset } = self.position;
        let file = match File::open(self.spool.path(segment)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let Some(found) = self.spool.first_from(segment)? else {
                    return Ok(None);
                };
                (segment, offset) = (found, 0);
                File::open(self.spool.path(segment))?
            }
            opened => opened?,
        };
        let lines = read_lines(&file, offset)?;
        if lines.is_empty() {
            let bytes = file.metadata()?.len().saturating_sub(offset);
            let position = SpoolPosition { segment: segment + 1, offset: 0 };
            return Ok((segment < current).then(|| Batch { position, bytes, ..Batch::default() }));
        }
        let bytes = u64::try_from(lines.len()).unwrap_or(0);
        let position = SpoolPosition { segment, offset: offset + bytes };
        Ok(Some(Batch { lines, position, bytes }))
    }
}

/// Whole lines from `offset` on, about [`BATCH`] bytes.
fn read_lines(mut file: &File, offset: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let there = file.metadata()?.len().saturating_sub(offset).min(BATCH);
    let mut bytes = Vec::with_capacity(usize::try_from(there).unwrap_or(0));
    loop {
        let before = bytes.len();
        file.by_ref().take(BATCH).read_to_end(&mut bytes)?;
        if let Some(end) = memchr::memrchr(b'\n', &bytes) {
            bytes.truncate(end + 1);
            return Ok(bytes);
        }
        if bytes.len() == before {
            return Ok(Vec::new());
        }
    }
}

/// The lines of a batch by what they are, unread.
#[derive(Default)]
struct Lines<'a> {
    begins: Vec<Line<'a>>,
    ends: Vec<Line<'a>>,
}

impl<'a> Lines<'a> {
    fn split(text: &'a str) -> Self {
        let mut lines = Self::default();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', text.as_bytes()) {
            let line = &text[start..end];
            start = end + 1;
            match Line::split(line) {
                _ if line.is_empty() => {}
                Some((BEGIN, line)) => lines.begins.push(line),
                Some((END, line)) => lines.ends.push(line),
                _ => damaged(line),
            }
        }
        lines
    }

    /// A begin whose end is in the same batch needs no row of its own, and is not read.
    fn begins(&self) -> Vec<Begin<'a>> {
        let ended: HashSet<&str> = self.ends.iter().map(|line| line.id).collect();
        let running = self.begins.iter().filter(|line| !ended.contains(line.id));
        running.filter_map(Line::begun).collect()
    }
}

struct Line<'a> {
    id: &'a str,
    json: &'a str,
    decisions: &'a str,
}

impl<'a> Line<'a> {
    /// With what kind of line it is.
    fn split(line: &'a str) -> Option<(u8, Self)> {
        let kind = *line.as_bytes().first().filter(|kind| kind.is_ascii())?;
        let (id, rest) = line[1..].split_at(memchr::memchr(b'[', &line.as_bytes()[1..])?);
        let tab = memchr::memrchr(b'\t', rest.as_bytes());
        let (json, decisions) = tab.map_or((rest, ""), |tab| (&rest[..tab], &rest[tab + 1..]));
        Some((kind, Self { id, json, decisions }))
    }

    fn begun(&self) -> Option<Begin<'a>> {
        let begin: Begin<'_> = self.read()?;
        Some(Begin { id: self.id.into(), ..begin })
    }

    fn ended(&self) -> Option<Ended<'a>> {
        let mut end: Ended<'_> = self.read()?;
        end.begin.id = self.id.into();
        end.decisions = self.decisions;
        Some(end)
    }

    fn read<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_str(self.json).inspect_err(|_| damaged(self.json)).ok()
    }
}

/// Torn by a full disk or a power cut.
fn damaged(line: &str) {
    tracing::warn!(bytes = line.len(), "skipped a damaged line of the spool");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{self, AttemptRecord};
    use crate::tasks::Tasks;

    fn begin(id: &str) -> Begin<'_> {
        Begin { id: id.into(), at: 5, key: 1, surface: "chat".into(), ..Default::default() }
    }

    fn end(id: &str) -> Ended<'_> {
        let failed =
            vec![AttemptRecord { account: 1, outcome: "lost".into(), ..Default::default() }];
        Ended { begin: begin(id), outcome: "complete".into(), failed, ..Default::default() }
    }

    async fn open(dir: &std::path::Path) -> (Store, Arc<Spool>, Tasks) {
        let store = Store::open(dir).await.unwrap();
        let tasks = Tasks::default();
        let path = dir.join("spool");
        let clock = Arc::new(crate::clock::SystemClock);
        let spool = ledger::start(&path, 1 << 20, 0, &store, &tasks, clock).await.unwrap();
        (store, spool, tasks)
    }

    fn outcomes(rows: &[(&str, i64)]) -> Vec<(String, i64)> {
        rows.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect()
    }

    #[tokio::test]
    async fn each_request_has_one_row_whatever_happens() {
        let dir = tempfile::tempdir().unwrap();
        let (store, spool, tasks) = open(dir.path()).await;
        for id in ["a", "b", "c"] {
            spool.begin(&begin(id)).await.unwrap();
        }
        spool.end(&end("a")).unwrap();
        spool.drained().await;
        spool.end(&end("b")).unwrap();
        spool.end(&end("b")).unwrap();
        assert!(tasks.drain(Duration::from_secs(5)).await, "the last lines are moved at the stop");
        assert_eq!(store.outcomes().await.unwrap(), outcomes(&[("", 1), ("complete", 2)]));
        store.close().await;

        let (store, _spool, _tasks) = open(dir.path()).await;
        let want = outcomes(&[("complete", 2), ("interrupted", 1)]);
        assert_eq!(store.outcomes().await.unwrap(), want);
    }

    #[tokio::test]
    async fn a_process_that_is_ending_records_first() {
        let dir = tempfile::tempdir().unwrap();
        let (old_store, old, old_tasks) = open(dir.path()).await;
        let (store, new, tasks) = open(dir.path()).await;
        assert!(old.taken_over.is_cancelled() && !new.taken_over.is_cancelled());
        for (spool, ids) in [(&old, ["a", "b"]), (&new, ["c", "d"])] {
            for id in ids {
                spool.begin(&begin(id)).await.unwrap();
            }
            spool.end(&end(ids[0])).unwrap();
        }
        old.drained().await;
        assert_eq!(store.outcomes().await.unwrap(), outcomes(&[("", 1), ("complete", 1)]));
        assert!(new.waiting() > 0, "its turn has not come");
        assert!(old_tasks.drain(Duration::from_secs(5)).await);
        old_store.close().await;

        new.taken_over.cancelled().await;
        new.drained().await;
        let want = [("", 1), ("complete", 2), ("interrupted", 1)];
        assert_eq!(store.outcomes().await.unwrap(), outcomes(&want), "b was left, d still runs");
        new.end(&end("d")).unwrap();
        assert!(tasks.drain(Duration::from_secs(5)).await);
        let want = [("complete", 3), ("interrupted", 1)];
        assert_eq!(store.outcomes().await.unwrap(), outcomes(&want));
    }

    /// Of several that are ending the oldest carries, whatever order they end in.
    #[tokio::test]
    async fn nobody_takes_over_from_a_process_that_still_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (first_store, first, first_tasks) = open(dir.path()).await;
        let (second_store, second, second_tasks) = open(dir.path()).await;
        let (store, third, tasks) = open(dir.path()).await;
        for (spool, id) in [(&first, "a"), (&second, "b"), (&third, "c")] {
            spool.begin(&begin(id)).await.unwrap();
        }
        first.end(&end("a")).unwrap();
        assert!(first_tasks.drain(Duration::from_secs(5)).await);
        first_store.close().await;
        second.taken_over.cancelled().await;
        assert!(!third.taken_over.is_cancelled());
        second.end(&end("b")).unwrap();
        assert!(second_tasks.drain(Duration::from_secs(5)).await);
        second_store.close().await;
        third.taken_over.cancelled().await;
        third.end(&end("c")).unwrap();
        assert!(tasks.drain(Duration::from_secs(5)).await);
        assert_eq!(store.outcomes().await.unwrap(), outcomes(&[("complete", 3)]));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let end: Ended<'_> = Ended {
            begin: Begin {
                id: Cow::default(),
                at: 1,
                key: 2,
                surface: "chat".into(),
                model: "a \"model\"".into(),
                stream: true,
                account: Some(3),
            },
            status: 4,
            outcome: "complete".into(),
            code: Some("code".into()),
            wait_ms: 5,
            head_ms: Some(6),
            first_ms: Some(7),
            total_ms: 8,
            input: Some(9),
            output: Some(10),
            cache_read: Some(11),
            cache_write: Some(12),
            reasoning: Some(13),
            bytes: 14,
            failed: vec![AttemptRecord {
                account: 15,
                outcome: "lost".into(),
                status: Some(16),
                ms: 17,
            }],
            owns: Some("r".into()),
            decisions: "",
        };
        for end in [end, Ended::default()] {
            let json = serde_json::to_string(&end).unwrap();
            let line = Line { id: "", json: &json, decisions: "" };
            assert_eq!(line.ended(), Some(end), "{json}");
        }
    }

    #[tokio::test]
    async fn a_crash_between_append_and_move_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let spool = Spool::open(&dir.path().join("spool"), 1, SpoolPosition::default(), 0).unwrap();
        spool.begin(&begin("a")).await.unwrap();
        spool.end(&end("a")).unwrap();
        spool.begin(&begin("b")).await.unwrap();
        assert!(!spool.has_room(), "and a full spool says so");
        let segment = spool.path(1);
        let mut torn = std::fs::read(&segment).unwrap();
        torn.extend_from_slice(b"\nEb[[5,1");
        std::fs::write(&segment, torn).unwrap();
        drop(spool);
        store.close().await;

        let (store, spool, _tasks) = open(dir.path()).await;
        let want = outcomes(&[("complete", 1), ("interrupted", 1)]);
        assert_eq!(store.outcomes().await.unwrap(), want);
        assert_eq!(spool.waiting(), 0);
        assert!(!segment.exists(), "a segment taken over is deleted");
    }
}
