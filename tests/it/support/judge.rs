//! Compares what the simulated Agora handed out with what a consumer read.
//!
//! The judge shares no code with the bridge: it reads values and headers as a user's program would,
//! and identifies an event by its fields instead of its fingerprint, so that it detects wrong
//! fingerprints too.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use agora_rtm_bridge::simulator::{Fate, Recorded};
use serde::Deserialize;

use super::consume::Record;
use super::names::Names;

/// The faults, and further facts. If there are no faults, all lists are empty except the gaps and
/// the losses that they cover.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Number of distinct events that were read.
    pub(crate) published: usize,
    /// Handed over completely, but neither published nor covered by a gap.
    pub(crate) missing: Vec<Event>,
    /// Lost before the bridge received them (overwritten or torn off), and not covered by a gap.
    pub(crate) untold: Vec<Event>,
    /// Lost, and covered by a gap. A test with kills limits their number.
    pub(crate) explained: Vec<Event>,
    /// Losses covered by gaps, but more than they allow: app, endpoint and both numbers.
    pub(crate) understated: Vec<String>,
    /// Published more than once, with all places.
    pub(crate) twice: Vec<String>,
    /// Published, but never handed over by Agora.
    pub(crate) unknown: Vec<String>,
    /// Published after a later event with the same key.
    pub(crate) out_of_order: Vec<String>,
    /// Records that are inconsistent or violate the contract.
    pub(crate) misshapen: Vec<String>,
    /// Elements that are not events, were handed over, and are not among the dead letters.
    pub(crate) missing_dead_letters: Vec<String>,
    /// The gaps that were published.
    pub(crate) gaps: Vec<Gap>,
}

/// An event as its record describes it: everything that identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub(crate) struct Event {
    pub(crate) app_id: String,
    pub(crate) endpoint: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) user_id: String,
    #[serde(default)]
    pub(crate) channel_id: Option<String>,
    pub(crate) ms: i64,
}

/// A gap as its record describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Gap {
    pub(crate) app_id: String,
    pub(crate) region: String,
    pub(crate) endpoint: String,
    pub(crate) cause: String,
    pub(crate) from: Option<i64>,
    pub(crate) to: i64,
    pub(crate) at_least: u64,
    pub(crate) at_most: Option<u64>,
}

/// Compares `records`, which must be all records in the order of
/// [`super::consume::Consumer::finish`], with what Agora recorded.
pub(crate) fn judge(
    names: &Names,
    handed_out: impl IntoIterator<Item = Recorded>,
    records: &[Record],
) -> Verdict {
    let mut verdict = Verdict::default();
    let mut published = read(names, records, &mut verdict);
    verdict.published = published.events.len();

    let mut losses = BTreeMap::new();
    for recorded in handed_out {
        if let Some(raw) = recorded.malformed {
            if matches!(recorded.fate, Fate::Delivered { .. }) && !published.take_dead_letter(&raw)
            {
                verdict.missing_dead_letters.push(raw.escape_ascii().to_string());
            }
            continue;
        }
        let (fate, event) = (recorded.fate, Event::from(recorded));
        let places = match fate {
            Fate::Buffered => None,
            _ => published.events.remove(&event),
        };
        match (fate, places) {
            (Fate::Buffered, _) => {}
            (_, Some(places)) if places.len() == 1 => {}
            (_, Some(places)) => verdict.twice.push(format!("{event}: {}", places.join(", "))),
            (fate, None) => verdict.lose(event, fate, &mut losses),
        }
    }
    let unknown = published.events.into_iter();
    verdict.unknown = unknown.map(|(event, at)| format!("{event}: {}", at.join(", "))).collect();
    verdict.unknown.sort_unstable();
    verdict.compare_with_gaps(losses);
    verdict
}

// === impl Verdict ===

impl Verdict {
    /// Asserts that everything missing is covered by a gap, and that nothing is published twice or
    /// invented.
    #[track_caller]
    pub(crate) fn assert_exactly_once(&self) {
        assert!(self.is_exactly_once(), "\n{self}");
    }

    /// The condition of [`Self::assert_exactly_once`].
    pub(crate) fn is_exactly_once(&self) -> bool {
        let faults = [
            &self.twice,
            &self.unknown,
            &self.misshapen,
            &self.understated,
            &self.missing_dead_letters,
        ];
        let well = self.missing.is_empty() && self.untold.is_empty();
        well && faults.iter().all(|list| list.is_empty())
    }

    /// Asserts in addition that nothing was lost, covered by a gap or not.
    #[track_caller]
    pub(crate) fn assert_complete(&self) {
        self.assert_exactly_once();
        assert!(self.explained.is_empty(), "\n{self}");
    }

