//! `larder-cache-node selftest`: is the GPU path right on this machine, and how fast?

use std::io::{self, Write};
use std::process::{Command, Stdio};

use larder_kernels::selftest::{self, SelftestError};
use larder_kernels::{Device, Driver, GpuError, NoGpu};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no GPU to test. The node itself runs without one.
    #[error("no GPU to test: {0}")]
    NoGpu(#[from] NoGpu),
    /// The driver lists fewer devices.
    #[error("there is no GPU {gpu}: the driver shows {count} here, counted from 0")]
    NoSuchGpu {
        /// What was asked for.
        gpu: usize,
        /// How many there are.
        count: usize,
    },
    /// A check could not be made.
    #[error(transparent)]
    Selftest(#[from] SelftestError),
}

impl From<GpuError> for Failure {
    fn from(error: GpuError) -> Self {
        Self::Selftest(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Selftest(error.into())
    }
}

/// Tests the `gpu`-th device that this process may see, and writes what was found. True if nothing failed.
///
/// # Errors
/// Why it could not be tested.
pub fn run(gpu: usize, report: &mut dyn Write) -> Result<bool, Failure> {
    let (driver, device) = device(gpu)?;
    // The engine's part: this program again, in a process of its own as an engine is.
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["selftest", "--as-engine", "--gpu", &gpu.to_string()]);
    let mut engine = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let result = selftest::run(&driver, &device, &mut engine, report);
    // Its input has ended with the run; where the run failed it may be anywhere.
    let _ = engine.kill();
    let _ = engine.wait();
    Ok(result? == 0)
}

/// The engine's part of a self-test, spoken to over standard input and output.
///
/// # Errors
/// The driver's, or the other process's.
pub fn engine(gpu: usize) -> Result<(), Failure> {
    let (_, device) = device(gpu)?;
    Ok(selftest::engine(&device, io::stdin().lock(), io::stdout().lock())?)
}

fn device(gpu: usize) -> Result<(Driver, Device), Failure> {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let uuid = devices.get(gpu).ok_or(Failure::NoSuchGpu { gpu, count: devices.len() })?;
    let device = driver.device(*uuid)?;
    Ok((driver, device))
}
