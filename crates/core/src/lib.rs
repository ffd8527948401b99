//! The decisions of poolgate: which account may serve a request, which one should, what an answer
//! means, and what follows from it.
//!
//! Everything here is pure. Functions take plain data and `now`, and return an enum that says what
//! to do; they open nothing, ask no clock, and never wait. The shell (`crates/poolgate`) gathers the
//! data and does what the enum says. Keep it so: the crate has no dependency through which it could
//! do otherwise.
//!
//! | module | decides |
//! |---|---|
//! | [`units`] | what a time, a share and a number of tokens are |
//! | [`account`] | kinds of account, and which surfaces each can serve |
//! | [`refresh`] | when a sign-in is renewed, and what its issuer's answers mean |
//! | [`quota`] | what upstream readings add up to: windows, their merging, their reset |
//! | [`resets`] | which resets bear on a refusal |
//! | [`network`] | whose fault a failed connect is |
//! | [`health`] | what past outcomes still forbid: cooldowns, strikes, errors, stops |
//! | [`concurrency`] | how much an upstream takes at the same time |
//! | [`availability`] | may this account take this request now, and if not, until when |
//! | [`gate`] | models with a limit of their own, and what that changes |
//! | [`choose`] | of those that may, which one |
//! | [`limits`] | what a pool has left, as one account would tell it |
//! | [`line`] | of those that wait, who is next |
//! | [`strategy`] | how the strategies score and pick |
//! | [`affinity`] | which account a session belongs to, and for how long |
//! | [`explain`] | the same choice, said for each account |
//! | [`rate`] | how many requests a client key may begin within a minute |
//! | [`outcome`] | what an upstream answer means, what it does to the account and to the request |
//! | [`poll`] | when a usage endpoint is asked, and what its silence means |
//! | [`usage`] | tokens counted in an answer |

pub mod account;
pub mod affinity;
pub mod availability;
pub mod choose;
pub mod concurrency;
pub mod explain;
pub mod gate;
pub mod health;
pub mod limits;
pub mod line;
pub mod network;
pub mod outcome;
pub mod poll;
pub mod quota;
pub mod rate;
pub mod refresh;
pub mod resets;
pub mod strategy;
pub mod units;
pub mod usage;
