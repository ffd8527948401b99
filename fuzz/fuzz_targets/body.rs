#![no_main]

#[path = "../../crates/poolgate/tests/fuzz/input.rs"]
mod input;
#[path = "../../crates/poolgate/tests/fuzz/body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
