//! The walk over the file: typed getters that note what they were asked for and never stop.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::nearest::nearest;
use crate::quantity::{self, format_duration, format_size};
use crate::report::{Report, Unknown};
use crate::text::Lines;
use crate::{Fault, Faults};

use value::{join, shown, type_name};

mod value;

#[cfg(test)]
mod tests;

/// Parses `text` and runs `shape` on its top table; what `shape` returns comes back with the [`Report`].
///
/// # Errors
/// One fault, with line and column, when the text is not TOML: after a syntax error the rest of the file
/// cannot be trusted to mean what it says.
pub fn read<T>(text: &str, shape: impl FnOnce(&mut Reader<'_>) -> T) -> Result<(T, Report), Faults> {
    let lines = Lines::of(text);
    let document = DeTable::parse(text).map_err(|error| not_toml(text, &lines, &error))?;
    let mut report = Report::new(lines);
    let mut root = Reader {
        table: Some(document.get_ref()),
        line: None,
        path: String::new(),
        pattern: String::new(),
        asked: Vec::new(),
        report: &mut report,
    };
    let value = shape(&mut root);
    root.finish();
    Ok((value, report))
}

fn not_toml(text: &str, lines: &Lines, error: &toml::de::Error) -> Faults {
    let span = error.span().unwrap_or(0..0);
    let column = lines.column(text, &span);
    let reason = format!("not TOML at column {column}: {}", error.message().trim());
    Fault { line: Some(lines.line(&span)), ..Fault::new("", reason) }.into()
}

/// One table of the file.
///
/// Every getter notes its key as known, returns `None` when the file does not have it, and on a value of the
/// wrong type or out of range notes a fault and returns `None` as well. A table that is absent, or is no
/// table, reads as an empty one.
#[derive(Debug)]
pub struct Reader<'a> {
    table: Option<&'a DeTable<'a>>,
    line: Option<usize>,
    /// The dotted path with array indices, for faults.
    path: String,
    /// The dotted path without array indices, for the list of known keys.
    pattern: String,
    asked: Vec<&'static str>,
    report: &'a mut Report,
}

impl<'a> Reader<'a> {
    /// The dotted path of this table (`pool[0].endpoint[1]`), empty for the top one.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Notes a fault if the file does not have this key. Returns the reader, to call the getter on.
    pub fn require(&mut self, key: &'static str) -> &mut Self {
        if self.table.is_none_or(|table| !table.contains_key(key)) {
            let line = self.line;
            self.report.fault(join(&self.path, key), "is required").line = line;
        }
        self
    }

    /// Text, possibly empty.
    pub fn string(&mut self, key: &'static str) -> Option<String> {
        self.text(key, "text in quotes").map(str::to_owned)
    }

