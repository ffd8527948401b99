use std::borrow::Cow;

use futures_util::FutureExt;

use super::*;

#[test]
fn who_is_gone_is_forgotten_by_whoever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Spool::open(dir.path(), 1 << 20, SpoolPosition::default(), 1).unwrap();
    let (first, second, third) = (open(), open(), open());
    assert!(!first.has_elders().unwrap());
    assert!(second.has_elders().unwrap() && third.has_elders().unwrap());
    let mut known = processes(dir.path()).unwrap();
    known.sort_unstable();
    drop(first);
    assert!(!second.has_elders().unwrap());
    assert!(!is_running(&known[0].1).unwrap(), "its file is gone, and that is no error");
    assert!(third.has_elders().unwrap() && !is_left_alone(dir.path()).unwrap());
    second.leave();
    assert!(!third.has_elders().unwrap());
    drop(third);
    assert!(is_left_alone(dir.path()).unwrap());
}

fn begin(id: &str) -> Begin<'_> {
    Begin { id: Cow::Borrowed(id), ..Begin::default() }
}

/// Which lines are there, by kind and id.
fn written(spool: &Spool) -> Vec<String> {
    let text = std::fs::read_to_string(spool.path(spool.current_segment())).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| line.split('[').next().unwrap().to_owned()).collect()
}

async fn on_a_worker<F>(run: impl FnOnce(Spool) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, SpoolPosition::default(), 1).unwrap();
    let workers = workers::Workers::start(1).unwrap();
    let (done, is_done) = tokio::sync::oneshot::channel();
    workers.run(move |_| {
        crate::tasks::Tasks::default().spawn(async move {
            run(spool).await;
            done.send(()).unwrap();
        });
    });
    is_done.await.expect("it panicked");
    workers.finish().await;
}

#[tokio::test]
async fn requests_that_begin_in_one_turn_are_written_at_one_go() {
    on_a_worker(async |spool| {
        let (a, b) = (begin("a"), begin("b"));
        let first = async {
            spool.begin(&a).await.unwrap();
            assert_eq!(written(&spool), ["Ba", "Bb"]);
        };
        let second = async {
            assert!(written(&spool).is_empty(), "nobody has had a turn");
            spool.begin(&b).await.unwrap();
        };
        tokio::join!(first, second);
        let waiting = spool.waiting();
        spool.begin(&begin("c")).await.unwrap();
        assert_eq!(written(&spool), ["Ba", "Bb", "Bc"]);
        assert_eq!(spool.waiting(), waiting / 2 * 3);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_comes_alone_waits_for_nobody() {
    on_a_worker(async |spool| {
        let at = |id, at| Begin { at, ..begin(id) };
        let is_written_at_once = |begin: Begin<'_>| spool.begin(&begin).now_or_never().is_some();
        assert!(is_written_at_once(at("a", 10)));
        assert!(!is_written_at_once(at("b", 10 + CLOSE)), "others may come with it");
        assert!(is_written_at_once(at("c", 11 + 2 * CLOSE)));
        assert!(!is_written_at_once(at("d", 9)), "the clock was set back");
        let (e, f) = (at("e", 9), at("f", 90));
        let others = async {
            assert!(!is_written_at_once(f), "somebody waits already");
        };
        let (begun, ()) = tokio::join!(spool.begin(&e), others);
        begun.unwrap();
        assert_eq!(written(&spool), ["Ba", "Bb", "Bc", "Bd", "Be", "Bf"]);
    })
    .await;
}

#[tokio::test]
async fn what_was_gathered_is_written_whoever_leaves() {
    on_a_worker(async |spool| {
        let (a, b) = (begin("a"), begin("b"));
        let end = |id| End::<()> { begin: begin(id), ..End::default() };
        let (a_end, b_end) = (end("a"), end("b"));
        let others = async {
            let mut leaves = Box::pin(spool.begin(&b));
            assert!((&mut leaves).now_or_never().is_none());
            assert!(written(&spool).is_empty());
            drop(leaves);
            assert_eq!(written(&spool), ["Ba", "Bb"]);
            let mut leaves = Box::pin(spool.end_with_others(&b_end));
            assert!((&mut leaves).now_or_never().is_none());
            spool.end(&a_end).unwrap();
            assert_eq!(written(&spool), ["Ba", "Bb", "Eb", "Ea"], "an end takes it along");
        };
        let (begun, ()) = tokio::join!(spool.begin(&a), others);
        begun.unwrap();
        spool.end_with_others(&end("c")).await.unwrap();
        assert_eq!(written(&spool)[4..], ["Ec"]);
    })
    .await;
}

#[tokio::test]
async fn all_that_began_are_told_that_the_disk_is_full() {
    on_a_worker(async |spool| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut spool.writer.write().file, full);
        let (a, b) = (begin("a"), begin("b"));
        let (a, b) = tokio::join!(spool.begin(&a), spool.begin(&b));
        assert!(a.is_err() && b.is_err() && !spool.has_room());
        assert!(spool.begin(&begin("c")).await.is_err());
        let end = |id| End::<()> { begin: begin(id), ..End::default() };
        let (d, f) = (end("d"), end("f"));
        let (d, f) = tokio::join!(spool.end_with_others(&d), spool.end_with_others(&f));
        assert!(d.is_ok() && f.is_ok(), "they are held");
        assert_eq!(spool.retry(), 2);
        spool.writer.write().file = disk;
        assert_eq!(spool.retry(), 0);
        spool.begin(&begin("e")).await.unwrap();
        assert_eq!(written(&spool), ["Ed", "Ef", "Be"]);
        let text = std::fs::read(spool.path(spool.current_segment())).unwrap();
        assert_eq!(spool.waiting(), text.len() as u64);
    })
    .await;
}

/// `Ba`, `Bb` and `Ec` are written at one go, of which the disk takes so much.
#[tokio::test]
async fn what_a_full_disk_took_of_several_lines_counts() {
    on_a_worker(async |spool| {
        let (a, b) = (begin("a"), begin("b"));
        let c = End::<()> { begin: begin("c"), ..End::default() };
        let mut line = Vec::new();
        add_begin(&mut line, &a).unwrap();
        let one = line.len();
        for (takes, begun) in [
            (one - 1, [false, false]),
            (one, [true, false]),
            (one + 1, [true, false]),
            (2 * one - 1, [true, false]),
            (2 * one, [true, true]),
            (2 * one + 1, [true, true]),
        ] {
            spool.writer.write().takes = takes;
            let all = (spool.begin(&a), spool.begin(&b), spool.end_with_others(&c));
            let (a, b, c) = tokio::join!(all.0, all.1, all.2);
            assert_eq!([a.is_ok(), b.is_ok()], begun, "{takes}");
            assert!(c.is_ok() && !spool.has_room(), "{takes}");
            spool.writer.write().takes = usize::MAX;
            assert_eq!(spool.retry(), 0, "{takes}");
            assert_eq!(written(&spool).last().unwrap(), "Ec", "{takes}");
            let length = std::fs::metadata(spool.path(spool.current_segment())).unwrap().len();
            assert_eq!(spool.waiting(), length, "{takes}");
        }
    })
    .await;
}

/// `/dev/full` takes nothing, as a full disk does.
#[tokio::test]
async fn a_line_that_the_disk_does_not_take_is_held_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, SpoolPosition::default(), 1).unwrap();
    let end = || End::<()> { begin: begin("a"), ..End::default() };
    spool.begin(&begin("a")).await.unwrap();
    let before = spool.waiting();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let disk = std::mem::replace(&mut spool.writer.write().file, full);
    spool.end(&end()).expect("it is held");
    assert!(!spool.has_room());
    assert_eq!(spool.retry(), 1, "still full");
    assert!(spool.begin(&begin("b")).await.is_err(), "its request can be refused");
    let waiting = spool.waiting();
    assert!(waiting > before, "what is held waits too");
    spool.writer.write().file = disk;
    assert!(!spool.has_room(), "nobody has tried");
    assert_eq!(spool.retry(), 0);
    assert!(spool.has_room());
    assert_eq!(spool.waiting(), waiting);
    let text = std::fs::read_to_string(spool.path(spool.current_segment())).unwrap();
    assert_eq!(text.len() as u64, waiting);
    assert_eq!(text.matches("\nBa[").count() + text.matches("\nEa[").count(), 2, "{text}");
}

