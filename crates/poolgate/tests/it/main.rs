//! Integration tests: a file per promise, one binary.

#[path = "../shared/canary.rs"]
mod canary;
#[path = "../shared/harness.rs"]
mod harness;
#[path = "../shared/proxies.rs"]
mod proxies;
mod requests;

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
mod keys;
mod kill;
mod ledger;
mod limits;
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
mod socket_client;
mod socket_legs;
mod socket_told;
mod socket_turns;
mod socket_upstream;
mod sockets;
mod storm;
mod surfaces;
