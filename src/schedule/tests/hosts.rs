//! Hosts that fail, refuse, are slow, or are left for nearer ones.

use rand::RngExt as _;

use super::*;

/// Plays the only feed against hosts whose answers depend on the time since the start, until
/// `ends`. Returns when each request left, in milliseconds, and to which host.
fn play(
    schedule: &mut Schedule,
    start: Instant,
    ends: Duration,
    answer: impl Fn(usize, Duration) -> Outcome,
) -> Vec<(u128, usize)> {
    let mut now = start;
    let mut asks = Vec::new();
    loop {
        match schedule.next(now) {
            Decision::Ask { feed, host } => {
                let since = now - start;
                asks.push((since.as_millis(), host));
                let asked = schedule.asked(feed, now);
                now += 5 * MILLISECOND;
                schedule.answered(asked, at(now), answer(host, since));
            }
            Decision::Wait(until) if until < start + ends => now = until,
            _ => return asks,
        }
    }
}

/// Pauses between requests to one host.
fn pauses(asks: &[(u128, usize)], host: usize) -> Vec<u128> {
    let times: Vec<u128> = asks.iter().filter(|it| it.1 == host).map(|it| it.0).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn a_host_that_fails_is_asked_again_soon_and_then_every_six_seconds() {
    for hosts in [ONE_HOST, TWO_HOSTS] {
        let start = Instant::now();
        let mut schedule = schedule_of(&[hosts], start);
        let asks = play(&mut schedule, start, 60 * SECOND, |_, _| FAILED);
        for host in 0..hosts.hosts {
            let waits = [250, 500, 1_000, 2_000, 3_000, 6_000, 6_000];
            // A single failure of the preferred host is no reason to leave it.
            let pauses = pauses(&asks, host);
            for (pause, wait) in pauses.iter().zip(waits) {
                let allowed = wait * 8 / 10..=wait + 300;
                assert!(allowed.contains(pause), "host {host} of {asks:?}: {pauses:?}");
            }
            assert!(pauses.len() > waits.len(), "{pauses:?}");
        }
        assert_eq!(asks[0].1, asks[1].1, "a single failure moves no feed");
    }
}

#[test]
fn a_host_that_refuses_is_asked_ever_less_down_to_once_a_minute() {
    let start = Instant::now();
    let mut schedule = schedule_of(&[ONE_HOST], start);
    let refusal = |_, _| refused(Refusal::Request);
    let asks = play(&mut schedule, start, 600 * SECOND, refusal);
    let pauses = pauses(&asks, 0);
    for (pause, wait) in pauses.iter().zip([1, 3, 6, 12, 24, 48, 60, 60]) {
        assert!((wait * 800..=wait * 1_010).contains(pause), "{pauses:?}");
    }
}

#[test]
fn a_second_host_that_refuses_or_is_dead_does_not_delay_the_first() {
    for (outage, second) in [
        (2_500, refused(Refusal::Request)),
        (2_500, refused(Refusal::Credentials)),
        (1_300, FAILED),
        (2_500, FAILED),
    ] {
        let outage = Duration::from_millis(outage);
        let start = Instant::now();
        let mut schedule = schedule_of(&[TWO_HOSTS], start);
        let asks = play(&mut schedule, start, 60 * SECOND, |host, since| match host {
            0 if since < outage => FAILED,
            0 => page(25),
            _ => second,
        });
        let well = asks.iter().find(|(left, host)| *host == 0 && *left >= outage.as_millis());
        let after = well.expect("it is asked again").0 - outage.as_millis();
        assert!(after < 2_000, "{after} ms after an outage of {outage:?}, {second:?}: {asks:?}");
        let at_second = asks.iter().filter(|(_, host)| *host == 1).count();
        assert!(at_second <= 4, "{asks:?}");
    }
}

#[test]
fn a_stray_refusal_costs_a_second_and_nothing_where_another_answer_contradicts_it() {
    for refusal in [Refusal::Request, Refusal::Credentials] {
        let mut now = Instant::now();
        let mut schedule = schedule_of(&[ONE_HOST], now);
        ask(&mut schedule, &mut now, 5 * MILLISECOND, page(1_000));
        ask(&mut schedule, &mut now, 5 * MILLISECOND, refused(refusal));
        let refused_at = now;
        let (again, _) = ask(&mut schedule, &mut now, 5 * MILLISECOND, page(1_000));
        assert!(again - refused_at <= SECOND, "{:?}", again - refused_at);

        // Two requests are in flight; the first is refused, the second brings a page 10 ms later.
        let mut out = Vec::new();
        while out.len() < 2 {
            match schedule.next(now) {
                Decision::Ask { feed, .. } => out.push(schedule.asked(feed, now)),
                Decision::Wait(until) => now = until,
                Decision::WaitForAnswer => panic!("{refusal:?}"),
            }
        }
        schedule.answered(out[0], at(now), refused(refusal));
        now += 10 * MILLISECOND;
        schedule.answered(out[1], at(now), page(1_000));
        let answered = now;
        let (again, _) = ask(&mut schedule, &mut now, 5 * MILLISECOND, page(1_000));
        assert!(again - answered <= Duration::from_millis(250), "{:?}", again - answered);
    }
}

/// Plays all feeds until `ends`. Returns when each was polled, in milliseconds. Region 0 is bad.
fn play_regions(
    schedule: &mut Schedule,
    start: Instant,
    ends: Duration,
    answer: impl Fn(usize, Duration) -> Outcome,
) -> Vec<(u128, usize)> {
    let mut now = start;
    let mut asks = Vec::new();
    loop {
        match schedule.next(now) {
            Decision::Ask { feed, .. } => {
                asks.push(((now - start).as_millis(), feed));
                let asked = schedule.asked(feed, now);
                now += 5 * MILLISECOND;
                schedule.answered(asked, at(now), answer(feed, now - start));
            }
            Decision::Wait(until) if until < start + ends => now = until,
            _ => return asks,
        }
    }
}

#[test]
fn one_region_that_refuses_costs_only_itself() {
    for refusal in [Refusal::Request, Refusal::Credentials] {
        let start = Instant::now();
        let feeds = [0, 0, 1, 1].map(|region| FeedFacts { region, ..ONE_HOST });
        let mut schedule = schedule_of(&feeds, start);
        let asks = play_regions(&mut schedule, start, 130 * SECOND, |feed, _| {
            if feed < 2 { refused(refusal) } else { page(25) }
        });
        for good in [2, 3] {
            let longest = pauses(&asks, good).into_iter().max().unwrap();
            assert!(longest <= 500, "{refusal:?}: feed {good} waited {longest} ms");
        }
        for bad in [0, 1] {
            let requests = pauses(&asks, bad).len();
            assert!(requests <= 9, "{refusal:?}: {requests} requests to a region that refuses");
        }
        assert!(!schedule.is_locked_out());
    }
}

#[test]
fn an_app_that_all_hosts_lock_out_is_asked_once_a_minute_in_all_each_feed_in_turn() {
    let start = Instant::now();
    let feeds = [0, 0, 1, 1].map(|region| FeedFacts { region, ..TWO_HOSTS });
    let mut schedule = schedule_of(&feeds, start);
    let asks =
        play_regions(&mut schedule, start, 1_200 * SECOND, |_, _| refused(Refusal::Credentials));
    assert!(schedule.is_locked_out());
    let late: Vec<_> = asks.iter().filter(|(left, _)| *left > 180_000).collect();
    for pair in late.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= 60_000, "{late:?}");
    }
    assert!(late.len() >= 14, "{late:?}");
    for feed in 0..4 {
        assert!(late.iter().filter(|it| it.1 == feed).count() >= 3, "{late:?}");
    }
}

