//! The decision core in a simulated world: how strategies compare over weeks, in seconds.
//!
//! Only the world is made up: the accounts' true windows ([`account`]), what is wanted of them
//! ([`arrivals`]) and the clock ([`world`]). Which account is tried, what a refusal means and what
//! becomes of the request is asked of `poolgate-core`, in the order in which the gateway asks it
//! ([`gateway`]). Nothing here opens, waits or draws unseeded: the same scenario and seed give the
//! same figures.

mod account;
mod arrivals;
mod bound;
mod figures;
mod flow;
mod gateway;
mod log;
mod random;
mod report;
mod scenario;
mod world;

pub use arrivals::Demand;
pub use bound::bound;
pub use figures::Figures;
pub use log::{Logged, Scale, TOKENS_PER_UNIT, begins, from_log, members};
pub use report::{Comparison, compare, table};
pub use scenario::{SHIPPED, Scenario, User};
pub use world::run;

#[cfg(test)]
mod tests;
