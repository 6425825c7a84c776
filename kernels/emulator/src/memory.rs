//! Device memory: memfds that are mapped here and, by their descriptors, in the processes that open their handles.
//!
//! A device pointer is the address of the mapping, so kernels can follow tables of pointers. Every access is held
//! against the live allocations by one check, [`Device::allows`].

#![expect(unsafe_code, reason = "copies from and to addresses that a caller gave")]

mod mapping;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use mapping::{GRANULARITY, Mapping, Physical};
pub use mapping::{POISON, noise};

use crate::code::{Answer, INVALID_VALUE};
use crate::ptx::run::Memory;

/// Whether this process may write where an address lies; yes for one that nothing is known of.
pub(crate) fn is_writable(at: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let range = |line: &&str| {
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(number(start)?..number(end)?)
    };
    let line = maps.lines().find(|line| range(line).is_some_and(|range| range.contains(&at)));
    line.is_none_or(|line| line.split(' ').nth(1).is_some_and(|rights| rights.contains('w')))
}

/// Where device memory comes from.
pub(crate) enum Origin {
    /// One piece, made here or opened by another process's handle.
    Whole { mapping: Mapping, imported: bool },
    /// Physical memory, mapped into reserved addresses; reached only once access was set.
    Virtual { physical: Arc<Physical>, accessible: bool },
}

/// A piece of device memory.
pub(crate) struct Allocation {
    pub(crate) bytes: usize,
    pub(crate) origin: Origin,
}

/// A copy that was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) bytes: usize,
    pub(crate) to_device: bool,
    pub(crate) from_device: bool,
}

/// All device memory that this process can reach, by address.
#[derive(Default)]
pub(crate) struct Device {
    allocations: BTreeMap<u64, Allocation>,
    /// Addresses that are taken and, but for what is mapped there, reach nothing.
    reserved: BTreeMap<u64, Mapping>,
}

impl Device {
    pub(crate) fn allocate(&mut self, bytes: usize) -> Answer<u64> {
        let mapping = Mapping::create(bytes)?;
        mapping.poison();
        let (at, bytes) = (mapping.address(), mapping.bytes());
        self.allocations.insert(at, Allocation { bytes, origin: Origin::Whole { mapping, imported: false } });
        Ok(at)
    }

    /// Makes host memory of this process device memory, whole pages of it, in its place.
    ///
    /// # Safety
    /// As for [`Mapping::adopt`].
    pub(crate) unsafe fn adopt(&mut self, at: u64, bytes: usize) -> Answer {
        // SAFETY: the caller's promise.
        let mapping = unsafe { Mapping::adopt(at as usize, bytes) }?;
        let (at, bytes) = (mapping.address(), mapping.bytes());
        self.allocations.insert(at, Allocation { bytes, origin: Origin::Whole { mapping, imported: false } });
        Ok(())
    }

    /// Adds what another process made.
    pub(crate) fn import(&mut self, mapping: Mapping) -> u64 {
        let (at, bytes) = (mapping.address(), mapping.bytes());
        self.allocations.insert(at, Allocation { bytes, origin: Origin::Whole { mapping, imported: true } });
        at
    }

    /// Forgets and unmaps an allocation that begins at `at`.
    pub(crate) fn remove(&mut self, at: u64, imported: bool) -> Answer {
        let is_it = self.allocations.get(&at).is_some_and(
            |found| matches!(found.origin, Origin::Whole { imported: is, .. } if is == imported),
        );
        if !is_it {
            return Err(INVALID_VALUE);
        }
        self.allocations.remove(&at);
        Ok(())
    }

