use super::*;

fn fault() -> Fault {
    Fault { value: Some("\"32MB\"".into()), line: Some(7), ..Fault::new("limits.max_body", "not a size") }
}

#[test]
fn says_line_key_value_reason_and_hint() {
    let mut it = fault();
    it.hint("write \"32MiB\"");
    assert_eq!(it.to_string(), "line 7: limits.max_body = \"32MB\": not a size (write \"32MiB\")");
    it.value = None;
    assert_eq!(it.to_string(), "line 7: limits.max_body: not a size (write \"32MiB\")");
    assert_eq!(Fault::new("", "cannot be read").to_string(), "cannot be read");
}

#[test]
fn a_fault_stays_on_one_line_whatever_the_file_says() {
    let mut it = Fault::new("a\nb", "bad\u{1b}[31m\u{2028}");
    it.value = Some("x\r\ny".into());
    let shown = it.to_string();
    assert!(!shown.contains(['\n', '\r', '\u{1b}', '\u{2028}']), "{shown:?}");
}

#[test]
fn faults_are_listed_in_file_order_after_the_file_name() {
    let late = Fault { line: Some(9), ..Fault::new("b", "late") };
    let early = Fault { line: Some(2), ..Fault::new("a", "early") };
    let faults = Faults::of(vec![Fault::new("c", "nowhere"), late, early]).expect("not empty");
    let shown = faults.in_file(Path::new("proxy.toml")).to_string();
    assert_eq!(shown, "proxy.toml: line 2: a: early\nproxy.toml: line 9: b: late\nproxy.toml: c: nowhere");
    assert_eq!(Faults::of(Vec::new()), None);
}
