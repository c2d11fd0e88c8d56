use std::time::Duration;

use serde_json::json;
use tokio::time::advance;

use super::*;
use crate::observe::logs::{Format, captured};
use crate::observe::metrics::Metrics;

fn health() -> Health {
    Health::new(Clock::simulated(Timestamp::from_millis(0)))
}

#[tokio::test(start_paused = true)]
async fn ready_means_that_polling_has_begun_and_no_condition_fails() {
    let health = health();
    let condition = health.condition("kafka", "pages");
    assert!(!health.readiness().ready);
    health.polling_begun();
    assert!(health.readiness().ready);
    condition.failing("no broker");
    assert!(!health.readiness().ready);
    condition.ok();
    assert!(health.readiness().ready);
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_the_latest_and_its_time_the_first() {
    let health = health();
    health.polling_begun();
    let condition = health.condition("kafka", "pages");
    advance(Duration::from_secs(1)).await;
    condition.failing("no broker");
    advance(Duration::from_secs(1)).await;
    condition.failing("not authorised");
    assert_eq!(
        serde_json::to_value(health.readiness()).unwrap(),
        json!({
            "ready": false,
            "reasons": [{
                "condition": "kafka",
                "subject": "pages",
                "reason": "not authorised",
                "since": "1970-01-01T00:00:01.000Z",
            }],
        })
    );
}

#[tokio::test(start_paused = true)]
async fn handles_of_one_name_and_subject_are_one_condition() {
    let health = health();
    health.polling_begun();
    health.condition("kafka", "pages").failing("no broker");
    health.condition("kafka", "gaps").ok();
    health.condition("kafka", "pages");
    assert!(!health.readiness().ready);
    health.condition("kafka", "pages").ok();
    assert!(health.readiness().ready);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_logged_once() {
    let condition = health().condition("kafka", "pages");
    let log = captured(Format::Text, "info", || {
        condition.ok();
        condition.failing("no broker");
        condition.failing("no broker");
        condition.failing("not authorised");
        condition.ok();
        condition.ok();
    });
    let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(
        lines,
        [
            "WARN  condition failing condition=kafka subject=pages reason=\"no broker\"",
            "INFO  condition recovered condition=kafka subject=pages lasted=0s",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_one_cause_makes_fail_is_logged_once_and_all_of_it_is_a_reason() {
    let health = health();
    health.polling_begun();
    let log = captured(Format::Text, "info", || {
        for partition in ["partition 0", "partition 1", "partition 2"] {
            health.condition("publishing", partition).failing_alike("no broker");
        }
        health.condition("publishing", "partition 3").failing_alike("not authorised");
    });
    assert_eq!(log.lines().count(), 2, "{log}");
    assert_eq!(health.readiness().reasons.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn conditions_can_be_read_from_the_metrics() {
    let health = health();
    health.polling_begun();
    health.condition("kafka", "pages").ok();
    health.condition("disk", "/a \"b\"").failing("full");
    let mut metrics = Metrics::new();
    health.register(metrics.registry());
    let text = metrics.text();
    for line in [
        "agora_rtm_bridge_ready 0\n",
        "agora_rtm_bridge_condition_failing{condition=\"kafka\",subject=\"pages\"} 0\n",
        "agora_rtm_bridge_condition_failing{condition=\"disk\",subject=\"/a \\\"b\\\"\"} 1\n",
    ] {
        assert!(text.contains(line), "no {line}in\n{text}");
    }
}

#[test]
fn what_is_pending_is_a_reason_but_no_failure_and_failing_is_news_after_it() {
    let log = captured(Format::Text, "info", || {
        let health = Health::new(Clock::system());
        health.polling_begun();
        let condition = health.condition("publishing", "partition 1");
        condition.pending("not claimed yet");
        assert_eq!(health.readiness().reasons[0].reason, "not claimed yet");
        condition.ok();
        condition.pending("not claimed yet");
        condition.failing("no broker");
        condition.ok();
    });
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains("failing") && lines[0].contains("no broker"), "{log}");
    assert!(lines[1].contains("recovered"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn a_condition_fails_while_one_of_its_holders_does() {
    let health = health();
    health.polling_begun();
    let [one, other, third] = [(); 3].map(|()| health.condition("journal", ""));
    let log = captured(Format::Text, "info", || {
        one.failing("no room for one");
        other.failing("no room for the other");
        third.ok();
        assert_eq!(health.readiness().reasons[0].reason, "no room for the other");
        other.ok();
        assert_eq!(health.readiness().reasons[0].reason, "no room for one");
        one.clone().ok();
        assert!(health.readiness().ready);
    });
    assert_eq!(log.lines().count(), 2, "{log}");
}

#[tokio::test(start_paused = true)]
async fn what_a_dropped_holder_said_lasts_until_another_one_is_well() {
    let health = health();
    health.polling_begun();
    let other = health.condition("journal", "");
    for reason in ["first", "second"] {
        let holder = health.condition("journal", "");
        let clone = holder.clone();
        holder.failing(reason);
        drop(holder);
        assert_eq!(health.readiness().reasons[0].reason, reason);
        drop(clone);
    }
    assert_eq!(health.readiness().reasons[0].reason, "second");
    let log = captured(Format::Text, "info", || other.ok());
    assert!(log.contains("recovered"), "{log}");
    assert!(health.readiness().ready);
}

#[tokio::test(start_paused = true)]
async fn one_cause_is_logged_again_when_all_that_it_made_fail_had_recovered() {
    let health = health();
    let [one, other] = ["partition 0", "partition 1"].map(|it| health.condition("publishing", it));
    let failing = |log: &str| log.lines().filter(|line| line.contains("failing")).count();
    let log = captured(Format::Text, "info", || {
        one.failing_alike("no broker");
        other.failing_alike("no broker");
        one.ok();
        one.failing_alike("no broker");
    });
    assert_eq!(failing(&log), 1, "{log}");
    let log = captured(Format::Text, "info", || {
        one.failing_alike("not authorised");
        one.ok();
        other.ok();
        one.failing_alike("no broker");
    });
    assert_eq!(failing(&log), 1, "{log}");
}

#[tokio::test(start_paused = true)]
async fn what_is_watched_is_a_reason_and_a_metric_while_it_lasts_and_is_not_logged() {
    let health = health();
    health.polling_begun();
    let is_wrong = Arc::new(AtomicBool::new(true));
    let look = Arc::clone(&is_wrong);
    health.watch("logs", move || {
        let since = Timestamp::from_millis(7);
        look.load(Ordering::Relaxed).then(|| Trouble { reason: "full".to_owned(), since })
    });
    let mut metrics = Metrics::new();
    health.register(metrics.registry());
    let log = captured(Format::Text, "info", || {
        let since = Timestamp::from_millis(7);
        let (condition, subject, reason) = ("logs", String::new(), "full".to_owned());
        let expected = Reason { condition, subject, reason, since };
        assert_eq!(health.readiness().reasons, [expected]);
        let text = metrics.text();
        assert!(text.contains("failing{condition=\"logs\",subject=\"\"} 1\n"), "{text}");
        assert!(text.contains("ready 0\n"), "{text}");
        is_wrong.store(false, Ordering::Relaxed);
        assert!(health.readiness().ready);
    });
    assert_eq!(log, "");
}
