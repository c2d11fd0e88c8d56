//! Everything at once, and nothing lost: the whole way of many kinds of events through many kinds
//! of trouble.

use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{
    AppScript, Dialect, Empty, Fault, FaultKind, FramingChoice, Network, RegionScript, Script,
    Spread, TokenScript, World,
};
use serde_json::Value;

use super::{LIMIT, accounts, figure, stop, total, wait_for_balance};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

/// Events that each of the two Agoras makes before the load ends.
const ENOUGH: u64 = 5_000;

/// What goes wrong with so large a share of the requests. The load goes on until each has come
/// about.
const TROUBLE: [(FaultKind, f64); 10] = [
    (FaultKind::Cut, 0.04),
    (FaultKind::Reset, 0.04),
    (FaultKind::Silent, 0.03),
    (FaultKind::NoAnswer, 0.04),
    (FaultKind::Slow, 0.04),
    (FaultKind::TimedOut, 0.03),
    (FaultKind::Throttled, 0.03),
    (FaultKind::ServerError, 0.03),
    (FaultKind::Failed, 0.03),
    (FaultKind::NotJson, 0.03),
];

/// One region and all the trouble: answers that break, are refused, say nonsense, or never come.
fn troubled() -> Script {
    Script {
        seed: 1,
        apps: vec![
            AppScript {
                wild_names: true,
                unknown_fields: true,
                wild_layout: true,
                malformed: 0.02,
                ..AppScript::numbered(0).rates(100.0, 150.0)
            },
            AppScript {
                dialect: Dialect { old_names: true, empty: Empty::Null, ..Dialect::default() },
                malformed: 0.01,
                ..AppScript::numbered(1).rates(100.0, 100.0)
            },
        ],
        faults: TROUBLE.map(|(kind, share)| Fault::new(kind).share(share)).into(),
        // Not until the connection closes: a body that is cut then looks whole.
        network: Network { framing: FramingChoice::Chunked, ..Network::default() },
        ..Script::default()
    }
}

/// Two regions that hand over the same events, and connections that close between two requests.
fn repeating() -> Script {
    Script {
        seed: 2,
        apps: vec![
            AppScript::numbered(2).rates(200.0, 300.0),
            AppScript {
                dialect: Dialect {
                    seconds: true,
                    time_as_text: true,
                    empty: Empty::Absent,
                    ..Dialect::default()
                },
                tokens: vec![TokenScript {
                    token: "007made-up".to_owned(),
                    user_id: None,
                    until: None,
                }],
                ..AppScript::numbered(3).rates(2.0, 1.0)
            },
            AppScript {
                tokens: vec![TokenScript {
                    token: "006made-up".to_owned(),
                    user_id: Some("bridge".to_owned()),
                    until: None,
                }],
                ..AppScript::numbered(4).rates(1.0, 40.0)
            },
        ],
        regions: vec![RegionScript::new("eu"), RegionScript::new("ap")],
        network: Network {
            rtt: Spread::millis(5, 60),
            idle_timeout: Some(Duration::from_millis(260)),
            ..Network::default()
        },
        ..Script::default()
    }
}

