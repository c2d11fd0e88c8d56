//! The short form of the campaign (`tests/campaign`): each kind of harm that takes little time, and
//! some at once.

use std::time::Duration;

use crate::campaign;
use crate::campaign::Plan;
use crate::campaign::kind::Kind;

/// They take seconds and more, or have tests of their own.
const LEFT_OUT: [Kind; 12] = [
    Kind::StopAway,
    Kind::BrokerKill,
    Kind::AgoraStall,
    Kind::RefusingHost,
    Kind::SlowBodies,
    Kind::LingeringReader,
    Kind::StalledLog,
    Kind::TopicLimits,
    Kind::RecordsDeleted,
    Kind::ClockAhead,
    Kind::PasswordRotated,
    Kind::CertificateRenewed,
];

#[test]
fn harm_of_many_kinds_loses_nothing_but_answers_in_flight_and_repeats_nothing() {
    let kinds = Kind::usual().into_iter().filter(|kind| !LEFT_OUT.contains(kind));
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
