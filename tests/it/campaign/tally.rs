//! What a campaign brought, added up, and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::Order;
use super::round::Report;
use super::table::{Table, grouped};

/// All rounds together.
#[derive(Default)]
pub(crate) struct Tally {
    /// By kind; rounds with several have a row of their own.
    rows: BTreeMap<String, Row>,
    /// How often each kind was done, alone or with others.
    kinds: BTreeMap<String, u64>,
    gaps: BTreeMap<String, (usize, usize)>,
    stops: Vec<Stopped>,
    catch_ups: Vec<(CaughtUp, Ages)>,
    /// For each answer that a death took along: how long after it was sent.
    died_after: Vec<Duration>,
    most_requests_in_a_second: u64,
}

/// How a stop went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped {
    pub(crate) took: Duration,
    pub(crate) kafka_was_away: bool,
    pub(crate) left_nothing: bool,
}

/// How what had gathered grew less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaughtUp {
    /// Events that waited when the broker was started again.
    pub(crate) waited: i64,
    /// When the broker answered again.
    pub(crate) back: Duration,
    /// The last moment before anything was delivered.
    pub(crate) begun: Duration,
    /// When nearly nothing waited any more.
    pub(crate) end: Duration,
    /// Between the two.
    pub(crate) delivered: i64,
}

/// How old events were when they were asked for, while the broker was away and while the bridge
/// caught up: p50, p99 and most.
type Ages = [[Duration; 3]; 2];

/// Rounds of a kind.
#[derive(Clone, Default)]
struct Row {
    rounds: u64,
    made: usize,
    published: usize,
    overwritten: usize,
    lost_answers: usize,
    lost_events: usize,
    gaps: usize,
    true_gaps: usize,
    rests: Vec<Duration>,
    peak_memory: u64,
}

const TITLES: [&str; 14] = [
    "kind",
    "rounds",
    "events",
    "published",
    "missing",
    "twice",
    "out of order",
    "answers lost in flight",
    "events in them",
    "gaps",
    "true gaps",
    "overwritten",
    "rest p50 / max, s",
    "peak memory, MB",
];

// === impl Tally ===

impl Tally {
    pub(super) fn add(&mut self, order: &Order, report: Report) {
        let Report { finding, done, rest, most_requests_in_a_second } = report;
        let name = match &order.kinds[..] {
            [kind] => kind.name(),
            _ => "several at once".to_owned(),
        };
        for kind in &order.kinds {
            *self.kinds.entry(kind.name()).or_default() += 1;
        }
        let row = self.rows.entry(name).or_default();
        row.rounds += 1;
        row.made += finding.made;
        row.published += finding.published;
        row.overwritten += finding.overwritten;
        row.lost_answers += finding.lost.len();
        row.lost_events += finding.lost_events();
        row.rests.push(rest);
        row.peak_memory = row.peak_memory.max(done.peak_memory);
        for (cause, (published, are_true)) in finding.gaps {
            row.gaps += published;
            row.true_gaps += are_true;
            let sums = self.gaps.entry(cause).or_default();
            (sums.0, sums.1) = (sums.0 + published, sums.1 + are_true);
        }
        self.died_after.extend(finding.lost.iter().filter_map(|lost| lost.died_after));
        self.stops.extend(done.stops);
        if let Some(it) = done.caught_up {
            let ages = |during: &dyn Fn(Duration) -> bool| {
                let of_it = finding.ages.iter().filter(|(at, _)| during(*at));
                let mut ages: Vec<Duration> = of_it.map(|(_, age)| *age).collect();
                ages.sort_unstable();
                [0.5, 0.99, 1.0].map(|share| quantile(&ages, share))
            };
            let while_away = ages(&|at| at < it.back);
            let catching_up = ages(&|at| it.back <= at && at < it.end);
            self.catch_ups.push((it, [while_away, catching_up]));
        }
        self.most_requests_in_a_second =
            self.most_requests_in_a_second.max(most_requests_in_a_second);
    }

    /// Everything, as text for people.
    pub(crate) fn text(&self) -> String {
        let mut text = self.table();
        let out = &mut text;
        let written = self.write_remarks(out);
        written.expect("writing into memory never fails");
        text
    }

    fn table(&self) -> String {
        let mut table = Table::new(TITLES);
        for (name, row) in &self.rows {
            table.add(row.cells(name));
        }
        if self.rows.len() > 1 {
            table.add(self.total().cells("all"));
        }
        table.text(true)
    }

