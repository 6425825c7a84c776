use super::*;

fn authority(url: &str) -> String {
    parse(url).unwrap_or_else(|bad| panic!("{url}: {}", bad.reason)).authority
}

fn reason(url: &str) -> &'static str {
    parse(url).expect_err(url).reason
}

#[test]
fn addresses() {
    for (url, expected) in [
        ("http://10.0.0.11:8000", "10.0.0.11:8000"),
        ("http://10.0.0.11:8000/", "10.0.0.11:8000"),
        ("HTTP://GPU-1.Example:8000", "gpu-1.example:8000"),
        ("http://vllm_0", "vllm_0:80"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[2001:DB8::1]", "[2001:db8::1]:80"),
        ("http://host.example.:1", "host.example.:1"),
    ] {
        assert_eq!(authority(url), expected, "{url}");
    }
    assert_eq!(parse("http://[::1]:8000").unwrap().host, "::1");
}

#[test]
fn what_is_not_supported_is_named() {
    assert_eq!(reason("https://host:8000"), "TLS to engines is not supported yet");
    assert_eq!(parse("https://host").unwrap_err().hint, "put http://");
    assert_eq!(reason("h2c://host:8000"), "HTTP/2 to engines is not supported");
    for url in
        ["http://host:8000/v1", "http://host?x=1", "http://host:1/#top", "http://host\\x", "http://host//"]
    {
        assert_eq!(reason(url), "a path or query in an endpoint's URL is not supported", "{url}");
    }
}

#[test]
fn credentials_are_refused_before_anything_else() {
    for url in ["http://user:password@host:8000", "https://user:password@host/v1", "user:password@host"] {
        assert_eq!(reason(url), "user and password in a URL are not supported", "{url}");
    }
}

#[test]
fn bad_hosts_and_ports() {
    let long = format!("http://{}:80", "a.".repeat(200));
    for url in [
        "http://",
        "http://:80",
        "http://a..b",
        "http://a b",
        "http://[::1",
        "http://[::1]x",
        "http://[nope]:1",
        "http://::1",
        "http://1.2.3",
        "http://1.2.3.256",
        "http://hôst",
        "http://ho\nst",
        &long,
    ] {
        assert_ne!(parse(url).expect_err(url).reason, "not a URL", "{url}");
    }
    for url in ["http://host:0", "http://host:65536", "http://host:", "http://host:+80", "http://host:http"] {
        assert_eq!(reason(url), "not a port", "{url}");
    }
    for url in ["", "host:8000", "10.0.0.1", "//host"] {
        assert_eq!(reason(url), "not a URL", "{url}");
    }
    assert_eq!(reason("unix:///run/engine.sock"), "not an http URL");
}
