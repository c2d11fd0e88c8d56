//! Who logs in, out, joins or leaves, and when.
//!
//! Each endpoint of each App ID is a source with randomness of its own: what one source makes
//! depends on nothing but the script, least of all on who asks for it and when.
//!
//! No event happens twice: an event's identity is (endpoint, channel, user, type, time), and a
//! person who moved in one unit of time does not move again within it; where everybody has, a
//! burst brings in new people.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::event::Event;
use super::event::MALFORMED_FORMS;
use super::script::AppScript;
use super::script::Burst;
use super::script::Load;
use super::script::RandomBursts;
use super::script::Script;
use crate::model::Endpoint;
use crate::model::Timestamp;

/// All sources of events, merged by time.
#[derive(Debug)]
pub(super) struct Crowds {
    sources: Vec<Source>,
    /// When each source is due. A source may stand here more than once; what is out of date is
    /// skipped.
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    /// How many events have happened.
    happened: u64,
    epoch: Timestamp,
    quiet_from: Duration,
}

/// One endpoint of one App ID.
#[derive(Debug)]
struct Source {
    app: u16,
    endpoint: Endpoint,
    in_seconds: bool,
    malformed: f64,
    rng: StdRng,
    pace: Pace,
    next: Duration,
    bursts: Vec<Running>,
    random_bursts: Option<(Duration, RandomBursts)>,
    /// One for user events; one a channel for channel events.
    crowds: Vec<Crowd>,
}

/// A rate that changes in straight lines.
#[derive(Debug)]
struct Pace {
    even: bool,
    /// (seconds, events per second), in order of time; never empty.
    points: Vec<(f64, f64)>,
}

/// A burst that has begun or will.
#[derive(Debug)]
struct Running {
    next: Duration,
    gap: Duration,
    left: u32,
}

/// The people of one place, inside or outside, each with the time of the last move.
#[derive(Debug)]
struct Crowd {
    inside: Vec<(u32, i64)>,
    outside: Vec<(u32, i64)>,
    /// The next stranger.
    stranger: u32,
    /// How many are known before strangers stay away.
    size: usize,
}

/// Which clock of a source is due.
enum Due {
    Regular,
    Burst(usize),
    RandomBurst,
}

