//! The ledger's rows: requests, attempts, and who owns the state behind a response.

use std::sync::{Arc, LazyLock};

use poolgate_core::account::AccountId;
use poolgate_core::units::Timestamp;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, Encode, Row, Sqlite, SqliteConnection, Transaction, Type};

use super::Store;
use crate::ledger::{Archive, Begin, Ended};

/// How far the spool has been taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolPosition {
    pub segment: u64,
    pub offset: u64,
}

/// The account that holds the state behind a response, for the key that made it.
#[derive(Clone, Debug)]
pub struct ResponseOwner {
    pub response: String,
    pub key_id: i64,
    pub account: AccountId,
    pub at: Timestamp,
}

/// Until when each kind of row is deleted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    pub requests: Timestamp,
    pub decisions: Timestamp,
    pub owners: Timestamp,
}

/// Rows per statement. Each table has one statement, prepared once, whatever the number of rows:
/// values not bound are NULL, and rows without an id are left out.
pub const ROWS: usize = 100;

static BEGINS: LazyLock<Statement> = LazyLock::new(|| {
    let columns = "id, started_at, key_id, surface, model, stream, account_id";
    insert("requests", columns, "(id) DO NOTHING")
});

static ENDS: LazyLock<Statement> = LazyLock::new(|| {
    insert(
        "requests",
        "id, started_at, key_id, surface, model, stream, account_id, ended_at, status, outcome, code, \
         wait_ms, head_ms, first_ms, total_ms, input_tokens, output_tokens, cache_read_tokens, \
         cache_write_tokens, reasoning_tokens, bytes",
        "(id) DO UPDATE SET account_id = excluded.account_id, ended_at = excluded.ended_at, \
         status = excluded.status, outcome = excluded.outcome, code = excluded.code, \
         wait_ms = excluded.wait_ms, head_ms = excluded.head_ms, first_ms = excluded.first_ms, \
         total_ms = excluded.total_ms, input_tokens = excluded.input_tokens, \
         output_tokens = excluded.output_tokens, cache_read_tokens = excluded.cache_read_tokens, \
         cache_write_tokens = excluded.cache_write_tokens, \
         reasoning_tokens = excluded.reasoning_tokens, bytes = excluded.bytes \
         WHERE requests.outcome IS NULL",
    )
});

static ATTEMPTS: LazyLock<Statement> = LazyLock::new(|| {
    let columns = "request_id, n, account_id, outcome, status, ms";
    insert("attempts", columns, "(request_id, n) DO NOTHING")
});

impl Store {
    pub async fn spool_position(&self) -> sqlx::Result<SpoolPosition> {
        let row = sqlx::query("SELECT segment, offset FROM spool_position WHERE id = 1")
            .fetch_optional(&self.write)
            .await?;
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(row.map_or_else(SpoolPosition::default, |row| SpoolPosition {
            segment: number(row.get("segment")),
            offset: number(row.get("offset")),
        }))
    }

    /// Begins to take over what the spool holds.
    pub async fn recording(&self) -> sqlx::Result<Recording> {
        self.is_in_place()?;
        Ok(Recording(self.write.begin_with("BEGIN IMMEDIATE").await?))
    }

