//! The record of every request, lost by no crash and waited for by no request.
//!
//! A `begin` line is appended to the spool, a local file, before the first upstream byte is asked
//! for, and an `end` line before the terminal event is relayed: by a `write`, which a kill of the
//! process cannot undo, and which the lines of one turn of a worker share. A power cut loses at most
//! the last second. The mover carries the lines into the store in batches, with its position in the
//! same transaction, so that each line counts once however often the process dies. Requests whose
//! `end` never came are marked `interrupted` by the next process, when the one that began them is
//! gone.
//!
//! The spool is bounded: when the store has been away for long enough to fill it, requests are
//! refused. Nothing is dropped.

mod archive;
mod mover;
mod spool;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use crate::clock::Clock;
use crate::store::Store;
use crate::tasks::Tasks;

pub use archive::{Archive, find as find_decisions};
pub use spool::Spool;

/// A request that is about to be sent upstream. Text is borrowed: names from the program where a
/// record is made, the spool's bytes where it is read.
///
/// Written as an array in the order of the fields, and read by serde, which takes arrays for structs.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Begin<'a> {
    /// Stands before the JSON in its line.
    #[serde(skip)]
    pub id: Cow<'a, str>,
    /// Milliseconds since the Unix epoch, as all times here.
    pub at: i64,
    pub key: i64,
    #[serde(borrow)]
    pub surface: Cow<'a, str>,
    #[serde(borrow)]
    pub model: Cow<'a, str>,
    pub stream: bool,
    pub account: Option<i64>,
}

/// A request that has ended, with everything known of it; `D` as in [`Ended`]. Written as [`Begin`]
/// is.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct End<'a, D> {
    #[serde(borrow)]
    pub begin: Begin<'a>,
    /// What the client was answered; 0: it left before.
    pub status: u16,
    /// `complete`, `refused`, `client_left`, `upstream_broke`.
    #[serde(borrow)]
    pub outcome: Cow<'a, str>,
    pub code: Option<Cow<'a, str>>,
    /// Waiting for an account; to the upstream's head; to the first byte for the client; in all.
    pub wait_ms: i64,
    pub head_ms: Option<i64>,
    pub first_ms: Option<i64>,
    pub total_ms: i64,
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub reasoning: Option<u64>,
    /// Relayed to the client.
    pub bytes: u64,
    /// Those that came to nothing; the one that answered is the request itself.
    #[serde(borrow)]
    pub failed: Vec<AttemptRecord<'a>>,
    /// The response whose state the account now holds.
    pub owns: Option<String>,
    /// Why it went where it went, one for each time it was asked. Stands behind the JSON in its line.
    #[serde(skip)]
    pub decisions: D,
}

/// As read back: decisions are kept as they are, and looked at only when somebody asks.
pub type Ended<'a> = End<'a, &'a str>;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord<'a> {
    pub account: i64,
    #[serde(borrow)]
    pub outcome: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub ms: i64,
}

impl Serialize for Begin<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { id: _, at, key, surface, model, stream, account } = self;
        (at, key, surface, model, stream, account).serialize(serializer)
    }
}

impl<D> Serialize for End<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_seq(None)?;
        fields.serialize_element(&self.begin)?;
        fields.serialize_element(&self.status)?;
        fields.serialize_element(&self.outcome)?;
        fields.serialize_element(&self.code)?;
        fields.serialize_element(&self.wait_ms)?;
        fields.serialize_element(&self.head_ms)?;
        fields.serialize_element(&self.first_ms)?;
        fields.serialize_element(&self.total_ms)?;
        fields.serialize_element(&self.input)?;
        fields.serialize_element(&self.output)?;
        fields.serialize_element(&self.cache_read)?;
        fields.serialize_element(&self.cache_write)?;
        fields.serialize_element(&self.reasoning)?;
        fields.serialize_element(&self.bytes)?;
        fields.serialize_element(&self.failed)?;
        fields.serialize_element(&self.owns)?;
        fields.end()
    }
}

impl<D> End<'_, D> {
    /// Response id and account, when the account holds state that later requests refer to.
    pub fn owner(&self) -> Option<(&str, i64, &Begin<'_>)> {
        Some((self.owns.as_deref()?, self.begin.account?, &self.begin))
    }
}

/// A line of the spool is one of these, the request's id, a record as JSON, and for an end a tab and
/// its decisions. The id stands apart so that a begin whose end is known need not be parsed, the
/// decisions because nobody parses them.
const BEGIN: u8 = b'B';
const END: u8 = b'E';

/// In the data directory.
pub const DIR: &str = "spool";

/// How often the mover looks for new lines; also the longest a row lags behind its request.
const EVERY: Duration = Duration::from_millis(250);

/// Whether no process writes records in `data_dir`.
pub fn is_left_alone(data_dir: &Path) -> bool {
    spool::is_left_alone(&data_dir.join(DIR)).unwrap_or(true)
}

/// Opens the spool in `dir`, takes over what an earlier process left, and marks what it left
/// unfinished. Must end before the first request is served.
///
/// A process that is ending still writes what its requests come to. What it leaves is then taken over when
/// it has ended, and our own records wait in the spool until then.
pub async fn start(
    dir: &Path,
    max_bytes: u64,
    workers: usize,
    store: &Store,
    tasks: &Tasks,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<Spool>> {
    let position = store.spool_position().await.context("reading the spool's position")?;
    let spool =
        Arc::new(Spool::open(dir, max_bytes, position, workers).context("opening the spool")?);
    let mut mover = mover::Mover::new(Arc::clone(&spool), store.clone(), clock);
    if !mover.take_over().await.context("taking over the spool")? {
        tracing::info!("the records of the gateway that is ending come first");
    }
    let (tended, stop) = (Arc::clone(&spool), tasks.stop.clone());
    tasks.supervise("spool", async move { tended.tend(stop).await });
    let stop = tasks.stop.clone();
    tasks.supervise("ledger", async move { mover.run(stop).await });
    Ok(spool)
}
