//! What is known of renewing each account's sign-in. On disk when a call here returns.

use poolgate_core::account::AccountId;
use poolgate_core::health::Stop;
use poolgate_core::refresh::{Fault, Past};
use poolgate_core::units::Timestamp;
use sqlx::Row;

use super::Store;

/// Which tokens were asked with, what came of it, and the issuer's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshMark {
    /// SHA-256 of the tokens.
    pub content: [u8; 32],
    pub past: Past,
    pub code: String,
}

impl Store {
    /// `Past::Nothing` leaves no mark.
    pub async fn mark_refresh(&self, id: AccountId, mark: &RefreshMark) -> sqlx::Result<()> {
        let (state, tries, at) = match mark.past {
            Past::Nothing => return self.forget_refresh(id).await,
            Past::Failed { until } => ("failed", 0, until),
            Past::Blocked => ("blocked", 0, Timestamp::default()),
            Past::Refused(_) => ("refused", 0, Timestamp::default()),
            Past::InDoubt { tries, at } => ("asked", tries, at),
        };
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        if !matches!(mark.past, Past::Refused(_)) {
            Self::end_needs_login(&mut tx, id).await?;
        }
        sqlx::query(
            "INSERT INTO refreshes (account_id, content, state, code, tries, at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (account_id) DO UPDATE
             SET content = excluded.content, state = excluded.state, code = excluded.code,
                 tries = excluded.tries, at = excluded.at",
        )
        .bind(id.0)
        .bind(mark.content.as_slice())
        .bind(state)
        .bind(&mark.code)
        .bind(i64::from(tries))
        .bind(at.0)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// The tokens are good.
    pub async fn forget_refresh(&self, id: AccountId) -> sqlx::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        Self::end_needs_login(&mut tx, id).await?;
        sqlx::query("DELETE FROM refreshes WHERE account_id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    /// An issuer that is asked, or has given tokens, will say again if a login is needed. Stops are
    /// saved a little later than they change, and a crash in between must not bring one back.
    async fn end_needs_login(
        executor: &mut sqlx::SqliteConnection,
        id: AccountId,
    ) -> sqlx::Result<()> {
        sqlx::query("UPDATE accounts SET stop = NULL WHERE id = $1 AND stop = $2")
            .bind(id.0)
            .bind(Stop::NeedsLogin.name())
            .execute(executor)
            .await?;
        Ok(())
    }

    pub async fn refresh_mark(&self, id: AccountId) -> sqlx::Result<Option<RefreshMark>> {
        let row = sqlx::query("SELECT * FROM refreshes WHERE account_id = $1")
            .bind(id.0)
            .fetch_optional(&self.read)
            .await?;
        Ok(row.and_then(|row| {
            let (code, at): (String, i64) = (row.get("code"), row.get("at"));
            let past = match row.get("state") {
                "failed" => Past::Failed { until: Timestamp(at) },
                "blocked" => Past::Blocked,
                "refused" => Past::Refused(Fault::of(&code).unwrap_or(Fault::Invalid)),
                _ => Past::InDoubt {
                    tries: u32::try_from(row.get::<i64, _>("tries")).unwrap_or(1),
                    at: Timestamp(at),
                },
            };
            let content: Vec<u8> = row.get("content");
            Some(RefreshMark { content: content.try_into().ok()?, past, code })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawAccount;
    use crate::store::Origin;

    #[tokio::test]
    async fn marks_are_kept_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let settings = RawAccount { name: "a".into(), ..RawAccount::default() };
        let id = store.add_account(&settings, Origin::Cli, Timestamp(1)).await.unwrap().unwrap();
        for (past, code) in [
            (Past::Failed { until: Timestamp(7) }, ""),
            (Past::Blocked, ""),
            (Past::Refused(Fault::Reused), "refresh_token_reused"),
            (Past::InDoubt { tries: 2, at: Timestamp(9) }, ""),
        ] {
            let mark = RefreshMark { content: [7; 32], past, code: code.into() };
            store.mark_refresh(id, &mark).await.unwrap();
            store.set_stop(id, Some(Stop::NeedsLogin)).await.unwrap();
            let is_refused = matches!(past, Past::Refused(_));
            store.mark_refresh(id, &mark).await.unwrap();
            assert_eq!(store.refresh_mark(id).await.unwrap(), Some(mark));
            let stop = store.accounts().await.unwrap()[0].stop;
            assert_eq!(stop.is_some(), is_refused, "whoever may ask needs no login yet: {past:?}");
        }
        store.set_stop(id, Some(Stop::Disabled)).await.unwrap();
        let mark = RefreshMark { content: [7; 32], past: Past::Nothing, code: String::new() };
        store.mark_refresh(id, &mark).await.unwrap();
        assert_eq!(store.refresh_mark(id).await.unwrap(), None);
        assert_eq!(store.accounts().await.unwrap()[0].stop, Some(Stop::Disabled), "no other stop");
    }
}
