//! What a request or response head may carry across the gateway (RFC 9110, section 7.6).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Request, Uri, Version, request};

/// Names that begin so belong to Larder: what a client sends under them is removed.
const OWN_PREFIX: &str = "x-larder-";

/// The request's id, kept when the client sent one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is kept; a longer one is replaced, since it goes into logs.
const REQUEST_ID_MAX: usize = 128;

/// Fields that describe one connection, not the message (RFC 9110, section 7.6.1).
static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the fields of one hop: the fixed ones, and those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(first) = headers.get(header::CONNECTION) {
        // The common values name nothing to remove.
        let plain = first == "keep-alive" || first == "close";
        if !plain || headers.get_all(header::CONNECTION).iter().count() > 1 {
            for name in named_by_connection(headers) {
                headers.remove(name);
            }
        }
    }
    // One look at the few names there are costs less than seven searches that find nothing.
    while let Some(name) = headers.keys().find_map(|name| HOP_BY_HOP.iter().find(|hop| *hop == name)) {
        headers.remove(name);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        // Fields that say where the message goes or how long it is are never a hop's to remove.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect()
}

/// Removes what a client may not say: the fields that are Larder's own.
pub fn remove_own(headers: &mut HeaderMap) {
    let own: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Makes the head of a client's request into that of the request to the engine at `authority`.
///
/// The body follows with a `content-length` of its own, whatever its framing was; `Expect` has been answered.
pub fn to_engine<B>(request: &mut Request<B>, authority: &str) {
    let wants_trailers = wants_trailers(request.headers());
    let target = request.uri().authority().and_then(|a| HeaderValue::from_str(without_user(a)).ok());
    // What names no authority is a path already.
    if target.is_some() || request.uri().scheme().is_some() {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path.parse::<Uri>().unwrap_or_else(|_| Uri::from_static("/"));
    }
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRAILER);
    // A target that says where is believed before `Host` (RFC 9112, section 3.2.2; RFC 9113, section 8.3.1).
    let host = target.or_else(|| headers.get(header::HOST).cloned());
    let host = host.or_else(|| HeaderValue::from_str(authority).ok());
    headers.insert(header::HOST, host.unwrap_or_else(|| HeaderValue::from_static("engine")));
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.append(header::CONNECTION, HeaderValue::from_static("te"));
    }
    headers.append(header::VIA, HeaderValue::from_static("1.1 larder"));
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::TE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|token| token.trim().eq_ignore_ascii_case("trailers"))
}

/// Host and port: what stands before an `@` is a secret of the client's, if anything (RFC 9110, section 4.2.4).
fn without_user(authority: &Authority) -> &str {
    authority.as_str().rsplit('@').next().unwrap_or_default()
}

/// Whether a request says its host as it must: HTTP/1.1 exactly once (RFC 9112, section 3.2), others at most once.
/// Parties that choose differently among several would let a request pass as one to somebody else.
pub fn has_one_host(head: &request::Parts) -> bool {
    let hosts = head.headers.get_all(header::HOST).iter().count();
    if head.version == Version::HTTP_11 { hosts == 1 } else { hosts <= 1 }
}

/// The id of a request: the client's, if it is short and printable, else a new one, which is put in its place.
pub fn request_id(headers: &mut HeaderMap, new: impl FnOnce() -> u128) -> HeaderValue {
    if let Some(id) = headers.get(&REQUEST_ID)
        && !id.is_empty()
        && id.len() <= REQUEST_ID_MAX
        && id.to_str().is_ok()
    {
        return id.clone();
    }
    let id =
        HeaderValue::from_str(&format!("{:032x}", new())).unwrap_or_else(|_| HeaderValue::from_static("-"));
    headers.insert(REQUEST_ID, id.clone());
    id
}

#[cfg(test)]
mod tests;
