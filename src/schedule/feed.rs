//! When a feed wants to be polled, and how urgently.
//!
//! There are two reasons. *Freshness*: a page with events makes the feed due after the shortest
//! interval; each empty page doubles the interval, up to the longest. Freshness waits for answers,
//! and stretches when the budget is short. *Need*: the feed will hold a full page when a request
//! gets there. Need doesn't wait for answers: where the round trip is long, requests to the feed
//! overlap.
//!
//! An in-flight request is expected to take a full page, or everything there is. A request that has
//! been out for three usual round trips is *silent*: nothing is expected of it any more, and
//! another request leaves while it is still out.

use std::cmp::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::Instant;

use super::forecast::{Forecast, Observation, gathering};
use super::hosts::{Hosts, TurnedDown};
use super::overflow::{Emptying, Overflow};
use super::shared::{Emptied, LossBounds};
use super::skew::{Skew, millis};
use super::way::RoundTrip;
use super::{Answered, Asked, FeedFacts, Limits, Seen, Suspected};
use crate::model::{BUFFER_LIMIT, PAGE_LIMIT, Pace, Timestamp};

/// Maximum number of silent requests from a feed to one host; the next request goes to another
/// host, or waits.
const SILENT_AT_A_HOST: usize = 2;

/// Maximum number of silent requests of a feed, fewer if the feeds of the app have fewer requests a
/// second to share. Silent requests count until they end, and the other feeds need the rest.
const MOST_SILENT: usize = 3;

/// A host counts as silent, rather than briefly slow, this long after the second of its hanging
/// requests left.
const HOST_IS_SILENT: Duration = Duration::from_secs(2);

/// Time that a host to which the feed has just moved gets for its first answer, including
/// connecting; then the feed asks the next host.
const PROOF: Duration = Duration::from_secs(1);

/// A body that hasn't ended this long after its head is stalled. Where bodies usually take a third
/// of this or more, the limit is three times their usual time.
const STALLED: Duration = Duration::from_secs(1);

/// How much longer freshness waits for a moment when no other feed is in need.
const MOST_FRESHNESS_WAIT: Duration = Duration::from_secs(10);

/// A request leaves when a full page is expected plus this many times the usual forecast error: a
/// page that isn't quite full wastes budget where it is scarce.
const ERRORS_ABOVE_A_PAGE: f64 = 1.5;

/// Maximum added for errors, in events. The buffer's second half remains as room behind the page.
const MOST_ABOVE_A_PAGE: f64 = 400.0;

/// The buffer is assumed to overflow this many times the usual error early. With 1, three times as
/// many runs at the ceiling lost events over a path with jitter; with 4, simultaneous bursts on
/// both feeds hurt each other.
pub(super) const ERRORS_BELOW_THE_BUFFER: f64 = 2.0;

/// A wall clock that advances this much more than the monotonic clock means that the machine slept.
/// A smaller difference may come from the correction of the wall clock, which is only accurate to
/// seconds.
const SLEPT: Duration = Duration::from_secs(5);

/// When the other feeds of an app have grown since a feed was last polled, that feed is assumed to
/// have grown by the same factor, at most [`MOST_GROWTH`]. Growth below [`LEAST_GROWTH`] may be
/// chance. [`NO_RATE`], in events a second, is added to both rates so that small ones don't count.
const MOST_GROWTH: f64 = 4.0;
const LEAST_GROWTH: f64 = 1.25;
const NO_RATE: f64 = 500.0;

/// A feed that is polled too rarely to notice a burst may gather this many events, so that a burst
/// still fits into its buffer.
const ROOM_FOR_A_BURST: f64 = 1.0;

