//! Compares the events that Agora made with those that a consumer read.
//!
//! Each event that Agora made must be in exactly one place: read once, among the dead letters, or
//! covered by a gap. Pure.

use std::collections::HashMap;
use std::fmt;

use indicatif::HumanCount;

use super::evidence::{Evidence, Gap, identity};
use crate::model::GapCause;
use crate::simulator::{Fate, Recorded};

/// Maximum number of faults shown of each kind.
const SHOWN: usize = 8;

/// What became of the events.
#[derive(Debug, Default)]
pub(super) struct DemoVerdict {
    /// All elements that Agora made, including those that are not events.
    pub(super) made: u64,
    /// Read once.
    pub(super) delivered: u64,
    /// Elements that are not events, found among the dead letters.
    pub(super) dead_letters: u64,
    /// Torn off in cut answers, and covered by a gap.
    pub(super) torn: u64,
    /// Replaced by newer events in Agora's buffer, and covered by a gap.
    pub(super) overwritten: u64,
    /// In an answer that never arrived, and covered by a gap.
    pub(super) lost: u64,
    /// Gaps that were read.
    pub(super) gaps: u64,
    /// Still in Agora's buffers, not requested yet.
    pub(super) waiting: u64,
    /// Neither read nor covered by a gap.
    pub(super) missing: Vec<String>,
    /// Read more than once.
    pub(super) twice: Vec<String>,
    /// Read, but never made by Agora.
    pub(super) unknown: Vec<String>,
    /// Records that contradict themselves.
    pub(super) misshapen: Vec<String>,
    /// Repeats that the bridge recognised and dropped. Not part of the sum.
    pub(super) repeats: u64,
}

/// Counts of elements that are not events, for the same bytes.
#[derive(Debug, Default)]
struct Letters {
    delivered: u64,
    made: u64,
}

// === impl Verdict ===

impl DemoVerdict {
    /// Computes the verdict. An element without an identity may come back once from each of the
    /// `regions`.
    pub(super) fn of(
        made: impl IntoIterator<Item = Recorded>,
        regions: u64,
        evidence: Evidence,
    ) -> Self {
        let Evidence { mut events, dead_letters, gaps, misshapen } = evidence;
        let mut verdict = Self { misshapen, gaps: gaps.len() as u64, ..Self::default() };
        let mut letters: HashMap<Vec<u8>, Letters> = HashMap::new();
        for recorded in made {
            verdict.made += 1;
            if let Some(raw) = &recorded.malformed {
                let letters = letters.entry(raw.clone()).or_default();
                letters.made += 1;
                if matches!(recorded.fate, Fate::Delivered { .. }) {
                    letters.delivered += 1;
                } else {
                    verdict.judge_unread(&recorded, &gaps);
                }
                continue;
            }
            match events.remove(&identity(&recorded)) {
                None => verdict.judge_unread(&recorded, &gaps),
                Some(1) => verdict.delivered += 1,
                Some(times) => {
                    verdict.twice.push(format!("{} times: {}", times, shown(&recorded)));
                }
            }
        }
        verdict.unknown.extend(events.into_keys().map(|id| format!("an event with ce_id {id}")));
        verdict.judge_letters(letters, dead_letters, regions);
        verdict
    }

    /// Whether every event is accounted for.
    pub(super) fn is_good(&self) -> bool {
        self.faults().iter().all(|(_, found)| found.is_empty()) && self.waiting == 0
    }

    /// The verdict in one sentence.
    pub(super) fn sentence(&self) -> String {
        if self.is_good() {
            return "Every event is accounted for.".to_owned();
        }
        let mut parts: Vec<String> = self
            .faults()
            .into_iter()
            .filter(|(_, found)| !found.is_empty())
            .map(|(name, found)| format!("{} {name}", HumanCount(found.len() as u64)))
            .collect();
        if self.waiting > 0 {
            parts.push(format!("{} still in Agora's buffers", HumanCount(self.waiting)));
        }
        format!("Not every event is accounted for: {}.", parts.join(", "))
    }

