//! The wait before another attempt: doubled by each failure, within bounds.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use crate::model::Incarnation;

/// A wait that doubles from a minimum to a maximum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    wait: Duration,
    jitter: Option<(Incarnation, i32)>,
}

// === impl Backoff ===

impl Backoff {
    pub(crate) const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, wait: shortest, jitter: None }
    }

    /// The same with each wait up to a tenth shorter, so that processes that failed together don't
    /// retry together. Process and partition decide by how much, so simulated runs stay reproducible.
    pub(crate) const fn with_jitter(self, process: Incarnation, partition: i32) -> Self {
        Self { jitter: Some((process, partition)), ..self }
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&self) -> Duration {
        let Some(seed) = self.jitter else { return self.wait };
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, self.wait));
        let tenth = u32::try_from(hash % 1_000).unwrap_or_default();
        self.wait - self.wait / 10_000 * tenth
    }

    /// An attempt has failed: the next wait is twice as long.
    pub(crate) fn lengthen(&mut self) {
        self.wait = (self.wait * 2).min(self.longest);
    }

    /// An attempt has succeeded: the next wait is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.wait = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The first seven waits in milliseconds, each followed by a failure.
    fn waits(mut backoff: Backoff) -> Vec<u128> {
        let wait = |_| {
            let wait = backoff.wait();
            backoff.lengthen();
            wait.as_millis()
        };
        (0..7).map(wait).collect()
    }

    #[test]
    fn the_wait_doubles_up_to_its_maximum_and_starts_over_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        assert_eq!(waits(backoff), [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000]);
        backoff.lengthen();
        backoff.reset();
        assert_eq!(backoff.wait(), Duration::from_millis(250));
    }

    #[test]
    fn jitter_takes_up_to_a_tenth_and_differs_by_process_and_partition() {
        let plain = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        let jittered = (0..100).map(|number| {
            let process = Incarnation::from_u128(number % 10);
            waits(plain.with_jitter(process, i32::try_from(number / 10).unwrap()))
        });
        let jittered: BTreeSet<_> = jittered.collect();
        assert_eq!(jittered.len(), 100);
        for waits in &jittered {
            let bounds = [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000];
            assert!(
                waits.iter().zip(bounds).all(|(wait, most)| (most * 9 / 10..=most).contains(wait))
            );
        }
    }
}
