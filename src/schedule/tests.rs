mod hosts;

use rand::RngExt as _;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn limits() -> Limits {
    Limits {
        requests_per_second: NonZeroU32::new(10).unwrap(),
        shortest_interval: Duration::from_millis(250),
        longest_interval: Duration::from_secs(2),
    }
}

fn schedule(feeds: usize, now: Instant) -> Schedule {
    schedule_of(&vec![TWO_HOSTS; feeds], now)
}

const TWO_HOSTS: FeedFacts = FeedFacts { region: 0, hosts: 2, known: None };
const ONE_HOST: FeedFacts = FeedFacts { region: 0, hosts: 1, known: None };

fn schedule_of(feeds: &[FeedFacts], now: Instant) -> Schedule {
    Schedule::new(limits(), feeds, now, nothing_before(now), 7)
}

fn nothing_before(now: Instant) -> Former {
    Former { sent: Vec::new(), not_before: now, unknown_until: now }
}

const FAILED: Outcome = Outcome::Failed { retry_after: None };

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused { refusal, retry_after: None }
}

/// A page of this many events with unreadable times.
fn page(events: u64) -> Outcome {
    Outcome::Events(Seen { events, ..Seen::default() })
}

fn at(now: Instant) -> Answered {
    Answered { head_at: Some(now), now, wall: Timestamp::default() }
}

/// Polls the only feed when the schedule wants to, and answers after `took`. Returns when it was
/// polled, and through which host.
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
                let asked = schedule.asked(feed, asked_at);
                *now += took;
                schedule.answered(asked, at(*now), outcome);
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
    let full = intervals(&[page(3), page(1_000), page(1_000), page(3), page(0)]);
    assert_eq!(full[..3], [250, 30, 30]);
    assert!(full[3] <= 250, "a feed that has burst: {full:?}");
    assert_eq!(intervals(&[page(0); 7]), [500, 1_000, 2_000, 2_000, 2_000, 2_000]);
}

#[test]
fn a_feed_that_could_overflow_is_asked_before_it_does() {
    let intervals = intervals(&[[page(0); 3], [page(900); 3]].concat());
    assert_eq!(intervals[..3], [500, 1_000, 2_000]);
    assert!(intervals[3..].iter().all(|interval| *interval <= 250), "{intervals:?}");
}

/// Two feeds with a few events each. Returns when each request leaves.
fn asks_of_two(
    outcome: impl Fn(usize, Duration) -> Outcome,
    lasts: Duration,
) -> Vec<(usize, Duration)> {
    let begin = Instant::now();
    let (mut now, mut asks) = (begin, Vec::new());
    let mut schedule = schedule(2, now);
    let mut out: Vec<(Instant, usize, Asked)> = Vec::new();
    while now < begin + lasts {
        let until = match schedule.next(now) {
            Decision::Ask { feed, .. } => {
                asks.push((feed, now - begin));
                out.push((now + 30 * MILLISECOND, feed, schedule.asked(feed, now)));
                continue;
            }
            Decision::Wait(until) => until,
            Decision::WaitForAnswer => now + SECOND,
        };
        now = out.iter().map(|it| it.0).chain([until]).min().unwrap();
        if let Some(done) = out.iter().position(|it| it.0 <= now) {
            let (_, feed, asked) = out.remove(done);
            schedule.answered(asked, at(now), outcome(feed, now - begin));
        }
    }
    asks
}

/// Requests that leave together become free together a second later, and then none is free in
/// between for a sudden load.
#[test]
fn requests_for_freshness_leave_apart() {
    let asks = asks_of_two(|_, _| page(5), 10 * SECOND);
    let later: Vec<Duration> = asks.iter().map(|it| it.1).filter(|at| *at > SECOND).collect();
    assert!(later.len() >= 70, "{}", later.len());
    for pair in later.windows(2) {
        assert!(pair[1] - pair[0] >= 90 * MILLISECOND, "{pair:?}");
    }
}

