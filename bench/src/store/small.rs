//! What is asked often: lookups of a long prompt, and a stage call until its grant is at the engine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use larder_protocol::Tag;
use larder_protocol::control::{ChainPoint, StageAnswer, StageRequest};

use super::engine::{Engine, TOKENS};
use super::{Bench, host, io, median, noise};
use crate::error::Error;

/// Keys of a lookup.
const KEYS: u64 = 2000;

/// Chunks of a staged prompt.
const STAGED: u64 = 8;

/// Times each is asked.
const ROUNDS: u64 = 300;

const CHUNK_BYTES: u64 = 64 << 10;

impl Bench<'_> {
    /// The medians of both, in microseconds.
    pub(super) fn small(&self) -> Result<(f64, f64), Error> {
        let folder = self.folder("small")?;
        // What was found right a minute ago is not read again: the lookup itself is measured.
        let lines = "verify_fresh = \"60s\"\nlookup_deadline = \"10s\"\nhost = { size = \"256MiB\" }\nregion = { size = \"256MiB\" }";
        let node = self.start(&folder, lines)?;
        let mut engine = Engine::connect(&node.socket, CHUNK_BYTES).map_err(io)?;
        let chunks = noise((KEYS * CHUNK_BYTES) as usize);
        host::put(&mut engine, 0, 1, KEYS, &chunks).map_err(io)?;
        let lookups =
            (0..ROUNDS).map(|_| lookup(&mut engine)).collect::<Result<Vec<f64>, _>>().map_err(io)?;
        let mut control = Control::connect(&node.address)?;
        let tag = Tag(7);
        control.stage(tag)?;
        engine.ask_for(0..STAGED, Some(tag)).map_err(io)?;
        let leased = engine.leased().map_err(io)?.ok_or_else(|| io("not held"))?;
        engine.release(&leased).map_err(io)?;
        let stage = |_| {
            let start = Instant::now();
            control.ask(tag)?;
            engine.grant().map_err(io)?;
            let passed = start.elapsed().as_secs_f64() * 1e6;
            let answer = control.answer()?;
            match answer.lease {
                Some(_) => Ok(passed),
                None => Err(io(format!("nothing was staged: {}", answer.reason))),
            }
        };
        let stages = (0..ROUNDS).map(stage).collect::<Result<Vec<f64>, Error>>()?;
        Ok((median(lookups), median(stages)))
    }
}

fn lookup(engine: &mut Engine) -> std::io::Result<f64> {
    // An engine has its keys already; encoding them and sending them is part of a lookup.
    let lookup = engine.lookup(0..KEYS, None);
    let start = Instant::now();
    engine.say(lookup)?;
    let leased = engine.leased()?;
    let passed = start.elapsed().as_secs_f64() * 1e6;
    match leased {
        Some(leased) if leased.slots.len() as u64 == KEYS => {
            engine.release(&leased)?;
            Ok(passed)
        }
        _ => Err(std::io::Error::other("not all of the prompt is held")),
    }
}

/// One kept connection to the control API.
struct Control {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Control {
    fn connect(address: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let answers = BufReader::new(stream.try_clone().map_err(io)?);
        Ok(Self { stream, answers })
    }

    fn ask(&mut self, tag: Tag) -> Result<(), Error> {
        let request = StageRequest {
            tag: Some(tag),
            chain: (0..STAGED).map(ChainPoint).collect(),
            run_bytes: TOKENS * 4,
            prompt_bytes: STAGED * u64::from(TOKENS) * 4,
            engine: None,
            deadline_ms: Some(1000),
            max_bytes: None,
            tenant: None,
        };
        let body = serde_json::to_string(&request).map_err(io)?;
        let head = format!("POST /v1/stage HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        self.stream.write_all((head + &body).as_bytes()).map_err(io)
    }

    fn answer(&mut self) -> Result<StageAnswer, Error> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.answers.read_line(&mut line).map_err(io)?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().map_err(io)?,
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body).map_err(io)?;
        serde_json::from_slice(&body).map_err(io)
    }

    fn stage(&mut self, tag: Tag) -> Result<StageAnswer, Error> {
        self.ask(tag)?;
        self.answer()
    }
}
