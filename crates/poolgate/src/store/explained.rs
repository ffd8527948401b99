//! One request of the ledger, whole: its row, the attempts that came to nothing, and its decisions.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::Store;
use crate::ledger::find_decisions;

#[derive(Clone, Debug)]
pub struct RequestRow {
    /// Milliseconds since the Unix epoch, as all times here.
    pub started_at: i64,
    /// `None`: it is still running.
    pub ended_at: Option<i64>,
    pub key_id: i64,
    pub surface: String,
    pub model: String,
    pub account_id: Option<i64>,
    pub status: Option<i64>,
    pub outcome: Option<String>,
    pub code: Option<String>,
    pub wait_ms: Option<i64>,
    pub first_ms: Option<i64>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    pub failed: Vec<FailedRow>,
}

#[derive(Clone, Debug)]
pub struct FailedRow {
    pub account_id: i64,
    pub outcome: String,
    pub status: Option<i64>,
    pub ms: i64,
}

impl Store {
    /// `None`: there is no such request, or it is too old.
    pub async fn request(&self, id: &str) -> sqlx::Result<Option<RequestRow>> {
        let row = sqlx::query(
            "SELECT started_at, ended_at, key_id, surface, model, account_id, status, outcome, code,
                    wait_ms, first_ms, input_tokens, output_tokens
             FROM requests WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let failed = sqlx::query(
            "SELECT account_id, outcome, status, ms FROM attempts WHERE request_id = $1 ORDER BY n",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?;
        let attempt = |row: &SqliteRow| FailedRow {
            account_id: row.get("account_id"),
            outcome: row.get("outcome"),
            status: row.get("status"),
            ms: row.get("ms"),
        };
        Ok(Some(RequestRow {
            started_at: row.get("started_at"),
            ended_at: row.get("ended_at"),
            key_id: row.get("key_id"),
            surface: row.get("surface"),
            model: row.get("model"),
            account_id: row.get("account_id"),
            status: row.get("status"),
            outcome: row.get("outcome"),
            code: row.get("code"),
            wait_ms: row.get("wait_ms"),
            first_ms: row.get("first_ms"),
            input_tokens: row.get("input_tokens"),
            output_tokens: row.get("output_tokens"),
            failed: failed.iter().map(attempt).collect(),
        }))
    }

    /// The decisions of a request that ended at `ended_at`, as a JSON list.
    pub async fn decisions(&self, id: &str, ended_at: i64) -> anyhow::Result<Option<String>> {
        let rows = sqlx::query(
            "SELECT lines FROM decisions WHERE last_end >= $1 AND first_end <= $1 ORDER BY last_end",
        )
        .bind(ended_at)
        .fetch_all(&self.read)
        .await?;
        for row in rows {
            if let Some(found) = find_decisions(row.get("lines"), id).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Ids and names, of accounts that were deleted too.
    pub async fn account_names(&self) -> sqlx::Result<Vec<(i64, String)>> {
        sqlx::query_as("SELECT id, name FROM accounts").fetch_all(&self.read).await
    }

    pub async fn key_name(&self, id: i64) -> sqlx::Result<Option<String>> {
        sqlx::query_scalar("SELECT name FROM client_keys WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await
    }
}
