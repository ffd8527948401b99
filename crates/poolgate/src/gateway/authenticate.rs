//! Who is calling. Both header forms become one key before anything is decided on it.

use std::sync::Arc;

use http::{HeaderMap, header};
use poolgate_core::units::Timestamp;

use super::headers::name;
use crate::error::Error;
use crate::keys::{ClientKey, Keys};

/// A caller who showed a valid key.
#[derive(Clone, Debug)]
pub struct Caller {
    pub key: Arc<ClientKey>,
}

pub fn authenticate(keys: &Keys, headers: &HeaderMap, now: Timestamp) -> Result<Caller, Error> {
    let presented = presented(headers)?;
    let key = keys.find(presented, now).ok_or(Error::Unauthorized)?;
    Ok(Caller { key })
}

/// The key as bearer token or `x-api-key`; clients do not agree on which.
pub fn presented(headers: &HeaderMap) -> Result<&str, Error> {
    let mut keys = Vec::with_capacity(2);
    for value in headers.get_all(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| Error::Unauthorized)?;
        let (scheme, token) = value.split_once(' ').ok_or(Error::Unauthorized)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Error::Unauthorized);
        }
        keys.push(token.trim());
    }
    for value in headers.get_all(&name::API_KEY) {
        keys.push(value.to_str().map_err(|_| Error::Unauthorized)?.trim());
    }
    match keys.as_slice() {
        [first, rest @ ..] if rest.iter().any(|other| other != first) => {
            Err(Error::ConflictingKeys)
        }
        [] | ["", ..] => Err(Error::Unauthorized),
        [first, ..] => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn reads_one_key() {
        let cases: [(&str, &[(&str, &str)], Result<&str, &str>); 9] = [
            ("bearer",        &[("authorization", "Bearer k")],                       Ok("k")),
            ("any case",      &[("authorization", "bearer  k")],                      Ok("k")),
            ("x-api-key",     &[("x-api-key", "k")],                                  Ok("k")),
            ("the same twice", &[("authorization", "Bearer k"), ("x-api-key", "k")],  Ok("k")),
            ("two",           &[("authorization", "Bearer k"), ("x-api-key", "l")],   Err("conflicting_credentials")),
            ("two of one",    &[("x-api-key", "k"), ("x-api-key", "l")],              Err("conflicting_credentials")),
            ("none",          &[],                                                    Err("invalid_api_key")),
            ("basic",         &[("authorization", "Basic k")],                        Err("invalid_api_key")),
            ("empty",         &[("authorization", "Bearer ")],                        Err("invalid_api_key")),
        ];
        for (name, headers, want) in cases {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap());
            }
            assert_eq!(presented(&map).map_err(|e| e.parts().1), want, "{name}");
        }
    }
}
