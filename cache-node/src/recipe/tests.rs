use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const NS: StoreNamespace = StoreNamespace(1);
const RUN: u32 = 64;
const TOKENS_PER_CHUNK: u32 = 16;

/// A prompt of made-up text: one letter a token, each token taking 1 to 8 bytes, as its letter says.
#[derive(Debug, Clone)]
struct Prompt(Vec<u8>);

impl Prompt {
    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|letter| std::iter::repeat_n(*letter, 1 + *letter as usize % 8)).collect()
    }

    fn chain(&self) -> PromptChain {
        let bytes = self.bytes();
        let mut points = Vec::new();
        let mut hash = 0_u64;
        for run in bytes.chunks_exact(RUN as usize) {
            hash = run
                .iter()
                .fold(hash, |hash, byte| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte) ^ 0x9e37);
            points.push(hash);
        }
        PromptChain { points: points.into(), run_bytes: RUN, prompt_bytes: bytes.len() as u64 }
    }

    fn keys(&self) -> (Vec<BlockKey>, Vec<u32>) {
        let mut key = 0xcbf2_9ce4_8422_2325_u64;
        let chunks = self.0.chunks_exact(TOKENS_PER_CHUNK as usize);
        let keys = chunks.map(|chunk| {
            key = chunk.iter().fold(key, |key, token| key.wrapping_mul(0x100_0000_01b3) ^ u64::from(*token));
            BlockKey::new(&key.to_be_bytes()).unwrap()
        });
        let keys: Vec<BlockKey> = keys.collect();
        let ends = (1..=keys.len() as u32).map(|index| index * TOKENS_PER_CHUNK).collect();
        (keys, ends)
    }

    fn teach(&self, recipes: &mut Recipes, tag: u128, keys_first: bool) {
        let (keys, ends) = self.keys();
        let report = PromptKeys {
            namespace: NS,
            tokens_per_chunk: TOKENS_PER_CHUNK,
            keys: &keys,
            end_tokens: &ends,
            prompt_tokens: Some(self.0.len() as u32),
        };
        if keys_first {
            recipes.note_keys(Tag(tag), &report);
            recipes.note_chain(Tag(tag), &self.chain(), None);
        } else {
            recipes.note_chain(Tag(tag), &self.chain(), None);
            recipes.note_keys(Tag(tag), &report);
        }
    }
}

fn text(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(7).wrapping_add(seed.wrapping_mul(31)) % 23).collect()
}

#[test]
fn a_prompt_that_extends_another_finds_its_keys() {
    for keys_first in [false, true] {
        let mut recipes = Recipes::new(1 << 20);
        let first = Prompt(text(400, 1));
        first.teach(&mut recipes, 1, keys_first);
        let mut longer = first.0.clone();
        longer.extend(text(200, 9));
        let found = recipes.find(NS, &Prompt(longer).chain()).unwrap();
        let (keys, _) = first.keys();
        assert!(found.keys.len() * 10 >= keys.len() * 8, "{} of {} keys", found.keys.len(), keys.len());
        assert!(found.keys.iter().map(|(_, key)| key).eq(&keys[..found.keys.len()]));
        assert_eq!(recipes.find(StoreNamespace(2), &first.chain()), None, "other weights know nothing");
        assert_eq!(recipes.find(NS, &Prompt(text(400, 5)).chain()), None, "another prompt knows nothing");
    }
}

/// A letter of one byte and a letter of eight: the estimate by the whole prompt's bytes per token is wrong by far in
/// each half, and the fork between two prompts puts it right.
#[test]
fn a_fork_bounds_what_the_estimate_gets_wrong() {
    let dense = vec![8_u8; 256];
    let sparse = |letter: u8| vec![letter; 256];
    let prompt = |tail: u8| Prompt([sparse(7), vec![16; 256], sparse(tail)].concat());
    let mut recipes = Recipes::new(1 << 20);
    let (one, two) = (prompt(15), prompt(23));
    one.teach(&mut recipes, 1, false);
    // 256 tokens of 8 bytes, then 256 of 1 byte: the shared part is 2,304 bytes and 512 tokens, 32 chunks.
    let third = Prompt([sparse(7), vec![16; 256], dense].concat());
    let before = recipes.find(NS, &third.chain()).unwrap().keys.len();
    assert!(before < 26, "the estimate alone finds {before} of 32");
    two.teach(&mut recipes, 2, false);
    let fork = recipes.find(NS, &one.chain()).unwrap();
    assert!(fork.keys.len() >= 32, "past the fork at least what both had: {}", fork.keys.len());
    // The other way round: many tokens promised by the average, few there.
    let mut recipes = Recipes::new(1 << 20);
    let prompt = |tail: u8| Prompt([sparse(7), vec![tail; 2048]].concat());
    prompt(16).teach(&mut recipes, 1, false);
    prompt(8).teach(&mut recipes, 2, false);
    let third = Prompt([sparse(7), vec![0; 2048]].concat());
    let found = recipes.find(NS, &third.chain()).unwrap().keys.len();
    assert_eq!(found, 16, "not one key more than both prompts had in common");
}

#[test]
fn a_wrong_run_length_finds_nothing() {
    let mut recipes = Recipes::new(1 << 20);
    let prompt = Prompt(text(400, 1));
    prompt.teach(&mut recipes, 1, false);
    let chain = PromptChain { run_bytes: RUN * 2, ..prompt.chain() };
    assert_eq!(recipes.find(NS, &chain), None);
}

