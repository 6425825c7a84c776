use std::cell::RefCell;

use super::module;
use super::run::{Grid, Memory, launch};
use crate::code::{ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS};

const BASE: u64 = 0x1000;

/// Some bytes at [`BASE`].
struct Bytes(RefCell<Vec<u8>>);

impl Memory for Bytes {
    fn load(&self, at: u64, into: &mut [u8]) -> bool {
        let from = at.wrapping_sub(BASE) as usize;
        let bytes = self.0.borrow();
        let Some(bytes) = from.checked_add(into.len()).and_then(|end| bytes.get(from..end)) else {
            return false;
        };
        into.copy_from_slice(bytes);
        true
    }

    fn store(&self, at: u64, new: &[u8]) -> bool {
        let from = at.wrapping_sub(BASE) as usize;
        let mut bytes = self.0.borrow_mut();
        let Some(bytes) = from.checked_add(new.len()).and_then(|end| bytes.get_mut(from..end)) else {
            return false;
        };
        bytes.copy_from_slice(new);
        true
    }
}

fn kernel(body: &str) -> String {
    format!(
        ".version 6.0\n.target sm_70\n.address_size 64\n.visible .entry k(\n.param .u64 k_param_0\n)\n{{\n\
         .reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n\
         ld.param.u64 %rd1, [k_param_0];\n{body}\nret;\n}}\n"
    )
}

/// Runs one thread over 64 bytes of zeroes, and gives them back.
fn run(body: &str) -> Result<Vec<u8>, (u32, String)> {
    let kernels = module(&kernel(body)).unwrap();
    let memory = Bytes(RefCell::new(vec![0; 64]));
    let grid = Grid { blocks: [1; 3], threads: [1; 3] };
    launch(&kernels[0], grid, &[BASE], &memory).map_err(|fault| (fault.code, fault.to_string()))?;
    Ok(memory.0.into_inner())
}

/// Runs four threads over 64 bytes of zeroes; what is wrong, if so.
fn run_four(body: &str) -> Result<(), (u32, String)> {
    let kernels = module(&kernel(body)).unwrap();
    let memory = Bytes(RefCell::new(vec![0; 64]));
    let grid = Grid { blocks: [2, 1, 1], threads: [2, 1, 1] };
    launch(&kernels[0], grid, &[BASE], &memory).map_err(|fault| (fault.code, fault.to_string()))
}

/// On a GPU they run at the same time; here one after the other, so only a look at all of them can tell.
#[test]
fn threads_that_meet_are_a_fault() {
    // %rd3: the thread's own eight bytes of the launch.
    let own = "mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\nshl.b32 %r2, %r2, 1;\nadd.s32 %r1, %r1, %r2;\n\
               mul.wide.u32 %rd3, %r1, 8;\nadd.s64 %rd3, %rd1, %rd3;\n";
    for good in [
        "st.global.u64 [%rd3], 1;",
        "st.global.u64 [%rd3], 1;\nst.global.u64 [%rd3], 2;\nld.global.u64 %rd4, [%rd3];",
        "ld.global.u64 %rd4, [%rd1];\nst.global.u64 [%rd3+32], %rd4;",
    ] {
        assert_eq!(run_four(&format!("{own}{good}")), Ok(()), "{good}");
    }
    for bad in [
        "st.global.u64 [%rd1], 1;",
        "st.global.u32 [%rd1+4], 1;\nld.global.u64 %rd4, [%rd3];",
        "st.global.u64 [%rd3], 1;\nld.global.u32 %r3, [%rd1+20];",
        "st.global.u64 [%rd3], 1;\nst.global.u64 [%rd3+8], 1;",
        // Each thread has loaded more than it stores, and so has the other.
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1];\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 st.global.u32 [%rd1+8], 1;",
    ] {
        let (code, text) = run_four(&format!("{own}{bad}")).unwrap_err();
        assert_eq!(code, LAUNCH_FAILED, "{text}");
        assert!(text.contains("meet"), "{text}");
    }
}

