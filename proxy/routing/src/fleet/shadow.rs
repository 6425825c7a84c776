//! The policy in the shadow: it decides, and requests go by load.

use super::Fleet;
use super::route::Choice;
use crate::policy::Pick;
use crate::{Decision, NoEndpoint, Now, Reason, RouteRequest, Would};

impl Fleet {
    /// Sends a request to the candidate with the fewest requests in flight, by lot among equals, and says what the policy
    /// would have done. What is learned is learned of where it went, so that the terms are those of what really is.
    ///
    /// # Errors
    /// As [`Fleet::route`].
    pub fn shadow(&mut self, request: &RouteRequest<'_>, now: Now) -> Result<Decision, NoEndpoint> {
        self.decide(request, now, |fleet, choice| {
            let chosen = choice.chosen();
            let would = Would {
                name: fleet.slots[chosen.slot as usize]
                    .endpoint
                    .as_ref()
                    .map_or("-".into(), |e| e.name.clone()),
                reason: choice.pick.reason,
                cost_s: chosen.cost_s,
                matched_tokens: chosen.matched_tokens.round() as u64,
            };
            let least = choice.terms.iter().map(|terms| terms.in_flight).min().unwrap_or(0);
            let ties = || choice.terms.iter().enumerate().filter(|(_, terms)| terms.in_flight == least);
            let drawn = fleet.random.below(ties().count());
            let index = ties().nth(drawn).map_or(choice.pick.index, |(index, _)| index);
            let by_load = Choice { pick: Pick { index, reason: Reason::Shadow }, ..choice };
            let decision = fleet.go_if_room(request, by_load)?;
            Ok(Decision { would: Some(would), ..decision })
        })?
    }
}

#[cfg(test)]
mod tests {
    use crate::fleet::tests::{answered, at, chain, fleet_of, request};
    use crate::{Outcome, Reason, Settings};

    #[test]
    fn it_goes_by_load_and_says_what_it_would_have_done() {
        let (mut fleet, _) = fleet_of(2, Settings::default());
        let chain = chain(1, 0, 40);
        let first = fleet.shadow(&request(&chain), at(1.0)).unwrap();
        let home = first.name.clone();
        assert_eq!((first.reason, first.would.as_ref().unwrap().reason), (Reason::Shadow, Reason::Cold));
        fleet.first_token(&first.ticket, at(2.0));
        // While it is busy there, load says elsewhere and the prefix says there.
        let second = fleet.shadow(&request(&chain), at(10.0)).unwrap();
        assert_ne!(second.name, home);
        let would = second.would.as_ref().unwrap();
        assert_eq!((&would.name, would.reason, would.matched_tokens), (&home, Reason::PrefixHit, 40 * 128));
        assert_eq!(second.matched_tokens, 0, "what is expected is expected of where it went");
        fleet.first_token(&second.ticket, at(11.0));
        fleet.finish(first.ticket, answered(40 * 128, 0), at(12.0));
        fleet.finish(second.ticket, answered(40 * 128, 0), at(12.0));
        let third = fleet.shadow(&request(&chain), at(20.0)).unwrap();
        assert_eq!(third.matched_tokens, 40 * 128, "both hold it now");
        fleet.finish(third.ticket, Outcome::Aborted, at(21.0));
    }
}
