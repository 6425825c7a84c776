//! Every call of the driver failing once, and a device that is lost: an error, and neither a panic, a hang nor a leak.

use std::sync::Arc;

use larder_kernels::{
    GpuError, Kind, LandingSlab, Link, LinkSettings, Place, Policy, Progress, Ticket, Transfer,
};

use crate::engine::{Engine, Setup, layout, open};
use crate::world::{Bytes, Knobs, Side, noise, only_emulator};

/// An error that the driver gives for anything (`CUDA_ERROR_UNKNOWN`).
const UNKNOWN: u32 = 999;

/// All functions that the layer calls, but `cuGetProcAddress_v2`, whose failure is no error.
const FUNCTIONS: [&str; 47] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetUuid_v2",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuIpcGetEventHandle",
    "cuIpcOpenEventHandle",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuIpcCloseMemHandle",
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemRetainAllocationHandle",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyBatchAsync",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// Calls that give something back: where one fails, what it was to free is still there, and so it is where the
/// context cannot be made current for it.
fn may_leave(function: &str) -> bool {
    ["Free", "Destroy", "Unregister", "Unload", "Close", "MemRelease", "Unmap", "CtxSetCurrent"]
        .iter()
        .any(|part| function.contains(part))
}

/// Everything a node does for a chunk, from the driver on, for caches of both kinds of names: a load and the store of
/// it back.
fn round(engines: &[Engine], memory: &Arc<Bytes>) -> Result<(), GpuError> {
    let bytes = layout().chunk_bytes() as usize;
    let node = Side::over(Arc::clone(memory))?;
    node.device.name()?;
    for engine in engines {
        let kv = open(&node, engine)?;
        node.bytes.write(bytes, &vec![0; bytes]);
        let blocks = (&[3, 1, 9, 4][..], 0);
        let load = Ticket::load(&node.kernels, &node.stream, (&node.host, 0), (&node.slab, 0), &kv, blocks)?;
        load.event().export()?;
        load.is_done()?;
        let (slab, host) = ((&node.slab, bytes), (&node.host, bytes));
        let store = Ticket::store(&node.kernels, &node.stream, &kv, blocks, slab, host)?;
        store.wait()?;
        load.wait()?;
        assert_eq!(node.bytes.read(bytes, bytes), chunk(), "what was stored is what was loaded");
    }
    let kv = open(&node, &engines[0])?;
    let policy = Policy { run_bytes_min: 1, batch: true, ..Policy::default() };
    let mut link = Link::create(&node.kernels, bytes, 1, LinkSettings { policy, ..LinkSettings::default() })?;
    let place = Place::Host(Arc::clone(&node.host), 0);
    link.submit(Transfer { kind: Kind::Load, place, kv, blocks: vec![3, 1, 9, 4], first: 0, after: None })?;
    // Not polled until it is over, which would be another number of calls each time.
    for news in link.poll().into_iter().chain(link.drain()) {
        if let Progress::Ended { result, .. } = news {
            result?;
        }
    }
    node.slab.export()?;
    LandingSlab::map(&node.device, 1, 1)?.export()?;
    Ok(())
}

/// The chunk that is loaded.
fn chunk() -> Vec<u8> {
    noise(4, layout().chunk_bytes() as usize)
}

/// Host memory with the chunk, and room for what is stored.
fn memory() -> Arc<Bytes> {
    let memory = Bytes::new(2 * chunk().len());
    memory.write(0, &chunk());
    memory
}

/// Two engines, with a cache of each kind of names.
fn engines() -> [Engine; 2] {
    [false, true].map(|mapped| Engine::start(Setup::of(layout().order(), mapped)))
}

#[test]
fn each_call_failing_once_is_an_error_and_no_more() {
    let Some(emulator) = only_emulator() else { return };
    let controls = &emulator.controls;
    let engines = engines();
    let mut failed = 0;
    for function in FUNCTIONS {
        let calls = calls_of(controls, function, &engines);
        assert!(calls > 0, "{function} is not called");
        for nth in 1..=calls {
            let (left, open) = (controls.left(), descriptors());
            // Each time its own, since what a failed call leaves pinned cannot be pinned again.
            let memory = memory();
            controls.fail(function, nth, UNKNOWN);
            let result = round(&engines, &memory);
            failed += 1;
            assert_eq!(
                memory.read(0, chunk().len()),
                chunk(),
                "call {nth} of {function} takes the chunk with it"
            );
            assert!(may_leave(function) || controls.left() == left, "call {nth} of {function} leaks");
            assert!(
                may_leave(function) || descriptors() == open,
                "call {nth} of {function} leaks a descriptor"
            );
            match result {
                Err(error) => assert_eq!((error.call, error.code), (function, UNKNOWN)),
                // Only what gives back may fail unheard.
                Ok(()) => assert!(may_leave(function) || function.contains("Release"), "{function} {nth}"),
            }
            // Whatever failed, the next one works.
            controls.fail(function, 0, 0);
        }
        round(&engines, &memory()).unwrap();
    }
    println!("{failed} failures on: {}", engines[0].device);
    assert!(failed > 120, "{failed}");
}

/// Descriptors that this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How often a round calls a function.
fn calls_of(controls: &Knobs, function: &str, engines: &[Engine]) -> u64 {
    let before = controls.calls(function);
    round(engines, &memory()).unwrap();
    controls.calls(function) - before
}

#[test]
fn a_lost_device_is_an_error_and_no_hang() {
    let Some(emulator) = only_emulator() else { return };
    let controls = &emulator.controls;
    let engines = engines();
    let node = Side::new(layout().chunk_bytes() as usize).unwrap();
    let kv = open(&node, &engines[0]).unwrap();
    controls.hold(true);
    let load =
        || Ticket::load(&node.kernels, &node.stream, (&node.host, 0), (&node.slab, 0), &kv, (&[1, 2][..], 0));
    let ticket = load().unwrap();
    controls.lose(719);
    controls.hold(false);
    assert_eq!(ticket.is_done().unwrap_err().code, 719);
    assert_eq!(ticket.wait().unwrap_err().code, 719);
    assert_eq!(load().unwrap_err().code, 719);
    assert!(round(&engines, &memory()).is_err());
    controls.lose(0);
    round(&engines, &memory()).unwrap();
}
