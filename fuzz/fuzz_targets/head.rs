#![no_main]

#[path = "../../crates/poolgate/tests/fuzz/head.rs"]
mod head;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| head::run(bytes));
