//! The main benchmark: the bridge's CPU and memory, its latency, and its losses.
//!
//! `cargo bench --bench steady` starts Apache Kafka, a simulated Agora (in this process) and the
//! bridge as its users run it, and applies a steady load. For comparison it measures a naive
//! poller, the script that the bridge replaces, in the same way. Afterwards it looks for every
//! event that was made in the topics, so that no figure hides a loss. `docs/benchmarks.md` explains
//! each figure.
//!
//! The table goes to stdout, progress to stderr. It needs what the tests need: Kafka's jars, which
//! `tests/run` fetches, or a Kafka named by `KAFKA_BOOTSTRAP_SERVERS`.

#[path = "../tests/it"]
mod it {
    #[expect(dead_code, unused_imports, reason = "the tests use more of it than the benchmark")]
    pub(crate) mod support;
}

mod steady {
    pub(crate) mod agora;
    pub(crate) mod first_request;
    pub(crate) mod idle;
    pub(crate) mod load;
    #[expect(dead_code, reason = "`crowd` also measures its own process")]
    pub(crate) mod meter;
    pub(crate) mod naive;
    pub(crate) mod report;
    pub(crate) mod say;
    pub(crate) mod score;
    pub(crate) mod table;
    pub(crate) mod topics;
}

use std::io;
use std::io::Write as _;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::it::support;
use crate::steady::load::{Offer, Subject};
use crate::steady::naive::Naive;
use crate::steady::report::Report;
use crate::steady::{first_request, idle, load, naive, say};

/// A steady load into a real Kafka, compared with a naive poller
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench steady --")]
struct Args {
    /// How long each load is measured, after a warm-up of 5 s
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = 5..=3_600)]
    seconds: i64,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Events per second instead of 3,000, and twice as many instead of 6,000
    #[arg(long, value_name = "EVENTS", default_value_t = 3_000)]
    rate: u32,
    /// Print the tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Also print CPU time per thread of the process
    #[arg(long)]
    threads: bool,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The bridge under the steady load.
    Bridge,
    /// The naive poller under the same load.
    Naive,
    /// The bridge under twice that load.
    Double,
    /// The naive poller under twice that load.
    NaiveDouble,
    /// The idle bridge: no events happen.
    Idle,
    /// The time from its start to its first request.
    Start,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Run as the naive poller: the benchmark starts itself with this
    #[command(hide = true)]
    Naive(Naive),
}

fn main() {
    let args = Args::parse();
    match args.role {
        Some(Role::Naive(order)) => naive::run(&order),
        // `cargo test --all-targets` runs benchmarks too, but without `--bench`.
        None if !args.bench => eprintln!("nothing measured: run `cargo bench --bench steady`"),
        None => measure(&args),
    }
}

fn measure(args: &Args) {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let seconds = Duration::from_secs(args.seconds.unsigned_abs());
    let mut report = Report::begin();
    say::progress("starting a Kafka broker");
    let bootstrap = support::broker::shared();
    let parts = [
        (Part::Bridge, Subject::Bridge, args.rate),
        (Part::Naive, Subject::Naive, args.rate),
        (Part::Double, Subject::Bridge, args.rate * 2),
        (Part::NaiveDouble, Subject::Naive, args.rate * 2),
    ];
    for (part, subject, rate) in parts {
        if wanted(part) {
            report.add_load(load::run(bootstrap, Offer { subject, rate, seconds }));
        }
    }
    if wanted(Part::Idle) {
        report.add_idle(idle::run(bootstrap, seconds));
    }
    if wanted(Part::Start) {
        report.add_first_requests(first_request::run(bootstrap));
    }
    let text = report.text(args.markdown, args.threads);
    io::stdout().write_all(text.as_bytes()).expect("stdout takes the table");
}
