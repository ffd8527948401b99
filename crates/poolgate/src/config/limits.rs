//! How much, how many and how long: of requests, their bodies and their records.

use std::time::Duration;

use serde::Deserialize;

use crate::admission::Bound;

/// More is as good as no bound, and no point in time lies that far ahead.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A mistake in a time that something has to be done in.
pub(super) fn wrong_time(section: &str, name: &str, time: Duration) -> Option<String> {
    if time.is_zero() {
        return Some(format!("{section}.{name}: must not be zero"));
    }
    too_long(section, name, time)
}

pub(super) fn too_long(section: &str, name: &str, time: Duration) -> Option<String> {
    let most = LONGEST.as_secs();
    (time > LONGEST).then(|| format!("{section}.{name}: at most {most}, which is a year"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    pub proxy: Option<usize>,
    pub proxy_http: Option<usize>,
    pub proxy_websocket: Option<usize>,
    pub proxy_compact: Option<usize>,
    pub body_idle_timeout_s: Option<u64>,
    pub body_timeout_s: Option<u64>,
    pub dashboard: Option<usize>,
    pub token_refresh: Option<usize>,
    pub upstream_websocket_connect: Option<usize>,
    pub response_create: Option<usize>,
    pub compact_response_create: Option<usize>,
    pub body_max_bytes: Option<usize>,
    pub decoded_max_bytes: Option<usize>,
    pub spool_max_bytes: Option<u64>,
    pub connect_timeout_s: Option<u64>,
    pub stream_head_timeout_s: Option<u64>,
    pub head_timeout_s: Option<u64>,
    pub stream_idle_timeout_s: Option<u64>,
    pub socket_idle_timeout_s: Option<u64>,
    pub request_timeout_s: Option<u64>,
    pub drain_timeout_s: Option<u64>,
}

/// Streams that tell of changes, beyond their first word.
const WATCHERS: usize = 64;

/// Sizes in bytes, counts of requests; zero in a lane or stage means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub proxy_http: usize,
    pub proxy_websocket: usize,
    pub proxy_compact: usize,
    pub dashboard: usize,
    pub token_refresh: usize,
    pub upstream_websocket_connect: usize,
    pub response_create: usize,
    pub compact_response_create: usize,
    pub body_max: usize,
    /// Silence while a client sends a body.
    pub body_idle_timeout: Duration,
    /// For a whole body.
    pub body_timeout: Duration,
    pub decoded_max: usize,
    pub spool_max: u64,
    pub connect_timeout: Duration,
    /// To the head of a streamed answer.
    pub stream_head_timeout: Duration,
    /// To the head of any other answer, which comes when the work is done.
    pub head_timeout: Duration,
    pub stream_idle_timeout: Duration,
    pub socket_idle_timeout: Duration,
    pub request_timeout: Duration,
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from_raw(&RawLimits::default())
    }
}

impl Limits {
    pub(super) fn from_raw(raw: &RawLimits) -> Self {
        let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        let [proxy_http, proxy_websocket, proxy_compact] = lanes(raw);
        Self {
            proxy_http,
            body_idle_timeout: seconds(raw.body_idle_timeout_s, 15),
            body_timeout: seconds(raw.body_timeout_s, 300),
            proxy_websocket,
            proxy_compact,
            dashboard: raw.dashboard.unwrap_or(50),
            token_refresh: raw.token_refresh.unwrap_or(32),
            upstream_websocket_connect: raw.upstream_websocket_connect.unwrap_or(64),
            response_create: raw.response_create.unwrap_or(64),
            compact_response_create: raw.compact_response_create.unwrap_or(16),
            body_max: raw.body_max_bytes.unwrap_or(64 << 20),
            decoded_max: raw.decoded_max_bytes.unwrap_or(128 << 20),
            spool_max: raw.spool_max_bytes.unwrap_or(1 << 30),
            connect_timeout: seconds(raw.connect_timeout_s, 5),
            stream_head_timeout: seconds(raw.stream_head_timeout_s, 120),
            head_timeout: seconds(raw.head_timeout_s, 600),
            stream_idle_timeout: seconds(raw.stream_idle_timeout_s, 300),
            socket_idle_timeout: seconds(raw.socket_idle_timeout_s, 120),
            request_timeout: seconds(raw.request_timeout_s, 3600),
            drain_timeout: seconds(raw.drain_timeout_s, 120),
        }
    }
}

/// What the lanes of the proxy are by default, each from the ones before: requests, sockets,
/// compaction. Zero stands for "unlimited", so an unlimited lane leaves the others unlimited too.
fn lanes(raw: &RawLimits) -> [usize; 3] {
    let proxy = raw.proxy.unwrap_or(200);
    let http = raw.proxy_http.unwrap_or(proxy);
    let socket = raw.proxy_websocket.unwrap_or(proxy);
    [http, socket, raw.proxy_compact.unwrap_or(http.min(16))]
}

