//! The disk tier of a real node: what survives a restart, and what becomes of damage.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_client::{Client, Settings};
use larder_protocol::control::{ChainPoint, StageReason, StageRequest};
use larder_protocol::message::{Release, Verdict};
use larder_protocol::{LeaseId, Tag, ToEngine};
use tempfile::TempDir;

use crate::engine::{Engine, content, register};
use crate::node::{self, Node, PATIENCE};

const PART: u64 = 100_000;

/// Bytes of a record: one block of header, the chunk in whole blocks.
const RECORD: u64 = 4096 + 102_400;

/// The lines of a disk tier in `directory/kv` that takes everything at once.
pub(crate) fn tier(directory: &Path, more: &str) -> String {
    let path = directory.join("kv");
    format!("[disk]\npath = {path:?}\ncapacity = \"64MiB\"\nsegment = \"4MiB\"\nadmit_uses = 0\n{more}\n")
}

pub(crate) fn start(directory: TempDir, before: &str, more: &str) -> Node {
    let lines = format!("{before}\n{}", tier(directory.path(), more));
    let node = node::start_in(directory, &lines);
    node.wait_for("disk_unread_segments", 0);
    node
}

/// Waits until everything that was given out to the disk is done.
pub(crate) fn settle(node: &Node, written: u64) {
    node.wait_for("disk_written_chunks_total", written);
    node.wait_for("disk_writes", 0);
}

/// A node that has prompts of eight chunks on disk, killed; and its directory.
fn killed_with(prompts: u64) -> TempDir {
    let node = start(tempfile::tempdir().unwrap(), "", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    for prompt in 0..prompts {
        assert_eq!(engine.offload(prompt * 8..prompt * 8 + 8), [Verdict::Accepted; 8]);
    }
    settle(&node, prompts * 8);
    node.kill()
}

/// Files of segments; those of recipes have numbers from 2^63 on.
fn segments(directory: &Path) -> Vec<PathBuf> {
    files(directory).into_iter().filter(|path| !holds_recipes(path)).collect()
}

fn holds_recipes(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('8'))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("kv")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "larder")).collect();
    found.sort();
    found
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn what_is_on_disk_outlives_a_kill() {
    let directory = killed_with(3);
    let node = start(directory, "", "");
    assert_eq!(node.stat("disk_recovered_chunks_total"), 24);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let pending = engine.lookup(0..8);
    assert!(
        matches!(&pending, ToEngine::Pending(pending) if pending.chunks == 8 && pending.bytes == 8 * PART),
        "{pending:?}"
    );
    for prompt in 0..3 {
        assert_eq!(engine.load_and_compare(prompt * 8..prompt * 8 + 8), 8);
    }
    assert_eq!(node.stat("raised_chunks_total"), 24);
    let mut other = Engine::connect(&node.socket(), "other", register(PART, 1, 2));
    assert_eq!(other.load_and_compare(0..8), 0, "other weights share nothing, on disk neither");
    node.wait_for("pinned_bytes", 0);
    assert_eq!((node.stat("disk_loads"), node.stat("disk_writes"), node.stat("writing_slots")), (0, 0, 0));
}

/// The version that knows no `pending` is never shown one: it misses, and finds the chunks the next time.
#[test]
fn an_engine_of_version_1_is_told_what_it_knows() {
    let node = start(killed_with(1), "", "");
    let mut engine = Engine::connect_speaking(&node.socket(), "one", register(PART, 1, 1), &[1]);
    assert!(matches!(engine.lookup(0..8), ToEngine::Miss(_)));
    node.wait_for("raised_chunks_total", 8);
    assert_eq!(engine.load_and_compare(0..8), 8);
}

/// What the host tier cannot hold comes back from disk, again and again, right.
#[test]
fn a_working_set_beyond_the_host_tier_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let lines = format!("verify_fresh = \"0s\"\n{}", tier(directory.path(), "").replace("64MiB", "256MiB"));
    let node = node::start_in(directory, &lines);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    // 64 MiB hold 655 chunks of these; 120 prompts have 960.
    for prompt in 0..120 {
        engine.offload(prompt * 8..prompt * 8 + 8);
        settle(&node, prompt * 8 + 8);
    }
    assert!(node.stat("evicted_chunks_total") > 0);
    for prompt in (0..120).chain(0..40) {
        assert_eq!(engine.load_and_compare(prompt * 8..prompt * 8 + 8), 8, "prompt {prompt}");
    }
    assert!(node.stat("raised_chunks_total") >= 960 - 655);
    assert_eq!(node.stat("disk_damaged_chunks_total"), 0);
}

#[test]
fn a_chunk_is_written_at_its_second_use() {
    let directory = tempfile::tempdir().unwrap();
    let lines = tier(directory.path(), "").replace("admit_uses = 0", "admit_uses = 2");
    let node = node::start_in(directory, &lines);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    engine.offload(0..8);
    engine.load_and_compare(0..8);
    engine.load_and_compare(0..4);
    settle(&node, 4);
    assert_eq!(node.stat("disk_chunks"), 4, "the others were used once");
}

