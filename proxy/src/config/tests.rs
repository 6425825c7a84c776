use std::collections::BTreeSet;

use super::*;

mod bad_files;

const FULL: &str = include_str!("../../../config/proxy.toml");
const MINIMAL: &str = include_str!("../../../config/proxy.minimal.toml");

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|faults| panic!("{faults}"))
}

/// A setting that a file mentions, live or commented out: its dotted path and the line that sets it.
struct Mention {
    path: String,
    line: usize,
    live: bool,
}

/// Every line of the form `key = value` or `# key = value`, with the table it is in.
fn mentions(text: &str) -> Vec<Mention> {
    let (mut table, mut found) = (String::new(), Vec::new());
    for (line, whole) in text.lines().enumerate() {
        if let Some(header) = whole.strip_prefix('[') {
            table = format!("{}.", header.trim_matches(['[', ']']));
            continue;
        }
        let (live, setting) = whole.strip_prefix("# ").map_or((true, whole), |commented| (false, commented));
        let Some((key, _)) = setting.split_once(" = ") else { continue };
        if key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            found.push(Mention { path: format!("{table}{key}"), line, live });
        }
    }
    found
}

/// The keys that the reader asks for while it reads `text`, tables left out.
fn known_settings(text: &str) -> BTreeSet<String> {
    let (_, report) = read(text, raw::RawConfig::read).expect("is TOML");
    let known = report.known_keys();
    let is_table = |path: &str| known.iter().any(|other| other.starts_with(&format!("{path}.")));
    known.iter().filter(|path| !is_table(path)).cloned().collect()
}

#[test]
fn the_minimal_file_is_valid_and_minimal() {
    let config = good(MINIMAL);
    assert_eq!(config.pools.len(), 1);
    assert_eq!(config.pools[0].endpoints.len(), 2);
    assert!(MINIMAL.lines().count() < 15);
}

#[test]
fn the_full_file_mentions_every_key_and_no_other() {
    let mentioned: BTreeSet<String> = mentions(FULL).into_iter().map(|mention| mention.path).collect();
    assert_eq!(mentioned, known_settings(FULL));
}

#[test]
fn the_full_file_states_the_real_defaults() {
    let full = good(FULL);
    // The pools are not defaults; what a pool leaves out is compared below.
    let minimal = Config { pools: full.pools.clone(), ..good(MINIMAL) };
    assert_eq!(full, minimal);
    let bare = good("[[pool]]\nmodel = \"llama-3.1-8b\"\nendpoint = [{ url = \"http://10.0.0.11:8000\" }]\n");
    let documented = Pool { endpoints: full.pools[0].endpoints[..1].to_vec(), ..full.pools[0].clone() };
    assert_eq!(documented, bare.pools[0]);
}

#[test]
fn negative_control_a_documented_value_that_is_not_the_default_is_noticed() {
    let live: Vec<_> = mentions(FULL).into_iter().filter(|mention| mention.live).collect();
    assert!(live.len() > 30, "{}", live.len());
    for Mention { path, line, .. } in live.iter().filter(|mention| !mention.path.starts_with("pool.")) {
        let other = match path.as_str() {
            "listen" | "admin" => "\"127.0.0.1:7777\"",
            "log_format" => "\"json\"",
            "routing.policy" => "\"min_ttft\"",
            "log" | "routing.session_header" => "\"other\"",
            "health.path" | "health.metrics_path" => "\"/other\"",
            "response.headers" | "reload_on_change" => "false",
            "access_log" | "routing.pass_through" | "routing.shadow" | "access.forward_keys" => "true",
            "access.deny" | "access.allow" => "[\"/x\"]",
            "routing.run_bytes" => "1024",
            "limits.max_body"
            | "limits.max_buffered"
            | "limits.max_header"
            | "routing.index"
            | "routing.max_held_bytes" => "1048576",
            "retry.may_have_started" => "true",
            "retry.budget" => "0.5",
            "breaker.open" | "breaker.open_max" => "\"7s\"",
            path if path.starts_with("timeouts.") => "\"7s\"",
            "health.interval" | "health.timeout" | "warehouse.deadline" | "routing.hold_limit"
            | "routing.slow_start" => "\"7s\"",
            _ => "7",
        };
        // Both limits together, since one may not pass the other.
        let changed = FULL.lines().enumerate().map(|(at, text)| {
            let key = text.split(" = ").next().unwrap_or_default();
            let both = path == "limits.max_buffered" && key == "max_body";
            if at == *line || both { format!("{key} = {other}\n") } else { format!("{text}\n") }
        });
        assert_ne!(good(&changed.collect::<String>()), good(FULL), "{path}");
    }
}

