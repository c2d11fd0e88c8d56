//! One App ID of a simulated Agora in which events are counted but not written out: when events
//! happen, what the buffers hold and overwrite, which requests the rate limit refuses. No names, no
//! bodies, no ledger.
//!
//! For the same script and the same requests it hands over and overwrites exactly as many events as
//! a [`World`](super::World) does, and draws the same round trips; a test compares the two. It
//! ignores the script's regions, faults, credentials and bodies: there is one region, and no
//! request fails except by the rate limit.
//!
//! It is fast (about 30 ns per event), because it keeps only the time of each event: each feed's
//! clock runs ahead independently up to the next request.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;

use super::clock::{Clock, randomness};
use super::door::Window;
use super::ledger::Requests;
use super::script::{Network, RateLimit, Script};
use crate::model::{BUFFER_LIMIT, Endpoint, PAGE_LIMIT, Timestamp};

#[expect(clippy::cast_possible_truncation, reason = "2,000 fits everywhere")]
const KEEPS: usize = BUFFER_LIMIT as usize;
#[expect(clippy::cast_possible_truncation, reason = "1,000 fits everywhere")]
const HANDS_OVER: usize = PAGE_LIMIT as usize;

/// A simulated App ID in which events are only counted.
#[derive(Debug)]
pub struct Counted {
    now: Duration,
    /// User events, channel events.
    feeds: [Feed; 2],
    window: Window,
    limit: RateLimit,
    /// Whether both feeds share the capacity of one buffer.
    shared: bool,
    requests: Requests,
    first_request: Option<Duration>,
    network: Network,
    ways: StdRng,
    epoch: Timestamp,
    in_seconds: bool,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many events were waiting.
    pub waited: u64,
    /// The number of the first event taken; the events of a feed are numbered as they happen.
    pub first: u64,
    /// When the events taken happened, oldest first.
    pub happened: Vec<Duration>,
    /// The times of the first and the last event as Agora states them; `None` for an empty page,
    /// and where Agora states whole seconds only.
    pub stated: Option<(Timestamp, Timestamp)>,
}

/// What became of the events of one feed or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that happened.
    pub made: u64,
    /// Events that were handed over.
    pub taken: u64,
    /// Events that newer ones replaced.
    pub overwritten: u64,
    /// Events that were overwritten after the App ID's first request.
    pub overwritten_once_asked: u64,
    /// Overwritten events that happened after the App ID's first request.
    pub overwritten_of_later: u64,
    /// The highest number of events waiting at any request; for both feeds together where they
    /// share a buffer.
    pub fullest: u64,
}

/// A buffer and the clock that fills it.
#[derive(Debug)]
struct Feed {
    clock: Clock,
    quiet_from: Duration,
    waiting: VecDeque<Duration>,
    counts: Counts,
}

// === impl Counted ===

impl Counted {
    /// The App ID with this index in the script; if there is none, it has no events.
    pub fn new(script: &Script, app: usize) -> Self {
        Self {
            now: Duration::ZERO,
            feeds: Endpoint::ALL.map(|endpoint| Feed::new(script, app, endpoint)),
            window: Window::default(),
            limit: script.limit,
            shared: script.shared_buffer,
            requests: Requests::default(),
            first_request: None,
            network: script.network.clone(),
            ways: randomness(script.seed, 2),
            epoch: script.epoch,
            in_seconds: script.apps.get(app).is_some_and(|it| it.dialect.seconds),
        }
    }

    /// The times of all events at an endpoint until `end`, independent of requests: for pollers
    /// that may know the future.
    pub fn foresee(
        script: &Script,
        app: usize,
        endpoint: Endpoint,
        end: Duration,
    ) -> Vec<Duration> {
        let mut clock = Clock::new(script, app, endpoint);
        let end = script.quiet_from.map_or(end, |quiet_from| quiet_from.min(end));
        std::iter::from_fn(|| clock.next_until(end)).collect()
    }

    /// Draws the time that a request takes to arrive, and the time that its answer takes.
    pub fn round_trip(&mut self) -> (Duration, Duration) {
        self.network.round_trip(&mut self.ways)
    }

    /// Time from the first to the last byte of the body of a page with `events` events.
    pub fn body_time(&self, events: u64) -> Duration {
        self.network.body_time(events)
    }

