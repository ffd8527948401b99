//! `poolgate account`: the credentials that serve.

mod list;

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use poolgate_core::account::{AccountId, Kind};
use poolgate_core::health::Stop;
use serde_json::json;

use super::import::{self, Import};
use super::login::{self, Login};
use super::{Context, show};
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::{AccountSpec, CredentialSource, ProxyUrl, RawAccount, at_home};
use crate::credentials::{SignIn, place};
use crate::gateway::fetch_models;
use crate::pool::Account;
use crate::serve::stop_signal;
use crate::signin::Signed;
use crate::store::{AccountRow, Origin};
use crate::vault;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a codex or claude account by signing in with a browser, or sign one in again
    Login(Login),
    /// Move a sign-in of the vendor's own client into the database, sealed
    Import(Import),
    /// Add an account of which there is a sign-in file or an API key
    Add(Add),
    /// List accounts
    List,
    /// Remove an account and its stored credential
    Remove { name: String },
    /// Change the proxy that all calls for an account go through
    Proxy {
        name: String,
        #[command(flatten)]
        way: Way,
    },
    /// Give an account no more work; running requests finish
    Pause { name: String },
    /// Let an account work again, and forget what stopped it
    Resume { name: String },
    /// Renew an account's sign-in now, whatever its issuer said before
    Refresh { name: String },
    /// Ask an account's upstream for its models, which costs nothing, to see whether it works
    Test { name: String },
}

impl Command {
    /// Not those that change or show what the store has, which may be needed most while the file
    /// has a mistake.
    pub const fn needs_accounts(&self) -> bool {
        !matches!(self, Self::List | Self::Remove { .. } | Self::Pause { .. } | Self::Resume { .. })
    }
}

/// How its upstream is reached.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Way {
    /// All its calls go through this proxy or nowhere: http://, socks5:// or socks5h://, with
    /// user:password@ before the host if it wants them; in the variable no other user can read them
    #[arg(long, env = "POOLGATE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// Its calls go directly, whatever `POOLGATE_PROXY` says
    #[arg(long)]
    no_proxy: bool,
}

impl Way {
    fn proxy(self) -> anyhow::Result<Option<ProxyUrl>> {
        let proxy = self.proxy.filter(|text| !self.no_proxy && !text.is_empty());
        let proxy = proxy.map(ProxyUrl::new);
        if let Some(Err(why)) = proxy.as_ref().map(ProxyUrl::parse) {
            bail!("proxy: {why}");
        }
        Ok(proxy)
    }
}

