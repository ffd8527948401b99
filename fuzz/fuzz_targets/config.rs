#![no_main]

#[path = "../../crates/poolgate/tests/fuzz/config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| config::run(bytes));