#[test]
fn one_good_answer_or_a_new_secret_ends_a_lockout_for_all_feeds() {
    let start = Instant::now();
    for by_secret in [false, true] {
        let mut schedule = schedule_of(&[ONE_HOST, ONE_HOST], start);
        play_regions(&mut schedule, start, 300 * SECOND, |_, _| refused(Refusal::Credentials));
        assert!(schedule.is_locked_out());
        let mut now = start + 300 * SECOND;
        if by_secret {
            schedule.credentials_changed(now);
        } else {
            ask(&mut schedule, &mut now, 5 * MILLISECOND, page(25));
        }
        assert!(!schedule.is_locked_out());
        let asks = play_regions(&mut schedule, now, SECOND, |_, _| page(25));
        for feed in [0, 1] {
            let first = asks.iter().find(|it| it.1 == feed).expect("it is asked").0;
            assert!(first <= 250, "feed {feed}: {asks:?}");
        }
    }
}

#[test]
fn a_delay_that_a_host_names_holds_back_that_host_alone() {
    let start = Instant::now();
    let delay = Some(30 * SECOND);
    for outcome in [
        Outcome::Failed { retry_after: delay },
        Outcome::Refused { refusal: Refusal::Request, retry_after: delay },
    ] {
        let mut schedule = schedule_of(&[TWO_HOSTS], start);
        let answer = |host, _| if host == 0 { outcome } else { page(25) };
        let asks = play(&mut schedule, start, 20 * SECOND, answer);
        assert_eq!(asks.iter().filter(|it| it.1 == 0).count(), 1, "{asks:?}");
        assert!(asks[1].0 <= 300, "{asks:?}");

        let mut alone = schedule_of(&[ONE_HOST], start);
        let asks = play(&mut alone, start, 40 * SECOND, |_, _| outcome);
        assert!(asks[1].0 >= 30_000, "{asks:?}");
        assert!(alone.rests(0, start + 35 * SECOND) > 20 * SECOND);
    }
}

