//! One row: a fixed number of pages per second.

use std::collections::HashMap;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Burst, Fate, Load, Network};
use tokio::time::Instant;

use super::watch::Watch;
use crate::steady::agora::Agora;
use crate::steady::{agora, topics};
use crate::support::judge::Event;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{consume, within};

/// The stages of a page after its last byte was sent, in milliseconds since then.
pub(crate) struct Legs {
    /// It is in the pages topic.
    pub(crate) forwarded: f64,
    /// The last of its events is in an event topic, in a transaction that is still open.
    pub(crate) appended: f64,
    /// The consumer has all of them.
    pub(crate) visible: f64,
}

/// The number of partitions that the bridge would create.
const PAGE_PARTITIONS: i32 = 8;

/// After this, everything has started and all first-time costs are paid.
const WARM_UP: Duration = Duration::from_secs(5);

/// Maximum time to deliver the last events.
const TAIL: Duration = Duration::from_secs(10);

/// Measures one row. Each page comes from a burst of one App ID; each App ID has one burst a
/// second.
pub(crate) fn run(bootstrap: &str, pages: u32, events: u32, seconds: Duration) -> Vec<Legs> {
    let names = Names::unique("deliver");
    topics::create(bootstrap, &names);
    topics::create_stamped(bootstrap, &[&names.pages], PAGE_PARTITIONS);
    let apps: Vec<AppScript> =
        (0..pages).map(|number| app(number, pages, events, seconds)).collect();
    let agora = Agora::serve(apps, Network { rtt: agora::usual_way(), ..Network::default() });
    let origin = Instant::now() - agora.now();
    let watch = Watch::begin(bootstrap, &names.channel_events);
    let config = names.kafka_tables(bootstrap) + &agora.app_tables();
    let mut bridge = Bridge::start(&config);
    bridge.wait_ready();
    agora.wait_for("measuring", WARM_UP + seconds);
    agora.come_to_rest();
    let all_is_delivered =
        || bridge.status().pointer("/summary")?.as_str()?.contains("waiting 0").then_some(());
    within(TAIL, all_is_delivered).expect("the bridge delivers what it has");
    bridge.terminate();
    assert!(bridge.wait(TAIL * 4).success(), "{}", bridge.log());
    let seen = watch.end();

    let forwarded: HashMap<String, i64> = consume::read_all(bootstrap, &[&names.pages])
        .iter()
        .filter_map(|record| Some((record.header("page")?.to_owned(), record.timestamp?)))
        .collect();
    let answers: HashMap<Event, u64> = agora.ledger(|ledger| {
        let events = ledger.events().filter_map(|event| match event.fate {
            Fate::Delivered { answer } => Some((Event::from(event), answer)),
            _ => None,
        });
        events.collect()
    });
    let delivered: usize = seen.values().map(|page| page.events).sum();
    assert_eq!(delivered, answers.len(), "what was handed over is delivered, once");
    let sent = |number: u64| {
        let index = usize::try_from(number).expect("there are few");
        agora.ledger(|ledger| ledger.answers().get(index).and_then(|answer| answer.sent_at))
    };
    let legs = seen.into_iter().filter_map(|(page, seen)| {
        let sent = sent(*answers.get(&seen.event)?)?;
        if sent < WARM_UP {
            return None;
        }
        let since = |stamp: i64| (stamp - agora.wall_clock(Duration::ZERO)) as f64 - millis(sent);
        Some(Legs {
            forwarded: since(*forwarded.get(&page)?),
            appended: since(seen.appended),
            visible: millis(seen.visible - origin) - millis(sent),
        })
    });
    legs.collect()
}

/// An App ID with a burst of `events` channel events each second.
fn app(number: u32, of: u32, events: u32, seconds: Duration) -> AppScript {
    let first = Duration::from_secs(1) + Duration::from_secs(1) * number / of;
    let last = WARM_UP + seconds;
    let moments = (0..).map(|second| first + Duration::from_secs(second));
    let bursts = moments
        .take_while(|at| *at < last)
        .map(|at| Burst { at, events, over: Duration::ZERO })
        .collect();
    let index = usize::try_from(number).expect("there are few");
    AppScript { channel_events: Load { bursts, ..Load::default() }, ..AppScript::numbered(index) }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