    /// Asserts that events with the same key are ordered by time.
    #[track_caller]
    pub(crate) fn assert_in_order(&self) {
        assert!(self.out_of_order.is_empty(), "\n{self}");
    }

    fn lose(&mut self, event: Event, fate: Fate, losses: &mut BTreeMap<(String, String), u64>) {
        if self.gaps.iter().any(|gap| gap.covers(&event)) {
            *losses.entry((event.app_id.clone(), event.endpoint.clone())).or_default() += 1;
            self.explained.push(event);
        } else if matches!(fate, Fate::Delivered { .. }) {
            self.missing.push(event);
        } else {
            self.untold.push(event);
        }
    }

    fn compare_with_gaps(&mut self, losses: BTreeMap<(String, String), u64>) {
        for ((app, endpoint), lost) in losses {
            let gaps = self.gaps.iter();
            let of_it = gaps.filter(|gap| gap.app_id == app && gap.endpoint == endpoint);
            // `None` if any of the gaps has no upper bound: then it can't be exceeded.
            let allowed: Option<u64> = of_it.map(|gap| gap.at_most).sum();
            if allowed.is_some_and(|allowed| lost > allowed) {
                let told = format!("{app} {endpoint}: {lost} lost, gaps allow {allowed:?}");
                self.understated.push(told);
            }
        }
    }
}

impl fmt::Display for Verdict {
    /// The number of each kind and the first few, which are enough to see the pattern.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events published", self.published)?;
        show(f, "missing, not covered by a gap", &self.missing)?;
        show(f, "lost before the bridge, not covered by a gap", &self.untold)?;
        show(f, "lost, covered by a gap", &self.explained)?;
        show(f, "more lost than gaps allow", &self.understated)?;
        show(f, "published twice", &self.twice)?;
        show(f, "never handed over", &self.unknown)?;
        show(f, "out of order", &self.out_of_order)?;
        show(f, "misshapen", &self.misshapen)?;
        show(f, "dead letters missing", &self.missing_dead_letters)?;
        show(f, "gaps", &self.gaps)
    }
}

fn show(f: &mut fmt::Formatter<'_>, what: &str, items: &[impl fmt::Display]) -> fmt::Result {
    const SHOWN: usize = 8;
    if items.is_empty() {
        return Ok(());
    }
    writeln!(f, "{} {what}:", items.len())?;
    for item in items.iter().take(SHOWN) {
        writeln!(f, "    {item}")?;
    }
    if items.len() > SHOWN {
        writeln!(f, "    … and {} more", items.len() - SHOWN)?;
    }
    Ok(())
}

// === impl Event ===

impl From<Recorded> for Event {
    fn from(recorded: Recorded) -> Self {
        Self {
            app_id: recorded.app.as_str().to_owned(),
            endpoint: recorded.endpoint.name().to_owned(),
            kind: recorded.kind.to_owned(),
            user_id: recorded.user,
            channel_id: recorded.channel,
            ms: recorded.ms,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app_id, endpoint, kind, user_id, channel_id, ms } = self;
        write!(f, "{app_id} {endpoint} {ms} {kind} {user_id:?}")?;
        channel_id.iter().try_for_each(|channel| write!(f, " in {channel:?}"))
    }
}

// === impl Gap ===

impl Gap {
    /// Whether the event may be among those that this gap covers. The region is ignored, because an
    /// event comes back in every region.
    pub(crate) fn covers(&self, event: &Event) -> bool {
        self.app_id == event.app_id
            && self.endpoint == event.endpoint
            && self.from.is_none_or(|from| from <= event.ms)
            && event.ms <= self.to
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app_id, region, endpoint, cause, from, to, at_least, at_most } = self;
        write!(f, "{app_id} {region} {endpoint} {cause}: ")?;
        write!(f, "from {from:?} to {to}, at least {at_least}, at most {at_most:?}")
    }
}

// === what was published ===

/// The contents of the topics, by identity.
#[derive(Default)]
struct Published {
    /// The places of each event.
    events: HashMap<Event, Vec<String>>,
    /// Number of dead letters with these bytes.
    dead_letters: HashMap<Vec<u8>, usize>,
}