/// The plan for one feed.
#[derive(Debug)]
pub(super) struct FeedPlan {
    /// In-flight requests, in the order in which they left.
    out: Vec<Out>,
    most_silent: usize,
    last_sent: Option<Instant>,
    /// No request before this moment, because we couldn't poll the feed.
    not_before: Instant,
    interval: Duration,
    forecast: Forecast,
    /// Events a second of the app's other feeds when this feed was last polled.
    others_rate: f64,
    /// For each host, the time until the head of an answer.
    trips: Vec<RoundTrip>,
    /// For each host, the time that the body takes after the head.
    bodies: Vec<RoundTrip>,
    hosts: Hosts,
    overflow: Overflow,
    /// What the last page revealed about the buffer.
    emptied: Option<Emptied>,
    /// Offset between the clocks, if each request arrives as late as it can.
    latest: Skew,
    /// When the last answer arrived, by both clocks.
    heard: Option<(Instant, Timestamp)>,
    /// Origin of the times given to `latest`, which include sleep.
    origin: Instant,
}

/// When a feed wants to be polled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Due for freshness; can wait.
    pub(super) fresh: Instant,
    /// In need from this moment on; `None` where no events gather.
    pub(super) needed: Option<Instant>,
    /// When a request has to leave at the latest to arrive before the buffer overflows; `None` if
    /// unknown.
    pub(super) over: Option<Instant>,
    /// No request before this moment: the feed failed, or we couldn't poll it.
    pub(super) not_before: Instant,
    /// Events a second.
    pub(super) rate: f64,
}

/// What a wish depends on apart from the feed itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// Interval after which freshness wants the next request.
    pub(super) fresh_interval: Duration,
    /// No request for freshness before this moment: requests that leave together become free
    /// together a second later, and then none is free in between for a sudden load.
    pub(super) in_step: Instant,
    /// Events a second of the other feeds.
    pub(super) others: f64,
    /// Arrival of the last request that found a burst at one of them.
    pub(super) burst: Option<Instant>,
}

/// An in-flight request.
#[derive(Clone, Copy, Debug)]
struct Out {
    asked: Asked,
    sent: Instant,
    host: usize,
    /// When the head of its answer arrived: it has taken what it found, and its body is on the way.
    head_at: Option<Instant>,
    /// How many events it was expected to find.
    expected: Option<f64>,
}

// === impl Wish ===

impl Wish {
    /// When the feed is due.
    pub(super) fn due(&self) -> Instant {
        self.needed.map_or(self.fresh, |needed| needed.min(self.fresh))
    }

    /// How much of its patience is used up: 0 when it is due, 1 a quarter of the way to its
    /// overflow. (A quarter, because the next moment that hurts no other feed may be several
    /// requests away.)
    pub(super) fn patience(&self, now: Instant) -> f64 {
        let share = |from: Instant, to: Instant| {
            let whole = to.saturating_duration_since(from).as_secs_f64();
            now.saturating_duration_since(from).as_secs_f64() / whole.max(1e-3)
        };
        let fresh = share(self.fresh, self.fresh + MOST_FRESHNESS_WAIT);
        let needed = self.needed.zip(self.over);
        let needed = needed.map_or(0.0, |(needed, over)| 4.0 * share(needed, over));
        fresh.max(needed).min(1.0)
    }

    /// How long the feed can wait: until it is in need, and longer as the other's patience runs
    /// out.
    pub(super) fn bears_until(&self, patience: f64) -> Instant {
        let needed = self.needed.unwrap_or(self.fresh);
        let over = self.over.map_or(needed, |over| over.max(needed));
        needed + over.duration_since(needed).mul_f64(patience)
    }

    /// Makes the feed be in need, and overflow, no later than these moments.
    pub(super) fn crowd(&mut self, needed: Instant, over: Instant) {
        let needed = self.needed.map_or(needed, |it| it.min(needed));
        self.needed = Some(needed.max(self.not_before));
        self.over = Some(self.over.map_or(over, |it| it.min(over)));
    }

