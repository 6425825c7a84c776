use proptest::prelude::*;

use super::*;

/// Reads `text` by `shape` and returns the faults, one a line.
fn faults<T>(text: &str, shape: impl FnOnce(&mut Reader<'_>) -> T) -> String {
    match read(text, shape).and_then(|(value, report)| report.into_result(value)) {
        Ok(_) => String::new(),
        Err(faults) => faults.to_string(),
    }
}

fn good<T>(text: &str, shape: impl FnOnce(&mut Reader<'_>) -> T) -> T {
    read(text, shape).and_then(|(value, report)| report.into_result(value)).expect("no faults")
}

const ALL: RangeInclusive<u64> = 0..=u64::MAX;
const DAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);

#[test]
fn every_type_reads_what_is_written() {
    let text = r#"
        s = "text"
        l = ["a", 'b']
        u = 1_000
        x = 0xff
        f = 1.5
        g = 2
        b = true
        size = "32MiB"
        bytes = 7
        d = "500ms"
        a = "[::1]:80"
        e = "two"
    "#;
    good(text, |root| {
        assert_eq!(root.string("s").as_deref(), Some("text"));
        assert_eq!(root.strings("l"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(root.uint("u", ALL), Some(1000));
        assert_eq!(root.uint("x", ALL), Some(255));
        assert_eq!(root.float("f", 0.0..=9.0), Some(1.5));
        assert_eq!(root.float("g", 0.0..=9.0), Some(2.0));
        assert_eq!(root.bool("b"), Some(true));
        assert_eq!(root.size("size", ALL), Some(32 << 20));
        assert_eq!(root.size("bytes", ALL), Some(7));
        assert_eq!(root.duration("d", DAY), Some(Duration::from_millis(500)));
        assert_eq!(root.socket_addr("a").map(|a| a.port()), Some(80));
        assert_eq!(root.one_of("e", &[("one", 1), ("two", 2)]), Some(2));
        assert_eq!(root.string("absent"), None);
    });
}

#[test]
fn every_fault_is_reported_and_none_stops_the_reading() {
    let text = r#"s = 1
l = ["a", 2]
u = -1
f = nan
b = "yes"
size = "32MB"
d = 30
a = "localhost:80"
e = "tow"
t = 5
ts = { x = 1 }
date = 1979-05-27
"#;
    let shown = faults(text, |root| {
        root.string("s");
        root.strings("l");
        root.uint("u", 1..=9);
        root.float("f", 0.0..=1.0);
        root.bool("b");
        root.size("size", ALL);
        root.duration("d", DAY);
        root.socket_addr("a");
        root.one_of("e", &[("one", 1), ("two", 2)]);
        root.table("t", |t| t.bool("x"));
        root.tables("ts", |t| t.bool("x"));
        root.uint("date", ALL);
    });
    let expected = r#"line 1: s = 1: expected text in quotes, found a whole number
line 2: l: expected a list of texts in quotes, found a whole number in it
line 3: u = -1: must be from 1 to 9
line 4: f = nan: must be from 0 to 1
line 5: b = "yes": expected true or false, found text
line 6: size = "32MB": `MB` is not a unit of size (sizes are binary; did you mean "32MiB"?)
line 7: d = 30: a duration needs a unit (write "30s" for seconds or "30ms" for milliseconds)
line 8: a = "localhost:80": not an IP address and port (write "127.0.0.1:80")
line 9: e = "tow": not one of "one", "two" (did you mean "two"?)
line 10: t = 5: expected a table, written [t], found a whole number
line 11: ts: expected a list of tables, each written [[ts]], found a table
line 12: date = 1979-05-27: expected a whole number, found a date"#;
    assert_eq!(shown, expected);
}

#[test]
fn ranges_hold_at_both_ends() {
    let size = |text: &str| faults(text, |root| root.size("x", 1024..=1 << 20));
    assert_eq!(size("x = 1024"), "");
    assert_eq!(size("x = \"1MiB\""), "");
    assert_eq!(size("x = 1023"), "line 1: x = 1023: must be from 1KiB to 1MiB");
    assert_eq!(size("x = 1048577"), "line 1: x = 1048577: must be from 1KiB to 1MiB");
    let duration = |text: &str| faults(text, |root| root.duration("x", DAY));
    assert_eq!(duration("x = \"24h\""), "");
    assert_eq!(duration("x = \"86401s\""), "line 1: x = \"86401s\": must be from 0ms to 1d");
    let uint = |text: &str| faults(text, |root| root.uint("x", ALL));
    assert_eq!(uint("x = 18446744073709551615"), "");
    assert_ne!(uint("x = 18446744073709551616"), "");
    assert_ne!(uint("x = -0x1"), "");
}

#[test]
fn tables_and_arrays_give_paths_lines_and_known_keys() {
    let text = "[limits]\nbody = 1\n[[pool]]\nname = \"a\"\n[[pool.endpoint]]\nurl = 5\n[[pool]]\nname = 6\n";
    let (_, report) = read(text, |root| {
        root.table("limits", |limits| limits.uint("body", ALL));
        root.table("absent", |absent| absent.uint("inside", ALL));
        root.tables("pool", |pool| {
            pool.string("name");
            pool.tables("endpoint", |endpoint| {
                assert_eq!(endpoint.path(), "pool[0].endpoint[0]");
                endpoint.string("url")
            })
        });
    })
    .expect("is TOML");
    let known: Vec<_> = report.known_keys().iter().map(String::as_str).collect();
    let expected = [
        "absent",
        "absent.inside",
        "limits",
        "limits.body",
        "pool",
        "pool.endpoint",
        "pool.endpoint.url",
        "pool.name",
    ];
    assert_eq!(known, expected);
    assert!(report.is_written("pool[0].endpoint[0].url") && !report.is_written("absent"));
    let shown = report.into_result(()).expect_err("two wrong types").to_string();
    let expected = "line 6: pool[0].endpoint[0].url = 5: expected text in quotes, found a whole number\n\
                    line 8: pool[1].name = 6: expected text in quotes, found a whole number";
    assert_eq!(shown, expected);
}

#[test]
fn unknown_keys_are_faults_with_the_best_hint_there_is() {
    let shape = |root: &mut Reader<'_>| {
        root.table("limits", |limits| (limits.size("max_body", ALL), limits.uint("threads", ALL)));
    };
    let unknown = |text: &str| faults(text, shape);
    assert_eq!(
        unknown("[limits]\nmax_bdy = 1\n"),
        "line 2: limits.max_bdy: unknown key (did you mean `max_body`?)"
    );
    assert_eq!(unknown("[limts]\n"), "line 1: limts: unknown key (did you mean `limits`?)");
    // Right name, wrong table; the table that has it is read after the root is.
    assert_eq!(unknown("max_body = 1"), "line 1: max_body: unknown key (did you mean `limits.max_body`?)");
    assert_eq!(
        unknown("[limits]\ncolour = \"sk-secret\""),
        "line 2: limits.colour: unknown key (known here: max_body, threads)"
    );
    // Negative control: the same shape finds nothing wrong with what it knows.
    assert_eq!(unknown("[limits]\nmax_body = 1\nthreads = 2\n"), "");
}

#[test]
fn a_required_key_is_missed_once_and_not_when_it_has_the_wrong_type() {
    let shape = |root: &mut Reader<'_>| root.table("a", |a| a.require("b").string("b"));
    assert_eq!(
        faults("x = 1\n", |root| {
            root.uint("x", ALL);
            shape(root)
        }),
        "a.b: is required"
    );
    assert_eq!(faults("\n[a]\n", shape), "line 2: a.b: is required");
    assert_eq!(faults("a.b = 1", shape), "line 1: a.b = 1: expected text in quotes, found a whole number");
    assert_eq!(faults("a.b = \"\"", shape), "");
}

#[test]
fn faults_that_need_several_keys_find_their_line_and_value() {
    let (_, mut report) =
        read("\n[a]\nlow = 3\n", |root| root.table("a", |a| a.uint("low", ALL))).expect("is TOML");
    assert!(!report.has_fault("a"));
    report.fault("a.low", "more than high");
    assert!(report.has_fault("a.low") && report.has_fault("a"));
    assert!(!report.has_fault("a.lo") && !report.has_fault("a.low.er"));
    report.fault("a.high", "less than low").hint("raise it");
    report.fault_in("a", "a.list", "is required");
    let shown = report.into_result(()).expect_err("three").to_string();
    assert_eq!(
        shown,
        "line 2: a.list: is required\nline 3: a.low = 3: more than high\na.high: less than low (raise it)"
    );
}

#[test]
fn what_is_not_toml_is_one_fault_with_line_and_column() {
    let shown = faults("a = 1\nb = = 2\nc = = 3\n", |root| root.string("a"));
    assert!(shown.starts_with("line 2: not TOML at column 5: "), "{shown}");
    assert_eq!(shown.lines().count(), 1);
    let duplicate = faults("a = 1\na = 2\n", |root| root.uint("a", ALL));
    assert!(duplicate.starts_with("line 2: not TOML at column 1: "), "{duplicate}");
}

#[test]
fn text_that_may_hold_a_password_is_not_repeated() {
    let shown = faults("a = \"http://user:pass@host\"\n", |root| root.socket_addr("a"));
    assert!(shown.starts_with("line 1: a: not an IP address and port"), "{shown}");
    assert!(!shown.contains("pass"), "{shown}");
}

#[test]
fn long_values_are_shortened_at_a_character() {
    let shown = faults(&format!("a = \"{}\"", "ß".repeat(500)), |root| root.bool("a"));
    assert!(shown.contains("ßßß...\": expected") && shown.chars().count() < 200, "{shown}");
}

/// A value of TOML in one line, nested at most three deep, that leans to the types and keys the shape asks for.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}").replace("NaN", "nan")),
        any::<bool>().prop_map(|b| b.to_string()),
        "[0-9]{1,20}( ?[KMGT]iB|ms|s|m|h|[a-z]{1,3})".prop_map(|s| format!("{s:?}")),
        "[^\\p{C}\"\\\\]{0,12}".prop_map(|s| format!("\"{s}\"")),
        Just("1979-05-27T07:32:00Z".to_owned()),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::btree_map(key(), inner, 0..4).prop_map(|map| {
                let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                format!("{{ {} }}", pairs.join(", "))
            }),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["s", "l", "u", "f", "b", "z", "d", "a", "e", "t", "ts"]).prop_map(str::to_owned),
        1 => "[a-z_-]{1,70}",
        1 => Just("\"a\\nb\\u2028\"".to_owned()),
    ]
}