    /// Marks what was running when the last process died. Returns how many.
    pub async fn mark_interrupted(&self, now: Timestamp) -> sqlx::Result<u64> {
        let done = sqlx::query(
            "UPDATE requests SET outcome = 'interrupted', ended_at = $1 WHERE ended_at IS NULL",
        )
        .bind(now.0)
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected())
    }

    /// The newest first, at most `limit`.
    pub async fn response_owners(
        &self,
        since: Timestamp,
        limit: i64,
    ) -> sqlx::Result<Vec<ResponseOwner>> {
        let rows = sqlx::query(
            "SELECT response, key_id, account_id, created_at FROM response_owners
             WHERE created_at > $1 ORDER BY created_at DESC LIMIT $2",
        )
        .bind(since.0)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        let owner = |row: &sqlx::sqlite::SqliteRow| ResponseOwner {
            response: row.get("response"),
            key_id: row.get("key_id"),
            account: AccountId(row.get("account_id")),
            at: Timestamp(row.get("created_at")),
        };
        Ok(rows.iter().map(owner).collect())
    }

    /// Deletes what is older than `before`. Returns how many requests that were.
    pub async fn prune(&self, before: Before) -> sqlx::Result<u64> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        // Ids begin with their time, and so does the table.
        let first_kept = format!("{:012x}", before.requests.0.max(0));
        sqlx::query("DELETE FROM attempts WHERE request_id < $1")
            .bind(&first_kept)
            .execute(&mut *tx)
            .await?;
        let requests = sqlx::query("DELETE FROM requests WHERE id < $1")
            .bind(&first_kept)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM decisions WHERE last_end < $1")
            .bind(before.decisions.0)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM response_owners WHERE created_at < $1")
            .bind(before.owners.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(requests.rows_affected())
    }

    /// How many requests ended with each outcome; `""` for those still running.
    pub async fn outcomes(&self) -> sqlx::Result<Vec<(String, i64)>> {
        sqlx::query_as(
            "SELECT COALESCE(outcome, ''), COUNT(*) FROM requests GROUP BY outcome ORDER BY 1",
        )
        .fetch_all(&self.read)
        .await
    }
}

