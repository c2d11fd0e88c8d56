//! Decides who logs in or out, joins or leaves.
//!
//! Each endpoint of each App ID is a source with its own clock (`clock.rs`) and random generator:
//! its events depend only on the script, never on who requests them or when.
//!
//! No event happens twice: an event's identity is (endpoint, channel, user, type, time), and a user
//! who acted within one unit of time doesn't act again in it. If all users have acted, a burst
//! brings in new ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::clock::{Clock, randomness};
use super::event::{Event, MALFORMED_FORMS};
use super::script::{AppScript, Script};
use crate::model::{Endpoint, Timestamp};

/// All sources of events, merged by time.
#[derive(Debug)]
pub(super) struct Crowds {
    sources: Vec<EventSource>,
    /// When each source is due. A source may be listed more than once; outdated entries are
    /// skipped.
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    /// How many events have happened.
    happened: u64,
    epoch: Timestamp,
    quiet_from: Duration,
}

/// One endpoint of one App ID.
#[derive(Debug)]
struct EventSource {
    app: u16,
    endpoint: Endpoint,
    in_seconds: bool,
    malformed: f64,
    clock: Clock,
    /// Selects the user who acts.
    rng: StdRng,
    /// One for user events; one per channel for channel events.
    crowds: Vec<Crowd>,
}

/// The users of one place, inside or outside, each with the time of their last action.
#[derive(Debug)]
struct Crowd {
    inside: Vec<(u32, i64)>,
    outside: Vec<(u32, i64)>,
    /// The number of the next new user.
    stranger: u32,
    /// Number of known users from which no new ones come.
    size: usize,
}

// === impl Crowds ===

impl Crowds {
    pub(super) fn new(script: &Script) -> Self {
        let sources: Vec<EventSource> = (0_u16..)
            .zip(&script.apps)
            .flat_map(|(index, app)| {
                Endpoint::ALL.map(|endpoint| EventSource::new(script, index, app, endpoint))
            })
            .collect();
        let due = sources.iter().enumerate().map(|(i, source)| Reverse((source.clock.due(), i)));
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

    /// The next event no later than `now`, and its time.
    pub(super) fn next_until(&mut self, now: Duration) -> Option<(Duration, Event)> {
        while self.due().is_some_and(|at| at <= now) {
            let Reverse((at, index)) = self.due.pop()?;
            let source = self.sources.get_mut(index)?;
            if source.clock.due() != at {
                continue;
            }
            let happens = source.clock.step();
            let event = happens.then(|| source.event(self.happened, self.epoch.after(at)));
            self.due.push(Reverse((source.clock.due(), index)));
            if let Some(event) = event {
                self.happened += 1;
                return Some((at, event));
            }
        }
        None
    }

    /// Adds a burst of `events` at `now`, on top of the script.
    pub(super) fn burst(&mut self, now: Duration, app: usize, endpoint: Endpoint, events: u32) {
        let found = self
            .sources
            .iter_mut()
            .enumerate()
            .find(|(_, source)| usize::from(source.app) == app && source.endpoint == endpoint);
        if let Some((index, source)) = found {
            source.clock.burst(now, events);
            self.due.push(Reverse((source.clock.due(), index)));
        }
    }

    /// No events happen from `now` on.
    pub(super) fn silence(&mut self, now: Duration) {
        self.quiet_from = self.quiet_from.min(now);
    }
}

// === impl Source ===

impl EventSource {
    fn new(script: &Script, index: u16, app: &AppScript, endpoint: Endpoint) -> Self {
        let purpose = 100_000 + 2 * u64::from(index) + u64::from(endpoint == Endpoint::Channel);
        let crowds = match endpoint {
            Endpoint::User => vec![Crowd::new(0, app.users)],
            // Neighbouring channels share some of their members.
            Endpoint::Channel => (0..app.channels.max(1))
                .map(|channel| Crowd::new(channel.wrapping_mul(13), app.members))
                .collect(),
        };
        Self {
            app: index,
            endpoint,
            in_seconds: app.dialect.seconds,
            malformed: share(app.malformed),
            clock: Clock::new(script, usize::from(index), endpoint),
            rng: randomness(script.seed, purpose),
            crowds,
        }
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

    /// Draws a channel; low numbers are busier than high ones.
    fn popular_channel(&mut self) -> u32 {
        let count = u32::try_from(self.crowds.len()).unwrap_or(u32::MAX);
        match count {
            0 | 1 => 0,
            _ => self.rng.random_range(0..count).min(self.rng.random_range(0..count)),
        }
    }
}

// === impl Crowd ===

impl Crowd {
    fn new(stranger: u32, size: u32) -> Self {
        Self { inside: Vec::new(), outside: Vec::new(), stranger, size: size as usize }
    }

    /// A user enters or leaves; the fuller the place, the more likely a user leaves.
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

/// Draws a user; `None` if there is none, or if the one drawn has already acted within this unit of
/// time.
fn pick(people: &mut Vec<(u32, i64)>, ms: i64, rng: &mut StdRng) -> Option<u32> {
    if people.is_empty() {
        return None;
    }
    let index = rng.random_range(0..people.len());
    let is_free = people.get(index).is_some_and(|(_, moved)| *moved < ms);
    is_free.then(|| people.swap_remove(index).0)
}

/// Clamps a number to between 0 and 1; NaN becomes 0.
pub(super) fn share(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::simulator::script::{Burst, Dialect, Load, RandomBursts};

    fn until(script: &Script, end: Duration) -> Vec<(Duration, Event)> {
        let mut crowds = Crowds::new(script);
        std::iter::from_fn(|| crowds.next_until(end)).collect()
    }

    fn busy(seed: u64) -> Script {
        let app = |index| AppScript::numbered(index).rates(150.0, 350.0);
        Script { seed, apps: vec![app(0), app(1)], ..Script::default() }
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
