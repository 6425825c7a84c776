use proptest::prelude::*;

use super::*;

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("64KiB", 65_536),
        ("32MiB", 33_554_432),
        (" 1 GiB ", 1 << 30),
        ("4TiB", 4 << 40),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn durations() {
    for (text, ms) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86_400)));
}

#[test]
fn refused_sizes_say_what_to_write() {
    let hint = |text: &str| parse_size(text).expect_err("refused").1.unwrap_or_default();
    assert_eq!(hint("32MB"), "sizes are binary; did you mean \"32MiB\"?");
    assert_eq!(hint("1g"), "sizes are binary; did you mean \"1GiB\"?");
    assert_eq!(hint("5 parsecs"), "the units are B, KiB, MiB, GiB and TiB");
    for text in ["", "MiB", "-1MiB", "1.5GiB", "99999999999999999999", "18446744073709551615KiB"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn refused_durations_say_what_to_write() {
    let (reason, hint) = parse_duration("30").expect_err("no unit");
    assert_eq!(reason, "a duration needs a unit");
    assert_eq!(hint.as_deref(), Some("write \"30s\" for seconds or \"30ms\" for milliseconds"));
    for text in ["", "s", "-1s", "1.5s", "1us", "30 sec", "18446744073709551615d"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(amount in any::<u64>(), shift in 0u32..50) {
        let bytes = amount >> shift << (shift / 2);
        prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        let duration = Duration::from_millis(bytes);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,20}|[0-9]{0,22} ?[a-zA-Z]{0,4}") {
        let _ = parse_size(&text);
        let _ = parse_duration(&text);
    }
}
