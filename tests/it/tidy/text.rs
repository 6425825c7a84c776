//! Rules about the text of files.

use super::rust;
use super::tree::File;

/// Lines that no file exceeds: beyond it nobody knows what is in a file.
const LINES_MAX: usize = 800;

/// Said in halves, since this file is searched too.
pub(super) const FIX_ME: &str = concat!("FIX", "ME");

/// Macros that stand for work left undone or for a look inside.
const UNDONE: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Folders that exist on somebody's machine only, or that belong to nobody.
pub(super) const MACHINE_PLACES: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/t", "mp/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

pub(super) fn too_long(files: &[File]) -> Vec<String> {
    let lines = |file: &File| file.text.lines().count();
    let long = files.iter().filter(|file| lines(file) > LINES_MAX);
    long.map(|file| format!("{} has {} lines, more than {LINES_MAX}", file.path, lines(file))).collect()
}

pub(super) fn unfinished(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for File { path, text } in files {
        let mut complain =
            |number: usize, what: &str| complaints.push(format!("{path}:{} {what}", number + 1));
        for (number, _) in text.lines().enumerate().filter(|(_, line)| line.contains(FIX_ME)) {
            complain(number, FIX_ME);
        }
        if path.ends_with(".rs") {
            for (number, line) in rust::code(text).lines().enumerate() {
                for macro_name in UNDONE.into_iter().filter(|name| calls(line, name)) {
                    complain(number, macro_name);
                }
            }
        }
    }
    complaints
}

fn calls(code: &str, macro_name: &str) -> bool {
    rust::words(code)
        .any(|(at, word)| word == macro_name && code[at + word.len()..].trim_start().starts_with('!'))
}

pub(super) fn machine_paths(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for File { path, text } in files {
        for (number, line) in text.lines().enumerate() {
            for place in MACHINE_PLACES {
                let absolute = line.match_indices(place).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "._-}*>".contains(c))
                });
                if absolute {
                    complaints.push(format!("{path}:{} names {place}", number + 1));
                }
            }
        }
    }
    complaints
}
