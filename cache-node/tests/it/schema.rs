//! Checks JSON against the part of JSON Schema that the node's OpenAPI document is written in. A keyword that it does not
//! know is a fault: a document that says more than is checked would look better proven than it is.

use serde_json::Value;

/// Says nothing that is checked.
const ANNOTATIONS: [&str; 1] = ["description"];

/// What is wrong with `value`, held against `schema` of `document`; each fault with where it is.
pub(crate) fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "$", &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else { return found.push(format!("{at}: no schema")) };
    for (keyword, wanted) in keywords {
        let holds = match keyword.as_str() {
            "$ref" => {
                let pointer = wanted.as_str().and_then(|path| path.strip_prefix('#')).unwrap_or("/none");
                match document.pointer(pointer) {
                    Some(schema) => check(document, schema, value, at, found),
                    None => found.push(format!("{at}: {wanted} is nowhere")),
                }
                true
            }
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|wanted| is(value, wanted)),
                wanted => is(value, wanted),
            },
            "enum" => wanted.as_array().is_some_and(|all| all.contains(value)),
            "minimum" => value.as_u64().is_none_or(|number| wanted.as_u64().is_some_and(|min| number >= min)),
            "minLength" => {
                length(value).is_none_or(|length| wanted.as_u64().is_some_and(|min| length >= min))
            }
            "maxLength" => {
                length(value).is_none_or(|length| wanted.as_u64().is_some_and(|max| length <= max))
            }
            "maxItems" => value
                .as_array()
                .is_none_or(|items| wanted.as_u64().is_some_and(|max| items.len() as u64 <= max)),
            "pattern" => value.as_str().is_none_or(|text| matches(text, wanted.as_str().unwrap_or_default())),
            "required" => value.as_object().is_none_or(|object| {
                wanted.as_array().is_some_and(|names| {
                    names.iter().all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
                })
            }),
            "properties" | "additionalProperties" => true,
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, wanted, item, &format!("{at}[{index}]"), found);
                }
                true
            }
            annotation => ANNOTATIONS.contains(&annotation),
        };
        if !holds {
            found.push(format!("{at}: {keyword} {wanted} does not hold for {value}"));
        }
    }
    properties(document, schema, value, at, found);
}

fn properties(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match (schema.get("properties").and_then(|all| all.get(name)), schema.get("additionalProperties")) {
            (Some(schema), _) => check(document, schema, value, &at, found),
            (None, Some(Value::Bool(false))) => found.push(format!("{at}: not described")),
            (None, Some(schema @ Value::Object(_))) => check(document, schema, value, &at, found),
            (None, _) => {}
        }
    }
}

fn is(value: &Value, wanted: &Value) -> bool {
    match wanted.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}

/// The patterns of the document, all of lower-case hex digits.
fn matches(text: &str, pattern: &str) -> bool {
    let hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{32}$" => hex && text.len() == 32,
        "^[0-9a-f]{16}$" => hex && text.len() == 16,
        "^([0-9a-f]{2}){1,64}$" => hex && text.len().is_multiple_of(2) && (2..=128).contains(&text.len()),
        _ => false,
    }
}

#[test]
fn what_a_schema_says_is_checked() {
    let document = serde_json::json!({
        "id": { "type": ["string", "null"], "pattern": "^[0-9a-f]{16}$" },
        "object": {
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": { "id": { "$ref": "#/id" }, "list": { "type": "array", "items": { "enum": ["a", "b"] } } },
        },
    });
    let count = |value: Value| faults(&document, &document["object"], &value).len();
    for good in [r#"{"id":null}"#, r#"{"id":"00000000000000ff","list":["a","b"]}"#] {
        assert_eq!(count(serde_json::from_str(good).unwrap()), 0, "{good}");
    }
    for bad in [
        "[]",
        "{}",
        r#"{"id":3}"#,
        r#"{"id":"00000000000000FF"}"#,
        r#"{"id":null,"more":1}"#,
        r#"{"id":null,"list":["c"]}"#,
    ] {
        assert_eq!(count(serde_json::from_str(bad).unwrap()), 1, "{bad}");
    }
    let unknown = serde_json::json!({ "multipleOf": 3 });
    assert_eq!(faults(&document, &unknown, &Value::Null).len(), 1, "what is not checked is not believed");
}