/// A stage call for a prompt of eight chunks.
fn request(tag: u128, engine: Option<&str>) -> StageRequest {
    StageRequest {
        tag: Some(Tag(tag)),
        chain: (0..8).map(ChainPoint).collect(),
        run_bytes: 128,
        prompt_bytes: 8 * 128 + 12,
        engine: engine.map(str::to_owned),
        deadline_ms: Some(20_000),
        max_bytes: None,
        tenant: None,
    }
}

/// A stage call waits for the disk, and its grant has everything.
#[test]
fn staging_waits_for_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let lines =
        format!("stage_deadline = \"30s\"\n{}", tier(directory.path(), "").replace("64MiB", "256MiB"));
    let node = node::start_in(directory, &lines);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::new(Settings::new(node.address.parse().unwrap()));
    let stage = |tag| runtime.block_on(client.stage(&request(tag, Some("http://one")), PATIENCE)).unwrap();
    assert_eq!(stage(1).reason, StageReason::NoRecipe);
    engine.lookup_tagged(0..8, Some(Tag(1)));
    engine.offload(0..8);
    settle(&node, 8);
    // All of it leaves the host tier.
    let mut flood = Engine::connect(&node.socket(), "flood", register(PART, 1, 9));
    for prompt in 0..90 {
        (0..3).for_each(|_| drop(flood.offload(1000 + prompt * 8..1008 + prompt * 8)));
    }
    node.wait_for("disk_writes", 0);
    let answer = stage(2);
    assert!(answer.chunks >= 7, "{answer:?}");
    assert!(node.stat("raised_chunks_total") >= 7, "they came from disk");
    engine.wire.say(Release { id: 1, lease: LeaseId(0) });
    engine.hear();
    let grant = engine.grants.pop().expect("a grant");
    assert!(engine.reads_right(0, &grant.slots, &grant.generations));
}

/// After a kill a prompt is staged by its chain, before any engine has told what it begins with; without the file of recipes
/// it is not.
#[test]
fn recipes_outlive_a_kill() {
    let node = start(tempfile::tempdir().unwrap(), "", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = |node: &Node, tag| {
        let client = Client::new(Settings::new(node.address.parse().unwrap()));
        runtime.block_on(client.stage(&request(tag, None), PATIENCE)).unwrap()
    };
    assert_eq!(stage(&node, 1).reason, StageReason::NoRecipe);
    engine.lookup_tagged(0..8, Some(Tag(1)));
    engine.offload(0..8);
    settle(&node, 8);
    let recipes = |directory: &Path| -> u64 {
        let kept = files(directory).into_iter().filter(|path| holds_recipes(path));
        kept.map(|path| path.metadata().unwrap().len()).sum()
    };
    let start_of_wait = std::time::Instant::now();
    while recipes(node.directory.path()) == 0 {
        assert!(start_of_wait.elapsed() < PATIENCE, "the recipe is written");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let node = start(node.kill(), "stage_deadline = \"30s\"", "");
    assert_eq!(node.stat("recovered_recipes_total"), 1);
    let _engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let answer = stage(&node, 2);
    assert!(answer.chunks >= 7, "{answer:?}");
    assert!(node.stat("raised_chunks_total") >= 7, "they came from disk");
    let directory = node.kill();
    for file in files(directory.path()).iter().filter(|path| holds_recipes(path)) {
        std::fs::remove_file(file).unwrap();
    }
    let node = start(directory, "", "");
    let _engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    assert_eq!(stage(&node, 3).reason, StageReason::NoRecipe, "the control");
}

/// A path that cannot be a directory is a fault of the configuration: the node says so and does not start.
#[test]
fn a_path_that_will_not_do_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("kv"), "no directory").unwrap();
    let config = node::config(directory.path(), &tier(directory.path(), ""));
    let started = node::command(&config).output().unwrap();
    assert_eq!(started.status.code(), Some(1));
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(said.contains("disk.path") && said.contains("kv"), "{said}");
    let checked = node::command(&config).arg("--check").output().unwrap();
    assert_eq!(checked.status.code(), Some(64), "{checked:?}");
    assert!(String::from_utf8_lossy(&checked.stderr).contains("disk.path: will not do"), "{checked:?}");
}

/// Wherever a bit of a segment flips, what is handed out is right, and what is not is missed and counted.
#[test]
fn a_flipped_bit_on_disk_is_missed_and_counted() {
    let directory = killed_with(2);
    let files = segments(directory.path());
    assert_eq!(files.len(), 1);
    flip(&files[0], 5 * RECORD + 4096 + 77_777);
    let node = start(directory, "", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(8..16), 8);
    assert_eq!(engine.load_and_compare(0..8), 5, "up to the damaged one");
    let damaged = node.stat("disk_damaged_chunks_total");
    let recovered = node.stat("disk_recovered_chunks_total");
    assert_eq!(damaged + (16 - recovered), 1, "found at the start or when it was read");
    assert_eq!(engine.offload(0..8)[5], Verdict::Accepted, "recomputed");
    assert_eq!(engine.load_and_compare(0..8), 8);
}