#[test]
fn after_a_long_pause_for_too_many_requests_one_goes_ahead_of_the_others() {
    let mut now = Instant::now();
    let mut schedule = schedule_of(&[ONE_HOST; 4], now);
    let long = Outcome::Throttled { retry_after: Some(60 * SECOND) };
    ask(&mut schedule, &mut now, 5 * MILLISECOND, long);
    for _ in 0..2 {
        let Decision::Wait(until) = schedule.next(now) else { panic!("a pause") };
        now = until;
        let Decision::Ask { feed, .. } = schedule.next(now) else { panic!("it is over") };
        let probe = schedule.asked(feed, now);
        assert_eq!(schedule.next(now), Decision::WaitForAnswer);
        now += 5 * MILLISECOND;
        schedule.answered(probe, at(now), long);
    }
    let Decision::Wait(until) = schedule.next(now) else { panic!("a pause") };
    now = until;
    ask(&mut schedule, &mut now, 5 * MILLISECOND, page(5));
    for _ in 0..3 {
        let Decision::Ask { feed, .. } = schedule.next(now) else { panic!("all may ask again") };
        schedule.asked(feed, now);
    }
}

/// A full page takes 700 ms after a head that takes 100 ms.
#[test]
fn a_body_on_its_way_is_not_silence() {
    let mut now = Instant::now();
    let start = now;
    let mut schedule = schedule_of(&[ONE_HOST], now);
    for _ in 0..5 {
        ask(&mut schedule, &mut now, 100 * MILLISECOND, page(1_000));
    }
    let mut out: Vec<(Instant, Asked, bool)> = Vec::new();
    let mut answered = 0;
    while now < start + 10 * SECOND {
        let next = out.iter().map(|it| it.0).min();
        match schedule.next(now) {
            Decision::Ask { feed, .. } => {
                let asked = schedule.asked(feed, now);
                out.push((now + 100 * MILLISECOND, asked, false));
            }
            Decision::Wait(until) if next.is_none_or(|next| until <= next) => now = until,
            _ => {
                now = next.expect("a request is out");
                let index = out.iter().position(|it| it.0 == now).unwrap();
                let (_, asked, heard) = out.remove(index);
                if heard {
                    let head_at = Some(now - 700 * MILLISECOND);
                    schedule.answered(asked, Answered { head_at, ..at(now) }, page(1_000));
                    answered += 1;
                } else {
                    schedule.heard(asked, now);
                    out.push((now + 700 * MILLISECOND, asked, true));
                }
            }
        }
    }
    assert!(answered >= 70, "{answered} pages in ten seconds");
}

