//! What a simulator starts with, from code or from a JSON file.
//!
//! Example of a file; everything but `kind` and `name` may be left out:
//! ```json
//! {"listen": "127.0.0.1:9090", "time_scale": 60, "accounts": [
//!   {"kind": "codex", "name": "alice", "plan": "pro", "request_cost": 1,
//!    "windows": [{"length_s": 18000, "capacity": 100, "used": 12, "resets_in_s": 9000}],
//!    "faults": [{"fault": {"rate_limited": {"retry_after_s": 2}}, "times": 3}]},
//!   {"kind": "anthropic", "name": "key-1", "own_port": true}]}
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::account::Account;
use crate::fault::Script;
use crate::kind::Kind;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    pub listen: SocketAddr,
    /// Simulated seconds in one real second.
    pub time_scale: f64,
    /// Whether requests are kept for assertions; off for load.
    pub journal: bool,
    pub accounts: Vec<AccountSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountSpec {
    pub kind: Kind,
    pub name: String,
    /// `None`: as the kind has it.
    #[serde(default)]
    pub plan: Option<String>,
    /// `None`: as the kind has them; empty: none.
    #[serde(default)]
    pub windows: Option<Vec<WindowSpec>>,
    /// Units one answered request costs; `None`: 1.
    #[serde(default)]
    pub request_cost: Option<f64>,
    #[serde(default)]
    pub own_port: bool,
    /// Like `{"fault": "forbidden", "times": 2, "on": "/v1/messages"}`; without `times` for ever.
    #[serde(default)]
    pub faults: Vec<Script>,
}

/// A quota window, in simulated seconds and units.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    pub length_s: u64,
    pub capacity: f64,
    #[serde(default)]
    pub used: f64,
    /// `None`: a full length.
    #[serde(default)]
    pub resets_in_s: Option<u64>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            time_scale: 1.0,
            journal: true,
            accounts: Vec::new(),
        }
    }
}

impl Scenario {
    /// Two codex subscriptions, a claude one, and a key of each platform; for looking at.
    pub fn demo() -> Self {
        let accounts = vec![
            AccountSpec::new(Kind::Codex, "codex-1"),
            AccountSpec::new(Kind::Codex, "codex-2"),
            AccountSpec::new(Kind::Claude, "claude-1"),
            AccountSpec::new(Kind::Openai, "openai-1"),
            AccountSpec::new(Kind::Anthropic, "anthropic-1"),
        ];
        Self { journal: false, accounts, ..Self::default() }
    }
}

impl AccountSpec {
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            plan: None,
            windows: None,
            request_cost: None,
            own_port: false,
            faults: Vec::new(),
        }
    }

    /// Makes a new account as specified; not its port.
    pub(crate) fn apply(&self, account: &Account) {
        if let Some(plan) = &self.plan {
            account.plan(plan).renew();
        }
        if let Some(units) = self.request_cost {
            account.request_cost(units);
        }
        if let Some(windows) = &self.windows {
            account.clear_windows();
            for window in windows {
                let length = Duration::from_secs(window.length_s);
                let resets_in = window.resets_in_s.map_or(length, Duration::from_secs);
                account.window(length, window.capacity, window.used, resets_in);
            }
        }
        for script in &self.faults {
            account.script(script.clone());
        }
    }
}
