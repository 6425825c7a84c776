//! `larder-cache-node selftest` on the emulator: what it says, and that it finds what is wrong.

use std::process::{Command, Output};

use larder_emulator::library;

/// Runs it with these variables set.
fn selftest(variables: &[(&str, &str)], gpu: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-cache-node"));
    command.args(["selftest", "--gpu", gpu]).env("LARDER_LIBCUDA", library().unwrap());
    command.envs(variables.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

#[test]
fn it_is_well_on_the_emulator_and_times_nothing_there() {
    let output = selftest(&[], "1");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("device: larder emulator, GPU-"), "{text}");
    for order in ["LayerFirst", "BlockFirst", "Latent"] {
        for whose in ["another process's pages", "mapped pieces"] {
            for way in ["landing slab and kernel", "a copy for each run", "one batch of copies"] {
                for what in ["load", "store"] {
                    let line = format!("{order}, {whose}, {what} by {way}: ok");
                    assert!(text.contains(&line), "{line} in {text}");
                }
            }
        }
    }
    assert!(!text.contains("GB/s") && text.contains("this is the emulator"), "{text}");
    assert!(text.ends_with("0 failed\n"), "{text}");
}

#[test]
fn a_bit_that_flips_in_any_of_its_copies_is_found() {
    // In the engine's process as in this one: whichever copy it is, some check must see it.
    for copy in ["1", "2", "4", "7", "12", "20"] {
        let output = selftest(&[("LARDER_EMULATOR_FLIP", copy)], "0");
        let text = said(&output);
        assert!(!output.status.success(), "copy {copy}: {text}");
    }
}

#[test]
fn a_failing_call_is_an_error_with_its_name() {
    let output = selftest(&[("LARDER_EMULATOR_FAIL", "cuLaunchKernel:2:719")], "0");
    assert!(!output.status.success());
    assert!(
        said(&output).contains("cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED (719)"),
        "{}",
        said(&output)
    );
}

#[test]
fn without_a_gpu_it_says_so() {
    let output = selftest(&[("LARDER_LIBCUDA", "no/such/libcuda.so")], "0");
    assert!(!output.status.success());
    assert!(said(&output).contains("no GPU to test: the driver at no/such/libcuda.so cannot be opened"));
    let output = selftest(&[], "2");
    assert!(said(&output).contains("there is no GPU 2: the driver shows 2 here"), "{}", said(&output));
}
