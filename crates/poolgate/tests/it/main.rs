//! Integration tests: a file per promise, one binary.

#[path = "../shared/canary.rs"]
mod canary;
#[path = "../shared/harness.rs"]
mod harness;
#[path = "../shared/proxies.rs"]
mod proxies;
mod requests;

mod admission;
mod affinity;
mod bad_input;
mod canaries;
mod cli;
mod credentials;
mod decisions;
mod disconnect;
mod doctor;
mod egress;
mod failover;
mod headers;
mod idle;
mod key_limits;
mod keys;
mod kill;
mod ledger;
mod limits;
mod metrics;
mod models;
mod moves;
mod polling;
mod reference;
mod refresh;
mod rotation;
mod sealing;
mod shared_files;
mod signin;
mod simulate;
mod sockets;
mod stages;
mod storm;
mod surfaces;