/// Asks for every type at every key name, two tables deep.
fn greedy(reader: &mut Reader<'_>, depth: usize) {
    reader.require("s").string("s");
    reader.strings("l");
    reader.uint("u", 5..=500);
    reader.float("f", 0.0..=1.0);
    reader.bool("b");
    reader.size("z", 1..=1 << 30);
    reader.duration("d", Duration::from_secs(1)..=Duration::from_secs(60));
    reader.socket_addr("a");
    reader.one_of("e", &[("one", 1), ("two", 2)]);
    if depth < 2 {
        reader.table("t", |inner| greedy(inner, depth + 1));
        reader.tables("ts", |inner| greedy(inner, depth + 1));
    }
}

/// How many keys a table has that `greedy` does not ask for at its level: the oracle for unknown keys, by toml's own
/// value type.
fn unknown_in(table: &toml::Table, depth: usize) -> usize {
    let asked = if depth < 2 { "s l u f b z d a e t ts" } else { "s l u f b z d a e" };
    let known = |key: &str| asked.split(' ').any(|name| name == key);
    let mut count = table.keys().filter(|key| !known(key)).count();
    if depth < 2 {
        if let Some(toml::Value::Table(inner)) = table.get("t") {
            count += unknown_in(inner, depth + 1);
        }
        if let Some(toml::Value::Array(items)) = table.get("ts") {
            count += items
                .iter()
                .filter_map(toml::Value::as_table)
                .map(|t| unknown_in(t, depth + 1))
                .sum::<usize>();
        }
    }
    count
}

proptest! {
    #[test]
    fn any_table_is_read_without_panic_and_its_unknown_keys_are_counted(
        pairs in prop::collection::btree_map(key(), value(), 0..8)
    ) {
        let text: String = pairs.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let table: toml::Table = toml::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        let (_, report) = read(&text, |root| greedy(root, 0)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let found = report.into_result(()).map_or_else(|faults| faults.list().to_vec(), |()| Vec::new());
        let unknown = found.iter().filter(|fault| fault.reason == "unknown key").count();
        prop_assert_eq!(unknown, unknown_in(&table, 0), "{}", text);
        for fault in &found {
            prop_assert_eq!(fault.to_string().lines().count(), 1);
            prop_assert!(fault.line.is_none_or(|line| line <= pairs.len()), "{}", fault);
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text in "[\\[\\]{}=.,\"'\\\\#a-e0-9\n\r\t \u{2028}ß-]{0,80}|\\PC{0,80}") {
        match read(&text, |root| greedy(root, 0)) {
            Ok((_, report)) => prop_assert!(report.into_result(()).is_err(), "the key s is required"),
            Err(faults) => prop_assert_eq!(faults.to_string().lines().count(), 1),
        }
    }
}
