//! The engine's part of a self-test, in a process of its own: it owns a cache and says what it finds there.

use std::io::{BufRead, Write};
use std::sync::Arc;

use super::caches::{Scale, expected, layouts, noise};
use super::{SelftestError, differences, hex, unhex};
use crate::device::Device;
use crate::event::{Event, EventHandle};
use crate::imported::KvPart;
use crate::kernels::Kernels;
use crate::layout::Layout;
use crate::memory::{HostBytes, LandingSlab, PinnedRegion};
use crate::stream::CopyStream;
use crate::ticket::Ticket;

/// The cache that the engine has now.
struct Cache {
    layout: Layout,
    kernels: Arc<Kernels>,
    stream: Arc<CopyStream>,
    memory: Arc<HostBytes>,
    host: Arc<PinnedRegion>,
    slab: Arc<LandingSlab>,
    filled: Event,
    fill: Ticket,
}

impl Cache {
    fn create(device: &Device, layout: Layout) -> Result<Self, SelftestError> {
        let bytes = layout.cache_bytes() as usize;
        let memory = HostBytes::new(bytes);
        memory.write(0, &noise(77, bytes));
        let host = Arc::new(PinnedRegion::register(device, Arc::clone(&memory) as _)?);
        let slab = Arc::new(LandingSlab::create(device, bytes)?);
        let (kernels, stream) = (Kernels::load(device)?, Arc::new(CopyStream::create(device, 0)?));
        let filled = Event::create(device)?;
        let fill = Ticket::copy_in(&kernels, &stream, (&host, 0), (&slab, 0), bytes)?;
        stream.record(&filled)?;
        Ok(Self { layout, kernels, stream, memory, host, slab, filled, fill })
    }

    fn names(&self) -> Result<String, SelftestError> {
        let KvPart::Handle(name) = self.slab.export()? else {
            return Err(SelftestError::Engine("a plain slab without a handle".to_owned()));
        };
        Ok(format!("{} {}", hex(&name.handle), hex(&self.filled.export()?.0)))
    }

    /// How many bytes are wrong once the node's event was reached.
    fn check(&self, device: &Device, event: [u8; 64]) -> Result<usize, SelftestError> {
        let loaded = Event::open(device, EventHandle(event))?;
        self.stream.wait_for(&loaded)?;
        let bytes = self.memory.read(0, usize::MAX).len();
        let (slab, host) = ((&self.slab, 0), (&self.host, 0));
        Ticket::copy_out(&self.kernels, &self.stream, slab, host, bytes)?.wait()?;
        Ok(differences(&self.memory.read(0, bytes), &expected(&self.layout)))
    }
}

/// Serves one self-test: a line in, a line out, until the input ends.
///
/// # Errors
/// The driver's, or a line that is none of a self-test's.
pub fn engine(device: &Device, input: impl BufRead, mut output: impl Write) -> Result<(), SelftestError> {
    let mut cache: Option<Cache> = None;
    for line in input.lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let unknown = || SelftestError::Engine(line.clone());
        let answer = match (&words[..], &cache) {
            (["cache", order, scale], None) => {
                let scale = scale.parse().ok().and_then(Scale::numbered).ok_or_else(unknown)?;
                let order: usize = order.parse().map_err(|_| unknown())?;
                let layout = layouts(scale).into_iter().find(|layout| layout.order() as usize == order);
                let made = Cache::create(device, layout.ok_or_else(unknown)?)?;
                cache.insert(made).names()?
            }
            (["check", event], Some(cache)) => {
                let event = unhex(event).ok_or_else(unknown)?;
                cache.check(device, event)?.to_string()
            }
            (["free"], Some(_)) => {
                if let Some(cache) = cache.take() {
                    cache.fill.wait()?;
                }
                "free".to_owned()
            }
            _ => return Err(unknown()),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}
