//! Codex as an editor runs it: one process that takes turn after turn of the same conversation, and
//! says what it would show.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::drivers::{Codex, OPENAI_MODEL, Sandbox, codex_config, codex_key_variable, installed};

/// A healthy turn takes under 2 s.
const LIMIT: Duration = Duration::from_secs(40);

pub struct AppServer {
    sandbox: Sandbox,
    _child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
    thread: String,
    requests: u64,
    /// Percent of the 5-hour window that its status line shows as used.
    pub shown_used: Option<i64>,
}

/// One turn, as the user sees it.
#[derive(Debug, Default)]
pub struct Shown {
    /// `completed`, if all went well.
    pub status: String,
    /// What the model said, its messages joined.
    pub text: String,
    /// Commands that were run.
    pub commands: usize,
    pub errors: Vec<String>,
}

impl AppServer {
    /// `base_url` is what precedes `/responses`.
    pub async fn start(base_url: &str, key: &str, how: Codex) -> Self {
        let sandbox = Sandbox::new();
        let config = sandbox.folder("codex");
        fs::write(config.join("config.toml"), codex_config(base_url, how)).expect("it is ours");
        let mut command = sandbox.command(&installed("bin/codex"));
        command.env("CODEX_HOME", config).env(codex_key_variable(how), key).arg("app-server");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program can be started");
        let to = child.stdin.take().expect("piped");
        let from = BufReader::new(child.stdout.take().expect("piped")).lines();
        let thread = String::new();
        let mut this =
            Self { sandbox, _child: child, to, from, thread, requests: 0, shown_used: None };
        let client = json!({"name": "tests", "version": "0"});
        this.call("initialize", json!({"clientInfo": client})).await;
        this.say(&json!({"method": "initialized"})).await;
        let cwd = this.sandbox.folder("work");
        let params = json!({"model": OPENAI_MODEL, "cwd": cwd, "approvalPolicy": "never",
            "sandbox": "read-only", "ephemeral": true});
        let started = this.call("thread/start", params).await;
        started["thread"]["id"].as_str().expect("a thread").clone_into(&mut this.thread);
        this
    }

    /// Says `text` as the user, and listens to the end of the turn.
    pub async fn turn(&mut self, text: &str) -> Shown {
        let input = json!([{"type": "text", "text": text}]);
        let params = json!({"threadId": self.thread, "input": input});
        self.call("turn/start", params).await;
        self.listen().await
    }

    /// To the end of the turn.
    async fn listen(&mut self) -> Shown {
        let mut shown = Shown::default();
        while shown.status.is_empty() {
            let heard = self.hear().await;
            let params = &heard["params"];
            match heard["method"].as_str().unwrap_or_default() {
                "item/completed" => match params["item"]["type"].as_str().unwrap_or_default() {
                    "agentMessage" => {
                        shown.text += params["item"]["text"].as_str().unwrap_or_default();
                    }
                    "commandExecution" => shown.commands += 1,
                    _ => {}
                },
                "error" => shown.errors.push(params.to_string()),
                "turn/completed" => {
                    params["turn"]["status"].as_str().unwrap().clone_into(&mut shown.status);
                }
                _ => {}
            }
        }
        shown
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.requests += 1;
        let id = self.requests;
        self.say(&json!({"id": id, "method": method, "params": params})).await;
        loop {
            let mut heard = self.hear().await;
            if heard["id"] == id {
                assert!(heard.get("error").is_none(), "{method}: {heard}");
                return heard["result"].take();
            }
        }
    }

    async fn say(&mut self, message: &Value) {
        let line = format!("{message}\n");
        self.to.write_all(line.as_bytes()).await.expect("it listens");
    }

    async fn hear(&mut self) -> Value {
        let line = timeout(LIMIT, self.from.next_line()).await.expect("in time");
        let line = line.expect("text").expect("it has not ended");
        let heard: Value = serde_json::from_str(&line).expect("JSON");
        if heard["method"] == "account/rateLimits/updated" {
            self.shown_used = heard["params"]["rateLimits"]["primary"]["usedPercent"].as_i64();
        }
        heard
    }
}