fn word(body: &str) -> u64 {
    u64::from_le_bytes(run(&format!("{body}\nst.global.u64 [%rd1], %rd2;")).unwrap()[..8].try_into().unwrap())
}

#[test]
fn integers_wrap_extend_and_clamp_as_the_language_says() {
    assert_eq!(word("mov.u64 %rd2, -1;\nadd.s64 %rd2, %rd2, 2;"), 1);
    assert_eq!(word("mov.u32 %r1, -1;\ncvt.u64.u32 %rd2, %r1;"), 0xffff_ffff);
    assert_eq!(word("mov.u32 %r1, -1;\ncvt.s64.s32 %rd2, %r1;"), u64::MAX);
    assert_eq!(word("mov.u32 %r1, -1;\nmul.wide.u32 %rd2, %r1, 16;"), 0xf_ffff_fff0);
    assert_eq!(word("mov.u64 %rd3, 3;\nshl.b64 %rd2, %rd3, 64;"), 0);
    assert_eq!(word("mov.u64 %rd3, -8;\nshr.s64 %rd2, %rd3, 70;"), u64::MAX);
    assert_eq!(word("mov.u64 %rd3, -8;\nshr.u64 %rd2, %rd3, 60;"), 15);
    assert_eq!(word("mov.u64 %rd3, -8;\nmin.u64 %rd2, %rd3, 5;"), 5);
    assert_eq!(word("mov.u64 %rd3, -8;\nsetp.lt.s64 %p1, %rd3, 5;\nselp.b64 %rd2, 1, 2, %p1;"), 1);
    assert_eq!(word("mov.u64 %rd3, -8;\nsetp.lt.u64 %p1, %rd3, 5;\nselp.b64 %rd2, 1, 2, %p1;"), 2);
}

#[test]
fn what_a_kernel_must_not_do_is_a_fault_with_its_line() {
    for (body, code) in [
        ("st.global.u64 [%rd1+64], 1;", ILLEGAL_ADDRESS),
        ("st.global.u32 [%rd1+-4], 1;", ILLEGAL_ADDRESS),
        ("ld.u32 %r1, [%rd1+2];", MISALIGNED_ADDRESS),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1+8];", MISALIGNED_ADDRESS),
        ("st.global.u64 [%rd1], %rd7;", LAUNCH_FAILED),
    ] {
        let (found, text) = run(body).unwrap_err();
        assert_eq!(found, code, "{text}");
        assert!(text.contains("line 12"), "{text}");
    }
}

#[test]
fn what_is_not_known_is_refused_when_loaded() {
    for (body, what) in [
        ("bar.sync 0;", "bar.sync"),
        ("ld.shared.u32 %r1, [%rd1];", "ld.shared"),
        ("add.f32 %r1, %r2, %r3;", "add.f32"),
        ("bra $nowhere;", "$nowhere"),
        ("mov.u32 %r99, 1;", "%r99"),
    ] {
        let refused = module(&kernel(body)).unwrap_err();
        assert!(refused.line == 12 && refused.to_string().contains(what), "{refused}");
    }
    assert!(module("nonsense").is_err());
    assert!(module(".visible .entry k(\n").is_err());
}

#[test]
fn the_shipped_kernels_are_read_whole() {
    let pages = module(include_str!("../../../cuda/pages.ptx")).unwrap();
    let names: Vec<&str> = pages.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "larder_scatter",
            "larder_gather",
            "larder_scatter_blocks",
            "larder_gather_blocks",
            "larder_scatter_latent",
            "larder_gather_latent",
        ]
    );
    assert_eq!(pages[0].parameters, [8, 8, 8, 4]);
    assert_eq!(module(include_str!("../../../cuda/checksum.ptx")).unwrap()[0].parameters, [8, 8, 8]);
}
