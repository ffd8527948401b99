//! Threads that serve connections, each with a runtime of its own.
//!
//! A connection, its requests and the upstream connections they use stay on one thread: nothing is
//! handed over and nobody is woken across threads. A small request cost a fifth less for it (75 to
//! 61 µs of CPU, `make bench`). New connections go to the thread that has fewest.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Which worker this thread is, from 1; 0 for any other thread.
pub fn index() -> usize {
    INDEX.get()
}

/// Resolves when the tasks that can run now have run, at the latest: a runtime of one thread takes them
/// in the order in which they were woken. tokio's `yield_now` would look for sockets first, by a system call.
pub async fn next_turn() {
    let mut is_next = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_next, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A timer that is due before everything a thread has gone to sleep for makes tokio wake that thread
/// through the kernel, even from itself: two system calls, for each of several timers per request.
/// With a timer of the thread's own always due before them, there is nothing to wake it for.
const TICK: Duration = Duration::from_millis(500);

type Work = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    /// Cancelled when the runtimes should end, and whatever still runs on them.
    finished: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    work: mpsc::UnboundedSender<Work>,
    /// Connections being served.
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// One connection of a worker, counted until dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<AtomicUsize>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(load) = &self.0 {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Workers {
    /// None: everything runs on the runtime of the caller.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let finished = CancellationToken::new();
        let workers = (1..=count).map(|index| Worker::start(index, finished.clone()));
        Ok(Self { workers: workers.collect::<std::io::Result<_>>()?, finished })
    }

    /// Runs `work` on the worker with the fewest connections; it may spawn there.
    pub fn run(&self, work: impl FnOnce(Place) + Send + 'static) {
        let Some(worker) = self.workers.iter().min_by_key(|w| w.load.load(Ordering::Relaxed))
        else {
            return work(Place(None));
        };
        worker.load.fetch_add(1, Ordering::Relaxed);
        let place = Place(Some(Arc::clone(&worker.load)));
        // A worker ends only after the accepting has.
        let _ = worker.work.send(Box::new(move || work(place)));
    }

    /// Ends the threads; what still runs on them is dropped.
    pub async fn finish(self) {
        self.finished.cancel();
        let threads: Vec<_> = self.workers.into_iter().map(|worker| worker.thread).collect();
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        if !joined.await.unwrap_or(false) {
            tracing::error!("a worker thread panicked");
        }
    }
}

impl Worker {
    fn start(index: usize, finished: CancellationToken) -> std::io::Result<Self> {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Work>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread =
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                INDEX.set(index);
                let serve = async {
                    let mut tick = tokio::time::interval(TICK);
                    loop {
                        tokio::select! {
                            Some(work) = receiver.recv() => work(),
                            _ = tick.tick() => {}
                        }
                    }
                };
                runtime.block_on(finished.run_until_cancelled(serve));
            })?;
        Ok(Self { work: sender, load: Arc::default(), thread })
    }
}
