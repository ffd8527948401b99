//! The ledger's rows: requests, attempts, and who owns the state behind a response.

use std::sync::LazyLock;

use poolgate_core::account::AccountId;
use poolgate_core::units::Timestamp;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, Sqlite};

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
const ROWS: usize = 100;

static BEGINS: LazyLock<String> = LazyLock::new(|| {
    let columns = "id, started_at, key_id, surface, model, stream, account_id";
    insert("requests", columns, "(id) DO NOTHING")
});

static ENDS: LazyLock<String> = LazyLock::new(|| {
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

static ATTEMPTS: LazyLock<String> = LazyLock::new(|| {
    let columns = "request_id, n, account_id, outcome, status, ms";
    insert("attempts", columns, "(request_id, n) DO NOTHING")
});

type Rows<'q> = Query<'q, Sqlite, SqliteArguments>;

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

    /// Takes over what the spool holds up to `position`, as one transaction: after a crash the same
    /// records come again, or none of them does.
    pub async fn record(
        &self,
        begins: &[Begin<'_>],
        ends: &[Ended<'_>],
        decisions: Option<&Archive>,
        position: SpoolPosition,
    ) -> sqlx::Result<()> {
        self.is_in_place()?;
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for chunk in begins.chunks(ROWS) {
            let rows = chunk.iter().fold(sqlx::query(BEGINS.as_str()), bind_begin);
            rows.execute(&mut *tx).await?;
        }
        for chunk in ends.chunks(ROWS) {
            let rows = chunk.iter().fold(sqlx::query(ENDS.as_str()), bind_end);
            rows.execute(&mut *tx).await?;
        }
        let attempts: Vec<_> =
            ends.iter().flat_map(|end| (1_i64..).zip(&end.failed).map(move |a| (end, a))).collect();
        for chunk in attempts.chunks(ROWS) {
            let rows =
                chunk.iter().fold(sqlx::query(ATTEMPTS.as_str()), |rows, (end, (n, attempt))| {
                    rows.bind(&*end.begin.id)
                        .bind(n)
                        .bind(attempt.account)
                        .bind(&*attempt.outcome)
                        .bind(attempt.status)
                        .bind(attempt.ms)
                });
            rows.execute(&mut *tx).await?;
        }
        for (response, account, begin) in ends.iter().filter_map(Ended::owner) {
            sqlx::query(
                "INSERT INTO response_owners (response, key_id, account_id, created_at)
                 VALUES ($1, $2, $3, $4) ON CONFLICT (key_id, response) DO NOTHING",
            )
            .bind(response)
            .bind(begin.key)
            .bind(account)
            .bind(begin.at)
            .execute(&mut *tx)
            .await?;
        }
        if let Some(archive) = decisions {
            sqlx::query("INSERT INTO decisions (first_end, last_end, lines) VALUES ($1, $2, $3)")
                .bind(archive.first_end)
                .bind(archive.last_end)
                .bind(&archive.lines)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query(
            "INSERT INTO spool_position (id, segment, offset) VALUES (1, $1, $2)
             ON CONFLICT (id) DO UPDATE SET segment = excluded.segment, offset = excluded.offset",
        )
        .bind(i64::try_from(position.segment).unwrap_or(i64::MAX))
        .bind(i64::try_from(position.offset).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await?;
        tx.commit().await
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

fn insert(table: &str, columns: &str, conflict: &str) -> String {
    let row = vec!["?"; columns.split(',').count()].join(",");
    let rows = vec![format!("({row})"); ROWS].join(",");
    format!(
        "INSERT INTO {table} ({columns}) SELECT * FROM (VALUES {rows}) \
         WHERE column1 IS NOT NULL ON CONFLICT {conflict}"
    )
}

fn bind_begin<'q>(rows: Rows<'q>, begin: &'q Begin<'_>) -> Rows<'q> {
    rows.bind(&*begin.id)
        .bind(begin.at)
        .bind(begin.key)
        .bind(&*begin.surface)
        .bind(&*begin.model)
        .bind(begin.stream)
        .bind(begin.account)
}

fn bind_end<'q>(rows: Rows<'q>, end: &'q Ended<'_>) -> Rows<'q> {
    let count = |tokens: Option<u64>| tokens.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    bind_begin(rows, &end.begin)
        .bind(end.ended_at())
        .bind(end.status)
        .bind(&*end.outcome)
        .bind(end.code.as_deref())
        .bind(end.wait_ms)
        .bind(end.head_ms)
        .bind(end.first_ms)
        .bind(end.total_ms)
        .bind(count(end.input))
        .bind(count(end.output))
        .bind(count(end.cache_read))
        .bind(count(end.cache_write))
        .bind(count(end.reasoning))
        .bind(count(Some(end.bytes)))
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
            store.record(&[], &ends, None, SpoolPosition::default()).await.unwrap();
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
