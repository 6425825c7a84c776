//! As much of Rust's grammar as the rules need: what is code, what is a string, what is neither.

use super::tree::File;

/// Files that may touch raw memory, and why each must.
pub(super) const UNSAFE_FILES: &[(&str, &str)] = &[
    ("bench/src/store/mapped.rs", "maps a node's memory as an engine would"),
    ("cache-node/identity/src/scan/avx2.rs", "AVX2 intrinsics, behind run-time detection"),
    ("cache-node/identity/src/xxh3/avx2.rs", "AVX2 intrinsics, behind run-time detection"),
    (
        "cache-node/src/medium/disk/media/uring.rs",
        "hands buffers to io_uring, and waits until it is done with them",
    ),
    ("cache-node/src/medium/memory.rs", "the slab that engines map: memory shared between processes"),
    ("cache-node/src/medium/memory/tests.rs", "maps the slab as an engine would, and as it must not"),
    ("cache-node/src/peer.rs", "a process descriptor handed to tokio"),
    ("cache-node/tests/it/engine.rs", "takes ownership of descriptors received over a socket"),
    ("kernels/emulator/src/abi.rs", "the C functions of a driver, for tests"),
    ("kernels/emulator/src/abi/batch.rs", "the C functions of a driver, for tests"),
    ("kernels/emulator/src/abi/lookup.rs", "the C functions of a driver, for tests"),
    ("kernels/emulator/src/abi/virtual_memory.rs", "the C functions of a driver, for tests"),
    ("kernels/emulator/src/controls.rs", "calls into the emulator's library by name"),
    ("kernels/emulator/src/memory.rs", "the emulator's copies between raw addresses"),
    ("kernels/emulator/src/memory/mapping.rs", "the emulator's device memory, shared between processes"),
    ("kernels/src/calls.rs", "the CUDA driver's functions, looked up by name"),
    ("kernels/src/device.rs", "calls of the CUDA driver"),
    ("kernels/src/driver.rs", "calls of the CUDA driver, and its library"),
    ("kernels/src/event.rs", "calls of the CUDA driver"),
    ("kernels/src/imported.rs", "another process's device memory, by the CUDA driver"),
    ("kernels/src/kernels.rs", "starts kernels with raw parameters"),
    ("kernels/src/memory.rs", "pinned and device memory of the CUDA driver"),
    ("kernels/src/stream.rs", "copies between raw addresses, by the CUDA driver"),
    ("kernels/src/virtual_memory.rs", "device memory of the CUDA driver, mapped by hand"),
    ("kernels/tests/it/world.rs", "received descriptors and mapped memory, for tests"),
];

/// Uses of `unsafe` outside `listed`, and listed files without any.
pub(super) fn unlisted_unsafe(sources: &[File], listed: &[(&str, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for File { path, text } in sources {
        let code = code(text);
        let uses = code.lines().enumerate().filter(|(_, line)| words(line).any(|(_, word)| word == "unsafe"));
        let first = uses.map(|(number, _)| number + 1).next();
        let is_listed = listed.iter().any(|(file, _)| file == path);
        match first {
            Some(line) if !is_listed => {
                complaints.push(format!("{path}:{line} is unsafe and not listed in tests/it/tidy/rust.rs"));
            }
            None if is_listed => complaints.push(format!("{path} is listed and has nothing unsafe")),
            _ => {}
        }
    }
    let gone = listed.iter().filter(|(file, _)| !sources.iter().any(|source| source.path == *file));
    complaints.extend(gone.map(|(file, _)| format!("{file} is listed and does not exist")));
    complaints
}

/// The words of a line of code, and where each begins.
pub(super) fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    line.split(move |c| !is_word(c)).map(move |word| {
        let begin = at;
        at += word.len() + line[at + word.len()..].chars().next().map_or(0, char::len_utf8);
        (begin, word)
    })
}

/// The code alone: no comments, strings and characters empty, lines where they were.
pub(super) fn code(source: &str) -> String {
    split(source).0
}

/// The strings alone, as they are written.
pub(super) fn strings(source: &str) -> Vec<String> {
    split(source).1
}

fn split(source: &str) -> (String, Vec<String>) {
    let (mut code, mut strings) = (String::with_capacity(source.len()), Vec::new());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let (piece, is_code) = piece(rest);
        if is_code {
            code.push_str(piece);
        } else {
            // Its delimiters stay, so that what is around it stays apart.
            let string = string_of(piece);
            if let Some(begin) =
                string.as_ref().map(|inner| inner.as_ptr() as usize - piece.as_ptr() as usize)
            {
                let inner = string.unwrap_or_default();
                code.push_str(&piece[..begin]);
                code.extend(inner.chars().filter(|c| *c == '\n'));
                code.push_str(&piece[begin + inner.len()..]);
                if next != '\'' && !piece.starts_with("b'") {
                    strings.push(inner.to_owned());
                }
            } else {
                code.extend(piece.chars().filter(|c| *c == '\n'));
            }
        }
        rest = &rest[piece.len()..];
    }
    (code, strings)
}

/// The inside of a string or character literal; none for a comment.
fn string_of(literal: &str) -> Option<&str> {
    let quote = literal.find(['"', '\'']).filter(|_| !literal.starts_with('/'))?;
    let hashes = literal[..quote].matches('#').count();
    literal.get(quote + 1..literal.len().checked_sub(1 + hashes)?)
}

/// The first piece of `rest`, and whether it is code.
fn piece(rest: &str) -> (&str, bool) {
    if rest.starts_with("//") {
        return (&rest[..rest.find('\n').unwrap_or(rest.len())], false);
    }
    if rest.starts_with("/*") {
        return (&rest[..block_comment(rest)], false);
    }
    let prefix = rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len();
    if prefix <= 2 {
        let after = &rest[prefix..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        if rest[..prefix].ends_with('r') && after[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let inner = prefix + hashes + 1;
            let length = rest[inner..].find(&end).map_or(rest.len(), |at| inner + at + end.len());
            return (&rest[..length], false);
        }
        if after.starts_with('"') && !rest[..prefix].ends_with('r') {
            return (&rest[..prefix + quoted(after, '"')], false);
        }
        if after.starts_with('\'') && is_character(after) && matches!(&rest[..prefix], "" | "b") {
            return (&rest[..prefix + quoted(after, '\'')], false);
        }
    }
    // A whole word at once, so that the b of `verb"` is no prefix.
    let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let length = if word > 0 { word } else { rest.chars().next().map_or(0, char::len_utf8) };
    (&rest[..length], true)
}

/// `'a'` and `'\n'`, not the `'a` of a lifetime.
fn is_character(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

/// Length of a quoted piece that begins at `rest`.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        match rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}
