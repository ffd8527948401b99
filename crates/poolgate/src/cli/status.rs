//! `poolgate status`: the accounts of a running gateway.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode, Uri};

use super::{ADDRESS_FILE, Global, is_terminal, say};
use crate::admin::{self, read_token};
use crate::config::Way;
use crate::egress::Egress;
use crate::secret::Secret;
use crate::table;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Which running gateway is asked.
#[derive(Debug, Args)]
pub struct Gateway {
    /// The gateway's address [default: where it was last started from this data directory]
    #[arg(long)]
    url: Option<String>,
    /// The operator's token [default: from the data directory]
    #[arg(long, env = "POOLGATE_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    gateway: Gateway,
}

impl Gateway {
    /// Nobody said which.
    pub fn is_default(&self) -> bool {
        self.url.is_none() && self.token.is_none()
    }

    /// The JSON at `path` of the operator's side.
    pub async fn ask(&self, global: &Global, path: &str) -> anyhow::Result<Bytes> {
        let config = global.load_place()?;
        let last = std::fs::read_to_string(config.data_dir.join(ADDRESS_FILE)).ok();
        let address = last.unwrap_or_else(|| config.listen.to_string());
        let own = match address.trim() {
            https if https.starts_with("https://") => https.to_owned(),
            plain => format!("http://{plain}"),
        };
        let base = self.url.clone().unwrap_or(own);
        let token = match &self.token {
            Some(token) => token.clone(),
            None => read_token(&config.data_dir)?,
        };
        let uri: Uri = format!("{}{path}", base.trim_end_matches('/')).parse()?;
        let headers = [("authorization", Secret::new(format!("Bearer {token}")))];
        let egress = match &config.listener.tls {
            Some(tls) if self.url.is_none() => Egress::pinned(&tls.cert_file, TIMEOUT)?,
            _ => Egress::new(TIMEOUT, 0)?,
        };
        let (head, body) = egress
            .call(Method::GET, uri, &Way::ANYWHERE, &headers, None, TIMEOUT)
            .await
            .with_context(|| format!("no gateway answers at {base}: is it running?"))?;
        match head.status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED => {
                bail!("the gateway at {base} uses another data directory: give --data or --token")
            }
            StatusCode::BAD_REQUEST => {
                let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                bail!(
                    "{}",
                    problem["detail"].as_str().unwrap_or("the gateway refused the question")
                )
            }
            status => bail!("{base} answered {status}: is it a poolgate?"),
        }
    }
}

pub async fn run(command: &Status, global: &Global) -> anyhow::Result<ExitCode> {
    let body = command.gateway.ask(global, "/api/admin/status").await?;
    if global.json {
        say(&String::from_utf8_lossy(&body));
    } else {
        let status: admin::Status =
            serde_json::from_slice(&body).context("an answer of another version")?;
        say(table::render(&status, table::Style::detect(is_terminal())).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
