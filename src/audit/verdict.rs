//! The verdict of an audit, for people and for programs.

use std::collections::BTreeMap;

use indicatif::HumanCount;
use serde::Serialize;

use super::findings::{Counts, GapTotals, Tally, Uncovered};
use super::ledger::{Account, Ledger};
use crate::model::Timestamp;

/// What an audit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was looked at, and nothing contradicts.
    Proved,
    /// Something contradicts.
    Disproved,
    /// Nothing contradicts, and not everything could be looked at.
    NotCovered,
}

/// The verdict.
#[derive(Debug)]
pub struct Verdict {
    since: Timestamp,
    until: Timestamp,
    pages: u64,
    /// Forwarded and not delivered yet.
    waiting: u64,
    accounts: Vec<Account>,
    total: Counts,
    gaps: BTreeMap<&'static str, GapTotals>,
    tally: Tally,
    /// Each kind of fault with its number and the first of them.
    faults: Vec<(&'static str, u64, Vec<String>)>,
    not_covered: Vec<(Uncovered, u64)>,
}

// === impl Verdict ===

impl Verdict {
    pub(super) fn new(mut ledger: Ledger, until: Timestamp, waiting: u64) -> Self {
        let (accounts, gaps) = ledger.close();
        let mut total = Counts::default();
        accounts.iter().for_each(|account| total.add(account.counts));
        ledger.uncovered(Uncovered::Waiting, waiting);
        ledger.uncovered(Uncovered::NotProvable, total.not_provable);
        let not_covered = std::mem::take(&mut ledger.not_covered).into_iter().collect();
        let faults = std::mem::take(&mut ledger.faults).0.into_iter();
        Self {
            since: ledger.since,
            until,
            pages: ledger.page_count() as u64,
            waiting,
            accounts,
            total,
            gaps,
            tally: ledger.tally,
            not_covered,
            faults: faults.map(|(fault, (count, first))| (fault.name(), count, first)).collect(),
        }
    }

    /// What it comes to.
    pub fn outcome(&self) -> Outcome {
        match (self.faults.is_empty(), self.not_covered.is_empty()) {
            (false, _) => Outcome::Disproved,
            (true, false) => Outcome::NotCovered,
            (true, true) => Outcome::Proved,
        }
    }

    /// For programs. Times are in milliseconds since 1970.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct OfApp<'a> {
            app_id: &'a str,
            endpoint: &'static str,
            #[serde(flatten)]
            counts: Counts,
        }
        let of_app = |account: &Account| {
            let (app_id, endpoint) = (account.app.as_str(), account.endpoint.name());
            serde_json::json!(OfApp { app_id, endpoint, counts: account.counts })
        };
        let gap = |(cause, told): (&&str, &GapTotals)| {
            let GapTotals { records, at_least, at_most } = told;
            let told = serde_json::json!({
                "records": records, "at_least": at_least, "at_most": at_most
            });
            ((*cause).to_owned(), told)
        };
        let fault = |(name, count, first): &(&'static str, u64, Vec<String>)| {
            let name = name.replace(' ', "_");
            (name, serde_json::json!({ "count": count, "first": first }))
        };
        let uncovered =
            |(what, count): &(Uncovered, u64)| (what.name().to_owned(), (*count).into());
        let mut text = serde_json::to_string_pretty(&serde_json::json!({
            "verdict": self.outcome().name(),
            "proved": self.outcome() == Outcome::Proved,
            "not_covered": self.not_covered.iter().map(uncovered).collect::<serde_json::Map<_, _>>(),
            "since": self.since.as_millis(),
            "until": self.until.as_millis(),
            "pages": self.pages,
            "pages_waiting": self.waiting,
            "pages_again": self.tally.pages_again,
            "pages_late": self.tally.pages_late,
            "pages_unreadable": self.tally.unreadable_pages,
            "accounts": self.accounts.iter().map(of_app).collect::<Vec<_>>(),
            "events_of_other_pages": self.tally.events_outside,
            "replayed": self.tally.replayed,
            "gaps": self.gaps.iter().map(gap).collect::<serde_json::Map<_, _>>(),
            "faults": self.faults.iter().map(fault).collect::<serde_json::Map<_, _>>(),
        }))
        .expect("numbers and texts are JSON");
        text.push('\n');
        text
    }

    /// For people: the verdict in the first line.
    pub fn text(&self) -> String {
        let Self { since, until, total, tally, .. } = self;
        let mut text = format!("{}\n\n", self.sentence());
        text.push_str(&row(
            "forwarded",
            self.pages,
            &format!("pages and gaps from {since} to {until}"),
        ));
        text.push_str(&row("received", total.received, "elements in these pages"));
        text.push_str(&row("delivered", total.delivered, "each in its topic once"));
        for (name, count, note) in [
            ("delivered earlier", total.delivered_earlier, "repeats of events of before"),
            ("repeats", total.repeats, "within these pages; dropped"),
            ("dead letters", total.dead_letters, "elements that are no events; kept"),
            ("set aside", total.set_aside, "events that their topic does not take; kept"),
            ("not provable", total.not_provable, "older than their topic, or than these pages"),
            ("missing", total.missing, ""),
            ("waiting", self.waiting, "pages that are forwarded and not delivered yet"),
            ("forwarded again", tally.pages_again, "pages, after a crash; dropped"),
            ("late", tally.pages_late, "pages that the pages topic refused for a while"),
            ("unreadable", tally.unreadable_pages, "records of the pages topic"),
            ("replayed", tally.replayed, "published once more by `pages replay`"),
        ] {
            if count > 0 {
                text.push_str(&row(name, count, note));
            }
        }
        for (cause, told) in &self.gaps {
            let at_most =
                told.at_most.map_or("unknown".to_owned(), |it| HumanCount(it).to_string());
            let bounds = format!(
                "{cause}: at least {}, at most {at_most} events",
                HumanCount(told.at_least)
            );
            text.push_str(&row("gaps", told.records, &bounds));
        }
        for (name, count, first) in &self.faults {
            text.push_str(&format!("\n{name}:\n"));
            first.iter().for_each(|one| text.push_str(&format!("  {one}\n")));
            if let Some(more @ 1..) = count.checked_sub(first.len() as u64) {
                text.push_str(&format!("  … and {} more\n", HumanCount(more)));
            }
        }
        text
    }

    fn sentence(&self) -> String {
        if self.outcome() == Outcome::Disproved {
            let faults = self.faults.iter();
            let faults: Vec<String> =
                faults.map(|(name, count, _)| format!("{} {name}", HumanCount(*count))).collect();
            return format!("DISPROVED: {}.", faults.join(", "));
        }
        if self.outcome() == Outcome::NotCovered {
            let what = self.not_covered.iter();
            let what: Vec<String> = what
                .map(|(what, count)| format!("{} {}", HumanCount(*count), what.sentence()))
                .collect();
            return format!("NOT COVERED, and no fault was found: {}.", what.join("; "));
        }
        let gaps: u64 = self.gaps.values().map(|told| told.records).sum();
        let gaps = match gaps {
            0 => "there are no gaps",
            _ => "gaps report what may have been lost before that",
        };
        match self.pages {
            0 => "Nothing to prove: no page of this time is delivered.".to_owned(),
            _ => {
                format!(
                    "Proved: every drained event was delivered exactly once and in order; {gaps}."
                )
            }
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Disproved => "disproved",
            Self::NotCovered => "not_covered",
        }
    }
}

fn row(name: &str, count: u64, note: &str) -> String {
    let count = HumanCount(count).to_string();
    format!("{}\n", format!("  {name:<18}{count:>12}   {note}").trim_end())
}
