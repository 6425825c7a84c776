//! The mix of models changes from all of one to all of another, and back: extents change hands, and at the end none is left
//! to a class that nobody asks for.

use super::*;

const CHUNK: u64 = 128 << 10;

/// Extents of the slab: eight small slots or two large ones in each.
const EXTENTS: u32 = 8;

/// Between two prompts.
const SECONDS: u64 = 30;

/// What happens to memory while one engine's prompts come, one each half minute, until `chunks` are held and all are its.
/// Returns how many prompts that took.
fn prompts_until_all_is_had(world: &mut World, engine: ConnectionId, first: u64, count: u64) -> u64 {
    let (all, per_prompt) = (count * u64::from(EXTENTS), count);
    for prompt in 0..400 {
        let from = (first + prompt) * 1000;
        assert!(world.store_all(engine, from..from + per_prompt).contains(&Verdict::Accepted));
        // Somebody reads what was just stored, and copies for a while.
        let lease = world.lease(engine, from..from + 1);
        world.load(engine, lease.lease, 1);
        world.later(SECONDS);
        world.complete(engine, lease.lease);
        let session = world.session(engine);
        let own = world.store.sessions[&session].layout.as_ref().unwrap().namespace;
        let held = world.store.chunks.keys().filter(|name| name.namespace == own).count() as u64;
        let stats = world.store.stats();
        if held == all && stats.chunks == all {
            assert_eq!(stats.free_extents, 0);
            return prompt + 1;
        }
    }
    panic!("memory is stranded: {:?}", world.store.stats())
}

#[test]
fn a_changed_mix_of_models_gets_all_memory_and_gives_it_back() {
    let mut world = World::new(Settings { extents: EXTENTS, pinned_bytes_max: 6 * MIB, ..settings() });
    let small = world.engine(1, &register(CHUNK, 1));
    let large = world.engine(2, &register(4 * CHUNK, 2));
    let filled = prompts_until_all_is_had(&mut world, small, 0, 8);
    assert_eq!(filled, u64::from(EXTENTS), "an empty slab is just filled");
    // A large chunk is worth a quarter of a small one, byte for byte, which outweighs two half-lives of not being used;
    // and each extent has to be refilled.
    let to_large = prompts_until_all_is_had(&mut world, large, 1000, 2);
    let back = prompts_until_all_is_had(&mut world, small, 2000, 8);
    let patience = 4 * HALF_LIFE.as_secs() / SECONDS;
    println!("all small to all large in {to_large} prompts, and back in {back}, one each {SECONDS} s");
    assert!(to_large <= patience && back <= patience, "{to_large} prompts, and {back} back");
    // And once more, from what that has left behind.
    assert!(prompts_until_all_is_had(&mut world, large, 3000, 2) <= patience);
    world.later(3600);
    assert_eq!(world.store.stats().pinned_bytes, 0);
}

/// Several strides at once, of which none divides an extent: whatever is asked for last gets all there is.
#[test]
fn odd_sizes_strand_nothing_either() {
    let mut world = World::new(Settings { extents: EXTENTS, pinned_bytes_max: 6 * MIB, ..settings() });
    let sizes = [70_000, 300_000, 200_000, 900_000, 65_536];
    let engines: Vec<ConnectionId> =
        (1..).zip(sizes).map(|(n, bytes)| world.engine(n, &register(bytes, n as u8))).collect();
    for (turn, index) in (0_u64..).zip([0, 1, 2, 3, 4, 3, 2, 1, 0, 4, 0]) {
        let stride = sizes[index as usize].next_multiple_of(STRIDE_UNIT_BYTES).max(STRIDE_BYTES_MIN);
        let per_extent = MIB / stride;
        world.later(6 * 3600);
        prompts_until_all_is_had(&mut world, engines[index as usize], (turn + 1) * 1000, per_extent);
    }
}
