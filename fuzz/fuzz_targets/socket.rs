#![no_main]

#[path = "../../crates/poolgate/tests/fuzz/input.rs"]
mod input;
#[path = "../../crates/poolgate/tests/fuzz/socket.rs"]
mod socket;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| socket::run(bytes));
