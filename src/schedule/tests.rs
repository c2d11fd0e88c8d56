use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        requests_per_second: NonZeroU32::new(10).unwrap(),
        shortest_interval: Duration::from_millis(250),
        longest_interval: Duration::from_secs(2),
    }
}

fn schedule(feeds: usize, now: Instant) -> Schedule {
    let former = Former { sent: Vec::new(), not_before: now };
    Schedule::new(limits(), &vec![2; feeds], now, former, 7)
}

/// Asks the only feed when the schedule wants to, and answers after `took`; when it was asked, and
/// on which host.
fn ask(
    schedule: &mut Schedule,
    now: &mut Instant,
    took: Duration,
    outcome: Outcome,
) -> (Instant, usize) {
    loop {
        match schedule.next(*now) {
            Decision::Ask { feed, host } => {
                let asked_at = *now;
                schedule.asked(feed, asked_at);
                *now += took;
                schedule.answered(feed, *now, outcome);
                return (asked_at, host);
            }
            Decision::Wait(until) => *now = until,
            Decision::WaitForAnswer => panic!("no request is out"),
        }
    }
}

fn intervals(outcomes: &[Outcome]) -> Vec<u128> {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    let took = Duration::from_millis(30);
    let asked: Vec<Instant> =
        outcomes.iter().map(|outcome| ask(&mut schedule, &mut now, took, *outcome).0).collect();
    asked.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect()
}

#[test]
fn a_full_page_is_followed_at_once_and_an_empty_one_ever_later() {
    use Outcome::Events;
    assert_eq!(
        intervals(&[Events(1_000), Events(1_000), Events(3), Events(0), Events(0), Events(0)]),
        [30, 30, 250, 500, 1_000],
    );
    assert_eq!(intervals(&[Events(0); 6])[2..], [2_000, 2_000, 2_000]);
}

#[test]
fn a_feed_that_could_overflow_is_asked_before_it_does() {
    let outcomes = [Outcome::Events(900), Outcome::Events(900), Outcome::Events(0)];
    let intervals = intervals(&[&outcomes[..], &[Outcome::Events(0); 3]].concat());
    assert!(intervals[2..].iter().all(|interval| *interval < 600), "{intervals:?}");
}

#[test]
fn failures_wait_longer_each_time_and_move_to_the_next_host() {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    let mut hosts = Vec::new();
    let mut waits = Vec::new();
    for _ in 0..5 {
        let Decision::Ask { feed, host } = schedule.next(now) else { panic!("due") };
        hosts.push(host);
        schedule.asked(feed, now);
        schedule.answered(feed, now, Outcome::Failed);
        let Decision::Wait(until) = schedule.next(now) else { panic!("backs off") };
        waits.push((until - now).as_secs_f64());
        now = until;
    }
    assert_eq!(hosts, [0, 0, 1, 0, 1]);
    for (wait, expected) in waits.iter().zip([0.25, 1.0, 3.0, 6.0, 6.0]) {
        assert!((expected * 0.8..=expected * 1.2).contains(wait), "{waits:?}");
    }
}

#[test]
fn the_preferred_host_is_asked_again_after_a_while() {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    for _ in 0..2 {
        ask(&mut schedule, &mut now, SECOND, Outcome::Failed);
    }
    let start = now;
    while ask(&mut schedule, &mut now, Duration::ZERO, Outcome::Events(0)).1 != 0 {
        assert!(now < start + 400 * SECOND, "never back");
    }
    assert!(now > start + 300 * SECOND);
}

#[test]
fn a_throttled_app_waits_as_told_and_recovers_slowly() {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    let retry_after = Some(5 * SECOND);
    let (asked_at, _) = ask(&mut schedule, &mut now, SECOND, Outcome::Throttled { retry_after });
    assert_eq!(schedule.next(now), Decision::Wait(asked_at + 6 * SECOND));
    let mut asked = Vec::new();
    let begin = asked_at + 6 * SECOND;
    while now < begin + 100 * SECOND {
        asked.push(ask(&mut schedule, &mut now, Duration::ZERO, Outcome::Events(1_000)).0);
    }
    let within = |from: u32| {
        asked
            .iter()
            .filter(|at| (begin + from * SECOND..begin + (from + 5) * SECOND).contains(at))
            .count()
    };
    assert!(within(0) <= 25, "{}", within(0));
    assert!(within(90) >= 45, "{}", within(90));
}

#[test]
fn requests_of_a_former_process_count_until_their_second_is_over() {
    let now = Instant::now();
    let ago = |millis| now - Duration::from_millis(millis);
    for (sent, wait) in [
        (vec![], 0),
        (vec![ago(5); 9], 0),
        (vec![ago(5); 10], 1_035),
        ((0..10).map(|n| ago(1_000 - 100 * n)).collect(), 40),
        ((0..10).map(|n| ago(2_000 + n)).collect(), 0),
    ] {
        let former = Former { sent, not_before: now };
        let schedule = Schedule::new(limits(), &[1], now, former, 7);
        let until = match schedule.next(now) {
            Decision::Wait(until) => until - now,
            _ => Duration::ZERO,
        };
        assert_eq!(until, Duration::from_millis(wait));
    }
}

#[test]
fn a_refused_app_is_asked_once_a_minute() {
    assert_eq!(intervals(&[Outcome::Refused; 3]), [60_030, 60_030]);
}

proptest! {
    /// Whatever happens, the server never counts more than the limit: every request arrives up to
    /// 20 ms late, and all are full pages.
    #[test]
    fn the_server_never_counts_too_many(
        delays in prop::collection::vec((0_u64..20, 0_u64..20), 200),
        feeds in 1_usize..5,
    ) {
        let mut now = Instant::now();
        let mut schedule = schedule(feeds, now);
        let mut arrivals = Vec::new();
        let mut out: Vec<(Instant, usize)> = Vec::new();
        for (there, back) in delays {
            let asked = loop {
                out.sort();
                match schedule.next(now) {
                    Decision::Ask { feed, .. } => break feed,
                    Decision::Wait(until) if out.first().is_none_or(|(at, _)| until <= *at) => {
                        now = until;
                    }
                    Decision::Wait(_) | Decision::WaitForAnswer => {
                        let (at, feed) = out.remove(0);
                        now = now.max(at);
                        schedule.answered(feed, now, Outcome::Events(1_000));
                    }
                }
            };
            schedule.asked(asked, now);
            arrivals.push(now + Duration::from_millis(there));
            out.push((now + Duration::from_millis(there + back), asked));
        }
        arrivals.sort();
        for window in arrivals.windows(11) {
            prop_assert!(window[10] - window[0] >= SECOND);
        }
    }
}
