//! The benchmark: what the bridge costs, how late it is, and what is lost.
//!
//! `cargo bench --bench steady` starts Apache Kafka, a simulated Agora (in this process) and the
//! bridge as its users run it, and offers a steady load. Beside it runs a naive poller, the script
//! that the bridge replaces, measured in the same way. Every event that was made is looked for in
//! the topics afterwards, so that a figure never hides a loss. `docs/benchmarks.md` tells what each
//! figure means.
//!
//! The table goes to stdout, how it is going to stderr. It needs what the tests need: Kafka's jars,
//! which `tests/run` fetches, or a Kafka named by `KAFKA_BOOTSTRAP_SERVERS`.

#[path = "../tests/it"]
mod it {
    #[expect(dead_code, unused_imports, reason = "the tests need more of it than the benchmark")]
    pub(crate) mod support;
}

mod steady {
    pub(crate) mod agora;
    pub(crate) mod first_request;
    pub(crate) mod idle;
    pub(crate) mod load;
    #[expect(dead_code, reason = "`crowd` meters itself too")]
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

use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

use crate::it::support;
use crate::steady::first_request;
use crate::steady::idle;
use crate::steady::load;
use crate::steady::load::Offer;
use crate::steady::load::Subject;
use crate::steady::naive;
use crate::steady::naive::Naive;
use crate::steady::report::Report;
use crate::steady::say;

/// A steady load into a real Kafka, beside a naive poller
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench steady --")]
struct Args {
    /// How long each load is measured, after a warm-up of 5 s
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = 5..=3_600)]
    seconds: i64,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Events a second in place of 3,000, and twice as many in place of 6,000
    #[arg(long, value_name = "EVENTS", default_value_t = 3_000)]
    rate: u32,
    /// The tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Also tell which threads of the process took the time
    #[arg(long)]
    threads: bool,
    /// Cargo says so
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
    /// The bridge while nothing happens.
    Idle,
    /// How soon after its start it asks.
    Start,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Be the naive poller: the benchmark starts itself so
    #[command(hide = true)]
    Naive(Naive),
}

fn main() {
    let args = Args::parse();
    match args.role {
        Some(Role::Naive(order)) => naive::run(&order),
        // `cargo test --all-targets` runs benchmarks too, and means something else.
        None if !args.bench => eprintln!("nothing is measured: run `cargo bench --bench steady`"),
        None => measure(&args),
    }
}

fn measure(args: &Args) {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let seconds = Duration::from_secs(args.seconds.unsigned_abs());
    let mut report = Report::begin();
    say::progress("a Kafka broker");
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
