//! The embedded database: durable truth, never on the path of a request.
//!
//! One writer connection, a few readers, WAL. Request records do not come here directly but through
//! the spool ([`crate::ledger`]), so that a locked or slow database delays nobody. SQL is written as
//! SQL, by noun; the text is kept to what `PostgreSQL` understands as well, where that costs nothing.

mod accounts;
mod client_keys;
mod explained;
mod history;
mod refreshes;
mod requests;
mod sealing;
mod used;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqlSafeStr, SqlitePool};
use tokio::sync::Mutex;

pub use accounts::{AccountRow, Origin, Unread, Whereabouts};
pub use client_keys::{ClientKeyRow, KeyLimits, NewClientKey};
pub use explained::RequestRow;
pub use history::{History, PastAccount, PastRequest};
pub use refreshes::RefreshMark;
pub use requests::{Before, ROWS, Recording, ResponseOwner, SpoolPosition};

/// Before this, several WAL connections could lose committed transactions
/// (sqlite.org/wal.html#walresetbug).
const SQLITE_AT_LEAST: (u32, u32, u32) = (3, 51, 3);
/// Older lines that carry the same fix.
const SQLITE_FIXED_LINES: [(u32, u32, u32); 2] = [(3, 44, 6), (3, 50, 7)];

#[derive(Clone, Debug)]
pub struct Store {
    write: SqlitePool,
    read: SqlitePool,
    /// Whoever sums up the ledger.
    counting: Arc<Mutex<()>>,
    path: PathBuf,
    /// Device and number of the file that was opened.
    file: (u64, u64),
}

impl Store {
    /// Opens or creates `poolgate.db` in `dir`, and brings its schema up to date.
    pub async fn open(dir: &Path) -> anyhow::Result<Self> {
        crate::files::create_private_dir(dir)
            .with_context(|| format!("making the data directory {}", dir.display()))?;
        let path = dir.join("poolgate.db");
        if !path.exists() {
            // Made here, so that it is private from the first moment. Another process may win.
            let _ = crate::files::create_private(&path, b"");
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(30))
            .pragma("trusted_schema", "OFF")
            .pragma("cell_size_check", "ON");
        // FULL: credentials must survive a power cut once they are written.
        let writer = options.clone().synchronous(SqliteSynchronous::Full);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_mins(10))
            // SQLite rolls back by itself where a disk is full, which sqlx (0.9) does not notice: such
            // a connection would refuse every later transaction.
            .before_acquire(|connection, _| {
                let is_sound = !connection.is_in_transaction();
                Box::pin(std::future::ready(Ok(is_sound)))
            })
            .connect_with(writer)
            .await
            .with_context(|| format!("opening {}", path.display()))?;
        check_version(&write).await?;
        migrations().run(&write).await.context("bringing the database schema up to date")?;
        let reader = options.synchronous(SqliteSynchronous::Normal).read_only(true);
        let read = SqlitePoolOptions::new().max_connections(4).connect_lazy_with(reader);
        Ok(Self { write, read, counting: Arc::default(), file: file_at(&path)?, path })
    }

    /// An error while the file that was opened is not at its place: what is written to it then might
    /// never be seen again. Another file there is left alone; whoever put it there restarts us.
    fn is_in_place(&self) -> sqlx::Result<()> {
        match file_at(&self.path) {
            Ok(file) if file == self.file => Ok(()),
            Ok(_) => Err(sqlx::Error::Io(io::Error::other(
                "another file is in the place of the open database: restart to use it",
            ))),
            Err(error) => Err(sqlx::Error::Io(error)),
        }
    }

    /// The database in `dir` as it is, only to be read: nothing is made, brought up to date or written.
    pub async fn look(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("poolgate.db");
        // Without a log beside it nobody has it open; then it can be read without leaving files there.
        let is_closed = !dir.join("poolgate.db-wal").exists();
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .read_only(true)
            .immutable(is_closed)
            .busy_timeout(Duration::from_secs(30))
            .pragma("trusted_schema", "OFF");
        let read = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
        let read = read.with_context(|| format!("opening {}", path.display()))?;
        let (write, counting) = (read.clone(), Arc::default());
        Ok(Self { write, read, counting, file: file_at(&path)?, path })
    }

    /// Versions of the schema: the database's, and the one this program writes.
    pub async fn schema(&self) -> sqlx::Result<(i64, i64)> {
        let found = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations")
            .fetch_one(&self.read)
            .await?;
        Ok((found, migrations().iter().map(|one| one.version).max().unwrap_or(0)))
    }

    /// Grows with every change to accounts, pools or keys, by whatever process.
    pub async fn revision(&self) -> sqlx::Result<String> {
        self.is_in_place()?;
        sqlx::query_scalar("SELECT value FROM meta WHERE name = 'revision'")
            .fetch_one(&self.read)
            .await
    }

    async fn bump(executor: &mut sqlx::SqliteConnection) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE name = 'revision'",
        )
        .execute(executor)
        .await?;
        Ok(())
    }

    /// `ok`, or what is wrong with the file.
    pub async fn integrity(&self) -> sqlx::Result<String> {
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&self.read).await
    }

    /// The same, but for what takes long to find in a large one.
    pub async fn quick_check(&self) -> sqlx::Result<String> {
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&self.read).await
    }

    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Forward only: a migration that has landed is never changed.
fn migrations() -> Migrator {
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        let kind = MigrationType::Simple;
        Migration::new(version, name.into(), kind, sql.into_sql_str(), false)
    };
    let all = [
        (1, "init", include_str!("../migrations/0001_init.sql")),
        (2, "decisions", include_str!("../migrations/0002_decisions.sql")),
        (3, "refreshes", include_str!("../migrations/0003_refreshes.sql")),
        (4, "data_key", include_str!("../migrations/0004_data_key.sql")),
        (5, "key_limits", include_str!("../migrations/0005_key_limits.sql")),
    ];
    Migrator::with_migrations(all.map(migration).into())
}

async fn check_version(db: &SqlitePool) -> anyhow::Result<()> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(db).await?;
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let version_number = (next(), next(), next());
    let fixed = version_number >= SQLITE_AT_LEAST
        || SQLITE_FIXED_LINES.iter().any(|line| {
            (line.0, line.1) == (version_number.0, version_number.1) && version_number >= *line
        });
    if !fixed {
        bail!("the linked SQLite {version} can lose data in WAL mode; 3.51.3 or later is needed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_linked_sqlite_is_sound_and_the_schema_current() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).await.unwrap();
        assert_eq!(store.integrity().await.unwrap(), "ok");
        store.close().await;
        Store::open(&dir.path().join("data")).await.expect("opens a second time");
    }
}
