//! Sizes and durations as people write them: a whole number and a unit.
//!
//! Fractions are refused, since each has a whole form in a smaller unit, and rounding would hide what is used.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// Binary units only: a cache sized in "GB" would leave it open which of two sizes, 7 % apart, is meant.
const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Why a quantity was refused: the reason, and what to write instead.
pub type Refusal = (String, Option<String>);

/// Reads a size in bytes: a whole number followed by `B`, `KiB`, `MiB`, `GiB`, `TiB` or nothing.
///
/// # Errors
/// The reason and a hint, when the text is not such a number or exceeds `u64`.
pub fn parse_size(text: &str) -> Result<u64, Refusal> {
    let (number, unit) = split(text).ok_or_else(|| no_number("size", "\"32MiB\""))?;
    if unit.is_empty() {
        return number.parse().map_err(|_| too_large());
    }
    let Some(scale) = scale_of(unit, &SIZE_UNITS) else {
        let meant = SIZE_UNITS.iter().find(|(name, _)| {
            let initial = name.chars().next().map(|c| c.to_ascii_lowercase());
            initial == unit.chars().next().map(|c| c.to_ascii_lowercase())
        });
        let hint = meant.map_or_else(
            || "the units are B, KiB, MiB, GiB and TiB".to_owned(),
            |(name, _)| format!("sizes are binary; did you mean \"{number}{name}\"?"),
        );
        return Err((format!("`{unit}` is not a unit of size"), Some(hint)));
    };
    scaled(number, scale)
}

/// Reads a duration: a whole number followed by `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// The reason and a hint, when the text is not such a number, has no unit, or exceeds `u64` milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, Refusal> {
    let (number, unit) = split(text).ok_or_else(|| no_number("duration", "\"30s\""))?;
    if unit.is_empty() {
        return Err(("a duration needs a unit".to_owned(), Some(duration_hint(number))));
    }
    let Some(scale) = scale_of(unit, &DURATION_UNITS) else {
        let hint = "the units are ms, s, m, h and d".to_owned();
        return Err((format!("`{unit}` is not a unit of time"), Some(hint)));
    };
    scaled(number, scale).map(Duration::from_millis)
}

/// The hint for a duration written as the bare number `number`.
pub(crate) fn duration_hint(number: &str) -> String {
    format!("write \"{number}s\" for seconds or \"{number}ms\" for milliseconds")
}

/// Writes a size the way [`parse_size`] reads it, in the largest unit that is exact.
pub fn format_size(bytes: u64) -> String {
    in_largest_unit(bytes, &SIZE_UNITS)
}

/// Writes a duration the way [`parse_duration`] reads it, in the largest unit that is exact. What is below a
/// millisecond is cut off.
pub fn format_duration(duration: Duration) -> String {
    in_largest_unit(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS)
}

/// The leading digits and the unit after them, blanks between them skipped.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (!number.is_empty()).then_some((number, unit.trim_start()))
}

fn scale_of(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)
}

fn scaled(number: &str, scale: u64) -> Result<u64, Refusal> {
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(too_large)
}

fn no_number(kind: &str, example: &str) -> Refusal {
    (format!("not a {kind}"), Some(format!("write a whole number and a unit, such as {example}")))
}

fn too_large() -> Refusal {
    ("too large a number".to_owned(), None)
}

fn in_largest_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().rev().find(|(_, scale)| amount >= *scale && amount.is_multiple_of(*scale));
    let (unit, scale) = exact.unwrap_or(&units[0]);
    format!("{}{unit}", amount / scale)
}
