//! The operator's side: what `poolgate status` reads. Its token stands in a file of the data
//! directory, so whoever can read that directory may look.

use std::path::Path;

use anyhow::Context;
use http::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::error::Error;
use crate::gateway::{Outgoing, presented_key, whole};
use crate::pool::PoolView;
use crate::secret::{random_token, sha256};

pub const TOKEN_FILE: &str = "admin.token";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    #[serde(flatten)]
    pub pool: PoolView,
    /// Attempts running now.
    pub in_flight: u32,
    /// Records waiting for the database, in bytes.
    pub spool_waiting_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub now: i64,
}

impl Status {
    pub fn of(app: &App) -> Self {
        let now = app.clock.now();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pool: app.pool.view(now),
            in_flight: app.pool.in_flight(),
            spool_waiting_bytes: app.spool.waiting(),
            now: now.0,
        }
    }
}

pub fn status(app: &App, headers: &HeaderMap) -> Result<Response<Outgoing>, Error> {
    // Digests of 256 random bits: how long a comparison takes says nothing about the token.
    if sha256(presented_key(headers)?.as_bytes()) != app.admin_token {
        return Err(Error::Unauthorized);
    }
    let body = serde_json::to_vec(&Status::of(app)).map_err(|_| Error::Internal)?;
    Ok(whole(StatusCode::OK, "application/json", body.into()))
}

/// The digest of the token in `dir`, which is made at the first start.
pub fn load_token(dir: &Path) -> anyhow::Result<[u8; 32]> {
    let path = dir.join(TOKEN_FILE);
    if !path.exists() {
        crate::files::create_private(&path, format!("pgadmin-{}\n", random_token()?).as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(sha256(read_token(dir)?.as_bytes()))
}

pub fn read_token(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(TOKEN_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "reading {}: is this the data directory of a gateway that has been started?",
            path.display()
        )
    })?;
    let token = text.trim();
    anyhow::ensure!(
        token.len() >= 20,
        "{} holds no token: delete it and start again",
        path.display()
    );
    Ok(token.to_owned())
}
