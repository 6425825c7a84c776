//! One command from start to end: plan, run each policy with fresh processes, report.

use crate::cli::{Policy, ReplayArgs};
use crate::client::Client;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::measure::Run;
use crate::plan::Plan;
use crate::progress::{self, Counters};
use crate::{drive, plot, report, simulate};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs `replay`; the table goes to `out`. Returns whether all requests were answered, and all asked-for agreement was
/// found.
///
/// # Errors
/// See [`Error`]; all child processes have been ended.
pub fn replay(args: &ReplayArgs, out: &mut dyn Write) -> Result<bool, Error> {
    let plan = Arc::new(Plan::new(args)?);
    say(out, &report::scale_lines(&plan.scale))?;
    for warning in &plan.warnings {
        say(out, &format!("warning: {warning}\n"))?;
    }
    let dir = RunDir::new(plan.run_dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Replay(format!("cannot start the async runtime: {error}")))?;
    let runs = runtime.block_on(async {
        let mut runs = Vec::new();
        for &policy in &plan.policies {
            runs.push(one(&plan, policy, args.capacity, &dir.path).await?);
        }
        Ok::<_, Error>(runs)
    });
    if matches!(runs, Err(Error::Interrupted)) {
        dir.remove();
        return Err(Error::Interrupted);
    }
    // On another error the logs stay: the error names them.
    let mut results = report::results(&plan, runs?);
    let mut clean = results.runs.iter().all(|run| run.errors == 0);
    if args.agree_with_simulate.is_some() {
        for (run, &policy) in results.runs.iter_mut().zip(&plan.policies) {
            run.simulated_hit_rate =
                simulate::agree::simulated(&plan, policy)?.map(|figures| figures.hit_rate);
        }
    }
    if let Some(path) = &args.json {
        report::write_json(path, &results)?;
    }
    say(out, &format!("\n{}", report::table(&results.runs)))?;
    if let Some(points) = args.agree_with_simulate {
        let (text, agrees) = report::agreement(&results.runs, points);
        say(out, &text)?;
        clean &= agrees;
    }
    if let Some(path) = &args.plot {
        plot::draw(path, &results)?;
        say(out, &format!("plot: {}\n", path.display()))?;
    }
    if clean {
        dir.remove();
    } else {
        say(out, &format!("logs: {}\n", dir.path.display()))?;
    }
    Ok(clean)
}

/// One policy, with processes that nothing else has used.
async fn one(plan: &Arc<Plan>, policy: Policy, asked: f64, dir: &Path) -> Result<Run, Error> {
    let dir = dir.join(policy.name());
    std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    tokio::select! {
        run = measured(plan, policy, asked, &dir) => run,
        error = interrupted() => Err(error),
    }
}

async fn measured(plan: &Arc<Plan>, policy: Policy, asked: f64, dir: &Path) -> Result<Run, Error> {
    let client = Client::new();
    let mut fleet = Fleet::start(plan, policy, dir, &client).await?;
    let counters = Arc::new(Counters::default());
    let replay =
        drive::replay(Arc::clone(plan), client.clone(), fleet.url().to_owned(), Arc::clone(&counters));
    let outcome = tokio::select! {
        outcome = replay => outcome.map_err(Error::Replay)?,
        error = fleet.died() => return Err(error),
        never = progress::show(&counters, policy.name(), plan.requests() as u64) => match never {},
    };
    let stats = fleet.stats(&client).await?;
    fleet.keep_metrics(&client).await;
    Ok(Run::new(plan, policy, asked, outcome, &stats))
}

/// Ends on Ctrl-C, SIGTERM or a closed terminal; dropping the run then ends its processes.
async fn interrupted() -> Error {
    let handlers = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = handlers else {
        return Error::Replay("cannot listen for signals, so child processes could be left behind".into());
    };
    tokio::select! {
        _ = interrupt.recv() => Error::Interrupted,
        _ = terminate.recv() => Error::Interrupted,
        _ = hangup.recv() => Error::Interrupted,
    }
}

fn say(out: &mut dyn Write, text: &str) -> Result<(), Error> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::Replay(format!("cannot write to standard output: {error}")))
}

/// Where logs and configurations of a command go.
struct RunDir {
    path: PathBuf,
    temporary: bool,
}

impl RunDir {
    fn new(kept: Option<&Path>) -> Result<Self, Error> {
        let temporary = kept.is_none();
        let path = match kept {
            Some(path) => path.into(),
            None => std::env::temp_dir().join(format!("larder-bench-{}", std::process::id())),
        };
        std::fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        Ok(Self { path, temporary })
    }

    /// Removes it after a run without errors, unless it was asked for by name.
    fn remove(&self) {
        if self.temporary {
            // Logs of a clean run that cannot be removed are no failure of the run.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
