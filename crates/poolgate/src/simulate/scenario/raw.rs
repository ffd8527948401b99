//! A scenario as written. What a missing field means is said where it is resolved.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawScenario {
    #[serde(default)]
    pub about: String,
    pub days: Option<f64>,
    #[serde(default = "one_seed")]
    pub seed: u64,
    #[serde(default = "yes")]
    pub poll: bool,
    pub rebalance_threshold: Option<f64>,
    #[serde(default)]
    pub account: Vec<RawAccount>,
    #[serde(default)]
    pub traffic: Vec<RawTraffic>,
    #[serde(default)]
    pub session: Vec<RawSession>,
    #[serde(default)]
    pub user: RawUser,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAccount {
    pub name: String,
    pub count: Option<u32>,
    pub kind: Option<String>,
    pub plan: Option<String>,
    pub weight: Option<f64>,
    pub five_hour: Option<f64>,
    pub weekly: Option<f64>,
    pub weekly_reset_h: Option<f64>,
    pub used: Option<f64>,
    pub outside: Option<f64>,
    #[serde(default)]
    pub models: Vec<String>,
    #[serde(default)]
    pub concurrency: u32,
    #[serde(default)]
    pub limit: Vec<RawLimit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLimit {
    pub name: String,
    pub five_hour: f64,
    pub weekly: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTraffic {
    pub load: f64,
    pub model: Option<String>,
    pub hours: Option<Vec<f64>>,
    pub weekdays: Option<Vec<f64>>,
    pub turns: Option<f64>,
    pub think_s: Option<f64>,
    pub break_chance: Option<f64>,
    pub break_min: Option<f64>,
    pub turn_s: Option<f64>,
    pub units: Option<f64>,
    pub units_spread: Option<f64>,
    pub burst: Option<u32>,
    pub burst_min: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSession {
    pub at_h: f64,
    pub units: Vec<f64>,
    pub model: Option<String>,
    pub think_s: Option<f64>,
    pub turn_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawUser {
    pub cold: Option<f64>,
    pub cache_min: Option<f64>,
    pub after_refusal: Option<String>,
    pub patience_h: Option<f64>,
    pub retry_min: Option<f64>,
    pub retries: Option<u32>,
}

const fn one_seed() -> u64 {
    1
}

const fn yes() -> bool {
    true
}

impl RawScenario {
    /// Of accounts and users alone; what is wanted comes from elsewhere.
    pub fn without_demand(self) -> Self {
        Self { days: Some(1.0), traffic: vec![], session: vec![], ..self }
    }
}
