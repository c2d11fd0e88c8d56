//! The benchmark of the last stage: from the last byte of an answer until a `read_committed`
//! consumer has all of its events.
//!
//! `cargo bench --bench deliver` starts the same processes as `steady`: Apache Kafka, a simulated
//! Agora in this process, the bridge as its users run it; plus a consumer in this process, on its
//! own thread, with ordinary settings. `docs/benchmarks.md` explains each figure.
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
    pub(crate) mod say;
    pub(crate) mod table;
    pub(crate) mod topics;
}

mod deliver {
    pub(crate) mod measure;
    pub(crate) mod watch;
}

use std::io;
use std::io::Write as _;
use std::time::Duration;

use clap::Parser;

use crate::deliver::measure;
use crate::deliver::measure::Legs;
use crate::it::support;
use crate::steady::say;
use crate::steady::table::{Table, grouped};

/// Time from the last byte of an answer until a consumer has its events
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench deliver --")]
struct Args {
    /// How long each row is measured, after a warm-up of 5 s
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
    /// Pages per second, one row for each value
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', default_value = "1,2,5,10")]
    pages: Vec<u32>,
    /// Events per page
    #[arg(long, value_name = "NUMBER", default_value_t = 300)]
    events: u32,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Targets for p50 and p99, in milliseconds.
const TARGETS: (f64, f64) = (35.0, 120.0);

fn main() {
    let args = Args::parse();
    // `cargo test --all-targets` runs benchmarks too, but without `--bench`.
    if !args.bench {
        eprintln!("nothing measured: run `cargo bench --bench deliver`");
        return;
    }
    say::progress("starting a Kafka broker");
    let bootstrap = support::broker::shared();
    let mut table = Table::new([
        "pages a second",
        "pages",
        "p50, ms",
        "p99, ms",
        "longest, ms",
        "to the pages topic, p50 / p99",
        "then to an event topic, p50 / p99",
        "then to the consumer, p50 / p99",
    ]);
    for pages in args.pages {
        say::progress(format_args!("{pages} pages a second, {} events each", args.events));
        let seconds = Duration::from_secs(args.seconds);
        let legs = measure::run(bootstrap, pages, args.events, seconds);
        table.add(row(pages, &legs));
    }
    let mut text = table.text(args.markdown);
    text += &format!("\ntargets: p50 ≤ {} ms, p99 ≤ {} ms\n", TARGETS.0, TARGETS.1);
    io::stdout().write_all(text.as_bytes()).expect("stdout takes the table");
}

fn row(pages: u32, legs: &[Legs]) -> [String; 8] {
    let sorted = |of: &dyn Fn(&Legs) -> f64| {
        let mut millis: Vec<f64> = legs.iter().map(of).collect();
        millis.sort_by(f64::total_cmp);
        millis
    };
    let whole = sorted(&|it| it.visible);
    let both = |of: &dyn Fn(&Legs) -> f64| {
        let millis = sorted(of);
        format!("{:.0} / {:.0}", quantile(&millis, 0.5), quantile(&millis, 0.99))
    };
    [
        pages.to_string(),
        grouped(legs.len()),
        format!("{:.1}", quantile(&whole, 0.5)),
        format!("{:.1}", quantile(&whole, 0.99)),
        format!("{:.1}", quantile(&whole, 1.0)),
        both(&|it| it.forwarded),
        both(&|it| it.appended - it.forwarded),
        both(&|it| it.visible - it.appended),
    ]
}

/// A quantile of a sorted list; between two values the higher one.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "an index times a share is an index")]
    let index = (sorted.len().saturating_sub(1) as f64 * share).ceil() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
