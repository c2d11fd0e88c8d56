//! The campaign as a command: `tests/campaign` runs it.
//!
//! The table goes to stdout, how it is going to stderr. It needs what the tests need: Kafka's
//! jars, which `tests/run` fetches.

#[path = "../tests/it"]
mod it {
    pub(crate) mod campaign;
    #[expect(dead_code, unused_imports, reason = "the tests need more of it than the campaign")]
    pub(crate) mod support;
}

use std::io;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::time::Instant;

use crate::it::campaign;
use crate::it::campaign::Plan;
use crate::it::campaign::kind::Kind;
use crate::it::support;

/// Harm of many kinds, round by round, on a real broker: nothing may be missing or twice
///
/// Each round lets events happen, does harm, takes it back, and waits until all is well: whatever
/// Agora handed over is published once and in order, or told by a gap that the harm excuses, and
/// the accounts of the bridge balance and say what the simulated Agora's ledger says. What is wrong
/// ends the campaign with exit code 1 and the command that repeats the round.
#[derive(Debug, Parser)]
#[command(name = "tests/campaign")]
struct Args {
    /// How many rounds
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Decides which harm is done when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first round: each has a schedule of its own
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from: u64,
    /// Only these kinds of harm; all but outage unless set
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// How many kinds meet in a round at most; 1 for a single kind, 3 otherwise
    #[arg(long, value_name = "NUMBER")]
    at_once: Option<usize>,
    /// Events a second
    #[arg(long, value_name = "EVENTS", default_value_t = 1_000.0)]
    rate: f64,
    /// How long an outage lasts
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    away: Duration,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args = Args::parse();
    // `cargo test --all-targets` runs benchmarks too, and means something else.
    if !args.bench {
        eprintln!("nothing is done: run tests/campaign");
        return ExitCode::SUCCESS;
    }
    let kinds = if args.kinds.is_empty() { Kind::usual() } else { args.kinds };
    let at_once = args.at_once.unwrap_or(if kinds.len() == 1 { 1 } else { 3 });
    let rounds = args.from..args.from + args.rounds;
    let mut plan =
        Plan { seed: args.seed, rounds, kinds, at_once, rate: args.rate, away: args.away };
    for (kind, why) in plan.leave_out_what_cannot_be() {
        eprintln!("── left out: {}: {why}", kind.name());
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
