//! The idle bridge: no events happen at Agora.

use std::time::Duration;

use super::agora::Agora;
use super::meter::{Meter, Usage};
use super::{agora, say, topics};
use crate::support::names::Names;
use crate::support::process::Bridge;

/// The resources it uses.
pub(crate) struct Outcome {
    pub(crate) usage: Usage,
    pub(crate) over: Duration,
    /// In bytes, since the start.
    pub(crate) peak_memory: u64,
    pub(crate) requests: u64,
}

/// Time for connections, topics and transactions to be set up.
const WARM_UP: Duration = Duration::from_secs(10);

/// Measures one App ID with two endpoints.
pub(crate) fn run(bootstrap: &str, over: Duration) -> Outcome {
    say::progress("bridge, idle");
    let names = Names::unique("idle");
    topics::create(bootstrap, &names);
    let agora = Agora::start(0, agora::usual_way());
    let mut bridge = Bridge::start(&(names.kafka_tables(bootstrap) + &agora.app_tables()));
    bridge.wait_ready();
    let meter = Meter::of(&bridge.data_dir());
    say::wait("warm-up", WARM_UP);
    let asked = || agora.ledger(|ledger| ledger.all_requests().asked);
    let (begun, before, asked_before) = (agora.now(), meter.usage(), asked());
    say::wait("measuring", over);
    Outcome {
        usage: meter.usage() - before,
        over: agora.now() - begun,
        peak_memory: meter.peak_memory(),
        requests: asked() - asked_before,
    }
}

// === impl Outcome ===

impl Outcome {
    /// The share of one core.
    pub(crate) fn core(&self) -> f64 {
        self.usage.cpu.as_secs_f64() / self.over.as_secs_f64()
    }
}
