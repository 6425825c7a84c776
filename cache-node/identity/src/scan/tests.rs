use super::*;
use crate::Simd;

/// One byte at a time, as the grammar says it.
fn naive(body: &[u8], from: usize) -> Scanned {
    let (mut special, mut clean, mut at) = (None, true, from);
    while let Some(&byte) = body.get(at) {
        if byte == b'"' {
            return Scanned::new(at, special, clean);
        }
        clean &= (0x20..0xF5).contains(&byte);
        if byte == b'\\' {
            let Some(escape) = body.get(at + 1) else { break };
            clean &= (0x20..0xF5).contains(escape);
            if matches!(escape, b'u' | b'/') && special.is_none() {
                special = Some(at);
            }
            at += 1;
        }
        at += 1;
    }
    Scanned::OPEN
}

fn naive_special(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            (b'\\', Some(b'u' | b'/')) => return at,
            (b'\\', _) => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

fn naive_nested(body: &[u8], from: usize) -> Option<usize> {
    let (mut depth, mut at) = (0, from);
    loop {
        match body.get(at)? {
            b'"' => at = naive(body, at + 1).end()?,
            // No JSON, and read as if it could escape here too.
            b'\\' if matches!(body.get(at + 1), Some(b'"' | b'\\')) => at += 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

fn random(state: &mut u64, alphabet: &[u8], len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        alphabet[(*state >> 33) as usize % alphabet.len()]
    })
    .take(len)
    .collect()
}

const PATHS: [Simd; 2] = [Simd::Detect, Simd::Portable];

#[test]
fn strings_equal_the_naive_scan_on_every_path() {
    let mut state = 1;
    for round in 0..4000 {
        let alphabet: &[u8] = match round % 4 {
            0 => b"\\\\\\u/n\"ab",
            1 => b"abcdefghijklmnopqrstuvwxyz0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ/u\\",
            2 => b"abcdefghijklmnopqrstuvwxyz0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ\xf4\x80",
            _ => b"abcdefghijklmnopqrstuvwxyz0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ\\\\n\x1f\xf5\x00\xff",
        };
        let mut body = random(&mut state, alphabet, round % 517);
        body.extend_from_slice(b"\"\n\n\xff tail");
        for from in [0, body.len().min(3), body.len().min(64)] {
            let want = naive(&body, from);
            for simd in PATHS {
                assert_eq!(string(Cpu::select(simd), &body, from), want, "{simd:?} {from} {body:?}");
                if let Some(end) = short_string(&body, from) {
                    assert_eq!(want, Scanned::new(end, None, true), "{from} {body:?}");
                }
                let text = &body[..round % 517];
                if from <= text.len() {
                    let next = naive_special(text, from);
                    assert_eq!(special(Cpu::select(simd), text, from), next, "{simd:?} {from} {text:?}");
                }
            }
        }
    }
}

#[test]
fn nested_values_equal_the_naive_scan_on_every_path() {
    let mut state = 7;
    for round in 0..4000 {
        let alphabet: &[u8] =
            if round % 2 == 0 { b"[]{}\"\\ab,:" } else { b"[{]}\"   abcdefghijklmnop,:1234567890" };
        let mut body = b"[".to_vec();
        body.extend(random(&mut state, alphabet, round % 300));
        let want = naive_nested(&body, 0);
        for simd in PATHS {
            assert_eq!(
                nested(Cpu::select(simd), &body, 0),
                want,
                "{simd:?} {}",
                String::from_utf8_lossy(&body)
            );
        }
    }
}

#[test]
fn deep_nesting_costs_no_stack() {
    let body = [vec![b'['; 1 << 20], vec![b']'; 1 << 20]].concat();
    for simd in PATHS {
        assert_eq!(nested(Cpu::select(simd), &body, 0), Some(body.len()));
        assert_eq!(nested(Cpu::select(simd), &body[1..], 0), Some(body.len() - 2));
        assert_eq!(nested(Cpu::select(simd), &body[..body.len() - 1], 0), None);
    }
}

#[test]
fn short_strings_need_no_scan() {
    for len in 0..12 {
        let body = format!("{}\", trailing", "x".repeat(len));
        let found = short_string(body.as_bytes(), 0);
        assert_eq!(found, (len < 8).then_some(len));
    }
    for stopped in
        [b"a\\\"bcdefg".as_slice(), b"\x1f\"abcdefg", "é\"abcdefg".as_bytes(), b"\xff\"abcdefg", b"a\""]
    {
        assert_eq!(short_string(stopped, 0), None, "{stopped:?}");
    }
}
