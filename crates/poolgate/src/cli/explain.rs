//! `poolgate explain`: why a past request went where it went.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use poolgate_core::units::Timestamp;

use super::status::Gateway;
use super::{Global, say};
use crate::admin::Explained;
use crate::error::clock_text;
use crate::pool::{Candidate, Decision};
use crate::table::{clean, span};

#[derive(Debug, Args)]
pub struct Command {
    /// As in the answer's `x-poolgate-request-id` header
    id: String,
    #[command(flatten)]
    gateway: Gateway,
}

pub async fn run(command: &Command, global: &Global) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        command.id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "a request id has letters and digits only"
    );
    let path = format!("/api/admin/explain?id={}", command.id);
    let body = command.gateway.ask(global, &path).await?;
    if global.json {
        say(&String::from_utf8_lossy(&body));
        return Ok(ExitCode::SUCCESS);
    }
    let told: Explained = serde_json::from_slice(&body).context("an answer of another version")?;
    say(&render(&told));
    Ok(ExitCode::SUCCESS)
}

fn render(told: &Explained) -> String {
    let mut lines = vec![head(told), ending(told)];
    let mut failed = told.failed.iter();
    for (n, decision) in told.decisions.iter().enumerate() {
        lines.push(String::new());
        lines.extend(choice(told, decision, n + 1));
        // What came of it, if it did not answer. Retries on one account belong to one choice.
        let chosen = decision.chosen.map(|id| name(told, id));
        while let Some(attempt) = failed.as_slice().first().filter(|a| chosen == Some(&a.account)) {
            failed.next();
            let status = attempt.status.map(|status| format!(" ({status})")).unwrap_or_default();
            lines.push(format!("  → {}{status} after {} ms", attempt.outcome, attempt.ms));
        }
    }
    if told.decisions.is_empty() && told.ended_at.is_some() {
        lines.push(undecided(told));
    }
    lines.join("\n")
}

fn undecided(told: &Explained) -> String {
    // Its decisions were to be stored with its end, which a process that was killed does not write.
    let is_killed = told.outcome.as_deref() == Some("interrupted") && told.code.is_none();
    match told.account.as_deref().filter(|_| is_killed) {
        Some(account) => {
            let account = clean(account);
            format!("\nits process ended before it did; it was first given to {account}")
        }
        None => "\nno decision is on record: it was refused before, or it is too old".into(),
    }
}

fn head(told: &Explained) -> String {
    let key = told.key.as_deref().unwrap_or("a deleted key");
    format!(
        "{} at {}: {} {} by {}",
        told.id,
        clock_text(Timestamp(told.started_at)),
        told.surface,
        clean(&told.model),
        clean(key)
    )
}

fn ending(told: &Explained) -> String {
    let Some(ended_at) = told.ended_at else {
        return "it is still running".into();
    };
    let account = told.account.as_deref().filter(|_| told.status == Some(200));
    let mut text = told.outcome.clone().unwrap_or_default();
    if let Some(code) = &told.code {
        text += &format!(" ({code})");
    }
    if let Some(status) = told.status.filter(|status| *status > 0) {
        text += &format!(", {status}");
    }
    if let Some(account) = account {
        text += &format!(", served by {}", clean(account));
    }
    text += &format!(", {} ms", ended_at - told.started_at);
    if let Some(first) = told.first_ms {
        text += &format!(", first byte after {first} ms");
    }
    if let (Some(input), Some(output)) = (told.input_tokens, told.output_tokens) {
        text += &format!(", {input} tokens in, {output} out");
    }
    text
}

fn name(told: &Explained, id: i64) -> &str {
    told.names.get(&id).map_or("a deleted account", String::as_str)
}

fn choice(told: &Explained, decision: &Decision, n: usize) -> Vec<String> {
    let after = decision.at - told.started_at;
    let chosen = decision.chosen.map_or("nobody", |id| name(told, id));
    let rule = match &*decision.because {
        "strategy" => format!("by {}", decision.strategy),
        because if decision.chosen.is_some() => format!("by {because}"),
        because => because.to_owned(),
    };
    let mut lines = vec![format!("choice {n}, after {after} ms: {}, {rule}", clean(chosen))];
    let width = decision.candidates.iter().map(|c| name(told, c.account).chars().count()).max();
    for candidate in &decision.candidates {
        let mark = if decision.chosen == Some(candidate.account) { '>' } else { ' ' };
        let name = clean(name(told, candidate.account));
        let seen = seen(candidate);
        lines.push(format!("  {mark} {name:<width$}  {seen}", width = width.unwrap_or_default()));
    }
    let left_out: Vec<String> =
        decision.left_out.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    if !left_out.is_empty() {
        lines.push(format!("    and others: {}", left_out.join(", ")));
    }
    lines
}

/// What the choice saw of one account.
fn seen(candidate: &Candidate) -> String {
    if candidate.verdict == "unfit" {
        return candidate.verdict.to_string();
    }
    let mut parts = vec![match candidate.until {
        Some(until) => format!("{} until {}", candidate.verdict, clock_text(Timestamp(until))),
        None => candidate.verdict.to_string(),
    }];
    if candidate.priority != 0 {
        parts.push(format!("priority {}", candidate.priority));
    }
    if let Some(score) = candidate.score {
        #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
        parts.push(format!("score {:.4}", score as f64 / 1e6));
    }
    for (label, window) in [("5h", candidate.short), ("weekly", candidate.weekly)] {
        if let Some((left, seconds)) = window {
            let left = f64::from(left) / 1e4;
            let resets = span(Duration::from_secs(seconds), " ");
            parts.push(format!("{label} {left:.1} % left for {resets}"));
        }
    }
    if candidate.in_flight > 0 {
        parts.push(format!("{} in flight", candidate.in_flight));
    }
    if candidate.errors > 0 {
        parts.push(format!("{} errors in a row", candidate.errors));
    }
    parts.join(", ")
}
