//! Reads what the topics still hold, for a memory that is rebuilt.

use std::ops::ControlFlow;

use tracing::info;

use super::clients::Clients;
use super::reader::Reader;
use crate::kafka::{HistoryRecords, KafkaError, Topic};

/// Shows `history` what the pages topic holds of a partition, and everything that was published;
/// blocks.
pub(super) fn show<H: HistoryRecords>(
    clients: &Clients,
    partition: i32,
    mut history: H,
) -> Result<H, KafkaError> {
    let reader = Reader::new(clients)?;
    let mut pages = reader.spans(Topic::Pages, None)?;
    pages.retain(|of, _| *of == partition);
    reader.read(Topic::Pages, &pages, |stored| {
        history.take_page(stored.offset(), &stored.page_record());
        ControlFlow::Continue(())
    })?;
    for topic in Topic::PUBLISHED {
        let spans = reader.spans(topic, None)?;
        let records: u64 = spans.values().map(|span| span.end.abs_diff(span.start)).sum();
        if records > 0 {
            let topic = reader.name(topic);
            info!(partition, topic, records, "reading what was published before");
        }
        if spans.values().any(|span| span.start > 0) {
            history.is_cut(topic);
        }
        reader.read(topic, &spans, |stored| {
            let header = |name: &str| stored.header(name);
            history.take_published(topic, stored.key(), stored.stamped(), header);
            ControlFlow::Continue(())
        })?;
    }
    Ok(history)
}
