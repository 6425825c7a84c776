//! What is wrong with one key, and the list of all that is wrong with a file.

use std::fmt;
use std::path::Path;

#[cfg(test)]
mod tests;

/// One thing that is wrong, said so that its reader can mend it without opening the manual.
///
/// Displayed as `line N: key = value: reason (hint)`, always on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: the dotted path, with zero-based indices in arrays (`pool[0].endpoint[1].url`). Empty when the
    /// fault is about the file as a whole.
    pub key: String,
    /// What was written there, escaped and shortened. `None` when nothing was, or when it may hold a credential.
    pub value: Option<String>,
    /// What is wrong with it: lower case, no full stop.
    pub reason: String,
    /// What to write instead, when that is known.
    pub hint: Option<String>,
    /// The line of the file, counted from 1. `None` when no line is to blame.
    pub line: Option<usize>,
}

impl Fault {
    /// A fault of `key` with no value, hint or line yet.
    pub fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, reason: reason.into(), hint: None, line: None }
    }

    /// Says what to write instead.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(out, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(out, "{}", OneLine(&self.key))?;
            if let Some(value) = &self.value {
                write!(out, " = {}", OneLine(value))?;
            }
            write!(out, ": ")?;
        }
        write!(out, "{}", OneLine(&self.reason))?;
        match &self.hint {
            Some(hint) => write!(out, " ({})", OneLine(hint)),
            None => Ok(()),
        }
    }
}

/// Text from a file, without the control characters that would break a line or drive a terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            // U+2028 and U+2029 are line breaks to some readers of logs, though not control characters.
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(out, "{}", c.escape_default())?;
            } else {
                write!(out, "{c}")?;
            }
        }
        Ok(())
    }
}

/// All that is wrong with one configuration: at least one [`Fault`], in the order of the file.
///
/// Displayed one fault a line, each after the file's name when it is known. The list is bounded by the
/// file's size, see [`MAX_FILE_BYTES`](crate::MAX_FILE_BYTES).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    file: Option<String>,
    list: Vec<Fault>,
}

impl Faults {
    /// The faults in the order of their lines; those without a line come last. `None` for an empty list.
    pub(crate) fn of(mut list: Vec<Fault>) -> Option<Self> {
        list.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        (!list.is_empty()).then_some(Self { file: None, list })
    }

    /// The same faults, displayed after the name of the file they are in.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.display().to_string());
        self
    }

    /// Each fault, in the order of the file.
    pub fn list(&self) -> &[Fault] {
        &self.list
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self { file: None, list: vec![fault] }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            if let Some(file) = &self.file {
                write!(out, "{}: ", OneLine(file))?;
            }
            write!(out, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
