//! A buffer of 2,000 events that is polled in time or not, and the suspicions that result.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// Our clock minus that of the events.
const AHEAD: i64 = -1_700_000_000_000;

/// Uncertainty of arrivals, in milliseconds.
const JITTER: i64 = 30;

/// The events that arrive, and how the feed is polled.
#[derive(Clone, Debug)]
struct Story {
    /// Events a second, and for how many milliseconds.
    rates: Vec<(f64, i64)>,
    /// When a burst happens, in milliseconds, and its number of events.
    bursts: Vec<(i64, usize)>,
    /// Milliseconds from a full page to the next request, and from any other page.
    intervals: (i64, i64),
    times_are_readable: bool,
    seed: u64,
}

/// What happened, by the clock of the events.
#[derive(Debug, Default)]
struct Truth {
    overwritten: Vec<i64>,
    suspected: Vec<Suspected>,
    spoken_at: Vec<i64>,
    /// Whether the last page was full.
    left: bool,
}

impl Story {
    fn steady(rate: f64, took: i64, intervals: (i64, i64)) -> Self {
        let rates = vec![(rate, took)];
        Self { rates, bursts: Vec::new(), intervals, times_are_readable: true, seed: 1 }
    }

    fn burst(events: usize) -> Self {
        let bursts = vec![(3_100, events)];
        Self { bursts, ..Self::steady(5.0, 6_000, (100, 250)) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "stories are short")]
    fn events(&self, random: &mut StdRng) -> Vec<i64> {
        let mut events = Vec::new();
        let mut begin = 0.0;
        for (rate, took) in &self.rates {
            let end = begin + *took as f64;
            let mut now = begin;
            loop {
                now += -random.random::<f64>().max(1e-12).ln() * 1_000.0 / rate;
                if now >= end {
                    break;
                }
                events.push(now as i64);
            }
            begin = end;
        }
        events.extend(self.bursts.iter().flat_map(|(at, many)| std::iter::repeat_n(*at, *many)));
        events.sort_unstable();
        events
    }

    /// Runs until everything has happened and the feed is empty.
    fn run(&self) -> Truth {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut events = self.events(&mut random).into_iter().peekable();
        let (mut buffer, mut now) = (VecDeque::new(), 100);
        let (mut overflow, mut skew) = (Overflow::default(), Skew::default());
        let mut outcome = Truth::default();
        while events.peek().is_some() || outcome.left {
            while let Some(event) = events.next_if(|event| *event < now) {
                buffer.push_back(event);
                if buffer.len() > 2_000 {
                    outcome.overwritten.extend(buffer.pop_front());
                }
            }
            let page: Vec<i64> = buffer.drain(..buffer.len().min(1_000)).collect();
            outcome.left = page.len() == 1_000;
            let times = page.first().zip(page.last()).filter(|_| self.times_are_readable);
            let stated = |time: &i64| Timestamp::from_millis(*time);
            let arrived = now + AHEAD + random.random_range(0..=JITTER);
            let emptying = Emptying {
                arrived,
                uncertain: JITTER,
                wall: Timestamp::from_millis(now),
                events: page.len() as u64,
                times: times.map(|(first, last)| (stated(first), stated(last))),
            };
            if let Some(times) = emptying.times {
                skew.observe(arrived, emptying.events, times);
            }
            if let Some(suspected) = overflow.observe(emptying, &skew) {
                outcome.suspected.push(suspected);
                outcome.spoken_at.push(arrived);
            }
            let (full, other) = self.intervals;
            now += if page.len() == 1_000 { full } else { other };
        }
        assert_eq!(overflow.rest(), None, "nothing is held back once a feed is empty");
        outcome
    }
}

impl Truth {
    /// The overwritten events that no suspicion covers.
    fn missed(&self) -> Vec<i64> {
        let covers = |suspected: &Suspected, time: i64| {
            suspected.from.is_none_or(|from| from.as_millis() <= time)
                && time <= suspected.to.as_millis()
        };
        let missed = |time: &&i64| !self.suspected.iter().any(|it| covers(it, **time));
        self.overwritten.iter().filter(missed).copied().collect()
    }
}

#[test]
fn a_burst_that_fits_is_no_suspicion_and_a_larger_one_is() {
    for times_are_readable in [true, false] {
        for (events, suspicions) in [(900, 0), (1_990, 0), (2_100, 1), (5_000, 1)] {
            let story = Story { times_are_readable, ..Story::burst(events) };
            let outcome = story.run();
            assert_eq!(outcome.suspected.len(), suspicions, "{events}, {times_are_readable}");
            assert_eq!(outcome.overwritten.is_empty(), suspicions == 0);
            assert!(outcome.missed().is_empty());
        }
    }
}

#[test]
fn the_bounds_of_a_burst_are_narrow() {
    let outcome = Story::burst(2_500).run();
    let [Suspected { from: Some(from), to, begins: true }] = outcome.suspected[..] else {
        panic!("one suspicion: {:?}", outcome.suspected)
    };
    assert!(to.as_millis() == 3_100 && from.as_millis() > 3_100 - 250 - 500 - JITTER, "{from}");
}

