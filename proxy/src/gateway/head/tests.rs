use super::*;

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    headers
}

#[test]
fn connection_names_are_removed_with_it() {
    let mut headers = map(&[
        ("connection", "keep-alive, X-Hop"),
        ("connection", "x-other"),
        ("x-hop", "1"),
        ("x-other", "2"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("x-stays", "3"),
    ]);
    remove_hop_by_hop(&mut headers);
    assert_eq!(headers, map(&[("x-stays", "3")]));
}

#[test]
fn connection_cannot_remove_host_or_length() {
    let mut headers = map(&[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
    remove_hop_by_hop(&mut headers);
    assert_eq!(headers, map(&[("host", "a"), ("content-length", "3")]));
}

#[test]
fn a_client_cannot_speak_as_larder() {
    let mut headers = map(&[("x-larder-endpoint", "a"), ("X-Larder-Lease", "b"), ("x-lard", "c")]);
    remove_own(&mut headers);
    assert_eq!(headers, map(&[("x-lard", "c")]));
}

#[test]
fn an_absolute_target_becomes_a_path_and_a_host() {
    let mut request = Request::post("http://example.org/v1/completions?x=1").body(()).unwrap();
    *request.version_mut() = Version::HTTP_2;
    to_engine(&mut request, "10.0.0.1:8000");
    assert_eq!(request.uri(), "/v1/completions?x=1");
    assert_eq!(request.version(), Version::HTTP_11);
    assert_eq!(request.headers()[header::HOST], "example.org");
    assert_eq!(request.headers()[header::VIA], "1.1 larder");
}

#[test]
fn a_target_that_says_where_is_believed_before_host() {
    let mut request =
        Request::get("http://user:secret@a:81/x").header("host", "b").header("host", "c").body(()).unwrap();
    to_engine(&mut request, "e:1");
    let hosts: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    assert_eq!(hosts, ["a:81"]);
}

#[test]
fn http_1_1_says_one_host_and_others_at_most_one() {
    for (version, count, good) in [
        (Version::HTTP_11, 0, false),
        (Version::HTTP_11, 1, true),
        (Version::HTTP_11, 2, false),
        (Version::HTTP_10, 0, true),
        (Version::HTTP_2, 0, true),
        (Version::HTTP_2, 1, true),
        (Version::HTTP_2, 2, false),
    ] {
        let mut request = Request::get("/x").version(version).body(()).unwrap();
        for _ in 0..count {
            request.headers_mut().append(header::HOST, HeaderValue::from_static("a"));
        }
        assert_eq!(has_one_host(&request.into_parts().0), good, "{version:?} {count}");
    }
}

#[test]
fn only_the_wish_for_trailers_goes_on() {
    for wish in ["trailers", "gzip, Trailers"] {
        let mut request = Request::post("/x").header("te", wish).header("host", "h").body(()).unwrap();
        to_engine(&mut request, "e:1");
        assert_eq!(request.headers()[header::TE], "trailers");
        assert_eq!(request.headers()[header::CONNECTION], "te");
    }
    let mut request = Request::post("/x").header("te", "gzip").body(()).unwrap();
    to_engine(&mut request, "e:1");
    assert!(!request.headers().contains_key(header::TE));
}

#[test]
fn an_id_is_kept_if_it_can_be_logged() {
    let mut headers = map(&[("x-request-id", "abc")]);
    assert_eq!(request_id(&mut headers, || 1), "abc");
    let long = "x".repeat(REQUEST_ID_MAX + 1);
    let mut headers = map(&[("x-request-id", &long)]);
    assert_eq!(request_id(&mut headers, || 255), "000000000000000000000000000000ff");
    assert_eq!(headers[REQUEST_ID], "000000000000000000000000000000ff");
    assert_eq!(request_id(&mut HeaderMap::new(), || 1).len(), 32);
}