/// Records on their way into the store, as one transaction: after a crash the same records come again, or
/// none of them does.
pub struct Recording(Transaction<'static, Sqlite>);

impl Recording {
    pub async fn begins(&mut self, begins: &[Begin<'_>]) -> sqlx::Result<()> {
        write_rows(&mut self.0, &BEGINS, begins, |row, begin| add_begin(row, begin)).await
    }

    pub async fn ends(&mut self, ends: &[Ended<'_>]) -> sqlx::Result<()> {
        write_rows(&mut self.0, &ENDS, ends, |row, end| add_end(row, end)).await?;
        let attempts: Vec<_> =
            ends.iter().flat_map(|end| (1_i64..).zip(&end.failed).map(move |a| (end, a))).collect();
        write_rows(&mut self.0, &ATTEMPTS, &attempts, |row, (end, (n, attempt))| {
            row.text(&end.begin.id)?;
            row.add(n)?;
            row.add(attempt.account)?;
            row.text(&attempt.outcome)?;
            row.add(attempt.status)?;
            row.add(attempt.ms)
        })
        .await?;
        for (response, account, begin) in ends.iter().filter_map(Ended::owner) {
            sqlx::query(
                "INSERT INTO response_owners (response, key_id, account_id, created_at)
                 VALUES ($1, $2, $3, $4) ON CONFLICT (key_id, response) DO NOTHING",
            )
            .bind(response)
            .bind(begin.key)
            .bind(account)
            .bind(begin.at)
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    /// The spool is taken over up to `position`.
    pub async fn commit(
        mut self,
        decisions: Option<&Archive>,
        position: SpoolPosition,
    ) -> sqlx::Result<()> {
        if let Some(archive) = decisions {
            sqlx::query("INSERT INTO decisions (first_end, last_end, lines) VALUES ($1, $2, $3)")
                .bind(archive.first_end)
                .bind(archive.last_end)
                .bind(&archive.lines)
                .execute(&mut *self.0)
                .await?;
        }
        sqlx::query(
            "INSERT INTO spool_position (id, segment, offset) VALUES (1, $1, $2)
             ON CONFLICT (id) DO UPDATE SET segment = excluded.segment, offset = excluded.offset",
        )
        .bind(i64::try_from(position.segment).unwrap_or(i64::MAX))
        .bind(i64::try_from(position.offset).unwrap_or(i64::MAX))
        .execute(&mut *self.0)
        .await?;
        self.0.commit().await
    }
}

#[derive(Debug)]
struct Statement {
    text: String,
    columns: usize,
}

fn insert(table: &str, columns: &str, conflict: &str) -> Statement {
    let count = columns.split(',').count();
    let row = vec!["?"; count].join(",");
    let rows = vec![format!("({row})"); ROWS].join(",");
    let text = format!(
        "INSERT INTO {table} ({columns}) SELECT * FROM (VALUES {rows}) \
         WHERE column1 IS NOT NULL ON CONFLICT {conflict}"
    );
    Statement { text, columns: count }
}

/// The values of the rows of one statement, one behind the other.
struct Values(SqliteArguments);

impl Values {
    fn add<'v>(
        &mut self,
        value: impl Encode<'v, Sqlite> + Type<Sqlite>,
    ) -> Result<(), BoxDynError> {
        self.0.add(value)
    }

    /// Copied once, where a `&str` would be copied and then shared in a place of its own.
    fn text(&mut self, text: &str) -> Result<(), BoxDynError> {
        self.0.add(Arc::<str>::from(text))
    }

    fn count(&mut self, tokens: Option<u64>) -> Result<(), BoxDynError> {
        self.0.add(tokens.map(|n| i64::try_from(n).unwrap_or(i64::MAX)))
    }
}

async fn write_rows<T>(
    connection: &mut SqliteConnection,
    sql: &'static LazyLock<Statement>,
    rows: &[T],
    add: impl Fn(&mut Values, &T) -> Result<(), BoxDynError>,
) -> sqlx::Result<()> {
    for chunk in rows.chunks(ROWS) {
        let mut values = Values(SqliteArguments::default());
        values.0.reserve(chunk.len() * sql.columns, 0);
        chunk.iter().try_for_each(|row| add(&mut values, row)).map_err(sqlx::Error::Encode)?;
        sqlx::query_with(sql.text.as_str(), values.0).execute(&mut *connection).await?;
    }
    Ok(())
}

fn add_begin(row: &mut Values, begin: &Begin<'_>) -> Result<(), BoxDynError> {
    row.text(&begin.id)?;
    row.add(begin.at)?;
    row.add(begin.key)?;
    row.text(&begin.surface)?;
    row.text(&begin.model)?;
    row.add(begin.stream)?;
    row.add(begin.account)
}

fn add_end(row: &mut Values, end: &Ended<'_>) -> Result<(), BoxDynError> {
    add_begin(row, &end.begin)?;
    row.add(end.ended_at())?;
    row.add(end.status)?;
    row.text(&end.outcome)?;
    row.add(end.code.as_deref())?;
    row.add(end.wait_ms)?;
    row.add(end.head_ms)?;
    row.add(end.first_ms)?;
    row.add(end.total_ms)?;
    row.count(end.input)?;
    row.count(end.output)?;
    row.count(end.cache_read)?;
    row.count(end.cache_write)?;
    row.count(end.reasoning)?;
    row.count(Some(end.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::AttemptRecord;

    /// The first 12 digits of an id are its time.
    fn end(id: String) -> Ended<'static> {
        let begin = Begin { id: id.into(), ..Begin::default() };
        let failed = vec![AttemptRecord::default(), AttemptRecord::default()];
        Ended { begin, outcome: "complete".into(), failed, ..Ended::default() }
    }

    #[tokio::test]
    async fn prunes_by_the_time_in_the_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let count = 2 * ROWS + 1;
        let ends: Vec<_> = (0..count).map(|at| end(format!("{at:012x}7abc"))).collect();
        for _ in 0..2 {
            let mut recording = store.recording().await.unwrap();
            recording.ends(&ends).await.unwrap();
            recording.commit(None, SpoolPosition::default()).await.unwrap();
        }
        let total = i64::try_from(count).unwrap();
        assert_eq!(store.outcomes().await.unwrap(), [("complete".to_owned(), total)]);
        assert_eq!(
            store.prune(Before { requests: Timestamp(200), ..Before::default() }).await.unwrap(),
            200
        );
        assert_eq!(store.outcomes().await.unwrap(), [("complete".to_owned(), total - 200)]);
        let attempts = sqlx::query_scalar("SELECT count(*) FROM attempts");
        let attempts: i64 = attempts.fetch_one(&store.read).await.unwrap();
        assert_eq!(attempts, 2 * (total - 200));
    }
}
