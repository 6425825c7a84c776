//! What the proxy asks: bring the beginning of a prompt near an engine, by what recipes say it is.

use std::time::Duration;

use larder_protocol::control::{StageAnswer, StageReason, StageRequest};
use larder_protocol::{BlockKey, LeaseId, Tag};

use super::opening::{Asker, OpeningRequest, nothing};
use super::sessions::NoSession;
use super::{ChunkName, Output, SessionId, Store, Ticket};
use crate::recipe::{EndKey, PromptChain};

/// Share of a stage call's deadline that may go into verifying; the rest is for the way back.
const VERIFY_SHARE: f64 = 0.75;

/// What a chain leads to in this node.
pub(super) struct Plan {
    pub(super) session: SessionId,
    pub(super) keys: Vec<EndKey>,
}

impl Store {
    pub(super) fn stage(
        &mut self,
        ticket: Ticket,
        request: &StageRequest,
        fresh: LeaseId,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        // A caller that names no tag is given one as hard to guess as the lease.
        let tag = request.tag.unwrap_or(Tag(fresh.0));
        let chain = chain_of(request);
        // Noted whatever comes of it: the engine will report this prompt's keys under the same tag.
        self.recipes.note_chain(tag, &chain, request.tenant.as_deref());
        let plan = match self.plan(request.engine.as_deref(), &chain) {
            Ok(plan) => plan,
            Err(reason) => {
                self.counts.staged_nothing += 1;
                return out.push(Output::Answer { ticket, answer: nothing(tag, reason) });
            }
        };
        let layout = self.sessions.get(&plan.session).and_then(|session| session.layout.clone());
        let layout = layout.expect("a serving session has a layout");
        let deadline = request.deadline_ms.map_or(self.settings.stage_deadline, |ms| {
            Duration::from_millis(u64::from(ms)).min(self.settings.stage_deadline)
        });
        let stop_at = now.saturating_add(deadline.mul_f64(VERIFY_SHARE));
        let (named, ends) = (plan.keys.len(), plan.keys.clone());
        let opening = OpeningRequest {
            session: plan.session,
            namespace: layout.namespace,
            tokens_per_chunk: layout.tokens_per_chunk,
            lease: fresh,
            owner: self.owner_of(Some(tag)),
            stop_at,
            asker: Asker::Stage { ticket, tag, named, needed_by: stop_at, ends },
        };
        let bytes_max = request.max_bytes.unwrap_or(u64::MAX);
        let keys: Vec<BlockKey> = plan.keys.into_iter().map(|(_, key)| key).collect();
        self.open(opening, &keys, bytes_max, true, now, out);
    }

    /// What staging would give, by the catalog alone.
    pub(super) fn probe(&mut self, ticket: Ticket, request: &StageRequest, out: &mut Vec<Output>) {
        let answer = match self.plan(request.engine.as_deref(), &chain_of(request)) {
            Err(reason) => StageAnswer { tag: request.tag, ..nothing(Tag(0), reason) },
            Ok(plan) => self.outlook(&plan, request),
        };
        out.push(Output::Answer { ticket, answer });
    }

    fn outlook(&self, plan: &Plan, request: &StageRequest) -> StageAnswer {
        let session = self.sessions.get(&plan.session);
        let layout =
            session.and_then(|session| session.layout.as_ref()).expect("a serving session has a layout");
        let held = |key| {
            let name = ChunkName { namespace: layout.namespace, key };
            let slot = self.chunks.get(&name);
            slot.is_some_and(|slot| self.arena.held(*slot).is_some()) || self.is_on_disk(&name)
        };
        let leading = plan.keys.iter().take_while(|(_, key)| held(key.clone())).count() as u64;
        let chunks = leading.min(request.max_bytes.unwrap_or(u64::MAX) / layout.chunk_bytes);
        let reason = match chunks {
            _ if leading == 0 => StageReason::NotHeld,
            chunks if chunks == plan.keys.len() as u64 => StageReason::Staged,
            chunks if chunks < leading => StageReason::Cut,
            _ => StageReason::Partial,
        };
        StageAnswer {
            lease: None,
            tag: request.tag,
            tokens_ready: chunks * u64::from(layout.tokens_per_chunk),
            chunks,
            bytes: chunks * layout.chunk_bytes,
            reason,
        }
    }

    /// What a prompt is believed to begin with, in the words of the engine of this name.
    pub(super) fn plan(&mut self, engine: Option<&str>, chain: &PromptChain) -> Result<Plan, StageReason> {
        let session = self.session_named(engine).map_err(|none| match none {
            NoSession::None => StageReason::NoEngine,
            NoSession::Ambiguous => StageReason::AmbiguousEngine,
            NoSession::NotReady => StageReason::NotReady,
        })?;
        let layout = self.sessions.get(&session).and_then(|session| session.layout.as_ref());
        let namespace = layout.expect("a serving session has a layout").namespace;
        let found = self.recipes.find(namespace, chain).filter(|found| !found.keys.is_empty());
        let keys = found.ok_or(StageReason::NoRecipe)?.keys;
        Ok(Plan { session, keys })
    }
}

fn chain_of(request: &StageRequest) -> PromptChain {
    PromptChain {
        points: request.chain.iter().map(|point| point.0).collect(),
        run_bytes: request.run_bytes.max(1),
        prompt_bytes: request.prompt_bytes,
    }
}
