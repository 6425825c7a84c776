//! One spelling for JSON that clients may spell in many ways.

/// Appends `json` to `out` without white space between tokens and with every string escaped in the same way.
/// Numbers and the order of keys stay as they are. `json` must be valid.
pub fn canonical_json(json: &str, out: &mut String) {
    let mut rest = json;
    while let Some(at) = rest.find(['"', ' ', '\t', '\n', '\r']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('"') {
            let end = string_end(rest);
            push_string(&rest[..end], out);
            rest = &rest[end..];
        } else {
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
}

/// The length of the string literal at the start of `json`, quotes included.
fn string_end(json: &str) -> usize {
    let bytes = json.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

fn push_string(literal: &str, out: &mut String) {
    if !literal.contains('\\') {
        out.push_str(literal);
        return;
    }
    let decoded = serde_json::from_str::<String>(literal).and_then(|text| serde_json::to_string(&text));
    out.push_str(decoded.as_deref().unwrap_or(literal));
}
