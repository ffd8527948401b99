//! Which columns there are, and how wide: chosen so that the table fits.

use super::cell::{Cell, Paint};
use super::column::Column;
use super::figures::{heard, state};
use super::text::{clean, cut};
use super::windows::{Spelling, WindowColumn, names};
use crate::admin::Status;
use crate::pool::AccountView;

/// What is shown. Each field can only take columns away from the one before in [`LAYOUTS`].
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Longest name shown whole.
    name: usize,
    kind: bool,
    state: State,
    /// Cells of a bar.
    bar: usize,
    resets: Resets,
    /// Windows shown, the shortest first.
    windows: usize,
    /// Whole words as titles of the counters, rather than hyphenated ones.
    words: bool,
    counts: Counts,
}

/// What stands beside the windows; each with what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Counts {
    Running,
    /// Served and failovers.
    Work,
    /// How long ago its upstream last answered.
    Heard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// With the time at which it ends, and how long until then.
    Timed,
    /// With how long until it ends.
    Brief,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resets {
    /// Of every window, like `in 2h 10m`.
    Spelled,
    /// Of every window, like `2h10m`.
    All,
    /// Of the first window only, which is the one that matters today.
    First,
    None,
}

const RICH: Layout = Layout {
    name: 32,
    kind: true,
    state: State::Timed,
    bar: 10,
    resets: Resets::Spelled,
    windows: 9,
    words: true,
    counts: Counts::Heard,
};
const UNHEARD: Layout = Layout { counts: Counts::Work, ..RICH };
const TERSE: Layout = Layout { state: State::Brief, resets: Resets::All, ..UNHEARD };
const NARROW: Layout = Layout { windows: 2, bar: 6, resets: Resets::First, words: false, ..TERSE };
const SMALL: Layout = Layout { kind: false, bar: 5, ..NARROW };

/// From rich to poor.
#[rustfmt::skip]
const LAYOUTS: [Layout; 14] = [
    RICH,
    Layout { state: State::Brief, ..RICH },
    UNHEARD,
    Layout { state: State::Brief, ..UNHEARD },
    TERSE,
    Layout { name: 20, windows: 2, ..TERSE },
    Layout { name: 20, windows: 2, resets: Resets::First, ..TERSE },
    Layout { name: 20, ..NARROW },
    Layout { name: 20, ..SMALL },
    Layout { name: 12, ..SMALL },
    Layout { name: 12, resets: Resets::None, ..SMALL },
    Layout { name: 12, resets: Resets::None, windows: 1, ..SMALL },
    Layout { name: 12, resets: Resets::None, windows: 1, counts: Counts::Running, ..SMALL },
    Layout { name: 12, resets: Resets::None, windows: 0, counts: Counts::Running, ..SMALL },
];

const GAP: &str = "  ";

impl Layout {
    /// The richest that fits into `width`, or the poorest.
    pub fn fitting(status: &Status, width: usize) -> Self {
        let fits = |layout: &&Self| {
            let columns = layout.columns(status);
            let gaps = GAP.len() * (columns.len() - 1);
            columns.iter().map(Column::width).sum::<usize>() + gaps <= width
        };
        *LAYOUTS.iter().find(fits).unwrap_or(&LAYOUTS[LAYOUTS.len() - 1])
    }

    pub fn lines(&self, status: &Status) -> Vec<Cell> {
        let columns = self.columns(status);
        let line = |cell: &dyn Fn(&Column) -> Cell| {
            let mut line = Cell::default();
            for (i, column) in columns.iter().enumerate() {
                line.push(if i == 0 { "" } else { GAP }, Paint::Plain);
                line.append(cell(column).pad(column.width(), column.is_number));
            }
            line
        };
        let upper_is_used = columns.iter().any(|column| !column.title[0].is_empty());
        let titles = if upper_is_used { 0..2 } else { 1..2 };
        let titles = titles.map(|i| line(&|column| Cell::of(&column.title[i], Paint::Faint)));
        let rows = 0..status.pool.accounts.len();
        titles.chain(rows.map(|row| line(&|column| column.cells[row].clone()))).collect()
    }

    fn columns(&self, status: &Status) -> Vec<Column> {
        let accounts = &status.pool.accounts;
        let column = |title: [&str; 2], least, cell: &dyn Fn(&AccountView) -> Cell| Column {
            title: title.map(str::to_owned),
            cells: accounts.iter().map(cell).collect(),
            least,
            is_number: false,
        };
        let name = |a: &AccountView| Cell::of(&cut(&clean(&a.name), self.name), Paint::Plain);
        let kind = |a: &AccountView| Cell::of(&cut(&clean(&a.kind), 12), Paint::Plain);
        let mut columns = vec![column(["", "account"], 0, &name)];
        if self.kind {
            columns.push(column(["", "kind"], 0, &kind));
        }
        let is_timed = self.state == State::Timed;
        let least = if is_timed { 35 } else { 13 };
        let state = |a: &AccountView| state(a, status.now, is_timed);
        columns.push(column(["", "state"], least, &state));
        let windows = names(accounts).into_iter().take(self.windows);
        for (i, name) in windows.enumerate() {
            let resets = match self.resets {
                Resets::Spelled => Some(Spelling::Words),
                Resets::First if i > 0 => None,
                Resets::All | Resets::First => Some(Spelling::Short),
                Resets::None => None,
            };
            let bar = self.bar;
            columns.push(WindowColumn { name, bar, resets }.column(status));
        }
        if self.counts == Counts::Heard {
            let heard = |a: &AccountView| Cell::of(&heard(a, status.now), Paint::Plain);
            columns.push(Column { is_number: true, ..column(["", "heard"], 10, &heard) });
        }
        let number = |title, least, cell: &dyn Fn(&AccountView) -> u64| Column {
            is_number: true,
            ..column(title, least, &|a| Cell::of(&cell(a).to_string(), Paint::Plain))
        };
        let running = |a: &AccountView| u64::from(a.in_flight);
        let [run, failed] = if self.words {
            [["", "running"], ["", "failovers"]]
        } else {
            [["run-", "ning"], ["fail-", "overs"]]
        };
        columns.push(number(run, 0, &running));
        if self.counts >= Counts::Work {
            columns.push(number(["", "served"], 0, &|a| a.served));
            columns.push(number(failed, 0, &|a| a.failovers));
        }
        columns
    }
}
