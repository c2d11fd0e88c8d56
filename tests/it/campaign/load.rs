//! The load: made tick by tick, so that it can rest between two rounds.

use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::agora::Agora;

/// Events of two App IDs, on both endpoints of each.
pub(super) struct Load {
    rate: f64,
    random: StdRng,
    /// Since when there is load, and until when it has been made.
    on: Option<(Duration, Duration)>,
    rush: Option<Rush>,
}

/// More than the usual load.
struct Rush {
    since: Duration,
    /// How many times the usual load it grows to, and how long that takes: in one jump it would be
    /// a burst, too.
    times: f64,
    growth: Duration,
}

/// Whose events they are: most of them of one busy App ID.
const SHARES: [(usize, Endpoint, f64); 4] = [
    (0, Endpoint::User, 0.48),
    (0, Endpoint::Channel, 0.48),
    (1, Endpoint::User, 0.02),
    (1, Endpoint::Channel, 0.02),
];

/// The number of App IDs.
pub(super) const APPS: usize = 2;

/// A high rate takes so long to come about. In one jump it would be a burst, and could push events
/// out of Agora's buffers before anybody who polls can know of it.
const GROWTH: Duration = Duration::from_secs(8);

/// What a buffer bears in the time between two looks at a feed that was at rest.
const JUMP: f64 = 1_000.0;

// === impl Load ===

impl Load {
    pub(super) fn new(rate: f64, seed: u64) -> Self {
        Self { rate, random: StdRng::seed_from_u64(seed), on: None, rush: None }
    }

    /// From now on events happen, as long as [`Self::tick`] is called.
    pub(super) fn begin(&mut self, agora: &Agora) {
        self.on = Some((agora.now(), agora.now()));
    }

    /// No event happens any more.
    pub(super) fn rest(&mut self) {
        self.on = None;
        self.rush = None;
    }

    /// From now on it grows to so many times what it is, within this time.
    pub(super) fn rush(&mut self, agora: &Agora, times: f64, growth: Duration) {
        self.rush = Some(Rush { since: agora.now(), times, growth });
    }

    /// It is as it was.
    pub(super) fn end_rush(&mut self) {
        self.rush = None;
    }

    /// Lets happen what is due by now.
    pub(super) fn tick(&mut self, agora: &Agora) {
        let now = agora.now();
        let Some((since, made_until)) = self.on else { return };
        self.on = Some((since, now));
        let grown = (now - since).div_duration_f64(GROWTH);
        let rate = self.rate.min(JUMP + (self.rate - JUMP).max(0.0) * grown);
        let rush = self.rush.as_ref().map_or(1.0, |Rush { since, times, growth }| {
            let grown = (now - *since).div_duration_f64(*growth).min(1.0);
            1.0 + (*times - 1.0) * grown
        });
        let due = rate * rush * (now - made_until).as_secs_f64();
        let counts = SHARES.map(|(app, endpoint, share)| {
            let more = self.random.random_bool((due * share).fract());
            #[expect(clippy::cast_possible_truncation, reason = "a tick brings few events")]
            let whole = (due * share) as u32;
            (app, endpoint, whole + u32::from(more))
        });
        let mut world = agora.world();
        world.advance(now);
        for (app, endpoint, count) in counts.into_iter().filter(|(.., count)| *count > 0) {
            world.burst(app, endpoint, count);
        }
    }

    /// One event on each feed.
    pub(super) fn probe(&self, agora: &Agora) {
        let now = agora.now();
        let mut world = agora.world();
        world.advance(now);
        for (app, endpoint, _) in SHARES {
            world.burst(app, endpoint, 1);
        }
        // They wait from now on, so that nobody takes the buffers for empty.
        world.advance(now);
    }

    /// So many more at once, on one feed of the busy App ID.
    pub(super) fn burst(&mut self, agora: &Agora, events: u32) {
        let endpoint =
            if self.random.random_bool(0.5) { Endpoint::User } else { Endpoint::Channel };
        let now = agora.now();
        let mut world = agora.world();
        world.advance(now);
        world.burst(0, endpoint, events);
    }
}
