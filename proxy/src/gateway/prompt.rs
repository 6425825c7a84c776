//! What a request's body says, as far as the choice needs it, and which pool it means.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use larder_identity::{Api, NoChain, PromptChain, Walk};

use super::error::GatewayError;
use super::splice::Places;
use crate::openai::Call;
use crate::pool::Pool;

/// Bodies above this size are hashed off the async workers' turn: at the slowest measured rate (0.6 GB/s, text all
/// in `\u` escapes) 1 MiB takes under 2 ms, and nothing should hold a worker longer.
const HASH_INLINE_MAX_BYTES: usize = 1 << 20;

/// What the body of a request says.
#[derive(Default)]
pub struct Prompt {
    /// The model that it names.
    pub model: Option<String>,
    /// Its prompt chain.
    pub chain: Option<PromptChain>,
    /// The session that it names.
    pub session: Option<String>,
    /// Whether it asks for a stream.
    pub streamed: bool,
    /// Where the body can be changed.
    pub places: Places,
    /// Why there is no chain.
    pub why: Option<NoChain>,
    /// Of which API it is.
    pub api: Option<Api>,
}

impl Prompt {
    /// Reads `body` in one walk (two, where the model's pool renders tools in another place than the first pool).
    pub fn read(pools: &[Arc<Pool>], call: Call, body: &[u8]) -> Self {
        let api = match call {
            Call::Prompt(api) => api,
            // One pool needs no model to be found; a body that is none of ours is not looked at.
            _ if pools.len() == 1 || body.is_empty() => return Self::default(),
            _ => Api::Completions,
        };
        // Pools differ only in how tools are rendered, so the first pool's walk finds the model, and the
        // chain is made again where the model's pool is another.
        let walk = |pool: &Pool| {
            let run = || Self::from(pool.hasher.walk(api, b"", body));
            if body.len() > HASH_INLINE_MAX_BYTES { tokio::task::block_in_place(run) } else { run() }
        };
        let Some(first) = pools.first() else { return Self::default() };
        let mut prompt = walk(first);
        if let Some(pool) = prompt.model.as_deref().and_then(|m| serving(pools, m))
            && !Arc::ptr_eq(pool, first)
            && pool.tools_order != first.tools_order
        {
            prompt = walk(pool);
        }
        // Only these bodies have a `kv_transfer_params` in all engines that know it: another would be refused for one.
        prompt.places.complete &= matches!(api, Api::Chat | Api::Completions);
        prompt.api = Some(api);
        if !matches!(call, Call::Prompt(_)) {
            prompt.api = None;
            prompt.chain = None;
            prompt.why = None;
        }
        prompt
    }

    /// The pool of the model.
    ///
    /// # Errors
    /// No pool serves it; or none is named, and there are several.
    pub fn pool<'p>(&self, pools: &'p [Arc<Pool>]) -> Result<&'p Arc<Pool>, GatewayError> {
        let known = || pools.iter().map(|p| p.model.as_str()).collect::<Vec<_>>().join(", ");
        match (&self.model, pools) {
            (Some(model), _) => serving(pools, model)
                .ok_or_else(|| GatewayError::UnknownModel { model: model.clone(), known: known() }),
            // The engine says what is wrong with a body that names no model.
            (None, [only]) => Ok(only),
            (None, _) => Err(GatewayError::NoModel {
                known: known(),
                why: self.why.as_ref().map_or_else(|| "no body".to_owned(), ToString::to_string),
            }),
        }
    }

    /// What identifies the client's session, hashed: the header of that name, else what the body says.
    pub fn session(&self, headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
        let named = headers.get(name).map(HeaderValue::as_bytes);
        named.or(self.session.as_deref().map(str::as_bytes)).map(xxhash_rust::xxh3::xxh3_64)
    }
}

fn serving<'p>(pools: &'p [Arc<Pool>], model: &str) -> Option<&'p Arc<Pool>> {
    pools.iter().find(|p| p.serves(model))
}

impl From<Walk<'_>> for Prompt {
    fn from(walk: Walk<'_>) -> Self {
        let envelope = walk.envelope;
        let places = Places {
            kv_transfer_params: envelope.kv_transfer_params,
            object: envelope.body_object,
            has_members: envelope.has_members,
            complete: envelope.complete,
        };
        let (chain, why) = match walk.prompt {
            Ok(chain) => (Some(chain), None),
            Err(why) => (None, Some(why)),
        };
        Self {
            model: envelope.model.map(Cow::into_owned),
            chain,
            session: envelope.session.map(Cow::into_owned),
            streamed: envelope.stream,
            places,
            why,
            api: None,
        }
    }
}
