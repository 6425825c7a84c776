use std::collections::HashMap;

use larder_protocol::control::ChainPoint;
use larder_protocol::message::{
    Commit, Complete, Fetch, Hello, Load, Lookup, Register, Release, Role, ToNode, Verdict,
};
use larder_protocol::{BlockKey, Checksum, Tag};

use larder_tiering::disk::{Chunk, Limits, LoadFault, Location, WriteFault};
use larder_tiering::pins::Budgets;

use super::*;

mod disk;
mod ending;
mod mix;
mod moving;
mod pinning;
mod random;
mod recipes;
mod serving;
mod world;

use world::World;

const MIB: u64 = 1 << 20;

/// Four extents of 1 MiB, so that eviction is never far; slots of 128 KiB, eight an extent.
fn settings() -> Settings {
    Settings {
        node: NodeId(1),
        extent_bytes: MIB,
        extents: 4,
        region_bytes: MIB,
        lease_ttl: Duration::from_secs(30),
        lookup_deadline: Duration::from_millis(40),
        stage_deadline: Duration::from_millis(100),
        verify: Verify::Lease,
        verify_fresh: Duration::ZERO,
        single_tenant: false,
        sessions_max: 8,
        leases_max: 64,
        verifications_max: 16,
        copies_max: 64,
        pinned_bytes_max: 3 * MIB,
        pins: Budgets { space_bytes_max: MIB, bytes_max: MIB + MIB / 2, pins_max: 16 },
        pin_ttl_max: Duration::from_secs(3600),
        tenant_bytes_max: None,
        tenant_quotas: Vec::new(),
        recipe_bytes_max: 1 << 20,
        hello_timeout: Duration::from_secs(5),
        scrub_bytes_per_s: 0,
    }
}

fn key(number: u64) -> BlockKey {
    BlockKey::new(&number.to_be_bytes()).unwrap()
}

fn keys(numbers: std::ops::Range<u64>) -> Vec<BlockKey> {
    numbers.map(key).collect()
}

fn register(part_bytes: u64, weights: u8) -> Register {
    Register {
        id: 1,
        model: "m".into(),
        hash: "sha256_cbor".into(),
        weights: vec![weights; 32],
        epoch: 0,
        layout: vec![2; 32],
        dtype: "float32".into(),
        tokens_per_block: 32,
        blocks_per_chunk: 1,
        part_bytes,
        world: 1,
    }
}
