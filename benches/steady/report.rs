//! The results, next to their targets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;
use std::{fs, thread};

use super::load::Subject;
use super::table::{Table, grouped};
use super::{first_request, idle, load};

/// Collects results and formats them.
pub(crate) struct Report {
    cores: usize,
    loads: Vec<load::Outcome>,
    idle: Option<idle::Outcome>,
    first_requests: Vec<first_request::Outcome>,
}

/// One line of the table of loads.
struct Line {
    name: &'static str,
    figure: fn(&load::Outcome) -> f64,
    digits: usize,
    target: fn(u32) -> Option<f64>,
    /// Whether the ratio to the naive poller's figure is meaningful.
    is_compared: bool,
}

enum Column<'a> {
    Of(&'a load::Outcome),
    /// The figures of the bridge and of the naive poller.
    Ratio(&'a load::Outcome, &'a load::Outcome),
}

/// From this rate on the CPU target per event is lower, because more events share the cost of a
/// page.
const DENSE: u32 = 6_000;

const LINES: &[Line] = &[
    Line::plain("events made", |it| it.score.made as f64),
    Line::plain("delivered", |it| it.score.delivered as f64),
    Line { target: |_| Some(0.0), ..Line::plain("lost", |it| it.score.lost as f64) },
    Line::plain("… of these overwritten at Agora", |it| it.score.overwritten as f64),
    Line { target: |_| Some(0.0), ..Line::plain("twice", |it| it.score.twice as f64) },
    Line {
        target: |_| Some(0.0),
        ..Line::plain("out of order per key", |it| it.score.out_of_order as f64)
    },
    Line {
        target: |_| Some(200.0),
        is_compared: true,
        ..Line::plain("event → append, p50, ms", |it| it.percentile(0.5))
    },
    Line {
        target: |_| Some(400.0),
        is_compared: true,
        ..Line::plain("event → append, p99, ms", |it| it.percentile(0.99))
    },
    Line {
        is_compared: true,
        ..Line::plain("event → append, longest, ms", |it| it.percentile(1.0))
    },
    Line {
        digits: 1,
        target: |rate| Some(if rate >= DENSE { 10.0 } else { 15.0 }),
        is_compared: true,
        ..Line::plain("CPU per event, µs", load::Outcome::cpu_an_event)
    },
    Line {
        digits: 1,
        target: |_| Some(64.0),
        is_compared: true,
        ..Line::plain("peak memory, MB", |it| megabytes(it.peak_memory))
    },
    Line {
        digits: 1,
        is_compared: true,
        ..Line::plain("requests a second", |it| {
            it.requests_measured as f64 / it.offer.seconds.as_secs_f64()
        })
    },
    Line {
        target: |_| Some(10.0),
        ..Line::plain("most requests in a second", |it| it.requests.most_in_a_second as f64)
    },
    Line { target: |_| Some(0.0), ..Line::plain("429s", |it| it.requests.over_limit as f64) },
];

const IDLE_CORE: f64 = 1.0;
const IDLE_MEMORY: f64 = 32.0;
const FIRST_REQUEST: Duration = Duration::from_secs(1);

// === impl Report ===

