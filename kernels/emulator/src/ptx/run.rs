//! Runs a kernel, thread after thread, and holds every access against memory's bounds.

use super::{Binary, Compare, Kernel, Source, Special, Step, Type, What};
use crate::code::{ILLEGAL_ADDRESS, LAUNCH_FAILED, LAUNCH_TIMEOUT, MISALIGNED_ADDRESS};

/// Steps one thread may take: a loop without an end is a fault and no hang. A thread of ours takes a few thousand.
const STEPS_MAX: u64 = 100_000_000;

/// Memory that kernels reach.
pub(crate) trait Memory {
    /// The bytes at an address, or false where not all of them are in one live allocation.
    fn load(&self, at: u64, into: &mut [u8]) -> bool;
    /// Writes them, or false as above.
    fn store(&self, at: u64, bytes: &[u8]) -> bool;
}

/// How many threads, in blocks of how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
}

/// A kernel's end before its time.
#[derive(Debug, thiserror::Error)]
#[error("{kernel}: PTX line {line}: {what} (block {block:?} thread {thread:?})")]
pub(crate) struct Fault {
    pub(crate) code: u32,
    kernel: String,
    line: u32,
    what: String,
    block: [u32; 3],
    thread: [u32; 3],
}

struct Thread<'a> {
    /// None until first written: reading such a register is a fault.
    registers: Vec<Option<u64>>,
    parameters: &'a [u64],
    block: [u32; 3],
    thread: [u32; 3],
    grid: Grid,
    number: u32,
    accesses: &'a mut Vec<Access>,
}

type Done<T> = Result<T, (u32, String)>;

/// Accesses of one launch that are looked at for races, at most: the first of a large one. They take 24 bytes each.
const ACCESSES_MAX: usize = 1 << 20;

/// An access of a thread, which here runs to its end before the next begins, but on a GPU at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Access {
    at: u64,
    bytes: u32,
    /// Its number among all threads of the launch.
    thread: u32,
    line: u32,
    writes: bool,
}

/// Two accesses of different threads that meet, one of which writes: without a barrier between them nobody knows which is
/// first.
fn race(mut accesses: Vec<Access>) -> Option<(Access, Access)> {
    accesses.sort_unstable();
    // Of loads and of stores before: what reaches furthest, and what does of all other threads.
    let mut furthest: [[Option<Access>; 2]; 2] = [[None; 2]; 2];
    let end = |access: Access| access.at + u64::from(access.bytes);
    for access in accesses {
        let of_others =
            |both: &[Option<Access>; 2]| both.iter().flatten().copied().find(|it| it.thread != access.thread);
        let [loads, stores] = furthest.map(|both| of_others(&both).filter(|before| end(*before) > access.at));
        if let Some(before) = stores.or(loads.filter(|_| access.writes)) {
            return Some((before, access));
        }
        let [first, second] = &mut furthest[usize::from(access.writes)];
        match *first {
            Some(best) if end(best) > end(access) => {
                if best.thread != access.thread && second.is_none_or(|before| end(before) < end(access)) {
                    *second = Some(access);
                }
            }
            Some(best) if best.thread != access.thread => (*second, *first) = (Some(best), Some(access)),
            _ => *first = Some(access),
        }
    }
    None
}

/// Runs all threads of a launch.
pub(crate) fn launch(
    kernel: &Kernel,
    grid: Grid,
    parameters: &[u64],
    memory: &dyn Memory,
) -> Result<(), Fault> {
    let mut accesses = Vec::new();
    let mut number = 0;
    for block in places(grid.blocks) {
        for thread in places(grid.threads) {
            let registers = vec![None; kernel.registers];
            number += 1;
            let mut state =
                Thread { registers, parameters, block, thread, grid, number, accesses: &mut accesses };
            state.run(kernel, memory).map_err(|(line, (code, what))| Fault {
                code,
                kernel: kernel.name.clone(),
                line,
                what,
                block,
                thread,
            })?;
        }
    }
    let Some((one, other)) = race(accesses) else { return Ok(()) };
    let what = format!(
        "threads {} and {} of the launch meet at {:#x}, the other in line {}, and one writes",
        one.thread, other.thread, other.at, one.line
    );
    let (kernel, line) = (kernel.name.clone(), other.line);
    Err(Fault { code: LAUNCH_FAILED, kernel, line, what, block: [0; 3], thread: [0; 3] })
}

