//! Which account a credential belongs to, and what refreshing it gives.
//!
//! One short lock over maps; requests read, sign-ins and refreshes write. A refresh token works
//! once: the answer to it names the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::account::Inner;
use crate::clock::{Clock, Millis, millis};
use crate::kind::Kind;
use crate::token::{self, Grant};

/// Source: the clients' sign-in.
pub const CODEX_CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
pub const CLAUDE_CLIENT_ID: &str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e";

#[derive(Debug, Default)]
pub struct Registry {
    maps: RwLock<Maps>,
    serial: AtomicU64,
}

#[derive(Debug, Default)]
struct Maps {
    accounts: Vec<Arc<Inner>>,
    access: HashMap<String, Issued>,
    refresh: HashMap<String, Arc<Inner>>,
}

#[derive(Debug)]
struct Issued {
    account: Arc<Inner>,
    serial: u64,
    /// `None`: a key, which does not expire.
    expires_at: Option<Millis>,
}

/// What a request's credential is worth.
#[derive(Debug)]
pub enum Caller {
    Unknown,
    /// Known, but expired or revoked.
    Stale(Arc<Inner>),
    Known(Arc<Inner>),
}

/// Why there is no new token.
#[derive(Debug, PartialEq, Eq)]
pub enum NoGrant {
    Unknown,
    Reused,
    Revoked,
}

impl Caller {
    pub fn account(self) -> Option<Arc<Inner>> {
        match self {
            Self::Unknown => None,
            Self::Stale(account) | Self::Known(account) => Some(account),
        }
    }
}

impl Registry {
    /// Takes the account in and gives it its first credentials.
    pub fn add(&self, account: &Arc<Inner>, clock: &Clock) {
        let serial = self.next_serial();
        let mut maps = self.maps.write();
        maps.accounts.push(Arc::clone(account));
        if let Some(key) = account.key() {
            let issued = Issued { account: Arc::clone(account), serial, expires_at: None };
            maps.access.insert(key, issued);
        } else {
            maps.issue(account, serial, clock);
        }
    }

    pub fn find(&self, name: &str) -> Option<Arc<Inner>> {
        let maps = self.maps.read();
        maps.accounts.iter().find(|account| account.identity.name == name).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Inner>> {
        self.maps.read().accounts.clone()
    }

    pub fn caller(&self, credential: &str, clock: &Clock) -> Caller {
        let maps = self.maps.read();
        let Some(issued) = maps.access.get(credential) else {
            return Caller::Unknown;
        };
        let login = issued.account.login.lock();
        let expired = issued.expires_at.is_some_and(|at| at <= clock.now());
        let account = Arc::clone(&issued.account);
        if expired || login.revoked || issued.serial < login.valid_from {
            Caller::Stale(account)
        } else {
            Caller::Known(account)
        }
    }

    /// From now on no access token issued so far is good.
    pub fn expire(&self, account: &Inner) {
        account.login.lock().valid_from = self.next_serial();
    }

    /// Issues tokens as a new sign-in does.
    pub fn renew(&self, account: &Arc<Inner>, clock: &Clock) {
        let serial = self.next_serial();
        account.login.lock().revoked = false;
        self.maps.write().issue(account, serial, clock);
    }

    /// Every token and key that was ever given out, spent or not.
    pub fn credentials(&self) -> Vec<String> {
        let maps = self.maps.read();
        maps.access.keys().chain(maps.refresh.keys()).cloned().collect()
    }

    /// The account a refresh token was once given to.
    pub fn owner(&self, refresh_token: &str) -> Option<Arc<Inner>> {
        self.maps.read().refresh.get(refresh_token).cloned()
    }

    /// Spends a refresh token.
    pub fn refresh(
        &self,
        kind: Kind,
        token: &str,
        clock: &Clock,
    ) -> Result<(Arc<Inner>, Grant), NoGrant> {
        let mut maps = self.maps.write();
        let account = maps.refresh.get(token).filter(|account| account.kind == kind);
        let account = Arc::clone(account.ok_or(NoGrant::Unknown)?);
        {
            let mut login = account.login.lock();
            if login.revoked {
                return Err(NoGrant::Revoked);
            }
            if login.grant.as_ref().is_none_or(|grant| grant.refresh != token) {
                login.revoked = login.revoked_by_reuse;
                return Err(NoGrant::Reused);
            }
        }
        let grant = maps.issue(&account, self.next_serial(), clock);
        Ok((account, grant))
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}

impl Maps {
    fn issue(&mut self, account: &Arc<Inner>, serial: u64, clock: &Clock) -> Grant {
        let now = clock.now();
        let plan = account.plan();
        let mut login = account.login.lock();
        let expires_at = now + millis(login.lifetime);
        let grant = match account.kind {
            Kind::Codex => token::codex(&account.identity, &plan, serial, now, expires_at),
            _ => token::claude(&account.identity, serial, expires_at),
        };
        login.grant = Some(grant.clone());
        login.issued_at = now;
        let issued = Issued { account: Arc::clone(account), serial, expires_at: Some(expires_at) };
        self.access.insert(grant.access.clone(), issued);
        self.refresh.insert(grant.refresh.clone(), Arc::clone(account));
        grant
    }
}
