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
mod assembled;
mod bad_input;
mod canaries;
mod cli;
mod credentials;
mod cuts;
mod decisions;
mod dependencies;
mod disconnect;
mod doctor;
mod drain;
mod egress;
mod failover;
mod floods;
mod headers;
mod idle;
mod key_limits;
mod keys;
mod kill;
mod leaving;
mod ledger;
mod limits;
mod listener_tls;
mod metadata;
mod metrics;
mod models;
mod moves;
mod odd_upstreams;
mod one_bad;
mod overload;
mod patience;
mod polling;
mod process;
mod reference;
mod refresh;
mod reload;
mod resources;
mod rotation;
mod sealing;
mod shared_files;
mod signin;
mod simulate;
mod socket_client;
mod socket_legs;
mod socket_strict;
mod socket_told;
mod socket_turns;
mod socket_upstream;
mod sockets;
mod stages;
mod storm;
mod strict_http;
mod surfaces;
mod wire;
