//! The first seconds of the process, as Agora sees them: how soon every feed is asked, and whether
//! all of them come at once.

use std::collections::HashSet;
use std::time::Duration;

use agora_rtm_bridge::simulator::AnswerRecord;

use crate::steady::agora::Agora;

/// What was seen.
pub(crate) struct Start {
    /// From just before the process was made to the first request's arrival.
    pub(crate) first: Option<Duration>,
    /// From the first request to the moment when every feed had been asked.
    pub(crate) all_asked: Option<Duration>,
    /// Requests within [`LOOK`] of the first.
    pub(crate) requests: usize,
    /// The most of these within [`CROWD`].
    pub(crate) at_once: usize,
    /// Connections opened within that time.
    pub(crate) connections: u64,
}

/// How long it is looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(3);

/// What comes within this time comes at once.
pub(crate) const CROWD: Duration = Duration::from_millis(100);

/// No start takes so long.
const LIMIT: Duration = Duration::from_secs(20);

// === impl Start ===

impl Start {
    /// Looks at a process that was made at `begun`, until [`LOOK`] after its first request.
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

/// The most moments within any such time.
fn most_within(times: &[Duration], span: Duration) -> usize {
    let within = |(begin, from): (usize, &Duration)| {
        times.iter().skip(begin).take_while(|at| **at < *from + span).count()
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}
