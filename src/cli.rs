//! The command line: arguments, one file per command, exit codes.
//!
//! Results go to stdout, logs and progress to stderr.

mod audit;
mod check;
mod demo;
mod health;
mod journal;
mod pages;
mod plan;
mod progress;
mod run;
mod settings;
mod simulate;

use std::future::Future;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Level;

use crate::daemon::VERSION;
use crate::error::Chain;
use crate::observe::logs;

/// Exit code for an invalid configuration (`EX_CONFIG` of sysexits.h).
const WRONG_CONFIGURATION: u8 = 78;

/// Moves Agora RTM (Signaling) events into Kafka, exactly once
///
/// Agora reports logins, logouts, joins and leaves only through two endpoints that delete what they
/// return. This daemon drains both, commits every answer to disk before it parses it, removes
/// repeats, and publishes each event exactly once.
#[derive(Debug, Parser)]
#[command(name = "agora-rtm-bridge", version = VERSION.as_str(), after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  agora-rtm-bridge demo                              see it work; needs nothing else
  agora-rtm-bridge simulate                          simulate Agora on this machine
  agora-rtm-bridge plan --rate 3000                  would it keep up with your load?
  agora-rtm-bridge check --config agora-rtm-bridge.toml    check everything before a start
  agora-rtm-bridge run --config agora-rtm-bridge.toml
  agora-rtm-bridge pages show 5f0c…/1842             show the answer that contained an event
  agora-rtm-bridge journal list --config agora-rtm-bridge.toml    list the pages on this disk
  agora-rtm-bridge audit --since 1h                  verify delivery from the topics
  agora-rtm-bridge health                            probe the running daemon (for containers)

Exit codes: 0 success; 1 failure, or stopped with pages undelivered; 2 usage error; 78 invalid
configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Simulate(simulate::Simulate),
    Demo(demo::Demo),
    Plan(plan::Plan),
    Pages(pages::Pages),
    Audit(audit::Audit),
    Journal(journal::JournalCli),
    Health(health::Health),
}

/// Why a command failed: the message to print, and the exit code.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

/// Flushes the log when a command ends, even by a panic.
struct LastLines;

/// Runs the command given by the arguments. Returns the exit code.
pub async fn main() -> u8 {
    let _last_lines = LastLines;
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Pages(args) => pages::run(args).await,
        Command::Journal(args) => journal::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Simulate(args) => simulate(args).await,
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            logs::say(Level::ERROR, &format!("agora-rtm-bridge: {}\n", failure.message));
            failure.code
        }
    }
}

async fn simulate(args: simulate::Simulate) -> Result<(), Failure> {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    tracker.spawn({
        let stop = stop.clone();
        let asked = asked_to_stop()?;
        async move {
            asked.await;
            stop.cancel();
        }
    });
    simulate::run(args, tracker, stop).await.map_err(|error| Failure::of(&error))
}

/// Completes at the first SIGTERM or SIGINT after this call.
fn asked_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::of(&error));
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

// === impl LastLines ===

impl Drop for LastLines {
    fn drop(&mut self) {
        logs::flush();
    }
}

// === impl Failure ===

impl Failure {
    /// An error of the command.
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { message: Chain(error).to_string(), code: 1 }
    }

    /// An invalid configuration.
    fn configuration(faults: &crate::config::Faults) -> Self {
        let message = format!("invalid configuration:\n{faults}");
        Self { message, code: WRONG_CONFIGURATION }
    }
}
