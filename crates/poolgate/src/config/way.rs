//! How an account's places are reached.

use std::fmt;
use std::sync::Arc;

use super::Proxy;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Way {
    /// `None`: directly.
    pub proxy: Option<Arc<Proxy>>,
    /// Names may lead into private networks, as `private_upstream` allows.
    pub private: bool,
}

impl Way {
    /// Of calls that are for no account, to where an operator's command says.
    pub const ANYWHERE: Self = Self { proxy: None, private: true };
}

/// What follows the name of a place.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.private {
            f.write_str(" (private)")?;
        }
        self.proxy.as_ref().map_or(Ok(()), |proxy| write!(f, " through {proxy}"))
    }
}