    /// Answers a request that arrives at `now`; `None` if it exceeds the rate limit.
    pub fn answer(&mut self, now: Duration, endpoint: Endpoint) -> Option<Taken> {
        self.now = self.now.max(now);
        let now = self.now;
        let in_this_second = self.window.arrive(now);
        self.requests.asked += 1;
        self.requests.most_in_a_second = self.requests.most_in_a_second.max(in_this_second);
        // Events until now happened before this request, which may be the first.
        self.advance(now);
        self.first_request.get_or_insert(now);
        if in_this_second > u64::from(self.limit.requests_per_second) {
            self.requests.over_limit += 1;
            return None;
        }
        let waits = self.feeds.iter().map(|it| it.waiting.len() as u64).sum();
        let shared = self.shared;
        let feed = self.feed_mut(endpoint);
        let taken = feed.take();
        let fullest = if shared { waits } else { taken.waited };
        feed.counts.fullest = feed.counts.fullest.max(fullest);
        Some(Taken { stated: self.stated(&taken.happened), ..taken })
    }

    /// Advances to `now`: all events until then happen.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if self.shared {
            self.advance_together();
            return;
        }
        for feed in &mut self.feeds {
            while let Some(at) = feed.next_until(self.now) {
                if feed.waiting.len() == KEEPS {
                    feed.forget(self.first_request);
                }
                feed.waiting.push_back(at);
            }
        }
    }

    /// The same for feeds that share a buffer: events are added in order of time.
    fn advance_together(&mut self) {
        let mut next = self.feeds.each_mut().map(|feed| feed.next_until(self.now));
        loop {
            let [user, channel] = next;
            let of_user = match (user, channel) {
                (Some(user), Some(channel)) => user <= channel,
                (user, channel) if user.or(channel).is_none() => return,
                (user, _) => user.is_some(),
            };
            if self.feeds.iter().map(|it| it.waiting.len()).sum::<usize>() == KEEPS {
                let filled = self.feeds.iter_mut().filter(|it| !it.waiting.is_empty());
                let oldest = filled.min_by_key(|it| it.waiting.front().copied());
                oldest.expect("the buffer is full").forget(self.first_request);
            }
            let endpoint = if of_user { Endpoint::User } else { Endpoint::Channel };
            let until = self.now;
            let [of_users, of_channels] = &mut next;
            let next = if of_user { of_users } else { of_channels };
            let feed = self.feed_mut(endpoint);
            feed.waiting.extend(*next);
            *next = feed.next_until(until);
        }
    }

    /// Counts of one feed.
    pub fn counts(&self, endpoint: Endpoint) -> Counts {
        let [user, channel] = &self.feeds;
        match endpoint {
            Endpoint::User => user.counts,
            Endpoint::Channel => channel.counts,
        }
    }

    /// Request counts, as the server sees them.
    pub fn requests(&self) -> Requests {
        self.requests
    }

    fn feed_mut(&mut self, endpoint: Endpoint) -> &mut Feed {
        let [user, channel] = &mut self.feeds;
        match endpoint {
            Endpoint::User => user,
            Endpoint::Channel => channel,
        }
    }

    fn stated(&self, happened: &[Duration]) -> Option<(Timestamp, Timestamp)> {
        let (first, last) = (happened.first()?, happened.last()?);
        (!self.in_seconds).then(|| (self.epoch.after(*first), self.epoch.after(*last)))
    }
}

// === impl Counts ===

impl Counts {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            made: self.made + other.made,
            taken: self.taken + other.taken,
            overwritten: self.overwritten + other.overwritten,
            overwritten_once_asked: self.overwritten_once_asked + other.overwritten_once_asked,
            overwritten_of_later: self.overwritten_of_later + other.overwritten_of_later,
            fullest: self.fullest.max(other.fullest),
        }
    }
}

// === impl Feed ===

impl Feed {
    fn new(script: &Script, app: usize, endpoint: Endpoint) -> Self {
        Self {
            clock: Clock::new(script, app, endpoint),
            quiet_from: script.quiet_from.unwrap_or(Duration::MAX),
            waiting: VecDeque::with_capacity(KEEPS),
            counts: Counts::default(),
        }
    }

