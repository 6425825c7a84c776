//! The driver's side of the GPUs: what the store says of them goes to their thread, descriptors with it.

use std::sync::Arc;

use larder_protocol::message::Refused;

use super::Driver;
use crate::store::DeviceOp;
use larder_protocol::code::RefusedCode;

impl Driver {
    pub(super) fn device(&mut self, op: DeviceOp) {
        let DeviceOp::Attach { connection, rank: (session, _), ref attach, .. } = op else {
            return self.gpus.carry_out(op);
        };
        let descriptors = std::mem::take(&mut self.descriptors);
        match self.regions.get(&session) {
            Some(region) => self.gpus.attach(op, descriptors, Arc::clone(region)),
            // It was refused for that, and hears so now again.
            None => {
                let text = "the session has no region".to_owned();
                let refused = Refused { id: attach.id, code: RefusedCode::Region, message: text };
                if let Some((outbox, _)) = self.outboxes.get(&connection) {
                    outbox.send(&refused.into());
                }
            }
        }
    }
}
