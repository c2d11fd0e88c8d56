//! An Agora without a clock, a network or a thread: time goes in, an answer comes out.
//!
//! Events happen as the script says. They are put into the buffer of their home region at once and
//! copied to the other regions a little later. A request passes, in this order: path, App ID,
//! credentials, whether Signaling is enabled, the rate limit, the faults; then the oldest events of
//! the one buffer that it names are removed, regardless of what happens to the answer.
//!
//! Order: each buffer hands events over in order of time. A user's (a channel's) events have one
//! home, and their copies travel in order, so each region hands them over in order.
//!
//! Time never runs backwards: a request that claims to arrive before one already answered is
//! treated as arriving together with it.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::body;
use super::body::{Body, Layout};
use super::buffer::{Buffer, Copied, make_room};
use super::clock::randomness;
use super::door::{Lock, Target, Window};
use super::event::Event;
use super::faults::Faults;
use super::ledger::{AnswerRecord, Ledger};
use super::load::Crowds;
use super::script::{Detour, Fault, FaultKind, FramingChoice, Network, Script, Spread};
use super::wire::{Answer, Connection, Ending, Framing, Request};
use crate::model::{Endpoint, PAGE_LIMIT, Timestamp};

/// A simulated Agora.
#[derive(Debug)]
pub struct World {
    script: Script,
    /// The latest time passed in.
    now: Duration,
    crowds: Crowds,
    /// `[region][2 × app + endpoint]`
    buffers: Vec<Vec<Buffer>>,
    links: Links,
    gates: Vec<AppGate>,
    faults: Faults,
    /// Draws network delays.
    network: StdRng,
    /// Draws the form of answers and where they break off.
    answering: StdRng,
    ledger: Ledger,
}

/// The checks in front of the buffers of an App ID.
#[derive(Debug)]
struct AppGate {
    lock: Lock,
    window: Window,
}

/// Copies on their way to other regions. Between two regions they stay in order, as in log
/// shipping: a copy that is due waits for those before it.
#[derive(Debug)]
struct Links {
    regions: usize,
    /// `[regions × from + to]`
    queues: Vec<VecDeque<(Duration, Copied)>>,
    delay: Spread,
    rng: StdRng,
}

/// An answer that is being built.
struct PendingReply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    ending: Ending,
    fault: Option<FaultKind>,
    taken: u64,
    complete: u64,
}

// === impl World ===

impl World {
    /// A world in which nothing has happened yet. A script without apps or regions makes an empty
    /// world; [`Script::check`] reports it.
    pub fn new(script: Script) -> Self {
        let buffers_of_region = || (0..2 * script.apps.len()).map(|_| Buffer::default()).collect();
        let gate = |app| AppGate { lock: Lock::of(app), window: Window::default() };
        Self {
            now: Duration::ZERO,
            crowds: Crowds::new(&script),
            buffers: script.regions.iter().map(|_| buffers_of_region()).collect(),
            links: Links::new(&script),
            gates: script.apps.iter().map(gate).collect(),
            faults: Faults::new(&script),
            network: randomness(script.seed, 2),
            answering: randomness(script.seed, 3),
            ledger: Ledger::new(&script),
            script,
        }
    }

    /// What became of all events and requests.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The script that is played.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// The latest time passed in.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The wall clock at that time.
    pub fn wall_clock(&self) -> Timestamp {
        self.script.epoch.after(self.now)
    }

    /// The number of events waiting in one buffer.
    pub fn backlog(&self, region: usize, app: usize, endpoint: Endpoint) -> usize {
        let of_region = self.buffers.get(region);
        of_region.and_then(|it| it.get(slot(app, endpoint))).map_or(0, Buffer::len)
    }

    /// The result of an attempt to connect to the host of a region.
    pub fn connect(&mut self, now: Duration, region: usize) -> Connection {
        self.advance(now);
        let region = self.behind(region);
        match self.faults.strike_connection(self.now, region) {
            Some(FaultKind::Refused) => Connection::Refused,
            Some(_) => Connection::BlackHole,
            None => {
                self.ledger.connected();
                Connection::Accepted
            }
        }
    }

