//! Records that a bridge has written, as the audit looks at them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::agora;
use crate::kafka::Batch;
use crate::memory::Fingerprint;
use crate::model::{AppId, Endpoint, PageId};
use crate::records::public;
use crate::records::public::Source;

/// A published record that names an app's page.
pub(super) struct Letter {
    pub(super) app: AppId,
    pub(super) page: Option<PageId>,
}

/// A record of an event topic.
pub(super) struct Published {
    pub(super) endpoint: Endpoint,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) app: Option<AppId>,
    pub(super) id: Option<[u8; 16]>,
    pub(super) page: Option<PageId>,
    /// Of its key and value.
    pub(super) digest: u64,
    pub(super) is_replayed: bool,
}

/// Of a key and a value.
pub(super) fn digest(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// The digest of the record that is written of an event.
pub(super) fn expected(source: &Source, event: &agora::Event<'_>) -> u64 {
    let mut batch = Batch::default();
    let id = Fingerprint::from_bytes([0; 16]);
    public::write_event(&mut batch, source, event, id, None);
    let written = batch.last();
    written.map_or(0, |it| digest(it.key(), it.value().unwrap_or_default()))
}

// === impl Published ===

impl Published {
    pub(super) fn place(&self) -> String {
        let Self { endpoint, partition, offset, .. } = self;
        format!("{endpoint} {partition}@{offset}")
    }
}
