//! How large the terminal is.

use std::fs::File;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

/// Of the controlling terminal. `None`: there is none, or it does not know.
///
/// Asking takes a system call that safe Rust has no name for; `stty`, which every Unix has, makes it
/// for us. Blocks for about a millisecond.
pub fn size() -> Option<Size> {
    let terminal = File::open("/dev/tty").ok()?;
    let stty =
        Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output().ok()?;
    parse(&String::from_utf8_lossy(&stty.stdout))
}

/// `rows columns`; zeros where unknown.
fn parse(text: &str) -> Option<Size> {
    let (rows, columns) = text.trim().split_once(' ')?;
    let size = Size { columns: columns.parse().ok()?, rows: rows.parse().ok()? };
    (size.columns > 0 && size.rows > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_stty_says() {
        assert_eq!(parse("24 80\n"), Some(Size { columns: 80, rows: 24 }));
        for text in ["0 0\n", "", "stty: no", "24"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
