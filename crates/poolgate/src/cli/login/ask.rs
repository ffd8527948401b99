//! Showing a person where to go, and waiting for what comes back.

use std::io::BufRead;
use std::pin::pin;
use std::process::Stdio;

use anyhow::bail;
use poolgate_core::account::Kind;
use serde_json::json;
use tokio::sync::mpsc;

use super::Login;
use crate::cli::{Context, show};
use crate::egress::Egress;
use crate::signin::{Browser, Device, Listener, Page, Progress, Signed, Vendor};

/// What showing and waiting needs.
pub struct Begun<'a> {
    pub context: &'a Context,
    pub login: &'a Login,
    pub egress: &'a Egress,
}

/// What was given, and the browser that waits to be told.
pub type Obtained = (Signed, Option<Page>);

impl Begun<'_> {
    pub async fn device(&self, vendor: Vendor) -> anyhow::Result<Obtained> {
        let name = vendor.name();
        let mut device = Device::begin(vendor, self.egress, self.context.now()).await?;
        let (page, code) = (device.page(), device.code().to_owned());
        let waits = self.login.timeout;
        let as_json = json!({"open": page, "code": code, "waits_s": waits});
        show(self.context.json, &as_json, || {
            format!(
                "Sign in to {name} in any browser:\n\n  {page}\n\nand enter this code there:\n\n  \
                 {code}\n\nGive it to nobody who asks for it. Waiting for {} …",
                minutes(waits)
            )
        });
        loop {
            tokio::time::sleep(device.interval).await;
            if let Progress::Signed(signed) = device.poll(self.egress, self.context.now()).await? {
                return Ok((*signed, None));
            }
        }
    }

    pub async fn browser(&self, vendor: Vendor) -> anyhow::Result<Obtained> {
        let path = vendor.callback_path();
        let listener = Listener::bind(&vendor, self.login.callback_port).await;
        let port = listener.as_ref().ok().map(|listener| listener.port);
        let (kind, name, ports) = (vendor.kind, vendor.name(), vendor.ports());
        let begun = Browser::begin(vendor, port)?;
        let as_json = json!({"open": begun.url(), "open_here": begun.local_url(), "waits_s": self.login.timeout});
        show(self.context.json, &as_json, || {
            format!(
                "Sign in to {name} in a browser:\n\n  {}\n\n{}",
                begun.url(),
                prompt(kind, port.is_some(), self.login.timeout)
            )
        });
        if let Err(error) = &listener {
            let port = self.login.callback_port.unwrap_or(ports[0]);
            eprintln!("(no browser can come back by itself: port {port}: {error})");
        }
        if !self.login.no_browser {
            open(&begun.local_url().unwrap_or_else(|| begun.url()));
        }
        let called_back = async {
            match &listener {
                Ok(listener) => listener.wait(&begun, path).await,
                Err(_) => std::future::pending().await,
            }
        };
        let mut called_back = pin!(called_back);
        let (mut lines, mut is_open) = (lines(), true);
        let (back, page) = loop {
            tokio::select! {
                (back, page) = &mut called_back => break (back, Some(page)),
                line = lines.recv(), if is_open => match line.as_deref().map(|line| begun.pasted(line)) {
                    Some(Err(error)) if !error.is_final() => eprintln!("{error}"),
                    Some(back) => break (back, None),
                    None if listener.is_ok() => is_open = false,
                    None => bail!("standard input is closed, and no browser can come back here"),
                },
            }
        };
        let signed = match back {
            Ok(back) => begun.finish(&back, self.egress, self.context.now()).await,
            Err(error) => return failed(error.into(), page).await,
        };
        match signed {
            Ok(signed) => Ok((signed, page)),
            Err(error) => failed(error.into(), page).await,
        }
    }
}

async fn failed(error: anyhow::Error, page: Option<Page>) -> anyhow::Result<Obtained> {
    if let Some(page) = page {
        page.show(false, &format!("Nothing was changed: {error}.")).await;
    }
    Err(error)
}

fn prompt(kind: Kind, listens: bool, waits: u64) -> String {
    let waiting = format!("Waiting for {} …", minutes(waits));
    match (kind, listens) {
        (Kind::Codex, true) => format!(
            "If that browser is on another machine, it ends on a page that cannot be shown: paste the \
             address of that\npage here. {waiting}"
        ),
        (Kind::Codex, false) => format!(
            "It ends on an address that begins with http://localhost, whatever is shown there: paste \
             that address here.\n{waiting}"
        ),
        _ => format!("and paste the code that it shows in the end. {waiting}"),
    }
}

fn minutes(seconds: u64) -> String {
    if seconds >= 120 { format!("{} minutes", seconds / 60) } else { format!("{seconds} s") }
}

/// Lines of standard input, read on a thread of their own: one that waits for a line cannot be
/// cancelled, and must not keep the process alive.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if !line.trim().is_empty() && sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Opens a browser, if there seems to be one at this machine's screen. That it fails is no harm.
fn open(url: &str) {
    let has = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let named = std::env::var("BROWSER").ok().filter(|name| !name.is_empty());
    let program = match named {
        Some(name) => name,
        None if has("SSH_CONNECTION") => return,
        None if cfg!(target_os = "macos") => "open".into(),
        None if has("DISPLAY") || has("WAYLAND_DISPLAY") => "xdg-open".into(),
        None => return,
    };
    let mut command = std::process::Command::new(program);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = command.spawn() {
        eprintln!("(no browser could be opened: {error})");
    }
}