#[test]
fn a_long_overload_is_one_episode_that_speaks_once_a_second() {
    for times_are_readable in [true, false] {
        let story = Story {
            rates: vec![(2_000.0, 3_000), (14_000.0, 20_000), (2_000.0, 3_000)],
            times_are_readable,
            ..Story::steady(0.0, 0, (100, 200))
        };
        let outcome = story.run();
        assert!(outcome.overwritten.len() > 50_000);
        assert!(outcome.missed().is_empty(), "{:?}", outcome.missed().len());
        let begins = outcome.suspected.iter().filter(|it| it.begins).count();
        assert_eq!(begins, 1, "{outcome:?}");
        assert!(outcome.suspected[0].begins);
        let last = outcome.spoken_at.len() - 1;
        for pair in outcome.spoken_at[..last].windows(2) {
            assert!(pair[1] - pair[0] >= PROOF_WAIT_MS, "{pair:?}");
        }
    }
}

#[test]
fn a_feed_asked_in_time_is_hardly_ever_suspected() {
    let (mut runs, mut suspicions) = (0, 0);
    for rate in [200.0, 3_000.0, 7_000.0, 9_500.0] {
        for seed in 0..25 {
            let outcome = Story { seed, ..Story::steady(rate, 10_000, (100, 100)) }.run();
            assert!(outcome.overwritten.is_empty());
            runs += 1;
            suspicions += outcome.suspected.len();
        }
    }
    assert!(suspicions == 0, "{suspicions} suspicions in {runs} runs");
}

#[test]
fn a_page_that_comes_late_is_passed_over() {
    let at = |arrived, first, last, events| Emptying {
        arrived,
        uncertain: 0,
        wall: Timestamp::from_millis(arrived),
        events,
        times: Some((Timestamp::from_millis(first), Timestamp::from_millis(last))),
    };
    let mut skew = Skew::default();
    skew.observe(0, 500, (Timestamp::from_millis(-100), Timestamp::from_millis(0)));
    let mut overflow = Overflow::default();
    assert_eq!(overflow.observe(at(0, -100, 0, 500), &skew), None);
    assert_eq!(overflow.observe(at(400, 200, 300, 1_000), &skew), None);
    assert_eq!(overflow.observe(at(500, 10, 190, 1_000), &skew), None);
    let suspected = overflow.observe(at(600, 300, 390, 1_000), &skew).unwrap();
    assert_eq!(suspected.to, Timestamp::from_millis(200));
}

/// Begins with a calibrated feed (emptied while events arrived densely), and continues at random.
fn drawn(seed: u64) -> Story {
    let mut draw = StdRng::seed_from_u64(seed);
    let count = draw.random_range(1..6);
    let anything = (0..count)
        .map(|_| (draw.random_range(0.0..15_000.0), draw.random_range(200..3_000)))
        .collect::<Vec<_>>();
    let rates = [(1_000.0, 3_000)].into_iter().chain(anything).collect();
    let count = draw.random_range(0..8);
    let bursts = (0..count)
        .map(|_| (draw.random_range(3_000..12_000), draw.random_range(1..2_500)))
        .collect();
    let after_a_full_page = if draw.random() { 100 } else { draw.random_range(60..400) };
    let intervals = (after_a_full_page, draw.random_range(60..600));
    Story { rates, bursts, intervals, times_are_readable: true, seed }
}

/// An arrival is known to within [`JITTER`], and so is the level of a buffer: losses within that
/// time can be missed.
#[test]
fn what_was_overwritten_lies_within_a_suspicion() {
    let (mut overwritten, mut missed) = (0, 0);
    for seed in 0..2_000 {
        let outcome = drawn(seed).run();
        overwritten += outcome.overwritten.len();
        missed += outcome.missed().len();
    }
    assert!(overwritten > 1_000_000, "{overwritten}");
    assert!(missed * 10_000 <= overwritten, "{missed} of {overwritten}");
}

/// Two full pages that reach this far back, after a minute in which a page every 250 ms emptied the
/// feed, followed by an empty answer.
fn two_full_pages(reach_back: i64, times_are_readable: bool) -> Option<Suspected> {
    let (mut overflow, mut skew) = (Overflow::default(), Skew::default());
    let mut observe = |now: i64, events, times: Option<(i64, i64)>| {
        let stated = |time: i64| Timestamp::from_millis(time);
        let times = times.filter(|_| times_are_readable);
        let times = times.map(|(first, last)| (stated(first), stated(last)));
        let arrived = now + AHEAD;
        if let Some(times) = times {
            skew.observe(arrived, events, times);
        }
        let wall = stated(now);
        overflow.observe(Emptying { arrived, uncertain: JITTER, wall, events, times }, &skew)
    };
    for page in 1..240 {
        assert_eq!(observe(250 * page, 10, Some((250 * page - 200, 250 * page - 1))), None);
    }
    assert_eq!(observe(59_950, 0, None), None);
    let half = reach_back / 2;
    let found = observe(60_000, 1_000, Some((60_000 - reach_back, 60_000 - half - 1)));
    let found = found.or(observe(60_050, 1_000, Some((60_000 - half, 60_000 - 10))));
    found.or(observe(60_300, 10, Some((60_200, 60_290))))
}

#[test]
fn a_full_buffer_that_reaches_behind_what_was_handed_over_lost_nothing() {
    for (reach_back, suspected) in [(200, true), (240, true), (2_000, false), (1_000_000, false)] {
        let found = two_full_pages(reach_back, true);
        assert_eq!(found.is_some(), suspected, "{reach_back} ms: {found:?}");
    }
    assert!(two_full_pages(1_000_000, false).is_some(), "unreadable times acquit no page");
}
