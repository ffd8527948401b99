//! The accounts of a gateway as a table for people: `poolgate status`, and the demo's live picture.
//!
//! Bars show what *remains*, since that is what one looks for. The table never exceeds its width:
//! of several layouts, from rich to poor, the first that fits is taken. Names and texts come from
//! outside, so whatever could move the cursor or turn the line around is shown escaped.

mod cell;
mod column;
mod figures;
mod layout;
mod span;
pub mod terminal;
mod text;
mod windows;

#[cfg(test)]
mod tests;

use crate::admin::Status;
use crate::pool::AccountView;

use cell::{Cell, Paint};
use layout::Layout;
pub use span::span;
pub use text::{clean, cut};

/// How to draw, which depends on where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns that may be used.
    pub width: usize,
    pub color: bool,
}

/// Columns where nobody says how many there are, as in a pipe.
const WIDTH_UNKNOWN: usize = 100;

impl Style {
    /// What suits standard output.
    pub fn detect(is_terminal: bool) -> Self {
        let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.trim().parse().ok());
        let known = || is_terminal.then(terminal::size).flatten().map(|size| size.columns);
        let width = named.filter(|columns| *columns > 0).or_else(known).unwrap_or(WIDTH_UNKNOWN);
        // https://no-color.org: set and not empty, whatever the value.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { width, color: is_terminal && !refused && !dumb }
    }
}

/// The whole picture, each line ended.
pub fn render(status: &Status, style: Style) -> String {
    let mut lines = vec![header(status)];
    let accounts = &status.pool.accounts;
    if accounts.is_empty() {
        lines.push(Cell::of(
            "no accounts yet: poolgate account login --help, or add --help",
            Paint::Plain,
        ));
    } else {
        lines.push(Cell::default());
        lines.extend(Layout::fitting(status, style.width).lines(status));
    }
    lines.extend(accounts.iter().filter_map(problem));
    let lines = lines.into_iter().map(|line| line.cut(style.width));
    let mut picture = String::new();
    // Of the file's mistakes all is shown: what is cut off may be the one to mend.
    for line in lines.chain(configuration(status)) {
        line.write(style.color, &mut picture);
        picture.truncate(picture.trim_end_matches(' ').len());
        picture.push('\n');
    }
    picture
}

fn header(status: &Status) -> Cell {
    let accounts = &status.pool.accounts;
    let ready = accounts.iter().filter(|account| account.state == "ready").count();
    let mut line = Cell::of(&format!("poolgate {}", clean(&status.version)), Paint::Bold);
    line.push(&format!("  {ready} of {} accounts ready", accounts.len()), Paint::Plain);
    line.push(&format!("  {} running", status.in_flight), Paint::Plain);
    let waiting = match status.spool_waiting_bytes {
        0 => "  records all stored".to_owned(),
        bytes => format!("  {} of records waiting", size(bytes)),
    };
    line.push(&waiting, Paint::Plain);
    line
}

/// What the operator wrote and the gateway does not do.
fn configuration(status: &Status) -> Vec<Cell> {
    let told = &status.configuration;
    let wrong = told.error.as_deref().map(|error| {
        Cell::of(&format!("! the configuration is not in force: {}", clean(error)), Paint::Bad)
    });
    let waiting = (!told.needs_restart.is_empty()).then(|| {
        let names = told.needs_restart.join(", ");
        Cell::of(&format!("  changed, and waiting for a restart: {}", clean(&names)), Paint::Plain)
    });
    wrong.into_iter().chain(waiting).collect()
}

fn problem(account: &AccountView) -> Option<Cell> {
    let problem = account.problem.as_deref()?;
    let text = format!("! {}: {}", clean(&account.name), clean(problem));
    Some(Cell::of(&text, Paint::Bad))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