impl Report {
    pub(crate) fn begin() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { cores, loads: Vec::new(), idle: None, first_requests: Vec::new() }
    }

    pub(crate) fn add_load(&mut self, outcome: load::Outcome) {
        self.loads.push(outcome);
    }

    pub(crate) fn add_idle(&mut self, outcome: idle::Outcome) {
        self.idle = Some(outcome);
    }

    pub(crate) fn add_first_requests(&mut self, outcomes: Vec<first_request::Outcome>) {
        self.first_requests = outcomes;
    }

    /// All tables, then the missed targets.
    pub(crate) fn text(&self, markdown: bool, threads: bool) -> String {
        let mut missed = Vec::new();
        let mut parts = vec![self.machine()];
        if !self.loads.is_empty() {
            parts.push(self.load_table(&mut missed).text(markdown));
        }
        if let Some(idle) = &self.idle {
            parts.push(idle_table(idle, &mut missed).text(markdown));
        }
        if !self.first_requests.is_empty() {
            parts.push(self.first_request_table(&mut missed).text(markdown));
        }
        if threads {
            parts.extend(
                self.loads.iter().map(|it| by_thread(&it.offer.title(), &it.usage.threads)),
            );
            parts.extend(self.idle.iter().map(|it| by_thread("idle", &it.usage.threads)));
        }
        parts.push(match missed.as_slice() {
            [] => "Every target is met.\n".to_owned(),
            missed => format!("Missed: {}.\n", missed.join("; ")),
        });
        parts.join("\n")
    }

    fn machine(&self) -> String {
        let of = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let processor = of("/proc/cpuinfo", "model name");
        let memory = of("/proc/meminfo", "MemTotal")
            .and_then(|it| it.strip_suffix(" kB")?.parse::<f64>().ok())
            .map_or_else(String::new, |kib| format!(", {:.0} GB", kib * 1_024.0 / 1e9));
        let processor = processor.unwrap_or_else(|| "unknown processor".to_owned());
        let mut text = format!(
            "{} cores ({processor}){memory}; Kafka, the simulated Agora and the subject share them.\n",
            self.cores
        );
        for load in &self.loads {
            let busy = load.usage.machine.as_secs_f64() / load.offer.seconds.as_secs_f64();
            let share = 100.0 * busy / self.cores as f64;
            writeln!(
                text,
                "Whole machine busy while measuring {}: {share:.0} %.",
                load.offer.title()
            )
            .expect("writing into memory never fails");
        }
        text
    }

    fn load_table(&self, missed: &mut Vec<String>) -> Table {
        let columns = self.columns();
        let mut head = vec![String::new()];
        head.extend(columns.iter().map(|column| match column {
            Column::Of(outcome) => outcome.offer.title(),
            Column::Ratio(..) => "bridge ÷ naive".to_owned(),
        }));
        head.push("target".to_owned());
        let mut table = Table::new(head);
        for line in LINES {
            let mut row = vec![line.name.to_owned()];
            row.extend(columns.iter().map(|column| match column {
                Column::Of(outcome) => number((line.figure)(outcome), line.digits),
                Column::Ratio(bridge, naive) if line.is_compared => {
                    format!("{:.2}", (line.figure)(bridge) / (line.figure)(naive))
                }
                Column::Ratio(..) => String::new(),
            }));
            row.push(self.judge(line, missed));
            table.add(row);
        }
        table
    }

    /// All results, and after each naive one the bridge's ratio under the same load.
    fn columns(&self) -> Vec<Column<'_>> {
        let bridge = |rate| self.bridges().find(|it| it.offer.rate == rate);
        let mut columns = Vec::new();
        for outcome in &self.loads {
            columns.push(Column::Of(outcome));
            if outcome.offer.subject == Subject::Naive {
                columns.extend(bridge(outcome.offer.rate).map(|it| Column::Ratio(it, outcome)));
            }
        }
        columns
    }

    /// The targets of a line, and whether the bridge missed one. The naive poller has no targets.
    fn judge(&self, line: &Line, missed: &mut Vec<String>) -> String {
        let mut targets = Vec::new();
        for outcome in self.bridges() {
            let Some(target) = (line.target)(outcome.offer.rate) else { continue };
            targets.push(if target > 0.0 { format!("≤ {target}") } else { "0".to_owned() });
            let value = (line.figure)(outcome);
            if value > target {
                let value = number(value, line.digits);
                missed.push(format!("{}, {}: {value}", outcome.offer.title(), line.name));
            }
        }
        targets.dedup();
        targets.join(", ")
    }

    fn bridges(&self) -> impl Iterator<Item = &load::Outcome> {
        self.loads.iter().filter(|it| it.offer.subject == Subject::Bridge)
    }

    fn first_request_table(&self, missed: &mut Vec<String>) -> Table {
        let mut table = Table::new(["first request after the start", "ms", "target"]);
        for first_request::Outcome { what, after } in &self.first_requests {
            let text = match after {
                Some(after) => after.as_millis().to_string(),
                None => format!("none in {} s", first_request::LIMIT.as_secs()),
            };
            if after.is_none_or(|after| after > FIRST_REQUEST) {
                missed.push(format!("first request, {what}: {text}"));
            }
            table.add([*what, &text, &format!("≤ {}", FIRST_REQUEST.as_millis())]);
        }
        table
    }
}

fn idle_table(idle: &idle::Outcome, missed: &mut Vec<String>) -> Table {
    let mut table = Table::new(["bridge, idle", "measured", "target"]);
    let requests = idle.requests as f64 / idle.over.as_secs_f64();
    for (name, value, digits, target) in [
        ("share of a core, %", 100.0 * idle.core(), 2, Some(IDLE_CORE)),
        ("peak memory, MB", megabytes(idle.peak_memory), 1, Some(IDLE_MEMORY)),
        ("requests a second", requests, 2, None),
    ] {
        let text = number(value, digits);
        if target.is_some_and(|target| value > target) {
            missed.push(format!("idle, {name}: {text}"));
        }
        let target = target.map_or_else(String::new, |it| format!("≤ {it}"));
        table.add([name, &text, &target]);
    }
    table
}

fn by_thread(title: &str, threads: &BTreeMap<String, Duration>) -> String {
    let mut threads: Vec<_> = threads.iter().filter(|(_, cpu)| !cpu.is_zero()).collect();
    threads.sort_by_key(|(_, cpu)| std::cmp::Reverse(**cpu));
    let mut table = Table::new([&format!("threads of {title}"), "CPU, ms"]);
    for (name, cpu) in threads {
        table.add([name.as_str(), &cpu.as_millis().to_string()]);
    }
    table.text(false)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn number(value: f64, digits: usize) -> String {
    grouped(format_args!("{value:.digits$}"))
}

// === impl Line ===

impl Line {
    const fn plain(name: &'static str, figure: fn(&load::Outcome) -> f64) -> Self {
        Self { name, figure, digits: 0, target: |_| None, is_compared: false }
    }
}

// === impl load::Outcome ===

impl load::Outcome {
    fn percentile(&self, share: f64) -> f64 {
        self.score.latency.value_at_quantile(share) as f64
    }
}
