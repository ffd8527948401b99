//! poolgate: one self-hosted gateway that pools LLM accounts.
//!
//! `docs/architecture.md` is the map. The decisions live in `poolgate-core`; this crate gathers what
//! they need, does what they say, and answers for sockets, files, the store and time.

pub mod admin;
pub mod admission;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod demo;
pub mod doctor;
pub mod egress;
pub mod error;
pub mod files;
pub mod gates;
pub mod gateway;
pub mod jobs;
pub mod json;
pub mod keys;
pub mod ledger;
pub mod limits;
pub mod metrics;
pub mod pool;
pub mod providers;
pub mod reconfigure;
pub mod sealing;
pub mod secret;
pub mod serve;
pub mod signin;
pub mod simulate;
pub mod sse;
pub mod store;
pub mod strict;
pub mod table;
pub mod tasks;
pub mod telemetry;
pub mod vault;
pub mod workers;
pub mod ws;
