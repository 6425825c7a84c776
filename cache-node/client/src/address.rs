//! Where a node listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

/// Where a node's control API listens: `http://HOST:PORT`, or `unix:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Host and port.
    Tcp(String),
    Unix(PathBuf),
}

/// A text that is no address of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a cache node: write \"http://HOST:PORT\" or \"unix:/PATH\"")]
pub struct BadAddress(String);

impl Address {
    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }

    /// The URI of a path. A unix socket has no authority; its requests say `localhost`.
    pub(crate) fn uri(&self, path: &str) -> Uri {
        let authority = match &self.0 {
            Kind::Tcp(authority) => authority,
            Kind::Unix(_) => "localhost",
        };
        let uri = Uri::builder().scheme("http").authority(authority.as_bytes()).path_and_query(path).build();
        uri.expect("the authority was checked when the address was read, and paths are this crate's own")
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self(Kind::Unix(path.into()))) } else { Err(bad()) };
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|authority| authority.port_u16().is_some()).ok_or_else(bad)?;
        let plain = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        if plain { Ok(Self(Kind::Tcp(authority.to_string()))) } else { Err(bad()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp(authority) => write!(f, "http://{authority}"),
            Kind::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests;