#[test]
fn a_burst_at_one_endpoint_makes_the_other_one_be_asked() {
    let burst_at = 20 * SECOND;
    let outcome = |feed, now| match feed {
        0 if (burst_at..burst_at + 2 * SECOND).contains(&now) => page(800),
        _ => page(0),
    };
    let asks = asks_of_two(outcome, 23 * SECOND);
    let found = asks.iter().find(|it| it.0 == 0 && it.1 + 30 * MILLISECOND >= burst_at).unwrap().1;
    let other = asks.iter().find(|it| it.0 == 1 && it.1 > found).unwrap().1;
    assert!(other - found <= 100 * MILLISECOND, "{:?}", other - found);
}

#[test]
fn the_preferred_host_is_asked_again_after_a_while() {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    for _ in 0..2 {
        ask(&mut schedule, &mut now, SECOND, FAILED);
    }
    let start = now;
    while ask(&mut schedule, &mut now, MILLISECOND, page(0)).1 != 0 {
        assert!(now < start + 400 * SECOND, "never back");
    }
    assert!(now > start + 300 * SECOND);
}

#[test]
fn a_throttled_app_waits_as_told_and_recovers_slowly() {
    let retry_after = Some(5 * SECOND);
    for (refusals, at_first) in [(1, 9), (2, 6), (3, 4)] {
        let mut now = Instant::now();
        let mut schedule = schedule(1, now);
        for _ in 0..refusals {
            let outcome = Outcome::Throttled { retry_after };
            ask(&mut schedule, &mut now, MILLISECOND, outcome);
            assert_eq!(schedule.next(now), Decision::Wait(now + 5 * SECOND));
        }
        let begin = now + 5 * SECOND;
        let mut asked = Vec::new();
        while now < begin + 100 * SECOND {
            asked.push(ask(&mut schedule, &mut now, MILLISECOND, page(1_000)).0);
        }
        let within_five_seconds = |from: u32| {
            let of = begin + from * SECOND..begin + (from + 5) * SECOND;
            asked.iter().filter(|at| of.contains(at)).count()
        };
        let first = within_five_seconds(0);
        assert!((5 * at_first - 3..=5 * at_first).contains(&first), "{refusals}: {first}");
        assert!(within_five_seconds(90) >= 45, "{refusals}");
    }
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
        let former = Former { sent, ..nothing_before(now) };
        let schedule = Schedule::new(limits(), &[ONE_HOST], now, former, 7);
        let until = match schedule.next(now) {
            Decision::Wait(until) => until - now,
            _ => Duration::ZERO,
        };
        assert_eq!(until, Duration::from_millis(wait));
    }
}

#[test]
fn what_is_refused_together_is_one_refusal() {
    let mut now = Instant::now();
    let mut schedule = schedule(4, now);
    let asked: Vec<Asked> = (0..4)
        .map(|_| match schedule.next(now) {
            Decision::Ask { feed, .. } => schedule.asked(feed, now),
            decision => panic!("{decision:?}"),
        })
        .collect();
    for asked in asked {
        now += MILLISECOND;
        schedule.answered(asked, at(now), Outcome::Throttled { retry_after: None });
    }
    let begin = now;
    let mut asks = 0;
    while now < begin + 5 * SECOND {
        ask(&mut schedule, &mut now, MILLISECOND, page(1_000));
        asks += 1;
    }
    assert!(asks >= 40, "{asks} in five seconds: slower than nine a second");
}

