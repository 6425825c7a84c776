//! A test's hold on the emulator that it loaded: the library has its own statics, so it is reached by its symbols.

#![expect(unsafe_code, reason = "calls functions of a library by name")]

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use libloading::Library;

use crate::state::state;

/// Where cargo has put the library: beside the test's program, or one folder up.
///
/// # Errors
/// The places in which it is not.
pub fn library() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let places: Vec<PathBuf> =
        program.ancestors().skip(1).take(2).map(|dir| dir.join("liblarder_emulator.so")).collect();
    places.iter().find(|place| place.exists()).cloned().ok_or_else(|| format!("no emulator at {places:?}"))
}

/// The knobs of the emulator in this process.
#[derive(Debug)]
pub struct Controls(Library);

impl Controls {
    /// Those of the library at `path`.
    ///
    /// # Errors
    /// It cannot be loaded, or is no emulator.
    pub fn of(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the library is ours and has no initialisers.
        let library = unsafe { Library::new(path) }?;
        // SAFETY: only looked for, not called.
        unsafe { library.get::<extern "C" fn()>(b"larder_emulator_left") }?;
        Ok(Self(library))
    }

    /// Streams begin nothing new until they are let go.
    pub fn hold(&self, held: bool) {
        self.set("larder_emulator_hold", u64::from(held));
    }

    /// Copies take their bytes divided by this, in seconds; 0 for no time.
    pub fn slow(&self, bytes_per_second: u64) {
        self.set("larder_emulator_slow", bytes_per_second);
    }

    /// Every call from now on answers `code`, until this is called with 0.
    pub fn lose(&self, code: u32) {
        self.set("larder_emulator_lose", u64::from(code));
    }

    /// The `nth` call of the function from now on (from 1; 0 for none) answers `code` and does nothing.
    pub fn fail(&self, function: &str, nth: u64, code: u32) {
        let name = CString::new(function).expect("a function's name");
        // SAFETY: the signature is that of the function below.
        let fail = unsafe { self.0.get::<extern "C" fn(*const c_char, u64, u32)>(b"larder_emulator_fail") };
        fail.expect("checked when it was loaded")(name.as_ptr(), nth, code);
    }

    /// How often the function was called.
    pub fn calls(&self, function: &str) -> u64 {
        let name = CString::new(function).expect("a function's name");
        // SAFETY: the signature is that of the function below.
        let calls = unsafe { self.0.get::<extern "C" fn(*const c_char) -> u64>(b"larder_emulator_calls") };
        calls.expect("checked when it was loaded")(name.as_ptr())
    }

    /// Objects that were made and not freed.
    pub fn left(&self) -> u64 {
        // SAFETY: the signature is that of the function below.
        let left = unsafe { self.0.get::<extern "C" fn() -> u64>(b"larder_emulator_left") };
        left.expect("checked when it was loaded")()
    }

    fn set(&self, name: &str, value: u64) {
        // SAFETY: the functions of these names take one u64.
        let set = unsafe { self.0.get::<extern "C" fn(u64)>(name.as_bytes()) };
        set.expect("checked when it was loaded")(value);
    }
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_hold(held: u64) {
    state().knobs.held.store(held != 0, SeqCst);
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_slow(bytes_per_second: u64) {
    state().knobs.bytes_per_second.store(bytes_per_second, SeqCst);
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_lose(code: u64) {
    state().knobs.lost.store(code as u32, SeqCst);
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_fail(name: *const c_char, nth: u64, code: u32) {
    // SAFETY: only `Controls` calls it, with a C string.
    let name = unsafe { std::ffi::CStr::from_ptr(name) };
    state().knobs.fail(&name.to_string_lossy(), nth, code);
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_calls(name: *const c_char) -> u64 {
    // SAFETY: as above.
    let name = unsafe { std::ffi::CStr::from_ptr(name) };
    state().knobs.count(&name.to_string_lossy())
}

/// Makes memory of this process device memory where it lies: an engine that computes on the CPU then has its KV cache in
/// the "GPU". Answers a code of the driver's.
///
/// # Safety
/// The memory is the caller's, mapped readable and writable, nobody writes there meanwhile, and it is not given back.
#[unsafe(no_mangle)]
unsafe extern "C" fn larder_emulator_adopt(at: u64, bytes: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { state().device.write().adopt(at, bytes as usize) }.err().unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn larder_emulator_left() -> u64 {
    state().left() as u64
}
