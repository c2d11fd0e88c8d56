//! A condition, and its holders, which report on it.
//!
//! Several holders may share the condition of one name and subject; each app, for example, holds
//! the journal's. Each holder reports only on itself: it knows whether it got what it needed, and
//! nothing about the others. So the condition fails while at least one holder fails, and the
//! recovery of one doesn't end the failure of another.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::{Health, Key};
use crate::error::shortened;
use crate::model::Timestamp;

/// A holder of a condition. Cheap to clone; clones are one holder.
///
/// Its last report outlives it: if it is dropped while failing, the condition keeps failing,
/// because the end of a task repairs nothing. The failure ends when another holder of the same
/// condition reports [`Self::ok`].
#[derive(Clone, Debug)]
pub struct Condition {
    holder: Arc<ConditionHolder>,
}

#[derive(Debug)]
struct ConditionHolder {
    health: Health,
    key: Key,
    slot: Arc<Slot>,
    /// Key of its failure in [`Reported::failures`], or [`WELL`]. Written under the lock of the slot
    /// and read without it, because a thousand apps report success after each answer.
    place: AtomicU64,
}

/// The reports of all holders of one name and subject.
#[derive(Debug, Default)]
pub(super) struct Slot {
    said: Mutex<Reported>,
    /// Whether there is a failure, readable without the lock. Written under the lock.
    fails: AtomicBool,
    /// Whether there is a failure without a holder, likewise.
    is_orphaned: AtomicBool,
}

#[derive(Debug, Default)]
struct Reported {
    /// The failure of each failing holder, in the order of the reports.
    failures: BTreeMap<u64, ReportedFailure>,
    /// The key of the latest.
    latest: u64,
    /// The number of failures that are not pending.
    failed: usize,
    /// The start of the first failure.
    since: Timestamp,
    /// The failure whose holder was dropped. Only the latest is kept, so that short-lived holders
    /// don't accumulate failures.
    orphan: Option<u64>,
}

#[derive(Debug)]
struct ReportedFailure {
    reason: Arc<str>,
    kind: FailureKind,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    /// Nothing failed: the holder waits for something to happen first.
    Pending,
    /// A failure.
    Own,
    /// A failure whose cause affects many conditions and is named in the reason.
    Alike,
}

/// The number of [`FailureKind::Alike`] failures by reason.
#[derive(Debug, Default)]
pub(super) struct Causes {
    counts: Mutex<HashMap<Arc<str>, usize>>,
}

/// Whether a report is new.
#[derive(Clone, Copy, Debug)]
struct News {
    /// No holder was failing before.
    begins: bool,
    /// Another condition fails for the same reason.
    told: bool,
}

/// Stands for no failure: keys begin at one.
const WELL: u64 = 0;

/// Maximum length of a reason, in bytes: enough for several errors with their quotations.
const LONGEST_REASON: usize = 4_000;

// === impl Condition ===

impl Condition {
    pub(super) fn new(health: Health, key: Key, slot: Arc<Slot>) -> Self {
        Self {
            holder: Arc::new(ConditionHolder { health, key, slot, place: AtomicU64::new(WELL) }),
        }
    }

    /// Reports success.
    pub fn ok(&self) {
        let ConditionHolder { health, key, slot, place } = &*self.holder;
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
        // Logged after the lock is released, because other holders report too.
        if let Some(since) = ended {
            let lasted = health.clock.now().since(since);
            let Key { name, subject } = key;
            let lasted = humantime::format_duration(lasted);
            info!(condition = name, %subject, %lasted, "condition recovered");
        }
    }

    /// Reports what has to happen before the holder can succeed, as at a start. Not logged, because
    /// nothing failed.
    pub fn pending(&self, reason: impl Display) {
        self.say(&told(reason), FailureKind::Pending);
    }

    /// Reports a failure. Later reports during the same failure only replace the reason.
    pub fn failing(&self, reason: impl Display) {
        let reason = told(reason);
        if self.say(&reason, FailureKind::Own).begins {
            self.log(&reason);
        }
    }

    /// Like [`Self::failing`], for a cause that affects many conditions and is named in the reason:
    /// only one of them logs it.
    pub fn failing_alike(&self, reason: impl Display) {
        let reason = told(reason);
        if matches!(self.say(&reason, FailureKind::Alike), News { begins: true, told: false }) {
            self.log(&reason);
        }
    }

    fn say(&self, reason: &Arc<str>, kind: FailureKind) -> News {
        let ConditionHolder { health, slot, place, .. } = &*self.holder;
        let now = health.clock.now();
        let mut said = slot.lock();
        let begins = said.failed == 0 && kind != FailureKind::Pending;
        if begins || said.failures.is_empty() {
            said.since = now;
        }
        said.remove(place.load(Ordering::Acquire), &health.state.causes);
        let told = kind == FailureKind::Alike && health.state.causes.add(reason);
        place.store(
            said.add(ReportedFailure { reason: Arc::clone(reason), kind }),
            Ordering::Release,
        );
        slot.show(&said);
        News { begins, told }
    }

    fn log(&self, reason: &str) {
        let Key { name, subject } = &self.holder.key;
        warn!(condition = name, %subject, reason, "condition failing");
    }
}

/// Shortens a reason, since it may quote text from elsewhere.
fn told(reason: impl Display) -> Arc<str> {
    Arc::from(shortened(&reason.to_string(), LONGEST_REASON))
}

// === impl Holder ===

impl Drop for ConditionHolder {
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

    /// The latest reason, and the start of the failure.
    pub(super) fn trouble(&self) -> Option<(Arc<str>, Timestamp)> {
        if !self.fails() {
            return None;
        }
        let said = self.lock();
        let (_, latest) = said.failures.last_key_value()?;
        Some((Arc::clone(&latest.reason), said.since))
    }

    fn show(&self, said: &Reported) {
        self.fails.store(!said.failures.is_empty(), Ordering::Release);
        self.is_orphaned.store(said.orphan.is_some(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Reported> {
        // It is consistent at any time, even after a panic.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Said ===

impl Reported {
    fn add(&mut self, failure: ReportedFailure) -> u64 {
        self.latest += 1;
        self.failed += usize::from(failure.kind != FailureKind::Pending);
        self.failures.insert(self.latest, failure);
        self.latest
    }

    fn remove(&mut self, place: u64, causes: &Causes) {
        let Some(ReportedFailure { reason, kind }) = self.failures.remove(&place) else { return };
        self.failed -= usize::from(kind != FailureKind::Pending);
        if kind == FailureKind::Alike {
            causes.remove(&reason);
        }
    }
}

// === impl Causes ===

impl Causes {
    /// Adds a failure with this reason. Returns whether there are others.
    fn add(&self, reason: &Arc<str>) -> bool {
        let mut counts = self.lock();
        let count = counts.entry(Arc::clone(reason)).or_default();
        *count += 1;
        *count > 1
    }

    /// Removes a failure with this reason.
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
