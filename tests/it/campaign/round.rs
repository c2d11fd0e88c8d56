//! One round: harm, rest, verdict.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::Order;
use super::audit::Finding;
use super::load::APPS;
use super::stage::Done;
use super::stage::Stage;
use super::stage::sum;
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

/// Longer than what is on its way from Agora takes until it is published.
const STEADY: Duration = Duration::from_millis(500);

/// A judge that has seen very much takes his time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Plays a round. What is wrong ends the campaign.
pub(super) fn play(stage: &mut Stage, order: &Order) -> Result<Report, String> {
    stage.begin_round();
    let outcome = act(stage, order).and_then(|()| rest(stage));
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

/// No event happens any more; waits until all is well.
fn rest(stage: &mut Stage) -> Result<Report, String> {
    let begun = Instant::now();
    stage.load.rest();
    let mut lost = None;
    let mut last = String::from("Agora's buffers were never empty");
    while begun.elapsed() < REST_LIMIT {
        thread::sleep(TICK);
        stage.tick()?;
        let has_news = stage.audit.take_in(&stage.consumer);
        if has_news || !is_drained(stage) {
            continue;
        }
        let status = stage.status();
        let entries = status.pointer("/journal/entries").and_then(Value::as_u64);
        if sum(&status, "waiting")? != 0 || entries != Some(0) {
            last = format!("something waits: {status:#}");
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
    Err(format!("not well within {REST_LIMIT:?}: {last}"))
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

fn is_drained(stage: &Stage) -> bool {
    backlog(&stage.agora.world(), 0) == 0
}
