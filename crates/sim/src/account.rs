//! A handle to one account: its credentials, and everything a test may change about it.
//!
//! Setters work at any time, also while requests run. Handles are cheap to clone and outlive the
//! simulator harmlessly.

mod inner;
mod scripted;
mod sockets;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::clock::rfc3339;
use crate::fault::{Fault, Script};
use crate::kind::Kind;
use crate::listener::Listener;
use crate::logins::Person;
use crate::sim::World;

pub use inner::{CLAUDE_SCOPES, Inner};
pub use scripted::ScriptedFault;
pub use sockets::{Command, Seat, Sockets};

#[derive(Clone)]
pub struct Account {
    inner: Arc<Inner>,
    world: Arc<World>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("kind", &self.kind()).field("name", &self.name()).finish()
    }
}

impl Account {
    pub(crate) fn new(inner: Arc<Inner>, world: Arc<World>) -> Self {
        Self { inner, world }
    }

    pub fn name(&self) -> &str {
        &self.inner.identity.name
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The workspace of a codex account, the UUID of a claude account.
    pub fn account_id(&self) -> String {
        self.inner.identity.account_id.clone()
    }

    /// The person's, which the tokens of codex tell.
    pub fn user_id(&self) -> String {
        self.inner.identity.user_id.clone()
    }

    /// The person's, which the profile of claude tells.
    pub fn organization_id(&self) -> String {
        self.inner.identity.organization_id.clone()
    }

    pub fn email(&self) -> String {
        self.inner.identity.email.clone()
    }

    /// The contents of codex's `auth.json`, with the newest tokens.
    ///
    /// # Panics
    /// The account is not a codex one.
    pub fn auth_json(&self) -> String {
        assert_eq!(self.kind(), Kind::Codex, "only codex accounts have an auth.json");
        let (grant, issued_at) = self.inner.newest_grant();
        json!({
            "auth_mode": "chatgpt",
            "OPENAI_API_KEY": null,
            "tokens": {
                "id_token": grant.id,
                "access_token": grant.access,
                "refresh_token": grant.refresh,
                "account_id": self.account_id(),
            },
            "last_refresh": rfc3339(issued_at),
        })
        .to_string()
    }

    /// The contents of Claude Code's `.credentials.json`, with the newest tokens.
    ///
    /// # Panics
    /// The account is not a claude one.
    pub fn credentials_json(&self) -> String {
        assert_eq!(self.kind(), Kind::Claude, "only claude accounts have a .credentials.json");
        let (grant, _) = self.inner.newest_grant();
        let plan = self.inner.plan();
        json!({"claudeAiOauth": {
            "accessToken": grant.access,
            "refreshToken": grant.refresh,
            "expiresAt": grant.expires_at,
            "scopes": CLAUDE_SCOPES.split(' ').collect::<Vec<_>>(),
            "subscriptionType": plan,
            "rateLimitTier": self.inner.tier(),
        }})
        .to_string()
    }

    /// The key of an openai or anthropic account.
    ///
    /// # Panics
    /// The account is a subscription.
    pub fn api_key(&self) -> String {
        self.inner.key().expect("only openai and anthropic accounts have a key")
    }

    /// What to send as the credential now: the key, or the newest access token.
    pub fn credential(&self) -> String {
        self.inner.key().unwrap_or_else(|| self.inner.newest_grant().0.access)
    }

    /// The refresh token that works next.
    pub fn refresh_token(&self) -> String {
        self.inner.newest_grant().0.refresh
    }

    /// Names the plan; tokens carry it from the next refresh on.
    pub fn plan(&self, plan: &str) -> &Self {
        plan.clone_into(&mut self.inner.state.lock().plan);
        self
    }

    /// Names the tier of a claude plan, like `default_claude_max_20x`; the profile tells it at once.
    pub fn tier(&self, tier: &str) -> &Self {
        self.inner.state.lock().tier = Some(tier.to_owned());
        self
    }

    /// Signs in anew: new tokens, the plan in them; the old refresh token is spent.
    pub fn renew(&self) -> &Self {
        if self.kind().is_subscription() {
            self.world.registry.renew(&self.inner, &self.world.clock);
        }
        self
    }

    /// Whoever opens the sign-in page of this kind from now on signs in to this account.
    pub fn signs_in(&self) -> &Self {
        self.world.logins.seat(self.kind(), Person::SignsIn(Arc::clone(&self.inner)));
        self
    }

    /// Adds a quota window, or replaces the one of the same length. Durations are simulated time.
    pub fn window(
        &self,
        length: Duration,
        capacity_units: f64,
        used_units: f64,
        resets_in: Duration,
    ) -> &Self {
        let mut state = self.inner.state.lock();
        state.quota.set(&self.world.clock, length, capacity_units, used_units, resets_in);
        drop(state);
        self
    }

    /// Removes all quota windows.
    pub fn clear_windows(&self) -> &Self {
        self.inner.state.lock().quota.clear();
        self
    }

    /// Sets the used share, 0 to 1, of the window of this length.
    ///
    /// # Panics
    /// There is no such window.
    pub fn set_used(&self, length: Duration, fraction: f64) -> &Self {
        let now = self.world.clock.now();
        let found = self.inner.state.lock().quota.set_used(now, length, fraction);
        assert!(found, "{} has no window of {length:?}", self.name());
        self
    }

    /// The used share, 0 to 1, of the window of this length; `None`: there is no such window.
    pub fn used(&self, length: Duration) -> Option<f64> {
        let now = self.world.clock.now();
        let readings = self.inner.state.lock().quota.readings(now);
        readings.iter().find(|reading| reading.length == length).map(|reading| reading.used)
    }

    /// Units that an answered request costs in every window (1).
    pub fn request_cost(&self, units: f64) -> &Self {
        self.inner.state.lock().quota.set_cost(units);
        self
    }

    /// How long access tokens issued from now on are good, in real time.
    pub fn token_lifetime(&self, lifetime: Duration) -> &Self {
        self.inner.login.lock().lifetime = lifetime;
        self
    }

    /// Every access token issued so far answers 401; a refresh gives a good one.
    pub fn expire_access_token(&self) {
        self.world.registry.expire(&self.inner);
    }

    /// As [`Self::expire_access_token`], and a refresh is refused too.
    pub fn revoke(&self) {
        self.inner.login.lock().revoked = true;
    }

    /// From now on, whoever uses a refresh token a second time ends the sign-in, as
    /// [`Self::revoke`] does; only [`Self::renew`] begins a new one.
    pub fn revoke_on_reuse(&self) -> &Self {
        self.inner.login.lock().revoked_by_reuse = true;
        self
    }

    /// Scripts a misbehaviour, by default for the next model call only; see [`ScriptedFault`].
    pub fn fault(&self, fault: Fault) -> ScriptedFault {
        ScriptedFault::new(Arc::clone(&self.inner), fault)
    }

    pub(crate) fn script(&self, script: Script) {
        self.inner.state.lock().faults.push(script);
    }

    pub fn clear_faults(&self) {
        self.inner.state.lock().faults.clear();
    }

    /// Scripted faults that have not run out.
    pub fn pending_faults(&self) -> usize {
        self.inner.state.lock().faults.len()
    }

    /// sockets of this account; they count from the 101 until both sides are done with them.
    pub fn open_sockets(&self) -> usize {
        self.inner.sockets.count()
    }

    /// Sends a text frame nobody asked for into each of its sockets; how many there are.
    pub fn push_frame(&self, text: &str) -> usize {
        self.inner.sockets.tell(&Command::Push(text.into()))
    }

    /// Closes each of its sockets with a frame of this code; how many there are.
    pub fn close_sockets(&self, code: u16) -> usize {
        self.inner.sockets.tell(&Command::Close(code))
    }

    /// Cuts the connection of each of its sockets; how many there are.
    pub fn cut_sockets(&self) -> usize {
        self.inner.sockets.cut()
    }

    /// Base URL: of its own listener if it has one, else of the simulator.
    pub fn url(&self) -> String {
        let own = self.inner.listener.lock();
        own.as_ref().map_or_else(|| self.world.url(), Listener::url)
    }

    /// Opens a listener of its own, on which the whole simulator can be reached.
    pub async fn own_port(&self) -> io::Result<()> {
        let listener = Listener::bind(&self.world, ([127, 0, 0, 1], 0).into()).await?;
        *self.inner.listener.lock() = Some(listener);
        Ok(())
    }

    /// Closes its listener and all connections there: connecting is refused on return.
    ///
    /// # Panics
    /// There was no [`Self::own_port`].
    pub fn refuse_connections(&self) {
        self.inner.listener.lock().as_mut().expect("own_port() comes first").close();
    }

    /// Opens its listener again, on the same port.
    ///
    /// # Panics
    /// There was no [`Self::own_port`].
    pub async fn accept_connections(&self) -> io::Result<()> {
        let address = self.inner.listener.lock().as_ref().map(Listener::address);
        let address = address.expect("own_port() comes first");
        let listener = Listener::bind(&self.world, address).await?;
        *self.inner.listener.lock() = Some(listener);
        Ok(())
    }
}
