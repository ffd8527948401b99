//! `poolgate doctor`: what is wrong with this installation, and what to do.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::status::Gateway;
use super::{Global, say};
use crate::admin::{Status, TOKEN_FILE};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::demo::reachable;
use crate::doctor::{Check, Grade, Report, Running, examine};
use crate::table::clean;

#[derive(Debug, Args)]
pub struct Command {
    /// Connect to no upstream
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    gateway: Gateway,
}

/// Fails if there is a problem; warnings are none.
pub async fn run(command: &Command, global: &Global) -> anyhow::Result<ExitCode> {
    let report = match global.load(None) {
        Ok(config) => {
            let running = running(command, global, &config).await;
            examine(&config, &running, SystemClock.now(), command.offline).await
        }
        Err(error) => Report::unconfigured(&error),
    };
    if global.json {
        say(&serde_json::to_string(&report)?);
    } else {
        say(&render(&report));
    }
    Ok(if report.problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn running(command: &Command, global: &Global, config: &Config) -> Running {
    if command.gateway.is_default() && !config.data_dir.join(TOKEN_FILE).exists() {
        return none_on_this_data(config).await;
    }
    match command.gateway.ask(global, "/api/admin/status").await {
        Ok(body) => match serde_json::from_slice::<Status>(&body) {
            Ok(status) => Running::Yes(Box::new(status)),
            Err(_) => Running::Unclear("a gateway of another version is running".into()),
        },
        Err(error) if error.to_string().starts_with("no gateway answers") => {
            none_on_this_data(config).await
        }
        Err(error) => Running::Unclear(format!("{error:#}")),
    }
}

/// Another one may be where this one would listen, like the demo.
async fn none_on_this_data(config: &Config) -> Running {
    let connects = tokio::net::TcpStream::connect(reachable(config.listen));
    match tokio::time::timeout(LISTENS_WITHIN, connects).await {
        Ok(Ok(_)) => Running::Elsewhere(config.listen),
        _ => Running::No,
    }
}

/// On this machine.
const LISTENS_WITHIN: Duration = Duration::from_secs(1);

fn render(report: &Report) -> String {
    let line = |check: &Check| {
        let mark = match check.grade {
            Grade::Ok => "ok     ",
            Grade::Warning => "warning",
            Grade::Problem => "PROBLEM",
        };
        // Names and errors come from outside.
        let lines: Vec<String> = check.found.lines().map(clean).collect();
        let found = format!("{mark}  {}: {}", clean(&check.about), lines.join("\n           "));
        match &check.advice {
            Some(advice) => format!("{found}\n           → {}", clean(advice)),
            None => found,
        }
    };
    let lines: Vec<String> = report.checks.iter().map(line).collect();
    let verdict = match (report.problems, report.warnings) {
        (0, 0) => "All is well.".to_owned(),
        (problems, warnings) => format!("{problems} problem(s), {warnings} warning(s)."),
    };
    format!("{}\n\n{verdict}", lines.join("\n"))
}
