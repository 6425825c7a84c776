//! PTX: reads the text of a module, and refuses what it does not know, by line.
//!
//! As much of the language as clang makes of kernels that copy and hash: integer arithmetic, loads and stores to global
//! memory, branches. No barriers, shared memory or floating point: a kernel that needs them is refused when loaded.
//! Without barriers no two threads of a launch may meet in memory where one of them writes; that is looked for.
//! The language: <https://docs.nvidia.com/cuda/parallel-thread-execution/>.

mod parse;
pub(crate) mod run;

#[cfg(test)]
mod tests;

/// A register's place in its thread's array.
pub(crate) type Register = u16;

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<u8>,
    pub(crate) registers: usize,
    pub(crate) code: Vec<Step>,
}

/// One instruction.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// In the module's text, from 1.
    pub(crate) line: u32,
    /// Runs only where this predicate is true, or false if it says `true` (negated).
    pub(crate) guard: Option<(Register, bool)>,
    pub(crate) what: What,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    Register(Register),
    Value(u64),
    Special(Special),
}

/// What a thread is told about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
}

/// Two values into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    /// The product is twice as wide as its factors.
    MultiplyWide,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// An integer type: `u32`, `s64`, `b16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) bytes: u8,
    pub(crate) signed: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Move {
        to: Register,
        from: Source,
        kind: Type,
    },
    /// Between widths: sign- or zero-extended from `from`'s type, cut to `to`'s.
    Convert {
        to: Register,
        from: Source,
        old: Type,
        new: Type,
    },
    Compute {
        to: Register,
        a: Source,
        b: Source,
        how: Binary,
        kind: Type,
    },
    Set {
        to: Register,
        a: Source,
        b: Source,
        how: Compare,
        kind: Type,
    },
    Select {
        to: Register,
        a: Source,
        b: Source,
        by: Register,
    },
    LoadParameter {
        to: Register,
        index: u16,
    },
    Load {
        to: Vec<Register>,
        at: Source,
        offset: i64,
        kind: Type,
    },
    Store {
        from: Vec<Source>,
        at: Source,
        offset: i64,
        kind: Type,
    },
    Branch {
        to: u32,
    },
    Return,
}

/// Why a module is refused.
#[derive(Debug, thiserror::Error)]
#[error("PTX line {line}: {what}")]
pub(crate) struct Refused {
    pub(crate) line: u32,
    pub(crate) what: String,
}

/// The kernels of a module.
pub(crate) fn module(text: &str) -> Result<Vec<Kernel>, Refused> {
    parse::module(text)
}
