//! The real clients through the gateway to the simulator: Codex, Claude Code and the Python SDKs.
//! `make setup` installs them. They run one at a time (`.config/nextest.toml`), because each is a
//! large process and is timed.

#[expect(dead_code, reason = "until the tests with the gateway stand here")]
mod drivers;
