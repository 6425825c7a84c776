//! What was seen while a file was read: which keys are known, what was written where, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::nearest::nearest;
use crate::text::Lines;
use crate::{Fault, Faults};

/// Up to this many known names are listed for an unknown key that resembles none of them; more would bury the
/// message.
const MAX_NAMES_LISTED: usize = 12;

/// The record of one reading. Nothing is refused until [`into_result`](Report::into_result) is called.
#[derive(Debug)]
#[must_use = "the faults found are lost unless `into_result` is called"]
pub struct Report {
    lines: Lines,
    faults: Vec<Fault>,
    unknown: Vec<Unknown>,
    written: BTreeMap<String, Written>,
    known: BTreeSet<String>,
}

/// A key that the file has and no getter asked for.
#[derive(Debug)]
pub(crate) struct Unknown {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) line: usize,
    /// The names known in the same table.
    pub(crate) siblings: Vec<&'static str>,
}

#[derive(Debug)]
struct Written {
    value: Option<String>,
    line: usize,
}

impl Report {
    pub(crate) fn new(lines: Lines) -> Self {
        Self {
            lines,
            faults: Vec::new(),
            unknown: Vec::new(),
            written: BTreeMap::new(),
            known: BTreeSet::new(),
        }
    }

    /// Adds a fault of the key at this dotted path (as [`Reader::path`](crate::Reader::path) and the key give
    /// it); its line and value are filled in when the file has that key.
    pub fn fault(&mut self, path: impl Into<String>, reason: impl Into<String>) -> &mut Fault {
        let mut fault = Fault::new(path, reason);
        if let Some(written) = self.written.get(&fault.key) {
            fault.value.clone_from(&written.value);
            fault.line = Some(written.line);
        }
        self.faults.push(fault);
        self.faults.last_mut().expect("was pushed on the line above")
    }

    /// Adds a fault of a key that is absent from the table at `table`, on that table's line.
    pub fn fault_in(
        &mut self,
        table: &str,
        path: impl Into<String>,
        reason: impl Into<String>,
    ) -> &mut Fault {
        let line = self.written.get(table).map(|written| written.line);
        let fault = self.fault(path, reason);
        fault.line = fault.line.or(line);
        fault
    }

    /// Whether the file has the key at this dotted path, with a value of any type.
    pub fn is_written(&self, path: &str) -> bool {
        self.written.contains_key(path)
    }

    /// Whether a fault was noted of this key, or of anything inside it; unknown keys are not counted. What was
    /// refused reads as absent, so ask this before another fault is derived from the absence or the default.
    pub fn has_fault(&self, path: &str) -> bool {
        let inside = |key: &str| {
            key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.faults.iter().any(|fault| inside(&fault.key))
    }

    /// The dotted path of every key that a getter asked for, tables included, array indices left out.
    /// Keys inside an array of tables are known only when the file has an element of it.
    pub fn known_keys(&self) -> &BTreeSet<String> {
        &self.known
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// Every fault found, unknown keys included, in the order of the file.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Faults> {
        for unknown in std::mem::take(&mut self.unknown) {
            let hint = self.hint_for(&unknown);
            let line = Some(unknown.line);
            self.faults.push(Fault { line, hint, ..Fault::new(unknown.path, "unknown key") });
        }
        Faults::of(self.faults).map_or(Ok(value), Err)
    }

    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        self.lines.line(span)
    }

    pub(crate) fn note_known(&mut self, pattern: String) {
        self.known.insert(pattern);
    }

    pub(crate) fn note_written(&mut self, path: String, value: Option<String>, span: &Range<usize>) {
        let line = self.line(span);
        self.written.insert(path, Written { value, line });
    }

    pub(crate) fn note_unknown(&mut self, unknown: Unknown) {
        self.unknown.push(unknown);
    }

    /// What the unknown key was meant to be: a name beside it, else the same name in another table, else one
    /// of a short list. Asked at the end, when every table's names are known.
    fn hint_for(&self, unknown: &Unknown) -> Option<String> {
        if let Some(name) = nearest(&unknown.name, unknown.siblings.iter().copied()) {
            return Some(format!("did you mean `{name}`?"));
        }
        let elsewhere = self.known.iter().find(|path| last_name(path) == unknown.name);
        if let Some(path) = elsewhere {
            return Some(format!("did you mean `{path}`?"));
        }
        let few = !unknown.siblings.is_empty() && unknown.siblings.len() <= MAX_NAMES_LISTED;
        few.then(|| format!("known here: {}", unknown.siblings.join(", ")))
    }
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
