//! Runs of block ids. Ids of a trace mostly count upwards, so a 2,000-block prompt is usually one range.

/// Block ids in prompt order, kept as `(first id, count)` ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    ranges: Vec<(u64, u64)>,
    len: u64,
}

impl Blocks {
    /// Adds `len` ids from `start` on; joins the last range if it continues it.
    ///
    /// # Errors
    /// A sentence that names the range, if its end does not fit 64 bits.
    pub fn push(&mut self, start: u64, len: u64) -> Result<(), String> {
        let overflow = || format!("block range [{start}, {len}] ends beyond 64 bits");
        start.checked_add(len).ok_or_else(overflow)?;
        self.len = self.len.checked_add(len).ok_or_else(overflow)?;
        match self.ranges.last_mut() {
            Some((first, count)) if *first + *count == start => *count += len,
            _ if len > 0 => self.ranges.push((start, len)),
            _ => {}
        }
        Ok(())
    }

    /// Number of ids.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ids in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|&(start, len)| start..start + len)
    }

    /// The ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().copied()
    }
}

/// Sorts `ranges` and joins those that overlap or touch, so that no id is in two of them.
pub(crate) fn merge(ranges: &mut Vec<(u64, u64)>) {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len().min(64));
    for &(start, len) in ranges.iter() {
        match merged.last_mut() {
            Some((first, count)) if start <= *first + *count => *count = (*count).max(start + len - *first),
            _ => merged.push((start, len)),
        }
    }
    *ranges = merged;
}
