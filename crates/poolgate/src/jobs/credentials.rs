//! Credentials beside any request: files that changed, tokens to be saved, accounts that nobody uses.

use std::time::Duration;

use futures_util::future::join_all;

use super::{CHANGES_EVERY, pause, save_stops};
use crate::app::App;

/// How often accounts are looked through for a token that is about to expire.
const GUARD_EVERY: Duration = Duration::from_secs(30);

/// Files that changed on disk, and what has become of the credentials.
pub async fn follow(app: &App) {
    while pause(app, CHANGES_EVERY).await {
        look(app).await;
    }
}

/// Rereads files that changed, and has the pool look at each of its credentials.
async fn look(app: &App) {
    for account in app.pool.accounts() {
        let credential = &account.credential;
        if credential.changed_on_disk() && credential.reload().await {
            let problem = credential.problem();
            tracing::info!(account = account.name, problem, "the credential changed");
            app.pool.credential_exchanged(account.id);
        }
        if app.pool.follow_credential(account.id, app.clock.now()) {
            save_stops(app).await;
        }
    }
}

/// Tokens that could not be saved. Their accounts' locks may be held for long.
pub async fn save_tokens(app: &App) {
    while pause(app, CHANGES_EVERY).await {
        let accounts = app.pool.accounts();
        let each = accounts.iter().map(async |account| {
            account.credential.save_unsaved(&app.refresh_context(account)).await;
        });
        join_all(each).await;
    }
}

/// Renews what would expire unused.
pub async fn guard(app: &App) {
    while pause(app, GUARD_EVERY).await {
        keep_fresh(app).await;
    }
}

/// One look at all accounts, the paused ones too: they may be wanted again.
pub async fn keep_fresh(app: &App) {
    let accounts = app.pool.accounts();
    let each = accounts.iter().map(async |account| {
        let seed =
            u64::from_ne_bytes(account.id.0.to_ne_bytes()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        account.credential.keep_fresh(seed >> 32, &app.refresh_context(account)).await;
    });
    join_all(each).await;
}
