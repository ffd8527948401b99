//! The command, as a person sees it.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::PATIENCE;

/// A `poolgate account login` that waits for its person.
pub struct Login {
    pub child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    seen: String,
    /// What it says to open.
    pub url: String,
}

impl Login {
    pub fn start_silently(data: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_poolgate"))
            .args(["account", "login"])
            .args(args)
            .args(["--no-browser", "--data"])
            .arg(data)
            .env_remove("POOLGATE_CONFIG")
            .env("HOME", data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .current_dir(data)
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output, seen: String::new(), url: String::new() }
    }

    pub async fn start(data: &Path, args: &[&str]) -> Self {
        let mut login = Self::start_silently(data, args);
        let url = |line: &str| line.trim().starts_with("http");
        login.line(url).await.trim().clone_into(&mut login.url);
        login
    }

    /// At a free port: the vendor's own is one for all tests.
    pub async fn with_browser(data: &Path, args: &[&str]) -> Self {
        Self::start(data, &[args, &["--callback-port", "0"]].concat()).await
    }

    /// The next line like this.
    pub async fn line(&mut self, is_it: impl Fn(&str) -> bool) -> String {
        let found = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                self.seen += &(line.clone() + "\n");
                if is_it(&line) {
                    return line;
                }
            }
            let mut error = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut error).await.unwrap();
            panic!("it ended: {}{error}", self.seen);
        };
        tokio::time::timeout(PATIENCE, found).await.expect("it says where to go")
    }

    pub async fn paste(&mut self, line: &str) {
        let line = line.to_owned() + "\n";
        self.input.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
    }

    /// All it said, and how it ended.
    pub async fn end(mut self) -> (bool, String) {
        let rest = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                self.seen += &(line + "\n");
            }
            let Output { status, stderr, .. } = self.child.wait_with_output().await.unwrap();
            (status.success(), self.seen + &String::from_utf8_lossy(&stderr))
        };
        tokio::time::timeout(PATIENCE, rest).await.expect("it ends")
    }
}