    fn write_remarks(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        let list = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<_> =
                counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            counts.join(", ")
        };
        writeln!(out, "done, alone or with others: {}", list(&self.kinds))?;
        for (cause, (published, are_true)) in &self.gaps {
            writeln!(out, "gaps by {cause}: {published}, of which {are_true} tell of a loss")?;
        }
        let mut died_after = self.died_after.clone();
        died_after.sort_unstable();
        if let (Some(longest), count) = (died_after.last(), died_after.len()) {
            writeln!(
                out,
                "lost with a process: {count} answers; the longest that one had been sent before \
                 it died: {:.1} ms",
                millis(*longest),
            )?;
        }
        for (what, kafka_was_away) in [("stops, broker well", false), ("stops, broker away", true)]
        {
            let stops = self.stops.iter().filter(|it| it.kafka_was_away == kafka_was_away);
            let left = stops.clone().filter(|it| !it.left_nothing).count();
            let mut took: Vec<Duration> = stops.map(|it| it.took).collect();
            took.sort_unstable();
            if !took.is_empty() {
                let [p50, p99, max] = [0.5, 0.99, 1.0].map(|it| millis(quantile(&took, it)));
                let count = took.len();
                writeln!(
                    out,
                    "{what}: {count}, p50 {p50:.0} ms, p99 {p99:.0} ms, longest {max:.0} ms; \
                     {left} left something for the next start"
                )?;
            }
        }
        for (it, ages) in &self.catch_ups {
            let seconds = (it.end - it.begun).as_secs_f64();
            writeln!(
                out,
                "outage: {} events waited; {:.1} s after the broker was back it began, and \
                 delivered {} in {seconds:.1} s: {:.0} a second",
                it.waited,
                (it.begun.saturating_sub(it.back)).as_secs_f64(),
                it.delivered,
                it.delivered as f64 / seconds,
            )?;
            for (when, [p50, p99, max]) in ["before it was back", "catching up"].iter().zip(ages) {
                let [p50, p99, max] = [p50, p99, max].map(|it| millis(*it));
                writeln!(
                    out,
                    "    age of events when asked for, {when}: p50 {p50:.0} ms, p99 {p99:.0} ms, \
                     most {max:.0} ms"
                )?;
            }
        }
        writeln!(
            out,
            "most requests for an App ID in a second: {}",
            self.most_requests_in_a_second
        )?;
        let rounds: u64 = self.rows.values().map(|row| row.rounds).sum();
        writeln!(out, "accounts: balanced, and as the ledger says, after each of {rounds} rounds")
    }

    fn total(&self) -> Row {
        self.rows.values().fold(Row::default(), |mut sum, row| {
            sum.rounds += row.rounds;
            sum.made += row.made;
            sum.published += row.published;
            sum.overwritten += row.overwritten;
            sum.lost_answers += row.lost_answers;
            sum.lost_events += row.lost_events;
            sum.gaps += row.gaps;
            sum.true_gaps += row.true_gaps;
            sum.rests.extend(&row.rests);
            sum.peak_memory = sum.peak_memory.max(row.peak_memory);
            sum
        })
    }
}

// === impl Row ===

impl Row {
    fn cells(&self, name: &str) -> [String; 14] {
        let mut rests = self.rests.clone();
        rests.sort_unstable();
        let [p50, max] = [0.5, 1.0].map(|share| quantile(&rests, share).as_secs_f64());
        // Each handed-over event is published once, or lost with an answer that a gap tells of.
        let missing = self.made - self.overwritten - self.published - self.lost_events;
        [
            name.to_owned(),
            grouped(self.rounds),
            grouped(self.made),
            grouped(self.published),
            grouped(missing),
            // Ends the campaign: what is added up has none.
            "0".to_owned(),
            "0".to_owned(),
            grouped(self.lost_answers),
            grouped(self.lost_events),
            grouped(self.gaps),
            grouped(self.true_gaps),
            grouped(self.overwritten),
            format!("{p50:.1} / {max:.1}"),
            format!("{:.1}", self.peak_memory as f64 / 1e6),
        ]
    }
}

/// Of a sorted list.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, reason = "an index times a share is an index")]
    let index = (last as f64 * share).ceil() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
