//! Tenants: their names as owners of chunks, and what each may hold in host memory. Whose a chunk is, the proxy says with
//! the stage call whose tag the engine stores it under; a chunk that nobody was named for is without a quota.
//!
//! A tenant at its quota makes room for its own chunks with its own, the coldest first; if all of them are in use, what
//! it stores is refused. It never evicts another's for what is beyond its quota, and the disk tier knows no tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use larder_protocol::Tag;
use larder_protocol::control::{QuotaAnswer, QuotaRequest, QuotasAnswer, TenantQuota};
use larder_tiering::{Order, Owner};

use super::{Output, Store, Ticket};

/// Tenants known at one time: several times the keys that a proxy's key file may have. What a further one stores is
/// nobody's.
pub const TENANTS_MAX: usize = 4096;

#[derive(Debug)]
struct Tenant {
    owner: Owner,
    /// Its own quota; otherwise the default is.
    bytes_max: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Tenants {
    default_bytes_max: Option<u64>,
    names: BTreeMap<String, Tenant>,
    /// The same quotas by owner.
    bytes_max: BTreeMap<Owner, u64>,
    /// Owners who held more than a new quota, all of it in use.
    over: BTreeSet<Owner>,
    next: u32,
}

impl Tenants {
    pub(super) fn new(default_bytes_max: Option<u64>, own: &[(String, u64)]) -> Self {
        let (names, bytes_max, over) = Default::default();
        let mut tenants = Self { default_bytes_max, names, bytes_max, over, next: 0 };
        let none = Order::new(super::HALF_LIFE);
        for (name, bytes) in own {
            tenants.set(name, Some(*bytes), &none);
        }
        tenants
    }

    /// The owner that a name stands for. Where too many are known, those that hold nothing and have no quota of their own
    /// are forgotten.
    fn owner(&mut self, name: &str, order: &Order) -> Owner {
        if let Some(tenant) = self.names.get(name) {
            return tenant.owner;
        }
        if self.names.len() >= TENANTS_MAX {
            self.names.retain(|_, it| it.bytes_max.is_some() || order.owned_bytes(it.owner) > 0);
        }
        if self.names.len() >= TENANTS_MAX || self.next == u32::MAX {
            return Owner::NOBODY;
        }
        self.next += 1;
        let owner = Owner(self.next);
        self.names.insert(name.to_owned(), Tenant { owner, bytes_max: None });
        owner
    }

    /// What an owner may hold.
    fn quota(&self, owner: Owner) -> Option<u64> {
        let named = owner != Owner::NOBODY;
        named.then(|| self.bytes_max.get(&owner).copied().or(self.default_bytes_max)).flatten()
    }

    fn set(&mut self, name: &str, bytes_max: Option<u64>, order: &Order) -> Owner {
        let owner = self.owner(name, order);
        if let Some(tenant) = self.names.get_mut(name) {
            tenant.bytes_max = bytes_max;
            match bytes_max {
                Some(bytes) => self.bytes_max.insert(owner, bytes),
                None => self.bytes_max.remove(&owner),
            };
        }
        owner
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    fn describe(&self, name: &str, owner: Owner, order: &Order) -> TenantQuota {
        let (tenant, max_bytes) = (name.to_owned(), self.quota(owner));
        TenantQuota { tenant, max_bytes, held_bytes: order.owned_bytes(owner) }
    }
}

impl Store {
    /// Whose chunks a prompt with this tag are.
    pub(super) fn owner_of(&mut self, tag: Option<Tag>) -> Owner {
        let name = tag.and_then(|tag| self.recipes.tenant(tag));
        name.map_or(Owner::NOBODY, |name| self.tenants.owner(name, &self.arena.order))
    }

    /// What an owner may hold in host memory.
    pub(super) fn quota_of(&self, owner: Owner) -> Option<u64> {
        self.tenants.quota(owner)
    }

    pub(super) fn set_quota(
        &mut self,
        ticket: Ticket,
        request: &QuotaRequest,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let QuotaRequest { tenant: name, max_bytes } = request;
        let owner = self.tenants.set(name, *max_bytes, &self.arena.order);
        let evicted_chunks = self.trim(owner, now);
        let tenant = self.tenants.describe(name, owner, &self.arena.order);
        let known = owner != Owner::NOBODY;
        let answer = known.then_some(QuotaAnswer { tenant, evicted_chunks });
        out.push(Output::QuotaSet { ticket, answer });
    }

    /// Evicts an owner's coldest chunks until the rest are within its quota, as far as they may go.
    fn trim(&mut self, owner: Owner, now: Duration) -> u64 {
        let Some(bytes_max) = self.quota_of(owner) else { return 0 };
        self.settle_uses();
        let mut evicted = 0;
        while self.arena.order.owned_bytes(owner) > bytes_max
            && let Some(rank) = self.arena.order.coldest_of(owner)
        {
            let gone = self.arena.evict(rank.slot);
            self.chunks.remove(&gone.name);
            self.left_host(gone, now);
            evicted += 1;
        }
        self.counts.evicted_chunks += evicted;
        self.counts.quota_evicted_chunks += evicted;
        if self.arena.order.owned_bytes(owner) > bytes_max {
            self.tenants.over.insert(owner);
        }
        evicted
    }

    /// Evicts what was in use when its owner's quota was set below it, and is so no more.
    pub(super) fn trim_all(&mut self, now: Duration) {
        for owner in std::mem::take(&mut self.tenants.over) {
            self.trim(owner, now);
        }
    }

    /// Whether none of a tenant's chunks may go.
    #[cfg(test)]
    pub(super) fn are_all_in_use(&self, name: &str) -> bool {
        let tenant = self.tenants.names.get(name);
        tenant.is_none_or(|tenant| self.arena.order.coldest_of(tenant.owner).is_none())
    }

    /// Every tenant, with what it holds and may hold.
    pub fn quotas(&self) -> QuotasAnswer {
        let describe =
            |(name, tenant): (&String, &Tenant)| self.tenants.describe(name, tenant.owner, &self.arena.order);
        QuotasAnswer {
            default_max_bytes: self.tenants.default_bytes_max,
            tenants: self.tenants.names.iter().map(describe).collect(),
        }
    }
}
