//! Integration tests: a file per promise, one binary.

#[path = "../shared/harness.rs"]
mod harness;

mod failover;
mod surfaces;
