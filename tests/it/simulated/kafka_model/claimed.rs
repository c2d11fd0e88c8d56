//! A partition that a process claimed: what it reads and delivers.

use std::ops::Range;
use std::time::Duration;

use agora_rtm_bridge::kafka::{
    Batch, Failure, HistoryRecords, KafkaError, Limits, Owned, PageRecord, Stamping, Topic,
};
use rand::RngExt as _;

use super::{Claimed, Cluster};
// === impl Claimed ===

impl Owned for Claimed {
    async fn read_from(&mut self, position: Option<i64>) -> Result<(), KafkaError> {
        self.position = usize::try_from(position.unwrap_or(0)).expect("offsets are positive");
        Ok(())
    }

    async fn pages(&mut self, limit: usize) -> Result<Vec<(i64, PageRecord)>, KafkaError> {
        let told = self.client.state().owning(self.partition).read(self.client.now.get());
        self.client.told(told, "read").await?;
        let mut news = self.client.state().partition(self.partition).news.subscribe();
        loop {
            if self.client.state().readers_are_stuck {
                return std::future::pending().await;
            }
            let arrives = {
                let mut state = self.client.state();
                let limit = state.owning(self.partition).rng.random_range(1..=limit);
                let partition = state.partition(self.partition);
                if !(partition.begin..=partition.pages.len()).contains(&self.position) {
                    // `auto.offset.reset` is `earliest`.
                    self.position = partition.begin;
                }
                let pages = partition.pages.iter().zip(0_i64..).skip(self.position).take(limit);
                let pages: Vec<_> =
                    pages.map(|((_, record), offset)| (offset, record.clone())).collect();
                if !pages.is_empty() {
                    self.position += pages.len();
                    return Ok(pages);
                }
                partition.on_the_way.front().map_or(Duration::MAX, |it| it.arrives_at)
            };
            let arrives = arrives.min(self.client.now.get() + Duration::from_secs(3_600));
            tokio::select! {
                biased;
                changed = news.changed() => changed.expect("the cluster outlives its clients"),
                () = self.client.now.reaches(arrives) => {}
            }
        }
    }

    async fn deliver(&mut self, batch: Batch, position: i64) -> Result<(), KafkaError> {
        let now = self.client.now.get();
        let position = usize::try_from(position).expect("offsets are positive");
        let unfit = self.client.state().unfit(now, &batch, self.largest);
        let (id, told) =
            self.client.state().begin(now, self.partition, self.epoch, &batch, position, unfit);
        let promise = NotDropped { cluster: self.client.cluster.clone(), kept: false };
        let told = self.client.told(told, "deliver").await;
        promise.keep();
        told.map_err(|error| match error.failure() {
            Failure::Unfit => error.with_unfit(unfit),
            _ => error,
        })?;
        if self.client.state().committed.contains(&id) {
            return Ok(());
        }
        Err(KafkaError::new(Failure::Fenced, "deliver", "the model", "a younger owner"))
    }

    async fn span(&mut self) -> Result<Range<i64>, KafkaError> {
        let state = self.client.state();
        let partition = state.partition(self.partition);
        Ok(partition.begin as i64..partition.pages.len() as i64)
    }

    async fn history<H: HistoryRecords>(&mut self, mut history: H) -> Result<H, KafkaError> {
        let state = self.client.state();
        if state.history_is_refused {
            return Err(KafkaError::new(Failure::Refused, "read", "the model", "not allowed"));
        }
        let partition = state.partition(self.partition);
        for ((_, page), offset) in partition.pages.iter().zip(0_i64..).skip(partition.begin) {
            history.take_page(offset, page);
        }
        for topic in Topic::PUBLISHED {
            if state.published_is_cut {
                history.is_cut(topic);
            }
            for record in state.topics.get(&topic).into_iter().flatten() {
                let header = |name: &str| {
                    let mut headers = record.headers.iter();
                    headers.find(|(found, _)| *found == name).map(|(_, value)| value.as_slice())
                };
                history.take_published(topic, &record.key, None, header);
            }
        }
        Ok(history)
    }

    fn limits(&self, _: Topic) -> Limits {
        let oldest = Duration::from_secs(3 * 86_400);
        let ahead = self.client.state().trouble.told_ahead.unwrap_or(Stamping::AHEAD);
        Limits { stamping: Stamping { oldest, ahead }, largest_record: self.largest }
    }

    fn doubt_limits(&mut self) {}
}

/// Notes when a transaction is dropped by anything but the end of its process.
struct NotDropped {
    cluster: Cluster,
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
        let mut state = self.cluster.lock();
        if !self.kept && !state.ending {
            state.broken_promises.push("a transaction was dropped before its end".to_owned());
        }
    }
}
