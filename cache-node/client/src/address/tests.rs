use super::*;

#[test]
fn addresses_come_back_as_written() {
    for text in
        ["http://10.0.0.1:7700", "http://node-3.cluster:7700", "http://[::1]:7700", "unix:/run/larder/c.sock"]
    {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
    assert_eq!("http://a:1/".parse::<Address>(), "http://a:1".parse::<Address>());
    let unix: Address = "unix:/run/c.sock".parse().unwrap();
    assert_eq!(unix.uri("/healthz"), "http://localhost/healthz");
}

#[test]
fn what_is_no_address_is_refused() {
    for text in [
        "",
        "10.0.0.1:7700",
        "https://a:1",
        "http://a",
        "http://a:1/x",
        "http://a:1?x",
        "http://u:p@a:1",
        "unix:",
        "unix:c.sock",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text:?}");
    }
}