    fn faults(&self) -> [(&'static str, &Vec<String>); 4] {
        [
            ("missing", &self.missing),
            ("twice", &self.twice),
            ("unknown", &self.unknown),
            ("misshapen", &self.misshapen),
        ]
    }

    /// An event that was not read. Only a gap of the right kind excuses it.
    fn judge_unread(&mut self, recorded: &Recorded, gaps: &[Gap]) {
        let told = |causes: &[GapCause]| {
            let is_of_kind = |gap: &&Gap| causes.iter().any(|cause| gap.cause == cause.name());
            gaps.iter().filter(is_of_kind).any(|gap| gap.covers(recorded))
        };
        match recorded.fate {
            Fate::Buffered => self.waiting += 1,
            Fate::Torn { .. } if told(&[GapCause::BodyCut, GapCause::AnswerLost]) => self.torn += 1,
            Fate::Overwritten if told(&[GapCause::Overflow]) => self.overwritten += 1,
            Fate::Delivered { .. } if told(&[GapCause::AnswerLost]) => self.lost += 1,
            _ => self.missing.push(shown(recorded)),
        }
    }

    fn judge_letters(
        &mut self,
        made: HashMap<Vec<u8>, Letters>,
        mut read: HashMap<Vec<u8>, u64>,
        regions: u64,
    ) {
        for (raw, letters) in made {
            let found = read.remove(&raw).unwrap_or_default();
            let raw = raw.escape_ascii();
            self.dead_letters += letters.delivered.min(found);
            for _ in found..letters.delivered {
                self.missing.push(format!("the dead letter {raw}"));
            }
            if found > letters.made * regions {
                self.twice.push(format!("{found} times: the dead letter {raw}"));
            }
        }
        let unknown = read.into_keys();
        self.unknown.extend(unknown.map(|raw| format!("the dead letter {}", raw.escape_ascii())));
    }
}

impl fmt::Display for DemoVerdict {
    /// The table, and the first faults of every kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |list: &Vec<String>| list.len() as u64;
        writeln!(f, "What became of the events that Agora made:\n")?;
        row(f, "made", self.made, "")?;
        row(f, "delivered", self.delivered, "each read exactly once, with the right id")?;
        row(f, "dead letters", self.dead_letters, "not events; kept as received")?;
        row(f, "torn off", self.torn, "in cut answers of every region; covered by gaps")?;
        row(f, "overwritten", self.overwritten, "in Agora's buffers; covered by gaps")?;
        for (name, value, note) in [
            ("lost on the way", self.lost, "covered by gaps"),
            ("still with Agora", self.waiting, "not requested before the end"),
            ("misshapen", count(&self.misshapen), "records that contradict themselves"),
            ("unknown", count(&self.unknown), "read, but never made"),
        ] {
            if value > 0 {
                row(f, name, value, note)?;
            }
        }
        row(f, "missing", count(&self.missing), "")?;
        row(f, "twice", count(&self.twice), "")?;
        writeln!(f)?;
        row(f, "repeats removed", self.repeats, "a second region handed them over again")?;
        row(f, "gaps published", self.gaps, "")?;
        for (name, found) in self.faults() {
            show(f, name, found)?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: u64, note: &str) -> fmt::Result {
    let value = HumanCount(value).to_string();
    let line = format!("  {name:<18}{value:>9}   {note}");
    writeln!(f, "{}", line.trim_end())
}

fn show(f: &mut fmt::Formatter<'_>, name: &str, found: &[String]) -> fmt::Result {
    if found.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{name}:")?;
    for one in found.iter().take(SHOWN) {
        writeln!(f, "  {one}")?;
    }
    match found.len().checked_sub(SHOWN) {
        Some(more @ 1..) => writeln!(f, "  … and {more} more"),
        _ => Ok(()),
    }
}

fn shown(recorded: &Recorded) -> String {
    let Recorded { app, endpoint, kind, user, channel, ms, malformed, .. } = recorded;
    if let Some(raw) = malformed {
        return format!("{app} {endpoint}: the element {}", raw.escape_ascii());
    }
    let channel = channel.as_ref().map(|channel| format!(" in {channel:?}")).unwrap_or_default();
    format!("{app} {endpoint}: {kind} of {user:?}{channel} at {ms}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Topic;
    use crate::model::{AppId, Endpoint};

    use super::super::evidence::Read;

    const DELIVERED: Fate = Fate::Delivered { answer: 0 };
    const TORN: Fate = Fate::Torn { answer: 0 };

    fn made(ms: i64, fate: Fate) -> Recorded {
        Recorded {
            seq: 0,
            app: AppId::new("a"),
            endpoint: Endpoint::User,
            kind: "Login",
            user: "u".to_owned(),
            channel: None,
            ms,
            fate,
            malformed: None,
        }
    }

    fn element(raw: &[u8], fate: Fate) -> Recorded {
        Recorded { malformed: Some(raw.to_vec()), ..made(5, fate) }
    }

    /// The evidence of a consumer that reads these, in this order.
    fn evidence(times: &[i64], letters: &[&[u8]], gaps: &[&str]) -> Evidence {
        let mut evidence = Evidence::default();
        for ms in times {
            let value = format!(
                r#"{{"app_id":"a","endpoint":"user_events","type":"Login","user_id":"u","ms":{ms}}}"#
            );
            let ce_id = identity(&made(*ms, DELIVERED)).to_string();
            evidence.take(Read {
                topic: Topic::UserEvents,
                key: b"u",
                value: value.as_bytes(),
                ce_id: Some(ce_id.as_bytes()),
            });
        }
        for value in letters {
            evidence.take(Read { topic: Topic::DeadLetter, key: b"a", value, ce_id: None });
        }
        for cause in gaps {
            let value = format!(
                r#"{{"app_id":"a","region":"eu","endpoint":"user_events","cause":"{cause}","from":4,"to":6,"at_least":0,"at_most":null}}"#
            );
            let value = value.as_bytes();
            evidence.take(Read { topic: Topic::Gaps, key: b"a", value, ce_id: None });
        }
        assert!(evidence.misshapen.is_empty(), "{evidence:?}");
        evidence
    }

    #[test]
    fn each_event_has_one_place() {
        type Case = (Fate, &'static [i64], &'static [&'static str], &'static str);
        let cases: &[Case] = &[
            (DELIVERED, &[5], &[], "delivered"),
            (DELIVERED, &[], &[], "missing"),
            (DELIVERED, &[5, 5], &[], "twice"),
            (DELIVERED, &[], &["body_cut"], "missing"),
            (DELIVERED, &[], &["answer_lost"], "lost"),
            (TORN, &[], &["body_cut"], "torn"),
            (TORN, &[], &["overflow"], "missing"),
            (TORN, &[], &[], "missing"),
            (Fate::Overwritten, &[], &["overflow"], "overwritten"),
            (Fate::Overwritten, &[], &[], "missing"),
            (Fate::Buffered, &[], &[], "waiting"),
        ];
        for (fate, times, gaps, place) in cases {
            let verdict = DemoVerdict::of([made(5, *fate)], 2, evidence(times, &[], gaps));
            let places = [
                ("delivered", verdict.delivered),
                ("lost", verdict.lost),
                ("torn", verdict.torn),
                ("overwritten", verdict.overwritten),
                ("waiting", verdict.waiting),
                ("missing", verdict.missing.len() as u64),
                ("twice", verdict.twice.len() as u64),
            ];
            let found: Vec<_> = places.iter().filter(|(_, count)| *count > 0).collect();
            assert_eq!(found, [&(*place, 1)], "{fate:?} {times:?} {gaps:?}");
            let bad = ["missing", "twice", "waiting"].contains(place);
            assert_eq!(verdict.is_good(), !bad, "{}", verdict.sentence());
        }
    }

    #[test]
    fn a_gap_excuses_only_its_own_time() {
        for (ms, excused) in [(3, false), (4, true), (6, true), (7, false)] {
            let verdict = DemoVerdict::of([made(ms, TORN)], 2, evidence(&[], &[], &["body_cut"]));
            assert_eq!(verdict.is_good(), excused, "{ms}");
        }
    }

    #[test]
    fn a_dead_letter_may_come_once_from_each_region() {
        let raw: &[u8] = b"17";
        for (letters, good) in [
            (&[][..], false),
            (&[raw][..], true),
            (&[raw, raw][..], true),
            (&[raw, raw, raw][..], false),
            (&[raw, b"18"][..], false),
        ] {
            let verdict =
                DemoVerdict::of([element(raw, DELIVERED)], 2, evidence(&[], letters, &[]));
            assert_eq!(verdict.is_good(), good, "{letters:?}: {}", verdict.sentence());
        }
        let verdict = DemoVerdict::of([element(raw, TORN)], 2, evidence(&[], &[], &["body_cut"]));
        assert_eq!((verdict.torn, verdict.is_good()), (1, true));
    }

    #[test]
    fn what_agora_never_made_is_unknown() {
        let verdict = DemoVerdict::of([made(5, DELIVERED)], 2, evidence(&[5, 6], &[], &[]));
        assert_eq!((verdict.delivered, verdict.unknown.len()), (1, 1));
        assert_eq!(verdict.sentence(), "Not every event is accounted for: 1 unknown.");
    }

    #[test]
    fn the_table_shows_the_first_of_many() {
        let missing = (0..20).map(|ms| made(ms, DELIVERED));
        let verdict = DemoVerdict::of(missing, 2, Evidence::default());
        let text = verdict.to_string();
        assert!(text.contains("  missing                  20\n"), "{text}");
        assert!(text.contains("a user_events: Login of \"u\" at 7\n  … and 12 more"), "{text}");
    }
}
