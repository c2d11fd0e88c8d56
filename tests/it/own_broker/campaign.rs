//! The short form of the campaign (`tests/campaign`): each kind of harm that takes little time, and
//! some at once.

use std::time::Duration;

use crate::campaign;
use crate::campaign::Plan;
use crate::campaign::kind::Kind;

/// They take seconds and more.
const SLOW: [Kind; 7] = [
    Kind::StopAway,
    Kind::BrokerKill,
    Kind::AgoraStall,
    Kind::RefusingHost,
    Kind::SlowBodies,
    Kind::LingeringReader,
    Kind::StalledLog,
];

#[test]
fn harm_of_many_kinds_loses_nothing_but_answers_in_flight_and_repeats_nothing() {
    let kinds = Kind::usual().into_iter().filter(|kind| !SLOW.contains(kind));
    let mut plan = Plan {
        // Of many the one that does each kind in little time, and kills five times.
        seed: 41,
        rounds: 0..5,
        kinds: kinds.collect(),
        at_once: 3,
        rate: 1_000.0,
        away: Duration::ZERO,
    };
    plan.leave_out_what_cannot_be();
    let (tally, wrong) = campaign::run(&plan, |_, _| {});
    eprintln!("{}", tally.text());
    assert_eq!(wrong, None);
}
