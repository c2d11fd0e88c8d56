//! What an Agora does, written down before it starts: who logs in how often, what goes wrong when.
//!
//! A script is the whole input of a [`World`](super::World): the same script gives the same events
//! and, for the same requests at the same times, the same answers. It is built from `Default` and
//! struct update: every value has a default, so a test states only what it is about.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::model::{AppId, Endpoint, Timestamp};

mod check;
mod fault;

pub use self::check::ScriptError;
pub use self::fault::{Fault, FaultKind, NotAFault};

/// Where simulated time begins unless a script says otherwise: 2020-01-03T00:00:00Z.
pub const DEFAULT_EPOCH: Timestamp = Timestamp::from_millis(1_578_009_600_000);

/// Everything that a simulated Agora does by itself.
#[derive(Clone, Debug)]
pub struct Script {
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// The wall clock at simulated time zero.
    pub epoch: Timestamp,
    /// From this time on no events happen, so that a test can finish.
    pub quiet_from: Option<Duration>,
    /// The App IDs. At least one.
    pub apps: Vec<AppScript>,
    /// The regions. At least one; an event is put into its home region at once and copied to the
    /// others.
    pub regions: Vec<RegionScript>,
    /// How long a copy is on its way to another region.
    pub copy_delay: Spread,
    /// The way between the client and Agora.
    pub network: Network,
    /// The rate limit of each App ID.
    pub limit: RateLimit,
    /// Whether the 2,000 events that a region keeps are those of both endpoints of an App ID together.
    /// Otherwise it keeps as many of each: the documents allow both readings.
    pub shared_buffer: bool,
    /// What goes wrong. The first fault that strikes a request is the one it gets.
    pub faults: Vec<Fault>,
    /// Whether the ledger keeps each event and answer after its end, for judging, or only counts.
    /// A kept event costs about 40 bytes.
    pub keep_records: bool,
}

/// One App ID: its credentials, its people, how it writes.
#[derive(Clone, Debug)]
pub struct AppScript {
    /// The App ID as in the path.
    pub app_id: AppId,
    /// User name of Basic authentication.
    pub customer_id: String,
    /// Password of Basic authentication. Made up: it guards nothing.
    pub customer_secret: String,
    /// Opens tokens that are signed with it. Made up, too.
    pub app_certificate: String,
    /// Upper limit for the life of signed tokens, even if they state more.
    pub token_life: Option<Duration>,
    /// Tokens that are accepted without looking at their content.
    pub tokens: Vec<TokenScript>,
    /// Signaling is not enabled for this App ID: 403.
    pub disabled: bool,
    /// Logins and logouts.
    pub user_events: Load,
    /// Joins and leaves.
    pub channel_events: Load,
    /// How many users come and go. More are made up where a burst needs them.
    pub users: u32,
    /// How many channels there are.
    pub channels: u32,
    /// How many users come and go in one channel.
    pub members: u32,
    /// How this App ID's events are written.
    pub dialect: Dialect,
    /// Names of users and channels with everything that Agora allows, and more.
    pub wild_names: bool,
    /// Events carry fields that no document lists.
    pub unknown_fields: bool,
    /// Bytes of an undocumented field that is added to each event.
    pub padding: u16,
    /// White space and the order of keys in an answer's envelope are drawn.
    pub wild_layout: bool,
    /// The share of elements that are not events (0 to 1).
    pub malformed: f64,
}

/// A token and how long it is good.
#[derive(Clone, Debug)]
pub struct TokenScript {
    /// With the prefix `007` it has to come as `Authorization: agora token=…`, otherwise in
    /// `x-agora-token`.
    pub token: String,
    /// The value that `x-agora-uid` must have next to an `x-agora-token`; not checked when absent.
    pub user_id: Option<String>,
    /// When it expires; never when absent.
    pub until: Option<Duration>,
}

/// How events are written. The default is the current documents' form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// Older documents: `channel_id` for `group_id`, `ts` for `ms`.
    pub old_names: bool,
    /// The time in whole seconds.
    pub seconds: bool,
    /// The time as a string of digits.
    pub time_as_text: bool,
    /// How an answer expresses that there are no events.
    pub empty: Empty,
}

/// How an empty buffer is written; no document says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Empty {
    /// `"events":[]`
    #[default]
    List,
    /// `"events":null`
    Null,
    /// No key `events`.
    Absent,
}

/// How many events a second happen at one endpoint of an App ID, over all regions.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Events per second at the start.
    pub rate: f64,
    /// Evenly spaced; otherwise random (a Poisson process).
    pub even: bool,
    /// From the start's rate to each point's in straight lines; stays at the last one's.
    pub ramp: Vec<RampPoint>,
    /// Bursts at given times.
    pub bursts: Vec<Burst>,
    /// Bursts at any time.
    pub random_bursts: Option<RandomBursts>,
}

/// The rate at a moment.
#[derive(Clone, Copy, Debug)]
pub struct RampPoint {
    /// When.
    pub at: Duration,
    /// Events per second.
    pub rate: f64,
}

/// Many events at once, on top of the rate.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// When it begins.
    pub at: Duration,
    /// How many events.
    pub events: u32,
    /// Spread evenly over this time; all in one instant when absent.
    pub over: Duration,
}

/// Random bursts.
#[derive(Clone, Copy, Debug)]
pub struct RandomBursts {
    /// How many bursts a minute, on average.
    pub per_minute: f64,
    /// How many events in each.
    pub events: u32,
}

/// A region of Agora.
#[derive(Clone, Debug)]
pub struct RegionScript {
    /// Its name, which faults refer to.
    pub name: String,
    /// Its host leads to other regions, each from a moment on: another address behind the name.
    pub detours: Vec<Detour>,
}