#[derive(Debug, Args)]
pub struct Add {
    /// A name of your choice
    name: String,
    /// codex, claude, openai, anthropic or compatible
    #[arg(long)]
    kind: String,
    /// Share the sign-in file of the vendor's own client: it stays where it is
    #[arg(long, group = "source")]
    auth_file: Option<PathBuf>,
    /// Copy a sign-in file into the database, sealed; nothing else may use that sign-in afterwards
    #[arg(long, group = "source")]
    import: Option<PathBuf>,
    /// Environment variable of the gateway that holds the API key
    #[arg(long, group = "source")]
    key_env: Option<String>,
    /// File that holds the API key
    #[arg(long, group = "source")]
    key_file: Option<PathBuf>,
    /// Read the API key from standard input and store it, sealed
    #[arg(long, group = "source")]
    key_stdin: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What an operator may set of any account.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Settings {
    /// Where its API is [default: the provider's]; for compatible accounts required
    #[arg(long)]
    base_url: Option<String>,
    /// Where its sign-in is renewed [default: the provider's]
    #[arg(long)]
    token_url: Option<String>,
    /// The upstream is in a private network: its name may lead there, and plain http is allowed
    #[arg(long)]
    private_upstream: bool,
    #[command(flatten)]
    way: Way,
    /// A higher number serves only when no lower one can
    #[arg(long, allow_hyphen_values = true)]
    priority: Option<i32>,
    /// Size of the plan relative to others
    #[arg(long)]
    plan_weight: Option<f64>,
    /// Pattern of models it may serve; repeat for more [default: all]
    #[arg(long = "model")]
    models: Vec<String>,
    /// What a compatible upstream speaks: responses, chat, messages; repeat for more
    #[arg(long)]
    speaks: Vec<String>,
    /// Attempts at the same time [default: any number]
    #[arg(long)]
    max_concurrency: Option<u32>,
    /// Use the 5-hour window only up to this many percent
    #[arg(long)]
    limit_5h: Option<u32>,
    /// Use the weekly window only up to this many percent
    #[arg(long)]
    limit_weekly: Option<u32>,
    /// For people
    #[arg(long)]
    note: Option<String>,
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Login(login) => return login::run(context, login).await,
        Command::Import(import) => import::run(context, import).await?,
        Command::Add(add) => self::add(context, add).await?,
        Command::List => list::show_all(context).await?,
        Command::Remove { name } => {
            let (id, origin) = find_any(context, &name).await?;
            check_own(&name, origin)?;
            context.store.remove_account(id, context.now()).await?;
            show(context.json, &json!({"removed": name}), || format!("removed {name}"));
        }
        Command::Proxy { name, way } => set_proxy(context, &name, way).await?,
        Command::Pause { name } => set_paused(context, &name, true).await?,
        Command::Resume { name } => set_paused(context, &name, false).await?,
        Command::Refresh { name } => return refresh(context, &name).await,
        Command::Test { name } => return test(context, &name).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn add(context: &Context, add: Add) -> anyhow::Result<()> {
    let raw = RawAccount {
        auth_file: add.auth_file.as_deref().map(in_full).transpose()?,
        key_env: add.key_env.clone(),
        key_file: add.key_file.as_deref().map(in_full).transpose()?,
        ..add.settings.clone().raw(&add.name, add.kind.clone())?
    };
    let is_stored = add.import.is_some() || add.key_stdin;
    let resolved = if is_stored { raw.clone().resolve_stored() } else { raw.clone().resolve() };
    let spec = resolved.map_err(|errors| anyhow!("{}", errors.join("; ")))?;
    let secret = read_secret(&add)?;
    if let Some(secret) = &secret
        && spec.kind.is_subscription()
    {
        SignIn::parse(spec.kind, secret).map_err(|problem| anyhow!("the sign-in: {problem}"))?;
    }
    refuse_twin(context, &spec, secret.as_deref()).await?;
    let (name, now) = (add.name, context.now());
    let missing = raw.auth_file.clone().filter(|path| !path.exists());
    let data_key = vault::unlock(&context.config, &context.store).await?;
    let raw = vault::seal_one(raw, &data_key)?;
    let id = context.store.add_account(&raw, Origin::Cli, now).await?;
    let id = id.with_context(|| format!("there is an account named {name:?} already"))?;
    if let Some(secret) = secret {
        let sealed = data_key.seal(&place(id), &secret)?;
        context.store.put_credential(id, &sealed, now).await?;
    }
    let as_json = json!({"added": name, "kind": spec.kind.name(), "missing_file": missing});
    show(context.json, &as_json, || match &missing {
        Some(path) => format!("added {name}; it serves nobody before {} is there", path.display()),
        None => format!("added {name}; see whether it works: poolgate account test {name}"),
    });
    Ok(())
}

/// As the configuration file has it: no shell expands the `~` of `--auth-file=~/x`.
fn in_full(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(at_home(path))
}

/// By two names one sign-in would be counted twice, and each renewal would end the other one's.
async fn refuse_twin(
    context: &Context,
    spec: &AccountSpec,
    secret: Option<&[u8]>,
) -> anyhow::Result<()> {
    if !spec.kind.is_subscription() {
        return Ok(());
    }
    let document = match &spec.source {
        CredentialSource::AuthFile(path) => std::fs::read(path).ok(),
        _ => secret.map(<[u8]>::to_vec),
    };
    // One that is not there yet, or broken, is waited for.
    let sign_in = document.and_then(|document| SignIn::parse(spec.kind, &document).ok());
    let Some(sign_in) = sign_in else { return Ok(()) };
    let signed = Signed { whose: sign_in.identity(), sign_in };
    let siblings = login::keeper(context).await?.siblings(&signed).await?;
    let other = siblings.iter().map(|row| &row.settings.name).find(|name| **name != spec.name);
    if let Some(name) = other {
        bail!("this sign-in is the account {name:?} already: by two names it would count twice");
    }
    Ok(())
}

impl Settings {
    /// An account that there is keeps its own; a proxy from the environment may be the same.
    pub fn check_unchanged(&self, row: &AccountRow) -> anyhow::Result<()> {
        let AccountRow { settings, .. } = row;
        let none = Self { way: self.way.clone(), ..Self::default() };
        ensure!(
            *self == none,
            "there is an account named {:?}, and its settings stay as they are: leave them out",
            settings.name
        );
        let (own, given) = (&settings.proxy, self.way.clone().proxy()?);
        ensure!(
            given.is_none()
                || given.as_ref().map(ProxyUrl::shown) == own.as_ref().map(ProxyUrl::shown),
            "{} keeps its own proxy: leave --proxy out (--no-proxy if POOLGATE_PROXY is set), or \
             change it with poolgate account proxy {}",
            settings.name,
            settings.name
        );
        Ok(())
    }

    pub fn raw(self, name: &str, kind: String) -> anyhow::Result<RawAccount> {
        Ok(RawAccount {
            name: name.to_owned(),
            kind,
            base_url: self.base_url,
            token_url: self.token_url,
            private_upstream: self.private_upstream,
            proxy: self.way.proxy()?,
            priority: self.priority,
            plan_weight: self.plan_weight,
            models: self.models,
            speaks: (!self.speaks.is_empty()).then_some(self.speaks),
            max_concurrency: self.max_concurrency,
            limit_5h: self.limit_5h,
            limit_weekly: self.limit_weekly,
            note: self.note,
            ..RawAccount::default()
        })
    }
}

/// A credential to be stored. `None`: the settings say where it stays.
fn read_secret(add: &Add) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(path) = &add.import {
        let wanted = Kind::from_name(&add.kind).is_some_and(Kind::is_subscription);
        ensure!(wanted, "--import is for sign-ins; give an API key with --key-stdin");
        let path = at_home(path);
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        return Ok(Some(bytes));
    }
    if !add.key_stdin {
        return Ok(None);
    }
    if std::io::stdin().is_terminal() {
        eprintln!("Paste the API key, then press Enter and Ctrl-D.");
    }
    let mut text = String::new();
    std::io::stdin().take(1 << 16).read_to_string(&mut text).context("reading the API key")?;
    let key = text.trim();
    ensure!(!key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic()), "that is no API key");
    Ok(Some(key.as_bytes().to_vec()))
}

