//! Recipes: which block keys a point of a prompt chain stands for. Pure; a wrong recipe costs speed and nothing else,
//! since KV is only ever found by the engine's own keys.
//!
//! The proxy knows a prompt as bytes: (tag, chain points at every `run_bytes`). The engine knows it as tokens: (tag,
//! block keys with their end tokens). Joined by the tag they make a recipe, and every chain point then leads to it.
//! A later prompt that shares the first *d* runs of a chain can be staged before any engine has tokenised it.
//!
//! How many keys belong to the first *d* runs is not known, only bounded:
//! - *estimate*: the recipe's own bytes per token give the token at `d * run_bytes`, less `MARGIN`;
//! - *at most*: where two recipes share run *d* and part in run *d+1*, the keys they have in common are all that the
//!   first *d* runs can hold;
//! - *at least*: and those common keys lie within the first *d+1* runs, so every prompt that has run *d+1* has them.

use std::collections::{BTreeMap, HashMap};

use larder_protocol::{BlockKey, StoreNamespace, Tag};

mod tagged;

use tagged::TaggedPrompts;
pub use tagged::{PromptChain, PromptKeys};

/// Share of the estimated tokens that is not counted on: bytes per token vary within a prompt. Too little staged is
/// found by the engine's own lookup, too much is verified and pinned in vain; both cost little in the host tier.
const MARGIN: f64 = 1.0 / 16.0;

/// Bytes per token where a prompt's tokens are not known: English text and code lie between 3 and 5.
const BYTES_PER_TOKEN_DEFAULT: f64 = 4.0;

/// Rough cost of one chain point: map entry, key and bounds, in bytes.
const POINT_BYTES: usize = 96;

/// Rough cost of one key in a recipe, in bytes: the list entry; the key itself is shared.
const KEY_BYTES: usize = 96;

/// Names a recipe of one run of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipeId(u64);

/// A key and how many tokens of the prompt end with it.
pub type EndKey = (u32, BlockKey);

#[derive(Debug)]
struct Recipe {
    namespace: StoreNamespace,
    chain: PromptChain,
    keys: Vec<EndKey>,
    prompt_tokens: Option<u32>,
    bytes_per_token: f64,
    /// Points that lead here; the recipe goes with the last of them.
    points: usize,
    used: u64,
}

/// A recipe as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Whose keys these are.
    pub namespace: StoreNamespace,
    /// What the proxy knows the prompt by.
    pub chain: PromptChain,
    /// What it begins with.
    pub keys: Vec<EndKey>,
    /// Tokens of the whole prompt, if the engine said.
    pub prompt_tokens: Option<u32>,
}

/// Where a chain point leads.
#[derive(Debug, Clone, Copy)]
struct Point {
    recipe: RecipeId,
    /// Keys that every prompt with this point has.
    at_least: usize,
    /// Keys that the runs up to this point can hold at most.
    at_most: usize,
}

/// What a chain leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The keys the prompt is believed to begin with, in order.
    pub keys: Vec<EndKey>,
    /// Runs of the chain that the recipe shares.
    pub runs: usize,
}

/// All recipes of a node, within a budget of bytes; the least recently used go first.
#[derive(Debug)]
pub struct Recipes {
    bytes_max: usize,
    bytes: usize,
    recipes: HashMap<RecipeId, Recipe>,
    points: HashMap<(StoreNamespace, u64), Point>,
    order: BTreeMap<u64, RecipeId>,
    tagged: TaggedPrompts,
    /// Recipes made since the last [`Self::take_new`]; none where nobody asks.
    new: Option<Vec<RecipeId>>,
    next: u64,
}

