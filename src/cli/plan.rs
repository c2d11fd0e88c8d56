//! `plan`: predicts whether the bridge would keep up with a load, without installing it.
//!
//! The bridge's own schedule polls a simulated Agora in simulated time, with several seeds. The
//! verdict goes to stdout, progress to stderr.

mod report;

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use clap::Args;
use tokio::time::Instant;

use self::report::PlanReport;
use super::Failure;
use crate::model::PAGE_LIMIT;
use crate::plan::{Tally, Trial, bridge};
use crate::schedule::Limits;
use crate::simulator::{AppScript, Burst, Load, Network, RampPoint, Script, Spread};

/// Time in which the load grows to its rate.
const GROWTH: Duration = Duration::from_secs(5);

/// Time from the start of the load to the start of the measurement.
const WARM_UP: Duration = Duration::from_secs(10);

/// Time that the bridge needs to make a page durable: an fsync on an ordinary disk.
const WORK: Duration = Duration::from_millis(5);

/// The shortest and steadiest round trip that is possible, in a data centre next to Agora.
const NEARBY: Spread = Spread::always(Duration::from_millis(5));

/// Time after which progress is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Will it keep up with your load? Simulate it and see what would be lost
#[derive(Clone, Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Plan {
    /// Events per second of one App ID, on average
    #[arg(long, value_name = "EVENTS", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// Fraction of the events at one endpoint (0 to 1); the other endpoint has the rest
    #[arg(long, value_name = "SHARE", default_value_t = 0.75, value_parser = share)]
    split: f64,
    /// Size of a burst on each endpoint, in events, on top of the rate
    #[arg(long, value_name = "EVENTS")]
    burst: Option<NonZeroU32>,
    /// Bursts per minute, evenly spaced
    #[arg(long, value_name = "N", default_value_t = 1.0, requires = "burst")]
    #[arg(value_parser = per_minute)]
    bursts_per_minute: f64,
    /// Range of round trip times to Agora; the two directions are drawn separately
    #[arg(long, value_name = "RANGE", default_value = "60ms..120ms")]
    rtt: Spread,
    /// Time from the head of a full page (1,000 events) to the end of its body; smaller pages take
    /// proportionally less
    #[arg(long, value_name = "TIME", default_value = "0s")]
    #[arg(value_parser = humantime::parse_duration)]
    page_time: Duration,
    /// How long each trial is measured, after a warm-up of 10 s
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// As in the configuration: `apps[].requests_per_second`
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10))]
    requests_per_second: u32,
    /// As in the configuration: `poll.shortest_interval`
    #[arg(long, value_name = "TIME", default_value = "250ms")]
    #[arg(value_parser = humantime::parse_duration)]
    shortest_interval: Duration,
    /// As in the configuration: `poll.longest_interval`
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    #[arg(value_parser = humantime::parse_duration)]
    longest_interval: Duration,
    /// Let both endpoints share one buffer of 2,000 events: the other reading of Agora's documents
    #[arg(long)]
    shared_buffer: bool,
    /// Number of trials, each with a different seed
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    seeds: u32,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

const TEACH: &str = "\
WHAT IS SIMULATED

  Agora answers at most 10 requests a second of an App ID, each with at most
  1,000 events, and keeps the newest 2,000 events of an endpoint. So the ceiling
  is 10,000 events a second, and polling an endpoint too late loses the events
  that were overwritten. This command lets the bridge's own schedule poll such
  an Agora in simulated time. It sends nothing over the network.

  Events arrive at random (a Poisson process). The load grows from zero to its
  rate within 5 seconds and is measured from the 10th second on: a jump from
  rest to thousands a second would be a burst; use --burst for those.
  Connections are already open and no request fails. The age of an event is the
  time until its answer has arrived; delivery to Kafka comes on top.

  A full page has 60 to 200 kB. On a short path it arrives with the head of the
  answer; on a long path or a slow line it takes several round trips more. Set
  that time with --page-time: the difference between curl's time_total and
  time_starttransfer for a full page.

EXAMPLES

  agora-rtm-bridge plan --rate 3000
  agora-rtm-bridge plan --rate 9500 --split 0.76 --rtt 60ms..120ms
  agora-rtm-bridge plan --rate 6000 --split 0.2 --rtt 100ms --page-time 700ms
  agora-rtm-bridge plan --rate 5 --burst 1990 --bursts-per-minute 2
  agora-rtm-bridge plan --rate 8000 --split 0.5 --shared-buffer
  agora-rtm-bridge plan --rate 40000 --json | jq .largest_sustainable_rate

EXIT CODES

  0 sustainable: nothing was lost in any trial; 1 not sustainable; 2 usage error.";