#[test]
fn what_agora_handed_over_is_published_exactly_once() {
    let (bootstrap, names) = (broker::shared(), Names::unique("end-to-end"));
    let troubled = Agora::start(troubled());
    let repeating = Agora::start(repeating());
    let config = troubled.config(&names, bootstrap, Hosts::EachRegion)
        + &repeating.apps(Hosts::EachRegion)
        + "\n[agora]\nsilence_timeout = \"2s\"\n";
    let mut bridge = Bridge::start(&config);
    let consumer = Consumer::start(bootstrap, &names.published());

    for agora in [&troubled, &repeating] {
        agora.wait_until("enough events", LIMIT, |world| world.ledger().total().made >= ENOUGH);
    }
    troubled.wait_until("all that can go wrong has gone wrong", LIMIT, trouble_came_about);
    troubled.set_faults(Vec::new());
    troubled.come_to_rest(&[0], LIMIT);
    repeating.come_to_rest(&[0, 1], LIMIT);
    let handed_over = complete(&troubled) + complete(&repeating);
    let status = wait_for_balance(&bridge, handed_over);
    stop(&mut bridge);
    let records = consumer.finish();

    let handed_out = troubled.events().into_iter().chain(repeating.events());
    let verdict = judge(&names, handed_out, &records);
    verdict.assert_exactly_once();
    for cause in ["body_cut", "answer_lost"] {
        assert!(verdict.gaps.iter().any(|gap| gap.cause == cause), "no gap by {cause}\n{verdict}");
    }
    let letters = records.iter().filter(|record| record.topic == names.dead_letter).count();
    assert_eq!(total(&status, "delivered"), i64::try_from(verdict.published).unwrap());
    assert_eq!(total(&status, "dead_letters"), i64::try_from(letters).unwrap());
    assert_eq!(total(&status, "set_aside"), 0);
    for agora in [&troubled, &repeating] {
        assert_accounts_agree(agora, &status);
    }
    verdict.assert_in_order();
    eprintln!("{verdict}");
}

/// Whether each fault has struck, where it breaks an answer one with events in it.
fn trouble_came_about(world: &World) -> bool {
    let answers = world.ledger().answers();
    TROUBLE.iter().all(|(kind, _)| {
        let breaks = matches!(kind, FaultKind::Cut | FaultKind::Reset | FaultKind::Silent);
        let least = if breaks { 2 } else { 0 };
        answers.iter().any(|answer| answer.fault == Some(*kind) && answer.taken >= least)
    })
}

/// The accounts of an Agora's App IDs say what its ledger says, and no second had more than ten
/// requests.
fn assert_accounts_agree(agora: &Agora, status: &Value) {
    let world = agora.world();
    for (app, id) in apps_of(&world).enumerate() {
        let requests = world.ledger().requests(app);
        assert!(requests.most_in_a_second <= 10, "{id}: {requests:?}");
        assert_eq!(requests.over_limit, 0, "{id}: {requests:?}");
        for endpoint in Endpoint::ALL {
            let account = accounts(status)
                .iter()
                .find(|it| it["app_id"] == id && it["endpoint"] == endpoint.name())
                .unwrap_or_else(|| panic!("no account of {id} {endpoint} in {status:#}"));
            let (received, nonsense) = received(&world, Some((app, endpoint)));
            assert_eq!(figure(account, "received").cast_unsigned(), received, "{account}");
            let ended = ["delivered", "repeats", "repeats_in_page", "dead_letters", "set_aside"];
            let ended: i64 = ended.iter().map(|column| figure(account, column)).sum();
            assert_eq!(figure(account, "received"), ended, "{account}");
            let totals = world.ledger().totals(app, endpoint);
            if totals.malformed == 0 {
                assert_eq!(figure(account, "dead_letters").cast_unsigned(), nonsense, "{account}");
                assert_eq!(figure(account, "delivered").cast_unsigned(), totals.delivered);
                assert_eq!(figure(account, "repeats").cast_unsigned(), totals.repeats);
            }
        }
    }
}

fn complete(agora: &Agora) -> u64 {
    received(&agora.world(), None).0
}

/// What a bridge must have counted as received from one feed, or from all: elements that were sent
/// whole, and answers that were nonsense, each a dead letter; how many of these.
fn received(world: &World, of: Option<(usize, Endpoint)>) -> (u64, u64) {
    let answers = world.ledger().answers().iter();
    let answers = answers.filter(|answer| of.is_none() || answer.feed == of);
    let mut sums = (0, 0);
    for answer in answers {
        let nonsense = u64::from(answer.fault == Some(FaultKind::NotJson));
        sums.0 += answer.complete + nonsense;
        sums.1 += nonsense;
    }
    sums
}

fn apps_of(world: &World) -> impl Iterator<Item = String> {
    world.script().apps.iter().map(|app| app.app_id.to_string())
}
