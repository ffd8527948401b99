//! The configuration file, read again while the gateway runs: on SIGHUP, and when it changes.
//!
//! It is read and checked whole. With a mistake in it nothing changes, and the mistakes stand in the
//! log and in `poolgate status` until it is right; a store that cannot take it now is asked again at
//! every look. Otherwise accounts, pools and those limits that
//! are looked up anew by every request are taken over together; what else differs is named as waiting
//! for a restart.

use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::config::{Config, Limits, Origin, PoolSpec, Stamp, stamp};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the configuration says that may change while requests run.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub limits: Limits,
    pub pools: Vec<PoolSpec>,
}

impl Live {
    pub fn of(config: &Config) -> Self {
        Self { limits: config.limits, pools: config.pools.clone() }
    }
}

/// What came of reading the file last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why the file is not in force; `None`: it is.
    pub error: Option<String>,
    /// Settings that differ from what the process was started with.
    pub needs_restart: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Last(Mutex<Outcome>);

impl Last {
    pub fn outcome(&self) -> Outcome {
        self.0.lock().clone()
    }
}

/// Until the process ends.
pub async fn follow(app: &App) {
    let Some(origin) = app.config.origin.clone() else {
        app.tasks.stop.cancelled().await;
        return;
    };
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::error!("SIGHUP cannot be waited for");
        return;
    };
    let mut looks = Looks { taken: origin.stamp, last: origin.stamp };
    let mut waits = false;
    loop {
        let asked = tokio::select! {
            () = app.tasks.stop.cancelled() => return,
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let is_new = looks.is_new(origin.file.as_deref().and_then(stamp), asked);
        if is_new || asked || waits {
            waits = read_again(app, &origin).await == Read::NotNow;
        }
    }
}

/// The file as it was when looked at.
struct Looks {
    /// Last acted upon.
    taken: Option<Stamp>,
    last: Option<Stamp>,
}

impl Looks {
    /// It has changed, and is as it was at the look before: some editors write in place, and half of a
    /// file may be as right as the whole of it. Whoever asks says that it is whole.
    fn is_new(&mut self, now: Option<Stamp>, asked: bool) -> bool {
        let has_settled = std::mem::replace(&mut self.last, now) == now;
        let is_new = (has_settled || asked) && self.taken != now;
        if is_new {
            self.taken = now;
        }
        is_new
    }
}

/// How reading it went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    TakenOver,
    /// Nobody but the operator can help.
    Wrong,
    /// The store could not take it.
    NotNow,
}

async fn read_again(app: &App, origin: &Origin) -> Read {
    let taken = match Config::load_again(origin) {
        Ok(config) => match app.reconfigure(&config).await {
            Ok(()) => Ok(needs_restart(&app.config, &config)),
            Err(error) => Err((Read::NotNow, error)),
        },
        Err(error) => Err((Read::Wrong, error)),
    };
    let (read, outcome) = match taken {
        Ok(needs_restart) => {
            let waiting = needs_restart.join(", ");
            tracing::info!(needs_restart = waiting, "took over the configuration");
            (Read::TakenOver, Outcome { error: None, needs_restart })
        }
        Err((read, error)) => {
            // One line, whatever the list of mistakes looks like.
            let lines = format!("{error:#}");
            let lines: Vec<&str> = lines.lines().map(str::trim).collect();
            let error = lines.join(" | ");
            let before = app.configured.outcome();
            // It is tried at every look: once is enough.
            if read == Read::Wrong || before.error.as_ref() != Some(&error) {
                tracing::error!(error, "the configuration is not in force: the one before stays");
            }
            let needs_restart = before.needs_restart;
            (read, Outcome { error: Some(error), needs_restart })
        }
    };
    *app.configured.0.lock() = outcome;
    read
}

/// Names of the settings that only a start takes up.
fn needs_restart(started: &Config, now: &Config) -> Vec<String> {
    let (a, b) = (&started.limits, &now.limits);
    let differs = [
        ("listen", started.listen != now.listen),
        ("data_dir", started.data_dir != now.data_dir),
        ("master_key_file", started.master_key_file != now.master_key_file),
        ("workers", started.workers != now.workers),
        ("listener", started.listener != now.listener),
        ("limits.spool_max_bytes", a.spool_max != b.spool_max),
        ("limits.connect_timeout_s", a.connect_timeout != b.connect_timeout),
    ];
    let sizes = a.sizes().zip(b.sizes()).filter(|(a, b)| a != b);
    let differs = differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.into());
    differs.chain(sizes.map(|((name, _), _)| format!("limits.{name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    #[test]
    fn a_file_that_is_being_written_is_left_until_it_is_whole() {
        let at = |length| Some((std::time::UNIX_EPOCH, length));
        let mut looks = Looks { taken: at(9), last: at(9) };
        for (now, asked, want) in [
            (at(9), false, false),
            (at(0), false, false),
            (at(5), false, false),
            (at(12), false, false),
            (at(12), false, true),
            (at(12), false, false),
            // Truncated, and for the time of one look what it was.
            (at(0), false, false),
            (at(12), false, false),
            (at(12), false, false),
            (at(13), true, true),
            (at(13), false, false),
            (None, false, false),
            (None, false, true),
        ] {
            assert_eq!(looks.is_new(now, asked), want, "{now:?}");
        }
    }

    /// All but the name that stands for two others.
    #[test]
    fn whatever_a_reload_does_not_take_over_is_named() {
        let with = |setting: &str| {
            let text = format!("data_dir = \"/d\"\n[limits]\n{setting}");
            Config::resolve(toml::from_str::<RawConfig>(&text).unwrap()).unwrap()
        };
        let started = with("");
        assert!(needs_restart(&started, &with("")).is_empty());
        for (setting, waits) in [
            ("proxy_http", true),
            ("proxy_websocket", true),
            ("proxy_compact", true),
            ("dashboard", true),
            ("token_refresh", true),
            ("upstream_websocket_connect", true),
            ("response_create", true),
            ("compact_response_create", true),
            ("spool_max_bytes", true),
            ("connect_timeout_s", true),
            ("body_max_bytes", false),
            ("request_timeout_s", false),
            ("drain_timeout_s", false),
        ] {
            let named = needs_restart(&started, &with(&format!("{setting} = 7")));
            assert_eq!(named.contains(&format!("limits.{setting}")), waits, "{setting}: {named:?}");
        }
    }
}
