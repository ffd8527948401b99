//! What is cut out of an upstream's errors before a client sees them: whose account it is.

use bytes::Bytes;

use crate::pool::Account;

const REMOVED: &str = "[removed]";

/// Cuts the account's own identifiers out of what a client may see.
pub fn scrub(body: &Bytes, account: &Account) -> Bytes {
    let (names, secrets) = (account.credential.names(), account.credential.identifiers());
    let found = |secret: &str| memchr::memmem::find(body, secret.as_bytes()).is_some();
    let lower = body.to_ascii_lowercase();
    let is_named = |name: &String| {
        memchr::memmem::find(&lower, name.to_ascii_lowercase().as_bytes()).is_some()
    };
    if !secrets.iter().map(String::as_str).chain(OWNERS).chain([MASK]).any(found)
        && !names.iter().any(is_named)
    {
        return body.clone();
    }
    let text = String::from_utf8_lossy(body);
    let all = text.clone().into_owned();
    let clean = names.iter().fold(all, |text, name| without_name(&text, name));
    let clean = secrets.iter().fold(clean, |text, secret| text.replace(secret, REMOVED));
    // Names may begin like words, and nobody quotes them in part.
    let clean = without_masked(&without_owners(&clean), &secrets);
    // As it came, where there was nothing to remove: it may end in the middle of a character.
    if clean == text { body.clone() } else { Bytes::from(clean) }
}

/// In whichever letters: who signs in as `Ann@x.org` is told of as `ann@x.org`.
fn without_name(text: &str, name: &str) -> String {
    let (lower, name) = (text.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, found) in lower.match_indices(&name) {
        out.push_str(&text[from..at]);
        out.push_str(REMOVED);
        from = at + found.len();
    }
    out + &text[from..]
}

/// An upstream that quotes the key it refuses tells its beginning and its end (`OpenAI`: 8 characters and 4),
/// with at least so many of these between.
const MASK: &str = "***";
/// Fewer known characters than these on one side of it are chance: text may hold stars of its own.
const TOLD_MIN: usize = 4;

fn without_masked(text: &str, secrets: &[String]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(at) = text[from..].find(MASK).map(|at| from + at) {
        let stars = text[at..].bytes().take_while(|byte| *byte == b'*').count();
        let (before, behind) = (&text[from..at], &text[at + stars..]);
        let told = secrets.iter().map(|secret| told_of(secret, before, behind));
        // The surest of them, and the longest.
        let (head, tail) =
            told.max_by_key(|&(head, tail)| (head.max(tail), head + tail)).unwrap_or_default();
        from = at + stars;
        if head.max(tail) >= TOLD_MIN {
            out.push_str(&before[..before.len() - head]);
            out.push_str(REMOVED);
            from += tail;
        } else {
            out.push_str(&text[at - before.len()..from]);
        }
    }
    out + &text[from..]
}

/// How many bytes of its beginning end the text before, and of its end begin the one behind.
fn told_of(secret: &str, before: &str, behind: &str) -> (usize, usize) {
    let (secret, before, behind) = (secret.as_bytes(), before.as_bytes(), behind.as_bytes());
    let ends = |n: &usize| {
        secret[n - 1] == before[before.len() - 1]
            && before.ends_with(&secret[..*n])
            && !is_in_escape(&before[..before.len() - n])
    };
    let begins = |n: &usize| {
        let end = &secret[secret.len() - n..];
        end[0] == behind[0] && behind.starts_with(end)
    };
    let head = (1..=secret.len().min(before.len())).rev().find(ends);
    let tail = (1..=secret.len().min(behind.len())).rev().find(begins);
    (head.unwrap_or(0), tail.unwrap_or(0))
}

/// Whether what follows belongs to an escape of JSON.
fn is_in_escape(text: &[u8]) -> bool {
    let digits = text.iter().rev().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
    let is_odd = text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
    is_odd || digits < 4 && text[..text.len() - digits].ends_with(b"\\u")
}

/// How names of organisations and projects begin, which `OpenAI`'s errors tell, and a credential does
/// not hold.
const OWNERS: [&str; 2] = ["org-", "proj_"];
/// They have 24 characters behind that.
const OWNER_MIN: usize = 16;