impl Published {
    /// Elements that are not events have no identity, so equal ones are only counted.
    fn take_dead_letter(&mut self, raw: &[u8]) -> bool {
        match self.dead_letters.get_mut(raw) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

fn read(names: &Names, records: &[Record], verdict: &mut Verdict) -> Published {
    let mut published = Published::default();
    let mut elements: HashMap<String, &Record> = HashMap::new();
    let mut events = Events::default();
    for record in records {
        if record.topic == names.user_events || record.topic == names.channel_events {
            match events.read(names, record, verdict) {
                Ok(event) => published.events.entry(event).or_default().push(place(record)),
                Err(why) => verdict.misshapen.push(format!("{}: {why}", place(record))),
            }
        } else if record.topic == names.gaps {
            match value(record) {
                Ok(gap) => verdict.gaps.push(gap),
                Err(why) => verdict.misshapen.push(format!("{}: {why}", place(record))),
            }
        } else if record.topic == names.dead_letter {
            let raw = record.value.clone().unwrap_or_default();
            *published.dead_letters.entry(raw).or_default() += 1;
            // A page and an index within it identify a dead letter, not its bytes. The key is the
            // App ID, which is needed to identify a page, because tickets are numbered per
            // partition.
            let app = record.key.as_deref().unwrap_or_default().escape_ascii().to_string();
            let element = (app, record.header("agora_page"), record.header("index"));
            if let Some(earlier) = elements.insert(format!("{element:?}"), record) {
                let (a, b) = (place(earlier), place(record));
                verdict.twice.push(format!("dead letter {element:?}: {a}, {b}"));
            }
        }
    }
    published
}

/// State for checks across event records.
#[derive(Default)]
struct Events<'a> {
    ids: HashMap<&'a str, Event>,
    /// By topic, App ID and key: two App IDs may use the same names, and have no common order.
    last_of_key: HashMap<(&'a str, String, &'a [u8]), i64>,
}

impl<'a> Events<'a> {
    /// Reads an event and checks that the parts of its record are consistent.
    fn read(
        &mut self,
        names: &Names,
        record: &'a Record,
        verdict: &mut Verdict,
    ) -> Result<Event, String> {
        let event: Event = value(record)?;
        let topic = match event.endpoint.as_str() {
            "user_events" => &names.user_events,
            _ => &names.channel_events,
        };
        let key = record.key.as_deref().ok_or("no key")?;
        let id = record.event_id().ok_or("no `ce_id`")?;
        if record.topic != *topic {
            return Err(format!("an event of `{}` in the wrong topic", event.endpoint));
        }
        if key != event.channel_id.as_ref().unwrap_or(&event.user_id).as_bytes() {
            return Err(format!("its key is `{}`, but its value is {event}", key.escape_ascii()));
        }
        if let Some(other) = self.ids.insert(id, event.clone()).filter(|other| *other != event) {
            return Err(format!("`ce_id` {id} belongs to {other} and to {event}"));
        }
        let of_key = (&*record.topic, event.app_id.clone(), key);
        let last = self.last_of_key.entry(of_key).or_insert(event.ms);
        if event.ms < *last {
            verdict.out_of_order.push(format!("{}: {event}, after {last}", place(record)));
        }
        *last = event.ms.max(*last);
        Ok(event)
    }
}

fn value<'a, T: Deserialize<'a>>(record: &'a Record) -> Result<T, String> {
    let value = record.value.as_deref().ok_or("no value")?;
    serde_json::from_slice(value).map_err(|error| format!("{error}: {}", value.escape_ascii()))
}

fn place(record: &Record) -> String {
    format!("{}/{}@{}", record.topic, record.partition, record.offset)
}

#[cfg(test)]
mod tests {
    use agora_rtm_bridge::model::{AppId, Endpoint};

    use super::*;

    const DELIVERED: Fate = Fate::Delivered { answer: 0 };
    const TORN: Fate = Fate::Torn { answer: 0 };

    /// A login of `user` at `ms`, as Agora recorded it.
    fn recorded(user: &str, ms: i64, fate: Fate) -> Recorded {
        Recorded {
            seq: 0,
            app: AppId::new("a1"),
            endpoint: Endpoint::User,
            kind: "Login",
            user: user.to_owned(),
            channel: None,
            ms,
            fate,
            malformed: None,
        }
    }

    fn record(topic: &str, offset: i64, key: &str, value: String, id: &str) -> Record {
        Record {
            topic: topic.to_owned(),
            partition: 0,
            offset,
            timestamp: None,
            key: Some(key.into()),
            value: Some(value.into()),
            headers: vec![("ce_id".to_owned(), id.into()), ("agora_page".to_owned(), id.into())],
        }
    }

    /// The record of that login; its id is derived from user and time.
    fn login(names: &Names, offset: i64, user: &str, ms: i64) -> Record {
        let value = format!(
            r#"{{"app_id":"a1","endpoint":"user_events","type":"Login","user_id":"{user}","ms":{ms}}}"#
        );
        record(&names.user_events, offset, user, value, &format!("{user}@{ms}"))
    }

