//! The database, and the key that sealed what is in it.

use poolgate_core::units::Timestamp;

use super::Check;
use crate::config::Config;
use crate::sealing::{DataKey, KeyPlace};
use crate::store::{ClientKeyRow, Store};
use crate::vault;

/// `None`: there is none yet.
pub async fn open(config: &Config) -> Result<Option<Store>, Check> {
    let path = config.data_dir.join("poolgate.db");
    if !path.exists() {
        return Ok(None);
    }
    let advice = "restore the file from a backup, or move it away to start with an empty one";
    let broken = |text: String| Check::problem("database", text, advice);
    let store = Store::look(&config.data_dir).await.map_err(|e| broken(format!("{e:#}")))?;
    let sound =
        store.quick_check().await.map_err(|e| broken(format!("{}: {e}", path.display())))?;
    if sound == "ok" {
        Ok(Some(store))
    } else {
        Err(broken(format!("{}: {sound}", path.display())))
    }
}

/// `pools`: the names of all that there are.
pub async fn check(store: &Store, pools: &[&str], now: Timestamp) -> Vec<Check> {
    let mut checks = vec![schema(store.schema().await)];
    match store.client_keys().await {
        Ok(keys) if keys.iter().any(|key| key.is_valid(now)) => {
            let valid = keys.iter().filter(|key| key.is_valid(now));
            checks.extend(valid.filter_map(|key| without_pool(key, pools)));
        }
        Ok(_) => checks.push(Check::warning(
            "client keys",
            "none is valid, so nobody is served",
            "poolgate key create NAME",
        )),
        Err(error) => checks.push(Check::warning(
            "client keys",
            format!("they cannot be read: {error:#}"),
            "start the gateway once, which brings the database up to date",
        )),
    }
    checks
}

/// Who is let into pools alone that are gone finds nobody there.
fn without_pool(key: &ClientKeyRow, pools: &[&str]) -> Option<Check> {
    let is_gone = |pool: &&String| !pools.contains(&pool.as_str());
    let gone: Vec<&str> = key.pools.iter().filter(is_gone).map(String::as_str).collect();
    (!gone.is_empty()).then(|| {
        let about = format!("client key {}", key.name);
        let problem = format!("there is no pool {}", gone.join(", "));
        Check::warning(about, problem, "add the [[pool]], or revoke the key and create another")
    })
}

fn schema(versions: sqlx::Result<(i64, i64)>) -> Check {
    match versions {
        Ok((found, ours)) if found > ours => Check::problem(
            "database",
            format!("schema {found} is newer than {ours}, which this program knows"),
            "use the poolgate that wrote it, or a newer one",
        ),
        Ok((found, ours)) if found < ours => {
            Check::ok("database", format!("sound; the next start brings schema {found} to {ours}"))
        }
        Ok((found, _)) => Check::ok("database", format!("sound, schema {found}")),
        Err(error) => Check::problem(
            "database",
            format!("it is not poolgate's: {error}"),
            "move it out of the data directory, or set data_dir to another path",
        ),
    }
}

/// The key that opens what is stored, if it can be had, and what is to be said of it.
pub struct Key {
    pub key: Option<DataKey>,
    pub check: Check,
}

pub async fn master_key(config: &Config, store: Option<&Store>) -> Key {
    let place = KeyPlace::find(&config.master_key_file);
    let known = match store {
        Some(store) => store.master_key().await.ok().flatten(),
        None => None,
    };
    let restore = "restore master_key_file or POOLGATE_MASTER_KEY; without it, stored credentials \
                   are lost and have to be added again";
    let (Some(store), Some(known)) = (store, known) else {
        let check = match place.keys() {
            Err(error) => Check::problem("master key", format!("{error:#}"), restore),
            Ok(keys) if keys.is_empty() => {
                Check::ok("master key", "none yet: the first start makes it")
            }
            Ok(_) => Check::ok("master key", "it is there, and nothing is sealed with it yet"),
        };
        return Key { key: None, check };
    };
    let opened = async {
        let found = vault::fitting(&place, &known)?;
        anyhow::Ok((found.place, store.data_key(&found.key).await.ok().flatten()))
    };
    match opened.await {
        Err(error) => {
            let check = Check::problem("master key", format!("{error:#}"), restore);
            Key { key: None, check }
        }
        Ok((place, key)) => {
            let found = format!("the right one, in {place}");
            Key { key, check: Check::ok("master key", found) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn grades_the_schema() {
        let cases =
            [(Ok((2, 2)), Grade::Ok), (Ok((1, 2)), Grade::Ok), (Ok((3, 2)), Grade::Problem)];
        for (versions, want) in cases {
            let name = format!("{versions:?}");
            assert_eq!(schema(versions).grade, want, "{name}");
        }
        assert_eq!(schema(Err(sqlx::Error::RowNotFound)).grade, Grade::Problem);
    }
}
