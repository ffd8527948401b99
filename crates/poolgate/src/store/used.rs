//! What a client key has used.

use std::time::Duration;

use poolgate_core::quota::WEEK;
use poolgate_core::units::Timestamp;
use serde::Serialize;
use sqlx::Row;

use super::Store;

const PERIODS: [(&str, Duration); 3] =
    [("day", Duration::from_hours(24)), ("week", WEEK), ("month", Duration::from_hours(30 * 24))];

/// In the last so many hours. Tokens are disjoint: input is what no cache spared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    pub period: &'static str,
    pub requests: i64,
    /// Of them those that came to nothing.
    pub refused: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cache_read_tokens: i64,
    pub cache_write_tokens: i64,
}

impl Store {
    pub async fn used_by_key(&self, key_id: i64, now: Timestamp) -> sqlx::Result<Vec<Used>> {
        let mut all = Vec::new();
        for (period, span) in PERIODS {
            // Ids begin with their time, and so does the table.
            let row = sqlx::query(
                "SELECT COUNT(*) AS requests,
                        COUNT(CASE WHEN outcome = 'refused' THEN 1 END) AS refused,
                        COALESCE(SUM(input_tokens), 0) AS input,
                        COALESCE(SUM(output_tokens), 0) AS output,
                        COALESCE(SUM(cache_read_tokens), 0) AS cache_read,
                        COALESCE(SUM(cache_write_tokens), 0) AS cache_write
                 FROM requests WHERE id >= $1 AND key_id = $2",
            )
            .bind(format!("{:012x}", now.minus(span).0.max(0)))
            .bind(key_id)
            .fetch_one(&self.read)
            .await?;
            all.push(Used {
                period,
                requests: row.get("requests"),
                refused: row.get("refused"),
                input_tokens: row.get("input"),
                output_tokens: row.get("output"),
                cache_read_tokens: row.get("cache_read"),
                cache_write_tokens: row.get("cache_write"),
            });
        }
        Ok(all)
    }
}
