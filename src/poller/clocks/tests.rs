//! Clocks that are wrong, that jump, and that report one wrong time.

use super::*;
use crate::observe::logs::{Format, captured};

const HOST: &str = "https://api.agora.test";
const HOUR: i64 = 3_600_000;
const NOON: i64 = 1_700_000_000_000;

/// Our clocks.
struct Ours {
    began: Instant,
    /// How far the wall clock has been set forward.
    set: i64,
    slept: i64,
    clocks: Clocks,
}

impl Ours {
    fn new() -> Self {
        Self { began: Instant::now(), set: 0, slept: 0, clocks: Clocks::default() }
    }

    fn at(&self, seconds: u64) -> Moment {
        let since = Duration::from_secs(seconds);
        let wall = Timestamp::from_millis(NOON + 500 + self.set + self.slept).after(since);
        Moment { wall, monotonic: self.began + since }
    }

    /// An answer arrives whose `Date` is wrong by `wrong_by` milliseconds.
    fn hear(&self, seconds: u64, wrong_by: i64) {
        let true_time = NOON + self.slept + i64::try_from(seconds).unwrap() * 1_000 + 500;
        let date = Timestamp::from_millis((true_time + wrong_by) / 1_000 * 1_000);
        self.clocks.observe(HOST, date, self.at(seconds));
    }

    /// How far the host's clock is ahead of ours, in seconds.
    fn ahead(&self, seconds: u64) -> i64 {
        let ours = self.at(seconds).wall;
        let millis = self.clocks.by_host(HOST, ours).as_millis() - ours.as_millis();
        millis / 1_000
    }
}

#[test]
fn a_clock_that_is_right_is_left_alone() {
    let ours = Ours::new();
    assert_eq!(ours.ahead(0), 0, "nothing is known");
    (0..20).for_each(|second| ours.hear(second, 0));
    assert_eq!(ours.ahead(20), 0);
    assert!(ours.clocks.snapshot()[HOST].abs() < 1.0);
}

#[test]
fn a_wild_date_now_and_then_changes_nothing() {
    let ours = Ours::new();
    for second in 0..100 {
        let wild = second % 3 == 2 && second > 3;
        ours.hear(second, if wild { 40_000 * HOUR } else { -HOUR });
        if second > 3 {
            assert_eq!(ours.ahead(second), -3_600, "{second}");
        }
    }
}

#[test]
fn what_many_answers_of_one_second_say_is_one_sample() {
    let ours = Ours::new();
    (0..9).for_each(|second| ours.hear(second, 0));
    (0..100).for_each(|_| ours.hear(9, HOUR));
    assert_eq!(ours.ahead(9), 0);
}

#[test]
fn a_clock_that_is_set_is_known_with_the_next_answer() {
    for set in [HOUR, -HOUR] {
        let mut ours = Ours::new();
        (0..20).for_each(|second| ours.hear(second, 0));
        ours.set = set;
        ours.hear(20, 0);
        assert_eq!(ours.ahead(20), -set / 1_000);
    }
}

#[test]
fn a_machine_that_sleeps_has_the_right_time_afterwards() {
    let mut ours = Ours::new();
    (0..20).for_each(|second| ours.hear(second, 0));
    ours.slept = 7 * HOUR;
    assert_eq!(ours.ahead(20), 0);
    (20..40).for_each(|second| ours.hear(second, 0));
    assert_eq!(ours.ahead(40), 0);
}

#[test]
fn a_person_is_told_once_of_clocks_that_are_far_apart() {
    let log = captured(Format::Text, "info", || {
        let mut ours = Ours::new();
        (0..50).for_each(|second| ours.hear(second, 59_000));
        (50..100).for_each(|second| ours.hear(second, 70_000));
        // Near the limit it is still the same episode.
        (100..150).for_each(|second| ours.hear(second, 55_000));
        (150..200).for_each(|second| ours.hear(second, 70_000));
        (200..250).for_each(|second| ours.hear(second, 0));
        ours.set = HOUR;
        (250..300).for_each(|second| ours.hear(second, 0));
    });
    let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains("seconds=70"), "{log}");
    assert!(lines[1].starts_with("INFO") && lines[1].contains("agree again"), "{log}");
    assert!(lines[2].starts_with("WARN") && lines[2].contains("seconds=-3600"), "{log}");
}

#[test]
fn no_date_makes_it_panic() {
    let clocks = Clocks::default();
    for date in [i64::MIN, 0, i64::MAX, NOON] {
        let wall = Timestamp::from_millis(i64::MIN);
        let now = Moment { wall, monotonic: Instant::now() };
        clocks.observe(HOST, Timestamp::from_millis(date), now);
        clocks.by_host(HOST, Timestamp::from_millis(i64::MAX));
    }
}

#[test]
fn the_host_of_a_url_is_what_was_configured() {
    let path = "/dev/v2/project/a/rtm/vendor/user_events";
    for host in ["https://api.agora.io", "http://127.0.0.1:8190", "http://[::1]:1"] {
        assert_eq!(host_of(&format!("{host}{path}")), host);
    }
    assert_eq!(host_of("odd"), "odd");
}
