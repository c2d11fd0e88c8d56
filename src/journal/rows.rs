//! Entries as rows: what the columns hold, and the checksum over them.

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::OptionalExtension as _;
use rusqlite::Row;
use rusqlite::params;
use serde::Deserialize;
use serde::Serialize;
use tracing::error;

use super::Place;
use super::Sequence;
use crate::model::AppId;
use crate::model::Content;
use crate::model::Entry;
use crate::model::Feed;
use crate::model::Gap;
use crate::model::Incarnation;
use crate::model::Page;
use crate::model::PageId;
use crate::model::Region;
use crate::model::Ticket;
use crate::model::Timestamp;
use crate::model::Wholeness;

/// Everything about an entry but its identity and its body, readable for a person with `sqlite3`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Head {
    Page {
        since: Option<i64>,
        asked_at: i64,
        answered_at: i64,
        status: u16,
        whole: bool,
        request_id: Option<String>,
        resource_id: Option<String>,
    },
    Gap {
        cause: String,
        from: Option<i64>,
        to: i64,
        at_least: u64,
        at_most: Option<u64>,
    },
}

/// A row whose content is not what was written.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) row: Sequence,
}

/// An entry and its row.
pub(super) type Stored = Result<(Sequence, Entry), Damaged>;

const COLUMNS: &str = "sequence, incarnation, ticket, app, region, endpoint, head, body, checksum";

/// Writes an entry.
pub(super) fn insert(
    connection: &Connection,
    sequence: Sequence,
    partition: i32,
    entry: &Entry,
) -> rusqlite::Result<()> {
    let (head, body) = head_and_body(&entry.content);
    let feed = entry.content.feed();
    let mut statement = connection.prepare_cached(
        "INSERT INTO entries
         (sequence, partition, incarnation, ticket, app, region, endpoint, head, body, checksum)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![
        sequence.0,
        partition,
        entry.id.incarnation.to_string(),
        entry.id.ticket.0.cast_signed(),
        feed.app.as_str(),
        feed.region.as_str(),
        feed.endpoint.name(),
        head,
        body,
        checksum(&entry.id, feed, &head, body),
    ])?;
    Ok(())
}

/// The entries of a partition behind a place, oldest first.
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

/// The entry of a row, where there is one.
pub(super) fn one(connection: &Connection, row: Sequence) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM entries WHERE sequence = ?"))?
        .query_row([row.0], stored)
        .optional()
}

/// The entries that are held, in the order of settling.
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

/// Deletes an entry.
pub(super) fn delete(connection: &Connection, row: Sequence) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM entries WHERE sequence = ?")?.execute([row.0]).map(drop)
}

/// Moves a damaged entry, with its bytes, out of the way of the others.
pub(super) fn set_aside(connection: &Connection, row: Sequence) -> rusqlite::Result<()> {
    error!(row = row.0, "a page in the journal is damaged; it is set aside in the table `damaged`");
    connection.execute("INSERT INTO damaged SELECT * FROM entries WHERE sequence = ?", [row.0])?;
    delete(connection, row)
}

/// The places of all entries, without looking into them. A damaged place is left out: its row is
/// found when it is read.
pub(super) fn places(connection: &Connection) -> rusqlite::Result<Vec<(Sequence, Option<Place>)>> {
    let mut statement =
        connection.prepare("SELECT sequence, partition, incarnation, ticket FROM entries")?;
    let rows = statement.query_map([], |row| {
        let place = || {
            let incarnation: String = row.get(2).ok()?;
            Some(Place {
                partition: row.get(1).ok()?,
                incarnation: incarnation.parse().ok()?,
                ticket: Ticket(row.get::<_, i64>(3).ok()?.cast_unsigned()),
            })
        };
        Ok((Sequence(row.get(0)?), place()))
    })?;
    rows.collect()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let sequence = Sequence(row.get("sequence")?);
    Ok(read(row).map(|entry| (sequence, entry)).ok_or(Damaged { row: sequence }))
}

fn read(row: &Row<'_>) -> Option<Entry> {
    let text = |name| row.get::<_, String>(name).ok();
    let feed = Feed {
        app: AppId::new(text("app")?),
        region: Region::new(text("region")?),
        endpoint: text("endpoint")?.parse().ok()?,
    };
    let incarnation: Incarnation = text("incarnation")?.parse().ok()?;
    let ticket = Ticket(row.get::<_, i64>("ticket").ok()?.cast_unsigned());
    let id = PageId { incarnation, ticket };
    let head = text("head")?;
    let body: Vec<u8> = row.get("body").ok()?;
    let sum: i64 = row.get("checksum").ok()?;
    if sum != checksum(&id, &feed, &head, &body) {
        return None;
    }
    let content = match serde_json::from_str(&head).ok()? {
        Head::Page { since, asked_at, answered_at, status, whole, request_id, resource_id } => {
            Content::Page(Page {
                feed,
                since: since.map(Timestamp::from_millis),
                asked_at: Timestamp::from_millis(asked_at),
                answered_at: Timestamp::from_millis(answered_at),
                status,
                wholeness: if whole { Wholeness::Whole } else { Wholeness::Cut },
                request_id,
                resource_id,
                body: Bytes::from(body),
            })
        }
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

fn checksum(id: &PageId, feed: &Feed, head: &str, body: &[u8]) -> i64 {
    let mut sum = crc32fast::Hasher::new();
    for part in [&id.to_string(), &feed.to_string(), head] {
        sum.update(part.as_bytes());
        sum.update(b"\0");
    }
    sum.update(body);
    i64::from(sum.finalize())
}
