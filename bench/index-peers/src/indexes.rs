//! Every index behind one interface. Results are `(endpoint, leading blocks held)`.

use std::sync::Arc;

use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::RadixTree;
use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
};
use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use crate::fleet::{Chain, Event};
use crate::routing::index::Index;

/// An index under test.
pub trait Peer {
    /// Its name in reports.
    const NAME: &'static str;
    /// A chain in the form it is asked with.
    type Query: Clone;
    /// An event in the form it is told in.
    type News;

    /// Empty, for `endpoints` with room for `blocks` each.
    fn new(endpoints: u32, blocks: u64) -> Self;
    /// Made outside the clock.
    fn query(chain: &Chain) -> Self::Query;
    /// Made outside the clock.
    fn news(event: &Event, chain: &Chain) -> Self::News;
    /// Takes an event in.
    fn apply(&mut self, news: Self::News);
    /// Waits until everything is in.
    fn settle(&mut self) {}
    /// The longest match among the endpoints, with the whole result made.
    fn longest(&mut self, query: Self::Query) -> u32;
    /// The whole result, sorted by endpoint.
    fn all(&mut self, query: Self::Query) -> Vec<(u32, u32)>;
}

/// Larder's: with the LRU model of each endpoint inside, so that evictions are its own.
pub struct Larder {
    index: Index,
    blocks: u64,
    matched: Vec<u32>,
}

impl Larder {
    /// Bytes as it counts them itself.
    pub fn bytes(&self) -> usize {
        self.index.bytes()
    }
}

impl Peer for Larder {
    const NAME: &'static str = "larder";
    type Query = Arc<[u64]>;
    type News = (u32, Arc<[u64]>);

    fn new(endpoints: u32, blocks: u64) -> Self {
        let mut index = Index::new(4 << 30);
        (0..endpoints).for_each(|_| {
            index.add_holder();
        });
        Self { index, blocks, matched: Vec::new() }
    }

    fn query(chain: &Chain) -> Self::Query {
        chain.elements.clone().into()
    }

    fn news(event: &Event, chain: &Chain) -> Self::News {
        (event.endpoint, chain.elements.clone().into())
    }

    fn apply(&mut self, (endpoint, chain): Self::News) {
        self.index.enter(endpoint, &chain, false);
        self.index.evict_beyond(endpoint, self.blocks);
    }

    fn longest(&mut self, query: Self::Query) -> u32 {
        self.index.matches(&query, &mut self.matched);
        self.matched.iter().copied().max().unwrap_or(0)
    }

    fn all(&mut self, query: Self::Query) -> Vec<(u32, u32)> {
        self.longest(query);
        let found = self.matched.iter().enumerate().filter(|(_, held)| **held > 0);
        found.map(|(endpoint, held)| (endpoint as u32, *held)).collect()
    }
}

/// kv-index's `ChainIndex`.
pub struct Chains {
    index: ChainIndex,
    workers: Vec<u32>,
    maps: Vec<ChainBlockMap>,
}

/// What is stored behind which block, and what goes.
pub struct ChainNews {
    endpoint: u32,
    stored: Vec<StoredBlock>,
    parent: Option<SequenceHash>,
    removed: Vec<SequenceHash>,
}

impl Peer for Chains {
    const NAME: &'static str = "kv-index ChainIndex";
    type Query = Arc<[u64]>;
    type News = ChainNews;

    fn new(endpoints: u32, _blocks: u64) -> Self {
        let index = ChainIndex::with_max_workers(1_024);
        let worker = |number| index.intern_worker(&format!("http://{number}")).expect("fewer than 1,024");
        let workers = (0..endpoints).map(worker).collect();
        let maps = (0..endpoints).map(|_| ChainBlockMap::new()).collect();
        Self { index, workers, maps }
    }

    fn query(chain: &Chain) -> Self::Query {
        chain.contents.clone().into()
    }

    fn news(event: &Event, chain: &Chain) -> Self::News {
        let blocks = chain.elements.iter().zip(&chain.contents).skip(event.held);
        let block = |(&element, &content)| StoredBlock {
            seq_hash: SequenceHash(element),
            content_hash: ContentHash(content),
        };
        ChainNews {
            endpoint: event.endpoint,
            stored: blocks.map(block).collect(),
            parent: event.held.checked_sub(1).map(|at| SequenceHash(chain.elements[at])),
            removed: event.removed.iter().map(|&block| SequenceHash(block)).collect(),
        }
    }

    fn apply(&mut self, news: Self::News) {
        let (worker, map) = (self.workers[news.endpoint as usize], &mut self.maps[news.endpoint as usize]);
        self.index.apply_stored(worker, &news.stored, news.parent, map).expect("its parent is there");
        self.index.apply_removed(worker, &news.removed, map);
    }

    fn longest(&mut self, query: Self::Query) -> u32 {
        let mut most = 0;
        let mut found = Vec::with_capacity(8);
        self.index.score_into(&query, |content| *content, false, |worker, depth| found.push((worker, depth)));
        found.iter().for_each(|(_, depth)| most = most.max(*depth));
        most
    }

