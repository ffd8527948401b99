//! Accounts, their sealed credentials, and the last known quota windows.

use std::path::PathBuf;
use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::health::Stop;
use poolgate_core::quota::{Limit, Quota, Window};
use poolgate_core::units::{Fraction, Timestamp};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::Store;
use crate::config::RawAccount;

/// Who may change an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Config,
    Cli,
}

impl Origin {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Cli => "cli",
        }
    }

    fn of(row: &SqliteRow) -> Self {
        match row.get("origin") {
            "config" => Self::Config,
            _ => Self::Cli,
        }
    }
}

/// An account whose settings this release cannot read, or make nothing of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub id: AccountId,
    pub name: String,
    pub origin: Origin,
    pub paused: bool,
    /// When an operator last vouched for it.
    pub resumed_at: Option<Timestamp>,
    /// In few words, for people.
    pub why: String,
}

impl Unread {
    fn of(row: &SqliteRow, error: &serde_json::Error) -> Self {
        let error = error.to_string();
        // What follows is a list of all settings there are.
        let why = error.split(", expected one of").next().unwrap_or_default().to_owned();
        Self {
            id: AccountId(row.get("id")),
            name: row.get("name"),
            origin: Origin::of(row),
            paused: row.get::<i64, _>("paused") != 0,
            resumed_at: row.get::<Option<i64>, _>("resumed_at").map(Timestamp),
            why,
        }
    }
}

/// Where an account's credential and its upstream are, as its settings say: what was learnt of it in
/// one place is not about another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    kind: String,
    auth_file: Option<PathBuf>,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    base_url: Option<String>,
}

impl Whereabouts {
    pub fn of(settings: &RawAccount) -> Self {
        let RawAccount { kind, auth_file, key_env, key_file, base_url, .. } = settings.clone();
        Self { kind, auth_file, key_env, key_file, base_url }
    }
}

#[derive(Clone, Debug)]
pub struct AccountRow {
    pub id: AccountId,
    pub origin: Origin,
    pub settings: RawAccount,
    pub paused: bool,
    pub stop: Option<Stop>,
    /// When an operator last vouched for it.
    pub resumed_at: Option<Timestamp>,
    /// The sealed credential and its version; `None` when the settings say where it is, as they do for
    /// all accounts of the configuration file, whatever was stored under the name before.
    pub sealed: Option<(Vec<u8>, i64)>,
}

impl Store {
    /// Accounts that were not removed, in the order they were added. One whose settings this release
    /// cannot read, as after a downgrade, is left out, and keeps nobody else from anything.
    pub async fn accounts(&self) -> anyhow::Result<Vec<AccountRow>> {
        Ok(self.all_accounts().await?.0)
    }

    /// And those whose settings cannot be read.
    pub async fn all_accounts(&self) -> anyhow::Result<(Vec<AccountRow>, Vec<Unread>)> {
        let rows = sqlx::query(
            "SELECT a.id, a.name, a.origin, a.settings, a.paused, a.stop, a.resumed_at,
                    c.sealed, c.version
             FROM accounts a LEFT JOIN credentials c
             ON c.account_id = a.id AND length(c.sealed) > 0 AND a.origin <> 'config'
             WHERE a.removed_at IS NULL ORDER BY a.id",
        )
        .fetch_all(&self.read)
        .await?;
        let mut unread = Vec::new();
        let mut settings_of = |row: &SqliteRow| match serde_json::from_str(row.get("settings")) {
            Ok(settings) => Some(settings),
            Err(error) => {
                let account: &str = row.get("name");
                tracing::error!(account, %error, "its settings are of another release");
                unread.push(Unread::of(row, &error));
                None
            }
        };
        let accounts = rows.iter().filter_map(|row| {
            let sealed: Option<Vec<u8>> = row.get("sealed");
            let stop: Option<String> = row.get("stop");
            Some(AccountRow {
                id: AccountId(row.get("id")),
                origin: Origin::of(row),
                settings: settings_of(row)?,
                paused: row.get::<i64, _>("paused") != 0,
                stop: stop.and_then(|s| Stop::ALL.into_iter().find(|stop| stop.name() == s)),
                resumed_at: row.get::<Option<i64>, _>("resumed_at").map(Timestamp),
                sealed: sealed.map(|sealed| (sealed, row.get("version"))),
            })
        });
        let accounts = accounts.collect();
        Ok((accounts, unread))
    }