/// From a moment on another region answers at a host.
#[derive(Clone, Debug)]
pub struct Detour {
    /// When it begins. The last one that has begun counts.
    pub from: Duration,
    /// The region that answers; the host's own one ends a detour.
    pub region: String,
}

/// The way between client and server, and what the server does with connections.
#[derive(Clone, Debug)]
pub struct Network {
    /// The round trip. Each half is drawn for itself, so that requests that leave evenly can
    /// arrive bunched.
    pub rtt: Spread,
    /// Idle time after which the server closes a connection; never when absent.
    pub idle_timeout: Option<Duration>,
    /// How bodies are framed.
    pub framing: FramingChoice,
    /// How long the body of a full page takes from its first byte to its last; smaller pages take
    /// their share. In an instant when absent.
    pub page_time: Option<Duration>,
}

/// How bodies are framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FramingChoice {
    /// `Content-Length`.
    #[default]
    Length,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection is the end of the body.
    UntilClose,
    /// Drawn for each answer.
    Mixed,
}

/// The rate limit of an App ID, over both endpoints and all regions.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// How many requests in any second, by their time of arrival.
    pub requests_per_second: u32,
    /// The `Retry-After` of a 429, in whole seconds; none when absent.
    pub retry_after: Option<Duration>,
}

/// A range of time to draw from, evenly. In text: `20ms..40ms`, or `30ms` for always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The shortest.
    pub from: Duration,
    /// The longest.
    pub to: Duration,
}

/// A text is not a range of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a range of time such as `20ms..40ms` or `30ms`")]
pub struct NotASpread;

// === impl Script ===

impl Default for Script {
    /// One quiet App ID in one region, a round trip of 20 to 40 ms, no faults.
    fn default() -> Self {
        Self {
            seed: 1,
            epoch: DEFAULT_EPOCH,
            quiet_from: None,
            apps: vec![AppScript::default()],
            regions: vec![RegionScript::new("default")],
            copy_delay: Spread::millis(100, 400),
            network: Network::default(),
            limit: RateLimit::default(),
            shared_buffer: false,
            faults: Vec::new(),
            keep_records: true,
        }
    }
}

// === impl AppScript ===

impl AppScript {
    /// The `index`th made-up App ID with its credentials, always the same, without any load.
    pub fn numbered(index: usize) -> Self {
        let number = index as u128 + 1;
        // An odd factor makes the numbers look like App IDs and keeps them distinct.
        let id = number.wrapping_mul(0x876922cbca0098dff4323566daa89675);
        let customer = number.wrapping_mul(0x4a1c6f0d3b5e4c7fa9d2e8b71f60c35d);
        let secret = number.wrapping_mul(0x91d53e7ac04b4f28b6f7052ce89d1a43);
        let certificate = number.wrapping_mul(0x5cfd2fd1755d40ecb72977518be15d3b);
        Self {
            app_id: AppId::new(format!("{id:032x}")),
            customer_id: format!("{customer:032x}"),
            customer_secret: format!("{secret:032x}"),
            app_certificate: format!("{certificate:032x}"),
            token_life: None,
            tokens: Vec::new(),
            disabled: false,
            user_events: Load::default(),
            channel_events: Load::default(),
            users: 1_000,
            channels: 100,
            members: 40,
            dialect: Dialect::default(),
            wild_names: false,
            unknown_fields: false,
            padding: 0,
            wild_layout: false,
            malformed: 0.0,
        }
    }

    /// The same with these rates of user events and channel events, per second.
    #[must_use]
    pub fn rates(mut self, user_events: f64, channel_events: f64) -> Self {
        self.user_events.rate = user_events;
        self.channel_events.rate = channel_events;
        self
    }

    /// The load of one endpoint.
    pub fn load(&self, endpoint: Endpoint) -> &Load {
        match endpoint {
            Endpoint::User => &self.user_events,
            Endpoint::Channel => &self.channel_events,
        }
    }
}

impl Default for AppScript {
    fn default() -> Self {
        Self::numbered(0)
    }
}

// === impl RegionScript ===

impl RegionScript {
    /// A region of that name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), detours: Vec::new() }
    }

    /// The same whose host leads to another region from then on.
    #[must_use]
    pub fn detour(mut self, from: Duration, region: impl Into<String>) -> Self {
        self.detours.push(Detour { from, region: region.into() });
        self
    }
}

// === impl Network ===

impl Default for Network {
    fn default() -> Self {
        Self {
            rtt: Spread::millis(20, 40),
            idle_timeout: None,
            framing: FramingChoice::default(),
            page_time: None,
        }
    }
}

// === impl RateLimit ===

impl Default for RateLimit {
    /// Ten a second without `Retry-After`, as documented.
    fn default() -> Self {
        Self { requests_per_second: 10, retry_after: None }
    }
}

// === impl Spread ===

impl Spread {
    /// Always the same.
    pub const fn always(duration: Duration) -> Self {
        Self { from: duration, to: duration }
    }

    /// From `from` to `to` milliseconds.
    pub const fn millis(from: u64, to: u64) -> Self {
        Self { from: Duration::from_millis(from), to: Duration::from_millis(to) }
    }
}

impl FromStr for Spread {
    type Err = NotASpread;

    fn from_str(text: &str) -> Result<Self, NotASpread> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let duration = |text: &str| humantime::parse_duration(text.trim()).map_err(|_| NotASpread);
        let spread = Self { from: duration(from)?, to: duration(to)? };
        if spread.from <= spread.to { Ok(spread) } else { Err(NotASpread) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (humantime::format_duration(self.from), self.to);
        write!(f, "{from}..{}", humantime::format_duration(to))
    }
}