    /// The next event no later than `now`, counted.
    fn next_until(&mut self, now: Duration) -> Option<Duration> {
        let at = self.clock.next_until(now).filter(|at| *at < self.quiet_from)?;
        self.counts.made += 1;
        Some(at)
    }

    /// Drops the oldest event to make room for a newer one.
    fn forget(&mut self, first_request: Option<Duration>) {
        let Some(oldest) = self.waiting.pop_front() else { return };
        self.counts.overwritten += 1;
        self.counts.overwritten_once_asked += u64::from(first_request.is_some());
        let is_later = first_request.is_some_and(|first| oldest > first);
        self.counts.overwritten_of_later += u64::from(is_later);
    }

    /// Hands over the oldest events; the stated times are filled in by the caller.
    fn take(&mut self) -> Taken {
        let waited = self.waiting.len() as u64;
        let first = self.counts.made - waited;
        let happened: Vec<Duration> =
            self.waiting.drain(..self.waiting.len().min(HANDS_OVER)).collect();
        self.counts.taken += happened.len() as u64;
        Taken { waited, first, happened, stated: None }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::simulator::{
        AppScript, Burst, Load, RandomBursts, Request, Spread, TokenScript, World,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn script(seed: u64, even: bool) -> Script {
        let burst = |at, events, over| Burst { at: SECOND * at, events, over: SECOND * over };
        let bursts = vec![burst(2, 1_990, 0), burst(5, 4_000, 2), burst(9, 3_000, 0)];
        let random_bursts = Some(RandomBursts { per_minute: 20.0, events: 1_500 });
        let load = |rate, random_bursts| Load {
            rate,
            even,
            bursts: bursts.clone(),
            random_bursts,
            ..Load::default()
        };
        let app = AppScript {
            tokens: vec![TokenScript { token: "good".into(), user_id: None, until: None }],
            user_events: load(700.0, None),
            channel_events: load(2_300.0, random_bursts),
            ..AppScript::numbered(0)
        };
        let network = Network { rtt: Spread::millis(60, 120), ..Network::default() };
        Script { seed, apps: vec![app], network, ..Script::default() }
    }

    fn request(script: &Script, endpoint: Endpoint) -> Request {
        let app_id = &script.apps[0].app_id;
        Request::get(format!("/dev/v2/project/{app_id}/rtm/vendor/{endpoint}"))
            .header("x-agora-token", "good")
    }

    /// Polls both at the same times, at up to 12 requests a second, so that some exceed the limit.
    fn check(script: &Script) {
        let mut world = World::new(script.clone());
        let mut counted = Counted::new(script, 0);
        let mut rng = randomness(script.seed, 77);
        let mut now = Duration::ZERO;
        while now < SECOND * 20 {
            now += Duration::from_micros(rng.random_range(0..180_000));
            let endpoint = if rng.random_bool(0.3) { Endpoint::User } else { Endpoint::Channel };
            world.advance(now);
            let waited = world.backlog(0, 0, endpoint) as u64;
            let answer = world.answer(now, 0, &request(script, endpoint));
            let taken = counted.answer(now, endpoint);
            assert_eq!(answer.status == 200, taken.is_some(), "at {now:?}");
            if let Some(taken) = taken {
                let record = world.ledger().answers().last().expect("it was just answered");
                assert_eq!(taken.happened.len() as u64, record.taken, "at {now:?}");
                assert_eq!(taken.waited, waited, "at {now:?}");
            }
            assert_eq!(counted.round_trip(), world.round_trip());
        }
        for endpoint in Endpoint::ALL {
            let counts = counted.counts(endpoint);
            let totals = world.ledger().totals(0, endpoint);
            assert_eq!(counts.made, totals.made);
            assert_eq!(counts.taken, totals.delivered);
            assert_eq!(counts.overwritten, totals.overwritten);
            assert!(counts.overwritten > 0, "the script makes buffers overflow");
        }
        assert_eq!(counted.requests(), world.ledger().requests(0));
        assert!(counted.requests().over_limit > 0, "some exceeded the limit");
    }

    #[test]
    fn it_counts_what_the_world_writes() {
        for seed in 0..5 {
            for (even, shared_buffer) in
                [(true, false), (false, false), (true, true), (false, true)]
            {
                check(&Script { shared_buffer, ..script(seed, even) });
            }
        }
    }
}
