//! Drivers for the real clients: each function starts one program as its user would, with a gateway
//! address and a client key, asks it one question, and returns what it printed.
//!
//! A run sees nothing of the machine: the environment is cleared, HOME and the client's own
//! configuration are a fresh folder that is removed afterwards, calls to other hosts are turned off
//! where the client has a switch. Wherever the client can be told to, it does **not** retry, so that
//! a failure which the gateway should have hidden shows. Every run ends within `LIMIT`.
//!
//! Standard output is the answer text alone, whatever the client. How the clients are configured is
//! what the README tells users; the programs are pinned in `clients/` and installed by `make setup`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// A healthy run takes under 2 s; the test runner gives up on a test after 60 s.
const LIMIT: Duration = Duration::from_secs(50);

/// What the clients ask for, except where a client is to choose by itself.
pub const OPENAI_MODEL: &str = "gpt-5.5";
pub const ANTHROPIC_MODEL: &str = "claude-opus-5-5";

/// How Codex is pointed at the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codex {
    /// An own entry in `model_providers`: HTTP only, the key by `env_key`, retries off.
    CustomProvider,
    /// The same over a WebSocket, and with its own retries: it recovers from breaks behind output.
    Sockets,
    /// The built-in provider with `openai_base_url` and `CODEX_API_KEY`: tries a WebSocket first, and
    /// moves to HTTP when the handshake is answered with 426. Its retries cannot be turned off.
    BuiltIn,
}

/// Which SDK, and which of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    OpenAiResponses,
    OpenAiChat,
    /// Two turns on one socket; never anything but streamed, nor asked again.
    OpenAiSocket,
    AnthropicMessages,
}

#[derive(Debug)]
pub struct Output {
    /// Exit status 0 within the limit.
    pub status_ok: bool,
    /// The answer text and nothing else, when all went well.
    pub stdout: String,
    /// The client's log; after the limit it ends in a line that says so.
    pub stderr: String,
    pub elapsed: Duration,
}

/// `codex exec`. `base_url` is what precedes `/responses`: `…/v1` or `…/backend-api/codex`.
pub async fn codex_exec(base_url: &str, key: &str, how: Codex, prompt: &str) -> Output {
    let sandbox = Sandbox::new();
    let config = sandbox.folder("codex");
    fs::write(config.join("config.toml"), codex_config(base_url, how)).expect("the folder is ours");
    let mut command = sandbox.command(&installed("bin/codex"));
    command
        .env("CODEX_HOME", config)
        .env(codex_key_variable(how), key)
        .args(["exec", "--strict-config", "--skip-git-repo-check", "--sandbox", "read-only"])
        .args(["--ephemeral", prompt]);
    sandbox.run(command, LIMIT).await
}

/// `codex exec` with the `ChatGPT` sign-in in `home`'s `auth.json`, at a provider of plain http: the model
/// calls go to `localhost`, because it asks for https where both have one origin. Its issuer is the
/// provider, too.
pub async fn codex_signed_in(home: &Path, provider: &str, prompt: &str) -> Output {
    let sandbox = Sandbox::new();
    let models = provider.replace("127.0.0.1", "localhost");
    let config = format!(
        r#"
        model = "{OPENAI_MODEL}"
        model_provider = "signed-in"
        chatgpt_base_url = "{provider}/backend-api"
        check_for_update_on_startup = false
        analytics.enabled = false
        features.plugins = false
        features.apps = false
        [model_providers.signed-in]
        name = "signed-in"
        base_url = "{models}/backend-api/codex"
        requires_openai_auth = true
        wire_api = "responses"
        "#
    );
    fs::write(home.join("config.toml"), config).expect("the folder is ours");
    let mut command = sandbox.command(&installed("bin/codex"));
    command
        .env("CODEX_HOME", home)
        .env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", format!("{provider}/oauth/token"))
        .args(["exec", "--strict-config", "--skip-git-repo-check", "--sandbox", "read-only"])
        .args(["--ephemeral", prompt]);
    sandbox.run(command, LIMIT).await
}

/// A client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    Off,
    AsUsual,
}

/// `claude -p`. `base_url` has no path: the client appends `/v1/messages`.
pub async fn claude_print(base_url: &str, key: &str, prompt: &str, retries: Retries) -> Output {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&installed("bin/claude"));
    command
        .env("CLAUDE_CONFIG_DIR", sandbox.folder("claude"))
        .env("ANTHROPIC_BASE_URL", base_url)
        .env("ANTHROPIC_AUTH_TOKEN", key)
        .envs(CLAUDE_STAYS_HOME.map(|name| (name, "1")))
        .args(["-p", "--model", ANTHROPIC_MODEL, prompt]);
    if retries == Retries::Off {
        command.env("CLAUDE_CODE_MAX_RETRIES", "0");
    }
    sandbox.run(command, LIMIT).await
}

