//! Open tickets, and the knowledge about feeds that outlives a process.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::{Place, Recovered};
use crate::model::{AppId, Feed, Pace, Region, Ticket, Timestamp};

/// Number of requests of an app whose times are recorded: as many as Agora allows per second.
const REQUESTS_REMEMBERED: i64 = 10;

/// A request that was in flight when a process ended.
pub(super) struct Killed {
    pub(super) place: Place,
    pub(super) feed: Feed,
    pub(super) since: Option<Timestamp>,
    pub(super) asked_at: Timestamp,
}

/// Puts a ticket on record.
pub(super) fn insert(
    connection: &Connection,
    place: &Place,
    feed: &Feed,
    since: Option<Timestamp>,
    asked_at: Timestamp,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO open_tickets
         (incarnation, partition, ticket, app, region, endpoint, since, asked_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![
        place.incarnation.to_string(),
        place.partition,
        place.ticket.0.cast_signed(),
        feed.app.as_str(),
        feed.region.as_str(),
        feed.endpoint.name(),
        since.map(Timestamp::as_millis),
        asked_at.as_millis(),
    ])?;
    Ok(())
}

/// Records when an app was polled, in place of its tenth request before this one.
pub(super) fn remember(
    connection: &Connection,
    app: &AppId,
    request: i64,
    asked_at: Timestamp,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO requests (app, slot, number, asked_at) VALUES (?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET number = excluded.number, asked_at = excluded.asked_at",
    )?;
    let slot = request % REQUESTS_REMEMBERED;
    statement.execute(params![app.as_str(), slot, request, asked_at.as_millis()])?;
    Ok(())
}

/// Forgets apps that were not polled since `before` and have no entries or open tickets. They are
/// no longer configured, and would otherwise stay for ever.
pub(super) fn forget_apps(connection: &Connection, before: Timestamp) -> rusqlite::Result<()> {
    let gone = "SELECT app FROM requests GROUP BY app HAVING max(asked_at) < ?
         EXCEPT SELECT app FROM entries EXCEPT SELECT app FROM open_tickets";
    let mut statement = connection.prepare(gone)?;
    let apps = statement.query_map([before.as_millis()], |row| row.get::<_, String>(0))?;
    for app in apps.collect::<rusqlite::Result<Vec<_>>>()? {
        connection.execute("DELETE FROM feeds WHERE app = ?", [&app])?;
        connection.execute("DELETE FROM requests WHERE app = ?", [&app])?;
    }
    Ok(())
}

/// Closes a ticket, and records what it says about its feed for the next start.
pub(super) fn settle(connection: &Connection, place: &Place) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO feeds (app, region, endpoint, empty_at)
         SELECT app, region, endpoint, since FROM open_tickets
         WHERE incarnation = ? AND partition = ? AND ticket = ? AND since IS NOT NULL
         ON CONFLICT DO UPDATE SET empty_at = excluded.empty_at",
    )?;
    statement.execute(bound(place))?;
    delete(connection, place)
}

/// Records the pace of a feed at `now`.
pub(super) fn keep_pace(
    connection: &Connection,
    feed: &Feed,
    pace: Pace,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO feeds (app, region, endpoint, events_per_second, burst, paced_at)
         VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET events_per_second = excluded.events_per_second,
             burst = excluded.burst, paced_at = excluded.paced_at",
    )?;
    statement.execute(params![
        feed.app.as_str(),
        feed.region.as_str(),
        feed.endpoint.name(),
        pace.events_per_second,
        pace.burst,
        now.as_millis(),
    ])?;
    Ok(())
}

/// The parameters for a place: incarnation, partition, ticket.
fn bound(place: &Place) -> (String, i32, i64) {
    (place.incarnation.to_string(), place.partition, place.ticket.0.cast_signed())
}

/// Deletes the record of a ticket.
pub(super) fn delete(connection: &Connection, place: &Place) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM open_tickets WHERE incarnation = ? AND partition = ? AND ticket = ?",
    )?;
    statement.execute(bound(place))?;
    Ok(())
}

/// The open tickets, oldest first.
pub(super) fn open(connection: &Connection) -> rusqlite::Result<Vec<Killed>> {
    let mut statement = connection.prepare(
        "SELECT incarnation, partition, ticket, app, region, endpoint, since, asked_at
         FROM open_tickets ORDER BY asked_at, ticket",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let incarnation: String = row.get(0)?;
        let (Ok(incarnation), Some(feed)) = (incarnation.parse(), read_feed(row, 3)) else {
            continue;
        };
        let ticket = Ticket(row.get::<_, i64>(2)?.cast_unsigned());
        found.push(Killed {
            place: Place { incarnation, partition: row.get(1)?, ticket },
            feed,
            since: row.get::<_, Option<i64>>(6)?.map(Timestamp::from_millis),
            asked_at: Timestamp::from_millis(row.get(7)?),
        });
    }
    Ok(found)
}

/// Reads a feed from three columns of a row.
pub(super) fn read_feed(row: &rusqlite::Row<'_>, first: usize) -> Option<Feed> {
    Some(Feed {
        app: AppId::new(row.get::<_, String>(first).ok()?),
        region: Region::new(row.get::<_, String>(first + 1).ok()?),
        endpoint: row.get::<_, String>(first + 2).ok()?.parse().ok()?,
    })
}

/// Reads the last requests of each app, when each feed was last known to be empty, and their paces.
/// Returns the number of each app's next request.
pub(super) fn recall(
    connection: &Connection,
    recovered: &mut Recovered,
) -> rusqlite::Result<HashMap<AppId, i64>> {
    let mut next_request: HashMap<AppId, i64> = HashMap::new();
    let mut statement = connection.prepare("SELECT app, number, asked_at FROM requests")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let app = AppId::new(row.get::<_, String>(0)?);
        let next = next_request.entry(app.clone()).or_default();
        *next = row.get::<_, i64>(1)?.saturating_add(1).max(*next);
        let asked_at = Timestamp::from_millis(row.get(2)?);
        recovered.last_requests.entry(app).or_default().push(asked_at);
    }
    let mut statement = connection.prepare(
        "SELECT app, region, endpoint, empty_at, events_per_second, burst, paced_at FROM feeds",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let Some(feed) = read_feed(row, 0) else { continue };
        if let Some(empty_at) = row.get(3)? {
            recovered.empty_at.insert(feed.clone(), Timestamp::from_millis(empty_at));
        }
        // SQLite stores NaN as NULL; such a pace is unknown.
        if let (Some(events_per_second), Some(burst), Some(at)) =
            (row.get(4)?, row.get(5)?, row.get(6)?)
        {
            let pace = Pace { events_per_second, burst };
            recovered.paces.insert(feed, (pace, Timestamp::from_millis(at)));
        }
    }
    Ok(next_request)
}
