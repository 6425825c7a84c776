//! How values and paths of a file are shown in a fault.

use toml::de::DeValue;

/// A value is shown up to this many characters: enough to recognise it, few enough for one line.
const MAX_VALUE_CHARS: usize = 80;

/// The value as written, near enough; `None` for lists and tables, whose type says more than their text, and for
/// text with an `@`, which may be a URL with a password: faults end up in logs.
pub(crate) fn shown(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) if text.contains('@') => None,
        DeValue::String(text) => Some(format!("\"{}\"", shortened(text))),
        DeValue::Integer(integer) => Some(shortened(&integer.to_string())),
        DeValue::Float(float) => Some(shortened(float.as_str())),
        DeValue::Boolean(boolean) => Some(boolean.to_string()),
        DeValue::Datetime(datetime) => Some(datetime.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The type in a reader's words.
pub(crate) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `path.key`, with the key quoted when it could not be written bare.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { format!("{:?}", shortened(key)) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