/// Two feeds with full pages for the duration of 200 requests, over paths that change. Returns when
/// each request arrived. `way` gives the round trip to a host that begins this long after the
/// start, and whether it fails.
fn arrivals(
    hosts: FeedFacts,
    seed: u64,
    way: impl Fn(usize, Duration) -> (Duration, bool),
) -> Vec<Instant> {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = Schedule::new(limits(), &[hosts; 2], now, nothing_before(now), seed);
    let mut arrivals = Vec::new();
    let mut out: Vec<(Instant, u64, Asked, Outcome)> = Vec::new();
    for number in 0..200 {
        let (feed, host) = loop {
            out.sort_by_key(|it| (it.0, it.1));
            match schedule.next(now) {
                Decision::Ask { feed, host } => break (feed, host),
                Decision::Wait(until) if out.first().is_none_or(|it| until <= it.0) => now = until,
                _ => {
                    let (answered, _, asked, outcome) = out.remove(0);
                    now = now.max(answered);
                    schedule.answered(asked, at(now), outcome);
                }
            }
        };
        let asked = schedule.asked(feed, now);
        let (trip, fails) = way(host, now - start);
        arrivals.push(now + trip / 2);
        out.push((now + trip, number, asked, if fails { FAILED } else { page(1_000) }));
    }
    arrivals.sort();
    arrivals
}

/// The budget is used up at a distant host, which fails; the near one answers within milliseconds.
#[test]
fn a_move_to_a_nearer_host_never_brings_too_many_requests_into_a_second() {
    for seed in 0..1_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let far = Duration::from_millis(random.random_range(100..400));
        let near = Duration::from_micros(random.random_range(200..30_000));
        let dies_at = Duration::from_millis(random.random_range(4_000..6_000));
        let arrivals = arrivals(TWO_HOSTS, seed, |host, since| match host {
            0 => (far, since >= dies_at),
            _ => (near, false),
        });
        for window in arrivals.windows(11) {
            assert!(window[10] - window[0] >= SECOND, "seed {seed}: {far:?}, then {near:?}");
        }
    }
}

/// No budget can know about this before the first answer over the faster path.
#[test]
fn a_way_that_becomes_faster_brings_eleven_requests_into_a_second_at_most_once() {
    for seed in 0..1_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let slow = Duration::from_millis(random.random_range(20..400));
        let fast = slow.mul_f64(random.random_range(0.1..0.9));
        let changes_at = Duration::from_millis(random.random_range(4_000..6_000));
        let arrivals = arrivals(ONE_HOST, seed, |_, since| {
            (if since >= changes_at { fast } else { slow }, false)
        });
        let span = |last: usize, count: usize| arrivals[last] - arrivals[last + 1 - count];
        let twelve = (11..arrivals.len()).any(|last| span(last, 12) < SECOND);
        let eleven: Vec<Instant> = (10..arrivals.len())
            .filter(|last| span(*last, 11) < SECOND)
            .map(|last| arrivals[last])
            .collect();
        let once = eleven.iter().all(|it| *it - eleven[0] < SECOND);
        assert!(!twelve && once, "seed {seed}: {slow:?}, then {fast:?}");
    }
}

#[test]
fn a_start_after_an_unknown_predecessor_asks_each_feed_once_at_once() {
    let start = Instant::now();
    let former = Former { unknown_until: start + 700 * MILLISECOND, ..nothing_before(start) };
    let busy = |rate| Some((Pace { events_per_second: rate, burst: 0.0 }, SECOND));
    let feeds = [10.0, 900.0, 300.0].map(|rate| FeedFacts { known: busy(rate), ..ONE_HOST });
    let mut schedule = Schedule::new(limits(), &feeds, start, former, 7);
    let asks = play_regions(&mut schedule, start, 2 * SECOND, |_, _| page(1_000));
    let early: Vec<usize> = asks.iter().filter(|it| it.0 < 700).map(|it| it.1).collect();
    assert_eq!(early, [1, 2, 0], "{asks:?}");
    assert!(asks[2].0 <= 20 && asks[3].0 <= 710, "{asks:?}");
}
