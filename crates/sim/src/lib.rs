//! A stranger that speaks the upstreams' protocols: LLM providers to test, demonstrate and load
//! a gateway against, over real sockets.
//!
//! It knows only what is on the wire and shares no type with the gateway, so a wrong field name
//! cannot cancel itself out. Answers are a pure function of dialect, model, last user text and
//! streaming or not (see [`directives`] for what the text may ask for), so the
//! streams of two accounts can be compared byte for byte.
//!
//! [`Sim`] is the running simulator, [`Account`] one of its accounts, [`Fault`] a scripted
//! misbehaviour and [`Entry`] a line of its journal. Dropping the [`Sim`] ends every task.

mod account;
mod answer;
mod body;
mod catalogue;
mod clock;
pub mod directives;
mod errors;
mod fault;
mod headers;
mod identity;
mod journal;
mod kind;
mod listener;
mod logins;
mod peek;
mod quota;
mod registry;
mod request;
mod route;
mod scenario;
mod server;
mod sim;
mod token;
mod usage;
mod wire;

pub use account::{Account, ScriptedFault};
pub use fault::{Fault, Garbage, Phase};
pub use journal::{End, Entry};
pub use kind::Kind;
pub use logins::DevicePoll;
pub use scenario::{AccountSpec, Scenario, WindowSpec};
pub use sim::Sim;