/// By its forecast, a feed that fails has long overflowed. It must not be polled early for that.
#[test]
fn a_busy_feed_that_fails_leaves_the_budget_to_the_other() {
    let mut now = Instant::now();
    let mut schedule = schedule(2, now);
    let mut asks = [0; 2];
    let begin = now;
    while now < begin + 40 * SECOND {
        match schedule.next(now) {
            Decision::Ask { feed, .. } => {
                let asked = schedule.asked(feed, now);
                now += 20 * MILLISECOND;
                let fails = feed == 0 && now > begin + 20 * SECOND;
                let outcome = if fails { FAILED } else { page([700, 5][feed]) };
                schedule.answered(asked, at(now), outcome);
                asks[feed] += u32::from(now > begin + 20 * SECOND);
            }
            Decision::Wait(until) => now = until,
            Decision::WaitForAnswer => panic!("no request is out"),
        }
    }
    // Each of its two hosts has its own backoff.
    assert!(asks[0] <= 2 * 8 && asks[1] >= 60, "{asks:?}");
}

/// A hanging request counts until it ends.
#[test]
fn a_feed_that_hangs_leaves_requests_to_the_other() {
    for (limit, at_least) in [(2, 10), (4, 20), (10, 50)] {
        let mut now = Instant::now();
        let facts = [ONE_HOST; 2];
        let limits = Limits { requests_per_second: NonZeroU32::new(limit).unwrap(), ..limits() };
        let mut schedule = Schedule::new(limits, &facts, now, nothing_before(now), 7);
        let begin = now;
        let mut asks = 0;
        while now < begin + 14 * SECOND {
            match schedule.next(now) {
                Decision::Ask { feed: 0, .. } => drop(schedule.asked(0, now)),
                Decision::Ask { feed, .. } => {
                    let asked = schedule.asked(feed, now);
                    now += 20 * MILLISECOND;
                    schedule.answered(asked, at(now), page(5));
                    asks += 1;
                }
                Decision::Wait(until) => now = until,
                Decision::WaitForAnswer => break,
            }
        }
        assert!(asks >= at_least, "{limit} a second: {asks}");
    }
}

/// Nothing is expected of the silent request, so its events are not missing from the sum.
#[test]
fn a_silent_request_does_not_keep_a_rate_from_being_measured() {
    let mut now = Instant::now();
    let mut schedule = schedule(1, now);
    for _ in 0..20 {
        ask(&mut schedule, &mut now, 20 * MILLISECOND, page(50));
    }
    while let Decision::Wait(until) = schedule.next(now) {
        now = until;
    }
    schedule.asked(0, now);
    let hangs_since = now;
    while now < hangs_since + 10 * SECOND {
        ask(&mut schedule, &mut now, 20 * MILLISECOND, page(700));
    }
    let rate = schedule.pace(0, now).events_per_second;
    assert!(rate > 2_000.0, "{rate}");
}

/// On any path with constant properties the server never counts more than the limit. All pages are
/// full, and the two halves of a round trip vary independently.
#[test]
fn the_server_never_counts_too_many() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let least = random.random_range(0..200_000);
        let jitter = random.random_range(0..60_000);
        let feeds = random.random_range(1..5);
        let mut half = || Duration::from_micros(least + random.random_range(0..=jitter));
        let mut now = Instant::now();
        let mut schedule = schedule(feeds, now);
        let mut arrivals = Vec::new();
        let mut out: Vec<(Instant, u64, Asked)> = Vec::new();
        for number in 0..400 {
            let feed = loop {
                out.sort_by_key(|(at, number, _)| (*at, *number));
                match schedule.next(now) {
                    Decision::Ask { feed, .. } => break feed,
                    Decision::Wait(until) if out.first().is_none_or(|(at, ..)| until <= *at) => {
                        now = until;
                    }
                    Decision::Wait(_) | Decision::WaitForAnswer => {
                        let (answered, _, asked) = out.remove(0);
                        now = now.max(answered);
                        schedule.answered(asked, at(now), page(1_000));
                    }
                }
            };
            let asked = schedule.asked(feed, now);
            let arrives = now + half();
            arrivals.push(arrives);
            out.push((arrives + half(), number, asked));
        }
        arrivals.sort();
        for window in arrivals.windows(11) {
            assert!(window[10] - window[0] >= SECOND, "seed {seed}: {least} + {jitter} µs");
        }
    }
}