/// One call of a Python SDK. `base_url` is the SDK's own setting: with `/v1` for `openai`, without a
/// path for `anthropic`.
pub async fn python_sdk(
    sdk: Sdk,
    base_url: &str,
    key: &str,
    prompt: &str,
    stream: bool,
    retries: Retries,
) -> Output {
    let sandbox = Sandbox::new();
    let (script, model) = match sdk {
        Sdk::OpenAiResponses => ("openai_responses.py", OPENAI_MODEL),
        Sdk::OpenAiChat => ("openai_chat.py", OPENAI_MODEL),
        Sdk::OpenAiSocket => ("openai_socket.py", OPENAI_MODEL),
        Sdk::AnthropicMessages => ("anthropic_messages.py", ANTHROPIC_MODEL),
    };
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/python");
    let mut command = sandbox.command(&installed("venv/bin/python"));
    command.arg(scripts.join(script)).args([base_url, model, prompt]).env("POOLGATE_KEY", key);
    if stream {
        command.arg("--stream");
    }
    if retries == Retries::AsUsual {
        command.args(["--retries", "2"]); // the SDKs' default
    }
    sandbox.run(command, LIMIT).await
}

/// Each switch stops calls to hosts other than the gateway, and the wait for them to fail.
const CLAUDE_STAYS_HOME: [&str; 4] = [
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_TELEMETRY",
    "DISABLE_AUTOUPDATER",
    "DISABLE_ERROR_REPORTING",
];

pub fn codex_key_variable(how: Codex) -> &'static str {
    match how {
        Codex::CustomProvider | Codex::Sockets => "POOLGATE_KEY",
        Codex::BuiltIn => "CODEX_API_KEY", // OPENAI_API_KEY is not read
    }
}

pub fn codex_config(base_url: &str, how: Codex) -> String {
    let how_it_asks = match how {
        Codex::Sockets => "supports_websockets = true",
        Codex::CustomProvider => "request_max_retries = 0\nstream_max_retries = 0",
        Codex::BuiltIn => "",
    };
    let provider = match how {
        Codex::BuiltIn => format!(r#"openai_base_url = "{base_url}""#),
        Codex::Sockets | Codex::CustomProvider => format!(
            r#"
            model_provider = "poolgate"
            [model_providers.poolgate]
            name = "poolgate"
            base_url = "{base_url}"
            env_key = "POOLGATE_KEY"
            wire_api = "responses"
            {how_it_asks}
            "#
        ),
    };
    // `provider` may end in a table, so what belongs to the top comes before it.
    format!(
        r#"
        model = "{OPENAI_MODEL}"
        check_for_update_on_startup = false
        analytics.enabled = false
        features.plugins = false
        features.apps = false
        {provider}
        "#
    )
}

/// Where `make setup` put it.
pub fn installed(name: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("POOLGATE_CACHE")
        .or_else(|| Some(set("HOME")?.join(".cache/poolgate")))
        .expect("POOLGATE_CACHE or HOME says where the clients are");
    let path = cache.join(name);
    assert!(path.exists(), "{} is missing: run `make setup` first", path.display());
    path
}

/// The only folder a client may know of, removed on drop.
pub struct Sandbox(TempDir);

impl Sandbox {
    pub fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder can be made"))
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).expect("the folder is ours");
        path
    }

    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.folder("home"))
            .current_dir(self.folder("work"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Output goes to files, not pipes: a killed client leaves behind what it had said, and a child of
    /// a child that lives on cannot hold up the end.
    async fn run(&self, mut command: Command, limit: Duration) -> Output {
        let (out, err) = (self.0.path().join("stdout"), self.0.path().join("stderr"));
        command.stdout(File::create(&out).expect("the folder is ours"));
        command.stderr(File::create(&err).expect("the folder is ours"));
        let started_at = Instant::now();
        let mut child = command.spawn().expect("the program can be started");
        let ended = timeout(limit, child.wait()).await;
        let elapsed = started_at.elapsed();
        if ended.is_err() {
            child.kill().await.expect("the child is ours");
        }
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (stdout, mut stderr) = (read(out), read(err));
        if ended.is_err() {
            let _ = write!(stderr, "\nkilled after {limit:?} without an end\n");
        }
        let status_ok = matches!(ended, Ok(Ok(status)) if status.success());
        Output { status_ok, stdout, stderr, elapsed }
    }
}

#[tokio::test]
async fn a_client_that_hangs_is_killed_and_its_output_kept() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(Path::new("/bin/sh"));
    command.args(["-c", "echo so far; exec sleep 30"]);
    let output = sandbox.run(command, Duration::from_millis(300)).await;
    assert!(!output.status_ok, "{output:?}");
    assert_eq!(output.stdout, "so far\n");
    assert!(output.stderr.contains("killed after 300ms"), "{output:?}");
    assert!(output.elapsed < Duration::from_secs(10), "{output:?}");
}
