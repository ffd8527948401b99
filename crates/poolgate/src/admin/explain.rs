//! Why a past request went where it went: what `poolgate explain` reads.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::error::Error;
use crate::pool::Decision;
use crate::store::RequestRow;

/// A request that has just ended reaches the store within this, unless the store is in trouble.
const MOVED_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    pub id: String,
    /// Milliseconds since the Unix epoch, as all times here.
    pub started_at: i64,
    /// `None`: it is still running.
    pub ended_at: Option<i64>,
    pub key: Option<String>,
    pub surface: String,
    pub model: String,
    /// The last account it was sent to.
    pub account: Option<String>,
    pub status: Option<i64>,
    pub outcome: Option<String>,
    pub code: Option<String>,
    pub wait_ms: Option<i64>,
    pub first_ms: Option<i64>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    /// Attempts that came to nothing, in their order.
    pub failed: Vec<Failed>,
    /// One for each time an account was looked for. Empty once they are older than 7 days.
    pub decisions: Vec<Decision>,
    /// Names of the accounts in `decisions`.
    pub names: HashMap<i64, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failed {
    pub account: String,
    pub outcome: String,
    pub status: Option<i64>,
    pub ms: i64,
}

/// `None`: there is no such request.
pub async fn explain(app: &App, id: &str) -> Result<Option<Explained>, Error> {
    let broken = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "a request could not be looked up");
        Error::Internal
    };
    let _ = tokio::time::timeout(MOVED_WITHIN, app.spool.drained()).await;
    let Some(row) = app.store.request(id).await.map_err(|e| broken(&e))? else {
        return Ok(None);
    };
    let decisions = match row.ended_at {
        Some(at) => app.store.decisions(id, at).await.map_err(|e| broken(&e))?,
        None => None,
    };
    let decisions: Vec<Decision> = match decisions {
        Some(json) => serde_json::from_str(&json).map_err(|e| broken(&e))?,
        None => Vec::new(),
    };
    let names = app.store.account_names().await.map_err(|e| broken(&e))?;
    let key = app.store.key_name(row.key_id).await.map_err(|e| broken(&e))?;
    Ok(Some(told(id, row, key, decisions, names.into_iter().collect())))
}

fn told(
    id: &str,
    row: RequestRow,
    key: Option<String>,
    decisions: Vec<Decision>,
    mut names: HashMap<i64, String>,
) -> Explained {
    let name = |id: i64| names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"));
    let failed = row.failed.into_iter().map(|failed| Failed {
        account: name(failed.account_id),
        outcome: failed.outcome,
        status: failed.status,
        ms: failed.ms,
    });
    let (failed, account) = (failed.collect(), row.account_id.map(name));
    let seen = |id: &i64| decisions.iter().any(|d| d.candidates.iter().any(|c| c.account == *id));
    names.retain(|id, _| seen(id));
    Explained {
        id: id.to_owned(),
        started_at: row.started_at,
        ended_at: row.ended_at,
        key,
        surface: row.surface,
        model: row.model,
        account,
        status: row.status,
        outcome: row.outcome,
        code: row.code,
        wait_ms: row.wait_ms,
        first_ms: row.first_ms,
        input_tokens: row.input_tokens,
        output_tokens: row.output_tokens,
        failed,
        decisions,
        names,
    }
}
