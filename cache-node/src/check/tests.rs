use super::*;
use crate::config::{self, DiskIo};

const MEMINFO: &str =
    "MemTotal:       1000 kB\nMemAvailable:    500 kB\nHugePages_Free:        3\nHugepagesize:     100 kB\n";

#[test]
fn too_little_memory_is_said_with_whose_limit_it_is() {
    let kib = |count: u64| count * 1024;
    assert_eq!(memory::enough(kib(500), MEMINFO, None).verdict, Verdict::Good);
    let bad = memory::enough(kib(501), MEMINFO, None);
    assert_eq!(bad.verdict, Verdict::Bad);
    assert!(bad.to_string().contains("make host.size smaller"), "{bad}");
    let grouped = memory::enough(kib(100), MEMINFO, Some(kib(50)));
    assert!(grouped.what.contains("control group") && grouped.verdict == Verdict::Bad, "{grouped}");
    assert_eq!(memory::enough(kib(100), MEMINFO, Some(kib(5000))).verdict, Verdict::Good);
    let reserved = MEMINFO.replace("500 kB", "5 kB");
    assert_eq!(memory::enough(kib(300), &reserved, None).verdict, Verdict::Good, "huge pages are free");
    assert_eq!(memory::enough(1, "", None).verdict, Verdict::Poor);
    assert_eq!(memory::kib_line(MEMINFO, "MemTotal"), Some(kib(1000)));
}

#[test]
fn what_io_uring_means_follows_from_what_was_asked_for() {
    let refused = || Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
    for (io, allowed, verdict) in [
        (DiskIo::Auto, Ok(()), Verdict::Good),
        (DiskIo::Auto, refused(), Verdict::Poor),
        (DiskIo::Uring, refused(), Verdict::Bad),
        (DiskIo::Threads, refused(), Verdict::Good),
        (DiskIo::Threads, Ok(()), Verdict::Poor),
    ] {
        assert_eq!(disk::uring(io, allowed).verdict, verdict, "{io:?}");
    }
}

fn on(directory: &Path, capacity: &str) -> Vec<Finding> {
    let text = format!(
        "engine_socket = \"/s\"\nhost = {{ size = \"64MiB\" }}\n[disk]\npath = {directory:?}\ncapacity = \"{capacity}\""
    );
    run(&config::parse(&text).unwrap())
}

fn of<'a>(found: &'a [Finding], key: &str, says: &str) -> &'a Finding {
    found
        .iter()
        .find(|it| it.key == key && it.what.contains(says))
        .unwrap_or_else(|| panic!("{says}: {found:?}"))
}

/// On a real directory, which it leaves as it was. What the machine gives differs; that each probe answers does not.
#[test]
fn every_probe_answers_on_a_real_directory() {
    let directory = tempfile::tempdir().unwrap();
    let found = on(directory.path(), "1GiB");
    for (key, says) in [
        ("host.size", "slab and one region take"),
        ("host.size", "pages of"),
        ("host.size", "locked"),
        ("disk.path", "O_DIRECT"),
        ("disk.io", "io_uring"),
        ("disk.capacity", "can be had"),
    ] {
        let finding = of(&found, key, says);
        assert!(finding.verdict == Verdict::Good || !finding.change.is_empty(), "{finding}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn what_cannot_be_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let found = on(directory.path(), "1024TiB");
    assert_eq!(of(&found, "disk.capacity", "can be had").verdict, Verdict::Poor);
    let missing = directory.path().join("a/b");
    let found = on(&missing, "1GiB");
    assert_eq!(of(&found, "disk.path", "will be made").verdict, Verdict::Good);
    assert!(!missing.exists(), "a check makes nothing");
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let bad = on(&path, "1GiB");
        assert!(bad.iter().any(|it| it.key == "disk.path" && it.verdict == Verdict::Bad), "{bad:?}");
    }
}

/// Memory that looks like a disk is told apart, where there is such a thing.
#[test]
fn memory_is_no_disk() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
    let found = on(directory.path(), "4MiB\"\nsegment = \"1MiB");
    assert_eq!(of(&found, "disk.path", "tmpfs").verdict, Verdict::Poor);
}
