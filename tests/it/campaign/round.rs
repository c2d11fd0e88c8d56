//! One round: harm, rest, verdict.

use std::thread;
use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use serde_json::Value;
use tokio::time::Instant;

use super::Order;
use super::audit::Finding;
use super::load::APPS;
use super::stage::{Done, Stage, sum};
use crate::support::agora::backlog;

/// What a round brought.
pub(super) struct Report {
    pub(super) finding: Finding,
    pub(super) done: Done,
    /// From the last deed until all was well.
    pub(super) rest: Duration,
    pub(super) most_requests_in_a_second: u64,
}

/// Between two looks.
const TICK: Duration = Duration::from_millis(5);

/// All has to be well within this. An owner that was fenced waits for 30 s, a failed one for 10 s.
const REST_LIMIT: Duration = Duration::from_secs(120);

/// Every feed is asked again within this, once all is well: the longest interval, and what feeds
/// that failed a few times are left alone.
const ASKED_LIMIT: Duration = Duration::from_secs(20);

/// Longer than what is on its way from Agora takes until it is published.
const STEADY: Duration = Duration::from_millis(500);

/// A judge that has seen very much takes his time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Plays a round. What is wrong ends the campaign.
pub(super) fn play(stage: &mut Stage, order: &Order) -> Result<Report, String> {
    stage.begin_round(order.kinds.len() > 1);
    let outcome = act(stage, order).and_then(|()| rest(stage));
    let outcome = outcome.and_then(|report| ran_over(order, &report.finding).map(|()| report));
    outcome.map_err(|wrong| format!("{wrong}\n── the end of the bridge's logs ──\n{}", stage.log()))
}

fn act(stage: &mut Stage, order: &Order) -> Result<(), String> {
    let begun = stage.agora.now();
    let mut acts = order.acts.iter().peekable();
    loop {
        let elapsed = stage.agora.now() - begun;
        while let Some((_, act)) = acts.next_if(|(at, _)| *at <= elapsed) {
            stage.perform(*act)?;
        }
        let is_calm = stage.tick()?;
        stage.audit.take_in(&stage.consumer);
        if is_calm && acts.peek().is_none() {
            return Ok(());
        }
        thread::sleep(TICK);
    }
}

/// Whether more events ran over in Agora's buffers than what was done explains.
fn ran_over(order: &Order, finding: &Finding) -> Result<(), String> {
    let [kind] = order.kinds[..] else { return Ok(()) };
    let Some(share) = kind.may_run_over() else { return Ok(()) };
    let Finding { overwritten, made, .. } = *finding;
    let most = made as f64 * share;
    if overwritten as f64 <= most {
        return Ok(());
    }
    Err(format!("{overwritten} of {made} events ran over, which should be {most:.0} at most"))
}

/// No event happens any more; waits until all is well, and then once more for an event of each feed:
/// every feed has to be asked, and what comes has to be published.
fn rest(stage: &mut Stage) -> Result<Report, String> {
    let begun = Instant::now();
    stage.load.rest();
    let mut lost = None;
    let mut probed = None;
    let mut last = String::from("Agora's buffers were never empty");
    while begun.elapsed() < REST_LIMIT {
        thread::sleep(TICK);
        stage.tick()?;
        let has_news = stage.audit.take_in(&stage.consumer);
        if !is_drained(stage) {
            let is_late = probed.is_some_and(|at: Instant| at.elapsed() > ASKED_LIMIT);
            if is_late {
                return Err(format!("all was well, and then {}", not_asked(stage)));
            }
            continue;
        }
        if has_news {
            continue;
        }
        let status = stage.status();
        let entries = status.pointer("/journal/entries").and_then(Value::as_u64);
        if sum(&status, "waiting")? != 0 || entries != Some(0) {
            last = format!("something waits: {status:#}");
            continue;
        }
        if probed.is_none() {
            probed = Some(Instant::now());
            stage.load.probe(&stage.agora);
            continue;
        }
        match stage.audit.look(&stage.agora, &stage.done.excuses, &stage.life, &status) {
            // A gap may also cover what is still on its way.
            Ok(finding) if !is_steady(&mut lost, &finding) => {
                last = "events are lost one after another".to_owned();
                thread::sleep(LOOK_AGAIN);
            }
            Ok(finding) => {
                stage.audit.settle(&finding, &mut stage.life);
                let world = stage.agora.world();
                let requests = (0..APPS).map(|app| world.ledger().requests(app));
                let most = requests.map(|it| it.most_in_a_second).max().unwrap_or(0);
                drop(world);
                let (rest, done) = (begun.elapsed(), stage.end_round());
                return Ok(Report { finding, done, rest, most_requests_in_a_second: most });
            }
            Err(wrong) => {
                last = wrong;
                thread::sleep(LOOK_AGAIN);
            }
        }
    }
    let progress = stage.consumer.progress();
    Err(format!("not well within {REST_LIMIT:?}: {last}\n── the consumer ──\n{progress}"))
}

/// Whether nothing is lost, or so much for some time.
fn is_steady(lost: &mut Option<(usize, Instant)>, finding: &Finding) -> bool {
    let now_lost = finding.lost_events();
    let since = match *lost {
        Some((before, since)) if before == now_lost => since,
        _ => lost.insert((now_lost, Instant::now())).1,
    };
    now_lost == 0 || since.elapsed() >= STEADY
}

/// Which feeds hold something.
fn not_asked(stage: &Stage) -> String {
    let world = stage.agora.world();
    let apps = world.script().apps.iter().enumerate();
    let feeds = apps.flat_map(|(app, it)| Endpoint::ALL.map(|endpoint| (app, it, endpoint)));
    let full = feeds.filter(|(app, _, endpoint)| world.backlog(0, *app, *endpoint) > 0);
    let named: Vec<_> = full.map(|(_, it, endpoint)| format!("{} {endpoint}", it.app_id)).collect();
    format!("nobody asked for {} within {ASKED_LIMIT:?}", named.join(", "))
}

fn is_drained(stage: &Stage) -> bool {
    backlog(&stage.agora.world(), 0) == 0
}
