//! Connections that could not be made, and whether that will last.
//!
//! Refused, no route, no such name, a certificate that is not accepted: none of them mends within
//! seconds. Time-outs, resets and a resolver that is away may. Whose fault it is, the address's or
//! our own network's, is for `poolgate_core::network`.

use std::error::Error;
use std::io;

#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {}{cause}", by.as_ref().map(|by| format!("proxy {by}: ")).unwrap_or_default())]
pub struct Unreachable {
    pub cause: String,
    pub durable: bool,
    /// The proxy that could not be used, for operators; `None`: it was no proxy's fault.
    pub by: Option<String>,
}

impl Unreachable {
    pub fn new(cause: impl Into<String>, durable: bool) -> Self {
        Self { cause: cause.into(), durable, by: None }
    }

    #[must_use]
    pub fn through(self, by: Option<String>) -> Self {
        Self { by, ..self }
    }

    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut durable = false;
        let mut innermost = error;
        loop {
            durable |= lasts(innermost);
            match innermost.source() {
                Some(source) => innermost = source,
                None => break,
            }
        }
        // The innermost cause says most: "connection refused" rather than "client error (Connect)".
        Self::new(innermost.to_string(), durable)
    }
}

fn lasts(error: &(dyn Error + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<io::Error>() else {
        return is_bad_certificate(error);
    };
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => true,
        // What an io::Error wraps is not among its sources, only that one's sources are.
        _ => error.get_ref().is_some_and(|inner| is_bad_certificate(inner)) || is_no_name(error),
    }
}

fn is_bad_certificate(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
}

/// The standard library gives the resolver's verdict as text only. These are the verdicts of glibc
/// and musl on a name that does not exist; "Temporary failure" and "Try again" are others.
fn is_no_name(error: &io::Error) -> bool {
    let verdicts = [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
    ];
    let text = error.to_string();
    verdicts.iter().any(|verdict| text.ends_with(verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As hyper wraps what happened.
    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Outer(#[source] io::Error);

    #[test]
    fn tells_what_will_last() {
        let kind = |kind| io::Error::new(kind, "text");
        let text = |text: &str| io::Error::other(text.to_owned());
        let certificate = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let cases = [
            ("refused", kind(io::ErrorKind::ConnectionRefused), true),
            ("no route", kind(io::ErrorKind::HostUnreachable), true),
            ("in vain", kind(io::ErrorKind::TimedOut), false),
            ("reset", kind(io::ErrorKind::ConnectionReset), false),
            ("a certificate", io::Error::new(io::ErrorKind::InvalidData, certificate), true),
            (
                "no TLS at all",
                io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError),
                false,
            ),
            (
                "no such name",
                text("failed to lookup address information: Name or service not known"),
                true,
            ),
            (
                "no resolver",
                text("failed to lookup address information: Temporary failure in name resolution"),
                false,
            ),
        ];
        for (name, error, durable) in cases {
            let cause = error.to_string();
            let got = Unreachable::of(&Outer(error));
            assert_eq!((got.durable, got.cause), (durable, cause), "{name}");
        }
    }
}