    /// Draws the time that a request takes to arrive, and the time that its answer takes.
    pub fn round_trip(&mut self) -> (Duration, Duration) {
        self.script.network.round_trip(&mut self.network)
    }

    /// How long a connection may be idle before the server closes it.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.script.network.idle_timeout
    }

    /// The periods in which a region refuses every connection.
    pub fn closed(&self, region: usize) -> Vec<(Duration, Duration)> {
        self.faults.closed(region)
    }

    /// Advances to `now`: everything until then happens.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        loop {
            let until = self.links.due().map_or(self.now, |due| due.min(self.now));
            if let Some((at, event)) = self.crowds.next_until(until) {
                self.happen(at, event);
            } else if let Some((region, copied)) = self.links.arrived(until) {
                self.put(region, copied);
            } else {
                break;
            }
        }
    }

    /// Answers a request that arrives at `now` at the host of a region.
    pub fn answer(&mut self, now: Duration, region: usize, request: &Request) -> Answer {
        self.advance(now);
        let region = self.behind(region);
        let (feed, reply) = match Target::of(&request.path) {
            _ if request.method != "GET" => {
                (None, PendingReply::message(405, "method not allowed"))
            }
            Target::Nothing => (None, PendingReply::message(404, "not found")),
            Target::Projects => (None, self.projects(request)),
            Target::Feed(app_id, endpoint) => {
                let found = self.script.apps.iter().position(|it| it.app_id.as_str() == app_id);
                match found {
                    Some(app) => (Some((app, endpoint)), self.ask(region, app, endpoint, request)),
                    None => (None, PendingReply::message(400, "invalid appid")),
                }
            }
        };
        self.finish(region, feed, reply)
    }

    /// Records in the ledger that the last byte of an answer that was to be sent has been sent.
    pub fn sent(&mut self, answer: u64, now: Duration) {
        self.ledger.sent(answer, now);
    }

    /// Adds a burst of `events` now at one endpoint of an App ID, on top of the script.
    pub fn burst(&mut self, app: usize, endpoint: Endpoint, events: u32) {
        self.crowds.burst(self.now, app, endpoint, events);
    }

    /// Stops all new events. Copies on their way still arrive.
    pub fn stop_load(&mut self) {
        self.crowds.silence(self.now);
    }

    /// Replaces the faults from now on.
    pub fn set_faults(&mut self, faults: Vec<Fault>) {
        self.faults.replace(faults);
    }

    /// Sets the time that the body of a full page takes from now on.
    pub fn set_page_time(&mut self, page_time: Option<Duration>) {
        self.script.network.page_time = page_time;
    }

    /// The region that answers at a region's host.
    fn behind(&self, host: usize) -> usize {
        let detours = self.script.regions.get(host).map_or(&[][..], |it| &it.detours);
        let begun = detours.iter().filter(|it| it.from <= self.now);
        let last = begun.max_by_key(|it| it.from);
        let named =
            |it: &Detour| self.script.regions.iter().position(|other| other.name == it.region);
        last.and_then(named).unwrap_or(host)
    }

    fn happen(&mut self, at: Duration, event: Event) {
        let regions = self.script.regions.len();
        let home = home(&event, regions);
        let copied = self.ledger.made(event, u8::try_from(regions).unwrap_or(u8::MAX));
        self.put(home, copied);
        self.links.send(at, home, copied);
    }

    fn put(&mut self, region: usize, copied: Copied) {
        let Some(event) = self.ledger.event(copied) else { return };
        let (app, slot) = (usize::from(event.app), slot(usize::from(event.app), event.endpoint));
        let Some(of_region) = self.buffers.get_mut(region) else { return };
        let Some(buffer) = of_region.get_mut(slot) else { return };
        buffer.put(copied);
        let sharing = if self.script.shared_buffer { 2 * app..2 * app + 2 } else { slot..slot + 1 };
        if let Some(replaced) = of_region.get_mut(sharing).and_then(make_room) {
            self.ledger.overwritten(replaced);
        }
    }

    /// A request for a feed: the checks, the faults, then the buffer.
    fn ask(
        &mut self,
        region: usize,
        app: usize,
        endpoint: Endpoint,
        request: &Request,
    ) -> PendingReply {
        if let Some(refusal) = self.refusal(app, request) {
            return refusal;
        }
        let app_id = self.script.apps.get(app).map_or("", |it| it.app_id.as_str());
        let fault = self.faults.strike_request(self.now, region, app_id, endpoint);
        match fault {
            Some(fault) if !fault.kind.takes_events() => self.without_events(&fault),
            fault => self.take(region, app, endpoint, fault.as_ref()),
        }
    }

    fn refusal(&mut self, app: usize, request: &Request) -> Option<PendingReply> {
        let wall = self.wall_clock();
        let gate = self.gates.get_mut(app)?;
        let requests = self.ledger.requests_mut(app)?;
        requests.asked += 1;
        if !gate.lock.opens(request, self.now, wall) {
            return Some(PendingReply::message(401, "Invalid authentication credentials"));
        }
        if self.script.apps.get(app)?.disabled {
            return Some(PendingReply::message(403, "Signaling is not enabled for this App ID"));
        }
        let in_this_second = gate.window.arrive(self.now);
        requests.most_in_a_second = requests.most_in_a_second.max(in_this_second);
        let limit = self.script.limit;
        if in_this_second <= u64::from(limit.requests_per_second) {
            return None;
        }
        requests.over_limit += 1;
        let refused = PendingReply::message(429, "API rate limit exceeded");
        Some(refused.retry_after(limit.retry_after.map(whole_seconds)))
    }

    /// The answer to a request hit by a fault that takes no events.
    fn without_events(&self, fault: &Fault) -> PendingReply {
        let reply = match fault.kind {
            FaultKind::TimedOut => PendingReply::message(408, "times out or fails to respond"),
            FaultKind::Throttled => PendingReply::message(429, "API rate limit exceeded"),
            FaultKind::Denied => denial(fault.status.unwrap_or(404)),
            FaultKind::ServerError => {
                PendingReply::html(fault.status.unwrap_or(502), "Server Error")
            }
            FaultKind::Failed => {
                let number = self.ledger.next_answer();
                PendingReply::json(200, body::failed(number, &request_id(number)))
            }
            FaultKind::NotJson => PendingReply::html(200, "Welcome"),
            _ => PendingReply::json(200, Vec::new()),
        };
        let says_when = fault.kind.may_name_a_delay();
        let after =
            fault.retry_after.filter(|_| says_when).map(|after| match fault.retry_after_as_date {
                true => http_date(self.wall_clock().after(after)),
                false => whole_seconds(after),
            });
        let reply = reply.retry_after(after);
        PendingReply { ending: Ending::struck_by(fault, 0), fault: Some(fault.kind), ..reply }
    }

    /// Removes the oldest events from a buffer and writes them into an answer.
    fn take(
        &mut self,
        region: usize,
        app: usize,
        endpoint: Endpoint,
        fault: Option<&Fault>,
    ) -> PendingReply {
        let number = self.ledger.next_answer();
        let buffer = self.buffers.get_mut(region).and_then(|it| it.get_mut(slot(app, endpoint)));
        let taken: Vec<Copied> = buffer.map_or_else(Vec::new, |it| it.take().collect());
        let body = self.write(app, number, &taken);
        let length = body.bytes.len();
        let ending = fault.map_or(Ending::Whole, |fault| {
            Ending::struck_by(fault, self.answering.random_range(0..length))
        });
        let sent = ending.sent_of(length).unwrap_or(0);
        let mut complete = 0;
        for (copied, end) in taken.iter().zip(&body.ends) {
            let is_whole = *end <= sent;
            complete += u64::from(is_whole);
            self.ledger.handed_over(*copied, number, is_whole);
        }
        PendingReply {
            ending,
            fault: fault.map(|it| it.kind),
            taken: taken.len() as u64,
            complete,
            ..PendingReply::json(200, body.bytes)
        }
    }

    fn write(&mut self, app: usize, number: u64, taken: &[Copied]) -> Body {
        let is_wild = self.script.apps.get(app).is_some_and(|it| it.wild_layout);
        let layout = if is_wild { Layout::drawn(&mut self.answering) } else { Layout::PLAIN };
        let event = |copied: &Copied| self.ledger.event(*copied).expect("a buffered event's line");
        let style = self.ledger.style(app).expect("one for each app");
        Body::new(style, layout, &request_id(number), taken.iter().map(event))
    }

    /// The Console's list of the projects that the credentials give access to. Takes no events. Its
    /// separate rate limit is not simulated.
    fn projects(&self, request: &Request) -> PendingReply {
        let apps = self.script.apps.iter().zip(&self.gates);
        let projects: Vec<serde_json::Value> = apps
            .filter(|(_, gate)| gate.lock.opens_with_basic(request))
            .map(|(app, _)| {
                let id = app.app_id.as_str();
                serde_json::json!({
                    "id": id,
                    "name": format!("project of {id}"),
                    "vendor_key": id,
                    "sign_key": "a certificate that no log should show",
                    "recording_server": null,
                    "status": i32::from(!app.disabled),
                    "created": self.script.epoch.as_millis(),
                })
            })
            .collect();
        if projects.is_empty() {
            return PendingReply::message(401, "Invalid authentication credentials");
        }
        let list = serde_json::json!({ "projects": projects, "success": true });
        PendingReply::json(200, list.to_string().into_bytes())
    }

    fn finish(
        &mut self,
        region: usize,
        feed: Option<(usize, Endpoint)>,
        mut reply: PendingReply,
    ) -> Answer {
        let number = self.ledger.next_answer();
        let framing = self.script.network.framing.draw(&mut self.answering);
        reply.headers.push(("Date".into(), http_date(self.wall_clock())));
        reply.headers.push(("X-Request-ID".into(), format!("{:032x}", scattered(number))));
        reply.headers.push(("X-Resource-ID".into(), format!("simulated-{number}")));
        let PendingReply { status, headers, body, ending, fault, taken, complete } = reply;
        let ending = self.script.network.paced(ending, body.len(), taken);
        let (at, sent_at) = (self.now, None);
        let record = AnswerRecord { at, sent_at, region, feed, status, fault, taken, complete };
        self.ledger.answered(record);
        Answer { number, status, headers, body, framing, ending }
    }
}

