//! A program polls a simulated Agora in virtual time.
//!
//! There are four kinds of event: the program decides, a request reaches Agora, the head of an
//! answer arrives, and its body has arrived. The latencies of each request and each answer are
//! drawn individually, so a later request may arrive before an earlier one and its answer may
//! overtake. Connections are already open and cost nothing. The time of a body doesn't depend on
//! other transfers.

use std::time::Duration;

use tokio::time::Instant;

use super::program::Program;
use super::tally::Tally;
use crate::model::Endpoint;
use crate::schedule::{Answered, Decision, Outcome, Seen};
use crate::simulator::{Counted, Counts, Script, Taken};

/// A load on the script's first App ID, and when it is polled.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The load, the network, the limit and the seed. Time zero is the start of the load.
    pub script: Script,
    /// When the program starts.
    pub starts_at: Duration,
    /// Start of the measurement of ages and request rates. Losses count from the start of the load.
    pub measured_from: Duration,
    /// When the trial ends.
    pub ends_at: Duration,
    /// Time that the program needs to process an answer after its end.
    pub work: Duration,
}

/// A running trial.
struct TrialRun<'a, P: Program> {
    trial: &'a Trial,
    program: P,
    /// The program's clock at time zero.
    origin: Instant,
    agora: Counted,
    out: Vec<TrialRequest<P::Asked>>,
    /// For each feed, the number after the newest event that arrived.
    newest: [u64; 2],
    tally: Tally,
}

/// An in-flight request.
struct TrialRequest<A> {
    asked: A,
    feed: usize,
    arrives: Duration,
    /// When the head of its answer arrives.
    head: Duration,
    /// Whether the program knows about that head.
    is_heard: bool,
    /// When the end of its answer arrives; known once the request has reached Agora.
    answered: Duration,
    /// The events it took at Agora, unless it exceeded the limit; `None` before it reached Agora.
    came: Option<Option<Taken>>,
}

/// What happens next; at the same moment, the first of these.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Arrival(usize),
    Head(usize),
    Answer(usize),
    Decision,
}

// === impl Trial ===

impl Trial {
    /// Runs the trial with the program that starts at the given moment of its own clock.
    pub fn play<P: Program>(&self, start: impl FnOnce(Instant) -> P) -> Tally {
        let origin = Instant::now();
        let run = TrialRun {
            trial: self,
            program: start(origin + self.starts_at),
            origin,
            agora: Counted::new(&self.script, 0),
            out: Vec::new(),
            newest: [0; 2],
            tally: Tally::default(),
        };
        run.play()
    }
}

// === impl Run ===

