//! Where log lines go: standard error, as text for people or JSON for machines.
//!
//! One event, once, where it is handled; ids as fields. No credential, body or prompt is ever a
//! field: secrets have a type that cannot be printed, and bodies are not given to `tracing`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `RUST_LOG` decides what is shown; by default our own events from `info`, others' from `warn`.
pub fn init(json: bool) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,poolgate=info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call, in a test, changes nothing.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}
