//! How long until something, in at most two units.

use std::time::Duration;

/// Two units joined by `between`: `48s`, `1m 20s`, `12m`, `2h 10m`, `6d 23h`. Rounded up to the
/// next second, so that `0s` means now.
pub fn span(span: Duration, between: &str) -> String {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, 1..10) => format!("{minutes}m{between}{:02}s", seconds % 60),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{between}{:02}m", minutes % 60),
        _ => format!("{days}d{between}{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let cases = [
            (0, "0s"),
            (59_001, "1m 00s"),
            (48_000, "48s"),
            (80_000, "1m 20s"),
            (720_000, "12m"),
            (7_800_000, "2h 10m"),
            (603_000_000, "6d 23h"),
        ];
        for (millis, want) in cases {
            assert_eq!(span(Duration::from_millis(millis), " "), want);
        }
    }
}
