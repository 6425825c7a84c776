use std::os::fd::OwnedFd;

use larder_protocol::{DeviceId, GpuHandle};

use super::*;

fn attach() -> Attach {
    Attach {
        id: 1,
        device: DeviceId(0x0102),
        order: PageOrder::LayerFirst,
        blocks: 8,
        layers: vec![0, 128, 1, 100, 100, 1024, 64, 1, 64, 64],
        part_bytes: vec![1024, 512],
        part_offsets: vec![512, 0],
        part_pieces: vec![0, 2],
        handles: vec![GpuHandle([3; 64])],
        piece_bytes: vec![256, 256],
        events: Vec::new(),
    }
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect()
}

#[test]
fn parts_are_plain_or_mapped_as_they_say() {
    let named = read(&attach(), descriptors(2), 2, 2 * 164).unwrap();
    assert_eq!(named.device.0[14..], [1, 2]);
    assert_eq!((named.layout.blocks(), named.layout.cache_bytes()), (8, 1536));
    let [KvPart::Handle(plain), KvPart::Pieces(mapped)] = &named.parts[..] else { panic!("{named:?}") };
    assert_eq!((plain.handle, plain.offset, plain.bytes), ([3; 64], 512, 1024));
    assert_eq!((mapped.pieces.len(), mapped.offset, mapped.bytes), (2, 0, 512));
}

#[test]
fn what_cannot_be_is_said() {
    let says = |change: fn(&mut Attach), descriptors_sent, part_bytes| {
        let mut attach = attach();
        change(&mut attach);
        read(&attach, descriptors(descriptors_sent), 2, part_bytes).unwrap_err()
    };
    assert_eq!(says(|_| (), 1, 328), "1 descriptors for 2 pieces");
    assert!(says(|_| (), 2, 400).contains("has 328 bytes, and part_bytes said 400"));
    assert!(says(|it| it.order = PageOrder::Unknown, 2, 328).contains("order of pages"));
    assert!(says(|it| it.events = vec![GpuHandle([0; 64]); 65], 2, 328).contains("65 events"));
    assert!(says(|it| it.part_bytes = vec![u64::MAX, 1], 2, 328).contains("beyond all memory"));
    assert!(says(|it| it.layers[1] = 1 << 40, 2, 328).contains("does not fit"));
    assert!(says(|it| it.layers.clear(), 2, 0).contains("0 layers"));
}
