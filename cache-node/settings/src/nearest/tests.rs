use super::*;

const KNOWN: [&str; 4] = ["max_body", "max_buffered", "max_header", "url"];

#[test]
fn slips_are_forgiven() {
    for (typed, meant) in [
        ("max_bdy", "max_body"),
        ("max-body", "max_body"),
        ("MAX_BODY", "max_body"),
        ("max_headers", "max_header"),
        ("ulr", "url"),
    ] {
        assert_eq!(nearest(typed, KNOWN), Some(meant), "{typed}");
    }
}

#[test]
fn unrelated_names_get_no_suggestion() {
    for typed in ["temperature", "x", "", "abc"] {
        assert_eq!(nearest(typed, KNOWN), None, "{typed}");
    }
    assert_eq!(nearest("after_system", ["before_system"]), None);
    assert_eq!(nearest(&"max_body".repeat(100), KNOWN), None);
}
