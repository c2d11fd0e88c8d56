//! One thing that can be well or fail, and those who say how it is.
//!
//! Several may hold a condition of one name and subject, as every app holds the one of the journal.
//! Each of them speaks for itself: it knows whether it got what it needed, and nothing of the others.
//! So the condition fails while one holder fails, and one that is well ends nobody else's trouble.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::{Health, Key};
use crate::error::shortened;
use crate::model::Timestamp;

/// A holder of one thing that can be well or fail. Cheap to clone; clones are one holder.
///
/// What a holder said last outlives it: dropped while failing, the condition goes on failing, since
/// the end of a task heals nothing. It ends when another holder of the same condition says that all
/// is well.
#[derive(Clone, Debug)]
pub struct Condition {
    holder: Arc<Holder>,
}

#[derive(Debug)]
struct Holder {
    health: Health,
    key: Key,
    slot: Arc<Slot>,
    /// Where its failure is among [`Said::failures`]; [`WELL`] where there is none. Written under
    /// the lock of the slot, read without it: a thousand apps say after each answer that they are
    /// well.
    place: AtomicU64,
}

/// What all holders of one name and subject say.
#[derive(Debug, Default)]
pub(super) struct Slot {
    said: Mutex<Said>,
    /// Whether there is a failure, for a look without the lock. Written under it.
    fails: AtomicBool,
    /// Whether there is a failure without a holder, in the same way.
    is_orphaned: AtomicBool,
}

#[derive(Debug, Default)]
struct Said {
    /// A failure of each holder that fails, in the order in which they were said.
    failures: BTreeMap<u64, Failure>,
    /// The place of the latest.
    latest: u64,
    /// How many of them are more than pending.
    failed: usize,
    /// When the first of them began.
    since: Timestamp,
    /// The one whose holder is gone. One is kept, the latest, so that holders that come and go
    /// leave no more than that behind.
    orphan: Option<u64>,
}

#[derive(Debug)]
struct Failure {
    reason: Arc<str>,
    kind: Kind,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing failed: something has to come about first.
    Pending,
    /// It failed.
    Own,
    /// One cause makes many fail, and the reason names it.
    Alike,
}

/// How many fail for one reason, of those that fail [`Kind::Alike`].
#[derive(Debug, Default)]
pub(super) struct Causes {
    counts: Mutex<HashMap<Arc<str>, usize>>,
}

/// What of a failure is news.
#[derive(Clone, Copy, Debug)]
struct News {
    /// Nothing was failing before.
    begins: bool,
    /// Another condition fails alike.
    told: bool,
}

/// No place among the failures: those begin at one.
const WELL: u64 = 0;

/// The longest reason that is kept, in bytes: several errors, each with what it quotes.
const LONGEST_REASON: usize = 4_000;

// === impl Condition ===

impl Condition {
    pub(super) fn new(health: Health, key: Key, slot: Arc<Slot>) -> Self {
        Self { holder: Arc::new(Holder { health, key, slot, place: AtomicU64::new(WELL) }) }
    }

    /// Says that all is well.
    pub fn ok(&self) {
        let Holder { health, key, slot, place } = &*self.holder;
        if place.load(Ordering::Acquire) == WELL && !slot.is_orphaned.load(Ordering::Acquire) {
            return;
        }
        let ended = {
            let mut said = slot.lock();
            let before = said.failed;
            said.remove(place.swap(WELL, Ordering::AcqRel), &health.state.causes);
            if let Some(orphan) = said.orphan.take() {
                said.remove(orphan, &health.state.causes);
            }
            slot.show(&said);
            (before > 0 && said.failed == 0).then_some(said.since)
        };
        // Logged after the lock is given back: others report too.
        if let Some(since) = ended {
            let lasted = health.clock.now().since(since);
            let Key { name, subject } = key;
            let lasted = humantime::format_duration(lasted);
            info!(condition = name, %subject, %lasted, "condition recovered");
        }
    }