fn slot(app: usize, endpoint: Endpoint) -> usize {
    2 * app + usize::from(endpoint == Endpoint::Channel)
}

/// Agora's message for such a status.
fn denial(status: u16) -> PendingReply {
    let message = match status {
        400 => "invalid appid",
        401 => "Invalid authentication credentials",
        403 => "Signaling is not enabled for this App ID",
        404 => "not found",
        _ => "the request is denied",
    };
    PendingReply::message(status, message)
}

/// The region of a user or, for channel events, of a channel.
fn home(event: &Event, regions: usize) -> usize {
    let key = match event.endpoint {
        Endpoint::User => event.user,
        Endpoint::Channel => event.channel,
    };
    // Scattered: otherwise the busy channels, which have low numbers, would share a home.
    let scattered = key.wrapping_mul(0x9e37_79b9) >> 16;
    scattered as usize % regions.max(1)
}

fn scattered(number: u64) -> u128 {
    u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// As opaque and as long as a real one, which may exceed an i64.
fn request_id(number: u64) -> String {
    (scattered(number) >> 64).to_string()
}

fn whole_seconds(duration: Duration) -> String {
    duration.as_secs().to_string()
}

fn http_date(moment: Timestamp) -> String {
    let since_1970 = moment.since(Timestamp::default());
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + since_1970)
}