fn places([x, y, z]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
    (0..z).flat_map(move |c| (0..y).flat_map(move |b| (0..x).map(move |a| [a, b, c])))
}

impl Thread<'_> {
    fn run(&mut self, kernel: &Kernel, memory: &dyn Memory) -> Result<(), (u32, (u32, String))> {
        let mut at = 0usize;
        for _ in 0..STEPS_MAX {
            let Some(step) = kernel.code.get(at) else { return Ok(()) };
            at += 1;
            match self.step(step, memory).map_err(|why| (step.line, why))? {
                Next::On => {}
                Next::Jump(to) => at = to as usize,
                Next::End => return Ok(()),
            }
        }
        Err((0, (LAUNCH_TIMEOUT, format!("no end after {STEPS_MAX} steps"))))
    }

    fn step(&mut self, step: &Step, memory: &dyn Memory) -> Done<Next> {
        if let Some((register, negated)) = step.guard
            && (self.get(Source::Register(register))? != 0) == negated
        {
            return Ok(Next::On);
        }
        match &step.what {
            What::Return => return Ok(Next::End),
            What::Branch { to } => return Ok(Next::Jump(*to)),
            What::Move { to, from, kind } => self.put(*to, cut(self.get(*from)?, kind.bytes)),
            What::Convert { to, from, old, new } => {
                let value = extend(self.get(*from)?, *old) as u64;
                self.put(*to, cut(value, new.bytes));
            }
            What::Compute { to, a, b, how, kind } => {
                let value = compute(self.get(*a)?, self.get(*b)?, *how, *kind);
                self.put(*to, value);
            }
            What::Set { to, a, b, how, kind } => {
                let value = compare(self.get(*a)?, self.get(*b)?, *how, *kind);
                self.put(*to, u64::from(value));
            }
            What::Select { to, a, b, by } => {
                let from = if self.get(Source::Register(*by))? != 0 { *a } else { *b };
                let value = self.get(from)?;
                self.put(*to, value);
            }
            What::LoadParameter { to, index } => self.put(*to, self.parameters[usize::from(*index)]),
            What::Load { to, at, offset, kind } => {
                let size = usize::from(kind.bytes);
                let mut bytes = [0; 32];
                let bytes = &mut bytes[..size * to.len()];
                let at = self.address(*at, *offset, bytes.len())?;
                self.accessed(at, bytes.len(), step.line, false);
                if !memory.load(at, bytes) {
                    return Err((ILLEGAL_ADDRESS, format!("load of {} bytes at {at:#x}", bytes.len())));
                }
                for (register, value) in to.iter().zip(bytes.chunks(size)) {
                    let mut wide = [0; 8];
                    wide[..size].copy_from_slice(value);
                    self.put(*register, extend(u64::from_le_bytes(wide), *kind) as u64);
                }
            }
            What::Store { from, at, offset, kind } => {
                let size = usize::from(kind.bytes);
                let mut bytes = [0; 32];
                let bytes = &mut bytes[..size * from.len()];
                let at = self.address(*at, *offset, bytes.len())?;
                for (value, place) in from.iter().zip(bytes.chunks_mut(size)) {
                    place.copy_from_slice(&self.get(*value)?.to_le_bytes()[..size]);
                }
                self.accessed(at, bytes.len(), step.line, true);
                if !memory.store(at, bytes) {
                    return Err((ILLEGAL_ADDRESS, format!("store of {} bytes at {at:#x}", bytes.len())));
                }
            }
        }
        Ok(Next::On)
    }

    fn address(&self, at: Source, offset: i64, bytes: usize) -> Done<u64> {
        let at = self.get(at)?.wrapping_add_signed(offset);
        if !at.is_multiple_of(bytes as u64) {
            return Err((
                MISALIGNED_ADDRESS,
                format!("{bytes} bytes at {at:#x}, which is no multiple of it"),
            ));
        }
        Ok(at)
    }

    fn accessed(&mut self, at: u64, bytes: usize, line: u32, writes: bool) {
        if self.accesses.len() < ACCESSES_MAX {
            self.accesses.push(Access { at, bytes: bytes as u32, thread: self.number, line, writes });
        }
    }

    fn put(&mut self, register: super::Register, value: u64) {
        self.registers[usize::from(register)] = Some(value);
    }

    fn get(&self, source: Source) -> Done<u64> {
        Ok(match source {
            Source::Value(value) => value,
            Source::Register(register) => self.registers[usize::from(register)]
                .ok_or_else(|| (LAUNCH_FAILED, format!("register {register} read before it was written")))?,
            Source::Special(special) => u64::from(match special {
                Special::Thread(axis) => self.thread[usize::from(axis)],
                Special::Threads(axis) => self.grid.threads[usize::from(axis)],
                Special::Block(axis) => self.block[usize::from(axis)],
                Special::Blocks(axis) => self.grid.blocks[usize::from(axis)],
            }),
        })
    }
}

