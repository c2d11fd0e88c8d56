//! Entries as rows: the contents of the columns, and their checksum.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::{Place, Sequence};
use crate::model::{
    AppId, CLOCK_MARGIN, Content, Entry, Feed, Gap, GapCause, PAGE_LIMIT, Page, PageId, Region,
    Ticket, Timestamp, Wholeness,
};

/// Everything about an entry except its identity and body, readable with `sqlite3`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Head {
    Page {
        since: Option<i64>,
        asked_at: i64,
        answered_at: i64,
        status: u16,
        whole: bool,
        request_id: Option<String>,
        resource_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content_encoding: Option<String>,
    },
    Gap {
        cause: String,
        from: Option<i64>,
        to: i64,
        at_least: u64,
        at_most: Option<u64>,
    },
}

/// A row that differs from what was written.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) row: Sequence,
}

/// The place of an entry, and its feed if the row contains a valid one.
pub(super) type RowSummary = (Place, Option<Feed>);

/// An entry and its row.
pub(super) type Stored = Result<(Sequence, Entry), Damaged>;

/// A row with columns of the right types, whose checksum is not verified yet.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) row: Sequence,
    pub(super) partition: i64,
    pub(super) incarnation: String,
    pub(super) ticket: i64,
    pub(super) app: String,
    pub(super) region: String,
    pub(super) endpoint: String,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    pub(super) checksum: i64,
}

/// All columns of an entry, in the order of the table.
pub(super) const COLUMNS: &str =
    "sequence, partition, incarnation, ticket, app, region, endpoint, head, body, checksum";

/// Writes an entry.
pub(super) fn insert(
    connection: &Connection,
    sequence: Sequence,
    partition: i32,
    entry: &Entry,
) -> rusqlite::Result<()> {
    let (head, body) = head_and_body(&entry.content);
    let feed = entry.content.feed();
    let mut raw = Raw {
        row: sequence,
        partition: partition.into(),
        incarnation: entry.id.incarnation.to_string(),
        ticket: entry.id.ticket.0.cast_signed(),
        app: feed.app.to_string(),
        region: feed.region.to_string(),
        endpoint: feed.endpoint.to_string(),
        head,
        body: Vec::new(),
        checksum: 0,
    };
    raw.checksum = raw.sum(Covers::Everything, body);
    raw.insert(connection, body)
}

/// The entries of a partition after a sequence, oldest first.
pub(super) fn select(
    connection: &Connection,
    partition: i32,
    after: Sequence,
    limit: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM entries WHERE partition = ? AND sequence > ?
         ORDER BY sequence LIMIT ?"
    ))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    statement.query_map(params![partition, after.0, limit], stored)?.collect()
}

/// The entry in a row, if there is one.
pub(super) fn one(connection: &Connection, row: Sequence) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM entries WHERE sequence = ?"))?
        .query_row([row.0], stored)
        .optional()
}

/// The held entries, in the order of settling.
pub(super) fn held(connection: &Connection) -> rusqlite::Result<Vec<Stored>> {
    let query = format!("SELECT {COLUMNS} FROM entries WHERE sequence < 0 ORDER BY sequence DESC");
    connection.prepare(&query)?.query_map([], stored)?.collect()
}

/// Moves an entry to another row.
pub(super) fn shift(connection: &Connection, from: Sequence, to: Sequence) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE entries SET sequence = ? WHERE sequence = ?")?
        .execute([to.0, from.0])
        .map(drop)
}

/// Moves an entry to another row under another name. Returns `None` and changes nothing if there is
/// no intact entry.
pub(super) fn rename(
    connection: &Connection,
    from: Sequence,
    to: Sequence,
    place: Place,
) -> rusqlite::Result<Option<Entry>> {
    let Some(Ok((_, entry))) = one(connection, from)? else { return Ok(None) };
    let entry = place.entry(entry.content);
    delete(connection, from)?;
    insert(connection, to, place.partition, &entry)?;
    Ok(Some(entry))
}

/// Deletes an entry.
pub(super) fn delete(connection: &Connection, row: Sequence) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM entries WHERE sequence = ?")?.execute([row.0]).map(drop)
}

/// Moves a damaged entry with its bytes to the table of damaged ones. `gap` takes its place.
pub(super) fn set_aside(
    connection: &Connection,
    row: Sequence,
    gap: Option<(i32, &Entry)>,
) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO damaged SELECT * FROM entries WHERE sequence = ?", [row.0])?;
    delete(connection, row)?;
    match gap {
        Some((partition, entry)) => insert(connection, row, partition, entry),
        None => Ok(()),
    }
}

