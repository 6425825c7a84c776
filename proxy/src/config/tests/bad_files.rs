//! Files with faults: what is said, and that all of it is said at once.

use super::*;

const POOL: &str = "[[pool]]\nmodel = \"m\"\nendpoint = [{ url = \"http://a:1\" }]\n";

/// The faults of `text`, one a line; empty when it is valid.
fn faults(text: &str) -> String {
    parse(text).map_or_else(|faults| faults.to_string(), |_| String::new())
}

/// The faults of `settings` above a valid pool. Empty settings are the negative control of each test.
fn faults_of(settings: &str) -> String {
    faults(&format!("{settings}\n{POOL}"))
}

#[test]
fn all_faults_of_a_bad_file_are_listed_at_once() {
    let text = r#"listen = "localhost:8080"
admin = "0.0.0.0:9090"
log_fromat = "json"
log = " "
[limits]
max_body = "2GiB"
max_buffered = "1GB"
max_connections = 0
[timeouts]
header = "0s"
body = 60
[routing]
policy = "least_loaded"
run_bytes = 500
session_header = "x session"
default_prefill_tokens_per_s = "fast"
[health]
path = "health"
metrics_path = "metrics"
[[pool]]
model = "m"
aliases = ["n", "m"]
[[pool.endpoint]]
url = "https://a:1"
[[pool.endpoint]]
url = "http://b:0"
[[pool.endpoint]]
name = "c"
[[pool]]
model = "n"
tools_order = "after_system"
[[pool.endpoint]]
url = "http://a:1"
name = "one"
[[pool.endpoint]]
url = "http://A:1/"
name = "one"
cache_node = "a:7700"
cache_nod = "x"
[[pool]]
"#;
    let expected = r#"line 1: listen = "localhost:8080": not an IP address and port (write "127.0.0.1:8080")
line 2: admin = "0.0.0.0:9090": without a token the admin plane must not leave this host (write "127.0.0.1:9090" or "[::1]:9090", or set access.admin_token_file)
line 3: log_fromat: unknown key (did you mean `log_format`?)
line 4: log = " ": is empty (write "off" to log nothing)
line 7: limits.max_buffered = "1GB": `GB` is not a unit of size (sizes are binary; did you mean "1GiB"?)
line 8: limits.max_connections = 0: must be from 1 to 1000000
line 10: timeouts.header = "0s": must be from 1ms to 1d
line 11: timeouts.body = 60: a duration needs a unit (write "60s" for seconds or "60ms" for milliseconds)
line 13: routing.policy = "least_loaded": not one of "larder", "round_robin", "session_hash", "min_ttft"
line 14: routing.run_bytes = 500: not a power of two (did you mean 256 or 512?)
line 15: routing.session_header = "x session": not the name of a header (letters, digits and `-`, such as "x-session-id")
line 16: routing.default_prefill_tokens_per_s = "fast": expected a number, found text
line 18: health.path = "health": not a path (begin with a slash: "/health")
line 19: health.metrics_path = "metrics": not a path (begin with a slash: "/metrics"; write "" to read none)
line 22: pool[0].aliases: the model name "m" is already taken by pool[0].model (put all endpoints of a model into one pool)
line 24: pool[0].endpoint[0].url = "https://a:1": TLS to engines is not supported yet (put http://)
line 26: pool[0].endpoint[1].url = "http://b:0": not a port (ports are from 1 to 65535)
line 27: pool[0].endpoint[2].url: is required
line 30: pool[1].model = "n": the model name "n" is already taken by pool[0].aliases (put all endpoints of a model into one pool)
line 31: pool[1].tools_order = "after_system": not one of "before_system", "first_user_turn"
line 36: pool[1].endpoint[1].url = "http://A:1/": a:1 is already in this pool, at pool[1].endpoint[0].url (list each endpoint once)
line 37: pool[1].endpoint[1].name = "one": the name "one" is already taken by pool[1].endpoint[0].name
line 38: pool[1].endpoint[1].cache_node = "a:7700": "a:7700" is no address of a cache node: write "http://HOST:PORT" or "unix:/PATH"
line 39: pool[1].endpoint[1].cache_nod: unknown key (did you mean `cache_node`?)
line 40: pool[2].model: is required
line 40: pool[2].endpoint: at least one is required (add [[pool.endpoint]] with a url below this [[pool]])"#;
    assert_eq!(faults(text), expected);
}

#[test]
fn negative_control_nothing_is_wrong_with_the_pool_used_below() {
    assert_eq!(faults_of(""), "");
}

#[test]
fn a_pool_is_required_and_so_is_an_endpoint() {
    let expected = "pool: at least one is required \
                    (add [[pool]] with a model, and in it [[pool.endpoint]] with a url)";
    assert_eq!(faults(""), expected);
    assert_eq!(faults("pool = []").lines().count(), 1);
    assert_eq!(faults("[[pool]]\nmodel = \"m\"\nendpoint = []").lines().count(), 1);
    assert_eq!(faults("pool = [1]").lines().count(), 1);
    let wrong_type = faults("[pool]\nmodel = \"m\"\n");
    assert_eq!(wrong_type, "line 1: pool: expected a list of tables, each written [[pool]], found a table");
}

#[test]
fn listen_and_admin_do_not_share_a_port() {
    let clash = "take the same port";
    assert!(faults_of("listen = \"127.0.0.1:9090\"").contains(clash), "the admin default");
    assert!(faults_of("listen = \"0.0.0.0:1\"\nadmin = \"127.0.0.1:1\"").starts_with("line 2: admin"));
    assert!(faults_of("listen = \"[::1]:1\"\nadmin = \"[::1]:1\"").contains(clash));
    assert_eq!(faults_of("listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.2:1\""), "");
    assert_eq!(
        faults_of("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\""),
        "",
        "port 0 is a free one each"
    );
}

#[test]
fn the_admin_plane_stays_on_this_host() {
    for address in ["10.0.0.1:9090", "0.0.0.0:9090", "[::]:9090"] {
        assert!(
            faults_of(&format!("admin = \"{address}\"")).contains("must not leave this host"),
            "{address}"
        );
    }
    for address in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1"] {
        assert_eq!(faults_of(&format!("admin = \"{address}\"")), "", "{address}");
    }
}