    /// Orders wishes by urgency. The feed whose buffer overflows sooner, or may be overflowing
    /// already, goes first; between two unknown ones, the one that was faster in a previous
    /// process.
    pub(super) fn compare_urgency(&self, other: &Self) -> Ordering {
        self.over.cmp(&other.over).then(other.rate.total_cmp(&self.rate))
    }
}

// === impl FeedPlan ===

impl FeedPlan {
    /// A feed that hasn't been polled yet.
    pub(super) fn new(facts: &FeedFacts, feeds: usize, limits: &Limits, now: Instant) -> Self {
        let limit = usize::try_from(limits.requests_per_second.get()).unwrap_or(usize::MAX);
        Self {
            out: Vec::new(),
            most_silent: (limit / feeds.max(1)).clamp(1, MOST_SILENT),
            last_sent: None,
            not_before: now,
            interval: limits.shortest_interval,
            forecast: Forecast::new(now, facts.known),
            others_rate: 0.0,
            trips: vec![RoundTrip::default(); facts.hosts.max(1)],
            bodies: vec![RoundTrip::default(); facts.hosts.max(1)],
            hosts: Hosts::new(facts.hosts, now),
            overflow: Overflow::default(),
            emptied: None,
            latest: Skew::default(),
            heard: None,
            origin: now,
        }
    }

    /// The host for the next request.
    pub(super) fn host(&self, now: Instant) -> usize {
        let doubted = self.doubted_at(now).is_some_and(|at| at <= now);
        let other = if doubted { self.hosts.other(now) } else { None };
        other.unwrap_or(self.hosts.current())
    }

    /// The host that this request went to; `None` if it isn't a request of this feed.
    pub(super) fn asks(&self, asked: Asked) -> Option<usize> {
        self.out.iter().find(|it| it.asked == asked).map(|it| it.host)
    }