    /// Says what has to come about before all is well, as a start does. Not logged: nothing failed.
    pub fn pending(&self, reason: impl Display) {
        self.say(&told(reason), Kind::Pending);
    }

    /// Says what is wrong. Said again while it lasts, only the reason is replaced.
    pub fn failing(&self, reason: impl Display) {
        let reason = told(reason);
        if self.say(&reason, Kind::Own).begins {
            self.log(&reason);
        }
    }

    /// The same where one cause makes many fail and the reason names it: one of them logs it.
    pub fn failing_alike(&self, reason: impl Display) {
        let reason = told(reason);
        if matches!(self.say(&reason, Kind::Alike), News { begins: true, told: false }) {
            self.log(&reason);
        }
    }

    fn say(&self, reason: &Arc<str>, kind: Kind) -> News {
        let Holder { health, slot, place, .. } = &*self.holder;
        let now = health.clock.now();
        let mut said = slot.lock();
        let begins = said.failed == 0 && kind != Kind::Pending;
        if begins || said.failures.is_empty() {
            said.since = now;
        }
        said.remove(place.load(Ordering::Acquire), &health.state.causes);
        let told = kind == Kind::Alike && health.state.causes.add(reason);
        place.store(said.add(Failure { reason: Arc::clone(reason), kind }), Ordering::Release);
        slot.show(&said);
        News { begins, told }
    }

    fn log(&self, reason: &str) {
        let Key { name, subject } = &self.holder.key;
        warn!(condition = name, %subject, reason, "condition failing");
    }
}

/// A reason as it is kept: it may quote what others wrote.
fn told(reason: impl Display) -> Arc<str> {
    Arc::from(shortened(&reason.to_string(), LONGEST_REASON))
}

// === impl Holder ===

impl Drop for Holder {
    fn drop(&mut self) {
        let place = *self.place.get_mut();
        if place == WELL {
            return;
        }
        let mut said = self.slot.lock();
        if let Some(former) = said.orphan.replace(place) {
            said.remove(former, &self.health.state.causes);
        }
        self.slot.show(&said);
    }
}

// === impl Slot ===

impl Slot {
    /// Whether a holder fails.
    pub(super) fn fails(&self) -> bool {
        self.fails.load(Ordering::Acquire)
    }

    /// What is wrong, the latest that was said of what lasts, and since when.
    pub(super) fn trouble(&self) -> Option<(Arc<str>, Timestamp)> {
        if !self.fails() {
            return None;
        }
        let said = self.lock();
        let (_, latest) = said.failures.last_key_value()?;
        Some((Arc::clone(&latest.reason), said.since))
    }

    fn show(&self, said: &Said) {
        self.fails.store(!said.failures.is_empty(), Ordering::Release);
        self.is_orphaned.store(said.orphan.is_some(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        // It is whole after every step, also after one that panicked.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Said ===

impl Said {
    fn add(&mut self, failure: Failure) -> u64 {
        self.latest += 1;
        self.failed += usize::from(failure.kind != Kind::Pending);
        self.failures.insert(self.latest, failure);
        self.latest
    }

    fn remove(&mut self, place: u64, causes: &Causes) {
        let Some(Failure { reason, kind }) = self.failures.remove(&place) else { return };
        self.failed -= usize::from(kind != Kind::Pending);
        if kind == Kind::Alike {
            causes.remove(&reason);
        }
    }
}

// === impl Causes ===

impl Causes {
    /// One more fails for this reason. Whether it is not the only one.
    fn add(&self, reason: &Arc<str>) -> bool {
        let mut counts = self.lock();
        let count = counts.entry(Arc::clone(reason)).or_default();
        *count += 1;
        *count > 1
    }

    /// One of them fails for this reason no more.
    fn remove(&self, reason: &Arc<str>) {
        let mut counts = self.lock();
        let Some(count) = counts.get_mut(reason) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
