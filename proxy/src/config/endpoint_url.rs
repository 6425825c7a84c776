//! The address of an endpoint, from a URL that may hold nothing else.
//!
//! Paths, queries and credentials are refused rather than dropped: whoever wrote them expects them to matter.

use std::net::{Ipv4Addr, Ipv6Addr};

#[cfg(test)]
mod tests;

/// The longest host name that DNS can carry (RFC 1035, section 2.3.4).
const MAX_HOST_CHARS: usize = 253;

/// The port of an `http` URL that names none (RFC 9110, section 4.2.1).
const HTTP_PORT: u16 = 80;

/// Where an endpoint listens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Lower-case name or IP address, without brackets.
    pub(super) host: String,
    /// Never 0.
    pub(super) port: u16,
    /// `host:port`, an IPv6 host in brackets.
    pub(super) authority: String,
}

/// Why a URL is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadUrl {
    pub(super) reason: &'static str,
    pub(super) hint: &'static str,
}

const fn bad(reason: &'static str, hint: &'static str) -> BadUrl {
    BadUrl { reason, hint }
}

/// Reads `http://host:port`, with or without the port and one final slash.
pub(super) fn parse(url: &str) -> Result<Address, BadUrl> {
    if url.contains('@') {
        let hint = "remove what stands before the `@`; the client's own credentials are passed on";
        return Err(bad("user and password in a URL are not supported", hint));
    }
    let rest = after_scheme(url)?;
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if !tail.is_empty() && tail != "/" {
        let hint = "end after the port; the client's own path is passed on";
        return Err(bad("a path or query in an endpoint's URL is not supported", hint));
    }
    let (host, port) = split_port(authority)?;
    let host = host_of(host)?;
    let port = match port {
        None => HTTP_PORT,
        Some(digits) => port_of(digits)?,
    };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    Ok(Address { host, port, authority })
}

fn after_scheme(url: &str) -> Result<&str, BadUrl> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(bad("not a URL", "write \"http://host:port\""));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok(rest),
        "https" => Err(bad("TLS to engines is not supported yet", "put http://")),
        "h2c" | "h2" => {
            Err(bad("HTTP/2 to engines is not supported", "engines are spoken to in HTTP/1.1; put http://"))
        }
        _ => Err(bad("not an http URL", "write \"http://host:port\"")),
    }
}

/// The host, brackets included, and the digits after its colon.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), BadUrl> {
    let host_end = match authority.strip_prefix('[') {
        Some(inner) => inner.find(']').map(|end| end + 2).ok_or(BAD_HOST)?,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(host_end);
    match rest.strip_prefix(':') {
        Some(digits) => Ok((host, Some(digits))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(BAD_HOST),
    }
}

const BAD_HOST: BadUrl =
    bad("not a host name or IP address", "write \"http://host:port\", an IPv6 address in brackets");

fn host_of(host: &str) -> Result<String, BadUrl> {
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().map(|address| address.to_string()).map_err(|_| BAD_HOST);
    }
    let label = |label: &str| {
        let fits = !label.is_empty() && label.len() <= 63;
        // The underscore is no part of a host name, but container networks resolve it.
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > MAX_HOST_CHARS || !name.split('.').all(label) {
        return Err(BAD_HOST);
    }
    // All digits and dots is an IPv4 address or a slip; a resolver would wait on the slip.
    let numeric = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(BAD_HOST);
    }
    Ok(host.to_ascii_lowercase())
}

fn port_of(digits: &str) -> Result<u16, BadUrl> {
    const BAD_PORT: BadUrl = bad("not a port", "ports are from 1 to 65535");
    // `parse` alone would take a leading plus.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD_PORT);
    }
    digits.parse().ok().filter(|port| *port != 0).ok_or(BAD_PORT)
}
