//! The benchmark of the extremes: one App ID at the API's ceiling, many busy ones, very many idle
//! ones, and ten times as many of which a fifth is refused.
//!
//! `cargo bench --bench crowd` starts the same processes as `steady` (Apache Kafka, a simulated
//! Agora in this process, the bridge as its users run it), lets the load grow over ten seconds, and
//! measures. The simulated Agora shares the machine, so its CPU time is reported too: if it is busy
//! all the time, a figure says nothing about the bridge.
//!
//! The table goes to stdout, progress to stderr. It needs what the tests need: Kafka's jars, which
//! `tests/run` fetches, or a Kafka named by `KAFKA_BOOTSTRAP_SERVERS`.

#[path = "../tests/it"]
mod it {
    #[expect(dead_code, unused_imports, reason = "the tests use more of it than the benchmark")]
    pub(crate) mod support;
}

#[path = "steady"]
mod steady {
    #[expect(dead_code, reason = "`steady` uses more of it")]
    pub(crate) mod agora;
    pub(crate) mod meter;
    pub(crate) mod say;
    #[expect(dead_code, reason = "`steady` reports more of it")]
    pub(crate) mod score;
    pub(crate) mod table;
    pub(crate) mod topics;
}

mod crowd {
    pub(crate) mod conditions;
    pub(crate) mod measure;
    pub(crate) mod part;
    pub(crate) mod report;
    pub(crate) mod start;
}

use std::io;
use std::io::Write as _;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};

use crate::crowd::measure::Outcome;
use crate::crowd::part::{Offer, Part};
use crate::crowd::{measure, report};
use crate::it::support;
use crate::steady::say;

/// The bridge at the API's ceiling, and with very many App IDs, into a real Kafka
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench crowd --")]
struct Args {
    /// How long each part is measured, after the load has grown for 10 s
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = 5..=3_600)]
    seconds: i64,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Events per second for each App ID, instead of the part's own rate
    #[arg(long, value_name = "EVENTS")]
    rate: Option<u32>,
    /// Number of App IDs, instead of the part's own
    #[arg(long, value_name = "APPS", value_parser = some_apps)]
    apps: Option<usize>,
    /// Fraction of user events
    #[arg(long, value_name = "SHARE", default_value_t = 0.75)]
    split: f64,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Also print CPU time per thread of the process
    #[arg(long)]
    threads: bool,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    // `cargo test --all-targets` runs benchmarks too, but without `--bench`.
    if !args.bench {
        eprintln!("nothing measured: run `cargo bench --bench crowd`");
        return;
    }
    let seconds = Duration::from_secs(args.seconds.unsigned_abs());
    say::progress("starting a Kafka broker");
    let bootstrap = support::broker::shared();
    let mut outcomes = Vec::new();
    for part in Part::value_variants() {
        if args.only.is_empty() || args.only.contains(part) {
            let mut offer = Offer::of(*part, seconds, args.split);
            offer.rate = args.rate.unwrap_or(offer.rate);
            offer.apps = args.apps.unwrap_or(offer.apps);
            let mut outcome = measure::run(bootstrap, offer);
            outcome.idle_core = outcomes.iter().find_map(idle_core);
            outcomes.push(outcome);
        }
    }
    let text = report::text(&outcomes, args.markdown, args.threads);
    io::stdout().write_all(text.as_bytes()).expect("stdout takes the table");
}

fn idle_core(outcome: &Outcome) -> Option<f64> {
    (outcome.offer.part == Part::IdleMany).then(|| outcome.core())
}

fn some_apps(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(apps @ 1..=10_000) => Ok(apps),
        _ => Err("must be a number from 1 to 10000".to_owned()),
    }
}