#[test]
fn the_limit_of_all_bodies_holds_one_body() {
    let limits = |body, all| faults_of(&format!("[limits]\nmax_body = {body}\nmax_buffered = {all}"));
    assert_eq!(limits(2048, 2048), "");
    assert!(
        faults_of("[limits]\nmax_body = \"2GiB\"")
            .starts_with("line 2: limits.max_body = \"2GiB\": all bodies")
    );
    // What was refused is not compared: its default would be named, which nobody wrote.
    assert_eq!(faults_of("[limits]\nmax_body = \"2GiB\"\nmax_buffered = \"9GB\"").lines().count(), 1);
    assert!(limits(2048, 2047).starts_with("line 3: limits.max_buffered = 2047: all bodies together"));
}

#[test]
fn runs_are_powers_of_two_in_range() {
    let run = |bytes: u32| faults_of(&format!("[routing]\nrun_bytes = {bytes}"));
    for bytes in [64, 128, 4096] {
        assert_eq!(run(bytes), "", "{bytes}");
    }
    for bytes in [0, 32, 65, 4095, 8192] {
        assert_ne!(run(bytes), "", "{bytes}");
    }
}

#[test]
fn misplaced_and_mistyped_keys_are_recognised() {
    assert_eq!(faults_of("max_body = 5"), "line 1: max_body: unknown key (did you mean `limits.max_body`?)");
    assert_eq!(faults_of("[timeout]\n"), "line 1: timeout: unknown key (did you mean `timeouts`?)");
    let typo = faults_of("[timeouts]\nfirst_bytes = \"1s\"");
    assert_eq!(typo, "line 2: timeouts.first_bytes: unknown key (did you mean `first_byte`?)");
}

#[test]
fn an_endpoint_may_serve_two_pools_but_not_one_twice() {
    let second = "[[pool]]\nmodel = \"n\"\nendpoint = [{ url = \"http://a:1\" }]\n";
    assert_eq!(faults(&format!("{POOL}{second}")), "");
    let twice =
        faults("[[pool]]\nmodel = \"m\"\nendpoint = [{ url = \"http://a\" }, { url = \"http://a:80\" }]\n");
    assert_eq!(twice.lines().count(), 1, "{twice}");
    assert!(twice.contains("a:80 is already in this pool"), "{twice}");
    // A chosen name may clash with a default one.
    let name = faults(
        "[[pool]]\nmodel = \"m\"\nendpoint = [{ url = \"http://a:1\" }, { url = \"http://b:1\", name = \"a:1\" }]\n",
    );
    assert!(name.contains("is already taken by pool[0].endpoint[0].url"), "{name}");
}

#[test]
fn names_fit_headers_and_metrics() {
    let named = |name: &str| {
        faults(&format!(
            "[[pool]]\nmodel = \"m\"\nendpoint = [{{ url = \"http://a:1\", name = \"{name}\" }}]\n"
        ))
    };
    assert_eq!(named("gpu-1/0"), "");
    for name in ["", "a b", "ä", &"x".repeat(129)] {
        assert!(named(name).contains("not a name that fits"), "{name}");
    }
    assert!(faults("[[pool]]\nmodel = \"\"\nendpoint = [{ url = \"http://a:1\" }]").contains("not empty"));
    assert!(faults_of("[routing]\nsecret_file = \"\"").contains("is empty"));
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() {
    let shown = faults("[[pool]]\nmodel = \"m\"\nendpoint = [{ url = \"https://me:hunter2@a:1/v1\" }]\n");
    assert!(shown.contains("user and password in a URL") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn what_is_not_toml_names_its_place() {
    let shown = faults("listen = \"0.0.0.0:1\"\nadmin = 127.0.0.1\n");
    assert!(shown.starts_with("line 2: not TOML at column "), "{shown}");
}
