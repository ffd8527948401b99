//! The data key's row, and what it seals.

use anyhow::{Context, ensure};
use poolgate_core::account::AccountId;
use sqlx::Row;

use super::Store;
use crate::sealing::{DataKey, MasterKey};

impl Store {
    /// Fingerprint of the master key; `None`: nothing was sealed yet.
    pub async fn master_key(&self) -> sqlx::Result<Option<String>> {
        // The table is not there in a database that was not brought up to date yet.
        let known =
            sqlx::query_scalar("SELECT master_key FROM data_key").fetch_optional(&self.read);
        if let Ok(Some(known)) = known.await {
            return Ok(Some(known));
        }
        sqlx::query_scalar("SELECT value FROM meta WHERE name = 'master_key'")
            .fetch_optional(&self.read)
            .await
    }

    /// The data key; `None`: there is none yet.
    pub async fn data_key(&self, master: &MasterKey) -> anyhow::Result<Option<DataKey>> {
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM data_key WHERE master_key = $1")
                .bind(master.fingerprint())
                .fetch_optional(&self.read)
                .await?;
        sealed.map(|sealed| master.data_key(&sealed)).transpose()
    }

    /// Makes the data key, unless there is one, and seals with it what `master` sealed directly.
    /// `place` names a credential's place.
    pub async fn make_data_key(
        &self,
        master: &MasterKey,
        place: impl Fn(AccountId) -> String,
    ) -> anyhow::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let (key, sealed) = master.new_data_key()?;
        let made = sqlx::query(
            "INSERT INTO data_key (id, sealed, master_key) VALUES (1, $1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(sealed)
        .bind(master.fingerprint())
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            return Ok(());
        }
        let direct: Option<String> =
            sqlx::query_scalar("SELECT value FROM meta WHERE name = 'master_key'")
                .fetch_optional(&mut *tx)
                .await?;
        let rows =
            sqlx::query("SELECT account_id, sealed FROM credentials WHERE length(sealed) > 0")
                .fetch_all(&mut *tx)
                .await?;
        if direct.is_some() {
            ensure!(direct.as_deref() == Some(master.fingerprint()), "another master key");
            for row in rows {
                let place = place(AccountId(row.get("account_id")));
                let plain = master.open_direct(&place, row.get("sealed"))?;
                sqlx::query("UPDATE credentials SET sealed = $2 WHERE account_id = $1")
                    .bind(row.get::<i64, _>("account_id"))
                    .bind(key.seal(&place, &plain)?)
                    .execute(&mut *tx)
                    .await?;
            }
            sqlx::query("DELETE FROM meta WHERE name = 'master_key'").execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Seals the data key with `new` instead of `old`, durably. Nothing else changes.
    pub async fn change_master_key(&self, old: &MasterKey, new: &MasterKey) -> anyhow::Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM data_key WHERE master_key = $1")
                .bind(old.fingerprint())
                .fetch_optional(&mut *tx)
                .await?;
        let sealed = sealed.context("the master key was changed meanwhile")?;
        sqlx::query("UPDATE data_key SET sealed = $1, master_key = $2")
            .bind(old.hand_over(&sealed, new)?)
            .bind(new.fingerprint())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        // What the old key could open goes out of the log; out of backups it cannot.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.write).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use poolgate_core::units::Timestamp;

    use super::*;
    use crate::config::RawAccount;
    use crate::store::Origin;

    fn key() -> MasterKey {
        MasterKey::from_base64(&MasterKey::generate().unwrap()).unwrap()
    }

    fn place(id: AccountId) -> String {
        format!("credentials/{}", id.0)
    }

    #[tokio::test]
    async fn a_database_sealed_with_the_master_key_itself_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let (master, other) = (key(), key());
        let settings = RawAccount { name: "a".into(), ..RawAccount::default() };
        let id = store.add_account(&settings, Origin::Cli, Timestamp(1)).await.unwrap().unwrap();
        let sealed = master.seal_direct(&place(id), b"token");
        store.put_credential(id, &sealed, Timestamp(1)).await.unwrap();
        sqlx::query("INSERT INTO meta (name, value) VALUES ('master_key', $1)")
            .bind(master.fingerprint())
            .execute(&store.write)
            .await
            .unwrap();
        assert!(store.make_data_key(&other, place).await.is_err(), "not with another key");
        assert!(store.data_key(&other).await.unwrap().is_none(), "and nothing came of it");
        assert_eq!(store.master_key().await.unwrap().as_deref(), Some(master.fingerprint()));
        for _ in 0..2 {
            store.make_data_key(&master, place).await.unwrap();
            let key = store.data_key(&master).await.unwrap().unwrap();
            let (sealed, version) = store.credential(id).await.unwrap().unwrap();
            assert_eq!(
                (key.open(&place(id), &sealed).unwrap().as_slice(), version),
                (&b"token"[..], 1)
            );
            assert!(master.open_direct(&place(id), &sealed).is_err(), "no longer directly");
        }
        assert_eq!(store.master_key().await.unwrap().as_deref(), Some(master.fingerprint()));
    }

    #[tokio::test]
    async fn a_change_of_the_master_key_touches_one_row() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let (old, new) = (key(), key());
        store.make_data_key(&old, place).await.unwrap();
        let value = store.data_key(&old).await.unwrap().unwrap().seal("x", b"token").unwrap();
        store.change_master_key(&old, &new).await.unwrap();
        let opened = store.data_key(&new).await.unwrap().unwrap().open("x", &value);
        assert_eq!(opened.unwrap(), b"token");
        assert!(store.data_key(&old).await.unwrap().is_none());
        assert!(store.change_master_key(&old, &key()).await.is_err(), "it is not its key any more");
        assert_eq!(store.master_key().await.unwrap().as_deref(), Some(new.fingerprint()));
    }
}
