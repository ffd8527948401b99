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
        // One at a time: the ledger is long, and other readers are for those who serve.
        let _turn = self.counting.lock().await;
        // Ids begin with their time, and so does the table. Read once: each period is part of the next.
        let [day, week, month] =
            PERIODS.map(|(_, span)| format!("{:012x}", now.minus(span).0.max(0)));
        let rows = sqlx::query(
            "SELECT CASE WHEN id >= $1 THEN 0 WHEN id >= $2 THEN 1 ELSE 2 END AS since,
                    COUNT(*) AS requests,
                    COUNT(CASE WHEN outcome = 'refused' THEN 1 END) AS refused,
                    COALESCE(SUM(input_tokens), 0) AS input,
                    COALESCE(SUM(output_tokens), 0) AS output,
                    COALESCE(SUM(cache_read_tokens), 0) AS cache_read,
                    COALESCE(SUM(cache_write_tokens), 0) AS cache_write
             FROM requests WHERE id >= $3 AND key_id = $4 GROUP BY 1",
        )
        .bind(day)
        .bind(week)
        .bind(month)
        .bind(key_id)
        .fetch_all(&self.read)
        .await?;
        let used = |(period, last): (&'static str, i64)| {
            let sum = |name: &str| {
                let within = rows.iter().filter(|row| row.get::<i64, _>("since") <= last);
                within.map(|row| row.get::<i64, _>(name)).sum()
            };
            Used {
                period,
                requests: sum("requests"),
                refused: sum("refused"),
                input_tokens: sum("input"),
                output_tokens: sum("output"),
                cache_read_tokens: sum("cache_read"),
                cache_write_tokens: sum("cache_write"),
            }
        };
        Ok(PERIODS.map(|(period, _)| period).into_iter().zip(0..).map(used).collect())
    }
}