impl Limits {
    /// Of each lane and stage that can be set, by its setting. Zero: unlimited.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let set = Bound::ALL.into_iter().filter(|bound| *bound != Bound::Watch);
        set.map(|bound| (bound.name(), self.size_of(bound)))
    }

    /// What cannot work, for the list of mistakes.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let sizes = [
            ("body_max_bytes", self.body_max == 0),
            ("decoded_max_bytes", self.decoded_max == 0),
            ("spool_max_bytes", self.spool_max == 0),
        ];
        let times = [
            ("body_idle_timeout_s", self.body_idle_timeout),
            ("body_timeout_s", self.body_timeout),
            ("connect_timeout_s", self.connect_timeout),
            ("stream_head_timeout_s", self.stream_head_timeout),
            ("head_timeout_s", self.head_timeout),
            ("stream_idle_timeout_s", self.stream_idle_timeout),
            ("socket_idle_timeout_s", self.socket_idle_timeout),
            ("request_timeout_s", self.request_timeout),
        ];
        let zero = sizes.into_iter().filter(|(_, zero)| *zero);
        let zero = zero.map(|(name, _)| format!("limits.{name}: must not be zero"));
        let times = times.into_iter().filter_map(|(name, time)| wrong_time("limits", name, time));
        // Zero: whatever runs is cut at once.
        let drain = too_long("limits", "drain_timeout_s", self.drain_timeout);
        zero.chain(times).chain(drain).collect()
    }

    pub fn size_of(&self, bound: Bound) -> usize {
        match bound {
            Bound::ProxyHttp => self.proxy_http,
            Bound::ProxyWebsocket => self.proxy_websocket,
            Bound::ProxyCompact => self.proxy_compact,
            Bound::Dashboard => self.dashboard,
            Bound::Watch => WATCHERS,
            Bound::TokenRefresh => self.token_refresh,
            Bound::UpstreamWebsocketConnect => self.upstream_websocket_connect,
            Bound::ResponseCreate => self.response_create,
            Bound::CompactResponseCreate => self.compact_response_create,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig};

    /// codex-lb H8, H9: one setting for the lanes of the proxy, and 0 for all of them.
    #[test]
    fn codex_lb_h8_lanes_follow_from_one_setting() {
        let raw = |proxy, http, compact| RawLimits {
            proxy,
            proxy_http: http,
            proxy_compact: compact,
            ..RawLimits::default()
        };
        let cases = [
            ("unset", raw(None, None, None), [200, 200, 16]),
            ("codex-lb H8", raw(Some(8), None, None), [8, 8, 8]),
            ("codex-lb H9", raw(Some(0), None, None), [0, 0, 0]),
            ("one's own", raw(Some(8), Some(40), None), [40, 8, 16]),
            ("unlimited", raw(None, Some(0), None), [0, 200, 0]),
            ("compaction's own", raw(None, Some(0), Some(3)), [0, 200, 3]),
        ];
        for (name, raw, want) in cases {
            let limits = Limits::from_raw(&raw);
            let got = [limits.proxy_http, limits.proxy_websocket, limits.proxy_compact];
            assert_eq!(got, want, "{name}");
        }
    }

    /// Nothing that is called right stops all service, or is further ahead than a clock can tell.
    #[test]
    fn what_cannot_work_is_a_mistake() {
        let refuses = |setting: &str, value: u64| {
            let text = format!("data_dir = \"/d\"\n[limits]\n{setting} = {value}");
            let refused = Config::resolve(toml::from_str::<RawConfig>(&text).unwrap()).err();
            refused.is_some_and(|error| error.to_string().contains(setting))
        };
        let most = i64::MAX.unsigned_abs();
        for (setting, zero, large) in [
            ("proxy", false, false),
            ("proxy_http", false, false),
            ("proxy_websocket", false, false),
            ("proxy_compact", false, false),
            ("dashboard", false, false),
            ("token_refresh", false, false),
            ("upstream_websocket_connect", false, false),
            ("response_create", false, false),
            ("compact_response_create", false, false),
            ("body_max_bytes", true, false),
            ("decoded_max_bytes", true, false),
            ("spool_max_bytes", true, false),
            ("body_idle_timeout_s", true, true),
            ("body_timeout_s", true, true),
            ("connect_timeout_s", true, true),
            ("stream_head_timeout_s", true, true),
            ("head_timeout_s", true, true),
            ("stream_idle_timeout_s", true, true),
            ("socket_idle_timeout_s", true, true),
            ("request_timeout_s", true, true),
            ("drain_timeout_s", false, true),
        ] {
            assert_eq!(refuses(setting, 0), zero, "{setting} = 0");
            assert!(!refuses(setting, 1) && !refuses(setting, LONGEST.as_secs()), "{setting}");
            assert_eq!(refuses(setting, most), large, "{setting} = {most}");
            let example = include_str!("../../../../poolgate.example.toml");
            assert!(example.contains(&format!("#: {setting} = ")), "{setting}");
        }
    }
}
