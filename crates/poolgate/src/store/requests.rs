//! The ledger's rows: requests, attempts, and who owns the state behind a response.

use poolgate_core::account::AccountId;
use poolgate_core::units::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::Store;
use crate::ledger::{Begin, End};

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

/// Rows per statement: enough to make the cost per row small, few enough to stay far below the
/// limit of bound values.
const ROWS: usize = 200;

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
        begins: &[Begin],
        ends: &[End],
        position: SpoolPosition,
    ) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for chunk in begins.chunks(ROWS) {
            insert_begins(chunk).build().execute(&mut *tx).await?;
        }
        for chunk in ends.chunks(ROWS) {
            insert_ends(chunk).build().execute(&mut *tx).await?;
        }
        let attempts: Vec<_> = ends
            .iter()
            .flat_map(|end| {
                end.attempts.iter().enumerate().map(|(n, a)| (end.begin.id.as_str(), n, a))
            })
            .collect();
        for chunk in attempts.chunks(ROWS) {
            let mut sql = QueryBuilder::<Sqlite>::new(
                "INSERT INTO attempts (request_id, n, account_id, outcome, status, ms) ",
            );
            sql.push_values(chunk, |mut row, (id, n, attempt)| {
                row.push_bind(*id)
                    .push_bind(i64::try_from(*n).unwrap_or(0) + 1)
                    .push_bind(attempt.account)
                    .push_bind(&attempt.outcome)
                    .push_bind(attempt.status.map(i64::from))
                    .push_bind(attempt.ms);
            });
            sql.push(" ON CONFLICT (request_id, n) DO NOTHING");
            sql.build().execute(&mut *tx).await?;
        }
        for (response, account, begin) in ends.iter().filter_map(End::owner) {
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

    /// Deletes rows older than `before`, and owners nobody can use any more. Returns rows deleted.
    pub async fn prune(&self, before: Timestamp, owners_before: Timestamp) -> sqlx::Result<u64> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "DELETE FROM attempts WHERE request_id IN (SELECT id FROM requests WHERE started_at < $1)",
        )
        .bind(before.0)
        .execute(&mut *tx)
        .await?;
        let requests = sqlx::query("DELETE FROM requests WHERE started_at < $1")
            .bind(before.0)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM response_owners WHERE created_at < $1")
            .bind(owners_before.0)
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

fn insert_begins(begins: &[Begin]) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(
        "INSERT INTO requests (id, started_at, key_id, surface, model, stream, account_id) ",
    );
    sql.push_values(begins, |mut row, begin| {
        row.push_bind(begin.id.clone())
            .push_bind(begin.at)
            .push_bind(begin.key)
            .push_bind(begin.surface.clone())
            .push_bind(begin.model.clone())
            .push_bind(i64::from(begin.stream))
            .push_bind(begin.account);
    });
    sql.push(" ON CONFLICT (id) DO NOTHING");
    sql
}

fn insert_ends(ends: &[End]) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(
        "INSERT INTO requests (id, started_at, key_id, surface, model, stream, account_id, ended_at, \
         status, outcome, code, wait_ms, head_ms, first_ms, total_ms, input_tokens, output_tokens, \
         cache_read_tokens, cache_write_tokens, reasoning_tokens, bytes) ",
    );
    let count = |tokens: Option<u64>| tokens.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    sql.push_values(ends, |mut row, end| {
        row.push_bind(end.begin.id.clone())
            .push_bind(end.begin.at)
            .push_bind(end.begin.key)
            .push_bind(end.begin.surface.clone())
            .push_bind(end.begin.model.clone())
            .push_bind(i64::from(end.begin.stream))
            .push_bind(end.begin.account)
            .push_bind(end.begin.at + end.total_ms)
            .push_bind(i64::from(end.status))
            .push_bind(end.outcome.clone())
            .push_bind(end.code.clone())
            .push_bind(end.wait_ms)
            .push_bind(end.head_ms)
            .push_bind(end.first_ms)
            .push_bind(end.total_ms)
            .push_bind(count(end.input))
            .push_bind(count(end.output))
            .push_bind(count(end.cache_read))
            .push_bind(count(end.cache_write))
            .push_bind(count(end.reasoning))
            .push_bind(count(Some(end.bytes)));
    });
    sql.push(
        " ON CONFLICT (id) DO UPDATE SET account_id = excluded.account_id, ended_at = excluded.ended_at, \
         status = excluded.status, outcome = excluded.outcome, code = excluded.code, \
         wait_ms = excluded.wait_ms, head_ms = excluded.head_ms, first_ms = excluded.first_ms, \
         total_ms = excluded.total_ms, input_tokens = excluded.input_tokens, \
         output_tokens = excluded.output_tokens, cache_read_tokens = excluded.cache_read_tokens, \
         cache_write_tokens = excluded.cache_write_tokens, \
         reasoning_tokens = excluded.reasoning_tokens, bytes = excluded.bytes \
         WHERE requests.outcome IS NULL",
    );
    sql
}
