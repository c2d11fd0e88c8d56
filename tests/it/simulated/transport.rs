//! The way to a simulated Agora in simulated time, with a log of what really came across.
//!
//! Agora's own ledger knows what it sent. Whether the bridge was still there to take it, and how
//! much of it, only the way between them knows: an answer can be on its way when the bridge is
//! killed, and a reset takes bytes along that were sent. So the judge goes by [`Exchange`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agora_rtm_bridge::agora::{Raw, Reply, Request, Transport, TransportError};
use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator;
use agora_rtm_bridge::simulator::{Answer, Connection, Ending, Framing, World};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::time::Now;

/// As configured: `agora.connect_timeout` and `agora.silence_timeout`.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// Agora and the wires to it; they outlive the bridge. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub(crate) struct Agora(Arc<Mutex<Wires>>);

/// One process's way to Agora.
#[derive(Debug)]
pub(crate) struct Way {
    agora: Agora,
    now: Now,
    life: usize,
    /// Round trips until a new connection is there.
    connecting: u32,
    /// Connections that wait for a request, for each region.
    idle: Mutex<HashMap<usize, u32>>,
}

/// A request of the bridge and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Which life of the bridge asked.
    pub(crate) life: usize,
    /// The index of the App ID in the script.
    pub(crate) app: usize,
    pub(crate) endpoint: Endpoint,
    /// When it left.
    pub(crate) left_at: Duration,
    /// The region of Agora that was asked.
    pub(crate) region: usize,
    /// What Agora answered, where the request came so far.
    pub(crate) answer: Option<Answered>,
    /// What the bridge was told.
    pub(crate) told: Told,
}

/// What Agora answered.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) number: u64,
    pub(crate) status: u16,
    /// All of it, even what was not sent.
    pub(crate) body: Bytes,
}

/// What the bridge was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing: it was killed before.
    Nothing,
    /// That the request never left.
    NotSent,
    /// That it will never know.
    Lost,
    /// The first so many bytes of the body, and whether they look like all of it.
    Answered { bytes: usize, looks_whole: bool },
}

#[derive(Debug)]
struct Wires {
    world: World,
    rng: StdRng,
    exchanges: Vec<Exchange>,
    /// Requests that have left and not arrived.
    on_the_way: Vec<OnTheWay>,
    /// The share of requests that die on a connection that the server has just closed.
    stale: f64,
    cut_first_page_at: Option<usize>,
    killing: bool,
    broken_promises: Vec<String>,
}

#[derive(Clone, Debug)]
struct OnTheWay {
    exchange: usize,
    arrives_at: Duration,
    request: simulator::Request,
}

/// What a request meets where it arrives.
enum Met {
    Refusal,
    BlackHole,
    Answer(Answer),
}

// === impl Agora ===

impl Agora {
    /// `stale` is the share of requests that die on a connection that the server has just closed.
    pub(crate) fn new(world: World, stale: f64, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Wires {
            world,
            rng: StdRng::seed_from_u64(seed),
            exchanges: Vec::new(),
            on_the_way: Vec::new(),
            stale,
            cut_first_page_at: None,
            killing: false,
            broken_promises: Vec::new(),
        })))
    }

    /// A process begins to ask.
    pub(crate) fn connect(&self, now: Now, life: usize, connecting: u32) -> Way {
        Way { agora: self.clone(), now, life, connecting, idle: Mutex::default() }
    }

    /// The first answer with events is cut behind so many bytes.
    pub(crate) fn cut_first_page_at(&self, bytes: usize) {
        self.lock().cut_first_page_at = Some(bytes);
    }

    /// The process is about to be killed. Everything that is dropped from now on is not its doing.
    pub(crate) fn kill(&self) {
        self.lock().killing = true;
    }

    /// The process is dead. Its requests that are on their way arrive all the same.
    pub(crate) fn killed(&self) {
        let mut wires = self.lock();
        let mut on_the_way = std::mem::take(&mut wires.on_the_way);
        on_the_way.sort_by_key(|it| it.arrives_at);
        for it in on_the_way {
            wires.arrive(&it);
        }
        wires.killing = false;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        let mut wires = self.lock();
        wires.world.set_faults(Vec::new());
        wires.stale = 0.0;
    }

    /// A look at Agora itself, which may be changed.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.lock().world)
    }

    /// Every request, in the order of leaving.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.lock().exchanges.clone()
    }

    /// What the bridge did although the seam forbids it.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        self.lock().broken_promises.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Way ===

