//! Memory: whether there is enough, of which pages the slab will be made and what they cost, whether it can be locked.

use std::time::Instant;

use rustix::process::{Resource, getrlimit};

use super::{Finding, read, size};
use crate::config::Config;
use crate::medium::memory::{Others, Pages, SharedMemory};

/// What is taken to see what the slab will be made of: one extent.
const PROBE_BYTES: u64 = crate::config::EXTENT_BYTES;

/// What is copied at once.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn probe(config: &Config) -> Vec<Finding> {
    let mut found =
        vec![enough(config.host_bytes + config.region_bytes, &read("/proc/meminfo"), cgroup_left())];
    match SharedMemory::create("larder-probe", PROBE_BYTES, Others::Read) {
        Ok(memory) => {
            found.push(pages(config.host_bytes, &memory));
            found.push(locking(config.host_bytes, &memory));
        }
        Err(error) => {
            let what = format!("{} of shared memory cannot be made: {error}", size(PROBE_BYTES));
            found.push(Finding::bad("host.size", what, "allow memfd_create and mmap (seccomp, RLIMIT_AS)"));
        }
    }
    found
}

/// The named line of /proc/meminfo or of an entry of /proc/self/smaps, in bytes.
pub(super) fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What this process' group may still take, if it has a limit
/// (<https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>).
fn cgroup_left() -> Option<u64> {
    let group = read("/proc/self/cgroup");
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?.trim_end_matches('/');
    let number = |file: &str| read(&format!("/sys/fs/cgroup{path}/{file}")).trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

pub(super) fn enough(wanted: u64, meminfo: &str, group_left: Option<u64>) -> Finding {
    let huge = kib_line(meminfo, "Hugepagesize").unwrap_or(0);
    let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let huge_free = free.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0) * huge;
    let Some(available) = kib_line(meminfo, "MemAvailable") else {
        return Finding::poor("host.size", "/proc/meminfo cannot be read".to_owned(), "mount /proc");
    };
    let available = available.max(huge_free);
    let (left, whose) = match group_left {
        Some(left) if left < available => (left, "this control group may take"),
        _ => (available, "are available"),
    };
    let what = format!("slab and one region take {}, {} {whose}", size(wanted), size(left));
    if wanted > left {
        return Finding::bad("host.size", what, "make host.size smaller, or give the host more memory");
    }
    Finding::good("host.size", what)
}

/// Of which pages the slab will be made, and what taking and copying into them costs.
fn pages(host_bytes: u64, memory: &SharedMemory) -> Finding {
    let piece = vec![1_u8; PIECE_BYTES];
    let take = seconds(|| fill(memory, &piece));
    let copy = seconds(|| fill(memory, &piece));
    let per_gib = (1_u64 << 30) as f64 / PROBE_BYTES as f64;
    let kind = memory.pages();
    let what = format!(
        "pages of {}: taking them costs {:.2} s a GiB ({:.0} s for all), then copying goes at {:.1} GB/s",
        match kind {
            Pages::Reserved => "hugetlbfs",
            Pages::Transparent => "2 MiB (transparent)",
            Pages::Small => "4 KiB",
        },
        take * per_gib,
        take * host_bytes as f64 / PROBE_BYTES as f64,
        PROBE_BYTES as f64 / copy / 1e9,
    );
    let huge = kib_line(&read("/proc/meminfo"), "Hugepagesize").unwrap_or(2 << 20).max(1);
    let reserve = format!(
        "reserve huge pages (sysctl vm.nr_hugepages={}, best at boot) or allow transparent ones for shared memory \
         (echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled)",
        host_bytes.div_ceil(huge)
    );
    match kind {
        Pages::Reserved | Pages::Transparent => Finding::good("host.size", what),
        Pages::Small => Finding::poor("host.size", what, reserve),
    }
}

fn fill(memory: &SharedMemory, piece: &[u8]) {
    for offset in (0..PROBE_BYTES).step_by(PIECE_BYTES) {
        memory.fill(&[(offset, PIECE_BYTES as u64)], |mut parts| {
            parts.iter_mut().for_each(|part| part.copy_from_slice(piece));
        });
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Whether the slab could be locked: what is not may be swapped out, and not every device can pin it.
fn locking(host_bytes: u64, memory: &SharedMemory) -> Finding {
    let limit = getrlimit(Resource::Memlock).current;
    let shown = limit.map_or("unlimited".to_owned(), size);
    let swap = kib_line(&read("/proc/meminfo"), "SwapTotal").unwrap_or(0);
    let tried = memory.lock_and_unlock();
    // Whoever has CAP_IPC_LOCK is not limited: then the piece could be locked though it is above the limit.
    let above = limit.is_some_and(|limit| limit < PROBE_BYTES);
    match tried {
        Ok(()) if above || limit.is_none_or(|limit| limit >= host_bytes) => {
            Finding::good("host.size", format!("memory can be locked (RLIMIT_MEMLOCK {shown})"))
        }
        result => {
            let why = result.err().map_or_else(String::new, |error| format!(": {error}"));
            let swapped = if swap > 0 { ", and this host swaps" } else { "; nothing swaps here" };
            let what = format!("the slab cannot be locked (RLIMIT_MEMLOCK {shown}{why}){swapped}");
            Finding::poor("host.size", what, "set LimitMEMLOCK=infinity in the unit (ulimit -l unlimited)")
        }
    }
}
