//! What a browser brings back: a code and the state, however a person hands it over.
//!
//! The state is always compared: a bare code is not taken, though a vendor's client may. Whoever
//! sends a person a code of their own would otherwise have their account added.

use super::query::pairs;
use super::vendor::Redirect;
use crate::secret::Secret;

/// Longer than any callback, and than a terminal's line.
const LONGEST: usize = 8 << 10;
/// A vendor's word for an error is shown if it is no longer, and looks like one.
const LONGEST_WORD: usize = 64;

/// A code, and the redirect that it was given for.
#[derive(Debug)]
pub struct Return {
    pub(super) code: Secret,
    pub(super) redirect: Redirect,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    #[error("that is no callback: paste the whole address of the page, or the whole code it shows")]
    NotACallback,
    #[error("that is only a part: paste the whole code, with the # and what follows it")]
    OnlyACode,
    #[error("that belongs to another sign-in: open the address above again")]
    WrongState,
    #[error("the sign-in was declined")]
    Declined,
    #[error("the sign-in was refused ({0})")]
    Refused(String),
}

impl CallbackError {
    /// It is the vendor's answer to this very sign-in, and the last one.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Declined | Self::Refused(_))
    }
}

/// `remote` is the redirect of a code that comes without an address.
pub fn pasted(text: &str, state: &str, remote: Redirect) -> Result<Return, CallbackError> {
    // A terminal may have broken a long address into lines.
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if text.is_empty() || text.len() > LONGEST {
        return Err(CallbackError::NotACallback);
    }
    if let Some((address, rest)) = text.split_once('?') {
        let rest = rest.split('#').next().unwrap_or_default();
        return query(rest, state, redirect_of(address, remote));
    }
    if text.contains("code=") || text.contains("error=") {
        return query(&text, state, remote);
    }
    match text.split_once('#') {
        _ if text.contains(['/', '&', '=']) => Err(CallbackError::NotACallback),
        Some((code, found)) if !code.is_empty() => checked(code, found, state, remote),
        Some(_) => Err(CallbackError::NotACallback),
        None => Err(CallbackError::OnlyACode),
    }
}

/// A code that went to this machine was given for that.
fn redirect_of(address: &str, remote: Redirect) -> Redirect {
    let rest = address.strip_prefix("http://").unwrap_or(address);
    let local = ["localhost:", "127.0.0.1:"].iter().find_map(|host| rest.strip_prefix(host));
    let port = local.and_then(|rest| rest.split('/').next()?.parse().ok());
    port.map_or(remote, Redirect::Loopback)
}

/// The query of a callback.
pub fn query(query: &str, state: &str, redirect: Redirect) -> Result<Return, CallbackError> {
    let pairs = pairs(query).ok_or(CallbackError::NotACallback)?;
    let get = |name: &str| {
        let mut found = pairs.iter().filter(|(key, _)| key == name).map(|(_, v)| v.as_str());
        // One that is given twice may mean either.
        found.next().filter(|value| !value.is_empty() && found.next().is_none())
    };
    // The address that was to be opened has a state too, and Claude's a "code".
    if pairs.iter().any(|(key, _)| key == "code_challenge") {
        return Err(CallbackError::NotACallback);
    }
    let found = get("state").unwrap_or_default();
    if let Some(error) = get("error") {
        return Err(if found != state {
            CallbackError::WrongState
        } else if error == "access_denied" {
            CallbackError::Declined
        } else {
            CallbackError::Refused(word(error))
        });
    }
    checked(get("code").ok_or(CallbackError::NotACallback)?, found, state, redirect)
}

fn checked(
    code: &str,
    found: &str,
    state: &str,
    redirect: Redirect,
) -> Result<Return, CallbackError> {
    if found != state {
        return Err(CallbackError::WrongState);
    }
    Ok(Return { code: Secret::new(code), redirect })
}

