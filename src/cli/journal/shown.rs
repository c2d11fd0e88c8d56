//! How entries of the journal are printed: as a line, as metadata, as a verdict.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::journal::{EntryView, Out, Verification};
use crate::model::{Content, Feed, Pace, Timestamp};

/// Column headings of a list.
pub(super) const HEAD: &str = "state    came                      status  body     bytes  page                                 app/region/endpoint  Agora's request id";

/// A page, a gap or a damaged entry as one line.
pub(super) fn entry(seen: &EntryView, json: bool) -> String {
    if json {
        return known(seen).to_string();
    }
    let EntryView { state, name, bytes, entry } = seen;
    let state = state.name();
    match entry.as_ref().map(|entry| &entry.content) {
        Some(Content::Page(page)) => format!(
            "{state:<7}  {}  {:>6}  {:<5}  {bytes:>7}  {name:<35}  {}  {}",
            page.answered_at,
            page.status,
            page.wholeness.name(),
            page.feed,
            page.request_id.as_deref().unwrap_or("-"),
        ),
        Some(Content::Gap(gap)) => {
            let (to, cause, feed) = (gap.to, gap.cause, &gap.feed);
            format!("{state:<7}  {to}     gap  -      {bytes:>7}  {name:<35}  {feed}  {cause}")
        }
        None => {
            let never = format!("{:<24}", "-");
            format!("{state:<7}  {never}       -  -      {bytes:>7}  {name:<35}  -  -")
        }
    }
}

/// A request in flight as one line.
pub(super) fn out(out: &Out, json: bool) -> String {
    let Out { id, feed, asked_at } = out;
    if json {
        return json!({
            "state": "out",
            "page": id.to_string(),
            "app_id": feed.app.as_str(),
            "region": feed.region.as_str(),
            "endpoint": feed.endpoint.name(),
            "asked_at": asked_at.as_millis(),
        })
        .to_string();
    }
    let (id, none) = (id.to_string(), "-");
    format!("out      {asked_at}       -  -      {none:>7}  {id:<35}  {feed}  -")
}

/// How fast a feed fills, as one line.
pub(super) fn pace(feed: &Feed, pace: Pace, at: Timestamp, json: bool) -> String {
    if json {
        return json!({
            "app_id": feed.app.as_str(),
            "region": feed.region.as_str(),
            "endpoint": feed.endpoint.name(),
            "events_per_second": pace.events_per_second,
            "burst": pace.burst,
            "known_at": at.as_millis(),
        })
        .to_string();
    }
    format!("{at}  {:>9.1} events/s  burst {:>7.0}  {feed}", pace.events_per_second, pace.burst)
}

/// All metadata of an entry, with its body.
pub(super) fn envelope(seen: &EntryView, body: &[u8]) -> String {
    let mut envelope = known(seen);
    if let Value::Object(envelope) = &mut envelope {
        match std::str::from_utf8(body) {
            Ok(text) => envelope.insert("body".to_owned(), text.into()),
            Err(_) => envelope.insert("body_base64".to_owned(), STANDARD.encode(body).into()),
        };
    }
    envelope.to_string()
}

/// Metadata of an entry, for people.
pub(super) fn facts(seen: &EntryView) -> String {
    let mut rows = vec![("page", seen.name.clone()), ("state", seen.state.name().to_owned())];
    match seen.entry.as_ref().map(|entry| &entry.content) {
        Some(Content::Page(page)) => {
            rows.push(("feed", page.feed.to_string()));
            rows.push(("asked", page.asked_at.to_string()));
            rows.push(("answered", page.answered_at.to_string()));
            rows.push(("status", page.status.to_string()));
            let ids = [("request id", &page.request_id), ("resource id", &page.resource_id)];
            rows.extend(ids.map(|(name, id)| (name, id.clone().unwrap_or_else(|| "-".to_owned()))));
            if let Some(encoding) = &page.content_encoding {
                rows.push(("encoding", encoding.clone()));
            }
            rows.push(("body", format!("{} bytes, {}", seen.bytes, page.wholeness.name())));
        }
        Some(Content::Gap(gap)) => {
            rows.push(("feed", gap.feed.to_string()));
            rows.push(("gap", gap.cause.to_string()));
            rows.push(("to", gap.to.to_string()));
        }
        None => rows.push(("body", format!("{} bytes, damaged", seen.bytes))),
    }
    rows.into_iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
}

/// The verdict of a verification.
pub(super) fn verdict(verdict: &Verification, kept: &[PathBuf], json: bool) -> String {
    let Verification { structure, damaged, twice, settled, sound, out, set_aside } = verdict;
    if json {
        let kept: Vec<_> = kept.iter().map(|path| path.display().to_string()).collect();
        return json!({
            "is_sound": verdict.is_sound(),
            "structure": structure,
            "damaged": damaged,
            "twice": twice,
            "settled_and_out": settled,
            "sound_entries": sound,
            "requests_out": out,
            "set_aside": set_aside,
            "files_kept": kept,
        })
        .to_string();
    }
    let mut lines = Vec::new();
    let kinds = [
        (structure, "structure"),
        (damaged, "damaged page"),
        (twice, "two entries with the same name"),
        (settled, "request in flight that already has a page"),
    ];
    for (found, what) in kinds {
        lines.extend(found.iter().map(|it| format!("FAIL  {what}: {it}")));
    }
    if *set_aside > 0 {
        lines.push(format!("note  {set_aside} damaged pages are set aside: `journal list`"));
    }
    lines.extend(kept.iter().map(|it| format!("note  replaced and kept: {}", it.display())));
    let is = if verdict.is_sound() { "ok    the journal is sound" } else { "FAIL  damaged" };
    lines.push(format!("{is}: {sound} sound entries, {out} requests in flight"));
    lines.join("\n")
}

/// Metadata of an entry, for programs. Times are in milliseconds since 1970.
fn known(seen: &EntryView) -> Value {
    let mut known = json!({
        "state": seen.state.name(),
        "page": seen.name,
        "bytes": seen.bytes,
    });
    let more = match seen.entry.as_ref().map(|entry| &entry.content) {
        Some(Content::Page(page)) => json!({
            "app_id": page.feed.app.as_str(),
            "region": page.feed.region.as_str(),
            "endpoint": page.feed.endpoint.name(),
            "since": page.since.map(Timestamp::as_millis),
            "asked_at": page.asked_at.as_millis(),
            "answered_at": page.answered_at.as_millis(),
            "status": page.status,
            "wholeness": page.wholeness.name(),
            "request_id": page.request_id,
            "resource_id": page.resource_id,
            "content_encoding": page.content_encoding,
        }),
        Some(Content::Gap(gap)) => json!({
            "app_id": gap.feed.app.as_str(),
            "region": gap.feed.region.as_str(),
            "endpoint": gap.feed.endpoint.name(),
            "gap": gap.cause.name(),
            "from": gap.from.map(Timestamp::as_millis),
            "to": gap.to.as_millis(),
            "at_least": gap.at_least,
            "at_most": gap.at_most,
        }),
        None => json!({}),
    };
    if let (Value::Object(known), Value::Object(more)) = (&mut known, more) {
        known.extend(more);
    }
    known
}
