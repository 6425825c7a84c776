//! Bearer keys: who may use the gateway, and who the admin listener.
//!
//! Comparisons take the same time whatever is equal (the `subtle` crate), and go over all keys: what an answer takes says
//! nothing about any of them but its length.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use subtle::{Choice, ConstantTimeEq};

/// Most keys of one file: all are compared for each request, at some 20 ns each.
pub const KEYS_MAX: usize = 1_000;
/// Shortest key: of random letters and digits this is 95 bits.
pub const KEY_MIN_BYTES: usize = 16;
/// Longest key: longer ones are mistaken files.
pub const KEY_MAX_BYTES: usize = 512;

/// Anthropic's clients send their key in this header, without `Bearer`.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// One secret. It is never shown.
#[derive(Clone, PartialEq, Eq)]
struct Key(Box<[u8]>);

impl Key {
    fn is(&self, given: &[u8]) -> Choice {
        self.0.ct_eq(given)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// The keys of a file, each with a name for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Vec<(Arc<str>, Key)>);

impl Keys {
    /// Reads a file: one key a line, or `name:key`; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// All that is wrong with it, by line; no key is shown.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
        let (mut keys, mut faults) = (Vec::<(Arc<str>, Key)>::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = match line.split_once(':') {
                Some((name, key)) => (name.trim().to_owned(), key.trim()),
                None => (format!("line-{number}"), line),
            };
            match fault_of(&name, key, &keys) {
                Some(why) => faults.push(format!("line {number}: {why}")),
                None => keys.push((name.into(), Key(key.as_bytes().into()))),
            }
        }
        if keys.is_empty() && faults.is_empty() {
            faults.push("holds no key, so nobody could use the gateway".to_owned());
        }
        if keys.len() > KEYS_MAX {
            faults.push(format!("holds {} keys, at most {KEYS_MAX} are possible", keys.len()));
        }
        if faults.is_empty() { Ok(Self(keys)) } else { Err(faults.join("; ")) }
    }

    /// One key without a file.
    pub fn one(name: &str, key: &str) -> Self {
        Self(vec![(name.into(), Key(key.as_bytes().into()))])
    }

    /// The name of the key that a request shows, as `authorization: Bearer KEY` or `x-api-key: KEY`.
    ///
    /// # Errors
    /// See [`NoKey`].
    pub fn named(&self, headers: &HeaderMap) -> Result<Arc<str>, NoKey> {
        let given = given(headers).ok_or(NoKey::Missing)?;
        let mut found = None;
        for (name, key) in &self.0 {
            // All of them, also after the right one.
            if bool::from(key.is(given)) {
                found = Some(name);
            }
        }
        found.cloned().ok_or(NoKey::Unknown)
    }
}

fn fault_of(name: &str, key: &str, keys: &[(Arc<str>, Key)]) -> Option<String> {
    let len = key.len();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(
            "the name before `:` must be up to 64 printable ASCII characters without blanks".to_owned(),
        );
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("a key is printable ASCII without blanks".to_owned());
    }
    if !(KEY_MIN_BYTES..=KEY_MAX_BYTES).contains(&len) {
        return Some(format!("the key has {len} characters, must have {KEY_MIN_BYTES} to {KEY_MAX_BYTES}"));
    }
    if keys.iter().any(|(other, _)| **other == *name) {
        return Some(format!("the name {name:?} is taken"));
    }
    keys.iter()
        .any(|(_, other)| *other.0 == *key.as_bytes())
        .then(|| "the key is in the file already".to_owned())
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// It shows none.
    #[error("a key is needed: `authorization: Bearer KEY`")]
    Missing,
    /// It shows one that is not known.
    #[error("the key is not known")]
    Unknown,
}

/// The key that a request shows. Of several headers the first counts, and it alone.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.as_bytes();
        let (scheme, key) = value.split_at_checked(7)?;
        // The scheme is case-insensitive (RFC 9110, section 11.1).
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get(&X_API_KEY).map(|value| value.as_bytes().trim_ascii())
}

/// Takes the key out of a request's head, so that no engine sees it.
pub fn remove(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(&X_API_KEY);
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbb";

    fn shown(name: &str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        headers
    }

    #[test]
    fn keys_are_found_by_either_header_and_have_names() {
        let keys = Keys::parse(format!("# people\n\n ann:{A} \n{B}\r\n").as_bytes()).unwrap();
        let named = |name: &str, value: &str| keys.named(&shown(name, value)).map(|name| name.to_string());
        assert_eq!(named("authorization", &format!("Bearer {A}")).unwrap(), "ann");
        assert_eq!(named("authorization", &format!("bEARER  {B}")).unwrap(), "line-4");
        assert_eq!(named("x-api-key", B).unwrap(), "line-4");
        for wrong in ["Bearer", "Bearer ", "Bearer aaaaaaaaaaaaaaa", "Bearer aaaaaaaaaaaaaaaab", "Basic x"] {
            assert!(named("authorization", wrong).is_err(), "{wrong}");
        }
        assert_eq!(keys.named(&HeaderMap::new()), Err(NoKey::Missing));
        assert_eq!(named("x-api-key", "zzzzzzzzzzzzzzzz"), Err(NoKey::Unknown));
        // What is said in `authorization` is not mended by another header.
        let mut both = shown("authorization", "Bearer zzzzzzzzzzzzzzzz");
        both.insert(X_API_KEY, A.parse().unwrap());
        assert_eq!(keys.named(&both), Err(NoKey::Unknown));
    }

    #[test]
    fn every_fault_of_a_file_is_told_by_line_and_no_key_is_shown() {
        let text = format!("ann:{A}\nshort\nann:{B}\nbob:{A}\na b:{B}\nc:{B} {B}\n");
        let said = Keys::parse(text.as_bytes()).unwrap_err();
        for line in 2..=6 {
            assert!(said.contains(&format!("line {line}: ")), "{said}");
        }
        assert!(!said.contains(A) && !said.contains(B), "{said}");
        assert!(Keys::parse(b"# nothing\n").unwrap_err().contains("no key"));
        assert!(Keys::parse(b"\xff").is_err());
        assert!(!format!("{:?}", Keys::one("ann", A)).contains(A));
    }
}
