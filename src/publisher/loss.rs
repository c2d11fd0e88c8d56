//! Pages that Kafka lost before they were published: deleted by `page_retention`, by hand, or with
//! their topic.
//!
//! Their contents are unknown, so each feed of the partition gets a gap: the configured feeds, and each
//! other app and endpoint that the memory knows.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tracing::error;

use super::Publisher;
use super::decode::Draft;
use super::trail::{Step, Trail};
use crate::kafka::{Failure, Kafka, KafkaError, Owned, PageRecord};
use crate::memory::Memory;
use crate::model::{
    AppId, CLOCK_MARGIN, Endpoint, Feed, Gap, GapCause, PAGE_LIMIT, Region, Timestamp,
};
use crate::records::public;
use crate::records::public::LostPages;

/// The region of a gap where only the memory knows the app: it does not keep regions.
const UNKNOWN_REGION: &str = "unknown";

/// An event waits at Agora until its feed is asked, ten seconds at most unless the schedule has more
/// to do than it can: pages behind the last delivered one may hold events that are older than it.
const WAITED_AT_AGORA: Duration = Duration::from_secs(60);

/// Pages that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) pages: LostPages,
    /// When the first remaining record was appended, or now: all lost pages were answered before.
    pub(super) before: Timestamp,
}

/// What the next transaction is about.
#[derive(Default)]
pub(super) struct Work {
    pub(super) losses: Vec<Loss>,
    pub(super) pages: Vec<(i64, PageRecord)>,
    /// Where to read on, if not behind the last page.
    pub(super) reads_on_at: Option<i64>,
    /// What a pages topic holds that was made again: it is read from its beginning.
    pub(super) anew: Option<Range<i64>>,
}

// === impl Publisher ===

impl<K: Kafka> Publisher<K> {
    /// Leaves out what was delivered, and finds where pages are gone.
    pub(super) async fn follow(
        &self,
        owned: &mut K::Owned,
        trail: &mut Trail,
        pages: Vec<(i64, PageRecord)>,
    ) -> Result<Work, KafkaError> {
        let mut work = Work::default();
        for (offset, record) in pages {
            let expected = trail.next();
            match trail.follow(offset, &record) {
                Step::Known => continue,
                Step::Next => {}
                Step::Missing(records) => {
                    let before = record.appended.unwrap_or_else(|| self.clock.now());
                    work.losses.push(self.loss(offset - records, Some(offset), before));
                }
                Step::Another => {
                    let span = owned.span().await?;
                    self.begin_anew(&mut work, expected, span);
                    return Ok(work);
                }
            }
            work.pages.push((offset, record));
        }
        Ok(work)
    }

    /// Finds whether pages are gone while none come.
    ///
    /// # Errors
    ///
    /// If pages wait that the reader has not returned since the last look: a client whose fetcher has
    /// stopped would silence the partition until a restart.
    pub(super) fn look(&self, trail: &mut Trail, span: Range<i64>) -> Result<Work, KafkaError> {
        let mut work = Work::default();
        if trail.is_stuck(&span) {
            let subject = format!("partition {}", self.partition);
            let reason = "pages wait, and its client has returned none of them for a minute";
            return Err(KafkaError::new(Failure::Broken, "read pages of", subject, reason));
        }
        let expected = trail.next();
        match trail.look(&span) {
            Step::Known | Step::Next => {}
            Step::Missing(records) => {
                let first = span.start - records;
                work.losses.push(self.loss(first, Some(span.start), self.clock.now()));
                work.reads_on_at = Some(span.start);
            }
            Step::Another => self.begin_anew(&mut work, expected, span),
        }
        Ok(work)
    }

    fn begin_anew(&self, work: &mut Work, expected: Option<i64>, span: Range<i64>) {
        let first = expected.unwrap_or(0);
        work.losses.push(self.loss(first, None, self.clock.now()));
        work.reads_on_at = Some(span.start);
        work.anew = Some(span);
    }

    fn loss(&self, first: i64, end: Option<i64>, before: Timestamp) -> Loss {
        Loss { pages: LostPages { partition: self.partition, first, end }, before }
    }

    /// Reports lost pages once their gaps are delivered.
    pub(super) fn tell_loss(&self, loss: &Loss) {
        self.progress.note_loss(self.partition);
        let partition = self.partition;
        match loss.records() {
            Some(records) => {
                self.metrics.pages_missing.inc_by(records);
                error!(
                    partition,
                    records,
                    from = loss.pages.first,
                    "pages were deleted before they were published: their events are missing, and \
                     gaps tell of it; is kafka.topics.page_retention too short?"
                );
            }
            None => error!(
                partition,
                "the pages topic was deleted or cut off: pages that it held and nobody had \
                 published are missing, and gaps tell of it; it is read from its beginning, and \
                 what was delivered before is recognised"
            ),
        }
    }
}