// === impl Links ===

impl Links {
    fn new(script: &Script) -> Self {
        let regions = script.regions.len();
        let queues = if regions > 1 { regions * regions } else { 0 };
        Self {
            regions,
            queues: (0..queues).map(|_| VecDeque::new()).collect(),
            delay: script.copy_delay,
            rng: randomness(script.seed, 4),
        }
    }

    /// Sends a copy to each region except the one it comes from.
    fn send(&mut self, now: Duration, from: usize, copied: Copied) {
        let others = self.queues.iter_mut().enumerate().skip(self.regions * from);
        for (index, queue) in others.take(self.regions) {
            if index % self.regions == from {
                continue;
            }
            queue.push_back((now + self.delay.draw(&mut self.rng), copied));
        }
    }

    fn due(&self) -> Option<Duration> {
        self.queues.iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min()
    }

    /// The next copy that arrives no later than `now`, and where.
    fn arrived(&mut self, now: Duration) -> Option<(usize, Copied)> {
        let fronts = self.queues.iter().enumerate();
        let dues = fronts.filter_map(|(index, queue)| Some((queue.front()?.0, index)));
        let (due, index) = dues.min()?;
        if due > now {
            return None;
        }
        let (_, copied) = self.queues.get_mut(index)?.pop_front()?;
        Some((index % self.regions, copied))
    }
}

