//! What is written, before it means anything: the file's text, and what the environment lays over it.

use serde::Deserialize;

use super::RawConfig;

/// The parser's own words quote the line, and a line may hold a proxy's password.
pub(super) fn parse(text: &str) -> anyhow::Result<toml::Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = memchr::memchr_iter(b'\n', &text.as_bytes()[..at]).count() + 1;
        anyhow::anyhow!("line {line}: {}", error.message())
    })
}

/// Lists of the file, which a variable cannot reach into.
const LISTS: [&str; 2] = ["account", "pool"];

/// Each of whose settings may be left out.
const SECTIONS: [&str; 2] = ["limits", "listener"];

/// One that sets something: what, and its own name.
pub(super) type Variable = (String, String);

/// Puts `POOLGATE__A__B=value` at `a.b`. Values are read as TOML, else taken as text. The single
/// underscore names (`POOLGATE_DATA`) are not settings. Returns what is set so, and the mistakes.
pub(super) fn merge_environment(
    table: &mut toml::Table,
    variables: impl Iterator<Item = (String, String)>,
) -> (Vec<Variable>, Vec<String>) {
    let (mut set, mut wrong) = (Vec::new(), Vec::new());
    for (name, value) in variables {
        let Some(path) = name.strip_prefix("POOLGATE__") else {
            continue;
        };
        let mut keys: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let place = keys.join(".");
        let Some(last) = keys.pop() else { continue };
        match section(table, keys) {
            Ok(section) => {
                section.insert(last, read(value));
                set.push((place, name));
            }
            Err(key) => wrong.push(format!("{name}: {key:?} is no section")),
        }
    }
    (set, wrong)
}

/// A mistake in a variable is looked for there, and not in the file.
pub(super) fn blame(variables: &[Variable], mistake: String) -> String {
    let is_about = |place: &str| {
        mistake.strip_prefix(place).is_some_and(|rest| rest.starts_with([':', ' ', '.']))
    };
    match variables.iter().find(|(place, _)| is_about(place)) {
        Some((_, name)) => format!("{name} in the environment: {mistake}"),
        None => mistake,
    }
}

/// The one that `keys` lead to, or the key that leads nowhere.
fn section(mut at: &mut toml::Table, keys: Vec<String>) -> Result<&mut toml::Table, String> {
    for key in keys {
        if LISTS.contains(&key.as_str()) {
            return Err(key);
        }
        let next = at.entry(key.clone()).or_insert_with(|| toml::Table::new().into());
        at = next.as_table_mut().ok_or(key)?;
    }
    Ok(at)
}

fn read(value: String) -> toml::Value {
    let parsed = format!("v = {value}").parse::<toml::Table>().ok();
    parsed.and_then(|mut table| table.remove("v")).unwrap_or(toml::Value::String(value))
}

