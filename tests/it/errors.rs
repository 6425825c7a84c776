//! Does `docs/errors.md` list each answer of the gateway's own, with its status?

use std::collections::BTreeSet;

use http::StatusCode;
use larder_tests::program::workspace;

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap()
}

/// `(status, code)` of the rows of the tables.
fn documented(page: &str) -> BTreeSet<(u16, String)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split_once(" | `"));
    cells
        .filter_map(|(status, rest)| Some((status.parse().ok()?, rest.split('`').next()?.to_owned())))
        .collect()
}

/// `(status, code)` of each `StatusCode::NAME, kind, "code"` in the source of the errors' terms.
fn refusals(source: &str) -> BTreeSet<(u16, String)> {
    let terms = source.split("fn terms(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let tuples = terms.split("(StatusCode::").skip(1).map(|rest| rest.split(')').next().unwrap());
    tuples
        .map(|tuple| {
            let name = tuple.split(',').next().unwrap();
            let known = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
            let named = |status: &StatusCode| {
                let reason = status.canonical_reason().unwrap_or_default();
                reason.to_uppercase().replace([' ', '-'], "_") == name
            };
            let status = known.into_iter().find(named).unwrap_or_else(|| panic!("no status {name}"));
            (status.as_u16(), tuple.rsplit('"').nth(1).unwrap().to_owned())
        })
        .collect()
}

#[test]
fn every_answer_of_the_gateway_is_in_the_table() {
    let page = documented(&read("docs/errors.md"));
    let (in_streams, before): (BTreeSet<_>, BTreeSet<_>) =
        page.into_iter().partition(|(status, _)| *status == 200);
    assert_eq!(before, refusals(&read("proxy/src/gateway/error.rs")));
    let response = read("proxy/src/gateway/response.rs");
    let said = response.split("fn last_event(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    assert_eq!(in_streams.len(), said.matches("\"),\n").count(), "{said}");
    for (_, code) in in_streams {
        assert!(response.contains(&format!(", \"{code}\")")), "{code} is said by no stream");
    }
}

#[test]
fn negative_control_a_row_that_lacks_is_noticed() {
    let page = read("docs/errors.md");
    let without: String =
        page.lines().filter(|line| !line.contains("queue_full")).map(|l| format!("{l}\n")).collect();
    assert_ne!(documented(&page), documented(&without));
    assert!(documented(&page).len() > 10);
}
