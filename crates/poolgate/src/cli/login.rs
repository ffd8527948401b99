//! `poolgate account login`: signing in to a subscription, from this machine or another.
//!
//! Shows where to go, then waits at once for the browser and for a pasted line, whichever comes
//! first. What is decided, and what is stored, is `signin`'s.

mod ask;
pub mod kept;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use poolgate_core::account::Kind;

use super::Context;
use super::account::Settings;
use crate::egress::Egress;
use crate::serve::stop_signal;
use crate::signin::{Keeper, TIME_LIMIT, Vendor};
use crate::tasks::Tasks;
use crate::vault;
use ask::Begun;

#[derive(Debug, Args)]
pub struct Login {
    /// Whose subscription it is
    #[arg(value_parser = ["codex", "claude"])]
    kind: String,
    /// A new account of this name, or one that is signed in again [default: the account that this
    /// sign-in belongs to, else a new one]
    #[arg(long)]
    name: Option<String>,
    /// codex: enter a short code in a browser anywhere, instead of coming back to this machine
    #[arg(long)]
    device: bool,
    /// Open no browser; the address is shown anyway
    #[arg(long)]
    no_browser: bool,
    /// Sign the named account in as somebody else, or for another workspace
    #[arg(long, requires = "name")]
    replace: bool,
    /// Give up after so many seconds
    #[arg(long, default_value_t = TIME_LIMIT.as_secs())]
    timeout: u64,
    /// Where the browser comes back to; the vendors take no other port than the usual one
    #[arg(long, hide = true)]
    callback_port: Option<u16>,
    #[command(flatten)]
    settings: Settings,
}

/// Exit status after Ctrl-C.
const INTERRUPTED: u8 = 130;

pub async fn run(context: &Context, login: Login) -> anyhow::Result<ExitCode> {
    let kind = Kind::from_name(&login.kind).context("codex or claude")?;
    let keeper = keeper(context).await?;
    let (name, settings) = (login.name.as_deref(), &login.settings);
    let (target, spec) =
        kept::target(context, &keeper, kind, name, login.replace, settings).await?;
    let token_url = spec.upstream.token_url.context("its token_url is missing")?;
    let vendor = Vendor::of(kind, &token_url, spec.upstream.place.way.clone())
        .map_err(anyhow::Error::msg)?;
    let egress = Egress::new(context.config.limits.connect_timeout, 0)?;
    let stop = stop_signal()?;
    let limit = Duration::from_secs(login.timeout);
    let begun = Begun { context, login: &login, egress: &egress };
    let obtained = async {
        if login.device { begun.device(vendor).await } else { begun.browser(vendor).await }
    };
    let (signed, page) = tokio::select! {
        obtained = tokio::time::timeout(limit, obtained) => {
            let late = || anyhow!("nobody signed in within {} s: nothing was changed", limit.as_secs());
            obtained.map_err(|_| late())??
        }
        () = stop.cancelled() => {
            eprintln!("poolgate: given up; nothing was changed");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    let kept = kept::keep(context, &keeper, target, "signed in as", &signed).await;
    if let Some(page) = page {
        let text = match kept {
            Ok(_) => "You are signed in. You may close this page.",
            Err(_) => "You signed in, but nothing was changed: see the terminal.",
        };
        page.show(kept.is_ok(), text).await;
    }
    kept?.show(context.json);
    Ok(ExitCode::SUCCESS)
}

/// Finds a wrong key first of all.
pub async fn keeper(context: &Context) -> anyhow::Result<Keeper> {
    let data_key = vault::unlock(&context.config, &context.store).await?;
    Ok(Keeper {
        store: context.store.clone(),
        data_key: Arc::new(data_key),
        dir: context.config.data_dir.join("credentials"),
        tasks: Tasks::default(),
    })
}