    fn all(&mut self, query: Self::Query) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        self.index.score_into(
            &query,
            |content| *content,
            false,
            |worker, depth| {
                let endpoint = self.workers.iter().position(|known| *known == worker).unwrap_or(usize::MAX);
                found.push((endpoint as u32, depth));
            },
        );
        found.sort_unstable();
        found
    }
}

fn dynamo_query(chain: &Chain) -> Vec<LocalBlockHash> {
    chain.contents.iter().map(|&content| LocalBlockHash(content)).collect()
}

fn dynamo_news(event: &Event, chain: &Chain) -> Vec<RouterEvent> {
    let blocks = chain.elements.iter().zip(&chain.contents).skip(event.held);
    let stored: Vec<_> = blocks
        .map(|(&element, &content)| KvCacheStoredBlockData {
            block_hash: ExternalSequenceBlockHash(element),
            tokens_hash: LocalBlockHash(content),
            mm_extra_info: None,
        })
        .collect();
    let data = KvCacheEventData::Stored(KvCacheStoreData {
        parent_hash: event.held.checked_sub(1).map(|at| ExternalSequenceBlockHash(chain.elements[at])),
        start_position: None,
        blocks: stored,
    });
    let mut all = Vec::new();
    if event.held < chain.elements.len() {
        all.push(data);
    }
    if !event.removed.is_empty() {
        let block_hashes = event.removed.iter().map(|&block| ExternalSequenceBlockHash(block)).collect();
        all.push(KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }));
    }
    let event =
        |data| RouterEvent::new(u64::from(event.endpoint), KvCacheEvent { event_id: 0, dp_rank: 0, data });
    all.into_iter().map(event).collect()
}

fn scores(scores: OverlapScores) -> Vec<(u32, u32)> {
    let mut all: Vec<_> =
        scores.scores.iter().map(|(worker, &held)| (worker.worker_id as u32, held)).collect();
    all.sort_unstable();
    all
}

/// Dynamo's single-threaded `RadixTree`.
pub struct Radix(RadixTree);

impl Peer for Radix {
    const NAME: &'static str = "dynamo RadixTree";
    type Query = Vec<LocalBlockHash>;
    type News = Vec<RouterEvent>;

    fn new(_endpoints: u32, _blocks: u64) -> Self {
        Self(RadixTree::new())
    }

    fn query(chain: &Chain) -> Self::Query {
        dynamo_query(chain)
    }

    fn news(event: &Event, chain: &Chain) -> Self::News {
        dynamo_news(event, chain)
    }

    fn apply(&mut self, news: Self::News) {
        for event in news {
            self.0.apply_event(event).expect("its parent is there");
        }
    }

    fn longest(&mut self, query: Self::Query) -> u32 {
        self.0.find_matches(query, false).scores.values().copied().max().unwrap_or(0)
    }

    fn all(&mut self, query: Self::Query) -> Vec<(u32, u32)> {
        scores(self.0.find_matches(query, false))
    }
}

/// Dynamo's `ConcurrentRadixTreeCompressed` with one event thread, which is how its events go in.
pub struct Compressed {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    tasks: Option<flume::Sender<WorkerTask>>,
    lane: Option<std::thread::JoinHandle<()>>,
}

impl Compressed {
    fn tell(&self, task: WorkerTask) {
        let tasks = self.tasks.as_ref().expect("there until it is dropped");
        tasks.send(task).expect("its thread lives as long as this sender");
    }
}

impl Drop for Compressed {
    fn drop(&mut self) {
        // The thread ends with the sender; its memory is not to be counted as the next index's.
        drop(self.tasks.take());
        if let Some(lane) = self.lane.take() {
            let _ = lane.join();
        }
    }
}

impl Peer for Compressed {
    const NAME: &'static str = "dynamo ConcurrentRadixTreeCompressed";
    type Query = Arc<[LocalBlockHash]>;
    type News = Vec<RouterEvent>;

    fn new(_endpoints: u32, _blocks: u64) -> Self {
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (tasks, received) = flume::unbounded();
        let lane = Arc::clone(&tree);
        let lane = std::thread::spawn(move || lane.worker(received, None).expect("events apply"));
        Self { tree, tasks: Some(tasks), lane: Some(lane) }
    }

    fn query(chain: &Chain) -> Self::Query {
        dynamo_query(chain).into()
    }

    fn news(event: &Event, chain: &Chain) -> Self::News {
        dynamo_news(event, chain)
    }

    fn apply(&mut self, news: Self::News) {
        for event in news {
            self.tell(WorkerTask::Event(event));
        }
    }

    fn settle(&mut self) {
        let (done, told) = tokio::sync::oneshot::channel();
        self.tell(WorkerTask::Flush(done));
        told.blocking_recv().expect("the thread answers");
    }

    fn longest(&mut self, query: Self::Query) -> u32 {
        self.tree.find_matches_impl(&query, false).scores.values().copied().max().unwrap_or(0)
    }

    fn all(&mut self, query: Self::Query) -> Vec<(u32, u32)> {
        scores(self.tree.find_matches_impl(&query, false))
    }
}