    fn gap(names: &Names, from: i64, to: i64, at_most: u64) -> Record {
        let value = format!(
            r#"{{"app_id":"a1","region":"eu","endpoint":"user_events","cause":"overflow","from":{from},"to":{to},"at_least":0,"at_most":{at_most}}}"#
        );
        record(&names.gaps, 0, "a1", value, "p/1")
    }

    /// The names of the lists that are not empty.
    fn faults(verdict: &Verdict) -> Vec<&'static str> {
        let lists = [
            ("missing", verdict.missing.len()),
            ("untold", verdict.untold.len()),
            ("explained", verdict.explained.len()),
            ("understated", verdict.understated.len()),
            ("twice", verdict.twice.len()),
            ("unknown", verdict.unknown.len()),
            ("out of order", verdict.out_of_order.len()),
            ("misshapen", verdict.misshapen.len()),
            ("dead letters", verdict.missing_dead_letters.len()),
        ];
        lists.into_iter().filter(|(_, length)| *length > 0).map(|(name, _)| name).collect()
    }

    #[test]
    fn each_fault_is_called_by_its_name() {
        let n = &Names::unique("judge");
        let anna = |fate| vec![recorded("anna", 5, fate)];
        let foreign_key = Record { key: Some("bert".into()), ..login(n, 0, "anna", 5) };
        let same_id = Record { headers: login(n, 0, "anna", 5).headers, ..login(n, 1, "anna", 6) };
        let of_both = vec![recorded("anna", 5, DELIVERED), recorded("anna", 6, DELIVERED)];
        let cases = [
            (anna(DELIVERED), vec![login(n, 0, "anna", 5)], &[][..]),
            (anna(Fate::Buffered), vec![], &[]),
            (anna(DELIVERED), vec![], &["missing"]),
            (anna(Fate::Overwritten), vec![], &["untold"]),
            (anna(TORN), vec![], &["untold"]),
            (anna(DELIVERED), vec![gap(n, 5, 5, 1)], &["explained"]),
            (anna(TORN), vec![gap(n, 0, 9, 1)], &["explained"]),
            (anna(TORN), vec![gap(n, 6, 9, 1)], &["untold"]),
            (anna(TORN), vec![gap(n, 0, 4, 1)], &["untold"]),
            (anna(TORN), vec![gap(n, 0, 9, 0)], &["explained", "understated"]),
            (anna(DELIVERED), vec![login(n, 0, "anna", 5), login(n, 7, "anna", 5)], &["twice"]),
            (vec![], vec![login(n, 0, "anna", 5)], &["unknown"]),
            (anna(Fate::Buffered), vec![login(n, 0, "anna", 5)], &["unknown"]),
            (anna(DELIVERED), vec![foreign_key], &["missing", "misshapen"]),
            (of_both.clone(), vec![login(n, 0, "anna", 5), same_id], &["missing", "misshapen"]),
            (of_both, vec![login(n, 0, "anna", 6), login(n, 1, "anna", 5)], &["out of order"]),
        ];
        for (handed_out, records, expected) in cases {
            let verdict = judge(n, handed_out.clone(), &records);
            assert_eq!(faults(&verdict), expected, "{handed_out:?}\n{records:?}\n{verdict}");
        }
    }

    #[test]
    fn two_apps_with_the_same_user_owe_each_other_no_order() {
        let n = &Names::unique("judge");
        let of_other = Recorded { app: AppId::new("a2"), ..recorded("anna", 5, DELIVERED) };
        let value =
            r#"{"app_id":"a2","endpoint":"user_events","type":"Login","user_id":"anna","ms":5}"#;
        let earlier = record(&n.user_events, 1, "anna", value.to_owned(), "a2 anna@5");
        let handed_out = [recorded("anna", 6, DELIVERED), of_other];
        let verdict = judge(n, handed_out, &[login(n, 0, "anna", 6), earlier]);
        assert_eq!(faults(&verdict), [""; 0], "{verdict}");
    }

    #[test]
    fn an_element_that_is_no_event_is_sought_among_the_dead_letters() {
        let n = &Names::unique("judge");
        let element = Recorded { malformed: Some(b"17".to_vec()), ..recorded("", 0, DELIVERED) };
        let letter = |page| record(&n.dead_letter, 0, "a1", "17".to_owned(), page);
        let twice_handed_out = [element.clone(), element.clone()];
        let cases = [
            (vec![letter("p/1"), letter("p/2")], &[][..]),
            (vec![letter("p/1")], &["dead letters"]),
            (vec![letter("p/1"), letter("p/1")], &["twice"]),
        ];
        for (records, expected) in cases {
            let verdict = judge(n, twice_handed_out.clone(), &records);
            assert_eq!(faults(&verdict), expected, "{verdict}");
        }
    }
}
