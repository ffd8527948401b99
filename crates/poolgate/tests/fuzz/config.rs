//! Any text as a configuration: it is one, or there is a list of what is wrong; and never is a
//! password repeated.

use poolgate::config::{Config, RawConfig};
use serde::Deserialize;

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let Ok(raw) = RawConfig::deserialize(table) else { return };
    let passwords: Vec<String> = passwords(text);
    let shown = format!("{raw:?}");
    let accounts = raw.account.len();
    match Config::resolve(raw) {
        Ok(config) => {
            assert_eq!(config.accounts.len(), accounts, "an account was left out");
            let names: Vec<&String> = config.accounts.iter().map(|account| &account.name).collect();
            assert!(names.iter().all(|name| !name.is_empty()));
            is_silent(&format!("{config:?}"), &passwords);
        }
        Err(error) => {
            assert!(!error.0.is_empty(), "refused without a reason");
            is_silent(&error.to_string(), &passwords);
        }
    }
    is_silent(&shown, &passwords);
}

/// Of the proxies that are written as one is: `proxy = "scheme://user:password@…"`.
fn passwords(text: &str) -> Vec<String> {
    let proxies = text.lines().filter_map(|line| line.trim().strip_prefix("proxy = \""));
    let logins = proxies.filter_map(|url| url.split_once("://")?.1.split_once('@'));
    let passwords =
        logins.filter_map(|(login, _)| login.split_once(':')).map(|(_, password)| password);
    // One that is also written elsewhere may well be told.
    passwords
        .filter(|password| password.len() > 7 && text.matches(password).count() == 1)
        .map(str::to_owned)
        .collect()
}

fn is_silent(text: &str, passwords: &[String]) {
    for password in passwords {
        assert!(!text.contains(password), "{password:?} in {text}");
    }
}
