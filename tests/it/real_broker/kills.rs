//! kill −9, thirty times, at moments nobody chose: what an answer in flight carried may be lost,
//! and then a gap says so. Nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use agora_rtm_bridge::simulator::AnswerRecord;
use agora_rtm_bridge::simulator::AppScript;
use agora_rtm_bridge::simulator::Fate;
use agora_rtm_bridge::simulator::Network;
use agora_rtm_bridge::simulator::Recorded;
use agora_rtm_bridge::simulator::Script;
use agora_rtm_bridge::simulator::Spread;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::LIMIT;
use super::stop;
use crate::support::agora::Agora;
use crate::support::agora::Hosts;
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::Event;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

const KILLS: usize = 30;

/// How long a process lives. The shortest lives ask nothing, since requests of the killed one may
/// still count; they die while they forward and publish.
const LIFE: std::ops::Range<u64> = 300..2_200;

fn busy_and_quiet() -> Script {
    Script {
        apps: vec![
            AppScript::numbered(0).rates(1_000.0, 1_000.0),
            AppScript::numbered(1).rates(25.0, 25.0),
        ],
        // Long ways, so that a kill often finds an answer on its way.
        network: Network { rtt: Spread::millis(60, 120), ..Network::default() },
        ..Script::default()
    }
}

#[test]
fn thirty_kills_lose_nothing_but_answers_in_flight_and_a_gap_tells_of_each() {
    let (bootstrap, names) = (broker::shared(), Names::unique("kills"));
    let agora = Agora::start(busy_and_quiet());
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();

    let mut random = StdRng::seed_from_u64(30);
    let mut kills = Vec::new();
    while kills.len() < KILLS {
        let life = Duration::from_millis(random.random_range(LIFE));
        agora.wait_for_moment(agora.now() + life);
        bridge.kill_9();
        kills.push(agora.now());
        bridge.start_again();
    }
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    let records = consumer.finish();

    // What newer events replaced while nobody asked was never handed over.
    let events = agora.events();
    let overwritten = events.iter().filter(|event| event.fate == Fate::Overwritten).count();
    let handed_out: Vec<_> =
        events.into_iter().filter(|event| event.fate != Fate::Overwritten).collect();
    let verdict = judge(&names, handed_out.clone(), &records);
    verdict.assert_exactly_once();
    verdict.assert_in_order();

    let lost: BTreeSet<&Event> = verdict.explained.iter().collect();
    let causes = ["process_killed", "answer_lost"];
    for event in &lost {
        let told = verdict.gaps.iter().any(|gap| {
            causes.contains(&gap.cause.as_str()) && gap.region == "default" && gap.covers(event)
        });
        assert!(told, "{event}\n{verdict}");
    }
    let answers = agora.world().ledger().answers().to_vec();
    let lost_answers: BTreeSet<u64> = handed_out
        .into_iter()
        .filter_map(|recorded| {
            let answer = answer_of(&recorded)?;
            lost.contains(&Event::from(recorded)).then_some(answer)
        })
        .collect();
    for number in &lost_answers {
        assert_was_in_flight_at_a_kill(&answers, *number, &kills);
    }
    for app in 0..2 {
        let requests = agora.world().ledger().requests(app);
        assert!(requests.most_in_a_second <= 10, "{app}: {requests:?}");
    }
    eprintln!(
        "{KILLS} kills, {} published, {} lost in {} answers in flight, {} gaps, {overwritten} \
         overwritten before anybody asked",
        verdict.published,
        lost.len(),
        lost_answers.len(),
        verdict.gaps.len(),
    );
}

/// It was the last answer that its feed gave to a process that was killed: the next one came after
/// the kill.
fn assert_was_in_flight_at_a_kill(answers: &[AnswerRecord], number: u64, kills: &[Duration]) {
    let mut later = answers.iter().skip(usize::try_from(number).expect("few"));
    let lost = later.next().expect("answers are numbered from 0");
    let next = later.find(|answer| answer.feed == lost.feed).map(|answer| answer.at);
    // A request may still be on its way to Agora while the one who sent it dies.
    const WAY: Duration = Duration::from_millis(120);
    let in_flight = |kill: &Duration| {
        lost.at.saturating_sub(WAY) <= *kill && next.is_none_or(|next| next > *kill)
    };
    assert!(kills.iter().any(in_flight), "{lost:?}, the next at {next:?}, kills at {kills:?}");
}

fn answer_of(recorded: &Recorded) -> Option<u64> {
    match recorded.fate {
        Fate::Delivered { answer } | Fate::Torn { answer } => Some(answer),
        Fate::Buffered | Fate::Overwritten => None,
    }
}
