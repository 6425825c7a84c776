//! One after the other, by slot: an endpoint that comes or goes disturbs nobody else's turn.

use super::{Pick, Policy, Terms, View};
use crate::Reason;
use crate::price::Rates;
use crate::random::Random;

#[derive(Default)]
pub(super) struct RoundRobin {
    /// The slot after the last one chosen.
    next: u32,
}

impl Policy for RoundRobin {
    fn cost(&self, terms: &Terms, _: &Rates) -> f64 {
        terms.wait_s + terms.base_s + terms.miss_s
    }

    fn pick(&mut self, view: &View<'_>, _: &mut Random) -> Pick {
        let due = view.candidates.iter().position(|terms| terms.slot >= self.next);
        let index = due.unwrap_or(0);
        self.next = view.candidates[index].slot + 1;
        Pick { index, reason: Reason::RoundRobin }
    }
}