impl<P: Program> TrialRun<'_, P> {
    fn play(mut self) -> Tally {
        let mut before = None;
        let mut wakes_at = Some(self.trial.starts_at);
        while let Some((at, next)) = self.next(wakes_at).filter(|it| it.0 < self.trial.ends_at) {
            if before.is_none() && at >= self.trial.measured_from {
                before = Some(self.counts_at(self.trial.measured_from));
            }
            match next {
                Next::Arrival(index) => self.arrive(index),
                Next::Head(index) => {
                    self.hear(index);
                    wakes_at = self.decide(at);
                }
                Next::Answer(index) => {
                    self.answer(index);
                    wakes_at = self.decide(at);
                }
                Next::Decision => wakes_at = self.decide(at),
            }
        }
        let before = match before {
            Some(before) => before,
            None => self.counts_at(self.trial.measured_from),
        };
        let after = self.counts_at(self.trial.ends_at);
        self.tally.measured = self.trial.ends_at.saturating_sub(self.trial.measured_from);
        self.tally.measured_events = after.made - before.made;
        self.tally.measured_overwritten = after.overwritten - before.overwritten;
        self.tally.events = after;
        self.tally.requests = self.agora.requests();
        self.tally
    }

    /// The next thing to happen.
    fn next(&self, wakes_at: Option<Duration>) -> Option<(Duration, Next)> {
        let out = || self.out.iter().enumerate();
        let arrivals = out()
            .filter(|(_, it)| it.came.is_none())
            .map(|(index, it)| (it.arrives, Next::Arrival(index)));
        let heads = out()
            .filter(|(_, it)| !it.is_heard && it.head < it.answered)
            .map(|(index, it)| (it.head, Next::Head(index)));
        let answers = out().map(|(index, it)| (it.answered + self.trial.work, Next::Answer(index)));
        let decision = wakes_at.map(|at| (at, Next::Decision));
        arrivals.chain(heads).chain(answers).chain(decision).min()
    }

    /// Sends all requests that the program wants to send at `now`. Returns when it wants to decide
    /// next.
    fn decide(&mut self, now: Duration) -> Option<Duration> {
        let instant = self.origin + now;
        loop {
            match self.program.next(instant) {
                Decision::Ask { feed, .. } => {
                    let asked = self.program.asked(feed, instant);
                    let (there, back) = self.agora.round_trip();
                    let arrives = now + there;
                    let head = arrives + back;
                    let (is_heard, answered) = (false, head);
                    let request =
                        TrialRequest { asked, feed, arrives, head, is_heard, answered, came: None };
                    self.out.push(request);
                }
                Decision::Wait(until) => {
                    assert!(until > instant, "a program waits only for a moment in the future");
                    return Some(until.duration_since(self.origin));
                }
                Decision::WaitForAnswer => {
                    assert!(!self.out.is_empty(), "a program waits only if a request is in flight");
                    return None;
                }
            }
        }
    }

    fn arrive(&mut self, index: usize) {
        let request = self.out.get_mut(index).expect("a request that arrives is in flight");
        let endpoint = endpoint(request.feed);
        let came = self.agora.answer(request.arrives, endpoint);
        let events = came.as_ref().map_or(0, |taken| taken.happened.len() as u64);
        request.answered = request.head + self.agora.body_time(events);
        request.came = Some(came);
        let is_measured = request.arrives >= self.trial.measured_from;
        self.tally.measured_requests += u64::from(is_measured);
    }

    fn hear(&mut self, index: usize) {
        let request = self.out.get_mut(index).expect("a request that is answered is in flight");
        request.is_heard = true;
        self.program.heard(request.asked, self.origin + request.head);
    }

    fn answer(&mut self, index: usize) {
        let TrialRequest { asked, feed, head, answered, came, .. } = self.out.swap_remove(index);
        let outcome = match came.flatten() {
            Some(taken) => {
                self.read(feed, answered, &taken);
                let events = taken.happened.len() as u64;
                Outcome::Events(Seen { events, times: taken.stated, torn: false })
            }
            None => Outcome::Throttled { retry_after: None },
        };
        let at = answered + self.trial.work;
        let when = Answered {
            head_at: Some(self.origin + head),
            now: self.origin + at,
            // The program's clock and Agora's agree.
            wall: self.trial.script.epoch.after(at),
        };
        self.program.answered(asked, when, outcome);
    }

    /// Adds a page to the tally.
    fn read(&mut self, feed: usize, answered: Duration, taken: &Taken) {
        let events = taken.happened.len() as u64;
        let newest = self.newest.get_mut(feed).expect("an App ID has two feeds");
        if taken.first < *newest {
            self.tally.out_of_order += events;
        }
        *newest = (*newest).max(taken.first + events);
        if answered >= self.trial.measured_from {
            for happened in &taken.happened {
                self.tally.ages.note(answered - *happened);
            }
        }
    }

    fn counts_at(&mut self, now: Duration) -> Counts {
        self.agora.advance(now);
        Endpoint::ALL.into_iter().fold(Counts::default(), |sum, it| sum.plus(self.agora.counts(it)))
    }
}

