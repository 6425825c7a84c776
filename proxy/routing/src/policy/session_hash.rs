//! Rendezvous hashing: the candidate whose name scores highest with the session. All proxies agree without state,
//! and a removed endpoint moves only its own sessions.
//!
//! A request without a session goes by the last element of its chain, which stands for the whole prompt: repeats
//! of one prompt meet, successive turns of a chat do not. With neither, it is placed by lot.

use super::{Pick, Policy, Terms, View};
use crate::Reason;
use crate::price::Rates;
use crate::random::{Random, finish};

pub(super) struct SessionHash;

impl Policy for SessionHash {
    fn cost(&self, terms: &Terms, _: &Rates) -> f64 {
        terms.wait_s + terms.base_s + terms.miss_s
    }

    fn pick(&mut self, view: &View<'_>, random: &mut Random) -> Pick {
        let (key, reason) = match (view.session, view.chain.last()) {
            (Some(session), _) => (session, Reason::Session),
            (None, Some(&last)) => (last, Reason::PromptHash),
            (None, None) => (random.next(), Reason::NoAffinity),
        };
        let score = |terms: &Terms| finish(key ^ terms.digest);
        let best = view.candidates.iter().enumerate().max_by_key(|(_, terms)| score(terms));
        Pick { index: best.map_or(0, |(index, _)| index), reason }
    }
}
