use std::collections::BTreeSet;

use super::*;

fn repository_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn faults(text: &str) -> Vec<String> {
    parse(text).unwrap_err().list().iter().map(ToString::to_string).collect()
}

const MINIMAL: &str = "engine_socket = \"/run/larder/node.sock\"\nhost = { size = \"256GiB\" }\n";

#[test]
fn the_documented_file_is_the_defaults() {
    let documented = parse(&repository_file("cache-node.toml")).unwrap();
    assert_eq!(documented, parse(&repository_file("cache-node.minimal.toml")).unwrap());
    assert_eq!(documented, parse(MINIMAL).unwrap());
    assert_eq!(documented.host_bytes, 256 << 30);
}

#[test]
fn every_key_is_documented() {
    let text = repository_file("cache-node.toml");
    let (_, report) = read(&text, raw::RawConfig::read).unwrap();
    let mut table = String::new();
    let mut documented = BTreeSet::new();
    for line in text.lines() {
        // A table that is absent by default is commented out, its name too.
        let header = line.strip_prefix("# ").filter(|rest| rest.starts_with('[')).unwrap_or(line);
        if header.starts_with('[') {
            let name = header.trim_matches(['[', ']']);
            table = format!("{name}.");
            documented.insert(name.to_owned());
        } else if let Some((key, _)) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ") {
            documented.insert(format!("{table}{key}"));
        }
    }
    let missing: Vec<&String> = report.known_keys().iter().filter(|key| !documented.contains(*key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_fault_is_listed_at_once() {
    let text = "engine_sockt = \"x\"\ncontrol = \"0.0.0.0:7700\"\nlease_ttl = 30\n[host]\nsize = \"1MiB\"\n[limits]\nlease = 3\n";
    let found = faults(text);
    for expected in [
        "engine_socket: is required",
        "line 1: engine_sockt: unknown key (did you mean `engine_socket`?)",
        "line 2: control = \"0.0.0.0:7700\": other hosts can reach this address, so token_file is required",
        "line 3: lease_ttl = 30: a duration needs a unit",
        "line 5: host.size = \"1MiB\": must be from 64MiB to 64TiB",
        "line 7: limits.lease: unknown key (did you mean `leases`?)",
    ] {
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "{expected}\nin {found:#?}");
    }
}

#[test]
fn addresses_sockets_and_modes() {
    let with = |line: &str| parse(&format!("{line}\n{MINIMAL}"));
    assert_eq!(with("control = \"[::1]:0\"").unwrap().control, Control::Tcp("[::1]:0".parse().unwrap()));
    let unix = with("control = \"unix:/run/c.sock\"").unwrap().control;
    assert_eq!(unix.to_string(), "unix:/run/c.sock");
    assert!(with("control = \"10.0.0.1:7700\"\ntoken_file = \"/t\"").is_ok());
    assert_eq!(with("engine_socket_mode = \"0660\"").unwrap().engine_socket_mode, 0o660);
    for bad in [
        "control = \"localhost:7700\"",
        "control = \"unix:relative\"",
        "engine_socket_mode = \"rw\"",
        "engine_socket_mode = \"4777\"",
        "log = \"\"",
        "verify = \"never\"",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
    let long = format!("engine_socket = \"/{}\"\nhost = {{ size = \"1GiB\" }}", "x".repeat(100));
    assert!(faults(&long)[0].contains("at most 96 bytes"));
}

/// The example of the disk tier is its defaults, too.
#[test]
fn the_disk_tier_is_absent_or_whole() {
    assert_eq!(parse(MINIMAL).unwrap().disk, None);
    let text = repository_file("cache-node.toml");
    let (_, from_disk) = text.split_once("# [disk]").unwrap();
    let (example, _) = from_disk.split_once("\n[").unwrap();
    let keys = example.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| line.contains(" = "));
    let keys: Vec<&str> = keys.collect();
    let with = |lines: &str| parse(&format!("{MINIMAL}[disk]\n{lines}"));
    let documented = with(&keys.join("\n")).unwrap().disk.unwrap();
    let least = with("path = \"/var/lib/larder/kv\"\ncapacity = \"1TiB\"").unwrap().disk.unwrap();
    assert_eq!(documented, least);
    for (bad, says) in [
        ("", "disk.path: is required"),
        ("capacity = \"1TiB\"", "disk.path: is required"),
        ("path = \"/kv\"", "disk.capacity: is required"),
        ("path = \"kv\"\ncapacity = \"1TiB\"", "is no path from the root"),
        ("path = \"/kv\"\ncapacity = \"1GiB\"\nsegment = \"512MiB\"", "fewer than 4 segments"),
        ("path = \"/kv\"\ncapacity = \"1GiB\"\nsegment = 2000000", "no multiple of 4096"),
        ("path = \"/kv\"\ncapacity = \"1GiB\"\nio = \"aio\"", "not one of"),
    ] {
        let found = faults(&format!("{MINIMAL}[disk]\n{bad}"));
        assert!(found.iter().any(|fault| fault.contains(says)), "{says}\nin {found:#?}");
    }
}

#[test]
fn the_slab_is_whole_extents() {
    let config = parse("engine_socket = \"/s\"\nhost = { size = \"100MiB\" }").unwrap();
    assert_eq!(config.host_bytes, EXTENT_BYTES);
}

#[test]
fn pins_and_quotas() {
    let with = |lines: &str| parse(&format!("{MINIMAL}{lines}"));
    let quotas = with("[quotas]\ndefault = \"1GiB\"\n[[quotas.tenants]]\nname = \"a\"\nsize = \"2GiB\"")
        .unwrap()
        .quotas;
    assert_eq!(quotas, Quotas { default_bytes: Some(1 << 30), tenants: vec![("a".to_owned(), 2 << 30)] });
    assert_eq!(with("[pins]\nttl_max = \"1h\"").unwrap().pins.ttl_max, Duration::from_secs(3600));
    let twice = "[[quotas.tenants]]\nname = \"a\"\nsize = \"2GiB\"\n".repeat(2);
    for (bad, says) in [
        (twice.as_str(), "has a quota already"),
        ("[[quotas.tenants]]\nname = \"\"\nsize = \"2GiB\"", "has 0 bytes"),
        ("[[quotas.tenants]]\nname = \"a\"", "is required"),
        ("[pins]\npercent = 101", "must be from 0 to 100"),
    ] {
        let found = faults(&format!("{MINIMAL}{bad}"));
        assert!(found.iter().any(|fault| fault.contains(says)), "{says}\nin {found:#?}");
    }
}
