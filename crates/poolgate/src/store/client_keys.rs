//! Client keys: what a caller shows to be served.

use poolgate_core::units::Timestamp;
use sqlx::Row;

use super::Store;

#[derive(Clone, Debug)]
pub struct ClientKeyRow {
    pub id: i64,
    pub name: String,
    pub digest: [u8; 32],
    pub hint: String,
    /// Names of pools; empty: the default pool.
    pub pools: Vec<String>,
    /// Patterns of models; empty: all.
    pub models: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub limits: KeyLimits,
}

/// What one key may ask for at most; `None`: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests at the same time.
    pub concurrency: Option<u32>,
    pub requests_per_minute: Option<u32>,
}

impl ClientKeyRow {
    /// Before which a key is valid that is not valid any more, and one that has no end.
    pub const NEVER: Timestamp = Timestamp(i64::MIN);
    const FOR_EVER: Timestamp = Timestamp(i64::MAX);

    pub fn is_valid(&self, now: Timestamp) -> bool {
        now < self.valid_before()
    }

    pub fn valid_before(&self) -> Timestamp {
        match self.revoked_at {
            Some(_) => Self::NEVER,
            None => self.expires_at.unwrap_or(Self::FOR_EVER),
        }
    }
}

#[derive(Clone, Debug)]
pub struct NewClientKey {
    pub name: String,
    pub digest: [u8; 32],
    pub hint: String,
    pub pools: Vec<String>,
    pub models: Vec<String>,
    pub expires_at: Option<Timestamp>,
    pub limits: KeyLimits,
}

impl Store {
    /// All keys, revoked ones too, oldest first.
    pub async fn client_keys(&self) -> anyhow::Result<Vec<ClientKeyRow>> {
        let rows =
            sqlx::query("SELECT * FROM client_keys ORDER BY id").fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let digest: Vec<u8> = row.get("digest");
                Ok(ClientKeyRow {
                    id: row.get("id"),
                    name: row.get("name"),
                    digest: digest.try_into().unwrap_or_default(),
                    hint: row.get("hint"),
                    pools: serde_json::from_str(row.get("pools"))?,
                    models: serde_json::from_str(row.get("models"))?,
                    created_at: Timestamp(row.get("created_at")),
                    expires_at: row.get::<Option<i64>, _>("expires_at").map(Timestamp),
                    revoked_at: row.get::<Option<i64>, _>("revoked_at").map(Timestamp),
                    limits: KeyLimits {
                        concurrency: row.get("concurrency"),
                        requests_per_minute: row.get("requests_per_minute"),
                    },
                })
            })
            .collect()
    }

    /// `false`: the name is taken.
    pub async fn add_client_key(&self, key: &NewClientKey, now: Timestamp) -> anyhow::Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(
            "INSERT INTO client_keys (name, digest, hint, pools, models, created_at, expires_at,
                 concurrency, requests_per_minute)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO NOTHING",
        )
        .bind(&key.name)
        .bind(key.digest.as_slice())
        .bind(&key.hint)
        .bind(serde_json::to_string(&key.pools)?)
        .bind(serde_json::to_string(&key.models)?)
        .bind(now.0)
        .bind(key.expires_at.map(|at| at.0))
        .bind(key.limits.concurrency)
        .bind(key.limits.requests_per_minute)
        .execute(&mut *tx)
        .await?;
        Self::bump(&mut tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// `false`: there is no such key, or it was revoked before.
    pub async fn revoke_client_key(&self, name: &str, now: Timestamp) -> sqlx::Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(
            "UPDATE client_keys SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL",
        )
        .bind(name)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        Self::bump(&mut tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let key = NewClientKey {
            name: "laptop".into(),
            digest: [7; 32],
            hint: "pg-abc".into(),
            pools: vec!["keys".into()],
            models: vec![],
            expires_at: Some(Timestamp(50)),
            limits: KeyLimits { concurrency: Some(3), requests_per_minute: None },
        };
        assert!(store.add_client_key(&key, Timestamp(1)).await.unwrap());
        assert!(!store.add_client_key(&key, Timestamp(1)).await.unwrap(), "the name is taken");
        let row = store.client_keys().await.unwrap().remove(0);
        assert_eq!((row.digest, row.pools.as_slice()), ([7; 32], ["keys".to_owned()].as_slice()));
        assert_eq!(row.limits, key.limits);
        assert!(row.is_valid(Timestamp(49)) && !row.is_valid(Timestamp(50)));
        assert!(store.revoke_client_key("laptop", Timestamp(2)).await.unwrap());
        assert!(!store.revoke_client_key("laptop", Timestamp(3)).await.unwrap());
        assert!(!store.client_keys().await.unwrap()[0].is_valid(Timestamp(3)));
    }
}
