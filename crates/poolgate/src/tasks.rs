//! Every background task of the process; nothing else spawns.
//!
//! A task that ends early, even by panic, starts the drain: a gateway that goes on without its
//! ledger or its listener would only look alive.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// Cancelled when the process should end.
    pub stop: CancellationToken,
    tracker: TaskTracker,
}

/// Work that only the drain's deadline ends.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// Cancelled when the drain has taken too long; also for requests that have no answer yet.
    pub abort: CancellationToken,
    tracker: TaskTracker,
}

impl Sockets {
    /// On the thread of whoever asks.
    pub fn spawn(&self, socket: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(socket);
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Resolves when none is left.
    pub async fn closed(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Tasks {
    /// A task that must live as long as the process.
    pub fn supervise(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.stop.clone().drop_guard();
        self.tracker.spawn(async move {
            let _guard = guard;
            task.await;
            tracing::debug!(task = name, "task ended");
        });
    }

    /// A piece of work that ends by itself, and that the drain waits for.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tracker.spawn(work)
    }

    /// Waits for all tasks, at most `grace`; `false` if some had to be abandoned.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        timeout(grace, self.tracker.wait()).await.is_ok()
    }

    /// How many are running.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}