impl Transport for Way {
    async fn ask_with(&self, request: Request, on_head: impl FnOnce(Instant) + Send) -> Reply {
        let (leaves, back) = {
            let mut wires = self.agora.lock();
            let (there, back) = wires.world.round_trip();
            let now = self.now.get();
            let connects = if self.takes_idle(&request) { 0 } else { self.connecting };
            let arrives_at = now + (there + back) * connects + there;
            (wires.leave(self.life, &request, now, arrives_at), back)
        };
        let region = self.agora.lock().exchanges[leaves.exchange].region;
        let promise = NotDropped { agora: self.agora.clone(), kept: false };
        let reply = self.follow(leaves, back, on_head).await;
        promise.keep();
        if matches!(&reply, Reply::Answered(raw) if raw.cut.is_none()) {
            *self.idle().entry(region).or_default() += 1;
        }
        reply
    }

    fn longest(&self) -> Duration {
        SILENCE_TIMEOUT + Duration::from_secs(4)
    }
}

impl Way {
    fn idle(&self) -> MutexGuard<'_, HashMap<usize, u32>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn takes_idle(&self, request: &Request) -> bool {
        let mut idle = self.idle();
        let idle = idle.entry(region_of(split(&request.url).0)).or_default();
        let left = idle.checked_sub(1);
        *idle = left.unwrap_or(0);
        left.is_some()
    }

    async fn follow(
        &self,
        leaves: OnTheWay,
        back: Duration,
        on_head: impl FnOnce(Instant) + Send,
    ) -> Reply {
        self.now.reaches(leaves.arrives_at).await;
        let exchange = leaves.exchange;
        let met = {
            let mut wires = self.agora.lock();
            wires.on_the_way.retain(|it| it.exchange != exchange);
            let stale = wires.stale;
            if wires.rng.random_bool(stale) {
                wires.exchanges[exchange].told = Told::Lost;
                return lost("closed before the message completed");
            }
            wires.arrive(&OnTheWay { arrives_at: self.now.get(), ..leaves })
        };
        let answer = match met {
            Met::Refusal => {
                tokio::time::sleep(back).await;
                return self.not_sent(exchange, "connection refused");
            }
            Met::BlackHole => {
                tokio::time::sleep(CONNECT_TIMEOUT).await;
                return self.not_sent(exchange, "connect timed out");
            }
            Met::Answer(answer) => answer,
        };
        tokio::time::sleep(back).await;
        match answer.ending {
            Ending::NoAnswer => return self.lost(exchange, "reset"),
            Ending::Never => {
                tokio::time::sleep(SILENCE_TIMEOUT).await;
                return self.lost(exchange, "silent");
            }
            _ => {}
        }
        let head_at = Instant::now();
        on_head(head_at);
        let length = answer.body.len();
        let (bytes, cut) = match answer.ending {
            Ending::NoAnswer | Ending::Never => unreachable!("handled above"),
            Ending::Whole => (length, None),
            Ending::Slow { .. } => {
                tokio::time::sleep(answer.ending.takes(length)).await;
                (length, None)
            }
            Ending::Cut { after } if answer.framing == Framing::UntilClose => (after, None),
            Ending::Cut { after } => (after, Some("closed early")),
            Ending::Reset { after } => {
                // What the system had received and not handed over goes with the reset, be it all.
                let seen = self.agora.lock().rng.random_range(0..=after + 1);
                match seen.checked_sub(1) {
                    Some(seen) => (seen, Some("reset")),
                    None => return self.lost(exchange, "reset"),
                }
            }
            Ending::Silent { after } => {
                tokio::time::sleep(SILENCE_TIMEOUT).await;
                (after, Some("silent"))
            }
        };
        self.agora.lock().exchanges[exchange].told =
            Told::Answered { bytes, looks_whole: cut.is_none() };
        let header = |name: &str| {
            let found = answer.headers.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        Reply::Answered(Raw {
            status: answer.status,
            date: header("date"),
            retry_after: header("retry-after"),
            request_id: header("x-request-id"),
            resource_id: header("x-resource-id"),
            content_encoding: header("content-encoding"),
            body: Bytes::from(answer.body).slice(..bytes),
            cut: cut.map(|why| TransportError(why.to_owned())),
            head_at: Some(head_at),
        })
    }

    fn not_sent(&self, exchange: usize, why: &str) -> Reply {
        self.agora.lock().exchanges[exchange].told = Told::NotSent;
        Reply::NotSent(TransportError(why.to_owned()))
    }

    fn lost(&self, exchange: usize, why: &str) -> Reply {
        self.agora.lock().exchanges[exchange].told = Told::Lost;
        lost(why)
    }
}

