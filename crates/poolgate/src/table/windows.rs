//! The column of one quota window: a bar of what remains, and when it resets.

use std::collections::BTreeSet;

use super::cell::{Cell, Paint};
use super::column::Column;
use super::figures::{remaining, reset};
use super::text::{clean, cut, width};
use crate::admin::Status;
use crate::pool::{AccountView, WindowView};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `in 2h 10m`
    Words,
    /// `2h10m`
    Short,
}

#[derive(Debug)]
pub struct WindowColumn {
    pub name: String,
    /// Cells of the bar.
    pub bar: usize,
    /// `None`: not shown.
    pub resets: Option<Spelling>,
}

impl WindowColumn {
    pub fn column(&self, status: &Status) -> Column {
        let accounts = &status.pool.accounts;
        let windows = accounts.iter().filter_map(|account| self.find(account));
        let longest = windows.map(|window| self.reset(window, status.now).len()).max().unwrap_or(0);
        let reset_width = match self.resets {
            Some(Spelling::Words) => longest.max(9),
            Some(Spelling::Short) => longest.max(5),
            None => 0,
        };
        let left = format!("{} left", cut(&clean(&self.name), 8));
        // The title needs its room anyway.
        let bar = if self.resets.is_none() { self.bar.max(6) } else { self.bar };
        let least = bar + " 100%".len() + if reset_width > 0 { 1 + reset_width } else { 0 };
        let title = if self.resets.is_none() {
            left
        } else {
            let room = least.saturating_sub(width(&left));
            format!("{left}{:>room$}", " resets")
        };
        let cell = |account: &AccountView| match self.find(account) {
            Some(window) => {
                let mut cell = remaining(window, bar);
                if reset_width > 0 {
                    let reset = self.reset(window, status.now);
                    cell.push(&format!(" {reset:>reset_width$}"), Paint::Faint);
                }
                cell
            }
            // Only sign-ins have windows, and theirs are known after the first answer: not all have all.
            None if account.windows.is_empty()
                && matches!(account.kind.as_str(), "codex" | "claude") =>
            {
                Cell::of("no data yet", Paint::Faint)
            }
            None => Cell::of("–", Paint::Faint),
        };
        let cells = accounts.iter().map(cell).collect();
        Column { title: [String::new(), title], cells, least, is_number: false }
    }

    fn find<'a>(&self, account: &'a AccountView) -> Option<&'a WindowView> {
        account.windows.iter().find(|window| window.name == self.name)
    }

    fn reset(&self, window: &WindowView, now: i64) -> String {
        self.resets
            .map_or_else(String::new, |spelling| reset(window, now, spelling == Spelling::Words))
    }
}

/// All windows that any account has, the shortest first.
pub fn names(accounts: &[AccountView]) -> Vec<String> {
    let hours = |name: &str| match name.strip_suffix('h').map(str::parse::<u64>) {
        Some(Ok(hours)) => hours,
        _ => 168,
    };
    let windows = accounts.iter().flat_map(|account| &account.windows);
    let names: BTreeSet<_> = windows.map(|window| (hours(&window.name), &window.name)).collect();
    if names.is_empty() {
        // Nobody has answered yet; the columns come, so they may as well be there.
        return vec!["5h".into(), "weekly".into()];
    }
    names.into_iter().map(|(_, name)| name.clone()).collect()
}