#[test]
fn what_the_full_file_comments_out_is_valid_too() {
    let optional: BTreeSet<usize> = mentions(FULL).iter().filter(|it| !it.live).map(|it| it.line).collect();
    assert_eq!(optional.len(), 15);
    let lines = FULL.lines().enumerate();
    let text: String = lines
        .map(|(at, line)| format!("{}\n", if optional.contains(&at) { &line[2..] } else { line }))
        .collect();
    let config = good(&text);
    assert_eq!(config.routing.secret_file.as_deref(), Some(Path::new("/etc/larder/secret")));
    assert_eq!(config.routing.seed, Some(42));
    assert_eq!(config.warehouse.token_file.as_deref(), Some(Path::new("/etc/larder/node-token")));
    let snapshot = Snapshot {
        file: "/var/lib/larder/index".into(),
        every: Duration::from_secs(60),
        max_bytes: 256 << 20,
    };
    assert_eq!(config.snapshot, Some(snapshot));
    let tls = Tls { cert_file: "/etc/larder/cert.pem".into(), key_file: "/etc/larder/key.pem".into() };
    assert_eq!(config.tls, Some(tls));
    assert_eq!(config.access.keys_file.as_deref(), Some(Path::new("/etc/larder/keys")));
    assert_eq!(config.access.admin_token_file.as_deref(), Some(Path::new("/etc/larder/admin-token")));
    let endpoint = &config.pools[0].endpoints[0];
    assert_eq!((endpoint.name.as_str(), endpoint.kv_tokens), ("gpu-1", Some(500_000)));
    assert_eq!(
        (endpoint.max_in_flight, config.pools[0].first_byte),
        (Some(256), Some(Duration::from_secs(1_800)))
    );
    assert_eq!(endpoint.cache_node, "http://10.0.0.11:7700".parse().ok());
}

#[test]
fn values_arrive_where_they_belong() {
    let config = good(
        r#"
        listen = "[::]:1"
        threads = 3
        [limits]
        max_body = "1MiB"
        max_buffered = "2MiB"
        [timeouts]
        header = "1s"
        body = "2s"
        connect = "3ms"
        first_byte = "4m"
        keepalive = "5s"
        drain = "0s"
        [routing]
        policy = "session_hash"
        session_header = "X-Agent"
        [health]
        metrics_path = ""
        [[pool]]
        model = "m"
        aliases = ["n"]
        tools_order = "first_user_turn"
        [[pool.endpoint]]
        url = "http://[::1]"
        "#,
    );
    assert_eq!((config.listen.port(), config.worker_threads()), (1, 3));
    assert_eq!((config.limits.max_body_bytes, config.limits.max_buffered_bytes), (1 << 20, 2 << 20));
    let expected = Timeouts {
        idle: good(MINIMAL).timeouts.idle,
        total: good(MINIMAL).timeouts.total,
        handshake: good(MINIMAL).timeouts.handshake,
        header: Duration::from_secs(1),
        body: Duration::from_secs(2),
        connect: Duration::from_millis(3),
        first_byte: Duration::from_secs(240),
        keepalive: Duration::from_secs(5),
        drain: Duration::ZERO,
    };
    assert_eq!(config.timeouts, expected);
    assert_eq!(config.routing.policy, Policy::SessionHash);
    assert_eq!(config.routing.session_header, "x-agent");
    assert_eq!(config.health.metrics_path, None);
    let endpoint = Endpoint {
        name: "[::1]:80".to_owned(),
        host: "::1".to_owned(),
        port: 80,
        authority: "[::1]:80".to_owned(),
        kv_tokens: None,
        max_in_flight: None,
        cache_node: None,
    };
    let pool = Pool {
        model: "m".to_owned(),
        aliases: vec!["n".to_owned()],
        tools_order: ToolsOrder::FirstUserTurn,
        first_byte: None,
        endpoints: vec![endpoint],
    };
    assert_eq!(config.pools, [pool]);
    assert!(good(MINIMAL).worker_threads() >= 1);
}

#[test]
fn a_file_that_cannot_be_read_says_which() {
    let shown = load(Path::new("no/such/proxy.toml")).expect_err("is absent").to_string();
    assert!(shown.starts_with("no/such/proxy.toml: cannot be opened: "), "{shown}");
}