/// Deletes the oldest damaged entries, so that the rest takes at most `bytes`. Returns the number
/// of deleted entries.
pub(super) fn limit_set_aside(connection: &Connection, bytes: u64) -> rusqlite::Result<usize> {
    let statement = "DELETE FROM damaged WHERE rowid IN (
             SELECT place FROM (
                 SELECT rowid AS place,
                     sum(length(body) + 1024) OVER (ORDER BY rowid DESC) AS bytes FROM damaged
             ) WHERE bytes > ?
         )";
    connection.execute(statement, [i64::try_from(bytes).unwrap_or(i64::MAX)])
}

/// Builds a gap from the feed and times in a damaged row. The feed is trusted only if its app was
/// polled.
pub(super) fn gap_for(
    connection: &Connection,
    row: Sequence,
    now: Timestamp,
) -> rusqlite::Result<Option<Gap>> {
    let mut statement = connection.prepare(
        "SELECT app, region, endpoint, head FROM entries JOIN requests USING (app)
         WHERE sequence = ?",
    )?;
    let mut rows = statement.query([row.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let text = |column| row.get::<_, String>(column).ok();
    let feed = (|| {
        Some(Feed {
            app: AppId::new(text(0)?),
            region: Region::new(text(1)?),
            endpoint: text(2)?.parse().ok()?,
        })
    })();
    let (from, to, at_most) = match text(3).and_then(|head| serde_json::from_str(&head).ok()) {
        Some(Head::Page { since, answered_at, .. }) => (since, answered_at, Some(PAGE_LIMIT)),
        Some(Head::Gap { from, to, at_most, .. }) => (from, to, at_most),
        None => (None, now.as_millis(), None),
    };
    Ok(feed.map(|feed| Gap {
        feed,
        cause: GapCause::JournalDamaged,
        from: from.map(Timestamp::from_millis),
        to: Timestamp::from_millis(to).after(CLOCK_MARGIN),
        at_least: 0,
        at_most,
    }))
}

/// Number of entries that are set aside.
pub(super) fn count_set_aside(connection: &Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection.query_row("SELECT count(*) FROM damaged", [], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Recomputes the checksums of version 2, which didn't cover the partition.
pub(super) fn renew_checksums(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT sequence FROM entries")?;
    let rows: Vec<i64> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut select =
        connection.prepare(&format!("SELECT {COLUMNS} FROM entries WHERE sequence = ?"))?;
    for row in rows {
        let raw = select.query_row([row], |row| Ok(Raw::read(row)))?;
        if let Some(raw) = raw.filter(Raw::is_sound_in_version_2) {
            let sum = raw.sum(Covers::Everything, &raw.body);
            let update = "UPDATE entries SET checksum = ? WHERE sequence = ?";
            connection.execute(update, [sum, row])?;
        }
    }
    Ok(())
}

/// The places and feeds of all entries, without reading the rest. A damaged place is `None`; the
/// row is examined when it is read.
pub(super) fn places(
    connection: &Connection,
) -> rusqlite::Result<Vec<(Sequence, Option<RowSummary>)>> {
    let mut statement = connection.prepare(
        "SELECT sequence, partition, incarnation, ticket, app, region, endpoint FROM entries",
    )?;
    let rows = statement.query_map([], |row| {
        let place = || {
            let incarnation: String = row.get(2).ok()?;
            let place = Place {
                partition: row.get(1).ok()?,
                incarnation: incarnation.parse().ok()?,
                ticket: Ticket(row.get::<_, i64>(3).ok()?.cast_unsigned()),
            };
            Some((place, super::tickets::read_feed(row, 4)))
        };
        Ok((Sequence(row.get(0)?), place()))
    })?;
    rows.collect()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let sequence = Sequence(row.get("sequence")?);
    let entry = Raw::read(row).filter(Raw::is_sound).and_then(|raw| raw.entry());
    Ok(entry.map(|entry| (sequence, entry)).ok_or(Damaged { row: sequence }))
}

fn head_and_body(content: &Content) -> (String, &[u8]) {
    let (head, body) = match content {
        Content::Page(page) => (
            Head::Page {
                since: page.since.map(Timestamp::as_millis),
                asked_at: page.asked_at.as_millis(),
                answered_at: page.answered_at.as_millis(),
                status: page.status,
                whole: page.wholeness == Wholeness::Whole,
                request_id: page.request_id.clone(),
                resource_id: page.resource_id.clone(),
                content_encoding: page.content_encoding.clone(),
            },
            &page.body[..],
        ),
        Content::Gap(gap) => (
            Head::Gap {
                cause: gap.cause.name().to_owned(),
                from: gap.from.map(Timestamp::as_millis),
                to: gap.to.as_millis(),
                at_least: gap.at_least,
                at_most: gap.at_most,
            },
            &[][..],
        ),
    };
    (serde_json::to_string(&head).expect("strings and numbers are always JSON"), body)
}

/// What a checksum covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Covers {
    Everything,
    /// As in version 2.
    AllButThePartition,
}

// === impl Raw ===

impl Raw {
    /// Reads a row; `None` if a column has the wrong type.
    pub(super) fn read(row: &Row<'_>) -> Option<Self> {
        Some(Self {
            row: Sequence(row.get("sequence").ok()?),
            partition: row.get("partition").ok()?,
            incarnation: row.get("incarnation").ok()?,
            ticket: row.get("ticket").ok()?,
            app: row.get("app").ok()?,
            region: row.get("region").ok()?,
            endpoint: row.get("endpoint").ok()?,
            head: row.get("head").ok()?,
            body: row.get("body").ok()?,
            checksum: row.get("checksum").ok()?,
        })
    }

    /// Whether the row is as it was written.
    pub(super) fn is_sound(&self) -> bool {
        self.sum(Covers::Everything, &self.body) == self.checksum
    }

    /// Whether the row is as version 1 or 2 wrote it.
    pub(super) fn is_sound_in_version_2(&self) -> bool {
        self.sum(Covers::AllButThePartition, &self.body) == self.checksum
    }

    /// Converts a row of an earlier version.
    pub(super) fn of_this_version(mut self) -> Self {
        if self.is_sound_in_version_2() {
            self.checksum = self.sum(Covers::Everything, &self.body);
        }
        self
    }

    /// The identity of the entry.
    pub(super) fn id(&self) -> Option<PageId> {
        let ticket = Ticket(self.ticket.cast_unsigned());
        Some(PageId { incarnation: self.incarnation.parse().ok()?, ticket })
    }

    /// Writes the row unchanged.
    pub(super) fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        self.insert(connection, &self.body)
    }

    /// The entry.
    pub(super) fn entry(self) -> Option<Entry> {
        let id = self.id()?;
        let feed = Feed {
            app: AppId::new(self.app),
            region: Region::new(self.region),
            endpoint: self.endpoint.parse().ok()?,
        };
        let content = match serde_json::from_str(&self.head).ok()? {
            Head::Page {
                since,
                asked_at,
                answered_at,
                status,
                whole,
                request_id,
                resource_id,
                content_encoding,
            } => Content::Page(Page {
                feed,
                since: since.map(Timestamp::from_millis),
                asked_at: Timestamp::from_millis(asked_at),
                answered_at: Timestamp::from_millis(answered_at),
                status,
                wholeness: if whole { Wholeness::Whole } else { Wholeness::Cut },
                request_id,
                resource_id,
                content_encoding,
                body: Bytes::from(self.body),
            }),
            Head::Gap { cause, from, to, at_least, at_most } => Content::Gap(Gap {
                feed,
                cause: cause.parse().ok()?,
                from: from.map(Timestamp::from_millis),
                to: Timestamp::from_millis(to),
                at_least,
                at_most,
            }),
        };
        Some(Entry { id, content })
    }

    fn insert(&self, connection: &Connection, body: &[u8]) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(&format!(
            "INSERT INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ))?;
        statement.execute(params![
            self.row.0,
            self.partition,
            self.incarnation,
            self.ticket,
            self.app,
            self.region,
            self.endpoint,
            self.head,
            body,
            self.checksum,
        ])?;
        Ok(())
    }

    fn sum(&self, covers: Covers, body: &[u8]) -> i64 {
        let mut sum = crc32fast::Hasher::new();
        let mut add = |part: &str| {
            sum.update(part.as_bytes());
            sum.update(b"\0");
        };
        if covers == Covers::Everything {
            add(&self.partition.to_string());
        }
        add(&format!("{}/{}", self.incarnation, self.ticket.cast_unsigned()));
        add(&format!("{}/{}/{}", self.app, self.region, self.endpoint));
        add(&self.head);
        sum.update(body);
        i64::from(sum.finalize())
    }
}
