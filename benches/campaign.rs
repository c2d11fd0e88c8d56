//! The campaign as a command, run by `tests/campaign`.
//!
//! The table goes to stdout, progress to stderr. It needs what the tests need: Kafka's jars, which
//! `tests/run` fetches.

#[path = "../tests/it"]
mod it {
    pub(crate) mod campaign;
    #[expect(dead_code, unused_imports, reason = "the tests use more of it than the campaign")]
    pub(crate) mod support;
}

use std::io;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::time::Instant;

use crate::it::campaign::Plan;
use crate::it::campaign::kind::Kind;
use crate::it::{campaign, support};

/// Faults of many kinds, round by round, on a real broker: nothing may be missing or duplicated
///
/// Each round generates events, injects faults, removes them, and waits until everything has
/// recovered. Then every event that Agora handed over must be published once and in order, or be
/// covered by a gap that a fault explains, and the bridge's accounts must balance and match the
/// simulated Agora's ledger. Any violation ends the campaign with exit code 1 and prints the
/// command that repeats the round.
#[derive(Debug, Parser)]
#[command(name = "tests/campaign")]
struct Args {
    /// Number of rounds
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Seed that decides which faults happen when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first round; each number has its own schedule
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from: u64,
    /// Only these kinds of faults; by default all except outage
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Maximum number of kinds per round; by default 1 for a single kind, otherwise 3
    #[arg(long, value_name = "NUMBER")]
    at_once: Option<usize>,
    /// Events per second
    #[arg(long, value_name = "EVENTS", default_value_t = 1_000.0)]
    rate: f64,
    /// Duration of an outage
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    away: Duration,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Interval between progress lines.
const TELL_EVERY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args = Args::parse();
    // `cargo test --all-targets` runs benchmarks too, but without `--bench`.
    if !args.bench {
        eprintln!("nothing to do: use tests/campaign");
        return ExitCode::SUCCESS;
    }
    let kinds = if args.kinds.is_empty() { Kind::usual() } else { args.kinds };
    let at_once = args.at_once.unwrap_or(if kinds.len() == 1 { 1 } else { 3 });
    let rounds = args.from..args.from + args.rounds;
    let mut plan =
        Plan { seed: args.seed, rounds, kinds, at_once, rate: args.rate, away: args.away };
    for (kind, why) in plan.leave_out_what_cannot_be() {
        eprintln!("── skipped: {}: {why}", kind.name());
    }
    let mut told = Instant::now();
    let (tally, wrong) = campaign::run(&plan, |done, left| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let left = Duration::from_secs(left.as_secs());
            let left = humantime::format_duration(left);
            eprintln!("   round {done} of {}, about {left} left", args.rounds);
        }
    });
    let text = tally.text();
    io::stdout().write_all(text.as_bytes()).expect("stdout takes the table");
    match wrong {
        None => ExitCode::SUCCESS,
        Some(wrong) => {
            eprintln!("── WRONG: {wrong}");
            ExitCode::FAILURE
        }
    }
}