// === impl Reply ===

impl PendingReply {
    fn json(status: u16, body: Vec<u8>) -> Self {
        Self::new(status, "application/json; charset=utf-8", body)
    }

    fn html(status: u16, reason: &str) -> Self {
        Self::new(status, "text/html", body::html(&format!("{status} {reason}")))
    }

    fn message(status: u16, message: &str) -> Self {
        Self::json(status, format!("{{\"message\":\"{message}\"}}").into_bytes())
    }

    fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        let headers = vec![("Content-Type".into(), content_type.into())];
        let (ending, fault) = (Ending::Whole, None);
        Self { status, headers, body, ending, fault, taken: 0, complete: 0 }
    }

    fn retry_after(mut self, after: Option<String>) -> Self {
        self.headers.extend(after.map(|after| ("Retry-After".into(), after)));
        self
    }
}

// === impl Network ===

impl Network {
    /// The delays of the request and of its answer, each half of the round trip drawn separately.
    pub(super) fn round_trip(&self, rng: &mut StdRng) -> (Duration, Duration) {
        let Spread { from, to } = self.rtt;
        let half = Spread { from: from / 2, to: to / 2 };
        (half.draw(rng), half.draw(rng))
    }

    /// Time from the first to the last byte of the body of a page with `events` events.
    pub(super) fn body_time(&self, events: u64) -> Duration {
        let of_full_page = self.page_time.unwrap_or_default();
        of_full_page.mul_f64(events as f64 / PAGE_LIMIT as f64)
    }

    /// How an answer that would otherwise arrive whole and at once is slowed by this network.
    fn paced(&self, ending: Ending, length: usize, events: u64) -> Ending {
        let takes = self.body_time(events);
        if ending != Ending::Whole || takes.is_zero() {
            return ending;
        }
        let bytes_per_second = length as u128 * 1_000_000 / takes.as_micros().max(1);
        Ending::Slow { bytes_per_second: u32::try_from(bytes_per_second).unwrap_or(u32::MAX) }
    }
}

// === impl Spread ===

impl Spread {
    fn draw(self, rng: &mut StdRng) -> Duration {
        if self.from >= self.to { self.from } else { rng.random_range(self.from..=self.to) }
    }
}

// === impl FramingChoice ===

impl FramingChoice {
    fn draw(self, rng: &mut StdRng) -> Framing {
        match self {
            Self::Length => Framing::Length,
            Self::Chunked => Framing::Chunked,
            Self::UntilClose => Framing::UntilClose,
            Self::Mixed => match rng.random_range(0..3) {
                0 => Framing::Length,
                1 => Framing::Chunked,
                _ => Framing::UntilClose,
            },
        }
    }
}

#[cfg(test)]
mod tests;