async fn find(context: &Context, name: &str) -> anyhow::Result<AccountRow> {
    let row = known(context, name).await?;
    row.with_context(|| format!("there is no account named {name:?}: see poolgate account list"))
}

/// `None`: there is no such account.
pub async fn known(context: &Context, name: &str) -> anyhow::Result<Option<AccountRow>> {
    let named = |row: &AccountRow| row.settings.name == name;
    if let Some(row) = context.store.accounts().await?.into_iter().find(named) {
        return Ok(Some(row));
    }
    // The file's accounts come into the store when a gateway starts; this may be before the first.
    let configured = &context.config.accounts;
    if configured.iter().any(|spec| spec.name == name) {
        let data_key = vault::unlock(&context.config, &context.store).await?;
        let configured = vault::seal_settings(configured, &data_key)?;
        context.store.sync_config_accounts(&configured, context.now()).await?;
    }
    let (rows, unread) = context.store.all_accounts().await?;
    if let Some(one) = unread.iter().find(|one| one.name == name) {
        bail!("the settings of {name:?} cannot be read: {}", one.why);
    }
    Ok(rows.into_iter().find(named))
}

/// For what takes no settings, and so works where they cannot be read.
async fn find_any(context: &Context, name: &str) -> anyhow::Result<(AccountId, Origin)> {
    let (_, unread) = context.store.all_accounts().await?;
    if let Some(one) = unread.iter().find(|one| one.name == name) {
        return Ok((one.id, one.origin));
    }
    let row = find(context, name).await?;
    Ok((row.id, row.origin))
}

