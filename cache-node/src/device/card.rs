//! One GPU with its links, one for each size of chunks that engines on it have.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_kernels::{Device, GpuError, Kernels, Limits, Link, LinkSettings, Policy, Progress, Uuid};

use super::Settings;
use super::filling::Filling;
use crate::store::LinkStats;

/// Bytes of the GPU's memory through which chunks pass on a link. Twice what may be on its way.
const THROUGH_BYTES: usize = 128 << 20;
/// Chunks that pass at once, whatever they measure: below two nothing overlaps; small ones must keep the link busy between
/// two looks.
const THROUGH_SLOTS: std::ops::RangeInclusive<usize> = 2..=32;
/// Links of one GPU, so that all chunks that may pass at once find a slot of the kernels' notes, of which there are 256, and
/// what lands does too.
const LINKS_MAX: usize = 7;
/// Chunks that may wait on a link, each way: a prompt of a million tokens in chunks of 64.
const WAITING_MAX: usize = 16_384;

#[derive(Debug)]
pub(super) struct Card {
    pub(super) device: Device,
    kernels: Arc<Kernels>,
    pub(super) links: BTreeMap<usize, Link>,
    /// The device tier, if there is one.
    pub(super) filling: Option<Filling>,
    /// It answers nothing but errors; only a new process could use it again.
    pub(super) lost: bool,
}

impl Card {
    pub(super) fn open(device: Device, settings: Settings) -> Result<Self, GpuError> {
        let kernels = Kernels::load(&device)?;
        let gpu = device.uuid();
        // For people only.
        let name = device.name().unwrap_or_default();
        tracing::info!(%gpu, name, landing_bytes = settings.landing_bytes, "a GPU is used");
        let filling = match settings.landing_bytes {
            0 => None,
            bytes => match Filling::create(&kernels, &device, bytes, settings.verify) {
                Ok(filling) => Some(filling),
                Err(error) => {
                    tracing::error!(%gpu, bytes, %error, "no landing slab (device.landing): staging stops at host memory");
                    None
                }
            },
        };
        Ok(Self { device, kernels, links: BTreeMap::new(), filling, lost: false })
    }

    /// Makes the link for chunks of this size, if there is none.
    ///
    /// # Errors
    /// For people: too many sizes, or too little memory on the GPU.
    pub(super) fn link(&mut self, part_bytes: usize) -> Result<(), String> {
        if !self.links.contains_key(&part_bytes) {
            if self.links.len() >= LINKS_MAX {
                return Err(format!("engines with {LINKS_MAX} sizes of chunks use this GPU already"));
            }
            let slots =
                (THROUGH_BYTES / part_bytes.max(1)).clamp(*THROUGH_SLOTS.start(), *THROUGH_SLOTS.end());
            let limits = Limits { loads_max: WAITING_MAX, stores_max: WAITING_MAX, ..Limits::default() };
            let settings = LinkSettings { policy: Policy::default(), limits };
            let link =
                Link::create(&self.kernels, part_bytes, slots, settings).map_err(|it| it.to_string())?;
            self.links.insert(part_bytes, link);
        }
        Ok(())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.links.values().all(Link::is_idle)
            && self.filling.as_ref().is_none_or(|it| self.lost || it.is_idle())
    }

    /// Whether a load waits for a link.
    pub(super) fn is_busy(&self) -> bool {
        self.links.values().any(|link| link.depth().loads > 0)
    }

    /// What became of transfers, with the name of their link.
    pub(super) fn poll(&mut self) -> Vec<(usize, Progress)> {
        let polled = self.links.iter_mut();
        polled.flat_map(|(size, link)| link.poll().into_iter().map(|progress| (*size, progress))).collect()
    }

    /// Gives up links that nobody uses.
    pub(super) fn keep(&mut self, is_used: impl Fn(usize) -> bool) {
        self.links.retain(|size, link| is_used(*size) || !link.is_idle());
    }

    pub(super) fn stats(&self, uuid: Uuid) -> impl Iterator<Item = LinkStats> {
        self.links.iter().map(move |(size, link)| {
            let depth = link.depth();
            LinkStats {
                gpu: uuid.to_string(),
                chunk_bytes: *size as u64,
                waiting_loads: depth.loads as u64,
                waiting_load_bytes: depth.load_bytes,
                waiting_stores: depth.stores as u64,
                waiting_store_bytes: depth.store_bytes,
                loading_bytes: depth.loading_bytes,
                storing_bytes: depth.storing_bytes,
            }
        })
    }
}
