//! How much memory the process has, against what it may: refusing work is better than being killed
//! with everything that runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

/// Percent of the bound from which sockets, which stay, and then requests are refused, and below
/// which both are taken on again.
const SOCKETS_REFUSED: u64 = 80;
const ALL_REFUSED: u64 = 90;
const WELL: u64 = 75;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Well,
    /// No new sockets.
    High,
    /// No new requests.
    Full,
}

/// What is refused now.
#[derive(Debug, Default)]
pub struct Memory(AtomicU8);

impl Memory {
    pub fn admits(&self, socket: bool) -> bool {
        self.0.load(Ordering::Relaxed) < if socket { Level::High } else { Level::Full } as u8
    }

    pub fn level(&self) -> Level {
        match self.0.load(Ordering::Relaxed) {
            0 => Level::Well,
            1 => Level::High,
            _ => Level::Full,
        }
    }

    /// Returns whether the level changed.
    pub fn judge(&self, used: u64, most: u64) -> bool {
        let (before, after) = (self.level(), next(self.level(), used, most));
        self.0.store(after as u8, Ordering::Relaxed);
        before != after
    }
}

/// It goes up at once and comes down only when there is room again, so that it does not flutter.
fn next(level: Level, used: u64, most: u64) -> Level {
    let percent = used.saturating_mul(100) / most.max(1);
    match percent {
        ALL_REFUSED.. => Level::Full,
        SOCKETS_REFUSED.. => level.max(Level::High),
        0..WELL => Level::Well,
        _ => level,
    }
}

/// Where the process and its control group say what they use.
#[derive(Debug)]
pub struct Gauge {
    /// Bytes.
    pub most: u64,
    /// Of the control group; `None`: the process alone is counted.
    group: Option<PathBuf>,
}

impl Gauge {
    /// `most`: as configured. `None`: nothing is to be watched.
    pub fn new(most: Option<u64>) -> Option<Self> {
        match most {
            Some(0) => None,
            Some(most) => Some(Self { most, group: None }),
            None => Self::of_group(&group()?),
        }
    }

    fn of_group(group: &Path) -> Option<Self> {
        // The bound may stand in any group above.
        let bounds = group.ancestors().filter_map(|dir| {
            let text = std::fs::read_to_string(dir.join("memory.max")).ok()?;
            Some(Self { most: text.trim().parse().ok()?, group: Some(dir.to_owned()) })
        });
        bounds.min_by_key(|gauge| gauge.most)
    }

    /// Bytes; `None` if they cannot be told.
    pub fn used(&self) -> Option<u64> {
        let Some(group) = &self.group else { return resident() };
        let read = |name| std::fs::read_to_string(group.join(name)).ok();
        let current: u64 = read("memory.current")?.trim().parse().ok()?;
        // Files the kernel keeps in case somebody reads them again are given up first.
        let stat = read("memory.stat")?;
        let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
        Some(current.saturating_sub(cache.and_then(|cache| cache.parse().ok()).unwrap_or(0)))
    }
}

/// Of the second version of control groups, the only one that has a bound for all memory.
fn group() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

/// What the process holds, in bytes.
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_down_only_with_room() {
        use Level::{Full, High, Well};
        for (before, percent, after) in [
            (Well, 79, Well),
            (Well, 80, High),
            (Well, 90, Full),
            (High, 89, High),
            (High, 75, High),
            (High, 74, Well),
            (Full, 89, Full),
            (Full, 75, Full),
            (Full, 74, Well),
        ] {
            assert_eq!(next(before, percent, 100), after, "{before:?} at {percent}");
        }
    }

    #[test]
    fn sockets_are_refused_first() {
        let memory = Memory::default();
        for (percent, sockets, requests) in
            [(10, true, true), (85, false, true), (95, false, false)]
        {
            memory.judge(percent, 100);
            assert_eq!((memory.admits(true), memory.admits(false)), (sockets, requests));
        }
    }

    #[test]
    fn reads_what_a_group_says() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("service");
        std::fs::create_dir(&group).unwrap();
        std::fs::write(dir.path().join("memory.max"), "1000\n").unwrap();
        std::fs::write(group.join("memory.max"), "max\n").unwrap();
        std::fs::write(dir.path().join("memory.current"), "900\n").unwrap();
        std::fs::write(dir.path().join("memory.stat"), "anon 5\ninactive_file 200\n").unwrap();
        let gauge = Gauge::of_group(&group).unwrap();
        assert_eq!((gauge.most, gauge.used()), (1000, Some(700)));
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
        assert!(Gauge::new(Some(0)).is_none());
    }
}
