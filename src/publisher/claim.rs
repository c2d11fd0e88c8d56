//! Taking a partition over: its memory, and where to read on.
//!
//! The memory has both. If it is gone (the state topic was deleted), it is rebuilt from the other
//! topics ([`Rebuild`]), and the offset committed for lag tools counts too. If neither shows the
//! position, nothing is published: everything in the pages topic would be published a second time, and
//! only a person can know what was delivered.

use std::ops::Range;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{error, info, warn};

use super::rebuild::{Delivered, Rebuild};
use super::trail::Trail;
use super::{LetGo, Publisher};
use crate::error::Chain;
use crate::kafka::{Batch, Failure, Kafka, Owned};
use crate::memory::{Memory, Recall};
use crate::records::pages;

/// Windows that are written in one transaction while a memory is rebuilt: 2 MiB at most.
const WINDOWS_A_TRANSACTION: usize = 16;

/// Between two attempts to find a position that nothing tells: each reads all that was published.
pub(super) const UNKNOWN_POSITION_WAIT: Duration = Duration::from_secs(60);

/// Maximum time to wait for the first page of a partition that holds some.
const FIRST_PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A partition that was taken over.
pub(super) struct Claim<O> {
    pub(super) owned: O,
    pub(super) memory: Memory,
    pub(super) trail: Trail,
    /// What the pages topic held then.
    pub(super) span: Range<i64>,
}

// === impl Publisher ===

impl<K: Kafka> Publisher<K> {
    /// `had_memory`: this process has had a memory of the partition before.
    pub(super) async fn claim(&self, had_memory: bool) -> Result<Claim<K::Owned>, LetGo> {
        let partition = self.partition;
        self.kafka.prepare().await?;
        let recall = Recall::new(self.regions.clone(), self.hold);
        let (mut owned, recall) = self.kafka.claim(partition, recall).await?;
        let mut memory = recall.finish().map_err(|source| LetGo::Memory { partition, source })?;
        if let Some(before) = memory.sign(&self.group) {
            warn!(
                partition,
                group = self.group,
                before,
                "the memory was written by another kafka.group; if a bridge of that group still \
                 runs on these topics, every event is published twice"
            );
        }
        let span = owned.span().await?;
        // Where the pages topic never held anything, nothing was ever published.
        if memory.position().is_none()
            && span.end > 0
            && (had_memory || !self.is_new(&mut owned, &span).await?)
        {
            self.restore(&mut owned, &mut memory, &span).await?;
        }
        let position = memory.position();
        let trail = Trail::new(position, memory.last_page());
        owned.read_from(trail.start()).await?;
        self.metrics.claims.inc();
        self.progress.note_delivered(partition, position.unwrap_or(0));
        info!(partition, position, "partition claimed");
        Ok(Claim { owned, memory, trail, span })
    }

    /// Whether this process has forwarded everything that the pages topic ever held of the partition: its
    /// first app has just come. Then nothing was delivered, and nothing has to be read to know that.
    async fn is_new(&self, owned: &mut K::Owned, span: &Range<i64>) -> Result<bool, LetGo> {
        if span.start > 0 {
            return Ok(false);
        }
        owned.read_from(Some(0)).await?;
        let first = timeout(FIRST_PAGE_TIMEOUT, owned.pages(1)).await;
        let Ok(first) = first else { return Ok(false) };
        Ok(first?.first().is_some_and(|(offset, record)| {
            let id = pages::id(record);
            *offset == 0 && id.is_some_and(|id| id.incarnation == self.incarnation)
        }))
    }

    /// Finds out what was delivered, without a memory. It stays empty in a new installation.
    async fn restore(
        &self,
        owned: &mut K::Owned,
        memory: &mut Memory,
        span: &Range<i64>,
    ) -> Result<(), LetGo> {
        let partition = self.partition;
        let look = self.kafka.look(partition).await?;
        // Zero is noted by a person only: begin at the beginning.
        let noted = look.delivered.filter(|position| (0..=span.end).contains(position));
        let rebuild = Rebuild::new(partition, self.progress.partitions());
        let mut rebuild = match owned.history(rebuild).await {
            Ok(rebuild) => rebuild,
            Err(source) if source.failure() == Failure::Refused && noted.is_some() => {
                error!(
                    partition, delivered = noted, error = %Chain(&source),
                    "the memory is gone: was the state topic deleted? It can't be rebuilt from \
                     what was published. Reading continues at the position that was noted last: \
                     events of the second before may be published twice, and so may events that \
                     another region of Agora still holds; nothing is missing"
                );
                memory.begin_at(noted.unwrap_or(0));
                return Ok(());
            }
            Err(source) => return Err(LetGo::NotRebuilt { partition, source }),
        };
        if rebuild.is_new() && noted.is_none() {
            return Ok(());
        }
        let kept = |topic| owned.limits(topic).stamping.oldest;
        let position = match (rebuild.delivered(self.clock.now(), kept), noted) {
            (Delivered::UpTo(offset), noted) => noted.unwrap_or(0).max(offset + 1),
            (Delivered::Nothing | Delivered::Unknown, Some(noted)) => noted,
            (Delivered::Nothing, None) => span.start,
            (Delivered::Unknown, None) => {
                return Err(LetGo::UnknownPosition { partition, group: self.group.clone() });
            }
        };
        error!(
            partition,
            position,
            noted,
            "the memory is gone: was the state topic deleted? It is rebuilt from the event topics; \
             nothing is missing, and only what they no longer hold can be published twice"
        );
        self.write_rebuilt(owned, memory, &mut rebuild, position).await
    }

    /// Fills the memory and writes it, the position last: a rebuilding that is broken off begins
    /// again.
    async fn write_rebuilt(
        &self,
        owned: &mut K::Owned,
        memory: &mut Memory,
        rebuild: &mut Rebuild,
        position: i64,
    ) -> Result<(), LetGo> {
        let partition = self.partition;
        let mut windows = rebuild.take_windows().peekable();
        while windows.peek().is_some() {
            for ((app, endpoint), events) in windows.by_ref().take(WINDOWS_A_TRANSACTION) {
                let window = memory.window(&app, endpoint);
                for (at, event) in events {
                    window.insert(event, at);
                }
            }
            let mut batch = Batch::default();
            memory.write_changes(partition, &mut batch);
            owned.deliver(batch, 0).await?;
        }
        rebuild.admit(memory, position);
        let mut batch = Batch::default();
        memory.write_changes(partition, &mut batch);
        owned.deliver(batch, position).await?;
        Ok(())
    }
}