/// Randomness for one purpose, so that one purpose's draws never shift another's.
pub(super) fn randomness(seed: u64, purpose: u64) -> StdRng {
    // The golden ratio's bits: neighbouring purposes of neighbouring seeds stay apart.
    StdRng::seed_from_u64(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

// === impl Crowds ===

impl Crowds {
    pub(super) fn new(script: &Script) -> Self {
        let sources: Vec<Source> = (0_u16..)
            .zip(&script.apps)
            .flat_map(|(index, app)| {
                Endpoint::ALL.map(|endpoint| Source::new(script.seed, index, app, endpoint))
            })
            .collect();
        let due = sources.iter().enumerate().map(|(i, source)| Reverse((source.due().0, i)));
        Self {
            due: due.collect(),
            sources,
            happened: 0,
            epoch: script.epoch,
            quiet_from: script.quiet_from.unwrap_or(Duration::MAX),
        }
    }

    /// When the next event may happen.
    pub(super) fn due(&self) -> Option<Duration> {
        let Reverse((at, _)) = *self.due.peek()?;
        (at < self.quiet_from).then_some(at)
    }

    /// The next event that happens until `now`, and when.
    pub(super) fn next_until(&mut self, now: Duration) -> Option<(Duration, Event)> {
        while self.due().is_some_and(|at| at <= now) {
            let Reverse((at, index)) = self.due.pop()?;
            let source = self.sources.get_mut(index)?;
            if source.due().0 != at {
                continue;
            }
            let happens = source.step(at);
            let event = happens.then(|| source.event(self.happened, self.epoch.after(at)));
            self.due.push(Reverse((source.due().0, index)));
            if let Some(event) = event {
                self.happened += 1;
                return Some((at, event));
            }
        }
        None
    }

    /// Lets so many events happen at `now`, on top of the script.
    pub(super) fn burst(&mut self, now: Duration, app: usize, endpoint: Endpoint, events: u32) {
        let found = self
            .sources
            .iter_mut()
            .enumerate()
            .find(|(_, source)| usize::from(source.app) == app && source.endpoint == endpoint);
        if let Some((index, source)) = found {
            source.bursts.push(Running { next: now, gap: Duration::ZERO, left: events });
            self.due.push(Reverse((source.due().0, index)));
        }
    }

    /// Nothing happens from `now` on.
    pub(super) fn silence(&mut self, now: Duration) {
        self.quiet_from = self.quiet_from.min(now);
    }
}

// === impl Source ===

impl Source {
    fn new(seed: u64, index: u16, app: &AppScript, endpoint: Endpoint) -> Self {
        let load = app.load(endpoint);
        let purpose = 1_000 + 2 * u64::from(index) + u64::from(endpoint == Endpoint::Channel);
        let mut rng = randomness(seed, purpose);
        let crowds = match endpoint {
            Endpoint::User => vec![Crowd::new(0, app.users)],
            // Neighbouring channels share some of their members.
            Endpoint::Channel => (0..app.channels.max(1))
                .map(|channel| Crowd::new(channel.wrapping_mul(13), app.members))
                .collect(),
        };
        let pace = Pace::new(load);
        let next = pace.next(Duration::ZERO, &mut rng);
        let random_bursts =
            load.random_bursts.map(|bursts| (bursts.next(Duration::ZERO, &mut rng), bursts));
        Self {
            app: index,
            endpoint,
            in_seconds: app.dialect.seconds,
            malformed: share(app.malformed),
            rng,
            pace,
            next,
            bursts: load.bursts.iter().filter_map(Running::new).collect(),
            random_bursts,
            crowds,
        }
    }

    fn due(&self) -> (Duration, Due) {
        let mut due = (self.next, Due::Regular);
        for (index, burst) in self.bursts.iter().enumerate() {
            if burst.next < due.0 {
                due = (burst.next, Due::Burst(index));
            }
        }
        match self.random_bursts {
            Some((at, _)) if at < due.0 => (at, Due::RandomBurst),
            _ => due,
        }
    }

    /// Moves on the clock that is due, and says whether an event happens: the beginning of a
    /// random burst is none yet.
    fn step(&mut self, at: Duration) -> bool {
        match self.due().1 {
            Due::Regular => self.next = self.pace.next(at, &mut self.rng),
            Due::Burst(index) => {
                let burst = self.bursts.get_mut(index).expect("the burst that is due");
                burst.left -= 1;
                burst.next += burst.gap;
                if burst.left == 0 {
                    self.bursts.swap_remove(index);
                }
            }
            Due::RandomBurst => {
                let (next, bursts) = self.random_bursts.as_mut().expect("the bursts that are due");
                *next = bursts.next(at, &mut self.rng);
                let burst = Burst { at, events: bursts.events, over: Duration::ZERO };
                self.bursts.extend(Running::new(&burst));
                return false;
            }
        }
        true
    }

    fn event(&mut self, seq: u64, at: Timestamp) -> Event {
        let exact = at.as_millis();
        let ms = if self.in_seconds { exact - exact.rem_euclid(1_000) } else { exact };
        let channel = self.popular_channel();
        let crowd = self.crowds.get_mut(channel as usize).expect("a channel that was just drawn");
        let (user, entering) = crowd.step(ms, &mut self.rng);
        let is_malformed = self.malformed > 0.0 && self.rng.random_bool(self.malformed);
        let malformed = is_malformed.then(|| self.rng.random_range(0..MALFORMED_FORMS));
        let (app, endpoint) = (self.app, self.endpoint);
        Event { seq, ms, user, channel, app, endpoint, entering, malformed }
    }

    /// A channel; the first ones are busier than the last.
    fn popular_channel(&mut self) -> u32 {
        let count = u32::try_from(self.crowds.len()).unwrap_or(u32::MAX);
        match count {
            0 | 1 => 0,
            _ => self.rng.random_range(0..count).min(self.rng.random_range(0..count)),
        }
    }
}

// === impl Pace ===

impl Pace {
    fn new(load: &Load) -> Self {
        let ramp = load.ramp.iter().map(|point| (point.at.as_secs_f64(), point.rate));
        Self { even: load.even, points: std::iter::once((0.0, load.rate)).chain(ramp).collect() }
    }

    /// When the next event happens, if the last one did at `after`.
    fn next(&self, after: Duration, rng: &mut StdRng) -> Duration {
        let work = if self.even { 1.0 } else { exponential(rng) };
        seconds(self.reach(after.as_secs_f64(), work))
    }

    /// When the rate, added up from `at` on, has done so much work; infinity if it never does.
    fn reach(&self, mut at: f64, mut work: f64) -> f64 {
        for (start, end) in self.points.iter().zip(self.points.iter().skip(1)) {
            if end.0 <= at {
                continue;
            }
            let slope = (end.1 - start.1) / (end.0 - start.0);
            let rate = start.1 + slope * (at - start.0);
            let whole = (rate + end.1) / 2.0 * (end.0 - at);
            if work < whole {
                // The root of rate·x + slope·x²/2 = work, in the form that survives slope = 0.
                return at
                    + 2.0 * work / (rate + (rate * rate + 2.0 * slope * work).max(0.0).sqrt());
            }
            work -= whole;
            at = end.0;
        }
        at + work / self.points.last().map_or(0.0, |last| last.1)
    }
}

// === impl Running ===

impl Running {
    fn new(burst: &Burst) -> Option<Self> {
        let gap = burst.over.checked_div(burst.events)?;
        Some(Self { next: burst.at, gap, left: burst.events })
    }
}

// === impl RandomBursts ===

impl RandomBursts {
    fn next(&self, after: Duration, rng: &mut StdRng) -> Duration {
        after.saturating_add(seconds(exponential(rng) * 60.0 / self.per_minute))
    }
}

// === impl Crowd ===

impl Crowd {
    fn new(stranger: u32, size: u32) -> Self {
        Self { inside: Vec::new(), outside: Vec::new(), stranger, size: size as usize }
    }

    /// Somebody enters or leaves: the fuller the place, the likelier somebody leaves.
    fn step(&mut self, ms: i64, rng: &mut StdRng) -> (u32, bool) {
        let is_leaving = rng.random_range(0..self.size.max(1)) < self.inside.len();
        if is_leaving && let Some(user) = pick(&mut self.inside, ms, rng) {
            self.outside.push((user, ms));
            return (user, false);
        }
        let are_all_known = self.inside.len() + self.outside.len() >= self.size;
        let known = if are_all_known { pick(&mut self.outside, ms, rng) } else { None };
        let user = known.unwrap_or_else(|| {
            let stranger = self.stranger;
            self.stranger = stranger.wrapping_add(1);
            stranger
        });
        self.inside.push((user, ms));
        (user, true)
    }
}

/// Somebody who has not moved within this unit of time, by chance.
fn pick(people: &mut Vec<(u32, i64)>, ms: i64, rng: &mut StdRng) -> Option<u32> {
    if people.is_empty() {
        return None;
    }
    let index = rng.random_range(0..people.len());
    let is_free = people.get(index).is_some_and(|(_, moved)| *moved < ms);
    is_free.then(|| people.swap_remove(index).0)
}

/// A number between 0 and 1, whatever came in.
pub(super) fn share(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number.clamp(0.0, 1.0) }
}

fn exponential(rng: &mut StdRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// Seconds as a duration; what is too long to be one is forever.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::simulator::script::Dialect;
    use crate::simulator::script::RampPoint;

    fn until(script: &Script, end: Duration) -> Vec<(Duration, Event)> {
        let mut crowds = Crowds::new(script);
        std::iter::from_fn(|| crowds.next_until(end)).collect()
    }

    fn busy(seed: u64) -> Script {
        let app = |index| AppScript::numbered(index).rates(150.0, 350.0);
        Script { seed, apps: vec![app(0), app(1)], ..Script::default() }
    }

    fn one(load: Load) -> Script {
        let app = AppScript { user_events: load, ..AppScript::default() };
        Script { apps: vec![app], ..Script::default() }
    }

    #[test]
    fn a_seed_is_a_seed() {
        let end = Duration::from_secs(2);
        assert_eq!(until(&busy(3), end), until(&busy(3), end));
        assert_ne!(until(&busy(3), end), until(&busy(4), end));
    }

    #[test]
    fn it_does_not_matter_in_which_steps_time_passes() {
        let script = busy(5);
        let mut crowds = Crowds::new(&script);
        let mut in_steps = Vec::new();
        for millis in 0..=2_000 {
            let now = Duration::from_millis(millis);
            in_steps.extend(std::iter::from_fn(|| crowds.next_until(now)));
        }
        assert_eq!(in_steps, until(&script, Duration::from_secs(2)));
    }

    #[test]
    fn rates_are_kept() {
        let count = until(&busy(9), Duration::from_secs(20)).len();
        // 2 × 500 a second; seven standard deviations to each side.
        assert!((19_000..=21_000).contains(&count), "{count}");
    }

    #[test]
    fn an_even_rate_is_even() {
        let events = until(
            &one(Load { rate: 4.0, even: true, ..Load::default() }),
            Duration::from_millis(1_100),
        );
        let times: Vec<u128> = events.iter().map(|it| it.0.as_millis()).collect();
        assert_eq!(times, [250, 500, 750, 1_000]);
    }

    #[test]
    fn a_ramp_adds_up_to_the_area_under_it() {
        let at = Duration::from_secs;
        let ramp = vec![
            RampPoint { at: at(2), rate: 0.0 },
            RampPoint { at: at(4), rate: 100.0 },
            RampPoint { at: at(6), rate: 100.0 },
            RampPoint { at: at(8), rate: 0.0 },
        ];
        let script = one(Load { even: true, ramp, ..Load::default() });
        for (seconds, expected) in [(2, 0_usize), (3, 25), (4, 100), (6, 300), (8, 400), (99, 400)]
        {
            let count = until(&script, at(seconds)).len();
            assert!(count.abs_diff(expected) <= 1, "{count} until {seconds} s");
        }
    }

    #[test]
    fn a_burst_happens_in_an_instant_or_over_a_time() {
        let (at, over) = (Duration::from_secs(1), Duration::from_secs(2));
        let bursts = vec![
            Burst { at, events: 5_000, over: Duration::ZERO },
            Burst { at, events: 100, over },
        ];
        let script = one(Load { bursts, ..Load::default() });
        assert_eq!(until(&script, at - Duration::from_nanos(1)).len(), 0);
        assert_eq!(until(&script, at).len(), 5_001);
        assert_eq!(until(&script, at + over).len(), 5_100);
    }

    #[test]
    fn a_burst_from_outside_comes_on_top() {
        let script = one(Load { rate: 10.0, even: true, ..Load::default() });
        let mut crowds = Crowds::new(&script);
        let count = |crowds: &mut Crowds, millis| {
            let now = Duration::from_millis(millis);
            std::iter::from_fn(|| crowds.next_until(now)).count()
        };
        assert_eq!(count(&mut crowds, 1_050), 10);
        crowds.burst(Duration::from_millis(1_050), 0, Endpoint::User, 3);
        assert_eq!(count(&mut crowds, 1_050), 3);
        assert_eq!(count(&mut crowds, 2_050), 10, "the rate goes on as if nothing had been");
    }

    #[test]
    fn it_is_quiet_when_it_shall_be() {
        let script = Script { quiet_from: Some(Duration::from_secs(1)), ..busy(1) };
        let last = until(&script, Duration::from_secs(9)).last().map(|it| it.0);
        assert!(last < Some(Duration::from_secs(1)), "{last:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn nothing_happens_twice_and_everything_in_order(
            seed: u64,
            seconds: bool,
            rate in 0.0..2_000.0,
            users in 1_u32..50,
            events in 1_u32..3_000,
        ) {
            let bursts = vec![
                Burst { at: Duration::from_millis(500), events, over: Duration::ZERO },
                Burst { at: Duration::from_millis(300), events, over: Duration::from_secs(1) },
            ];
            let random_bursts = Some(RandomBursts { per_minute: 100.0, events: 100 });
            let load = Load { rate, bursts, random_bursts, ..Load::default() };
            let app = AppScript {
                user_events: load.clone(),
                channel_events: load,
                users,
                members: users,
                channels: 3,
                dialect: Dialect { seconds, ..Dialect::default() },
                ..AppScript::default()
            };
            let script = Script { seed, apps: vec![app], ..Script::default() };
            let happened = until(&script, Duration::from_secs(2));
            prop_assert!(happened.is_sorted_by_key(|it| it.0));
            prop_assert!(happened.is_sorted_by_key(|it| it.1.ms));
            let identities: HashSet<_> = happened
                .iter()
                .map(|(_, it)| (it.endpoint, it.channel, it.user, it.entering, it.ms))
                .collect();
            prop_assert_eq!(identities.len(), happened.len());
        }
    }
}
