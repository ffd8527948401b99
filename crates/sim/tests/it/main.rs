//! The simulator over real sockets, checked against the facts about the wire.

mod client;
mod dialects;
mod faults;
mod journal;
mod quota;
mod signins;
mod socket;
mod tokens;
mod trouble;
mod turns;
