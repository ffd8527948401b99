//! What the ledger recorded, read beside a running gateway and never written.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use poolgate_core::quota::WEEK;
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use sqlx::{Row, SqlitePool};

use crate::config::RawAccount;

#[derive(Clone, Debug)]
pub struct History(SqlitePool);

/// A request as its row tells it. The session it belonged to is not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastRequest {
    pub at: Timestamp,
    pub took: Duration,
    pub key: i64,
    pub surface: String,
    pub model: String,
    /// `complete`, `refused`, `client_left`, `upstream_broke`, `interrupted`; empty: it runs.
    pub outcome: String,
    pub usage: TokenUsage,
}

#[derive(Clone, Debug)]
pub struct PastAccount {
    pub settings: RawAccount,
    /// The last known reset of its weekly window.
    pub weekly_reset: Option<Timestamp>,
}

impl History {
    /// `path` is the database, or the data directory that holds it.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let file = if path.is_dir() { path.join("poolgate.db") } else { path.to_owned() };
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .read_only(true)
            .busy_timeout(Duration::from_secs(30))
            .pragma("trusted_schema", "OFF");
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
        Ok(Self(pool.with_context(|| format!("opening {}", file.display()))?))
    }

    /// In the order in which they came.
    pub async fn requests(&self) -> anyhow::Result<Vec<PastRequest>> {
        let rows = sqlx::query(
            "SELECT started_at, COALESCE(total_ms, 0) AS total_ms, key_id, surface, model,
                    COALESCE(outcome, '') AS outcome, input_tokens, output_tokens,
                    cache_read_tokens, cache_write_tokens, reasoning_tokens
             FROM requests ORDER BY started_at, id",
        )
        .fetch_all(&self.0)
        .await
        .context("reading the requests: is this a poolgate database?")?;
        let request = |row: &SqliteRow| {
            let tokens = |name| row.get::<Option<i64>, _>(name).and_then(|n| u64::try_from(n).ok());
            PastRequest {
                at: Timestamp(row.get("started_at")),
                took: Duration::from_millis(
                    u64::try_from(row.get::<i64, _>("total_ms")).unwrap_or(0),
                ),
                key: row.get("key_id"),
                surface: row.get("surface"),
                model: row.get("model"),
                outcome: row.get("outcome"),
                usage: TokenUsage {
                    input: tokens("input_tokens"),
                    output: tokens("output_tokens"),
                    cache_read: tokens("cache_read_tokens"),
                    cache_write: tokens("cache_write_tokens"),
                    reasoning: tokens("reasoning_tokens"),
                },
            }
        };
        Ok(rows.iter().map(request).collect())
    }

    /// Accounts that were not removed, in the order they were added.
    pub async fn accounts(&self) -> anyhow::Result<Vec<PastAccount>> {
        let rows = sqlx::query(
            "SELECT a.settings, MAX(w.resets_at) AS weekly_reset
             FROM accounts a LEFT JOIN quota_windows w
             ON w.account_id = a.id AND w.limit_name = '' AND w.length_s = $1
             WHERE a.removed_at IS NULL GROUP BY a.id ORDER BY a.id",
        )
        .bind(i64::try_from(WEEK.as_secs()).unwrap_or(i64::MAX))
        .fetch_all(&self.0)
        .await
        .context("reading the accounts")?;
        rows.iter()
            .map(|row| {
                let weekly_reset = row.get::<Option<i64>, _>("weekly_reset").map(Timestamp);
                Ok(PastAccount {
                    settings: serde_json::from_str(row.get("settings"))?,
                    weekly_reset,
                })
            })
            .collect()
    }

    pub async fn close(&self) {
        self.0.close().await;
    }
}

#[cfg(test)]
mod tests {
    use poolgate_core::quota::{FIVE_HOURS, Limit, Quota, Window};
    use poolgate_core::units::Fraction;

    use super::*;
    use crate::ledger::{Begin, Ended};
    use crate::store::{Origin, SpoolPosition, Store};

    #[tokio::test]
    async fn reads_what_the_gateway_recorded_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let begin = Begin {
            id: "0001".into(),
            at: 5000,
            key: 7,
            surface: "messages".into(),
            model: "claude-opus-5-5".into(),
            ..Begin::default()
        };
        let end = Ended {
            begin,
            outcome: "complete".into(),
            total_ms: 1500,
            input: Some(10),
            cache_read: Some(100),
            ..Ended::default()
        };
        let mut recording = store.recording().await.unwrap();
        recording.ends(&[end]).await.unwrap();
        recording.commit(None, SpoolPosition::default()).await.unwrap();
        let settings =
            RawAccount { name: "a".into(), kind: "codex".into(), ..RawAccount::default() };
        let id = store.add_account(&settings, Origin::Cli, Timestamp(0)).await.unwrap().unwrap();
        let window = |length, resets_at| Window {
            limit: Limit::Ordinary,
            length,
            used: Fraction::ZERO,
            resets_at: Some(Timestamp(resets_at)),
            observed_at: Timestamp(1),
        };
        let quota = Quota::new(vec![window(FIVE_HOURS, 9000), window(WEEK, 8000)]);
        store.save_quotas(&[(id, quota)]).await.unwrap();

        let history = History::open(dir.path()).await.unwrap();
        let [request] = &history.requests().await.unwrap()[..] else { panic!("one row") };
        let usage = TokenUsage { input: Some(10), cache_read: Some(100), ..TokenUsage::default() };
        assert_eq!(
            (request.key, request.took, request.usage),
            (7, Duration::from_millis(1500), usage)
        );
        assert_eq!((request.at, request.outcome.as_str()), (Timestamp(5000), "complete"));
        let [account] = &history.accounts().await.unwrap()[..] else { panic!("one account") };
        assert_eq!(
            (account.settings.name.as_str(), account.weekly_reset),
            ("a", Some(Timestamp(8000)))
        );
        assert!(sqlx::query("DELETE FROM requests").execute(&history.0).await.is_err());
        history.close().await;
        assert!(History::open(&dir.path().join("nowhere.db")).await.is_err());
    }
}