/// Takes out what no setting reads like, each with its mistake, so that none hides another.
pub(super) fn take_malformed(table: &mut toml::Table) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut fits = |place: String, name: &str, value: toml::Value| {
        let alone = toml::Table::from_iter([(name.to_owned(), value)]);
        let mistake = RawConfig::deserialize(alone).err();
        wrong.extend(mistake.iter().map(|error| format!("{place}: {}", error.message())));
        mistake.is_none()
    };
    table.retain(|name, value| match value {
        toml::Value::Array(list) if LISTS.contains(&name) => {
            list.retain(|item| {
                let place = format!("{name} {}", item.get("name").unwrap_or(&"".into()));
                fits(place, name, vec![item.clone()].into())
            });
            true
        }
        toml::Value::Table(section) if SECTIONS.contains(&name) => {
            section.retain(|key, value| {
                let alone = toml::Table::from_iter([(key.to_owned(), value.clone())]);
                fits(format!("{name}.{key}"), name, alone.into())
            });
            true
        }
        value => fits(name.to_owned(), name, value.clone()),
    });
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_toml_is_named_and_not_quoted() {
        let error =
            parse("a = 1\n\nproxy = \"http://u:hunter2@p:1\nb = 2").unwrap_err().to_string();
        assert!(error.starts_with("line 3: ") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let mut table: toml::Table =
            "listen = '127.0.0.1:1'\n[limits]\nproxy_http = 5".parse().unwrap();
        let variables = [
            ("POOLGATE__LISTEN", "127.0.0.1:2"),
            ("POOLGATE__LIMITS__PROXY_HTTP", "7"),
            ("POOLGATE_DATA", "/elsewhere"),
            ("HOME", "/home"),
        ];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (set, wrong) = merge_environment(&mut table, variables.into_iter());
        assert_eq!((set.len(), wrong.len()), (2, 0));
        assert_eq!(table["listen"].as_str(), Some("127.0.0.1:2"));
        assert_eq!(table["limits"]["proxy_http"].as_integer(), Some(7));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_variable_that_leads_nowhere_is_named_and_hides_no_other() {
        let mut table: toml::Table = "workers = 3\n[[account]]\nname = 'a'".parse().unwrap();
        let variables = [
            ("POOLGATE__ACCOUNT__0__PRIORITY", "7"),
            ("POOLGATE__POOL__0__NAME", "p"),
            ("POOLGATE__WORKERS__MANY", "1"),
            ("POOLGATE__LISTEN", "127.0.0.1:2"),
        ];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (_, wrong) = merge_environment(&mut table, variables.into_iter());
        assert_eq!(
            wrong,
            [
                "POOLGATE__ACCOUNT__0__PRIORITY: \"account\" is no section",
                "POOLGATE__POOL__0__NAME: \"pool\" is no section",
                "POOLGATE__WORKERS__MANY: \"workers\" is no section",
            ]
        );
        assert_eq!(table["listen"].as_str(), Some("127.0.0.1:2"));
    }

    #[test]
    fn what_a_variable_has_wrong_is_said_of_the_variable() {
        let set = [
            ("limits.proxy_http".to_owned(), "POOLGATE__LIMITS__PROXY_HTTP".to_owned()),
            ("listen".to_owned(), "POOLGATE__LISTEN".to_owned()),
        ];
        let named = |mistake: &str| blame(&set, mistake.to_owned());
        for (mistake, name) in [
            ("limits.proxy_http: no number", "POOLGATE__LIMITS__PROXY_HTTP in the environment: "),
            ("listen = \"x\": no address", "POOLGATE__LISTEN in the environment: "),
            ("limits.proxy_http_other: no number", ""),
            ("listener: no table", ""),
        ] {
            assert_eq!(named(mistake), format!("{name}{mistake}"));
        }
    }

    #[test]
    fn what_no_setting_reads_like_is_told_all_at_once() {
        let text = r#"
            lisen = "127.0.0.1:1"
            workers = "many"
            listen = "127.0.0.1:2"
            [limits]
            proxy_htp = 1
            proxy_http = -1
            body_timeout_s = 7
            [tls]
            cert_file = "c"
            [[account]]
            name = "a"
            kind = "codex"
            auth_file = "a.json"
            [[account]]
            name = "b"
            knd = "codex"
            "#;
        let mut table: toml::Table = text.parse().unwrap();
        let wrong = take_malformed(&mut table);
        let places =
            ["lisen", "workers", "limits.proxy_htp", "limits.proxy_http", "tls", "account \"b\""];
        assert_eq!(wrong.len(), places.len(), "{wrong:#?}");
        for place in places {
            let begin = format!("{place}: ");
            assert!(wrong.iter().any(|mistake| mistake.starts_with(&begin)), "{place}: {wrong:#?}");
        }
        let rest = RawConfig::deserialize(table).unwrap();
        assert_eq!(rest.listen.as_deref(), Some("127.0.0.1:2"));
        assert_eq!((rest.limits.body_timeout_s, rest.account.len()), (Some(7), 1));
    }
}