/// Remedies for a load that is not sustainable.
#[derive(Clone, Copy, Debug)]
struct Remedies {
    /// The largest rate without losses, to within one percent; zero if there is none.
    largest_rate: f64,
    /// Fraction of the events lost with the shortest and steadiest round trip.
    lost_nearby: f64,
}

/// Progress of the trials.
struct TrialProgress {
    begun: Instant,
    is_watched: bool,
    played: AtomicU64,
}

/// Simulates the load and prints the verdict.
pub(super) async fn run(args: Plan) -> Result<(), Failure> {
    if args.shortest_interval > args.longest_interval || args.shortest_interval.is_zero() {
        let message = "--shortest-interval must be above zero and at most --longest-interval";
        return Err(Failure { message: message.to_owned(), code: 2 });
    }
    let progress = TrialProgress::begin();
    let tally = args.play(args.rate, false, &progress);
    let remedies = (tally.measured_overwritten > 0).then(|| args.look_for_remedies(&progress));
    progress.end();
    let report = PlanReport::new(&args, &tally, remedies);
    let text = if args.json { report.json() } else { report.text() };
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(|error| Failure::of(&error))?;
    match report.sustainable {
        true => Ok(()),
        false => Err(Failure { message: "the load is not sustainable".to_owned(), code: 1 }),
    }
}

// === impl Plan ===

impl Plan {
    /// Plays this rate with each seed, on all cores; with `until_loss`, stops at the first loss.
    fn play(&self, rate: f64, until_loss: bool, progress: &TrialProgress) -> Tally {
        let (next, is_over) = (AtomicU64::new(1), AtomicBool::new(false));
        let work = || {
            let mut sum = Tally::default();
            while !is_over.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > u64::from(self.seeds) {
                    break;
                }
                let tally = self.trial(rate, seed).play(|now| bridge(self.limits(), now, seed));
                if until_loss && tally.measured_overwritten > 0 {
                    is_over.store(true, Ordering::Relaxed);
                }
                sum.add(&tally);
                progress.tell();
            }
            sum
        };
        let cores = thread::available_parallelism().map_or(1, |it| it.get());
        thread::scope(|scope| {
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            let mut sum = Tally::default();
            for worker in workers {
                sum.add(&worker.join().expect("a trial never panics"));
            }
            sum
        })
    }

    fn look_for_remedies(&self, progress: &TrialProgress) -> Remedies {
        let nearby = Self { rtt: NEARBY, page_time: Duration::ZERO, ..self.clone() };
        Remedies {
            largest_rate: self.largest_sustainable(progress),
            lost_nearby: nearby.play(self.rate, false, progress).measured_loss(),
        }
    }

    fn largest_sustainable(&self, progress: &TrialProgress) -> f64 {
        let ceiling = f64::from(self.requests_per_second) * PAGE_LIMIT as f64;
        let (mut low, mut high) = (0.0, self.rate.min(ceiling));
        let close = (high / 100.0).max(1.0);
        while high - low > close {
            let middle = (low + high) / 2.0;
            match self.play(middle, true, progress).measured_overwritten {
                0 => low = middle,
                _ => high = middle,
            }
        }
        low
    }

    fn limits(&self) -> Limits {
        Limits {
            requests_per_second: NonZeroU32::new(self.requests_per_second)
                .expect("the range of the argument begins at one"),
            shortest_interval: self.shortest_interval,
            longest_interval: self.longest_interval,
        }
    }

    fn trial(&self, rate: f64, seed: u64) -> Trial {
        let ends_at = WARM_UP + Duration::from_secs(self.seconds.into());
        let load = |share: f64| Load {
            ramp: vec![RampPoint { at: GROWTH, rate: rate * share }],
            bursts: self.bursts(seed, ends_at),
            ..Load::default()
        };
        let app = AppScript {
            user_events: load(self.split),
            channel_events: load(1.0 - self.split),
            ..AppScript::default()
        };
        let (page_time, shared_buffer) = (Some(self.page_time), self.shared_buffer);
        let network = Network { rtt: self.rtt, page_time, ..Network::default() };
        let script = Script { seed, apps: vec![app], network, shared_buffer, ..Script::default() };
        Trial { script, starts_at: Duration::ZERO, measured_from: WARM_UP, ends_at, work: WORK }
    }

    /// Evenly spaced bursts, with a different offset for each seed.
    fn bursts(&self, seed: u64, ends_at: Duration) -> Vec<Burst> {
        let Some(events) = self.burst else { return Vec::new() };
        let distance = Duration::from_secs(60).div_f64(self.bursts_per_minute);
        // The fractional part of multiples of the golden ratio fills a range evenly for any number
        // of seeds.
        let phase = (seed as f64 * 0.618_033_988_749_895).fract();
        let first = WARM_UP + distance.mul_f64(phase);
        let times = std::iter::successors(Some(first), |at| Some(*at + distance));
        times
            .take_while(|at| *at < ends_at)
            .map(|at| Burst { at, events: events.get(), over: Duration::ZERO })
            .collect()
    }
}

