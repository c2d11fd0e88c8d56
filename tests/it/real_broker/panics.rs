//! A defect: one of the loops panics. The process ends, says so in one line, and the next start knows
//! what it has to know.

use std::os::unix::process::ExitStatusExt as _;

use agora_rtm_bridge::simulator::{AppScript, Script};
use rustix::process::Signal;

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, process, within};

/// Places, and the pass at which each panics.
const PLACES: [&str; 9] = [
    "poller:200",
    "request:40",
    "journal:200",
    "forwarder:40",
    "page-writer:20",
    "publisher:20",
    "owner:20",
    "http:3",
    "log:2",
];

#[test]
fn a_loop_that_panics_ends_the_process_with_one_line_and_costs_no_more_than_a_kill() {
    for place in PLACES {
        let (bootstrap, names) = (broker::shared(), Names::unique("panic"));
        let agora = Agora::start(Script {
            apps: vec![AppScript::numbered(0).rates(100.0, 100.0)],
            ..Script::default()
        });
        let config = agora.config(&names, bootstrap, Hosts::EachRegion);
        let mut bridge = Bridge::start_to_panic(&config, place);
        let consumer = Consumer::start(bootstrap, &names.published());
        let status = within(LIMIT, || {
            // The pages have a loop too.
            bridge.address().map(|address| process::get(address, "/live"));
            bridge.ended()
        });
        let status = status.unwrap_or_else(|late| panic!("{place}: it goes on, {late}"));
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{place}: {status}");
        let log = bridge.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
        let [line] = lines[..] else { panic!("{place}: {lines:#?}") };
        assert!(line.contains(" ERROR ") && line.contains("a test wants this"), "{place}: {line}");
        assert_eq!(log.lines().last(), Some(line), "{place}");

        bridge.start_again();
        bridge.wait_ready();
        agora.come_to_rest(&[0], LIMIT);
        stop(&mut bridge);
        let verdict = judge(&names, agora.events(), &consumer.finish());
        verdict.assert_exactly_once();
        let killed = verdict.gaps.iter().all(|gap| gap.cause == "process_killed");
        assert!(killed, "{place}: {verdict}");
    }
}