enum Next {
    On,
    Jump(u32),
    End,
}

fn bits(bytes: u8) -> u32 {
    u32::from(bytes) * 8
}

fn cut(value: u64, bytes: u8) -> u64 {
    value & (u64::MAX >> (64 - bits(bytes)))
}

fn extend(value: u64, kind: Type) -> i64 {
    let spare = 64 - bits(kind.bytes);
    if kind.signed { (value << spare) as i64 >> spare } else { cut(value, kind.bytes) as i64 }
}

fn compute(a: u64, b: u64, how: Binary, kind: Type) -> u64 {
    let (wide_a, wide_b) = (extend(a, kind), extend(b, kind));
    let less = if kind.signed { wide_a < wide_b } else { (wide_a as u64) < wide_b as u64 };
    // Shifts take their amount as u32, whatever the type, and clamp it to the width.
    let amount = cut(b, 4);
    let value = match how {
        Binary::Add => a.wrapping_add(b),
        Binary::Subtract => a.wrapping_sub(b),
        Binary::Multiply => a.wrapping_mul(b),
        Binary::MultiplyWide => return cut(wide_a.wrapping_mul(wide_b) as u64, kind.bytes * 2),
        Binary::Minimum => {
            if less {
                a
            } else {
                b
            }
        }
        Binary::Maximum => {
            if less {
                b
            } else {
                a
            }
        }
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft if amount >= u64::from(bits(kind.bytes)) => 0,
        Binary::ShiftLeft => a << amount,
        Binary::ShiftRight if kind.signed => (wide_a >> amount.min(63)) as u64,
        Binary::ShiftRight if amount >= u64::from(bits(kind.bytes)) => 0,
        Binary::ShiftRight => wide_a as u64 >> amount,
    };
    cut(value, kind.bytes)
}

fn compare(a: u64, b: u64, how: Compare, kind: Type) -> bool {
    let (a, b) = (extend(a, kind), extend(b, kind));
    let order = if kind.signed { a.cmp(&b) } else { (a as u64).cmp(&(b as u64)) };
    match how {
        Compare::Equal => order.is_eq(),
        Compare::NotEqual => order.is_ne(),
        Compare::Less => order.is_lt(),
        Compare::LessEqual => order.is_le(),
        Compare::Greater => order.is_gt(),
        Compare::GreaterEqual => order.is_ge(),
    }
}
