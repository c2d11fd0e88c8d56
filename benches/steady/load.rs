//! One program under a steady load.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use agora_rtm_bridge::simulator::Requests;
use tempfile::TempDir;

use super::agora::{Agora, STEADY_FROM};
use super::meter::{Meter, Usage};
use super::naive::Naive;
use super::score::{Score, score};
use super::table::grouped;
use super::{agora, say, topics};
use crate::support::child::Guarded;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{consume, names};

/// The program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Bridge,
    Naive,
}

/// A measurement's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) subject: Subject,
    /// Events per second.
    pub(crate) rate: u32,
    /// Duration of the measurement.
    pub(crate) seconds: Duration,
}

/// The results.
pub(crate) struct Outcome {
    pub(crate) offer: Offer,
    pub(crate) score: Score,
    /// CPU time between warm-up and end.
    pub(crate) usage: Usage,
    /// Events that Agora handed over in that time.
    pub(crate) handed_over: u64,
    /// In bytes, since the start.
    pub(crate) peak_memory: u64,
    /// Since the start.
    pub(crate) requests: Requests,
    /// Requests in the measured time.
    pub(crate) requests_measured: u64,
}

/// Time under full load before the measurement starts.
const WARM_UP: Duration = Duration::from_secs(5);

/// Time after which everything fetched is in Kafka.
const NAIVE_TAIL: Duration = Duration::from_secs(3);

/// Longer than the bridge's `shutdown_grace`.
const STOP_LIMIT: Duration = Duration::from_secs(40);

enum Running {
    Bridge(Bridge),
    Naive { process: Guarded, home: TempDir },
}

/// Measures one program.
pub(crate) fn run(bootstrap: &str, offer: Offer) -> Outcome {
    let title = offer.title();
    say::progress(&title);
    let names = Names::unique("steady");
    topics::create(bootstrap, &names);
    let agora = Agora::start(offer.rate, agora::usual_way());
    let subject = Running::start(offer.subject, &agora, bootstrap, &names);
    let meter = Meter::of(&subject.home());
    let counts = || {
        agora
            .ledger(|ledger| (meter.usage(), ledger.total().delivered, ledger.all_requests().asked))
    };

    agora.wait_for("the load to grow and warm up", STEADY_FROM + WARM_UP);
    let (usage_before, handed_over_before, requests_before) = counts();
    let begin = agora.now();
    agora.wait_for("measuring", STEADY_FROM + WARM_UP + offer.seconds);
    let (usage, handed_over, requests_then) = counts();
    let end = agora.now();
    agora.come_to_rest();
    let peak_memory = meter.peak_memory();
    subject.stop();

    say::progress(format_args!("{title}: reading all records"));
    let records = consume::read_all(bootstrap, &[&names.user_events, &names.channel_events]);
    let measured = agora.wall_clock(begin)..agora.wall_clock(end);
    Outcome {
        offer,
        score: agora.ledger(|ledger| score(ledger.events(), &records, measured)),
        usage: usage - usage_before,
        handed_over: handed_over - handed_over_before,
        peak_memory,
        requests: agora.ledger(|ledger| ledger.all_requests()),
        requests_measured: requests_then - requests_before,
    }
}

// === impl Offer ===

impl Offer {
    /// The title of the measurement.
    pub(crate) fn title(&self) -> String {
        let subject = match self.subject {
            Subject::Bridge => "bridge",
            Subject::Naive => "naive",
        };
        format!("{subject} {}/s", grouped(self.rate))
    }
}

// === impl Outcome ===

impl Outcome {
    /// CPU time (user and system) per event handed over, in microseconds.
    pub(crate) fn cpu_an_event(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.handed_over as f64
    }
}

// === impl Running ===

impl Running {
    fn start(subject: Subject, agora: &Agora, bootstrap: &str, names: &Names) -> Self {
        match subject {
            Subject::Bridge => {
                let config = names.kafka_tables(bootstrap) + &agora.app_tables();
                let mut bridge = Bridge::start(&config);
                bridge.wait_ready();
                Self::Bridge(bridge)
            }
            Subject::Naive => {
                let home = names::folder();
                let mut command = Command::new(env::current_exe().expect("we are a file"));
                command
                    .args(Naive::arguments(agora, bootstrap, names))
                    // The meter finds the process by this.
                    .env("STEADY_HOME", home.path())
                    .stdin(Stdio::null())
                    .stdout(Stdio::null());
                Self::Naive { process: Guarded::spawn(&mut command, home.path()), home }
            }
        }
    }

    fn home(&self) -> std::path::PathBuf {
        match self {
            Self::Bridge(bridge) => bridge.data_dir(),
            Self::Naive { home, .. } => Path::to_owned(home.path()),
        }
    }

    /// Stops the program once everything is delivered.
    fn stop(self) {
        match self {
            Self::Bridge(mut bridge) => {
                bridge.terminate();
                let status = bridge.wait(STOP_LIMIT);
                assert!(status.success(), "the bridge ended with {status}:\n{}", bridge.log());
            }
            Self::Naive { mut process, .. } => {
                thread::sleep(NAIVE_TAIL);
                process.kill_9();
            }
        }
    }
}
