use proptest::prelude::*;

use super::*;
use crate::medium::disk::media::fake::{Fake, Fault};

fn kept() -> impl Strategy<Value = Kept> {
    let keys = prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 1..=64)), 0..9);
    let chain = (prop::collection::vec(any::<u64>(), 0..9), 1..9999_u32, any::<u64>());
    (any::<u128>(), chain, keys, prop::option::of(1..9999_u32)).prop_map(
        |(namespace, chain, keys, prompt_tokens)| {
            let (points, run_bytes, prompt_bytes) = chain;
            let chain = PromptChain { points: points.into(), run_bytes, prompt_bytes };
            let keys = keys.into_iter().map(|(end, key)| (end, BlockKey::new(&key).unwrap())).collect();
            Kept { namespace: StoreNamespace(namespace), chain, keys, prompt_tokens }
        },
    )
}

fn all(media: &Fake, file: u64) -> Vec<Kept> {
    let mut found = Vec::new();
    read(media, file, |recipe| found.push(recipe)).unwrap();
    found
}

fn bytes(recipe: &Kept) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(recipe, &mut bytes);
    bytes
}

fn one(number: u32) -> Kept {
    let chain = PromptChain { points: [1, 2].into(), run_bytes: 128, prompt_bytes: 300 };
    let keys = vec![(number, BlockKey::new(b"key").unwrap())];
    Kept { namespace: StoreNamespace(7), chain, keys, prompt_tokens: None }
}

proptest! {
    /// What is written is read; wherever the file is cut or a bit flips, what came before that record is read, and
    /// nothing that was never written.
    #[test]
    fn what_is_whole_is_read(recipes in prop::collection::vec(kept(), 1..6), at in any::<usize>(), flip in any::<bool>()) {
        let media = Fake::default();
        let mut journal = Journal::new();
        let mut ends = vec![0];
        for recipe in &recipes {
            let bytes = bytes(recipe);
            ends.push(ends[ends.len() - 1] + bytes.len());
            journal.append(&media, FIRST, &bytes);
        }
        prop_assert_eq!(&all(&media, FIRST), &recipes);
        let mut stored = media.bytes(FIRST).unwrap();
        let at = at % stored.len();
        if flip { stored[at] ^= 1 } else { stored.truncate(at) }
        let whole = ends.iter().filter(|end| **end > 0 && **end <= at).count();
        media.set_bytes(FIRST, stored);
        let found = all(&media, FIRST);
        prop_assert_eq!(&found[..whole], &recipes[..whole]);
        let mut rest = recipes.iter();
        prop_assert!(found.iter().all(|recipe| rest.any(|other| other == recipe)), "only what was written, in order");
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        payload(&bytes);
    }
}

/// The form is fixed: what an earlier build wrote must be read.
#[test]
fn the_form_is_this() {
    let hex: String = bytes(&one(32)).iter().map(|byte| format!("{byte:02x}")).collect();
    let payload = concat!(
        "00000000000000000000000000000007",
        "2c01000000000000",
        "80000000",
        "00000000",
        "02000000",
        "01000000",
        "0100000000000000",
        "0200000000000000",
        "20000000",
        "03",
        "6b6579",
    );
    assert_eq!(&hex[..32], "4c41524452435031".to_owned() + "40000000" + "00000000");
    assert_eq!(&hex[64..], payload);
}

#[test]
fn a_failed_write_is_written_over_and_another_file_goes_on() {
    let media = Fake::default();
    let mut journal = Journal::new();
    journal.append(&media, FIRST, &bytes(&one(1)));
    media.fail(0, Fault::Short(40));
    journal.append(&media, FIRST, &bytes(&one(2)));
    journal.append(&media, FIRST, &bytes(&one(3)));
    assert_eq!(all(&media, FIRST), [one(1), one(3)]);
    journal.append(&media, FIRST + 1, &bytes(&one(4)));
    journal.remove(&media, FIRST);
    assert_eq!(media.segments().unwrap(), [FIRST + 1]);
    assert_eq!(all(&media, FIRST + 1), [one(4)]);
}

/// A file goes only once what was written instead is durable.
#[test]
fn what_is_not_durable_replaces_nothing() {
    let media = Fake::default();
    let mut journal = Journal::new();
    journal.append(&media, FIRST, &bytes(&one(1)));
    assert!(journal.sync(&media));
    journal.append(&media, FIRST + 1, &bytes(&one(1)));
    media.fail(0, Fault::Io);
    journal.remove(&media, FIRST);
    assert_eq!(media.segments().unwrap(), [FIRST, FIRST + 1]);
}