fn lost(why: &str) -> Reply {
    Reply::Lost(TransportError(why.to_owned()))
}

// === impl Wires ===

impl Wires {
    fn leave(
        &mut self,
        life: usize,
        request: &Request,
        left_at: Duration,
        arrives_at: Duration,
    ) -> OnTheWay {
        let (host, path) = split(&request.url);
        let headers = request.proof.iter().cloned();
        let asked = headers
            .fold(simulator::Request::get(path), |asked, (name, value)| asked.header(name, value));
        let apps = &self.world.script().apps;
        let app = apps.iter().position(|app| path.contains(app.app_id.as_str()));
        let endpoint = Endpoint::ALL.into_iter().find(|it| path.ends_with(it.name()));
        self.exchanges.push(Exchange {
            life,
            app: app.expect("the script has every configured app"),
            endpoint: endpoint.expect("the path ends in the name of an endpoint"),
            left_at,
            region: region_of(host),
            answer: None,
            told: Told::Nothing,
        });
        let leaves = OnTheWay { exchange: self.exchanges.len() - 1, arrives_at, request: asked };
        self.on_the_way.push(leaves.clone());
        leaves
    }

    fn arrive(&mut self, arriving: &OnTheWay) -> Met {
        let exchange = &mut self.exchanges[arriving.exchange];
        match self.world.connect(arriving.arrives_at, exchange.region) {
            Connection::Refused => return Met::Refusal,
            Connection::BlackHole => return Met::BlackHole,
            Connection::Accepted => {}
        }
        let mut answer = self.world.answer(arriving.arrives_at, exchange.region, &arriving.request);
        let has_events = self.world.ledger().answers().last().is_some_and(|it| it.taken > 0);
        if has_events && let Some(after) = self.cut_first_page_at.take() {
            answer.ending = Ending::Cut { after };
        }
        let (number, status) = (answer.number, answer.status);
        let body = Bytes::copy_from_slice(&answer.body);
        exchange.answer = Some(Answered { number, status, body });
        Met::Answer(answer)
    }
}

/// The base URL of a host in a region of Agora.
pub(crate) fn host_in(region: usize) -> String {
    format!("https://r{region}.agora.test")
}

fn region_of(host: &str) -> usize {
    let number = host.strip_prefix('r').and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).expect("a host of `host_in`")
}

fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("https://").expect("hosts are https");
    rest.split_at(rest.find('/').expect("a path follows the host"))
}

/// Notes when a request is dropped by anything but the death of its process.
struct NotDropped {
    agora: Agora,
    kept: bool,
}

// === impl NotDropped ===

impl NotDropped {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NotDropped {
    fn drop(&mut self) {
        let mut wires = self.agora.lock();
        if !self.kept && !wires.killing {
            wires.broken_promises.push("a request was dropped before its end".to_owned());
        }
    }
}
