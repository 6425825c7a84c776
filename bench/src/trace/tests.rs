use super::*;
use std::io::Write;
use std::path::PathBuf;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("larder-bench-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const AGENTIC: &str = concat!(
    r#"{"id":"a","block_size":64,"hash_id_scope":"local","requests":[{"t":0.0,"in":200,"out":7,"think_time":0.0,"hash_ranges":[[1,3]]},"#,
    r#"{"type":"subagent","requests":[{"in":130,"out":5,"think_time":2.5,"hash_ranges":[[90,2]]}]},"#,
    r#"{"in":330,"out":9,"think_time":12.0,"hash_ranges":[[1,3],[10,2]]}]}"#,
    "\n\n",
    r#"{"id":"b","block_size":64,"requests":[{"in":64,"out":1,"hash_ranges":[[1,1]]}]}"#,
    "\n"
);
const UNPACKED: &str = concat!(
    r#"{"id":"a","block_size":64,"hash_id_scope":"local","requests":[{"t":0.0,"in":200,"out":7,"think_time":0.0,"hash_ids":[1,2,3]},"#,
    r#"{"type":"subagent","requests":[{"in":130,"out":5,"think_time":2.5,"hash_ids":[90,91]}]},"#,
    r#"{"in":330,"out":9,"think_time":12.0,"hash_ids":[1,2,3,10,11]}]}"#,
    "\n",
    r#"{"id":"b","block_size":64,"requests":[{"in":64,"out":1,"hash_ids":[1]}]}"#
);
const MOONCAKE: &str = "{\"timestamp\": 2000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [0, 1]}\n\
    {\"timestamp\": 3500, \"input_length\": 1024, \"output_length\": 6, \"hash_ids\": [0, 9]}\n";

fn read(path: &std::path::Path, format: Format) -> Result<Trace, Error> {
    Trace::read(path, format, 512)
}

fn reason(path: &std::path::Path, format: Format) -> String {
    read(path, format).unwrap_err().to_string()
}

#[test]
fn agentic_sessions_keep_order_sub_agents_in_place_and_local_scope() {
    let folder = Folder::new("agentic");
    let trace = read(&folder.file("t.jsonl", AGENTIC.as_bytes()), Format::Agentic).unwrap();
    assert_eq!((trace.name.as_str(), trace.block_tokens, trace.sessions.len()), ("t.jsonl", 64, 2));
    let inputs: Vec<u64> = trace.sessions[0].requests.iter().map(|request| request.input_tokens).collect();
    assert_eq!(inputs, [200, 130, 330]);
    assert_eq!(trace.sessions[0].requests[1].think_s, 2.5);
    assert_eq!(trace.sessions[0].requests[2].blocks.iter().collect::<Vec<_>>(), [1, 2, 3, 10, 11]);
    // Session a: 1..=3, 10, 11, 90, 91; session b has its own block 1.
    assert_eq!(trace.unique_blocks(), 7 + 1);
}

#[test]
fn hash_ids_read_as_the_ranges_they_were_packed_from() {
    let folder = Folder::new("unpacked");
    let packed = read(&folder.file("t.jsonl", AGENTIC.as_bytes()), Format::Agentic).unwrap();
    let unpacked = read(&folder.file("u.jsonl", UNPACKED.as_bytes()), Format::Agentic).unwrap();
    assert_eq!(packed.sessions, unpacked.sessions);
}

#[test]
fn a_folder_of_sessions_reads_in_the_order_of_names() {
    let folder = Folder::new("folder");
    let (first, second) = AGENTIC.trim().split_once("\n\n").unwrap();
    folder.file("2.json", second.as_bytes());
    folder.file("1.json", first.as_bytes());
    folder.file("README.md", b"not a session");
    let ids: Vec<String> =
        read(&folder.0, Format::Agentic).unwrap().sessions.into_iter().map(|session| session.id).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[test]
fn packed_files_read_as_the_plain_one() {
    let folder = Folder::new("packed");
    let plain = read(&folder.file("t.jsonl", AGENTIC.as_bytes()), Format::Agentic).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(6)).unwrap();
    xz.write_all(AGENTIC.as_bytes()).unwrap();
    let xz = xz.finish().unwrap();
    // Two frames in one file, cut in the middle of a line.
    let frame = |text: &str| {
        ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
    };
    let (head, tail) = AGENTIC.split_at(100);
    let zst = [frame(head), frame(tail)].concat();
    for (name, bytes) in [("t.jsonl.xz", &xz), ("t.jsonl.zst", &zst)] {
        let packed = read(&folder.file(name, bytes), Format::Agentic).unwrap();
        assert_eq!(packed.sessions, plain.sessions, "{name}");
    }
    for (name, bytes) in [("cut.jsonl.xz", &xz[..xz.len() / 2]), ("cut.jsonl.zst", &zst[..zst.len() / 2])] {
        let reason = reason(&folder.file(name, bytes), Format::Agentic);
        assert!(reason.contains("cannot unpack or read it"), "{name}: {reason}");
    }
    assert!(reason(&folder.file("no.jsonl.xz", AGENTIC.as_bytes()), Format::Agentic).contains("line 1"));
}