/// spec §11: a power cut loses the last second at most.
#[tokio::test]
async fn a_segment_that_is_ended_is_synced_too() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, SpoolPosition::default(), 1).unwrap();
    spool.sync().await;
    let ended = std::fs::metadata(spool.path(spool.current_segment())).unwrap().ino();
    spool.writer.read().length.store(SEGMENT_MAX, Ordering::Relaxed);
    spool.begin(&begin("a")).await.unwrap();
    let waits: Vec<u64> =
        spool.unsynced.lock().iter().map(|file| file.metadata().unwrap().ino()).collect();
    let folder = std::fs::metadata(dir.path()).unwrap().ino();
    assert_eq!(waits, [ended, folder], "and the name of the next one");
    spool.sync().await;
    assert!(spool.unsynced.lock().is_empty() && !spool.dirty.load(Ordering::Relaxed));
}

/// spec §11: what the disk does not have after a second does not wait for the store.
#[tokio::test]
async fn the_disk_is_looked_after_while_the_store_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path()).await.unwrap();
    let tasks = crate::tasks::Tasks::default();
    let clock = Arc::new(crate::clock::SystemClock);
    let path = dir.path().join("spool");
    let spool = crate::ledger::start(&path, 1 << 20, 0, &store, &tasks, clock).await.unwrap();
    let held = store.recording().await.unwrap();
    // In the second round whoever carries the lines is waiting for the store.
    for id in ["a", "b", "c"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut spool.writer.write().file, full);
        spool.end(&End::<()> { begin: begin(id), ..End::default() }).expect("it is held");
        spool.writer.write().file = disk;
        let written = async {
            while !spool.has_room() || spool.dirty.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), written).await.expect("written and synced");
    }
    drop(held);
    assert!(tasks.drain(Duration::from_secs(10)).await);
    store.close().await;
}