fn endpoint(feed: usize) -> Endpoint {
    if feed == 0 { Endpoint::User } else { Endpoint::Channel }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeSet, VecDeque};
    use std::rc::Rc;

    use super::*;
    use crate::plan::bridge;
    use crate::schedule::Limits;
    use crate::simulator::{AppScript, Load, Network, RampPoint, Spread};

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// Polls these feeds at these times, regardless of the answers.
    struct Asks {
        begun: Instant,
        asks: VecDeque<(Instant, usize)>,
        told: Rc<RefCell<Vec<Told>>>,
    }

    /// What a program learns, and at which moment of its clock.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Told {
        Head(Duration),
        Answer { head: Duration, end: Duration },
    }

    impl Program for Asks {
        type Asked = ();

        fn next(&mut self, now: Instant) -> Decision {
            match self.asks.front() {
                Some((at, feed)) if *at <= now => Decision::Ask { feed: *feed, host: 0 },
                Some((at, _)) => Decision::Wait(*at),
                None => Decision::Wait(now + SECOND * 1_000),
            }
        }

        fn asked(&mut self, _: usize, _: Instant) {
            self.asks.pop_front();
        }

        fn heard(&mut self, (): (), head_at: Instant) {
            self.told.borrow_mut().push(Told::Head(head_at.duration_since(self.begun)));
        }

        fn answered(&mut self, (): (), when: Answered, _: Outcome) {
            let [head, end] = [when.head_at.expect("each is answered"), when.now]
                .map(|at| at.duration_since(self.begun));
            self.told.borrow_mut().push(Told::Answer { head, end });
        }
    }

    fn trial(user: f64, channel: f64, rtt: Spread, ends_at: Duration) -> Trial {
        let load = |rate| Load { rate, even: true, ..Load::default() };
        let app = AppScript {
            user_events: load(user),
            channel_events: load(channel),
            ..AppScript::default()
        };
        let network = Network { rtt, ..Network::default() };
        let script = Script { apps: vec![app], network, ..Script::default() };
        let (starts_at, measured_from, work) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Trial { script, starts_at, measured_from, ends_at, work }
    }

    fn play(trial: &Trial, asks: &[(Duration, usize)]) -> Tally {
        play_and_listen(trial, asks).0
    }

    fn play_and_listen(trial: &Trial, asks: &[(Duration, usize)]) -> (Tally, Vec<Told>) {
        let told = Rc::default();
        let tally = trial.play(|start| Asks {
            begun: start,
            asks: asks.iter().map(|(at, feed)| (start + *at, *feed)).collect(),
            told: Rc::clone(&told),
        });
        (tally, told.take())
    }

    #[test]
    fn a_page_is_taken_when_the_request_arrives_and_read_when_its_answer_is_there() {
        let trial = trial(10.0, 0.0, Spread::always(200 * MS), SECOND * 2);
        let tally = play(&trial, &[(SECOND, 0)]);
        // It arrives at 1.1 s, after the events of 0.1, 0.2, … 1.1 s, and is answered at 1.2 s.
        assert_eq!(tally.events.taken, 11);
        assert_eq!(tally.ages.quantile(0.0), Some(100 * MS));
        assert_eq!(tally.ages.quantile(1.0), Some(1_100 * MS));
        assert_eq!(tally.requests.asked, 1);
    }

    #[test]
    fn a_body_takes_its_share_of_the_time_of_a_full_page_behind_its_head() {
        let trial = trial(250.0, 0.0, Spread::always(100 * MS), SECOND * 10);
        let network = Network { page_time: Some(700 * MS), ..trial.script.network.clone() };
        let script = Script { network, ..trial.script.clone() };
        let trial = Trial { script, work: 5 * MS, ..trial };
        // 1,000 events wait at 4 s in this feed, none in the other one, and 25 are there by 4.1 s.
        let asks = [(3_950 * MS, 0), (3_960 * MS, 1), (4_050 * MS, 0)];
        let (tally, told) = play_and_listen(&trial, &asks);
        assert_eq!(tally.events.taken, 1_025);
        assert_eq!(
            told,
            [
                Told::Head(4_050 * MS),
                Told::Answer { head: 4_060 * MS, end: 4_065 * MS },
                Told::Head(4_150 * MS),
                Told::Answer { head: 4_150 * MS, end: 4_172_500 * MS / 1_000 },
                Told::Answer { head: 4_050 * MS, end: 4_755 * MS },
            ]
        );
        // The first event happened at 4 ms, and arrived at 4.75 s.
        assert_eq!(tally.ages.quantile(1.0), Some(4_746 * MS));
        assert_eq!(tally.out_of_order, 1_000, "the small page overtook the full one");
    }

    #[test]
    fn what_is_asked_too_late_is_lost_and_what_was_lost_before_the_start_is_told_apart() {
        let trial = Trial {
            starts_at: SECOND * 5,
            measured_from: SECOND * 5,
            ..trial(1_000.0, 0.0, Spread::always(Duration::ZERO), SECOND * 10)
        };
        let tally = play(&trial, &[(Duration::ZERO, 0), (4_500 * MS, 0)]);
        let events = tally.events;
        // The buffer is full at 2 s, so 3,000 are lost until 5 s. A page is taken, the buffer is
        // full again at 6 s, and 3,500 more are lost until 9.5 s: 1,000 from before the first
        // request, 2,500 from after it. The second page makes room until 10.5 s.
        assert_eq!((events.overwritten, events.overwritten_once_asked), (6_500, 3_500));
        assert_eq!(events.overwritten_of_later, 2_500);
        assert_eq!((events.taken, events.fullest), (2_000, 2_000));
        assert_eq!((tally.measured_events, tally.measured_overwritten), (5_000, 3_500));
    }

    #[test]
    fn the_eleventh_request_of_a_second_is_one_too_many() {
        let trial = trial(10.0, 10.0, Spread::always(40 * MS), SECOND * 4);
        let asks: Vec<_> = (0..22).map(|n| (90 * MS * n, usize::from(n % 2 == 0))).collect();
        let tally = play(&trial, &asks);
        assert_eq!(tally.requests.most_in_a_second, 12);
        // The last twelve: refused requests still count.
        assert_eq!(tally.requests.over_limit, 12);
    }

    #[test]
    fn a_page_that_newer_events_overtook_is_out_of_order() {
        // The first to arrive takes 1,000 events, the other one takes the rest.
        let asks = [(1_500 * MS, 0), (1_505 * MS, 0)];
        let out_of_order = |seed| {
            let trial = trial(1_000.0, 0.0, Spread::millis(100, 700), SECOND * 5);
            let script = Script { seed, ..trial.script.clone() };
            play(&Trial { script, ..trial }, &asks).out_of_order
        };
        let seen: BTreeSet<u64> = (0..20).map(out_of_order).collect();
        assert_eq!(seen, BTreeSet::from([0, 1_000]));
    }

    /// The bridge with its default configuration.
    fn play_bridge(trial: &Trial) -> Tally {
        let limits = Limits { longest_interval: 500 * MS, ..limits() };
        trial.play(|now| bridge(limits, now, trial.script.seed))
    }

    /// Rates of users and channels in events a second, interpolated linearly.
    fn ramped(seed: u64, points: &[(Duration, f64, f64)], rtt: Spread, ends_at: Duration) -> Trial {
        let trial = trial(0.0, 0.0, rtt, ends_at);
        let point = |at, rate| RampPoint { at, rate };
        let users = points.iter().map(|it| point(it.0, it.1)).collect();
        let channels = points.iter().map(|it| point(it.0, it.2)).collect();
        let load = |ramp| Load { ramp, ..Load::default() };
        let app = AppScript {
            user_events: load(users),
            channel_events: load(channels),
            ..AppScript::default()
        };
        let script = Script { seed, apps: vec![app], ..trial.script };
        Trial { script, work: 2 * MS, ..trial }
    }

    #[test]
    fn a_load_that_jumps_within_a_second_loses_next_to_nothing() {
        let mut lost = Vec::new();
        for (users, seed) in
            [0.76, 0.9, 0.95].into_iter().flat_map(|it| [(it, 1), (it, 2), (it, 3)])
        {
            let jump = SECOND * 14 + 700 * MS * u32::try_from(seed).unwrap();
            let rates = [(SECOND * 8, 3_500.0), (jump, 3_500.0), (jump + SECOND, 9_500.0)];
            let points = rates.map(|(at, rate)| (at, rate * users, rate * (1.0 - users)));
            let tally = play_bridge(&ramped(seed, &points, Spread::millis(60, 120), SECOND * 30));
            assert!(tally.events.made > 160_000);
            lost.push(tally.events.overwritten);
        }
        assert!(lost.iter().all(|lost| *lost <= 200), "{lost:?}");
    }

    #[test]
    fn a_shared_buffer_does_not_run_over_at_4000_and_4000_a_second() {
        for seed in 1..=5 {
            let points = [(SECOND * 10, 4_000.0, 4_000.0)];
            let trial = ramped(seed, &points, Spread::always(60 * MS), SECOND * 40);
            let script = Script { shared_buffer: true, ..trial.script.clone() };
            let tally = play_bridge(&Trial { script, ..trial });
            let (lost, made) = (tally.events.overwritten, tally.events.made);
            assert!(lost * 1_000 <= made * 5, "seed {seed}: {lost} of {made}");
        }
    }

    #[test]
    fn the_first_events_after_a_rest_are_not_old() {
        for seed in 1..=5 {
            let jump = SECOND * 16 + 370 * MS * u32::try_from(seed).unwrap();
            let points = [(jump, 0.0, 0.0), (jump, 1_500.0, 1_500.0)];
            let trial = ramped(seed, &points, Spread::millis(20, 40), jump + SECOND * 30);
            let tally = play_bridge(&trial);
            assert_eq!(tally.events.overwritten, 0, "seed {seed}");
            let p99 = tally.ages.quantile(0.99).unwrap();
            assert!(p99 <= 400 * MS, "seed {seed}: {p99:?}");
        }
    }

    fn limits() -> Limits {
        Limits {
            requests_per_second: std::num::NonZeroU32::new(10).unwrap(),
            shortest_interval: 250 * MS,
            longest_interval: SECOND * 2,
        }
    }

    /// A schedule that learns about a request only at its end loses a quarter of this.
    #[test]
    fn bodies_that_take_seven_round_trips_cost_the_bridge_next_to_nothing() {
        let grown_to = |rate| {
            let ramp = vec![RampPoint { at: SECOND * 10, rate }];
            Load { ramp, ..Load::default() }
        };
        let app = AppScript {
            user_events: grown_to(1_200.0),
            channel_events: grown_to(4_800.0),
            ..AppScript::default()
        };
        for seed in 1..=10 {
            let rtt = Spread::always(100 * MS);
            let network = Network { rtt, page_time: Some(700 * MS), ..Network::default() };
            let script = Script { seed, apps: vec![app.clone()], network, ..Script::default() };
            let trial = Trial { script, ..trial(0.0, 0.0, rtt, SECOND * 50) };
            let tally = trial.play(|now| bridge(limits(), now, seed));
            let lost = tally.events.overwritten as f64 / tally.events.made as f64;
            assert!(lost <= 0.005, "seed {seed}: {:.2} %", 100.0 * lost);
            assert_eq!(tally.requests.over_limit, 0, "seed {seed}");
        }
    }

    #[test]
    fn the_bridge_keeps_up_with_an_easy_load_within_the_limit() {
        let trial = trial(600.0, 300.0, Spread::millis(60, 120), SECOND * 30);
        let play = || trial.play(|now| bridge(limits(), now, 1));
        let tally = play();
        assert_eq!(tally.events.overwritten, 0);
        assert_eq!(tally.requests.over_limit, 0);
        assert!(tally.ages.quantile(0.99) < Some(SECOND), "{:?}", tally.ages.quantile(0.99));
        assert_eq!(tally.requests, play().requests, "a trial gives the same result again");
    }
}