/// Accounts of the configuration file are changed there.
fn check_own(name: &str, origin: Origin) -> anyhow::Result<()> {
    ensure!(origin != Origin::Config, "{name:?} stands in the configuration file: remove it there");
    Ok(())
}

async fn set_proxy(context: &Context, name: &str, way: Way) -> anyhow::Result<()> {
    ensure!(way.proxy.is_some() || way.no_proxy, "say which with --proxy, or --no-proxy");
    let row = find(context, name).await?;
    check_own(name, row.origin)?;
    let data_key = vault::unlock(&context.config, &context.store).await?;
    let proxy = way.proxy()?;
    let shown = proxy.as_ref().map(ProxyUrl::shown);
    let settings = vault::seal_one(RawAccount { proxy, ..row.settings }, &data_key)?;
    context.store.change_settings(row.id, &settings).await?;
    show(context.json, &json!({"account": name, "proxy": shown}), || match &shown {
        Some(shown) => format!("all calls for {name} go through {shown}, or nowhere"),
        None => format!("calls for {name} go directly"),
    });
    Ok(())
}

async fn set_paused(context: &Context, name: &str, paused: bool) -> anyhow::Result<()> {
    let (id, _) = find_any(context, name).await?;
    if paused {
        context.store.pause(id).await?;
    } else {
        context.store.resume(id, context.now()).await?;
    }
    let word = if paused { "paused" } else { "resumed" };
    show(context.json, &json!({ word: name }), || format!("{word} {name}"));
    Ok(())
}

/// Longer than an issuer is waited for, and its answer is written.
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// What `work` has to do with an account as a gateway has it, beside one that may be running.
///
/// What was begun with an issuer comes to its end, even where nobody waits for it or the operator
/// gives up: it may have exchanged the only refresh token there is.
async fn with_account<T>(
    context: &Context,
    id: AccountId,
    work: impl AsyncFnOnce(&App, &Arc<Account>) -> T,
) -> anyhow::Result<T> {
    let stop = stop_signal()?;
    let app =
        App::open(context.config.clone(), Arc::new(SystemClock), context.store.clone()).await?;
    let account = app.pool.account(id);
    let account = account.context("the account's settings are wrong")?;
    let before = account.credential.content();
    let worked = stop.run_until_cancelled(work(&app, &account)).await;
    if !app.tasks.drain(ENDS_WITHIN).await {
        eprintln!("poolgate: a refresh is still under way, and is broken off");
    }
    if account.credential.content() != before {
        context.store.announce().await?;
    }
    worked.context("broken off")
}

async fn refresh(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    let row = find(context, name).await?;
    let result = with_account(context, row.id, async |app, account| {
        account.credential.force(&app.refresh_context(account)).await
    });
    let result = result.await?;
    if result.is_ok() {
        if row.stop == Some(Stop::NeedsLogin) {
            context.store.set_stop(row.id, None).await?;
        }
        context.store.announce().await?;
    }
    let as_json = match &result {
        Ok(()) => json!({"account": name, "refreshed": true}),
        Err(error) => json!({"account": name, "refreshed": false, "error": error.to_string()}),
    };
    show(context.json, &as_json, || match &result {
        Ok(()) => format!("refreshed {name}"),
        Err(error) => format!("{name} was not refreshed: {error}"),
    });
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn test(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    let id: AccountId = find(context, name).await?.id;
    let result = with_account(context, id, async |app, account| fetch_models(app, account).await);
    let result = result.await?;
    let as_json = match &result {
        Ok(models) => json!({"account": name, "works": true, "models": models.len()}),
        Err(error) => json!({"account": name, "works": false, "error": error}),
    };
    show(context.json, &as_json, || match &result {
        Ok(models) => format!("{name} works: its upstream lists {} models", models.len()),
        Err(error) => format!("{name} does not work: {error}"),
    });
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
