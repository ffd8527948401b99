//! `poolgate status`: the accounts of a running gateway.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::{Method, StatusCode, Uri};

use super::{ADDRESS_FILE, Global, is_terminal, say};
use crate::admin::{self, read_token};
use crate::egress::Egress;
use crate::secret::Secret;
use crate::table;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Status {
    /// The gateway's address [default: where it was last started from this data directory]
    #[arg(long)]
    url: Option<String>,
    /// The operator's token [default: from the data directory]
    #[arg(long, env = "POOLGATE_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

pub async fn run(command: &Status, global: &Global) -> anyhow::Result<ExitCode> {
    let config = global.load(None)?;
    let last = std::fs::read_to_string(config.data_dir.join(ADDRESS_FILE)).ok();
    let address = last.unwrap_or_else(|| config.listen.to_string());
    let base = command.url.clone().unwrap_or_else(|| format!("http://{}", address.trim()));
    let token = match &command.token {
        Some(token) => token.clone(),
        None => read_token(&config.data_dir)?,
    };
    let uri: Uri = format!("{}/api/admin/status", base.trim_end_matches('/')).parse()?;
    let headers = [("authorization", Secret::new(format!("Bearer {token}")))];
    let egress = Egress::new(TIMEOUT)?;
    let (head, body) = egress
        .call(Method::GET, uri, &headers, None, TIMEOUT)
        .await
        .with_context(|| format!("no gateway answers at {base}: is it running?"))?;
    match head.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => {
            bail!("the gateway at {base} uses another data directory: give --data or --token")
        }
        status => bail!("{base} answered {status}: is it a poolgate?"),
    }
    if global.json {
        say(&String::from_utf8_lossy(&body));
    } else {
        let status: admin::Status = serde_json::from_slice(&body)
            .with_context(|| format!("{base} is not a poolgate of this version"))?;
        say(table::render(&status, table::Style::detect(is_terminal())).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