/// The negative control: with checksums off the same flip reaches the engine, so the comparison can see it.
#[test]
fn with_checksums_off_a_flipped_bit_on_disk_is_handed_out() {
    let directory = killed_with(1);
    // Given an index, so that the start reads no chunk.
    let node = start(directory, "", "");
    let directory = node.kill();
    flip(&segments(directory.path())[0], 5 * RECORD + 4096 + 77_777);
    let node = start(directory, "verify = \"off\"", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let ToEngine::Leased(lease) = engine.lookup_patiently(0..8) else { panic!("a lease") };
    let mut wrong = content(5, PART);
    wrong[77_777] ^= 1;
    assert_eq!(engine.read(lease.slots[5], lease.generations[5]), Some(wrong));
    assert_eq!(node.stat("disk_damaged_chunks_total"), 0);
}

#[test]
fn a_disk_that_is_removed_costs_nothing_but_itself() {
    let node = start(killed_with(2), "", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(0..4), 4);
    let kv = node.directory.path().join("kv");
    for file in segments(node.directory.path()) {
        // As a drive that is gone: nothing can be read any more, not even by those who have it open.
        OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
    }
    std::fs::remove_dir_all(&kv).unwrap();
    std::fs::write(&kv, "no directory any more").unwrap();
    assert_eq!(engine.load_and_compare(0..8), 4, "what is in memory is served");
    assert_eq!(engine.load_and_compare(8..16), 0);
    assert!(node.stat("disk_failed_loads_total") > 0);
    for prompt in 2..20 {
        assert_eq!(engine.offload(prompt * 8..prompt * 8 + 8), [Verdict::Accepted; 8]);
        assert_eq!(engine.load_and_compare(prompt * 8..prompt * 8 + 8), 8);
    }
    node.wait_for("disk_writes", 0);
    assert!(node.stat("disk_failed_writes_total") > 0);
    assert_eq!(node.stat("disk_damaged_chunks_total"), 0, "what cannot be read is not damaged");
    node.wait_for("pinned_bytes", 0);
}

/// A file system of 12 MiB under a tier that believes in 64: in a mount namespace, where that can be had.
#[test]
fn a_full_disk_costs_nothing_but_itself() {
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("not shown on this machine: mount namespaces are not allowed (unshare -rm)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let kv = directory.path().join("kv");
    std::fs::create_dir(&kv).unwrap();
    let mount = format!("mount -t tmpfs -o size=12m tmpfs {kv:?} && exec \"$@\"");
    let lines = tier(directory.path(), "");
    let node = node::start_by(directory, &lines, &["unshare", "-rm", "sh", "-c", &mount, "sh"]);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    for prompt in 0..40 {
        assert_eq!(engine.offload(prompt * 8..prompt * 8 + 8), [Verdict::Accepted; 8]);
        assert_eq!(engine.load_and_compare(prompt * 8..prompt * 8 + 8), 8);
    }
    node.wait_for("disk_writes", 0);
    assert!(node.stat("disk_full_total") > 0, "it was full");
    assert!(node.stat("disk_written_chunks_total") > 0);
    for prompt in 0..40 {
        assert_eq!(engine.load_and_compare(prompt * 8..prompt * 8 + 8), 8);
    }
    assert_eq!(node.stat("disk_damaged_chunks_total"), 0);
}

#[test]
fn two_nodes_do_not_share_a_directory() {
    let node = start(tempfile::tempdir().unwrap(), "", "");
    let other = tempfile::tempdir().unwrap();
    let config = node::config(other.path(), &tier(node.directory.path(), ""));
    let second = node::command(&config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another process uses this directory"), "{said}");
}

#[test]
fn everything_can_be_forgotten_and_does_not_come_back() {
    let node = start(killed_with(2), "", "");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(0..8), 8);
    let answer = node.post("/v1/clear", &serde_json::json!({}));
    assert_eq!((&answer["cleared_chunks"], &answer["kept_chunks"]), (&8.into(), &0.into()));
    assert_eq!(engine.load_and_compare(0..8) + engine.load_and_compare(8..16), 0);
    node.wait_for("disk_writes", 0);
    let directory = node.kill();
    let node = start(directory, "", "");
    assert_eq!(node.stat("disk_recovered_chunks_total"), 0);
}

/// A scrub meets a flipped bit before anybody asks for the chunk.
#[test]
fn a_scrub_finds_what_has_rotted() {
    let node = start(killed_with(2), "", "");
    let directory = node.kill();
    flip(&segments(directory.path())[0], 5 * RECORD + 4096 + 7);
    let node = start(directory, "", "scrub_rate = \"1GiB\"");
    node.wait_for("disk_damaged_chunks_total", 1);
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(0..8), 5);
    assert_eq!(engine.load_and_compare(8..16), 8);
}
