//! A rank's KV cache in a GPU: how its pages lie, and how they are filled and read.

use std::sync::Arc;

pub(crate) use larder_emulator::noise;
use larder_kernels::{
    CopyStream, Device, Event, HostBytes, Kernels, KvPart, LandingSlab, Layer, Layout, Order, PinnedRegion,
    Ticket,
};
use larder_protocol::code::PageOrder;
use larder_protocol::message::Attach;
use larder_protocol::{DeviceId, GpuHandle};
use std::os::fd::OwnedFd;

/// Blocks of a cache.
pub(crate) const BLOCKS: u32 = 16;
/// Blocks of a chunk.
pub(crate) const CHUNK_BLOCKS: u32 = 4;
/// Bytes of a piece of mapped memory: what the emulator, and every device so far, gives at least.
const PIECE: usize = 2 << 20;

/// How a rank holds its cache.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    order: Order,
    /// Named by descriptors of pieces, and not by 64-byte handles.
    mapped: bool,
    /// Bytes of each allocation's part.
    parts: Vec<usize>,
}

impl Setup {
    /// Each order, by each kind of name.
    pub(crate) fn all() -> Vec<Self> {
        let orders = [
            (Order::LayerFirst, vec![8192, 8192]),
            (Order::BlockFirst, vec![272_384]),
            (Order::Latent, vec![16_384, 4096]),
        ];
        let both = orders.into_iter().flat_map(|(order, parts)| {
            [false, true].map(|mapped| Self { order, mapped, parts: parts.clone() })
        });
        both.collect()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().sum()
    }

    /// Pages of odd sizes, at no multiples of 16; the same as in the kernels' own proof.
    pub(crate) fn layout(&self) -> Layout {
        let layers = match self.order {
            Order::LayerFirst => {
                vec![Layer::new(0, 256, 256), Layer::new(4096, 128, 112), Layer::new(8192 + 8, 41, 37)]
            }
            Order::BlockFirst => vec![Layer::new(32, 17_008, 17_000)],
            Order::Latent => vec![Layer::latent(0, 960, 6, 144, 160), Layer::latent(16_384, 200, 6, 33, 33)],
        };
        Layout::new(self.order, layers, BLOCKS, CHUNK_BLOCKS, self.bytes() as u64).unwrap()
    }

    /// What `engine.py` is told.
    pub(crate) fn arguments(&self) -> [String; 3] {
        let parts: Vec<String> = self.parts.iter().map(usize::to_string).collect();
        [u8::from(self.mapped).to_string(), self.offset().to_string(), parts.join(",")]
    }

    /// What the node is told, but for the names.
    pub(crate) fn attach(&self) -> Attach {
        let layout = self.layout();
        let words = layout.layers().iter().flat_map(|layer| {
            let Layer { pages, stride, rows, row_bytes, row_stride } = *layer;
            [pages, stride, rows, row_bytes, row_stride]
        });
        Attach {
            id: 1000,
            device: DeviceId(0),
            order: match self.order {
                Order::LayerFirst => PageOrder::LayerFirst,
                Order::BlockFirst => PageOrder::BlockFirst,
                Order::Latent => PageOrder::Latent,
            },
            blocks: BLOCKS,
            layers: words.collect(),
            part_bytes: self.parts.iter().map(|bytes| *bytes as u64).collect(),
            part_offsets: vec![self.offset() as u64; self.parts.len()],
            part_pieces: Vec::new(),
            handles: Vec::new(),
            piece_bytes: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Where a part begins in its allocation; of mapped memory it must lie in two pieces.
    fn offset(&self) -> usize {
        if self.mapped { PIECE - 3072 } else { 512 }
    }
}

/// A rank's cache.
pub(crate) struct Cache {
    pub(crate) setup: Setup,
    device: Device,
    kernels: Arc<Kernels>,
    pub(crate) stream: Arc<CopyStream>,
    bytes: Arc<HostBytes>,
    host: Arc<PinnedRegion>,
    slabs: Vec<Arc<LandingSlab>>,
    /// Recorded behind what the engine does with its pages.
    done: Event,
}

impl Cache {
    pub(crate) fn create(device: Device, setup: &Setup) -> Self {
        let bytes = HostBytes::new(setup.bytes());
        let slab = |bytes: &usize| {
            let bytes = setup.offset() + bytes;
            let slab = match setup.mapped {
                true => LandingSlab::map(&device, bytes, PIECE),
                false => LandingSlab::create(&device, bytes),
            };
            Arc::new(slab.unwrap())
        };
        Self {
            slabs: setup.parts.iter().map(slab).collect(),
            setup: setup.clone(),
            kernels: Kernels::load(&device).unwrap(),
            stream: Arc::new(CopyStream::create(&device, 0).unwrap()),
            host: Arc::new(PinnedRegion::register(&device, Arc::clone(&bytes) as _).unwrap()),
            bytes,
            done: Event::create(&device).unwrap(),
            device,
        }
    }

    fn copy(&self, into: bool) -> Vec<Ticket> {
        let mut at = 0;
        let copies = self.slabs.iter().zip(&self.setup.parts).map(|(slab, bytes)| {
            let (slab, host) = ((slab, self.setup.offset()), (&self.host, at));
            at += bytes;
            match into {
                true => Ticket::copy_in(&self.kernels, &self.stream, host, slab, *bytes).unwrap(),
                false => Ticket::copy_out(&self.kernels, &self.stream, slab, host, *bytes).unwrap(),
            }
        });
        copies.collect()
    }

    /// Begins to fill it, and records the engine's event behind that.
    pub(crate) fn begin_to_fill(&self, bytes: &[u8]) -> Vec<Ticket> {
        self.bytes.write(0, bytes);
        let tickets = self.copy(true);
        self.stream.record(&self.done).unwrap();
        tickets
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        self.copy(false).into_iter().for_each(|ticket| ticket.wait().unwrap());
        self.bytes.read(0, self.setup.bytes())
    }

    /// Another process's event.
    pub(crate) fn open(&self, handle: &GpuHandle) -> Event {
        Event::open(&self.device, larder_kernels::EventHandle(handle.0)).unwrap()
    }

    /// What the node is told of it.
    pub(crate) fn attach(&self) -> (Attach, Vec<OwnedFd>) {
        let device = DeviceId::from_bytes(self.device.uuid().0);
        let events = vec![GpuHandle(self.done.export().unwrap().0)];
        let (mut attach, mut descriptors) = (Attach { device, events, ..self.setup.attach() }, Vec::new());
        for slab in &self.slabs {
            match slab.export().unwrap() {
                KvPart::Handle(name) => {
                    attach.part_pieces.push(0);
                    attach.handles.push(GpuHandle(name.handle));
                }
                KvPart::Pieces(name) => {
                    attach.part_pieces.push(name.pieces.len() as u32);
                    attach.piece_bytes.extend(name.pieces.iter().map(|piece| piece.bytes));
                    descriptors.extend(name.pieces.into_iter().map(|piece| piece.fd));
                }
            }
        }
        (attach, descriptors)
    }
}
