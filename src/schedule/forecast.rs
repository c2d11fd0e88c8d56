//! How soon a feed could overflow, from what its pages told.
//!
//! A plain forecast: the highest rate that was seen, fading over minutes. It follows a load that
//! changes slowly and one that bursts as it burst before; what it can't follow is the first burst
//! of a quiet feed, which is safe while it stays within the buffer.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::BUFFER_LIMIT;
use crate::model::PAGE_LIMIT;

/// The time in which a peak that does not come back loses half of its height.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// A feed's rate.
#[derive(Debug)]
pub(super) struct Forecast {
    /// Events a second at the highest, as of `observed_at`.
    peak: f64,
    observed_at: Instant,
    /// When the feed was last known to hold nothing; before, not even the time in which its events
    /// gathered is known.
    empty_at: Option<Instant>,
    /// Events that came since then.
    gathered: u64,
}

// === impl Forecast ===

impl Forecast {
    /// Nothing is known.
    pub(super) fn new(now: Instant) -> Self {
        Self { peak: 0.0, observed_at: now, empty_at: None, gathered: 0 }
    }

    /// Takes in what the request of `asked_at` brought.
    pub(super) fn observe(&mut self, asked_at: Instant, events: u64) {
        self.gathered += events;
        let elapsed = self.empty_at.map(|empty_at| asked_at.duration_since(empty_at));
        let rate = match elapsed {
            Some(elapsed) if !elapsed.is_zero() => self.gathered as f64 / elapsed.as_secs_f64(),
            _ => 0.0,
        };
        self.peak = self.peak_at(asked_at).max(rate);
        self.observed_at = asked_at;
        if events < PAGE_LIMIT {
            self.empty_at = Some(asked_at);
            self.gathered = 0;
        }
    }

    /// How long after `asked_at` a page's worth of events has gathered at the worst: with it the
    /// buffer is half full.
    pub(super) fn safe_interval(&self, asked_at: Instant) -> Duration {
        until(PAGE_LIMIT as f64, self.peak_at(asked_at))
    }

    /// When the buffer runs over at the worst.
    pub(super) fn overflows_at(&self) -> Instant {
        // Behind a full page there may be another one.
        let emptied = self.empty_at == Some(self.observed_at);
        let room = if emptied { BUFFER_LIMIT } else { BUFFER_LIMIT - PAGE_LIMIT };
        self.observed_at + until(room as f64, self.peak)
    }

    fn peak_at(&self, now: Instant) -> f64 {
        let age = now.duration_since(self.observed_at).as_secs_f64();
        self.peak * 0.5_f64.powf(age / HALF_LIFE.as_secs_f64())
    }
}

/// How long so many events take, an hour at most.
fn until(events: f64, rate: f64) -> Duration {
    const LONG: Duration = Duration::from_secs(3_600);
    if rate <= 0.0 {
        return LONG;
    }
    Duration::try_from_secs_f64(events / rate).unwrap_or(LONG).min(LONG)
}
