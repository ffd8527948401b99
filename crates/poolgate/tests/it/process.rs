//! The program itself, with a configuration file, as an operator runs it.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use poolgate::keys::generate;
use poolgate::store::Store;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::canary;
use crate::harness::{PATIENCE, Setup};
use crate::wire::{Got, Raw};

/// A folder with a configuration and a key, that processes can be started in.
pub struct Place {
    pub dir: PathBuf,
    pub address: String,
    pub key: String,
}

pub struct Process {
    pub child: Child,
    log: PathBuf,
}

impl Place {
    /// With the accounts of `setup`, and `settings` at the top of the file.
    pub async fn new(setup: &Setup, settings: &str) -> Self {
        let dir = setup.dir.path().to_owned();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (key, new) = generate("test".into(), vec![], vec![], None).unwrap();
        canary::secret("a client key", &key);
        let store = Store::open(&dir.join("data")).await.unwrap();
        store.add_client_key(&new, poolgate_core::units::Timestamp(0)).await.unwrap();
        store.close().await;
        let place = Self { dir, address: format!("127.0.0.1:{port}"), key };
        place.configure(setup, settings);
        place
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("poolgate.toml")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn configure(&self, setup: &Setup, settings: &str) {
        let data = self.data();
        let data = data.to_str().unwrap();
        let mut file = format!("listen = {:?}\ndata_dir = {data:?}\n", self.address);
        file += settings;
        for account in &setup.raw.account {
            file += "\n[[account]]\n";
            file += &toml::to_string(account).unwrap();
        }
        // As editors do: nobody sees half of it.
        let new = self.dir.join("new.toml");
        std::fs::write(&new, file).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    pub fn spawn(&self, name: &str, args: &[&str], stdin: Stdio, env: &[(&str, &str)]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_poolgate"));
        command.args(["serve", "--config"]);
        self.spawn_by(command, name, args, stdin, env)
    }

    /// By a shell that does `before` first.
    pub fn limited(&self, before: &str) -> Process {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_poolgate");
        let script = format!("{before} && exec \"$0\" serve --config \"$1\"");
        command.args(["-c", &script, program]);
        self.spawn_by(command, "limited", &[], Stdio::null(), &[])
    }

    fn spawn_by(
        &self,
        mut command: Command,
        name: &str,
        args: &[&str],
        stdin: Stdio,
        env: &[(&str, &str)],
    ) -> Process {
        let log = self.dir.join(format!("{name}.log"));
        let child = command
            .arg(self.file())
            .args(args)
            .env("RUST_LOG", "info")
            .envs(env.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Process { child, log }
    }

    /// And waits until it is ready.
    pub async fn start(&self, name: &str, args: &[&str]) -> Process {
        let process = self.spawn(name, args, Stdio::null(), &[]);
        process.says("serving").await;
        process
    }

    /// A GET on a connection of its own; `None`: there was no connection, or no answer.
    pub async fn get(&self, path: &str) -> Option<Got> {
        let connected = tokio::net::TcpStream::connect(&self.address).await;
        let mut raw = Raw(connected.ok()?);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nx-api-key: {}\r\nConnection: close\r\n\r\n",
            self.address, self.key
        );
        raw.write(request).await;
        Got::read(&raw.rest().await)
    }
}

impl Process {
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([format!("-{name}"), pid]).status().await.unwrap();
        assert!(sent.success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }

    /// Bytes of memory that it holds.
    pub fn resident(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id().unwrap());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds `words`.
    pub async fn says(&self, words: &str) {
        let said = async {
            while !self.log().contains(words) {
                tokio::task::yield_now().await;
            }
        };
        let said = timeout(PATIENCE, said).await;
        assert!(
            said.is_ok(),
            "{words:?} is not in the log of {}: {}",
            shown(&self.log),
            self.log()
        );
    }
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
