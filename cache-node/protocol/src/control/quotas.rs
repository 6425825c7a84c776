//! What tenants may hold.

use serde::{Deserialize, Serialize};

/// The most bytes of a tenant's name.
pub const TENANT_BYTES_MAX: usize = 128;

/// Sets what one tenant may hold in host memory (`POST /v1/quotas`). Lasts until the node restarts; the config has
/// quotas that stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaRequest {
    /// The tenant, as stage calls name it: 1 to [`TENANT_BYTES_MAX`] bytes.
    pub tenant: String,
    /// The most bytes of memory its chunks may take; null for what tenants have by default.
    pub max_bytes: Option<u64>,
}

/// Answers a [`QuotaRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaAnswer {
    /// The tenant, as it is now.
    #[serde(flatten)]
    pub tenant: TenantQuota,
    /// Its chunks that were evicted at once, since they were too many.
    pub evicted_chunks: u64,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantQuota {
    /// Its name.
    pub tenant: String,
    /// The most bytes its chunks may take, by its own quota or by default; null without a limit.
    pub max_bytes: Option<u64>,
    /// What they take. More than that only as long as leases and pins hold them.
    pub held_bytes: u64,
}

/// The answer to `GET /v1/quotas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotasAnswer {
    /// What a tenant may hold that has no quota of its own; null without a limit.
    pub default_max_bytes: Option<u64>,
    /// The tenants known, in the order of names.
    pub tenants: Vec<TenantQuota>,
}
