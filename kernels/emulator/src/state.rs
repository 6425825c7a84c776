//! Everything one process knows of the device.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::code::{Answer, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_CONTEXT};
use crate::code::{INVALID_HANDLE, NOT_INITIALIZED};
use crate::event::Event;
use crate::knobs::Knobs;
use crate::memory::{Device, Physical};
use crate::ptx::Kernel;
use crate::stream::Stream;

/// Devices the emulator shows. They share memory; two, so that finding one by UUID is no triviality.
pub(crate) const DEVICES: i32 = 2;

/// Bytes of a page of host memory.
const PAGE: u64 = 4096;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) initialized: AtomicBool,
    pub(crate) knobs: Knobs,
    pub(crate) device: RwLock<Device>,
    pub(crate) physical: Table<Physical>,
    pub(crate) streams: Table<Stream>,
    pub(crate) events: Table<Event>,
    pub(crate) modules: Table<Vec<Arc<Kernel>>>,
    pub(crate) functions: Table<Kernel>,
    /// What a kernel's fault said.
    pub(crate) fault: Mutex<String>,
    pinned: Mutex<BTreeMap<u64, usize>>,
    visible: OnceLock<Vec<i32>>,
}

/// Objects by handle; a handle that was never given, or is gone, is an error and no crash.
pub(crate) struct Table<T>(Mutex<HashMap<usize, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Table<T> {
    pub(crate) fn add(&self, object: Arc<T>) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
        let handle = NEXT.fetch_add(16, SeqCst);
        self.0.lock().insert(handle, object);
        handle
    }

    pub(crate) fn get(&self, handle: usize) -> Answer<Arc<T>> {
        self.0.lock().get(&handle).cloned().ok_or(INVALID_HANDLE)
    }

    pub(crate) fn remove(&self, handle: usize) -> Answer<Arc<T>> {
        self.0.lock().remove(&handle).ok_or(INVALID_HANDLE)
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().values().cloned().collect()
    }
}

thread_local! {
    /// The thread's context: a device's ordinal plus one, 0 for none.
    pub(crate) static CONTEXT: Cell<usize> = const { Cell::new(0) };
    /// What the thread may do while another captures a graph.
    pub(crate) static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

pub(crate) fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(State::default)
}

impl State {
    /// Must hold for a call that needs no context.
    pub(crate) fn is_initialized(&self) -> Answer {
        if self.initialized.load(SeqCst) { Ok(()) } else { Err(NOT_INITIALIZED) }
    }

    /// Must hold for a call that works on the thread's device.
    pub(crate) fn has_context(&self) -> Answer {
        self.is_initialized()?;
        if CONTEXT.get() == 0 { Err(INVALID_CONTEXT) } else { Ok(()) }
    }

    /// The devices that this process may see, in its own order: `CUDA_VISIBLE_DEVICES` names them by numbers; the first
    /// that is none ends the list, as with the driver.
    pub(crate) fn visible(&self) -> &[i32] {
        self.visible.get_or_init(|| match std::env::var("CUDA_VISIBLE_DEVICES") {
            Err(_) => (0..DEVICES).collect(),
            Ok(list) => {
                let number =
                    |word: &str| word.trim().parse().ok().filter(|number| (0..DEVICES).contains(number));
                list.split(',').map_while(number).collect()
            }
        })
    }

    /// Waits until all streams have done all they were given.
    pub(crate) fn drain(&self) {
        self.streams.all().iter().for_each(|stream| stream.drain());
    }

    pub(crate) fn pin(&self, at: u64, bytes: usize) -> Answer {
        let mut pinned = self.pinned.lock();
        // What is pinned is pages, so ranges that share one meet.
        let (first, end) = (at / PAGE * PAGE, (at + bytes as u64).next_multiple_of(PAGE));
        let before = pinned.range(..end).next_back();
        if before.is_some_and(|(other, length)| (other + *length as u64).next_multiple_of(PAGE) > first) {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        pinned.insert(at, bytes);
        Ok(())
    }

    pub(crate) fn unpin(&self, at: u64) -> Answer {
        self.pinned.lock().remove(&at).map(|_| ()).ok_or(HOST_MEMORY_NOT_REGISTERED)
    }

    pub(crate) fn is_pinned(&self, at: u64, bytes: usize) -> bool {
        let pinned = self.pinned.lock();
        let range = pinned.range(..=at).next_back();
        range.is_some_and(|(base, length)| at + bytes as u64 <= base + *length as u64)
    }

    /// Objects that are still there: memory, pinned ranges, streams, events, modules.
    pub(crate) fn left(&self) -> usize {
        self.device.read().len()
            + self.physical.all().len()
            + self.pinned.lock().len()
            + self.streams.all().len()
            + self.events.all().len()
            + self.modules.all().len()
    }
}
