//! From what the file says to what the process runs with: defaults for what is absent, and the faults that only show
//! when several keys are seen together. A [`Config`] is built even when there are faults, so that one does not hide the
//! next; the caller throws it away then.

use std::net::SocketAddr;
use std::path::PathBuf;

use larder_protocol::control::TENANT_BYTES_MAX;
use larder_settings::Report;
use larder_tiering::disk::BLOCK_BYTES;

use super::raw::{RawConfig, RawDisk, RawLimits, RawPins, RawQuotas};
use super::{Config, Control, Disk, DiskIo, Limits, Pins, Quotas, defaults};
use crate::device;
use crate::store::{TENANTS_MAX, Verify};

/// The longest path of a unix socket: `sun_path` of Linux has 108 bytes with its end, and a node binds with a process
/// number added.
const SOCKET_PATH_BYTES_MAX: usize = 96;

/// Fewer segments would leave little to choose from when room is made.
const SEGMENTS_MIN: u64 = 4;

pub(super) fn validate(raw: RawConfig, report: &mut Report) -> Config {
    let engine_socket = PathBuf::from(raw.engine_socket.unwrap_or_default());
    if report.is_written("engine_socket") {
        check_socket_path("engine_socket", &engine_socket, report);
    }
    let control = control(raw.control.as_deref(), report);
    let token_file = raw.token_file.map(PathBuf::from);
    check_token(&control, token_file.is_some(), report);
    let log = raw.log.unwrap_or_else(|| defaults::LOG.to_owned());
    if log.trim().is_empty() {
        report.fault("log", "is empty").hint("write \"off\" to log nothing");
    }
    let host = raw.host.size.unwrap_or(defaults::EXTENT_BYTES);
    Config {
        engine_socket,
        engine_socket_mode: mode(raw.engine_socket_mode.as_deref(), report),
        control,
        token_file,
        log,
        log_json: raw.log_json.unwrap_or(false),
        host_bytes: host - host % defaults::EXTENT_BYTES,
        prefault: raw.host.prefault.unwrap_or(defaults::PREFAULT),
        region_bytes: raw.region.unwrap_or(defaults::REGION),
        recipe_bytes: raw.recipes.unwrap_or(defaults::RECIPES),
        pins: pins(&raw.pins),
        quotas: quotas(raw.quotas, report),
        lease_ttl: raw.lease_ttl.unwrap_or(defaults::LEASE_TTL),
        verify: raw.verify.unwrap_or(Verify::Lease),
        verify_fresh: raw.verify_fresh.unwrap_or(defaults::VERIFY_FRESH),
        lookup_deadline: raw.lookup_deadline.unwrap_or(defaults::LOOKUP_DEADLINE),
        stage_deadline: raw.stage_deadline.unwrap_or(defaults::STAGE_DEADLINE),
        single_tenant: raw.single_tenant.unwrap_or(false),
        debug_faults: raw.debug_faults.unwrap_or(false),
        transfer_threads: to_usize(raw.transfer_threads.unwrap_or(defaults::TRANSFER_THREADS)),
        disk: disk(raw.disk, report),
        device: device::Settings {
            landing_bytes: raw.landing.unwrap_or(defaults::LANDING),
            verify: raw.verify_on_device.unwrap_or(false),
        },
        limits: limits(&raw.limits),
    }
}

fn pins(raw: &RawPins) -> Pins {
    Pins {
        percent: raw.percent.unwrap_or(defaults::PINS_PERCENT),
        namespace_percent: raw.namespace_percent.unwrap_or(defaults::PINS_NAMESPACE_PERCENT),
        ttl_max: raw.ttl_max.unwrap_or(defaults::PIN_TTL_MAX),
        count: to_usize(raw.count.unwrap_or(defaults::PINS)),
    }
}

fn quotas(raw: RawQuotas, report: &mut Report) -> Quotas {
    let mut tenants: Vec<(String, u64)> = Vec::with_capacity(raw.tenants.len());
    if raw.tenants.len() > TENANTS_MAX {
        let reason = format!("{} tenants, at most {TENANTS_MAX} can be known", raw.tenants.len());
        report.fault("quotas.tenants", reason).hint("give the others the default");
    }
    for (index, (name, size)) in raw.tenants.into_iter().enumerate() {
        let (Some(name), Some(size)) = (name, size) else { continue };
        let path = format!("quotas.tenants[{index}].name");
        if name.is_empty() || name.len() > TENANT_BYTES_MAX {
            report
                .fault(path, format!("has {} bytes, not 1 to {TENANT_BYTES_MAX}", name.len()))
                .hint("write the name that the proxy gives the tenant");
        } else if tenants.iter().any(|(other, _)| *other == name) {
            report.fault(path, "has a quota already").hint("write each tenant once");
        } else {
            tenants.push((name, size));
        }
    }
    Quotas { default_bytes: raw.default, tenants }
}