    /// Takes addresses.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Answer<u64> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        let mapping = Mapping::reserve(bytes)?;
        let at = mapping.address();
        self.reserved.insert(at, mapping);
        Ok(at)
    }

    /// Gives addresses back, into which nothing may be mapped any more.
    pub(crate) fn unreserve(&mut self, at: u64, bytes: usize) -> Answer {
        let is_it = self.reserved.get(&at).is_some_and(|found| found.bytes() == bytes);
        if !is_it || self.allocations.range(at..at + bytes as u64).next().is_some() {
            return Err(INVALID_VALUE);
        }
        self.reserved.remove(&at);
        Ok(())
    }

    /// Maps all of `physical` at `at`, inside a reservation and where nothing is.
    pub(crate) fn map(&mut self, at: u64, bytes: usize, physical: Arc<Physical>) -> Answer {
        let (start, range) = self.reserved.range(..=at).next_back().ok_or(INVALID_VALUE)?;
        let end = at.checked_add(bytes as u64).ok_or(INVALID_VALUE)?;
        let inside = end <= start + range.bytes() as u64 && (at - start).is_multiple_of(GRANULARITY as u64);
        let free = self.allocations.range(..end).next_back();
        if !inside || bytes != physical.bytes || free.is_some_and(|(at_2, a)| at_2 + a.bytes as u64 > at) {
            return Err(INVALID_VALUE);
        }
        range.place((at - start) as usize, bytes, Some(&physical.fd))?;
        self.allocations
            .insert(at, Allocation { bytes, origin: Origin::Virtual { physical, accessible: false } });
        Ok(())
    }

    /// Unmaps what was mapped in a range, which must be whole mappings.
    pub(crate) fn unmap(&mut self, at: u64, bytes: usize) -> Answer {
        let pieces = self.mapped(at, bytes)?;
        for piece in pieces {
            let found = self.allocations.remove(&piece).ok_or(INVALID_VALUE)?;
            let (start, range) = self.reserved.range(..=piece).next_back().ok_or(INVALID_VALUE)?;
            range.place((piece - start) as usize, found.bytes, None)?;
        }
        Ok(())
    }

    /// Lets the device reach what is mapped in a range.
    pub(crate) fn allow(&mut self, at: u64, bytes: usize) -> Answer {
        for piece in self.mapped(at, bytes)? {
            if let Some(Allocation { origin: Origin::Virtual { accessible, .. }, .. }) =
                self.allocations.get_mut(&piece)
            {
                *accessible = true;
            }
        }
        Ok(())
    }

    /// Where the mappings begin that together are exactly a range.
    fn mapped(&self, at: u64, bytes: usize) -> Answer<Vec<u64>> {
        let end = at.checked_add(bytes as u64).ok_or(INVALID_VALUE)?;
        let (mut next, mut pieces) = (at, Vec::new());
        while next < end {
            let found = self.allocations.get(&next).ok_or(INVALID_VALUE)?;
            if !matches!(found.origin, Origin::Virtual { .. }) {
                return Err(INVALID_VALUE);
            }
            pieces.push(next);
            next += found.bytes as u64;
        }
        if next == end && !pieces.is_empty() { Ok(pieces) } else { Err(INVALID_VALUE) }
    }

    /// The allocation in which an address lies, and where it begins.
    pub(crate) fn find(&self, at: u64) -> Option<(u64, &Allocation)> {
        let (base, allocation) = self.allocations.range(..=at).next_back()?;
        (at - base < allocation.bytes as u64).then_some((*base, allocation))
    }

    /// Whether the device reaches all of a range: one allocation, or mappings without a gap.
    fn reaches(&self, at: u64, bytes: usize) -> bool {
        let Some(end) = at.checked_add(bytes as u64) else { return false };
        let mut next = at;
        loop {
            let Some((base, found)) = self.find(next) else { return false };
            let is_mapped = match found.origin {
                Origin::Virtual { accessible: false, .. } => return false,
                Origin::Virtual { .. } => true,
                // Other allocations that happen to lie side by side are no range.
                Origin::Whole { .. } if next != at => return false,
                Origin::Whole { .. } => false,
            };
            next = base + found.bytes as u64;
            if next >= end || !is_mapped {
                return next >= end;
            }
        }
    }

    /// How many objects there are: a test asks whether any was left.
    pub(crate) fn len(&self) -> usize {
        self.allocations.len() + self.reserved.len()
    }

    /// The one check of a copy's ranges: when it is asked for, and when it is done, since memory may have been freed.
    pub(crate) fn allows(&self, copy: Copy) -> Answer {
        let Copy { to, from, bytes, to_device, from_device } = copy;
        if (to_device && !self.reaches(to, bytes)) || (from_device && !self.reaches(from, bytes)) {
            return Err(INVALID_VALUE);
        }
        Ok(())
    }

    /// Copies between any two addresses.
    pub(crate) fn copy(&self, copy: Copy) -> Answer {
        self.allows(copy)?;
        let Copy { to, from, bytes, .. } = copy;
        // SAFETY: device addresses were checked just now, and stay while `self` is borrowed; for host addresses the
        // caller of the driver's function answers, as with a real driver.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    /// Flips the lowest bit of a copy's last byte, where it arrived.
    pub(crate) fn spoil(&self, copy: Copy) {
        let Some(last) = copy.bytes.checked_sub(1).map(|last| (copy.to + last as u64) as *mut u8) else {
            return;
        };
        if self.allows(copy).is_ok() {
            // SAFETY: the byte was just written by this copy, as above.
            unsafe { last.write(last.read() ^ 1) };
        }
    }
}

impl Memory for Device {
    fn load(&self, at: u64, into: &mut [u8]) -> bool {
        let to = into.as_mut_ptr() as u64;
        self.copy(Copy { to, from: at, bytes: into.len(), to_device: false, from_device: true }).is_ok()
    }

    fn store(&self, at: u64, bytes: &[u8]) -> bool {
        let from = bytes.as_ptr() as u64;
        self.copy(Copy { to: at, from, bytes: bytes.len(), to_device: true, from_device: false }).is_ok()
    }
}