impl Recipes {
    /// Recipes within `bytes_max`, half of it for prompts whose other half has not been reported yet.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max / 2,
            bytes: 0,
            recipes: HashMap::new(),
            points: HashMap::new(),
            order: BTreeMap::new(),
            tagged: TaggedPrompts::new(bytes_max / 2),
            new: None,
            next: 0,
        }
    }

    /// The proxy's half of a tagged prompt.
    pub fn note_chain(&mut self, tag: Tag, chain: &PromptChain, tenant: Option<&str>) {
        self.tagged.note_tenant(tag, tenant);
        if let Some((chain, keys)) = self.tagged.note_chain(tag, chain) {
            self.insert(chain, &keys);
        }
    }

    /// Whose prompt has this tag, if the proxy said.
    pub fn tenant(&self, tag: Tag) -> Option<&str> {
        self.tagged.tenant(tag)
    }

    /// The engine's half of a tagged prompt; may come in several parts, in any order.
    pub fn note_keys(&mut self, tag: Tag, keys: &PromptKeys<'_>) {
        if let Some((chain, keys)) = self.tagged.note_keys(tag, keys) {
            self.insert(chain, &keys);
        }
    }

    /// The keys that a prompt with this chain is believed to begin with. Marks the recipe as used.
    pub fn find(&mut self, namespace: StoreNamespace, chain: &PromptChain) -> Option<Found> {
        let lookup = |point: &u64| self.points.get(&(namespace, *point)).copied();
        let (index, id) = chain
            .points
            .iter()
            .enumerate()
            .rev()
            .find_map(|(index, point)| lookup(point).map(|point| (index, point.recipe)))?;
        let recipe = self.recipes.get(&id)?;
        // The recipe holds this point, and a point names all runs before it: both chains are equal up to here.
        if recipe.chain.points.get(index) != chain.points.get(index)
            || recipe.chain.run_bytes != chain.run_bytes
        {
            return None;
        }
        let count = self.keys_within(recipe, index);
        let found = Found { keys: recipe.keys[..count].to_vec(), runs: index + 1 };
        self.mark_used(id);
        Some(found)
    }

    /// How many keys the first `index + 1` runs of a recipe hold: the estimate within its bounds.
    fn keys_within(&self, recipe: &Recipe, index: usize) -> usize {
        let bound = |point: &u64| self.points.get(&(recipe.namespace, *point));
        let (before, after) = recipe.chain.points.split_at(index);
        // Bounds only grow along a chain, so those of every other point on it hold here too.
        let at_least = before.iter().chain(after.first()).filter_map(bound).map(|point| point.at_least).max();
        let at_most = after.iter().filter_map(bound).map(|point| point.at_most).min();
        let bytes = (index as f64 + 1.0) * f64::from(recipe.chain.run_bytes);
        let tokens = bytes / recipe.bytes_per_token * (1.0 - MARGIN);
        let estimate = recipe.keys.partition_point(|(end, _)| f64::from(*end) <= tokens);
        let at_most = at_most.unwrap_or(usize::MAX).min(recipe.keys.len());
        estimate.max(at_least.unwrap_or(0)).min(at_most)
    }

    fn insert(&mut self, chain: PromptChain, keys: &TaggedKeys) {
        if chain.points.is_empty() || keys.list.is_empty() {
            return;
        }
        let parted = self.part(keys.namespace, &chain, &keys.list);
        let id = RecipeId(self.next);
        let tokens =
            keys.prompt_tokens.map_or(chain.prompt_bytes as f64 / BYTES_PER_TOKEN_DEFAULT, f64::from);
        let recipe = Recipe {
            namespace: keys.namespace,
            prompt_tokens: keys.prompt_tokens,
            bytes_per_token: (chain.prompt_bytes as f64 / tokens.max(1.0)).max(f64::MIN_POSITIVE),
            keys: keys.list.clone(),
            points: chain.points.len(),
            used: self.next,
            chain,
        };
        self.next += 1;
        self.bytes += cost(&recipe);
        self.order.insert(recipe.used, id);
        let chain = recipe.chain.clone();
        self.recipes.insert(id, recipe);
        self.new.iter_mut().for_each(|new| new.push(id));
        for (index, point) in chain.points.iter().enumerate() {
            let at_least = parted.filter(|parted| index == parted.runs).map_or(0, |parted| parted.common);
            let fresh = Point { recipe: id, at_least, at_most: usize::MAX };
            if let Some(before) = self.points.insert((keys.namespace, *point), fresh) {
                let kept = self.points.get_mut(&(keys.namespace, *point)).expect("was inserted above");
                kept.at_least = before.at_least.max(at_least);
                kept.at_most = before.at_most;
                self.drop_point_of(before.recipe);
            }
        }
        self.shrink();
    }

    /// Where a new prompt parts from what is known, tightens the bounds on both sides of the fork.
    fn part(&mut self, namespace: StoreNamespace, chain: &PromptChain, keys: &[EndKey]) -> Option<Parted> {
        let runs = chain.points.iter().rposition(|point| self.points.contains_key(&(namespace, *point)))? + 1;
        let last = (namespace, chain.points[runs - 1]);
        let other = self.recipes.get(&self.points.get(&last)?.recipe)?;
        let next_of_other = other.chain.points.get(runs).copied();
        let common = other.keys.iter().zip(keys).take_while(|(one, two)| one == two).count();
        // If one list merely ends, nothing says that the texts differ there.
        let differ = common < keys.len() && common < other.keys.len();
        let next_of_new = chain.points.get(runs).copied();
        let (Some(next_of_other), Some(_)) = (next_of_other, next_of_new) else { return None };
        if let Some(point) = self.points.get_mut(&(namespace, next_of_other)) {
            point.at_least = point.at_least.max(common);
        }
        if differ && let Some(point) = self.points.get_mut(&last) {
            point.at_most = point.at_most.min(common);
        }
        Some(Parted { runs, common })
    }

    /// One point less leads to this recipe.
    fn drop_point_of(&mut self, id: RecipeId) {
        let Some(recipe) = self.recipes.get_mut(&id) else { return };
        recipe.points -= 1;
        if recipe.points == 0 {
            self.forget(id);
        }
    }

    fn mark_used(&mut self, id: RecipeId) {
        let Some(recipe) = self.recipes.get_mut(&id) else { return };
        self.order.remove(&recipe.used);
        recipe.used = self.next;
        self.order.insert(recipe.used, id);
        self.next += 1;
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((_, id)) = self.order.first_key_value() else { return };
            self.forget(*id);
        }
    }

    fn forget(&mut self, id: RecipeId) {
        let Some(recipe) = self.recipes.remove(&id) else { return };
        self.order.remove(&recipe.used);
        self.bytes -= cost(&recipe);
        for point in recipe.chain.points.iter() {
            let key = (recipe.namespace, *point);
            if self.points.get(&key).is_some_and(|point| point.recipe == id) {
                self.points.remove(&key);
            }
        }
    }

    /// From now on [`Self::take_new`] tells of new recipes, and has to be called.
    pub fn tell_new(&mut self) {
        self.new = Some(Vec::new());
    }

    /// Recipes made since the last call; they may have been replaced already.
    pub fn take_new(&mut self) -> Vec<RecipeId> {
        self.new.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A recipe as it is to be kept, if it is still held.
    pub fn kept(&self, id: RecipeId) -> Option<Kept> {
        let Recipe { namespace, chain, keys, prompt_tokens, .. } = self.recipes.get(&id)?;
        let (chain, keys) = (chain.clone(), keys.clone());
        Some(Kept { namespace: *namespace, chain, keys, prompt_tokens: *prompt_tokens })
    }

    /// A recipe of an earlier run.
    pub fn restore(&mut self, Kept { namespace, chain, keys, prompt_tokens }: Kept) {
        self.insert(chain, &TaggedKeys { namespace, list: keys, prompt_tokens });
    }

    /// Every recipe, the least recently used first.
    pub fn ids(&self) -> Vec<RecipeId> {
        self.order.values().copied().collect()
    }

    /// Recipes held.
    pub fn len(&self) -> usize {
        self.recipes.len()
    }

    /// Whether no recipe is held.
    pub fn is_empty(&self) -> bool {
        self.recipes.is_empty()
    }

    /// Bytes that recipes and half-known prompts take, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes + self.tagged.bytes()
    }
}

/// Where a new chain parts from a known one.
#[derive(Debug, Clone, Copy)]
struct Parted {
    /// Runs in common.
    runs: usize,
    /// Keys in common.
    common: usize,
}

/// The engine's half, joined as far as it is without gaps.
#[derive(Debug)]
struct TaggedKeys {
    namespace: StoreNamespace,
    list: Vec<EndKey>,
    prompt_tokens: Option<u32>,
}

fn cost(recipe: &Recipe) -> usize {
    recipe.chain.points.len() * POINT_BYTES + recipe.keys.len() * KEY_BYTES
}

#[cfg(test)]
mod tests;
