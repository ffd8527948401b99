//! The operator's side: what `poolgate status`, `why` and `explain` read. Its token stands in a file of the data
//! directory, so whoever can read that directory may look.

mod explain;
mod metrics;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use http::{HeaderMap, Response, StatusCode};
use poolgate_core::account::{Surface, model_matches};
use poolgate_core::availability::Ask;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::error::Error;
use crate::gateway::{Outgoing, presented_key, whole};
use crate::pool::{PoolView, Wish};
use crate::reconfigure;
use crate::secret::{random_token, sha256};

pub use explain::Explained;
pub use metrics::metrics;

pub const TOKEN_FILE: &str = "admin.token";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    #[serde(flatten)]
    pub pool: PoolView,
    /// Attempts running now.
    pub in_flight: u32,
    /// What came of reading the configuration file last.
    #[serde(default)]
    pub configuration: reconfigure::Outcome,
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
            configuration: app.configured.outcome(),
            spool_waiting_bytes: app.spool.waiting(),
            now: now.0,
        }
    }
}

pub fn status(app: &App) -> Result<Response<Outgoing>, Error> {
    answer(&Status::of(app))
}

/// `surface`, `model`, and optionally the name of a client `key`.
pub fn why(app: &App, query: Option<&str>) -> Result<Response<Outgoing>, Error> {
    let field = |name| field(query, name);
    let model = field("model").filter(|model| !model.is_empty()).ok_or(Error::NoModel)?;
    let surface = field("surface").unwrap_or_else(|| "responses".into());
    let surface = Surface::ALL.into_iter().find(|known| known.name() == surface);
    let surface = surface.ok_or(Error::BadQuestion("there is no such surface"))?;
    let key = field("key").map(|name| {
        let key = app.keys.named(&name, app.clock.now());
        key.ok_or(Error::BadQuestion("there is no valid key of that name"))
    });
    let key = key.transpose()?;
    let ask = Ask { surface, model: &model, gate: app.gates.of(&model).map(Arc::as_ref) };
    let wish = Wish {
        pools: key.as_ref().map_or(&[], |key| &key.pools),
        ask,
        session: None,
        owner: None,
        leg: None,
        turn: None,
        tried: &[],
        seed: rand::random(),
    };
    let mut why = app.pool.why(&wish, app.clock.now());
    let may_use = |models: &[String]| {
        models.is_empty() || models.iter().any(|pattern| model_matches(pattern, &model))
    };
    if key.is_some_and(|key| !may_use(&key.models)) {
        // A request would not come as far as a choice.
        (why.chosen, why.because) = (None, Error::ModelForbidden(model).to_string());
    }
    answer(&why)
}

/// The request `id`.
pub async fn explain(app: &App, query: Option<&str>) -> Result<Response<Outgoing>, Error> {
    let id = field(query, "id").unwrap_or_default();
    let told = explain::explain(app, &id).await?;
    answer(&told.ok_or(Error::BadQuestion("there is no request of that id on record"))?)
}

fn field(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| unescape(value))
}

/// Undoes `%XX` and `+`; what is no text reads as nothing.
fn unescape(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => bytes.push(if *first == b'+' { b' ' } else { *first }),
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Before any of the answers here.
pub fn authenticate(app: &App, headers: &HeaderMap) -> Result<(), Error> {
    // Digests of 256 random bits: how long a comparison takes says nothing about the token.
    let presented = presented_key(headers).map_err(|error| match error {
        Error::Unauthorized => Error::NotOperator,
        other => other,
    })?;
    if sha256(presented.as_bytes()) == app.admin_token {
        return Ok(());
    }
    Err(Error::NotOperator)
}

fn answer(value: &impl Serialize) -> Result<Response<Outgoing>, Error> {
    let body = serde_json::to_vec(value).map_err(|_| Error::Internal)?;
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
