//! How close to Agora's limit one App ID can be drained, in simulated time.
//!
//! `cargo bench --bench ceiling` applies loads near the ceiling of ten requests of 1,000 events a
//! second to the bridge's schedule, to two typical scripts, and to a program with perfect knowledge
//! (`foresight.rs`), over fixed and random round trips. Only the counting simulator runs, so a
//! thousand seeds take minutes. The table goes to stdout, progress to stderr.

#[path = "steady/table.rs"]
mod table;

mod ceiling {
    pub(crate) mod cases;
    pub(crate) mod foresight;
    pub(crate) mod rivals;
}

use std::io::Write as _;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use agora_rtm_bridge::plan::{Tally, Trial, bridge};
use agora_rtm_bridge::schedule::Limits;
use clap::{Parser, ValueEnum};
use tokio::time::Instant;

use crate::ceiling::cases::{Case, cases};
use crate::ceiling::foresight;
use crate::ceiling::rivals::{Habit, Script};
use crate::table::{Table, grouped};

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Loads near Agora's limit, in simulated time
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench ceiling --")]
struct Args {
    /// Number of seeds per row
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = 1..)]
    seeds: i64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from_seed: u64,
    /// How long steady loads are measured, after 16 s of growth and warm-up
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = 1..=3_600)]
    seconds: i64,
    /// Evenly spaced events for steady loads, instead of random ones
    #[arg(long)]
    even: bool,
    /// All combinations of rate, round trip and split
    #[arg(long)]
    all: bool,
    /// Only these programs
    #[arg(long, value_name = "PROGRAM", value_delimiter = ',')]
    only: Vec<Player>,
    /// Only rows whose load or round trip contains this text
    #[arg(long, value_name = "TEXT")]
    row: Option<String>,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The program that polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Player {
    /// The bridge's schedule.
    Bridge,
    /// A script that asks each endpoint once a second.
    Interval,
    /// A script that polls again while pages are full, with half of the rate limit for each
    /// endpoint.
    Loop,
    /// Perfect knowledge.
    Foresight,
}

/// A row of the table, to be filled.
struct Row {
    case: Case,
    player: Player,
    /// The results of all seeds, and the seeds with losses.
    came: Mutex<(Tally, Vec<u64>)>,
}

fn main() {
    let args = Args::parse();
    if !args.bench {
        // `cargo test --all-targets` runs benchmarks too, but without `--bench`.
        eprintln!("nothing measured: run `cargo bench --bench ceiling`");
        return;
    }
    let rows = rows(&args);
    play(&args, &rows);
    let text = report(&rows).text(args.markdown);
    io::stdout().write_all(text.as_bytes()).expect("stdout takes the table");
}

fn rows(args: &Args) -> Vec<Row> {
    let players = Player::value_variants().iter().copied();
    let players: Vec<Player> =
        players.filter(|it| args.only.is_empty() || args.only.contains(it)).collect();
    let is_wanted = |case: &Case| {
        let name = format!("{} {}", case.load(), case.round_trip());
        args.row.as_ref().is_none_or(|text| name.contains(text))
    };
    let cases = cases(args.all).into_iter().filter(is_wanted);
    cases
        .flat_map(|case| {
            // Perfect knowledge only supports separate buffers.
            let one_buffer = case.has_one_buffer();
            let knows = move |it: &&Player| **it != Player::Foresight || !one_buffer;
            players.iter().filter(knows).map(move |player| Row {
                case: case.clone(),
                player: *player,
                came: Mutex::default(),
            })
        })
        .collect()
}

/// Runs every row with every seed, on all cores.
fn play(args: &Args, rows: &[Row]) {
    let seeds = args.from_seed..args.from_seed + args.seeds.unsigned_abs();
    let seconds = u32::try_from(args.seconds).expect("an hour at most");
    let jobs = rows.len() as u64 * args.seeds.unsigned_abs();
    let (next, done) = (AtomicU64::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            // Seed by seed, so that the remaining time can be estimated from the elapsed time.
            let (seed, row) = (job / rows.len().max(1) as u64, job % rows.len().max(1) as u64);
            let row = usize::try_from(row).ok().and_then(|row| rows.get(row));
            let (Some(row), true) = (row, job < jobs) else { return };
            row.play(seeds.start + seed, seconds, args.even);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let cores = thread::available_parallelism().map_or(1, |it| it.get());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let begun = Instant::now();
        let mut told = begun;
        while workers.iter().any(|it| !it.is_finished()) {
            thread::sleep(Duration::from_millis(20));
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                let done = done.load(Ordering::Relaxed);
                let share = (done as f64 / jobs as f64).max(1e-6);
                let left = begun.elapsed().mul_f64((1.0 - share) / share).as_secs();
                eprintln!("── {done} of {jobs} trials, about {left} s left");
            }
        }
    });
}

fn report(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "load",
        "RTT",
        "program",
        "overflowed",
        "events",
        "seeds",
        "requests/s",
        "most in 1 s",
        "429",
        "age p50",
        "p99",
        "fullest",
        "reordered",
    ]);
    for row in rows {
        let came = row.came.lock().unwrap_or_else(PoisonError::into_inner);
        let (tally, losing) = &*came;
        let overwritten = row.overwritten(tally);
        let age = |share| match tally.ages.quantile(share) {
            Some(age) => format!("{} ms", grouped(age.as_millis())),
            None => "–".to_owned(),
        };
        let share = match overwritten {
            0 => "0".to_owned(),
            lost => format!("{:.3} %", 100.0 * lost as f64 / tally.events.made.max(1) as f64),
        };
        table.add([
            row.case.load(),
            row.case.round_trip(),
            row.player.name().to_owned(),
            share,
            grouped(overwritten),
            losing.len().to_string(),
            format!("{:.1}", tally.requests_per_second()),
            tally.requests.most_in_a_second.to_string(),
            grouped(tally.requests.over_limit),
            age(0.5),
            age(0.99),
            grouped(tally.events.fullest),
            grouped(tally.out_of_order),
        ]);
    }
    table
}

// === impl Row ===

impl Row {
    fn play(&self, seed: u64, seconds: u32, even: bool) {
        let tally = self.player.play(&self.case.trial(seed, seconds, even), seed);
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        if self.overwritten(&tally) > 0 {
            came.1.push(seed);
        }
        came.0.add(&tally);
    }

    /// The events that count as overflowed.
    fn overwritten(&self, tally: &Tally) -> u64 {
        let events = tally.events;
        if self.case.starts_late() { events.overwritten_of_later } else { events.overwritten }
    }
}

// === impl Player ===

impl Player {
    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Interval => "every second",
            Self::Loop => "while full",
            Self::Foresight => "foresight",
        }
    }

    fn play(self, trial: &Trial, seed: u64) -> Tally {
        match self {
            Self::Bridge => trial.play(|now| bridge(limits(), now, seed)),
            Self::Interval => trial.play(|now| Script::new(Habit::EverySecond, now)),
            Self::Loop => trial.play(|now| Script::new(Habit::WhileFull, now)),
            Self::Foresight => foresight::play(trial),
        }
    }
}

/// The bridge's default settings.
fn limits() -> Limits {
    Limits {
        requests_per_second: NonZeroU32::new(10).expect("ten"),
        shortest_interval: Duration::from_millis(250),
        longest_interval: Duration::from_millis(500),
    }
}
