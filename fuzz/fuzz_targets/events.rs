#![no_main]

#[path = "../../crates/poolgate/tests/fuzz/input.rs"]
mod input;
#[path = "../../crates/poolgate/tests/fuzz/events.rs"]
mod events;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| events::run(bytes));