    /// When the last request left.
    pub(super) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// When the next host may be asked.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before.max(self.hosts.not_before())
    }

    /// Whether a request is in flight.
    pub(super) fn is_asking(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether every host refuses the credentials, as far as is known.
    pub(super) fn refuses_credentials(&self) -> bool {
        self.hosts.refuse_credentials()
    }

    /// What is known about its pace, for the next process.
    pub(super) fn pace(&self, now: Instant) -> Pace {
        self.forecast.pace(now)
    }

    /// Its level at a moment, in events, as far as that is known.
    pub(super) fn level(&self, now: Instant) -> Option<f64> {
        self.forecast.level(now, self.takes(now))
    }

    /// Arrival of the last request that found a burst.
    pub(super) fn burst_found(&self) -> Option<Instant> {
        self.forecast.burst_found()
    }

    /// Events a second.
    pub(super) fn rate(&self) -> f64 {
        self.forecast.rate()
    }

    /// How much its rate grew recently, in events a second.
    pub(super) fn surge(&self) -> f64 {
        self.forecast.surge()
    }

    /// Whether its level is a guess.
    pub(super) fn is_unsure(&self) -> bool {
        self.forecast.is_unsure()
    }

    /// Usual forecast error, in events.
    pub(super) fn error(&self) -> f64 {
        self.forecast.error()
    }

    /// How many events a request that leaves now will find; zero before the first answer.
    pub(super) fn level_on_arrival(&self, now: Instant) -> f64 {
        self.forecast.level(now + self.trip().there(), self.takes(now)).unwrap_or(0.0)
    }

    /// How many full pages a second it fills.
    pub(super) fn pages_per_second(&self) -> f64 {
        self.forecast.rate() / PAGE_LIMIT as f64
    }

    /// How many full pages a second it may fill soon.
    pub(super) fn pages_per_second_soon(&self) -> f64 {
        self.forecast.soon() / PAGE_LIMIT as f64
    }

    /// Whether it had a burst recently.
    pub(super) fn bursts(&self, now: Instant) -> bool {
        self.forecast.bursts(now)
    }

    /// Interval after which freshness wants the next request.
    pub(super) fn fresh_interval(&self, limits: &Limits, now: Instant) -> Duration {
        if self.forecast.bursts(now) {
            return limits.shortest_interval;
        }
        let room = gathering(ROOM_FOR_A_BURST, self.forecast.rate());
        self.interval.min(room).max(limits.shortest_interval)
    }

    /// What the feed wishes if nothing changes; `None` if it has to wait for an answer first.
    pub(super) fn wish(&self, around: Around, now: Instant) -> Option<Wish> {
        if self.out.iter().filter(|it| self.is_silent(it, now)).count() >= self.most_silent {
            return None;
        }
        let not_before = match self.hanging_at_host(now).count() {
            silent if silent < self.silent_at_most() => self.not_before(),
            _ => self.doubted_at(now)?.max(self.not_before),
        };
        let rate = self.forecast.rate();
        let Some(last_sent) = self.last_sent else {
            let needed = Some(not_before);
            return Some(Wish { fresh: not_before, needed, over: None, not_before, rate });
        };
        let heard = self.out.iter().map(|it| self.silent_at(it)).max().unwrap_or(last_sent);
        // A burst at one endpoint often comes with one at the other.
        let fresh = match around.burst {
            Some(burst) if burst > last_sent => last_sent,
            _ => (last_sent + around.fresh_interval).max(around.in_step),
        };
        let fresh = fresh.max(heard).max(not_before);
        let full = PAGE_LIMIT as f64
            + (ERRORS_ABOVE_A_PAGE * self.forecast.error()).min(MOST_ABOVE_A_PAGE);
        let full = self.reaches(full, now).map(|at| at.max(last_sent + self.trip().apart()));
        // Another full page may wait behind a full one. It is requested as soon as the earlier
        // request has taken its own, whose body may take long to arrive.
        let needed = if self.forecast.is_unsure() {
            let taken = self.out.iter().map(|it| it.head_at.unwrap_or(self.silent_at(it))).max();
            let taken = taken.unwrap_or(last_sent);
            Some(full.map_or(taken, |full| full.min(taken)))
        } else {
            full
        };
        let brim = BUFFER_LIMIT as f64 - ERRORS_BELOW_THE_BUFFER * self.forecast.error();
        let over = self.reaches(brim, now);
        let (needed, over) = self.as_others_grew(around.others, last_sent, (needed, over));
        let needed = needed.map(|at| at.max(not_before));
        Some(Wish { fresh, needed, over, not_before, rate })
    }

    /// When the feed is in need and when it overflows, if it grew like the others since it was
    /// polled.
    fn as_others_grew(
        &self,
        others: f64,
        last_sent: Instant,
        (needed, over): (Option<Instant>, Option<Instant>),
    ) -> (Option<Instant>, Option<Instant>) {
        let growth = (others + NO_RATE) / (self.others_rate + NO_RATE);
        if growth < LEAST_GROWTH {
            return (needed, over);
        }
        let rate = self.forecast.rate() * growth.min(MOST_GROWTH);
        let full = last_sent + gathering(PAGE_LIMIT as f64, rate);
        let brim = last_sent + gathering(BUFFER_LIMIT as f64, rate);
        let sooner = |known: Option<Instant>, at: Instant| known.map_or(at, |it| it.min(at));
        (Some(sooner(needed, full)), Some(sooner(over, brim)))
    }

    /// Records that a request leaves while the other feeds have this many events a second.
    pub(super) fn asked(&mut self, asked: Asked, others: f64, now: Instant) {
        self.others_rate = others;
        if self.host(now) != self.hosts.current() {
            self.hosts.doubt(now);
        }
        let host = self.hosts.current();
        let arrives = now + self.trip().there();
        let expected = self.forecast.level(arrives, self.takes(now));
        self.out.push(Out { asked, sent: now, host, head_at: None, expected });
        self.last_sent = Some(now);
    }

    /// Records that the head of an answer arrived: the request has taken what it found.
    pub(super) fn heard(&mut self, asked: Asked, head_at: Instant) {
        let Some(out) = self.out.iter_mut().find(|it| it.asked == asked) else { return };
        if out.head_at.is_none() {
            out.head_at = Some(head_at);
            let (host, took) = (out.host, head_at.duration_since(out.sent));
            self.trips.get_mut(host).expect("one for each host").learn(took);
        }
    }

    /// Records that we couldn't poll the feed, for a local reason.
    pub(super) fn postponed(&mut self, until: Instant) {
        self.not_before = until;
    }

    /// Records that a request brought a page, or nothing. Returns where the buffer may have
    /// overflowed.
    pub(super) fn answered(
        &mut self,
        asked: Asked,
        when: Answered,
        seen: Seen,
        limits: &Limits,
        fastest: Duration,
    ) -> Option<Suspected> {
        let out = self.take_out(asked)?;
        let head_at = when.head_at.unwrap_or(when.now);
        let took = head_at.duration_since(out.sent);
        let body = self.bodies.get_mut(out.host).expect("one for each host");
        body.learn(when.now.duration_since(head_at));
        self.hosts.answered(out.host, when.now);
        // A page that was cut off may have been a full one.
        let seen = if seen.torn { Seen { events: PAGE_LIMIT, times: None, ..seen } } else { seen };
        let overtook =
            self.out.iter().any(|it| it.sent < out.sent && !self.is_silent(it, when.now));
        self.forecast.observe(Observation {
            arrived: out.sent + took / 2,
            seen,
            expected: out.expected,
            overtook,
        });
        self.interval = if seen.events > 0 {
            limits.shortest_interval
        } else {
            (self.interval * 2).min(limits.longest_interval)
        };
        self.look_for_overflow(&out, when, head_at, seen, fastest.min(took))
    }

    /// Takes the suspicion that is not reported yet.
    pub(super) fn suspicion(&mut self) -> Option<Suspected> {
        self.overflow.rest()
    }

    /// Records that a request was turned away, taking nothing, for a reason that isn't its host's.
    /// Returns when it left.
    pub(super) fn turned_away(&mut self, asked: Asked) -> Option<Instant> {
        self.take_out(asked).map(|out| out.sent)
    }

    /// Records that a host failed, or refused the request.
    pub(super) fn turned_down(
        &mut self,
        asked: Asked,
        how: TurnedDown,
        now: Instant,
        limits: &Limits,
        random: &mut StdRng,
    ) {
        let Some(out) = self.take_out(asked) else { return };
        self.hosts.turned_down(out.sent, out.host, how, now, limits, random);
    }

    /// Clears the refusals of hosts that refused the credentials.
    pub(super) fn forgive_credentials(&mut self, now: Instant) {
        self.hosts.forgive_credentials(now);
    }

    fn look_for_overflow(
        &mut self,
        out: &Out,
        when: Answered,
        head_at: Instant,
        seen: Seen,
        fastest: Duration,
    ) -> Option<Suspected> {
        // While the machine slept, our monotonic clock stopped and Agora's did not.
        let slept = self.slept(when);
        self.origin = self.origin.checked_sub(slept).unwrap_or(self.origin);
        if seen.torn {
            // It says nothing about the buffer, and its lost events are a gap already.
            return None;
        }
        let latest = head_at.checked_sub(fastest / 2).unwrap_or(head_at);
        let uncertain = (head_at - out.sent - fastest).max(self.trip_to(out.host).apart());
        let arrived = millis(latest.saturating_duration_since(self.origin));
        if let Some(times) = seen.times {
            self.latest.observe(arrived, seen.events, times);
        }
        let emptying = Emptying {
            arrived,
            uncertain: millis(uncertain),
            wall: when.wall.before(when.now.saturating_duration_since(latest)),
            events: seen.events,
            times: seen.times,
        };
        let suspected = self.overflow.observe(emptying, &self.latest);
        self.emptied = self.latest.at_agora(arrived).map(|at| Emptied {
            at,
            uncertain: head_at - out.sent - fastest,
            calibrated: self.latest.calibrated(),
            events: seen.events,
            full: seen.events >= PAGE_LIMIT,
            times: seen.times,
            floor: self.overflow.floor(),
            follows: self.overflow.follows(),
        });
        suspected
    }

    /// Takes what the last page revealed about the buffer.
    pub(super) fn emptied(&mut self) -> Option<Emptied> {
        self.emptied.take()
    }

    /// Suspects that a buffer that it may share with other feeds overflowed.
    pub(super) fn accuse(&mut self, bounds: LossBounds) {
        self.overflow.accuse(bounds.from, bounds.to);
    }

    /// How long the machine slept since the last answer: how much more the wall clock advanced than
    /// the monotonic clock.
    fn slept(&mut self, when: Answered) -> Duration {
        let before = self.heard.replace((when.now, when.wall));
        let (now, wall) = before.unwrap_or((when.now, when.wall));
        let awake = when.now.saturating_duration_since(now);
        let slept = when.wall.since(wall).saturating_sub(awake);
        if slept > SLEPT { slept } else { Duration::ZERO }
    }

    fn take_out(&mut self, asked: Asked) -> Option<Out> {
        let index = self.out.iter().position(|it| it.asked == asked)?;
        Some(self.out.remove(index))
    }

    /// Round trips to the current host.
    fn trip(&self) -> &RoundTrip {
        self.trip_to(self.hosts.current())
    }

    fn trip_to(&self, host: usize) -> &RoundTrip {
        self.trips.get(host).expect("one for each host")
    }

    /// When a request becomes silent, unless more of its answer arrives.
    fn silent_at(&self, out: &Out) -> Instant {
        out.head_at.unwrap_or(out.sent) + self.trip_to(out.host).silence()
    }

    /// Whether the fate of a request is unknown. A request whose head has arrived is not silent,
    /// however long its body takes.
    fn is_silent(&self, out: &Out, now: Instant) -> bool {
        out.head_at.is_none() && now >= self.silent_at(out)
    }

    /// Whether a request may never bring anything more: it is silent, or its body is stalled.
    fn hangs(&self, out: &Out, now: Instant) -> bool {
        let Some(head_at) = out.head_at else { return self.is_silent(out, now) };
        let usual = self.bodies.get(out.host).expect("one for each host");
        now >= head_at + usual.silence().max(STALLED)
    }

    fn hanging_at_host(&self, now: Instant) -> impl Iterator<Item = &Out> {
        let host = self.hosts.current();
        self.out.iter().filter(move |it| it.host == host && self.hangs(it, now))
    }

    /// Number of hanging requests at the current host at which no other one is sent to it.
    fn silent_at_most(&self) -> usize {
        if self.hosts.is_proven() { SILENT_AT_A_HOST } else { 1 }
    }

    /// When the silence of requests means that the host is silent, so that another host may be
    /// asked; `None` if there is no other.
    fn doubted_at(&self, now: Instant) -> Option<Instant> {
        let other_from = self.hosts.other_from()?;
        let last = self.hanging_at_host(now).nth(self.silent_at_most() - 1)?;
        let patience = if self.hosts.is_proven() { HOST_IS_SILENT } else { PROOF };
        Some(other_from.max(last.sent + patience))
    }

    /// When the in-flight requests arrive, except silent ones.
    fn takes(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let talking = self.out.iter().filter(move |it| !self.is_silent(it, now));
        talking.map(|it| match it.head_at {
            Some(head_at) => it.sent + head_at.duration_since(it.sent) / 2,
            None => it.sent + self.trip_to(it.host).there(),
        })
    }

    /// When a request has to leave to find this many events.
    fn reaches(&self, events: f64, now: Instant) -> Option<Instant> {
        let at = self.forecast.reaches(events, self.takes(now))?;
        at.checked_sub(self.trip().there())
    }
}
