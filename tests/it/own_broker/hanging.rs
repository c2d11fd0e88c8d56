//! Brokers that hang, and connections that die without a word.

use std::fs;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::{LIMIT, everything_is_delivered, wait_until_delivered};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker::Broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::proxy::Proxy;

/// Connections that nobody closed used to hold events up for two minutes.
const SOON: Duration = Duration::from_secs(60);

/// For longer than a transaction lives.
const FREEZE: Duration = Duration::from_secs(20);

/// `sysconf(_SC_CLK_TCK)`, which is this on every Linux that runs here.
const TICKS_PER_SECOND: f64 = 100.0;

fn agora(rate: f64) -> Agora {
    let apps = vec![AppScript::numbered(0).rates(rate, rate)];
    Agora::start(Script { apps, ..Script::default() })
}

#[test]
fn connections_that_die_without_a_word_hold_events_up_only_for_a_while() {
    let proxy = Proxy::start();
    let broker = Broker::own_behind(&proxy);
    let (agora, names) = (agora(50.0), Names::unique("silent"));
    let door = proxy.address().to_string();
    let mut bridge = Bridge::start(&agora.config(&names, &door, Hosts::EachRegion));
    let consumer = Consumer::start(&broker.bootstrap(), &names.published());
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 200);
    wait_until_delivered_to(&consumer, 200, LIMIT);

    proxy.forget_connections();
    let forgotten_at = agora.now();
    let fetched = usize::try_from(agora.world().ledger().total().delivered).unwrap();
    // More than had been fetched: these came afterwards.
    wait_until_delivered_to(&consumer, fetched + 50, SOON);
    eprintln!("events flow again after {:?}", agora.now() - forgotten_at);

    everything_is_delivered(&agora, &names, &mut bridge, consumer);
}

fn wait_until_delivered_to(consumer: &Consumer, events: usize, limit: Duration) {
    consumer.wait_until("enough events", limit, |records| records.len() >= events);
}

/// librdkafka's threads looked at what they could not send for as long as the broker hung.
#[test]
fn a_broker_that_hangs_costs_no_processor_time() {
    let mut broker = Broker::own();
    let (bootstrap, names) = (broker.bootstrap(), Names::unique("hanging"));
    let agora = agora(400.0);
    let mut bridge = Bridge::start(&agora.config(&names, &bootstrap, Hosts::EachRegion));
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 800);
    broker.freeze();
    let (frozen_at, before) = (agora.now(), kafka_seconds(bridge.id()));
    agora.wait_for_moment(frozen_at + FREEZE);
    let (used, took) = (kafka_seconds(bridge.id()) - before, agora.now() - frozen_at);
    broker.thaw();
    let share = used / took.as_secs_f64();
    eprintln!("{:.1} % of a core for {took:?}", share * 100.0);
    // A loaded machine gives less, never more.
    assert!(share < 0.05, "{used} s of {took:?}");

    let consumer = Consumer::start(&bootstrap, &names.published());
    agora.come_to_rest(&[0], LIMIT);
    wait_until_delivered(&bridge);
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    judge(&names, agora.events(), &consumer.finish()).assert_complete();
}

/// What librdkafka's threads and those that wait for it have used of the processor. proc_pid_stat(5)
fn kafka_seconds(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the process lives");
    let ticks = threads.filter_map(|thread| {
        // One that ends meanwhile is left out.
        let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let is_kafkas = ["rdk:", "publish-", "pages"].iter().any(|it| name.starts_with(it));
        let times = rest.split_whitespace().skip(11).take(2);
        is_kafkas.then(|| times.filter_map(|it| it.parse::<f64>().ok()).sum::<f64>())
    });
    ticks.sum::<f64>() / TICKS_PER_SECOND
}