fn disk(raw: RawDisk, report: &mut Report) -> Option<Disk> {
    let Some(path) = raw.path else {
        if report.is_written("disk") {
            report
                .fault("disk.path", "is required where there is a [disk]")
                .hint("write a directory, or leave [disk] out");
        }
        return None;
    };
    if !std::path::Path::new(&path).is_absolute() {
        report
            .fault("disk.path", "is no path from the root")
            .hint("write a directory such as \"/var/lib/larder/kv\"");
    }
    let segment_bytes = raw.segment.unwrap_or(defaults::SEGMENT);
    let capacity_bytes = raw.capacity.unwrap_or_else(|| {
        report
            .fault("disk.capacity", "is required where there is a [disk]")
            .hint("write a size such as \"1TiB\"");
        defaults::SEGMENT * SEGMENTS_MIN
    });
    if capacity_bytes < segment_bytes * SEGMENTS_MIN {
        let reason =
            format!("holds fewer than {SEGMENTS_MIN} segments, and room is made a segment at a time");
        report.fault("disk.capacity", reason).hint("give it more, or make disk.segment smaller");
    }
    if !segment_bytes.is_multiple_of(BLOCK_BYTES) {
        report.fault("disk.segment", format!("is no multiple of {BLOCK_BYTES}")).hint("write it in MiB");
    }
    Some(Disk {
        path: PathBuf::from(path),
        capacity_bytes,
        segment_bytes,
        write_bytes_per_s: raw.write_rate.unwrap_or(defaults::WRITE_RATE),
        admit_uses: u32::try_from(raw.admit_uses.unwrap_or(defaults::ADMIT_USES)).unwrap_or(u32::MAX),
        scrub_bytes_per_s: raw.scrub_rate.unwrap_or(defaults::SCRUB_RATE),
        io: raw.io.unwrap_or(DiskIo::Auto),
        readers: to_usize(raw.readers.unwrap_or(defaults::DISK_READERS)),
        writes: to_usize(raw.writes.unwrap_or(defaults::DISK_WRITES)),
        loads: to_usize(raw.loads.unwrap_or(defaults::DISK_LOADS)),
    })
}

fn check_socket_path(key: &str, path: &std::path::Path, report: &mut Report) {
    let length = path.as_os_str().len();
    if length == 0 {
        report.fault(key, "is empty").hint("write a path such as \"/run/larder/node.sock\"");
    } else if length > SOCKET_PATH_BYTES_MAX {
        let reason =
            format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes here, this one {length}");
        report.fault(key, reason).hint("use a shorter directory");
    } else if !path.is_absolute() {
        report.fault(key, "is a relative path").hint("write it from the root, engines start elsewhere");
    }
}

fn mode(text: Option<&str>, report: &mut Report) -> u32 {
    let Some(text) = text else { return defaults::ENGINE_SOCKET_MODE };
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.unwrap_or_else(|| {
        report.fault("engine_socket_mode", "not permissions").hint("write octal digits, such as \"0660\"");
        defaults::ENGINE_SOCKET_MODE
    })
}

fn control(text: Option<&str>, report: &mut Report) -> Control {
    let default = Control::Tcp(defaults::CONTROL);
    let Some(text) = text else { return default };
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        check_socket_path("control", &path, report);
        return Control::Unix(path);
    }
    text.parse::<SocketAddr>().map(Control::Tcp).unwrap_or_else(|_| {
        report
            .fault("control", "neither an IP address and port nor a unix socket")
            .hint("write \"127.0.0.1:7700\" or \"unix:/run/larder/control.sock\"");
        default
    })
}

fn check_token(control: &Control, token: bool, report: &mut Report) {
    if let Control::Tcp(address) = control
        && !address.ip().is_loopback()
        && !token
    {
        report
            .fault("control", "other hosts can reach this address, so token_file is required")
            .hint("set token_file, or listen on 127.0.0.1");
    }
}

fn limits(raw: &RawLimits) -> Limits {
    Limits {
        sessions: to_usize(raw.sessions.unwrap_or(defaults::SESSIONS)),
        connections: to_usize(raw.connections.unwrap_or(defaults::CONNECTIONS)),
        leases: to_usize(raw.leases.unwrap_or(defaults::LEASES)),
        verifications: to_usize(raw.verifications.unwrap_or(defaults::VERIFICATIONS)),
        copies: to_usize(raw.copies.unwrap_or(defaults::COPIES)),
        pinned_percent: raw.pinned_percent.unwrap_or(defaults::PINNED_PERCENT),
        control_requests: to_usize(raw.control_requests.unwrap_or(defaults::CONTROL_REQUESTS)),
        control_connections: to_usize(raw.control_connections.unwrap_or(defaults::CONTROL_CONNECTIONS)),
    }
}

/// The ranges keep every such value within 32 bits.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
