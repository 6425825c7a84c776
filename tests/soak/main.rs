//! The soak: many requests through four engines that fail in every way, from clients that leave when they like. Then
//! everything must be as it was before: nothing in flight, held or buffered, no memory of what is gone, no open
//! descriptor, no growth. And at no time an answer to somebody else's request.

mod checks;
mod clients;
mod faults;
mod ledger;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use larder_tests::world::{Proxy, config};

use clients::Client;
use faults::Fleet;
use ledger::Ledger;

/// Engines behind the proxy.
const ENGINES: usize = 4;
/// Small enough that the index and the engines' caches are full, and forget, after seconds; limits short enough that
/// a request to an engine that hangs is over soon.
const SETTINGS: &str = "log = \"error\"\n\
    [timeouts]\nfirst_byte = \"2s\"\nidle = \"1s\"\nbody = \"10s\"\n\
    [breaker]\nopen = \"500ms\"\nopen_max = \"2s\"\n\
    [routing]\nindex = \"2MiB\"\nseed = 1\n\
    [health]\ninterval = \"200ms\"\n";
/// Of the run, what counts as warming up.
const WARM_UP: f64 = 0.25;

/// Sends requests through a proxy before four failing engines and sees that nothing is left of them.
#[derive(Debug, Parser)]
struct Args {
    /// Requests to send
    #[arg(long, default_value_t = 200_000)]
    requests: u64,
    /// Ends earlier, after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Clients at the same time
    #[arg(long, default_value_t = 48)]
    clients: u64,
    /// What clients and faults are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut fleet = Fleet::start(ENGINES);
    let proxy = Arc::new(Proxy::start_with(&config(&fleet.addresses(), SETTINGS)).await);
    let ledger = Arc::new(Ledger::new(args.requests));

    // A first run, so that what is made once is made before the counting.
    checks::warm(&proxy, args.clients).await;
    checks::remove_all(&proxy, &fleet.addresses()).await;
    let before = checks::settled(&proxy, None).await;
    println!("before: {before}");
    checks::add_all(&proxy, &fleet.addresses()).await;

    let begin = Instant::now();
    let clients: Vec<_> = (0..args.clients)
        .map(|number| Client::new(args.seed, number, Arc::clone(&ledger)).spawn(proxy.address))
        .collect();
    let resident = watch(&args, &mut fleet, &proxy, &ledger, begin).await;
    ledger.stop();
    for client in clients {
        if let Err(error) = client.await {
            ledger.complain(format!("a client ended badly: {error}"));
        }
    }
    println!("{ledger}, in {:.0} s; faults: {}", begin.elapsed().as_secs_f64(), fleet.told());

    fleet.heal().await;
    checks::everyone_is_idle(&proxy, &fleet, &ledger).await;
    checks::remove_all(&proxy, &fleet.addresses()).await;
    let after = checks::settled(&proxy, Some(&before)).await;
    println!("after:  {after}");
    if after != before {
        ledger.complain(format!("before: {before}\n after: {after}"));
    }
    checks::memory_is_flat(&resident, WARM_UP, &ledger);
    checks::enough_happened(&ledger, &fleet);
    verdict(&ledger)
}

/// Makes faults, one a second, until the requests are sent or the time is up. Returns resident memory, second by second.
async fn watch(args: &Args, fleet: &mut Fleet, proxy: &Proxy, ledger: &Ledger, begin: Instant) -> Vec<u64> {
    let limit = args.seconds.map_or(Duration::MAX, Duration::from_secs);
    let mut resident = Vec::new();
    let mut random = ledger::Random::new(args.seed ^ 0xfa17);
    while ledger.left.load(Ordering::Relaxed) > 0 && begin.elapsed() < limit {
        fleet.next_fault(&mut random).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident.push(proxy.program.resident_bytes());
        if resident.len().is_multiple_of(30) {
            println!("{} s: {ledger}, {} MiB", resident.len(), resident[resident.len() - 1] >> 20);
        }
    }
    resident
}

fn verdict(ledger: &Ledger) -> ExitCode {
    let complaints = ledger.complaints();
    for complaint in &complaints {
        println!("WRONG: {complaint}");
    }
    println!("soak: {} complaints", complaints.len());
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
