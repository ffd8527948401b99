//! The lists of models that upstreams gave, kept per account.
//!
//! A list is asked for by one flight per account, a task of the service that no client's leaving ends.
//! One that has grown old is served while it is renewed; without one, who asks waits, but not for long.
//! What failed is not tried again at once. A list is one owner's at one upstream: when either
//! changes, it is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use poolgate_core::account::AccountId;
use poolgate_core::units::Timestamp;

use super::{Model, fetch};
use crate::credentials::{Credential, Owner, RefreshContext};
use crate::pool::Account;

const KEPT_FOR: Duration = Duration::from_mins(10);
const FAILED_FOR: Duration = Duration::from_secs(30);
/// An account that takes longer is left out, until its list is there.
const PATIENCE: Duration = Duration::from_secs(5);

pub type Listed = Result<Arc<Vec<Model>>, String>;
type Flight = Shared<BoxFuture<'static, Listed>>;

#[derive(Clone, Debug, Default)]
pub struct Catalogue(Arc<Mutex<HashMap<AccountId, Kept>>>);

/// What is known of one account's list.
#[derive(Debug)]
struct Kept {
    of: Whose,
    list: Option<(Timestamp, Arc<Vec<Model>>)>,
    /// When asking for it failed last, and how.
    failed: Option<(Timestamp, String)>,
    flight: Option<Flight>,
}

/// Whose list it is.
#[derive(Clone, Debug)]
struct Whose {
    credential: Weak<Credential>,
    owner: Owner,
    base: String,
}

impl Whose {
    fn list_of(account: &Account) -> Self {
        let upstream = &account.upstream;
        Self {
            credential: Arc::downgrade(&account.credential),
            owner: account.credential.owner(),
            base: format!("{}{}", upstream.place, upstream.prefix),
        }
    }

    fn is(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.credential, &other.credential)
            && self.owner == other.owner
            && self.base == other.base
    }
}

impl Kept {
    fn nothing(of: Whose) -> Self {
        Self { of, list: None, failed: None, flight: None }
    }

    /// Whether to ask for it, had nobody else.
    fn is_wanted(&self, now: Timestamp) -> bool {
        // A time that lies ahead is of before the clock was set back.
        let within = |at: Timestamp, span| at <= now && now < at.plus(span);
        let is_new = self.list.as_ref().is_some_and(|(at, _)| within(*at, KEPT_FOR));
        let is_hopeless = self.failed.as_ref().is_some_and(|(at, _)| within(*at, FAILED_FOR));
        !is_new && !is_hopeless
    }
}

/// Writes down how a flight ended, however it did.
struct Landing {
    catalogue: Catalogue,
    account: AccountId,
    of: Whose,
    at: Timestamp,
    listed: Listed,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut all = self.catalogue.0.lock();
        // The account may have become another's meanwhile.
        let Some(kept) = all.get_mut(&self.account).filter(|kept| kept.of.is(&self.of)) else {
            return;
        };
        kept.flight = None;
        match &self.listed {
            Ok(models) => {
                kept.list = Some((self.at, Arc::clone(models)));
                kept.failed = None;
            }
            Err(error) => kept.failed = Some((self.at, error.clone())),
        }
    }
}

impl Catalogue {
    /// The account's list as it is known, or as it is told soon.
    pub async fn models_of(&self, account: &Arc<Account>, context: RefreshContext) -> Listed {
        let waits_for = {
            let mut all = self.0.lock();
            let (of, now) = (Whose::list_of(account), context.clock.now());
            let kept = all.entry(account.id).or_insert_with(|| Kept::nothing(of.clone()));
            if !kept.of.is(&of) {
                *kept = Kept::nothing(of);
            }
            if kept.flight.is_none() && kept.is_wanted(now) {
                kept.flight = Some(self.flight(account, kept.of.clone(), context));
            }
            // An old list is better than none.
            match (&kept.list, &kept.flight, &kept.failed) {
                (Some((_, models)), ..) => return Ok(Arc::clone(models)),
                (None, Some(flight), _) => flight.clone(),
                (None, None, failed) => {
                    let error = failed.as_ref().map(|(_, error)| error.clone());
                    return Err(error.unwrap_or_default());
                }
            }
        };
        let landed = tokio::time::timeout(PATIENCE, waits_for).await;
        landed.unwrap_or_else(|_| Err("the upstream takes long".into()))
    }

    fn flight(&self, account: &Arc<Account>, of: Whose, context: RefreshContext) -> Flight {
        let mut landing = Landing {
            catalogue: self.clone(),
            account: account.id,
            of,
            at: context.clock.now(),
            listed: Err("it was broken off".into()),
        };
        let (account, tasks) = (Arc::clone(account), context.tasks.clone());
        let stop = tasks.stop.clone();
        let task = tasks.spawn(async move {
            if let Some(fetched) = stop.run_until_cancelled(fetch(&account, &context)).await {
                landing.at = context.clock.now();
                landing.listed = fetched.map(Arc::new);
            }
            landing.listed.clone()
        });
        task.map(|ended| ended.unwrap_or_else(|_| Err("it was broken off".into()))).boxed().shared()
    }
}
