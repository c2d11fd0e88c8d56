//! The results, next to their targets.

use std::collections::BTreeMap;
use std::time::Duration;

use super::measure::Outcome;
use super::part::Part;
use crate::steady::table::{Table, grouped};

/// One line of the table.
struct Line {
    name: &'static str,
    figure: fn(&Outcome) -> f64,
    digits: usize,
    target: fn(Part) -> Option<f64>,
}

const LINES: &[Line] = &[
    Line::plain("events made", |it| it.score.made as f64),
    Line {
        digits: 3,
        target: |part| match part {
            Part::CeilingFixed | Part::CeilingDrawn | Part::CeilingFar => Some(0.1),
            Part::SlowBodies => Some(0.5),
            Part::Many | Part::IdleMany | Part::FailingMany => Some(0.0),
        },
        ..Line::plain("overflowed, %", |it| 100.0 * it.overflowed())
    },
    Line {
        digits: 3,
        ..Line::plain("the same by `plan`, %", |it| {
            it.offer.planned_overflow().map_or(f64::NAN, |share| 100.0 * share)
        })
    },
    Line { target: NEVER, ..Line::plain("missing", |it| it.missing() as f64) },
    Line { target: NEVER, ..Line::plain("twice", |it| it.score.twice as f64) },
    Line { target: NEVER, ..Line::plain("inversions per key", |it| it.score.out_of_order as f64) },
    Line { digits: 1, ..Line::plain("requests a second", |it| it.asked as f64 / seconds(it.over)) },
    Line {
        target: |_| Some(10.0),
        ..Line::plain("most in any second of an app", |it| it.requests.most_in_a_second as f64)
    },
    Line { target: NEVER, ..Line::plain("429s", |it| it.requests.over_limit as f64) },
    Line::plain("age, p50, ms", |it| it.score.latency.value_at_quantile(0.5) as f64),
    Line::plain("age, p99, ms", |it| it.score.latency.value_at_quantile(0.99) as f64),
    Line { digits: 1, ..Line::plain("CPU per event, µs", Outcome::cpu_an_event) },
    Line { digits: 1, ..Line::plain("CPU per request, µs", Outcome::cpu_a_request) },
    Line {
        digits: 1,
        target: |part| (part == Part::IdleMany).then_some(15.0),
        ..Line::plain("share of a core, %", |it| 100.0 * it.core())
    },
    Line {
        digits: 1,
        target: |part| (part == Part::FailingMany).then_some(10.0),
        ..Line::plain("the same, times that of idle-many", |it| {
            it.idle_core.map_or(f64::NAN, |idle| it.core() / idle)
        })
    },
    Line {
        digits: 2,
        target: |part| (part == Part::FailingMany).then_some(2.0),
        ..Line::plain("to report a failing feed, µs", |it| {
            it.failing_call.map_or(f64::NAN, |it| 1e6 * it.as_secs_f64())
        })
    },
    Line {
        digits: 1,
        target: |part| (part == Part::IdleMany).then_some(150.0),
        ..Line::plain("peak memory, MB", |it| it.peak_memory as f64 / 1e6)
    },
    Line {
        target: |part| (part != Part::FailingMany).then_some(0.0),
        ..Line::plain("warnings and errors in the log", |it| {
            it.complaints.values().sum::<usize>() as f64
        })
    },
    Line::plain("connections opened", |it| it.connections as f64),
    Line::plain("start: first request, ms", |it| millis(it.start.first)),
    Line {
        target: |part| (part != Part::FailingMany).then_some(2_000.0),
        ..Line::plain("start: then every feed asked, ms", |it| millis(it.start.all_asked))
    },
    Line::plain("start: requests in 3 s", |it| it.start.requests as f64),
    Line::plain("start: most within 100 ms", |it| it.start.at_once as f64),
    Line::plain("start: connections in 3 s", |it| it.start.connections as f64),
    Line {
        digits: 1,
        ..Line::plain("simulated Agora: share of a core, %", |it| {
            100.0 * seconds(it.simulator) / seconds(it.over)
        })
    },
    Line {
        digits: 1,
        ..Line::plain("simulated Agora: CPU per event, µs", |it| {
            1e6 * seconds(it.simulator) / it.handed_over as f64
        })
    },
    Line {
        digits: 0,
        ..Line::plain("whole machine busy, % of a core", |it| {
            100.0 * seconds(it.usage.machine) / seconds(it.over)
        })
    },
];

const NEVER: fn(Part) -> Option<f64> = |_| Some(0.0);

/// The table, then the missed targets and the log's warnings and errors.
pub(crate) fn text(outcomes: &[Outcome], markdown: bool, threads: bool) -> String {
    let mut missed = Vec::new();
    let mut head = vec![String::new()];
    head.extend(outcomes.iter().map(|it| it.offer.title()));
    head.push("target".to_owned());
    let mut table = Table::new(head);
    for line in LINES {
        let mut row = vec![line.name.to_owned()];
        row.extend(outcomes.iter().map(|it| number((line.figure)(it), line.digits)));
        row.push(line.judge(outcomes, &mut missed));
        table.add(row);
    }
    let mut text = table.text(markdown);
    for outcome in outcomes {
        if threads {
            text += &by_thread(outcome);
        }
        for (said, times) in &outcome.complaints {
            text += &format!("{}: {times} × {said}\n", outcome.offer.title());
        }
    }
    text + &match missed.as_slice() {
        [] => "Every target is met.\n".to_owned(),
        missed => format!("Missed: {}.\n", missed.join("; ")),
    }
}

fn by_thread(outcome: &Outcome) -> String {
    let threads: &BTreeMap<String, Duration> = &outcome.usage.threads;
    let mut threads: Vec<_> = threads.iter().filter(|(_, cpu)| !cpu.is_zero()).collect();
    threads.sort_by_key(|(_, cpu)| std::cmp::Reverse(**cpu));
    let title = format!("threads of {}", outcome.offer.title());
    let mut table = Table::new([title.as_str(), "CPU, ms", "µs a request"]);
    for (name, cpu) in threads {
        let each = seconds(*cpu) * 1e6 / outcome.asked as f64;
        table.add([name.as_str(), &cpu.as_millis().to_string(), &number(each, 1)]);
    }
    format!("\n{}", table.text(false))
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { grouped(format_args!("{value:.digits$}")) } else { "–".to_owned() }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn millis(duration: Option<Duration>) -> f64 {
    duration.map_or(f64::INFINITY, |it| (1e3 * it.as_secs_f64()).round())
}

// === impl Line ===

impl Line {
    const fn plain(name: &'static str, figure: fn(&Outcome) -> f64) -> Self {
        Self { name, figure, digits: 0, target: |_| None }
    }

    /// The targets, and whether one was missed.
    fn judge(&self, outcomes: &[Outcome], missed: &mut Vec<String>) -> String {
        let mut targets = Vec::new();
        for outcome in outcomes {
            let Some(target) = (self.target)(outcome.offer.part) else { continue };
            targets.push(if target > 0.0 { format!("≤ {target}") } else { "0".to_owned() });
            let value = (self.figure)(outcome);
            if value > target {
                let value = number(value, self.digits);
                missed.push(format!("{}, {}: {value}", outcome.offer.title(), self.name));
            }
        }
        targets.dedup();
        targets.join(", ")
    }
}
