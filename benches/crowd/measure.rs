//! One part, from the start of the process to the last record read.

use std::collections::BTreeMap;
use std::time::Duration;

use agora_rtm_bridge::simulator::Requests;

use super::conditions;
use super::part::{Offer, STEADY_FROM};
use super::start::Start;
use crate::steady::agora::{Agora, THREAD};
use crate::steady::meter::{Meter, Usage};
use crate::steady::score::{Score, score};
use crate::steady::{say, topics};
use crate::support::consume;
use crate::support::names::Names;
use crate::support::process::Bridge;

/// The results of a part.
pub(crate) struct Outcome {
    pub(crate) offer: Offer,
    pub(crate) start: Start,
    /// All events, from the first to the last.
    pub(crate) score: Score,
    /// CPU time of the bridge, in the measured time.
    pub(crate) usage: Usage,
    /// CPU time of the simulated Agora's thread, in the measured time.
    pub(crate) simulator: Duration,
    /// Events that Agora handed over in that time.
    pub(crate) handed_over: u64,
    /// Requests in that time.
    pub(crate) asked: u64,
    pub(crate) over: Duration,
    /// Since the start.
    pub(crate) requests: Requests,
    pub(crate) connections: u64,
    /// In bytes, since the start.
    pub(crate) peak_memory: u64,
    /// Time to report a failure, with as many conditions and failures.
    pub(crate) failing_call: Option<Duration>,
    /// The share of a core that the part with idle App IDs took in the same run.
    pub(crate) idle_core: Option<f64>,
    /// Distinct warnings and errors in the log, with the number of each.
    pub(crate) complaints: BTreeMap<String, usize>,
}

/// A snapshot of the counters.
struct Moment {
    at: Duration,
    usage: Usage,
    simulator: Duration,
    handed_over: u64,
    asked: u64,
}

/// What librdkafka logs at every start, or about a broker that has just started.
const USUAL: [&str; 2] = ["CONFWARN", "Coordinator load in progress: retrying"];

/// Longer than the bridge's `shutdown_grace`.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Measures one part.
pub(crate) fn run(bootstrap: &str, offer: Offer) -> Outcome {
    let title = offer.title();
    say::progress(&title);
    let names = Names::unique("crowd");
    topics::create(bootstrap, &names);
    let failing_call = conditions::failing_call(&offer);
    let mut agora = Agora::serve(offer.scripts(), offer.network());
    for (_, app) in agora.apps.iter_mut().enumerate().filter(|(app, _)| offer.is_unauthorised(*app))
    {
        app.customer_secret = "that of another app".to_owned();
    }
    let config = names.kafka_tables(bootstrap) + &agora.app_tables();
    let begun = agora.now();
    let mut bridge = Bridge::start(&config);
    let start = Start::watch(&agora, 2 * offer.apps, begun);
    // A bridge never becomes ready while Agora refuses an app.
    if !(0..offer.apps).any(|app| offer.fails(app)) {
        bridge.wait_ready();
    }
    let (meter, own) = (Meter::of(&bridge.data_dir()), Meter::own());

    agora.wait_for("the load to grow", STEADY_FROM);
    let before = Moment::now(&agora, &meter, &own);
    agora.wait_for("measuring", STEADY_FROM + offer.seconds);
    let then = Moment::now(&agora, &meter, &own);
    agora.come_to_rest();
    let peak_memory = meter.peak_memory();
    bridge.terminate();
    let status = bridge.wait(STOP_LIMIT);
    assert!(status.success(), "the bridge ended with {status}:\n{}", bridge.log());

    say::progress(format_args!("{title}: reading all records"));
    let records = consume::read_all(bootstrap, &[&names.user_events, &names.channel_events]);
    let measured = agora.wall_clock(before.at)..agora.wall_clock(then.at);
    Outcome {
        offer,
        start,
        score: agora.ledger(|ledger| score(ledger.events(), &records, measured)),
        usage: then.usage - before.usage,
        simulator: then.simulator.saturating_sub(before.simulator),
        handed_over: then.handed_over - before.handed_over,
        asked: then.asked - before.asked,
        over: then.at - before.at,
        requests: agora.ledger(|ledger| ledger.all_requests()),
        connections: agora.ledger(|ledger| ledger.connections()),
        peak_memory,
        failing_call,
        idle_core: None,
        complaints: complaints(&bridge.log()),
    }
}

/// Warnings and errors, without their times and variable parts.
fn complaints(log: &str) -> BTreeMap<String, usize> {
    let mut complaints = BTreeMap::new();
    for line in log.lines().filter(|line| !USUAL.iter().any(|usual| line.contains(usual))) {
        let Some(at) = [" WARN ", " ERROR "].iter().find_map(|level| line.find(level)) else {
            continue;
        };
        let text = line.get(at..).unwrap_or_default().trim();
        let text = text.split_once('=').map_or(text, |(said, _)| said);
        *complaints.entry(text.to_owned()).or_default() += 1;
    }
    complaints
}

// === impl Moment ===

impl Moment {
    fn now(agora: &Agora, meter: &Meter, own: &Meter) -> Self {
        let simulator = own.usage().threads.get(THREAD).copied().unwrap_or_default();
        agora.ledger(|ledger| Self {
            at: agora.now(),
            usage: meter.usage(),
            simulator,
            handed_over: ledger.total().delivered,
            asked: ledger.all_requests().asked,
        })
    }
}

// === impl Outcome ===

impl Outcome {
    /// CPU time (user and system) of the bridge, as a share of one core.
    pub(crate) fn core(&self) -> f64 {
        self.usage.cpu.as_secs_f64() / self.over.as_secs_f64()
    }

    /// CPU time (user and system) of the bridge per event handed over, in microseconds.
    pub(crate) fn cpu_an_event(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.handed_over as f64
    }

    /// The same per request.
    pub(crate) fn cpu_a_request(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.asked as f64
    }

    /// Share of all events that were overwritten before they were fetched.
    pub(crate) fn overflowed(&self) -> f64 {
        self.score.overwritten as f64 / self.score.made as f64
    }

    /// Events handed over but not delivered.
    pub(crate) fn missing(&self) -> usize {
        self.score.lost - self.score.overwritten
    }
}
