use super::*;

/// Seeds of a short run.
const SEEDS: u64 = 30;

const STEPS: u64 = 1500;

fn all(verify: Verify) -> impl Iterator<Item = Result<Report, Failure>> {
    (0..SEEDS).map(move |seed| run(Settings { seed, steps: STEPS, verify }))
}

#[test]
fn no_seed_finds_a_wrong_byte_or_a_leak() {
    let mut sum = Report::default();
    for result in all(Verify::Lease) {
        let report = result.unwrap_or_else(|failure| panic!("{failure}"));
        sum.compared_chunks += report.compared_chunks;
        sum.recovered_chunks += report.recovered_chunks;
        sum.loaded_chunks += report.loaded_chunks;
        sum.damaged_chunks += report.damaged_chunks;
        sum.recovered_recipes += report.recovered_recipes;
        sum.crashes += report.crashes;
        sum.pending_lookups += report.pending_lookups;
    }
    println!("{sum:?}");
    assert!(sum.compared_chunks > 1000 && sum.crashes > SEEDS, "{sum:?}");
    assert!(sum.recovered_chunks > 1000 && sum.loaded_chunks > 100, "{sum:?}");
    assert!(sum.recovered_recipes > 50, "{sum:?}");
    assert!(sum.damaged_chunks > 10 && sum.pending_lookups > 50, "{sum:?}: the faults were met");
}

/// The negative control: with checksums off the same faults hand out wrong bytes, and the comparison sees it.
#[test]
fn with_checksums_off_some_seed_finds_a_wrong_byte() {
    let wrong = all(Verify::Off)
        .filter_map(Result::err)
        .find(|failure| failure.what.contains("is not what was stored"));
    let failure = wrong.expect("a planted flip is seen");
    let line = failure.to_string();
    let (_, arguments) = line.split_once("larder-sim ").unwrap();
    let seed = failure.settings.seed;
    assert_eq!(arguments, format!("--from {seed} --seeds 1 --steps {STEPS} --checksums-off"));
    assert_eq!(run(failure.settings), Err(failure), "what the line says happens again");
}

#[test]
fn a_seed_happens_again() {
    let one = run(Settings { seed: 5, steps: STEPS, verify: Verify::Lease });
    assert_eq!(run(Settings { seed: 5, steps: STEPS, verify: Verify::Lease }), one);
}
