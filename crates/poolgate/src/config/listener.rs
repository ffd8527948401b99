//! The listener: how connections are taken on, how long a client may take, when it is cut off.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::account::at_home;
use super::limits::{too_long, wrong_time};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawListener {
    pub reuse_port: Option<bool>,
    pub connections: Option<usize>,
    pub connections_per_address: Option<usize>,
    pub requests_per_connection: Option<usize>,
    pub handshake_timeout_s: Option<u64>,
    pub head_timeout_s: Option<u64>,
    pub keep_alive_s: Option<u64>,
    pub write_timeout_s: Option<u64>,
    pub drain_delay_s: Option<u64>,
    pub memory_max_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// Counts of connections and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Several processes may listen on the address.
    pub reuse_port: bool,
    /// All of them; the descriptors that the process may have bound it too.
    pub connections: usize,
    /// Zero: any number. `None`: 256, but any number from this machine itself, where a proxy may stand
    /// that everybody comes through.
    pub per_address: Option<usize>,
    pub requests: usize,
    /// For the handshake of TLS.
    pub handshake_timeout: Duration,
    /// From the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// Between two requests.
    pub keep_alive: Duration,
    /// A client that takes nothing for so long is cut off.
    pub write_timeout: Duration,
    /// Between the signal, from when on `/readyz` refuses, and the end of accepting.
    pub drain_delay: Duration,
    /// Bytes; `None`: what the control group may have, if it has a limit. Zero: not watched.
    pub memory_max: Option<u64>,
    pub tls: Option<Tls>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The listener's own certificate first, then those that vouch for it.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Default for Listener {
    fn default() -> Self {
        Self::from_raw(&RawListener::default(), None)
    }
}

impl Listener {
    pub(super) fn from_raw(raw: &RawListener, tls: Option<&RawTls>) -> Self {
        let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        Self {
            reuse_port: raw.reuse_port.unwrap_or(false),
            connections: raw.connections.unwrap_or(10_000),
            per_address: raw.connections_per_address,
            requests: raw.requests_per_connection.unwrap_or(10_000),
            handshake_timeout: seconds(raw.handshake_timeout_s, 10),
            head_timeout: seconds(raw.head_timeout_s, 10),
            keep_alive: seconds(raw.keep_alive_s, 75),
            write_timeout: seconds(raw.write_timeout_s, 30),
            drain_delay: seconds(raw.drain_delay_s, 1),
            memory_max: raw.memory_max_bytes,
            tls: tls.map(|tls| Tls {
                cert_file: at_home(&tls.cert_file),
                key_file: at_home(&tls.key_file),
            }),
        }
    }

    /// What cannot work, for the list of mistakes.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let counts = [
            ("connections", self.connections == 0),
            ("requests_per_connection", self.requests == 0),
        ];
        let times = [
            ("handshake_timeout_s", self.handshake_timeout),
            ("head_timeout_s", self.head_timeout),
            ("keep_alive_s", self.keep_alive),
            ("write_timeout_s", self.write_timeout),
        ];
        let zero = counts.into_iter().filter(|(_, zero)| *zero);
        let zero = zero.map(|(name, _)| format!("listener.{name}: must not be zero"));
        let times = times.into_iter().filter_map(|(name, time)| wrong_time("listener", name, time));
        let delay = too_long("listener", "drain_delay_s", self.drain_delay);
        zero.chain(times).chain(delay).collect()
    }
}