// === impl Progress ===

impl TrialProgress {
    fn begin() -> Self {
        let is_watched = io::stderr().is_terminal();
        Self { begun: Instant::now(), is_watched, played: AtomicU64::new(0) }
    }

    /// One more trial is done.
    fn tell(&self) {
        let played = self.played.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_watched && self.begun.elapsed() > SHOWN_AFTER {
            // Failing to print must not stop the plan.
            write!(io::stderr(), "\r{played} trials done …").ok();
        }
    }

    /// Clears the line.
    fn end(&self) {
        if self.is_watched && self.begun.elapsed() > SHOWN_AFTER {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.0, 1_000_000.0)
}

fn share(text: &str) -> Result<f64, String> {
    within(text, 0.0, 1.0)
}

fn per_minute(text: &str) -> Result<f64, String> {
    within(text, 0.01, 600.0)
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse().map_err(|_| "is not a number".to_owned())?;
    let is_within = (least..=most).contains(&number);
    if is_within { Ok(number) } else { Err(format!("must be between {least} and {most}")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        plan: Plan,
    }

    fn plan(line: &str) -> Plan {
        Arguments::try_parse_from(line.split_whitespace()).unwrap().plan
    }

    /// The report of a short trial with these arguments.
    fn report(line: &str) -> PlanReport {
        let plan = plan(&format!("plan --seconds 20 --seeds 2 --rtt 60ms {line}"));
        let progress = TrialProgress::begin();
        let tally = plan.play(plan.rate, false, &progress);
        let remedies = (tally.measured_overwritten > 0).then(|| plan.look_for_remedies(&progress));
        PlanReport::new(&plan, &tally, remedies)
    }

    #[test]
    fn an_easy_load_is_sustainable_and_the_first_line_says_so() {
        let report = report("--rate 2000");
        assert!(report.sustainable);
        let text = report.text();
        assert!(
            text.starts_with("Sustainable: no events are lost at 2,000 events a second"),
            "{text}"
        );
        assert!(report.age_p99_ms.unwrap() < 1_000, "{text}");
    }

    #[test]
    fn what_is_above_the_ceiling_is_not_and_the_way_out_is_named() {
        let report = report("--rate 25000 --split 0.5");
        assert!(!report.sustainable);
        // At best 10,000 events a second are fetched.
        assert!((0.55..0.75).contains(&report.lost_share), "{}", report.lost_share);
        let largest = report.largest_sustainable_rate.unwrap();
        assert!((5_000.0..10_000.0).contains(&largest), "{largest}");
        let text = report.text();
        assert!(text.starts_with("Not sustainable: "), "{text}");
        assert!(text.contains("over 3 App IDs") || text.contains("over 4 App IDs"), "{text}");
        assert!(text.contains("A shorter round trip would not be enough"), "{text}");
    }

    #[test]
    fn pages_that_take_longer_than_their_requests_are_planned_for() {
        let [at_once, slowly] = ["", "--page-time 700ms"]
            .map(|more| report(&format!("--rate 600 --split 0.5 {more}")).age_p99_ms.unwrap());
        assert!((at_once + 30..at_once + 300).contains(&slowly), "{at_once} ms, {slowly} ms");
        let text = report("--rate 25000 --page-time 2s").text();
        assert!(
            text.contains("with a steady 5 ms and pages that arrive at once, it still loses"),
            "{text}"
        );
    }

    #[test]
    fn a_burst_that_agora_can_not_hold_is_lost_at_any_rate() {
        let report = report("--rate 10 --burst 2500 --bursts-per-minute 6");
        assert!(!report.sustainable);
        assert_eq!(report.largest_sustainable_rate, None);
        assert!(report.text().contains("500"), "{}", report.text());
    }

    #[test]
    fn either_reading_of_the_buffer_can_be_planned_for() {
        assert!(report("--rate 8000 --split 0.5").sustainable);
        assert!(report("--rate 8000 --split 0.5 --shared-buffer").sustainable);
        let burst = "--rate 10 --burst 1500 --bursts-per-minute 6";
        assert!(report(burst).sustainable);
        assert!(!report(&format!("{burst} --shared-buffer")).sustainable);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "plan",
            "plan --rate -1",
            "plan --rate many",
            "plan --rate 1 --split 1.1",
            "plan --rate 1 --bursts-per-minute 2",
            "plan --rate 1 --requests-per-second 11",
            "plan --rate 1 --rtt 2ms..1ms",
            "plan --rate 1 --seeds 0",
            "plan --rate 1 --page-time 300kB",
        ] {
            assert!(Arguments::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_help_fits_a_terminal() {
        assert!(TEACH.lines().all(|line| line.chars().count() <= 82));
    }
}
