//! Time to first token alone: what this request wants, whatever it takes from others.

use super::{Pick, Policy, Terms, View, cheapest};
use crate::price::Rates;
use crate::random::Random;

pub(super) struct MinTtft;

impl Policy for MinTtft {
    fn cost(&self, terms: &Terms, _: &Rates) -> f64 {
        terms.begins_s() + terms.base_s + terms.miss_s
    }

    fn pick(&mut self, view: &View<'_>, random: &mut Random) -> Pick {
        cheapest(view, random)
    }
}