#[test]
fn mooncake_arrivals_start_at_zero_and_ids_are_shared() {
    let folder = Folder::new("mooncake");
    let trace = read(&folder.file("t.jsonl", MOONCAKE.as_bytes()), Format::Mooncake).unwrap();
    let requests = &trace.sessions[0].requests;
    assert_eq!(requests.iter().map(|request| request.at_s).collect::<Vec<_>>(), [0.0, 1.5]);
    assert_eq!((trace.block_tokens, trace.sessions[0].scope.as_str(), trace.unique_blocks()), (512, "", 3));
}

#[test]
fn malformed_lines_are_named_with_number_and_reason() {
    let folder = Folder::new("malformed");
    let good = r#"{"id":"a","block_size":64,"requests":[{"in":64,"out":1,"hash_ids":[1]}]}"#;
    let cases: [(&str, &str); 8] = [
        ("{\"id\":", "EOF while parsing"),
        (r#"{"id":"a","requests":[]}"#, "missing field `block_size`"),
        (r#"{"id":"a","block_size":16,"requests":[]}"#, "block_size 16 differs from the first session's 64"),
        (r#"{"id":"a","block_size":0,"requests":[]}"#, "block_size is 0"),
        (r#"{"id":"a","block_size":64,"requests":[{"out":1,"hash_ids":[1]}]}"#, "request 1: `in` is missing"),
        (r#"{"id":"a","block_size":64,"requests":[{"in":0,"hash_ids":[1]}]}"#, "`in` is 0, outside 1..="),
        (r#"{"id":"a","block_size":64,"requests":[{"in":9}]}"#, "neither `hash_ranges` nor `hash_ids`"),
        (
            r#"{"id":"a","block_size":64,"requests":[{"in":9,"hash_ranges":[[18446744073709551615,9]]}]}"#,
            "ends beyond 64 bits",
        ),
    ];
    for (line, expected) in cases {
        let path = folder.file("bad.jsonl", format!("{good}\n\n{line}\n").as_bytes());
        let reason = reason(&path, Format::Agentic);
        assert!(reason.contains("line 3: ") && reason.contains(expected), "{line}: {reason}");
    }
    let path = folder.file("bad.jsonl", format!("{MOONCAKE}{{\"timestamp\": 1}}\n").as_bytes());
    let reason = reason(&path, Format::Mooncake);
    assert!(reason.contains("line 3: missing field `input_length` at column"), "{reason}");
}

#[test]
fn nothing_to_read_is_an_error() {
    let folder = Folder::new("nothing");
    let missing = read(&folder.0.join("no.jsonl"), Format::Agentic).unwrap_err();
    assert_eq!((missing.exit_code(), missing.to_string().contains("no such file")), (64, true));
    assert!(reason(&folder.file("empty.jsonl", b"\n"), Format::Mooncake).contains("no requests"));
}

#[test]
fn the_sample_in_the_tree_is_what_its_readme_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("traces/agentic_sample.jsonl.xz");
    let trace = read(&path, Format::Agentic).unwrap();
    let tokens: u64 = trace.requests().map(|request| request.input_tokens).sum();
    assert_eq!((trace.sessions.len(), trace.requests().count()), (120, 9395));
    assert_eq!((tokens / 9395, trace.unique_blocks() * trace.block_tokens), (115_080, 38_611_200));
}

proptest::proptest! {
    /// Against the plainest oracle: every id in a set.
    #[test]
    fn ranges_keep_ids_and_merging_counts_them_once(
        pushed in proptest::collection::vec((0u64..60, 0u64..9), 0..30)
    ) {
        let mut blocks = Blocks::default();
        let mut ids = Vec::new();
        for &(start, len) in &pushed {
            blocks.push(start, len).unwrap();
            ids.extend(start..start + len);
        }
        proptest::prop_assert_eq!(blocks.iter().collect::<Vec<_>>(), ids.clone());
        proptest::prop_assert_eq!(blocks.len(), ids.len() as u64);
        let mut ranges: Vec<_> = blocks.ranges().collect();
        blocks::merge(&mut ranges);
        let distinct: std::collections::BTreeSet<u64> = ids.into_iter().collect();
        let merged: Vec<u64> = ranges.iter().flat_map(|&(start, len)| start..start + len).collect();
        proptest::prop_assert_eq!(merged, distinct.into_iter().collect::<Vec<_>>());
    }
}
