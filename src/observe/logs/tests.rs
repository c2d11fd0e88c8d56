use tracing::{debug, info, info_span, warn};

use super::*;

/// A line without its time, whose format is checked.
fn untimed(line: &str) -> &str {
    let (time, rest) = line.split_once(' ').unwrap();
    assert_eq!(time.len(), "2020-01-03T04:56:58.981Z".len(), "{line}");
    assert!(time.ends_with('Z'), "{line}");
    rest
}

#[test]
fn text_is_time_level_message_fields() {
    let log = captured(Format::Text, "info", || {
        warn!(endpoint = "user_events", error = %"connect: refused", tries = 3, "poll refused");
    });
    assert_eq!(
        untimed(&log),
        "WARN  poll refused endpoint=user_events error=\"connect: refused\" tries=3\n"
    );
}

#[test]
fn fields_of_spans_follow_the_fields_of_the_event() {
    let log = captured(Format::Text, "info", || {
        let span = info_span!("poll", app = "a");
        span.in_scope(|| {
            let inner = info_span!("host", host = %"h");
            inner.in_scope(|| info!(tries = 1, "asked"));
        });
    });
    assert_eq!(untimed(&log), "INFO  asked tries=1 app=a host=h\n");
}

#[test]
fn nothing_that_is_logged_can_begin_a_second_line() {
    for format in [Format::Text, Format::Json] {
        let log = captured(format, "info", || {
            info!(body = %"<html>\r\n</html>", name = "a\u{1b}[31m", "seen\n{}", "x\ny");
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(!log.trim_end().contains(|c: char| c.is_ascii_control()), "{log:?}");
    }
}

#[test]
fn colour_is_only_where_it_is_asked_for() {
    let log = |colour| {
        let style = Style { format: Format::Text, colour };
        capture(style, "info", || info!(a = 1, "seen"))
    };
    assert!(log(true).contains('\u{1b}'));
    assert!(!log(false).contains('\u{1b}'));
}

#[test]
fn json_is_one_flat_object() {
    let log = captured(Format::Json, "info", || {
        let span = info_span!("poll", app = "a");
        span.in_scope(|| warn!(tries = 3, error = %"no\nroute", "poll refused"));
    });
    let object: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!(object["level"], "WARN");
    assert_eq!(object["message"], "poll refused");
    assert_eq!(object["tries"], 3);
    assert_eq!(object["error"], "no\nroute");
    assert_eq!(object["span"]["app"], "a");
    assert!(object["timestamp"].as_str().unwrap().ends_with('Z'), "{log}");
}

#[test]
fn librdkafka_is_heard_from_warn_on_unless_the_filter_says_otherwise() {
    let lines = |filter| {
        captured(Format::Text, filter, || {
            warn!(target: "librdkafka", "1");
            info!(target: "rdkafka::client", "2");
            debug!(target: "librdkafka", "3");
            info!("4");
        })
        .lines()
        .count()
    };
    for (filter, expected) in [
        ("info", 2),
        ("debug,", 2),
        ("info,librdkafka=debug", 3),
        ("error,librdkafka=info", 1),
        ("error", 0),
        ("off", 0),
    ] {
        assert_eq!(lines(filter), expected, "{filter}");
    }
}

#[test]
fn a_line_of_another_crate_names_its_target() {
    let log = captured(Format::Text, "info", || warn!(target: "librdkafka", "FAIL"));
    assert_eq!(untimed(&log), "WARN  FAIL target=librdkafka\n");
}

#[test]
fn a_filter_that_cannot_be_read_is_an_error_that_names_it() {
    let error = dispatch(Style { format: Format::Text, colour: false }, "info,a=loud", io::sink)
        .unwrap_err();
    assert_eq!(error.to_string(), "read the log filter `info,a=loud`");
}

#[test]
fn an_error_has_the_room_of_errors_and_a_warning_has_not() {
    let queue = Queue::new(QueueLimits { room: 0, ..LIMITS });
    captured(Format::Text, "info", || {});
    let style = Style { format: Format::Text, colour: false };
    let dispatch = dispatch(style, "info", queue.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        error!("kept");
        warn!("dropped");
    });
    let missing = queue.missing().unwrap();
    assert_eq!((missing.lines, missing.errors), (1, 0));
}

#[test]
fn the_line_about_dropped_ones_looks_like_the_others_and_is_an_error_if_one_of_them_was() {
    let since = Clock::system().now();
    let line = |format, errors| {
        let style = Style { format, colour: false };
        let line = report(Some(&style), Dropped { lines: 7, errors, since });
        String::from_utf8(line).unwrap()
    };
    let text = line(Format::Text, 0);
    assert!(untimed(&text).starts_with("WARN  log lines dropped: "), "{text}");
    assert!(text.contains(" lines=7 lasted=") && text.ends_with('\n'), "{text}");
    let json: serde_json::Value = serde_json::from_str(&line(Format::Json, 2)).unwrap();
    assert_eq!(
        (&json["level"], &json["lines"], &json["errors"]),
        (&"ERROR".into(), &7.into(), &2.into())
    );
}

#[test]
fn what_is_missing_is_a_reason_not_to_be_ready_while_it_is() {
    let queue = Queue::new(QueueLimits { room: 0, room_for_errors: 0, ..LIMITS });
    let health = Health::new(Clock::system());
    health.polling_begun();
    let watched = queue.clone();
    health.watch("logs", move || watched.missing().map(|missing| trouble(&missing)));
    assert!(health.readiness().ready);
    queue.push(Level::ERROR, b"x\n");
    queue.push(Level::INFO, b"x\n");
    let reason = &health.readiness().reasons[0];
    assert_eq!(reason.condition, "logs");
    assert!(reason.reason.contains("2 log lines dropped, 1 of them errors"), "{reason:?}");
    queue.close();
    queue.write_to(io::sink(), |_| b"report\n".to_vec());
    assert!(health.readiness().ready);
}
