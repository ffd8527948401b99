//! `poolgate why`: who would serve this now, and why not the others.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use poolgate_core::units::Timestamp;

use super::status::Gateway;
use super::{Global, say};
use crate::error::clock_text;
use crate::pool::{Why, WhyAccount};

#[derive(Debug, Args)]
pub struct Command {
    /// The model a request would ask for
    #[arg(long)]
    model: String,
    /// Name of the client key it would come with [default: one that may use the default pool]
    #[arg(long)]
    key: Option<String>,
    /// One of responses, compact, chat, messages and `count_tokens` [default: messages for a model
    /// named claude…, else responses]
    #[arg(long)]
    surface: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

/// Fails if nobody would serve.
pub async fn run(command: &Command, global: &Global) -> anyhow::Result<ExitCode> {
    let usual = if command.model.starts_with("claude") { "messages" } else { "responses" };
    let surface = command.surface.as_deref().unwrap_or(usual);
    let mut query = format!("surface={}&model={}", escape(surface), escape(&command.model));
    if let Some(key) = &command.key {
        query += &format!("&key={}", escape(key));
    }
    let body = command.gateway.ask(global, &format!("/api/admin/why?{query}")).await?;
    let why: Why = serde_json::from_slice(&body).context("an answer of another version")?;
    if global.json {
        say(&String::from_utf8_lossy(&body));
    } else {
        say(&render(&why));
    }
    Ok(if why.chosen.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// For a query: everything but letters, digits and `-._~` as `%XX`.
fn escape(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let one =
        |byte: u8| if plain(&byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

fn render(why: &Why) -> String {
    let head = match &why.chosen {
        Some(name) => {
            format!("{name} would serve {} ({}, by {})", why.model, why.surface, why.because)
        }
        None => format!("nobody would serve {} ({}): {}", why.model, why.surface, why.because),
    };
    let line = |account: &WhyAccount| {
        let until = account.until.map(|at| format!(" until {}", clock_text(Timestamp(at))));
        let score = account.score.map(|score| format!("  score {score:.4}"));
        format!(
            "  {:<24} {}{}  priority {}{}",
            account.name,
            account.verdict,
            until.unwrap_or_default(),
            account.priority,
            score.unwrap_or_default()
        )
    };
    let lines: Vec<String> = why.accounts.iter().map(line).collect();
    format!("{head}\nstrategy {}:\n{}", why.strategy, lines.join("\n"))
}
