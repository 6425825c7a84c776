//! How fast each way is, beside a plain copy of as many bytes between the same memories. Only ever called on a GPU.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use super::{Node, PIECE_BYTES, SelftestError, ways};
use crate::driver::Driver;
use crate::error::GpuError;
use crate::imported::ImportedKv;
use crate::layout::Layout;
use crate::memory::LandingSlab;
use crate::plan::{Way, plan};
use crate::ticket::Ticket;

/// Transfers of one measurement, one after the other, after one that is not counted.
const ROUNDS: u32 = 8;
/// Runs beyond which a way is not measured: it would be minutes of calls.
const RUNS_MAX: usize = 20_000;

/// Measures each way of `layout`'s chunk, and writes a line for each.
pub(super) fn measure(
    driver: &Driver,
    node: &Node,
    layout: &Layout,
    report: &mut dyn Write,
) -> Result<(), SelftestError> {
    let chunk = layout.chunk_bytes() as usize;
    let cache = LandingSlab::map(&node.device, layout.cache_bytes() as usize, PIECE_BYTES)?;
    let kv = Arc::new(ImportedKv::open(&node.device, vec![cache.export()?], layout.clone())?);
    let Node { kernels, stream, host, slab, .. } = node;
    let mut say =
        |what: &str, one: &mut dyn FnMut() -> Result<Ticket, GpuError>| -> Result<(), SelftestError> {
            let speed = gigabytes_per_second(chunk, one)?;
            writeln!(report, "{:?}, chunks of {chunk} bytes, {what}: {speed:.2} GB/s", layout.order())?;
            Ok(())
        };
    say("plain copy, host to device", &mut || Ticket::copy_in(kernels, stream, (host, 0), (slab, 0), chunk))?;
    say("plain copy, device to host", &mut || {
        Ticket::copy_out(kernels, stream, (slab, 0), (host, 0), chunk)
    })?;
    say("scatter inside the device", &mut || {
        Ticket::scatter(kernels, stream, (slab, 0), &kv, (&super::blocks(), 0))
    })?;
    for (name, policy) in ways(driver) {
        let way = plan(layout, &super::blocks(), 0, policy);
        if matches!(&way, Way::Copies(runs) if runs.len() > RUNS_MAX) {
            continue;
        }
        say(&format!("load by {name}"), &mut || node.load(&kv, 0, policy))?;
        say(&format!("store by {name}"), &mut || node.store(&kv, 0, policy))?;
    }
    Ok(())
}

fn gigabytes_per_second(
    bytes: usize,
    one: &mut dyn FnMut() -> Result<Ticket, GpuError>,
) -> Result<f64, GpuError> {
    one()?.wait()?;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        one()?.wait()?;
    }
    Ok(bytes as f64 * f64::from(ROUNDS) / begun.elapsed().as_secs_f64() / 1e9)
}
