//! Background jobs: what keeps memory and store in step, off the path of any request.

mod credentials;
mod poll;

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::pool::OWNED_FOR;
use crate::reconfigure;
use crate::store::Before;

pub use credentials::keep_fresh;

/// How soon a change made by the command line, or a revoked key, takes effect.
const CHANGES_EVERY: Duration = Duration::from_millis(500);
/// More than what a clock is corrected by while it runs.
const SET_BACK: Duration = Duration::from_secs(2);
const SAVE_EVERY: Duration = Duration::from_secs(5);
const IDLE_EVERY: Duration = Duration::from_secs(20);
const PRUNE_EVERY: Duration = Duration::from_hours(1);
const ROWS_KEPT: Duration = Duration::from_hours(30 * 24);
const DECISIONS_KEPT: Duration = Duration::from_hours(7 * 24);

/// `revision`: of the store, before accounts and keys were loaded.
pub fn start(app: &Arc<App>, revision: String) {
    let job = Arc::clone(app);
    app.tasks.supervise("follow changes", async move { follow_changes(&job, revision).await });
    let job = Arc::clone(app);
    app.tasks.supervise("follow credentials", async move { credentials::follow(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("save tokens", async move { credentials::save_tokens(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("keep sign-ins fresh", async move { credentials::guard(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("save state", async move { save_state(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("configuration", async move { reconfigure::follow(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("prune", async move { prune(&job).await });
    let job = Arc::clone(app);
    app.tasks.supervise("close idle connections", async move { close_idle(&job).await });
    if app.config.polls {
        let job = Arc::clone(app);
        app.tasks.supervise("poll usage", async move { poll::run(&job).await });
    }
}

/// Waits; `false` when the process should end.
async fn pause(app: &App, span: Duration) -> bool {
    app.tasks.stop.run_until_cancelled(tokio::time::sleep(span)).await.is_some()
}

/// Accounts and keys changed in the store. A revoked key waits for nothing else here.
async fn follow_changes(app: &App, mut revision: String) {
    let mut looked_at = app.clock.now();
    while pause(app, CHANGES_EVERY).await {
        let now = app.clock.now();
        let back = now.until(looked_at);
        if back > SET_BACK {
            tracing::warn!(seconds = back.as_secs(), "the clock was set back");
            app.pool.set_back(back);
        }
        looked_at = now;
        match app.store.revision().await {
            Ok(now) if now == revision => {}
            Ok(now) => match app.reload().await {
                Ok(()) => revision = now,
                Err(error) => tracing::error!(%error, "accounts and keys could not be reloaded"),
            },
            Err(error) => tracing::warn!(%error, "the store cannot be read"),
        }
    }
}

/// Quotas and stops, so that a restart knows them.
async fn save_state(app: &App) {
    loop {
        let go_on = pause(app, SAVE_EVERY).await;
        let quotas = app.pool.take_unsaved_quotas();
        if !quotas.is_empty()
            && let Err(error) = app.store.save_quotas(&quotas).await
        {
            tracing::warn!(%error, "quotas could not be saved");
            app.pool.mark_unsaved(quotas.iter().map(|(id, _)| *id), false);
        }
        save_stops(app).await;
        if !go_on {
            return;
        }
    }
}

async fn close_idle(app: &App) {
    while pause(app, IDLE_EVERY).await {
        app.egress.sweep();
    }
}

async fn save_stops(app: &App) {
    for (id, stop) in app.pool.take_unsaved_stops() {
        if let Err(error) = app.store.set_stop(id, stop).await {
            tracing::warn!(%error, "an account's state could not be saved");
            app.pool.mark_unsaved(std::iter::once(id), true);
        }
    }
}

async fn prune(app: &App) {
    while pause(app, PRUNE_EVERY).await {
        let now = app.clock.now();
        let before = Before {
            requests: now.minus(ROWS_KEPT),
            decisions: now.minus(DECISIONS_KEPT),
            owners: now.minus(OWNED_FOR),
        };
        match app.store.prune(before).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "deleted old requests"),
            Err(error) => tracing::warn!(%error, "old requests could not be deleted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::{Config, RawConfig};
    use crate::keys::generate;
    use crate::store::Store;

    /// Between loading accounts and keys at a start and the first look, too.
    #[tokio::test]
    async fn no_change_is_missed_while_a_gateway_starts() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = Some(dir.path().join("data"));
        let config = Config::resolve(RawConfig { data_dir, ..RawConfig::default() }).unwrap();
        let store = Store::open(&config.data_dir).await.unwrap();
        let revision = store.revision().await.unwrap();
        let app = App::open(config, Arc::new(SystemClock), store).await.unwrap();
        let (key, new) = generate("late".into(), vec![], vec![], None).unwrap();
        app.store.add_client_key(&new, app.clock.now()).await.unwrap();
        let seen = async {
            while app.keys.find(&key, app.clock.now()).is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = follow_changes(&app, revision) => panic!("it goes on"),
            seen = timeout(Duration::from_secs(20), seen) => seen.expect("the key counts"),
        }
    }
}
