//! Pins that somebody asked for: the beginning of a prompt, as recipes tell it, is kept in host memory for a while. What
//! they may keep is decided in [`larder_tiering::pins`].

use std::time::Duration;

use larder_protocol::PinId;
use larder_protocol::control::{
    PinAnswer, PinRequest, PinnedChunks, PinsAnswer, ReleaseRequest, StageReason,
};

use super::{ChunkName, Output, Store, Ticket};
use crate::recipe::PromptChain;

impl Store {
    pub(super) fn pin(
        &mut self,
        ticket: Ticket,
        request: &PinRequest,
        fresh: PinId,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let answer = self.try_pin(request, fresh, now).unwrap_or_else(nothing);
        out.push(Output::Pinned { ticket, answer });
    }

    fn try_pin(
        &mut self,
        request: &PinRequest,
        fresh: PinId,
        now: Duration,
    ) -> Result<PinAnswer, StageReason> {
        let chain = PromptChain {
            points: request.chain.iter().map(|point| point.0).collect(),
            run_bytes: request.run_bytes.max(1),
            prompt_bytes: request.prompt_bytes,
        };
        let plan = self.plan(request.engine.as_deref(), &chain)?;
        let layout = self.sessions.get(&plan.session).and_then(|session| session.layout.as_ref());
        let layout = layout.expect("a serving session has a layout");
        let (namespace, tokens_per_chunk) = (layout.namespace, u64::from(layout.tokens_per_chunk));
        let held = |key| self.chunks.get(&ChunkName { namespace, key }).copied();
        let slots = plan.keys.iter().map_while(|(_, key)| held(key.clone()));
        let slots = slots.take_while(|slot| self.arena.held(*slot).is_some());
        let held: Vec<(u32, u64)> = slots.map(|slot| (slot, self.arena.stride(slot))).collect();
        if held.is_empty() {
            return Err(StageReason::NotHeld);
        }
        let (leading, named) = (held.len(), plan.keys.len());
        let within = self.within_limits(&held, request.max_bytes.unwrap_or(u64::MAX));
        let ttl = Duration::from_millis(request.ttl_ms).min(self.settings.pin_ttl_max);
        let expires = now.saturating_add(ttl);
        let kept = self.pins.add(fresh, namespace, held[..within].to_vec(), expires);
        if kept == 0 {
            return Err(StageReason::Busy);
        }
        held[..kept].iter().for_each(|(slot, _)| self.arena.pin(*slot));
        self.counts.pinned_chunks += kept as u64;
        let reason = match kept {
            kept if kept == named => StageReason::Staged,
            kept if kept < leading => StageReason::Cut,
            _ => StageReason::Partial,
        };
        Ok(PinAnswer {
            pin: Some(fresh),
            tokens: kept as u64 * tokens_per_chunk,
            chunks: kept as u64,
            bytes: held[..kept].iter().map(|(_, bytes)| bytes).sum(),
            expires_ms: millis(ttl),
            reason,
        })
    }

    /// How many of these slots the request asks for, and leases leave.
    fn within_limits(&self, slots: &[(u32, u64)], bytes_max: u64) -> usize {
        let (mut bytes, mut more) = (0_u64, 0_u64);
        let mut fits = |(slot, stride): &(u32, u64)| {
            bytes = bytes.saturating_add(*stride);
            more += if self.arena.slot(*slot).pins == 0 { *stride } else { 0 };
            bytes <= bytes_max && self.arena.pinned_bytes + more <= self.settings.pinned_bytes_max
        };
        slots.iter().take_while(|slot| fits(slot)).count()
    }

    /// Lets a pin's chunks go. False if there is no such pin.
    fn end_pin(&mut self, id: PinId) -> bool {
        let slots = self.pins.end(id);
        slots.iter().flatten().for_each(|slot| self.arena.unpin(*slot));
        slots.is_some()
    }

    pub(super) fn end_expired_pins(&mut self, now: Duration) {
        while let Some(id) = self.pins.expired(now) {
            self.end_pin(id);
            self.counts.expired_pins += 1;
        }
    }

    pub(super) fn end_all_pins(&mut self) {
        let ids: Vec<PinId> = self.pins.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.end_pin(id);
        }
    }

    /// A lease or a pin is given back by whoever asked for it.
    pub(super) fn give_back(&mut self, ticket: Ticket, request: ReleaseRequest, out: &mut Vec<Output>) {
        let mut released = request.pin.is_some_and(|pin| self.end_pin(pin));
        if let Some(lease) = request.lease.filter(|lease| self.leases.get(lease).is_some_and(|it| !it.ending))
        {
            self.end_unless_loading(lease);
            released = true;
        }
        out.push(Output::Released { ticket, released });
    }

    /// Every pin, and what all may keep.
    pub fn pins(&self, now: Duration) -> PinsAnswer {
        let pins = self.pins.iter().map(|(id, pin)| PinnedChunks {
            pin: Some(id),
            namespace: pin.space.to_string(),
            chunks: pin.slots.len() as u64,
            bytes: pin.slots.iter().map(|(_, bytes)| bytes).sum(),
            expires_ms: millis(pin.expires.saturating_sub(now)),
        });
        PinsAnswer {
            pins: pins.collect(),
            bytes: self.pins.bytes(),
            max_bytes: self.settings.pins.bytes_max,
            namespace_max_bytes: self.settings.pins.space_bytes_max,
        }
    }
}

fn nothing(reason: StageReason) -> PinAnswer {
    PinAnswer { pin: None, tokens: 0, chunks: 0, bytes: 0, expires_ms: 0, reason }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