/// A vendor's word, if it is one; anything longer may hold anything.
pub fn word(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if text.is_empty() || text.len() > LONGEST_WORD || !text.chars().all(is_word) {
        return "no reason given".into();
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn reads_what_people_paste() {
        use CallbackError::{Declined, NotACallback, OnlyACode, Refused, WrongState};
        let page = Redirect::Page;
        let at = Redirect::Loopback;
        let cases = [
            ("the whole address",      "http://localhost:1455/auth/callback?code=c%2Fd&state=s",    Ok(("c/d", at(1455)))),
            ("more parameters",        "http://localhost:1455/auth/callback?scope=a+b&code=c&state=s", Ok(("c", at(1455)))),
            ("blanks around it",       "  http://127.0.0.1:9/callback?code=c&state=s \n",           Ok(("c", at(9)))),
            ("broken into lines",      "http://localhost:1455/auth/call\nback?code=c&st\n ate=s",   Ok(("c", at(1455)))),
            ("a fragment behind",      "http://localhost:1455/auth/callback?code=c&state=s#_=_",    Ok(("c", at(1455)))),
            ("the page's address",     "https://platform.claude.com/oauth/code/callback?code=c&state=s", Ok(("c", page))),
            ("only the query",         "code=c&state=s",                                            Ok(("c", page))),
            ("the code of the page",   "c_d-e#s",                                                   Ok(("c_d-e", page))),
            ("the code alone",         "c_d-e",                                                     Err(OnlyACode)),
            ("nothing behind the #",   "c#",                                                        Err(WrongState)),
            ("nothing before it",      "#s",                                                        Err(NotACallback)),
            ("another state",          "c#t",                                                       Err(WrongState)),
            ("another state in it",    "http://localhost:1455/auth/callback?code=c&state=t",        Err(WrongState)),
            ("no state",               "http://localhost:1455/auth/callback?code=c",                Err(WrongState)),
            ("two states",             "http://localhost:1455/auth/callback?code=c&state=t&state=s", Err(WrongState)),
            ("two codes",              "http://localhost:1455/auth/callback?code=c&code=d&state=s", Err(NotACallback)),
            ("no code",                "http://localhost:1455/auth/callback?state=s",               Err(NotACallback)),
            ("an empty code",          "http://localhost:1455/auth/callback?code=&state=s",         Err(NotACallback)),
            ("declined",               "http://localhost:1455/auth/callback?error=access_denied&state=s", Err(Declined)),
            ("refused",                "http://localhost:1455/auth/callback?error=server_error&state=s", Err(Refused("server_error".into()))),
            ("refused at length",      "http://localhost:1455/auth/callback?error=%3Cb%3E&state=s", Err(Refused("no reason given".into()))),
            ("somebody else's refusal", "http://localhost:1455/auth/callback?error=access_denied&state=t", Err(WrongState)),
            ("a refusal of nothing",   "http://localhost:1455/auth/callback?error=access_denied",   Err(WrongState)),
            ("the address above",      "https://claude.com/cai/oauth/authorize?code=true&code_challenge=x&state=s", Err(NotACallback)),
            ("another page",           "https://example.com/",                                      Err(NotACallback)),
            ("nothing",                "   ",                                                       Err(NotACallback)),
            ("broken encoding",        "http://localhost:1455/auth/callback?code=%&state=s",        Err(NotACallback)),
        ];
        for (name, text, want) in cases {
            let got = pasted(text, "s", Redirect::Page);
            let got = got.as_ref().map(|back| (back.code.expose(), back.redirect)).map_err(Clone::clone);
            assert_eq!(got, want, "{name}");
        }
        let long = format!("http://localhost:1455/auth/callback?code={}&state=s", "c".repeat(LONGEST));
        assert_eq!(pasted(&long, "s", page).unwrap_err(), NotACallback);
    }

    #[test]
    fn errors_quote_nothing() {
        for text in ["secret#other", "http://localhost:1/x?code=secret&state=other", "secret"] {
            let error = pasted(text, "s", Redirect::Page).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{text}");
        }
    }
}