fn without_owners(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    let find = |start: &str, from: usize| text[from..].find(start).map(|at| from + at);
    // Each is sought again only behind where it was found: a text may be long and full of one.
    let mut found = OWNERS.map(|start| (start, find(start, 0)));
    // Wherever it stands: behind a JSON escape it is no word of its own.
    while let Some((at, start)) =
        found.iter().filter_map(|(start, at)| Some(((*at)?, *start))).min()
    {
        let name = at + start.len();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'*';
        let length = text[name..].bytes().take_while(is_part).count();
        out.push_str(&text[from..at]);
        if length >= OWNER_MIN {
            out.push_str(REMOVED);
            from = name + length;
        } else {
            out.push_str(start);
            from = name;
        }
        for (start, at) in &mut found {
            if at.is_some_and(|at| at < from) {
                *at = find(start, from);
            }
        }
    }
    out + &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec §6: neither an account's secrets nor whose it is reach a client.
    #[test]
    fn names_of_organisations_and_projects_are_cut_out() {
        let (org, project) = ("org-9aXbYcZd0123456789abcdef", "proj_AbCdEfGhIjKlMnOpQrStUvWx");
        let cases = [
            (format!("in organization {org} on tokens"), "in organization [removed] on tokens"),
            (
                format!(r#"{{"org":"{org}","of":"{project}."}}"#),
                r#"{"org":"[removed]","of":"[removed]."}"#,
            ),
            (format!("{org},{org}"), "[removed],[removed]"),
            (format!(r"limit.\n{org}\u00a0{project}"), r"limit.\n[removed]\u00a0[removed]"),
            (format!("org-{project}, org-9aXb****************"), "org-[removed], [removed]"),
            ("an org-chart, a proj_x, \u{e4}org-".into(), "an org-chart, a proj_x, \u{e4}org-"),
        ];
        for (text, clean) in cases {
            assert_eq!(without_owners(&text), clean);
        }
    }

    #[test]
    fn names_are_cut_out_in_whichever_letters() {
        for (text, clean) in [
            ("of Ann.Lee@x.org, ANN.LEE@X.ORG,ann.lee@x.org", "of [removed], [removed],[removed]"),
            ("\u{c4}nn.Lee@x.org, \u{212a}ann.lee@x.org", "\u{c4}nn.Lee@x.org, \u{212a}[removed]"),
            ("nobody@x.org", "nobody@x.org"),
        ] {
            assert_eq!(without_name(text, "Ann.lee@X.org"), clean);
        }
        assert_eq!(without_name("\u{c4}@X, \u{e4}@x", "\u{c4}@x"), "[removed], \u{e4}@x");
    }

    /// As `OpenAI` quotes it (2026-04), and others; text of a client's own has stars too, and stays JSON.
    #[test]
    fn what_a_refusal_quotes_of_a_key_is_cut_out() {
        let long = format!("sk-{}", "a1B2".repeat(40));
        let secrets =
            ["sk-VKMIsAbCdEfGhIjKlwjh3".to_owned(), "e4nv-account-\u{e4}".into(), long.clone()];
        let quoted = format!("{}***{}", &long[..120], &long[150..]);
        for (text, clean) in [
            ("provided: sk-VKMIs*****wjh3. You", "provided: [removed]. You"),
            (r#"{"a":"b\nsk-V***","c":"****wjh3"}"#, r#"{"a":"b\n[removed]","c":"[removed]"}"#),
            ("sk-V***wjh3sk-V***wjh3", "[removed][removed]"),
            (&quoted, "[removed]"),
            ("e4nv***\u{e4}", "[removed]"),
            (r"\\e4nv***, \u00e4nv***", r"\\[removed], \u00e4nv***"),
            (r"in: \n*** Begin Patch, \u00a0***", r"in: \n*** Begin Patch, \u00a0***"),
            (
                "**a**, ***a***, *** or 3*** stay, \u{e4}",
                "**a**, ***a***, *** or 3*** stay, \u{e4}",
            ),
            ("another's sk-AbcdE****1234", "another's sk-AbcdE****1234"),
        ] {
            assert_eq!(without_masked(text, &secrets), clean);
        }
        let two = ["xs1s--------".to_owned(), "s1s------zz".into()];
        assert_eq!(without_masked("xs1s***zz", &two), "[removed]zz");
    }

    /// An upstream may echo what its client sent. Read again for each hit, this takes minutes.
    #[test]
    fn what_is_cleaned_is_read_once() {
        let secrets = ["n".repeat(99)];
        for text in ["an org-chart, xxxxxx, ", "an x, proj_x, xxxxxx, ", "stars*** and n***xxxx "] {
            let text = text.repeat(1 << 17);
            assert!(without_masked(&without_owners(&text), &secrets) == text);
        }
    }
}