#[test]
fn keys_of_the_answer_and_keys_after_a_gap_are_left_out() {
    let mut recipes = Recipes::new(1 << 20);
    let prompt = Prompt(text(400, 1));
    let (keys, ends) = prompt.keys();
    recipes.note_chain(Tag(1), &prompt.chain(), None);
    let report = |keys, end_tokens, prompt_tokens| PromptKeys {
        namespace: NS,
        tokens_per_chunk: TOKENS_PER_CHUNK,
        keys,
        end_tokens,
        prompt_tokens,
    };
    recipes.note_keys(Tag(1), &report(&keys[4..8], &ends[4..8], Some(100)));
    assert_eq!(recipes.find(NS, &prompt.chain()), None, "the beginning is not known");
    recipes.note_keys(Tag(1), &report(&keys[..2], &ends[..2], None));
    assert!(recipes.find(NS, &prompt.chain()).unwrap().keys.len() <= 2, "a gap after two");
    recipes.note_keys(Tag(1), &report(&keys[2..4], &ends[2..4], None));
    let found = recipes.find(NS, &prompt.chain()).unwrap();
    assert!(found.keys.iter().all(|(end, _)| *end <= 100), "beyond the prompt's 100 tokens nothing counts");
}

#[test]
fn an_extension_replaces_what_it_extends() {
    let mut recipes = Recipes::new(1 << 20);
    let mut conversation = text(200, 1);
    for turn in 0..20 {
        conversation.extend(text(100, turn));
        Prompt(conversation.clone()).teach(&mut recipes, u128::from(turn), turn % 2 == 0);
    }
    assert_eq!(recipes.len(), 1, "one conversation is one recipe, however many turns");
}

fn prompts() -> impl Strategy<Value = Vec<Prompt>> {
    // A few trunks, so that prompts share beginnings and part.
    let piece = prop::collection::vec(0_u8..24, 5..80);
    let trunk = prop::collection::vec(piece.clone(), 1..4);
    (
        prop::collection::vec(trunk, 1..3),
        prop::collection::vec((any::<usize>(), any::<usize>(), piece), 1..24),
    )
        .prop_map(|(trunks, leaves)| {
            let prompt = |(trunk, depth, tail): (usize, usize, Vec<u8>)| {
                let trunk: &Vec<Vec<u8>> = &trunks[trunk % trunks.len()];
                let mut tokens = trunk[..=depth % trunk.len()].concat();
                tokens.extend(tail);
                Prompt(tokens)
            };
            leaves.into_iter().map(prompt).collect()
        })
}

proptest! {
    /// Whatever was taught: what is found is the leading part of keys that some prompt with the same leading runs
    /// reported; it is never more than true tokens of the shared runs where a fork has shown them; and the budget holds.
    #[test]
    fn found_keys_belong_to_a_prompt_that_shares_the_runs(
        taught in prompts(),
        asked in prompts(),
        budget in 1_usize..60_000,
        order in any::<u64>(),
    ) {
        let mut recipes = Recipes::new(budget);
        for (index, prompt) in taught.iter().enumerate() {
            prompt.teach(&mut recipes, index as u128, order >> (index % 64) & 1 == 0);
            prop_assert!(recipes.bytes() <= budget);
        }
        let consistent = recipes.recipes.values().map(|recipe| recipe.points).sum::<usize>() == recipes.points.len();
        prop_assert!(consistent, "each recipe counts the points that lead to it");
        for prompt in asked.iter().chain(&taught) {
            let chain = prompt.chain();
            let Some(found) = recipes.find(NS, &chain) else { continue };
            let sharing = taught.iter().filter(|other| other.chain().points.get(..found.runs) == chain.points.get(..found.runs));
            let fits = sharing.filter(|other| {
                let (keys, _) = other.keys();
                found.keys.len() <= keys.len() && found.keys.iter().zip(&keys).all(|((_, one), two)| one == two)
            });
            prop_assert!(fits.count() > 0);
        }
    }

    /// With room for all, a prompt taught is found again, by its whole chain.
    #[test]
    fn what_was_taught_is_found(taught in prompts()) {
        let mut recipes = Recipes::new(64 << 20);
        for (index, prompt) in taught.iter().enumerate() {
            prompt.teach(&mut recipes, index as u128, false);
        }
        let long = |prompt: &&Prompt| !prompt.chain().points.is_empty() && !prompt.keys().0.is_empty();
        for prompt in taught.iter().filter(long) {
            let found = recipes.find(NS, &prompt.chain());
            prop_assert_eq!(found.map(|found| found.runs), Some(prompt.chain().points.len()));
        }
    }

    /// Bounds never contradict the truth: between what a fork proves at least and at most lies the true count, for
    /// every prompt taught. (The made-up text has no tokens that merge over a border.)
    #[test]
    fn bounds_hold_for_the_truth(taught in prompts()) {
        let mut recipes = Recipes::new(64 << 20);
        for (index, prompt) in taught.iter().enumerate() {
            prompt.teach(&mut recipes, index as u128, false);
        }
        for prompt in &taught {
            let chain = prompt.chain();
            let mut seen = HashSet::new();
            for (index, point) in chain.points.iter().enumerate().filter(|(_, point)| seen.insert(**point)) {
                let Some(bound) = recipes.points.get(&(NS, *point)) else { continue };
                let within = (index + 1) * RUN as usize;
                let mut bytes = 0;
                let tokens = prompt.0.iter().take_while(|letter| {
                    bytes += 1 + **letter as usize % 8;
                    bytes <= within
                });
                let truth = tokens.count() / TOKENS_PER_CHUNK as usize;
                prop_assert!(bound.at_least <= truth, "at least {} of {truth}", bound.at_least);
                prop_assert!(bound.at_most >= truth.min(prompt.keys().0.len()), "at most {} of {truth}", bound.at_most);
            }
        }
    }
}
