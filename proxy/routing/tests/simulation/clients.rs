//! Two kinds of traffic.

use crate::world::{Clients, Prompt, Random, scatter};

/// Closed loop: chats that grow turn by turn behind one of a few system prompts, each followed by a new one.
pub(crate) struct Chats {
    live: usize,
    /// Prompts until the run ends.
    prompts: u64,
    system_blocks: u64,
    /// Mean turns of a chat.
    turns: u64,
    turn_blocks: u64,
    think_s: f64,
    /// Per client: which chat, its next turn, its last.
    chats: Vec<(u64, u64, u64)>,
    begun: u64,
}

impl Chats {
    pub(crate) fn new(live: usize, prompts: u64) -> Self {
        Chats {
            live,
            prompts,
            system_blocks: 16,
            turns: 20,
            turn_blocks: 24,
            think_s: 20.0,
            chats: Vec::new(),
            begun: 0,
        }
    }

    /// A new chat, at a random turn when the run begins so that not all end together.
    fn fresh(&mut self, random: &mut Random, midway: bool) -> (u64, u64, u64) {
        self.begun += 1;
        let turns = self.turns / 2 + random.below(self.turns);
        let turn = if midway { random.below(turns) } else { 0 };
        (self.begun, turn, turns)
    }
}

impl Clients for Chats {
    fn begin(&mut self, random: &mut Random) -> Vec<f64> {
        self.chats = (0..self.live).map(|_| self.fresh(random, true)).collect();
        (0..self.live).map(|_| random.spread(self.think_s)).collect()
    }

    fn send(&mut self, client: usize, random: &mut Random) -> Option<Prompt> {
        self.prompts = self.prompts.checked_sub(1)?;
        if self.chats[client].1 >= self.chats[client].2 {
            self.chats[client] = self.fresh(random, false);
        }
        let (chat, turn, _) = self.chats[client];
        self.chats[client].1 += 1;
        let length = self.system_blocks + (turn + 1) * self.turn_blocks;
        let system = chat % 3;
        let block = |i| scatter(if i < self.system_blocks { system << 32 | i } else { (chat + 3) << 32 | i });
        Some(Prompt { client, chain: (0..length).map(block).collect(), decode_s: 2.0 })
    }

    fn pause(&mut self, _: usize, random: &mut Random) -> f64 {
        random.spread(self.think_s).min(300.0)
    }

    fn closed(&self) -> bool {
        true
    }
}

/// Open loop: single prompts, most of which share one long system prompt.
pub(crate) struct Shared {
    pub(crate) prompts: u64,
    /// In a hundred.
    pub(crate) sharing: u64,
    pub(crate) system_blocks: u64,
    pub(crate) own_blocks: u64,
    pub(crate) between_s: f64,
    pub(crate) decode_s: f64,
}

impl Clients for Shared {
    fn begin(&mut self, _: &mut Random) -> Vec<f64> {
        vec![0.0]
    }

    fn send(&mut self, client: usize, random: &mut Random) -> Option<Prompt> {
        self.prompts = self.prompts.checked_sub(1)?;
        let system = if random.below(100) < self.sharing { 0 } else { self.prompts + 1 };
        let own = 1 + random.below(2 * self.own_blocks);
        let block =
            |i| scatter(if i < self.system_blocks { system << 32 | i } else { (self.prompts + 1) << 44 | i });
        let chain = (0..self.system_blocks + own).map(block).collect();
        Some(Prompt { client, chain, decode_s: self.decode_s })
    }

    fn pause(&mut self, _: usize, random: &mut Random) -> f64 {
        random.spread(self.between_s)
    }

    fn closed(&self) -> bool {
        false
    }
}
