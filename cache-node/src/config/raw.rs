//! What the file says, key by key: right type and range, or absent. Nothing is defaulted or compared here.

use std::time::Duration;

use larder_settings::Reader;

use super::{DiskIo, defaults};
use crate::store::Verify;

pub(super) struct RawConfig {
    pub(super) engine_socket: Option<String>,
    pub(super) engine_socket_mode: Option<String>,
    pub(super) control: Option<String>,
    pub(super) token_file: Option<String>,
    pub(super) log: Option<String>,
    pub(super) log_json: Option<bool>,
    pub(super) host: RawHost,
    pub(super) region: Option<u64>,
    pub(super) recipes: Option<u64>,
    pub(super) lease_ttl: Option<Duration>,
    pub(super) verify: Option<Verify>,
    pub(super) verify_fresh: Option<Duration>,
    pub(super) lookup_deadline: Option<Duration>,
    pub(super) stage_deadline: Option<Duration>,
    pub(super) single_tenant: Option<bool>,
    pub(super) debug_faults: Option<bool>,
    pub(super) transfer_threads: Option<u64>,
    pub(super) pins: RawPins,
    pub(super) quotas: RawQuotas,
    pub(super) disk: RawDisk,
    pub(super) landing: Option<u64>,
    pub(super) verify_on_device: Option<bool>,
    pub(super) limits: RawLimits,
}

impl RawConfig {
    pub(super) fn read(root: &mut Reader<'_>) -> Self {
        let (mut landing, mut verify_on_device) = (None, None);
        root.table("device", |device| {
            landing = device.size("landing", defaults::LANDING_RANGE);
            verify_on_device = device.bool("verify");
        });
        Self {
            landing,
            verify_on_device,
            engine_socket: root.require("engine_socket").string("engine_socket"),
            engine_socket_mode: root.string("engine_socket_mode"),
            control: root.string("control"),
            token_file: root.string("token_file"),
            log: root.string("log"),
            log_json: root.one_of("log_format", &[("text", false), ("json", true)]),
            host: root.require("host").table("host", RawHost::read),
            region: root.table("region", |region| region.size("size", defaults::REGION_RANGE)),
            recipes: root.table("recipes", |recipes| recipes.size("size", defaults::RECIPES_RANGE)),
            lease_ttl: root.duration("lease_ttl", defaults::LEASE_TTL_RANGE),
            verify: root.one_of("verify", &[("lease", Verify::Lease), ("off", Verify::Off)]),
            verify_fresh: root.duration("verify_fresh", defaults::VERIFY_FRESH_RANGE),
            lookup_deadline: root.duration("lookup_deadline", defaults::LOOKUP_DEADLINE_RANGE),
            stage_deadline: root.duration("stage_deadline", defaults::STAGE_DEADLINE_RANGE),
            single_tenant: root.bool("single_tenant"),
            debug_faults: root.bool("debug_faults"),
            transfer_threads: root.uint("transfer_threads", defaults::THREADS_RANGE),
            pins: root.table("pins", RawPins::read),
            quotas: root.table("quotas", RawQuotas::read),
            disk: root.table("disk", RawDisk::read),
            limits: root.table("limits", RawLimits::read),
        }
    }
}

pub(super) struct RawHost {
    pub(super) size: Option<u64>,
    pub(super) prefault: Option<bool>,
}

impl RawHost {
    fn read(host: &mut Reader<'_>) -> Self {
        Self {
            size: host.require("size").size("size", defaults::HOST_RANGE),
            prefault: host.bool("prefault"),
        }
    }
}

pub(super) struct RawPins {
    pub(super) percent: Option<u64>,
    pub(super) namespace_percent: Option<u64>,
    pub(super) ttl_max: Option<Duration>,
    pub(super) count: Option<u64>,
}

impl RawPins {
    fn read(pins: &mut Reader<'_>) -> Self {
        Self {
            percent: pins.uint("percent", defaults::PERCENT_RANGE),
            namespace_percent: pins.uint("namespace_percent", defaults::PERCENT_RANGE),
            ttl_max: pins.duration("ttl_max", defaults::PIN_TTL_RANGE),
            count: pins.uint("count", defaults::PINS_RANGE),
        }
    }
}

pub(super) struct RawQuotas {
    pub(super) default: Option<u64>,
    pub(super) tenants: Vec<(Option<String>, Option<u64>)>,
}

impl RawQuotas {
    fn read(quotas: &mut Reader<'_>) -> Self {
        let tenant = |tenant: &mut Reader<'_>| {
            let name = tenant.require("name").string("name");
            (name, tenant.require("size").size("size", defaults::QUOTA_RANGE))
        };
        Self {
            default: quotas.size("default", defaults::QUOTA_RANGE),
            tenants: quotas.tables("tenants", tenant),
        }
    }
}

pub(super) struct RawDisk {
    pub(super) path: Option<String>,
    pub(super) capacity: Option<u64>,
    pub(super) segment: Option<u64>,
    pub(super) write_rate: Option<u64>,
    pub(super) admit_uses: Option<u64>,
    pub(super) scrub_rate: Option<u64>,
    pub(super) io: Option<DiskIo>,
    pub(super) readers: Option<u64>,
    pub(super) writes: Option<u64>,
    pub(super) loads: Option<u64>,
}

impl RawDisk {
    fn read(disk: &mut Reader<'_>) -> Self {
        let io = [("auto", DiskIo::Auto), ("uring", DiskIo::Uring), ("threads", DiskIo::Threads)];
        Self {
            path: disk.string("path"),
            capacity: disk.size("capacity", defaults::CAPACITY_RANGE),
            segment: disk.size("segment", defaults::SEGMENT_RANGE),
            write_rate: disk.size("write_rate", defaults::WRITE_RATE_RANGE),
            admit_uses: disk.uint("admit_uses", defaults::ADMIT_RANGE),
            scrub_rate: disk.size("scrub_rate", defaults::SCRUB_RATE_RANGE),
            io: disk.one_of("io", &io),
            readers: disk.uint("readers", defaults::DISK_READERS_RANGE),
            writes: disk.uint("writes", defaults::DISK_JOBS_RANGE),
            loads: disk.uint("loads", defaults::DISK_JOBS_RANGE),
        }
    }
}

pub(super) struct RawLimits {
    pub(super) sessions: Option<u64>,
    pub(super) connections: Option<u64>,
    pub(super) leases: Option<u64>,
    pub(super) verifications: Option<u64>,
    pub(super) copies: Option<u64>,
    pub(super) pinned_percent: Option<u64>,
    pub(super) control_requests: Option<u64>,
    pub(super) control_connections: Option<u64>,
}

impl RawLimits {
    fn read(limits: &mut Reader<'_>) -> Self {
        Self {
            sessions: limits.uint("sessions", defaults::SESSIONS_RANGE),
            connections: limits.uint("connections", defaults::CONNECTIONS_RANGE),
            leases: limits.uint("leases", defaults::LEASES_RANGE),
            verifications: limits.uint("verifications", defaults::VERIFICATIONS_RANGE),
            copies: limits.uint("copies", defaults::COPIES_RANGE),
            pinned_percent: limits.uint("pinned_percent", defaults::PINNED_RANGE),
            control_requests: limits.uint("control_requests", defaults::REQUESTS_RANGE),
            control_connections: limits.uint("control_connections", defaults::REQUESTS_RANGE),
        }
    }
}
