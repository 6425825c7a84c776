//! Which known name a mistyped one was meant to be.

#[cfg(test)]
mod tests;

/// Names longer than this are not compared: the distance costs the product of both lengths, and no key of
/// ours comes near it.
const MAX_NAME_CHARS: usize = 64;

/// One edit is forgiven in any name and one more for every four characters: enough for a slip of the keyboard or
/// a missing word ending. At three, `after_system` would be taken for `before_system`.
const CHARS_PER_EDIT: usize = 4;

/// The known name nearest to `name`, if it is near enough to be worth a suggestion. Ties go to the first.
///
/// Case, and `-` for `_`, are not counted as edits.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    if length > MAX_NAME_CHARS {
        return None;
    }
    let plain = name.to_lowercase().replace('-', "_");
    let forgiven = (length / CHARS_PER_EDIT).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&plain, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= forgiven && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
