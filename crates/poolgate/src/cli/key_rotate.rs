//! `poolgate key-rotate`: another master key.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Context, show};
use crate::vault::{self, Rotated};

#[derive(Debug, Args)]
pub struct Command {
    /// File with the new key, 32 bytes in base64; needed where the present one comes from the
    /// environment or systemd [default: a random one]
    #[arg(long)]
    new_key_file: Option<PathBuf>,
}

pub async fn run(command: &Command, context: &Context) -> anyhow::Result<ExitCode> {
    let file = command.new_key_file.as_deref();
    let Rotated { old, new, to_do } = vault::rotate(&context.config, &context.store, file).await?;
    let as_json =
        json!({"old_fingerprint": old, "new_fingerprint": new, "put_new_key_into": to_do});
    show(context.json, &as_json, || {
        let done = format!(
            "the master key is a new one: fingerprint {new}, before {old}\n\
             A gateway that runs goes on. Backups of the database made before need the old key."
        );
        to_do.map_or(done.clone(), |place| {
            format!("{done}\nPut the new key into {place} before the next start.")
        })
    });
    Ok(ExitCode::SUCCESS)
}
