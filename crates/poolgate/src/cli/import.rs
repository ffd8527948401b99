//! `poolgate account import`: a sign-in that the vendor's own client made, moved into the store.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use poolgate_core::account::Kind;
use serde_json::{Map, Value};

use super::Context;
use super::account::Settings;
use super::login::{keeper, kept};
use crate::config::CredentialSource;
use crate::credentials::SignIn;
use crate::signin::Signed;

#[derive(Debug, Args)]
pub struct Import {
    /// An `auth.json` or a `.credentials.json`; - reads standard input. Nothing else may use that
    /// sign-in afterwards: each renewal ends the copy that was renewed
    file: PathBuf,
    /// A new account of this name, or one that gets this sign-in [default: the account that it
    /// belongs to, else a new one]
    #[arg(long)]
    name: Option<String>,
    /// Take it although it is somebody else's, or older than the one there is
    #[arg(long, requires = "name")]
    replace: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Longer than any such file, in bytes.
const LONGEST: u64 = 1 << 20;

pub async fn run(context: &Context, import: Import) -> anyhow::Result<()> {
    let document = read(&import.file)?;
    let kind = kind(&document)?;
    let sign_in = SignIn::parse(kind, &document)
        .map_err(|problem| anyhow::anyhow!("{}: {problem}", import.file.display()))?;
    ensure!(
        sign_in.refresh_token().is_some(),
        "{}: there is no refresh token in it, so it would end within hours",
        import.file.display()
    );
    let whose = sign_in.identity();
    let signed = Signed { sign_in, whose };
    let keeper = keeper(context).await?;
    let Import { name, replace, settings, .. } = import;
    let (target, _) =
        kept::target(context, &keeper, kind, name.as_deref(), replace, &settings).await?;
    let siblings = keeper.siblings(&signed).await?;
    let row = if let kept::Target::Again { row, .. } = &target { Some(&**row) } else { None };
    if let Some(row) = row.or(siblings.first()) {
        let name = &row.settings.name;
        let spec = keeper.spec(row, kind)?;
        if let CredentialSource::AuthFile(path) = spec.source {
            bail!("{name} shares {}: sign it in again there, or by account login", path.display());
        }
        // The same sign-in, before it was renewed here: it is spent, and using it may end both.
        ensure!(
            replace || row.stop.is_some() || !keeper.holds_newer(row, &signed.sign_in),
            "{name} has a newer sign-in than this file, and nothing was changed; --replace takes it all the same"
        );
    }
    let kept = kept::keep(context, &keeper, target, "imported the sign-in of", &signed).await?;
    kept.show(context.json);
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut document = Vec::new();
    let count = if file == Path::new("-") {
        std::io::stdin().take(LONGEST).read_to_end(&mut document)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST).read_to_end(&mut document))
    };
    count.with_context(|| format!("reading {}", file.display()))?;
    Ok(document)
}

/// By its group of tokens. What is in it is not quoted.
fn kind(document: &[u8]) -> anyhow::Result<Kind> {
    let keys: Option<Map<String, Value>> = serde_json::from_slice(document).ok();
    let has = |key: &str| keys.as_ref().is_some_and(|keys| keys.contains_key(key));
    match (has("claudeAiOauth"), has("tokens") || has("OPENAI_API_KEY")) {
        (true, false) => Ok(Kind::Claude),
        (false, true) => Ok(Kind::Codex),
        _ => bail!("that is neither an auth.json of Codex nor a .credentials.json of Claude Code"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_two_documents_apart() {
        let cases = [
            (r#"{"tokens":{"access_token":"secret"}}"#, Some(Kind::Codex)),
            (r#"{"OPENAI_API_KEY":"secret"}"#, Some(Kind::Codex)),
            (r#"{"claudeAiOauth":{},"mcpOAuth":{}}"#, Some(Kind::Claude)),
            (r#"{"claudeAiOauth":{},"tokens":{}}"#, None),
            (r#"{"secret":1}"#, None),
            ("secret", None),
        ];
        for (document, want) in cases {
            let found = kind(document.as_bytes());
            if let Err(error) = &found {
                assert!(!error.to_string().contains("secret"), "{error}");
            }
            assert_eq!(found.ok(), want, "{document}");
        }
    }
}
