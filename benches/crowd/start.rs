//! The first seconds of the process, as Agora sees them: how soon every feed is polled, and whether
//! the requests come in a burst.

use std::collections::HashSet;
use std::time::Duration;

use agora_rtm_bridge::simulator::AnswerRecord;

use crate::steady::agora::Agora;

/// The observations.
pub(crate) struct Start {
    /// From just before the process was started to the arrival of its first request.
    pub(crate) first: Option<Duration>,
    /// From the first request until every feed had been polled.
    pub(crate) all_asked: Option<Duration>,
    /// Requests within [`LOOK`] of the first.
    pub(crate) requests: usize,
    /// The maximum number of these within [`CROWD`].
    pub(crate) at_once: usize,
    /// Connections opened within that time.
    pub(crate) connections: u64,
}

/// Duration of the observation.
pub(crate) const LOOK: Duration = Duration::from_secs(3);

/// Requests within this time count as simultaneous.
pub(crate) const CROWD: Duration = Duration::from_millis(100);

/// Upper limit for any start.
const LIMIT: Duration = Duration::from_secs(20);

// === impl Start ===

impl Start {
    /// Observes a process that was started at `begun`, until [`LOOK`] after its first request.
    pub(crate) fn watch(agora: &Agora, feeds: usize, begun: Duration) -> Self {
        let first = || agora.ledger(|ledger| Some(ledger.answers().first()?.at));
        let first = crate::support::within(LIMIT, first).expect("the bridge asks");
        let rest = (first + LOOK).saturating_sub(agora.now());
        std::thread::sleep(rest);
        agora.ledger(|ledger| {
            let times: Vec<Duration> = times_until(ledger.answers(), first + LOOK).collect();
            let mut asked = HashSet::new();
            let all = ledger.answers().iter().find(|answer| {
                asked.extend(answer.feed);
                asked.len() == feeds
            });
            Self {
                first: first.checked_sub(begun),
                all_asked: all.map(|answer| answer.at - first),
                requests: times.len(),
                at_once: most_within(&times, CROWD),
                connections: ledger.connections(),
            }
        })
    }
}

fn times_until(answers: &[AnswerRecord], end: Duration) -> impl Iterator<Item = Duration> {
    answers.iter().map(|answer| answer.at).take_while(move |at| *at < end)
}

/// The maximum number of moments within any such period.
fn most_within(times: &[Duration], span: Duration) -> usize {
    let within = |(begin, from): (usize, &Duration)| {
        times.iter().skip(begin).take_while(|at| **at < *from + span).count()
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}
