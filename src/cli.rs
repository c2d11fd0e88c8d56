//! The command line: arguments, one file a command, exit codes.
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

/// The configuration is wrong (`EX_CONFIG` of sysexits.h).
const WRONG_CONFIGURATION: u8 = 78;

/// Moves Agora RTM (Signaling) events into Kafka, exactly once
///
/// Agora tells who logged in, logged out, joined or left only through two endpoints that forget
/// what they hand over. This daemon drains both, makes every answer durable before it looks into
/// it, removes repeats, and publishes each event exactly once.
#[derive(Debug, Parser)]
#[command(name = "agora-rtm-bridge", version = VERSION.as_str(), after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  agora-rtm-bridge demo                              see it work, with nothing else installed
  agora-rtm-bridge simulate                          play Agora on this machine
  agora-rtm-bridge plan --rate 3000                  will it keep up with us?
  agora-rtm-bridge check --config agora-rtm-bridge.toml    is all well before a start?
  agora-rtm-bridge run --config agora-rtm-bridge.toml
  agora-rtm-bridge pages show 5f0c…/1842             Agora's answer that an event came in
  agora-rtm-bridge journal list --config agora-rtm-bridge.toml    what waits on this disk
  agora-rtm-bridge audit --since 1h                  prove it from the topics
  agora-rtm-bridge health                            ask the running daemon (for containers)

Exit codes: 0 stopped as asked; 1 failed, or stopped with something undelivered; 2 wrong usage;
78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Simulate(simulate::Simulate),
    Demo(demo::Demo),
    Plan(plan::Plan),
    Pages(pages::Pages),
    Audit(audit::Audit),
    Journal(journal::Journal),
    Health(health::Health),
}

/// A command's end that is not a success: what to say, and the exit code.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

/// Dropped at the end of a command, also where that is a panic: then the last lines are written.
struct LastLines;

/// Runs the command that the arguments name. Returns the exit code.
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

/// Ends at the next SIGTERM or SIGINT from now on.
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
    /// The command failed.
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { message: Chain(error).to_string(), code: 1 }
    }

    /// The configuration is wrong.
    fn configuration(faults: &crate::config::Faults) -> Self {
        let message = format!("the configuration is wrong:\n{faults}");
        Self { message, code: WRONG_CONFIGURATION }
    }
}