// === impl Work ===

impl Work {
    /// What is delivered when it is done ends before this offset. `None` where there is nothing to do.
    pub(super) fn position(&self) -> Option<i64> {
        self.reads_on_at.or_else(|| self.pages.last().map(|(last, _)| last + 1))
    }
}

// === impl Loss ===

impl Loss {
    /// Writes a gap for each feed. `memory` has not gone on yet.
    pub(super) fn write(&self, draft: &mut Draft, memory: &Memory, feeds: &[Feed]) {
        let configured: BTreeSet<(&AppId, Endpoint)> =
            feeds.iter().map(|feed| (&feed.app, feed.endpoint)).collect();
        let known = memory.known();
        let others = known.iter().filter(|(app, endpoint)| !configured.contains(&(app, *endpoint)));
        let others = others.map(|(app, endpoint)| Feed {
            app: app.clone(),
            region: Region::new(UNKNOWN_REGION),
            endpoint: *endpoint,
        });
        for feed in feeds.iter().cloned().chain(others) {
            let gap = Gap {
                feed,
                cause: GapCause::PagesLost,
                from: memory.last_answer().map(|at| at.before(WAITED_AT_AGORA)),
                to: self.before.after(CLOCK_MARGIN),
                at_least: 0,
                at_most: self.records().map(|records| records.saturating_mul(PAGE_LIMIT)),
            };
            public::write_lost_pages(&mut draft.batch, &self.pages, &gap);
            draft.gaps.push(gap);
        }
        draft.losses.push(*self);
    }

    /// How many records are gone; `None` where the whole topic is.
    pub(super) fn records(&self) -> Option<u64> {
        self.pages.end.map(|end| end.abs_diff(self.pages.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Topic;
    use crate::memory::Recall;

    fn feed(app: &str, region: &str, endpoint: Endpoint) -> Feed {
        Feed { app: AppId::new(app), region: Region::new(region), endpoint }
    }

    #[test]
    fn every_feed_that_is_known_gets_a_gap_with_bounds() {
        let mut memory = Recall::default().finish().unwrap();
        for (app, endpoint) in [("a", Endpoint::User), ("gone", Endpoint::Channel)] {
            memory.window(&AppId::new(app), endpoint);
        }
        memory.note_answer(Timestamp::from_millis(100_000));
        let feeds = [feed("a", "eu", Endpoint::User), feed("a", "us", Endpoint::User)];
        let pages = LostPages { partition: 3, first: 40, end: Some(160) };
        let loss = Loss { pages, before: Timestamp::from_millis(200_000) };
        let mut draft = Draft::default();
        loss.write(&mut draft, &memory, &feeds);

        let of_gaps: Vec<String> = draft.gaps.iter().map(|gap| gap.feed.to_string()).collect();
        assert_eq!(
            of_gaps,
            ["a/eu/user_events", "a/us/user_events", "gone/unknown/channel_events"]
        );
        let record = draft.batch.iter().next().unwrap();
        assert_eq!((record.topic(), record.key()), (Topic::Gaps, &b"a"[..]));
        assert_eq!(
            std::str::from_utf8(record.value().unwrap()).unwrap(),
            r#"{"app_id":"a","region":"eu","endpoint":"user_events","cause":"pages_lost","from":40000,"to":210000,"at_least":0,"at_most":120000}"#
        );
        let headers: Vec<_> = record.headers().collect();
        let expected = [
            ("content-type", &b"application/json"[..]),
            ("pages_partition", b"3"),
            ("pages_first", b"40"),
            ("pages_end", b"160"),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn of_a_topic_that_is_gone_nothing_is_bounded_but_the_time() {
        let memory = Recall::default().finish().unwrap();
        let pages = LostPages { partition: 0, first: 40, end: None };
        let loss = Loss { pages, before: Timestamp::from_millis(1) };
        let mut draft = Draft::default();
        loss.write(&mut draft, &memory, &[feed("a", "eu", Endpoint::User)]);
        let [gap] = &draft.gaps[..] else { panic!("one feed") };
        assert_eq!((gap.from, gap.at_most), (None, None));
        assert_eq!(draft.batch.iter().next().unwrap().headers().len(), 3);
    }
}