    /// A list of texts.
    pub fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        const EXPECTED: &str = "a list of texts in quotes";
        let value = self.get(key)?;
        let DeValue::Array(items) = value else {
            return self.wrong_type(key, value, EXPECTED);
        };
        items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.clone().into_owned()),
                other => {
                    self.refuse(key, format!("expected {EXPECTED}, found {} in it", type_name(other)), None)
                }
            })
            .collect()
    }

    /// A whole number.
    pub fn uint(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?;
        let DeValue::Integer(integer) = value else {
            return self.wrong_type(key, value, "a whole number");
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        self.within(key, number, range, |bound| bound.to_string())
    }

    /// A number, with or without a fraction. Infinities and NaN are out of every range.
    pub fn float(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.get(key)?;
        let number = match value {
            DeValue::Float(float) => float.as_str().parse().ok(),
            // The precision of an f64 is the reader's choice of type; such a number is not an identifier.
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|n| n as f64)
            }
            _ => return self.wrong_type(key, value, "a number"),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        self.within(key, number, range, |bound| bound.to_string())
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &'static str) -> Option<bool> {
        match self.get(key)? {
            DeValue::Boolean(value) => Some(*value),
            value => self.wrong_type(key, value, "true or false"),
        }
    }

    /// A size in bytes: `"32MiB"` (see [`parse_size`](crate::parse_size)) or a whole number of bytes.
    pub fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let bytes = match self.get(key)? {
            DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            DeValue::String(text) => match quantity::parse_size(text) {
                Ok(bytes) => Some(bytes),
                Err((reason, hint)) => return self.refuse(key, reason, hint),
            },
            value => return self.wrong_type(key, value, "a size such as \"32MiB\""),
        };
        self.within(key, bytes, range, |bound| format_size(*bound))
    }

    /// A duration: `"30s"` (see [`parse_duration`](crate::parse_duration)). A bare number is refused, since
    /// it does not say whether it means seconds or milliseconds.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = match self.get(key)? {
            DeValue::String(text) => match quantity::parse_duration(text) {
                Ok(duration) => duration,
                Err((reason, hint)) => return self.refuse(key, reason, hint),
            },
            DeValue::Integer(integer) => {
                let hint = quantity::duration_hint(integer.to_string().trim_start_matches("-"));
                return self.refuse(key, "a duration needs a unit", Some(hint));
            }
            value => return self.wrong_type(key, value, "a duration such as \"30s\""),
        };
        self.within(key, Some(duration), range, |bound| format_duration(*bound))
    }

    /// An address and port to listen on or connect to. Names are refused: they would be resolved only once.
    pub fn socket_addr(&mut self, key: &'static str) -> Option<SocketAddr> {
        let text = self.text(key, "an address such as \"127.0.0.1:8080\"")?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let hint = match text.strip_prefix("localhost:") {
            Some(port) => format!("write \"127.0.0.1:{port}\""),
            None if text.starts_with(':') => format!("write \"0.0.0.0{text}\" for every address"),
            None => "write an IP address and a port, such as \"0.0.0.0:8080\" or \"[::]:8080\"".to_owned(),
        };
        self.refuse(key, "not an IP address and port", Some(hint))
    }

    /// One of the names given, as the value beside it.
    pub fn one_of<T: Copy>(&mut self, key: &'static str, names: &[(&'static str, T)]) -> Option<T> {
        let listed = || names.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let value = self.get(key)?;
        let DeValue::String(text) = value else {
            return self.wrong_type(key, value, &format!("one of {}", listed()));
        };
        if let Some((_, found)) = names.iter().find(|(name, _)| name == text) {
            return Some(*found);
        }
        let hint = nearest(text, names.iter().map(|(name, _)| *name))
            .map(|name| format!("did you mean \"{name}\"?"));
        self.refuse(key, format!("not one of {}", listed()), hint)
    }

    /// Runs `shape` on the table at `key`, or on an empty one.
    pub fn table<T>(&mut self, key: &'static str, shape: impl FnOnce(&mut Reader<'_>) -> T) -> T {
        let found = match self.get_spanned(key) {
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Some((table, self.report.line(&value.span()))),
                other => {
                    self.wrong_type(key, other, &format!("a table, written [{}]", join(&self.pattern, key)))
                }
            },
            None => None,
        };
        let path = join(&self.path, key);
        self.inner(key, path, found.map(|(table, _)| table), found.map(|(_, line)| line), shape)
    }

    /// Runs `shape` on each table of the array at `key`, in order. Empty when the file has none.
    pub fn tables<T>(&mut self, key: &'static str, mut shape: impl FnMut(&mut Reader<'_>) -> T) -> Vec<T> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let expected = format!("a list of tables, each written [[{}]]", join(&self.pattern, key));
        let DeValue::Array(items) = value else {
            self.wrong_type::<()>(key, value, &expected);
            return Vec::new();
        };
        let mut read = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", join(&self.path, key));
            let DeValue::Table(table) = item.get_ref() else {
                let reason = format!("expected {expected}, found {}", type_name(item.get_ref()));
                let line = self.report.line(&item.span());
                self.report.fault(path, reason).line = Some(line);
                continue;
            };
            let line = self.report.line(&item.span());
            self.report.note_written(path.clone(), None, &item.span());
            read.push(self.inner(key, path, Some(table), Some(line), &mut shape));
        }
        read
    }

    fn inner<T>(
        &mut self,
        key: &'static str,
        path: String,
        table: Option<&DeTable<'_>>,
        line: Option<usize>,
        shape: impl FnOnce(&mut Reader<'_>) -> T,
    ) -> T {
        let pattern = join(&self.pattern, key);
        let mut reader = Reader { table, line, path, pattern, asked: Vec::new(), report: &mut *self.report };
        let value = shape(&mut reader);
        reader.finish();
        value
    }

    /// Notes the keys of this table that no getter asked for. Their values are not noted: an unknown key may
    /// hold anything, a credential included.
    fn finish(self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref();
            if !self.asked.iter().any(|asked| asked == name) {
                let line = self.report.line(&key.span());
                let (path, siblings) = (join(&self.path, name), self.asked.clone());
                self.report.note_unknown(Unknown { path, name: name.to_string(), line, siblings });
            }
        }
    }

    fn text(&mut self, key: &'static str, expected: &str) -> Option<&'a str> {
        match self.get(key)? {
            DeValue::String(text) => Some(text),
            value => self.wrong_type(key, value, expected),
        }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a DeValue<'a>> {
        self.get_spanned(key).map(Spanned::get_ref)
    }

    fn get_spanned(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
            self.report.note_known(join(&self.pattern, key));
        }
        let value = self.table?.get(key)?;
        self.report.note_written(join(&self.path, key), shown(value.get_ref()), &value.span());
        Some(value)
    }

    fn within<T: PartialOrd>(
        &mut self,
        key: &'static str,
        value: Option<T>,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        match value {
            Some(value) if range.contains(&value) => Some(value),
            _ => {
                let (least, most) = (show(range.start()), show(range.end()));
                self.refuse(key, format!("must be from {least} to {most}"), None)
            }
        }
    }

    fn wrong_type<T>(&mut self, key: &'static str, value: &DeValue<'_>, expected: &str) -> Option<T> {
        self.refuse(key, format!("expected {expected}, found {}", type_name(value)), None)
    }

    /// Notes a fault; `None` is what the getter then returns.
    fn refuse<T>(&mut self, key: &str, reason: impl Into<String>, hint: Option<String>) -> Option<T> {
        self.report.fault(join(&self.path, key), reason).hint = hint;
        None
    }
}