    /// Adds an account, or takes over a removed one of the same name and its history; what was known of
    /// that one's credential is forgotten. `None`: the name is taken.
    pub async fn add_account(
        &self,
        settings: &RawAccount,
        origin: Origin,
        now: Timestamp,
    ) -> anyhow::Result<Option<AccountId>> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let id: Option<i64> = sqlx::query_scalar(
            "INSERT INTO accounts (name, origin, settings, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO UPDATE
             SET origin = excluded.origin, settings = excluded.settings, removed_at = NULL,
                 paused = 0, stop = NULL, resumed_at = excluded.created_at
             WHERE accounts.removed_at IS NOT NULL
             RETURNING id",
        )
        .bind(&settings.name)
        .bind(origin.name())
        .bind(serde_json::to_string(settings)?)
        .bind(now.0)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(id) = id {
            Self::empty(&mut tx, id, now).await?;
        }
        Self::bump(&mut tx).await?;
        tx.commit().await?;
        Ok(id.map(AccountId))
    }

    /// Makes the stored accounts of the configuration file what the file says now. An account of
    /// that name added by hand becomes the file's; what was known of it is about another one, unless
    /// both are in the same place.
    pub async fn sync_config_accounts(
        &self,
        accounts: &[RawAccount],
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Self::forget_others(&mut tx, accounts, now).await?;
        sqlx::query(
            "UPDATE accounts SET removed_at = $1 WHERE origin = 'config' AND removed_at IS NULL",
        )
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        for settings in accounts {
            sqlx::query(
                "INSERT INTO accounts (name, origin, settings, created_at) VALUES ($1, 'config', $2, $3)
                 ON CONFLICT (name) DO UPDATE
                 SET origin = 'config', settings = excluded.settings, removed_at = NULL",
            )
            .bind(&settings.name)
            .bind(serde_json::to_string(settings)?)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        }
        Self::bump(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// What was known of those whose names `accounts` are about to take over from another place, or who
    /// were put in another one: quota, notes and a stop were about what is there no more. A pause is an
    /// operator's, and stays with an account that stood in the file all along.
    async fn forget_others(
        executor: &mut sqlx::SqliteConnection,
        accounts: &[RawAccount],
        now: Timestamp,
    ) -> anyhow::Result<()> {
        for settings in accounts {
            let known: Option<(i64, String)> =
                sqlx::query_as("SELECT id, settings FROM accounts WHERE name = $1")
                    .bind(&settings.name)
                    .fetch_optional(&mut *executor)
                    .await?;
            let Some((id, known)) = known else { continue };
            // An older release may have written what is not understood any more.
            let whereabouts = serde_json::from_str(&known).map(|known| Whereabouts::of(&known));
            if whereabouts.is_ok_and(|known| known == Whereabouts::of(settings)) {
                continue;
            }
            Self::forget(executor, id).await?;
            sqlx::query(
                "UPDATE accounts SET stop = NULL, resumed_at = $2,
                     paused = CASE WHEN origin = 'config' AND removed_at IS NULL THEN paused ELSE 0 END
                 WHERE id = $1",
            )
            .bind(id)
            .bind(now.0)
            .execute(&mut *executor)
            .await?;
        }
        Ok(())
    }

    /// Removes an account and its credential. Its rows in the ledger stay.
    pub async fn remove_account(&self, id: AccountId, now: Timestamp) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Self::empty(&mut tx, id.0, now).await?;
        sqlx::query("UPDATE accounts SET removed_at = $2 WHERE id = $1")
            .bind(id.0)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    /// Deletes a credential and what was known of it. Its version goes on: whoever still has the old
    /// one finds another, under the same name too.
    async fn empty(
        executor: &mut sqlx::SqliteConnection,
        id: i64,
        now: Timestamp,
    ) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE credentials SET sealed = x'', version = version + 1, updated_at = $2
             WHERE account_id = $1",
        )
        .bind(id)
        .bind(now.0)
        .execute(&mut *executor)
        .await?;
        Self::forget(executor, id).await
    }

    /// Deletes what was learnt of an account's credential.
    async fn forget(executor: &mut sqlx::SqliteConnection, id: i64) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM refreshes WHERE account_id = $1")
            .bind(id)
            .execute(&mut *executor)
            .await?;
        sqlx::query("DELETE FROM quota_windows WHERE account_id = $1")
            .bind(id)
            .execute(executor)
            .await?;
        Ok(())
    }

    pub async fn change_settings(
        &self,
        id: AccountId,
        settings: &RawAccount,
    ) -> anyhow::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("UPDATE accounts SET settings = $2 WHERE id = $1")
            .bind(id.0)
            .bind(serde_json::to_string(settings)?)
            .execute(&mut *tx)
            .await?;
        Self::bump(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    pub async fn pause(&self, id: AccountId) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("UPDATE accounts SET paused = 1 WHERE id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await?;
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    /// Ends a pause, and everything learnt that kept the account from working.
    pub async fn resume(&self, id: AccountId, now: Timestamp) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("UPDATE accounts SET paused = 0, stop = NULL, resumed_at = $2 WHERE id = $1")
            .bind(id.0)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    pub async fn set_stop(&self, id: AccountId, stop: Option<Stop>) -> sqlx::Result<()> {
        sqlx::query("UPDATE accounts SET stop = $2 WHERE id = $1")
            .bind(id.0)
            .bind(stop.map(Stop::name))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Stores a first credential, or replaces one whatever its version.
    pub async fn put_credential(
        &self,
        id: AccountId,
        sealed: &[u8],
        now: Timestamp,
    ) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Self::put(&mut tx, id, sealed, now).await?;
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    async fn put(
        executor: &mut sqlx::SqliteConnection,
        id: AccountId,
        sealed: &[u8],
        now: Timestamp,
    ) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO credentials (account_id, sealed, updated_at) VALUES ($1, $2, $3)
             ON CONFLICT (account_id) DO UPDATE
             SET sealed = excluded.sealed, version = credentials.version + 1, updated_at = excluded.updated_at",
        )
        .bind(id.0)
        .bind(sealed)
        .bind(now.0)
        .execute(executor)
        .await?;
        Ok(())
    }

    /// A person has signed the account in again: what the old sign-in was stopped for is over, and
    /// with `is_other` also what was known of its quota. `sealed`: where the store keeps it.
    pub async fn signed_in(
        &self,
        id: AccountId,
        sealed: Option<&[u8]>,
        is_other: bool,
        now: Timestamp,
    ) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(sealed) = sealed {
            Self::put(&mut tx, id, sealed, now).await?;
        }
        sqlx::query("UPDATE accounts SET stop = NULL, resumed_at = $2 WHERE id = $1")
            .bind(id.0)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM refreshes WHERE account_id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await?;
        if is_other {
            sqlx::query("DELETE FROM quota_windows WHERE account_id = $1")
                .bind(id.0)
                .execute(&mut *tx)
                .await?;
        }
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    /// The sealed credential as it is now, and its version.
    pub async fn credential(&self, id: AccountId) -> sqlx::Result<Option<(Vec<u8>, i64)>> {
        let row = sqlx::query(
            "SELECT sealed, version FROM credentials WHERE account_id = $1 AND length(sealed) > 0",
        )
        .bind(id.0)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.map(|row| (row.get("sealed"), row.get("version"))))
    }

    /// Tells a running gateway that something of its accounts has changed.
    pub async fn announce(&self) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Self::bump(&mut tx).await?;
        tx.commit().await
    }

    /// Replaces a credential only if nobody has since `version` was read. `false`: reread it. On
    /// disk when this returns.
    pub async fn replace_credential(
        &self,
        id: AccountId,
        version: i64,
        sealed: &[u8],
        now: Timestamp,
    ) -> sqlx::Result<bool> {
        let done = sqlx::query(
            "UPDATE credentials SET sealed = $3, version = version + 1, updated_at = $4
             WHERE account_id = $1 AND version = $2",
        )
        .bind(id.0)
        .bind(version)
        .bind(sealed)
        .bind(now.0)
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    pub async fn quotas(&self) -> sqlx::Result<Vec<(AccountId, Quota)>> {
        let rows =
            sqlx::query("SELECT * FROM quota_windows ORDER BY account_id, limit_name, length_s")
                .fetch_all(&self.read)
                .await?;
        let mut quotas: Vec<(AccountId, Vec<Window>)> = Vec::new();
        for row in rows {
            let id = AccountId(row.get("account_id"));
            let limit: String = row.get("limit_name");
            let window = Window {
                limit: if limit.is_empty() { Limit::Ordinary } else { Limit::Named(limit) },
                length: Duration::from_secs(
                    u64::try_from(row.get::<i64, _>("length_s")).unwrap_or(0),
                ),
                used: Fraction::from_ppm(u32::try_from(row.get::<i64, _>("used_ppm")).unwrap_or(0)),
                resets_at: row.get::<Option<i64>, _>("resets_at").map(Timestamp),
                observed_at: Timestamp(row.get("observed_at")),
            };
            match quotas.last_mut() {
                Some((last, windows)) if *last == id => windows.push(window),
                _ => quotas.push((id, vec![window])),
            }
        }
        Ok(quotas.into_iter().map(|(id, windows)| (id, Quota::new(windows))).collect())
    }

    pub async fn save_quotas(&self, quotas: &[(AccountId, Quota)]) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for (id, quota) in quotas {
            // Windows that it has no more go too.
            sqlx::query("DELETE FROM quota_windows WHERE account_id = $1")
                .bind(id.0)
                .execute(&mut *tx)
                .await?;
            for window in quota.windows() {
                let limit = match &window.limit {
                    Limit::Ordinary => "",
                    Limit::Named(name) => name,
                };
                sqlx::query(
                    "INSERT INTO quota_windows
                     (account_id, limit_name, length_s, used_ppm, resets_at, observed_at)
                     VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (account_id, limit_name, length_s) DO UPDATE
                     SET used_ppm = excluded.used_ppm, resets_at = excluded.resets_at,
                         observed_at = excluded.observed_at",
                )
                .bind(id.0)
                .bind(limit)
                .bind(i64::try_from(window.length.as_secs()).unwrap_or(i64::MAX))
                .bind(i64::from(window.used.ppm()))
                .bind(window.resets_at.map(|at| at.0))
                .bind(window.observed_at.0)
                .execute(&mut *tx)
                .await?;
            }
        }
        tx.commit().await
    }
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
