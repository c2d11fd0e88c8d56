//! Compares what Agora handed over with what is in the topics, round by round, and with what the
//! bridge's own accounts say.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;
use std::{mem, thread};

use agora_rtm_bridge::simulator::{AnswerRecord, Fate, Recorded};
use serde_json::Value;

use super::stage::{Excuse, Life, WAY, sum};
use crate::support::agora::Agora;
use crate::support::consume::{Consumer, Record};
use crate::support::judge::{Event, Verdict, judge};
use crate::support::names::Names;

/// What is known from round to round.
pub(super) struct Audit {
    names: Names,
    /// So many events and answers of the ledger are judged.
    events: usize,
    answers: usize,
    /// Each event that was published, by a hash of it.
    published: HashSet<u128>,
    /// Events that a gap had to excuse, and that may come all the same.
    excused: HashSet<u128>,
    /// What came in this round.
    records: Vec<Record>,
    /// The events among it.
    fresh: Vec<u128>,
    /// What came again although an earlier round had it.
    again: Vec<String>,
}

/// What a round brought, where all is well.
pub(super) struct Finding {
    pub(super) made: usize,
    pub(super) published: usize,
    pub(super) overwritten: usize,
    pub(super) lost: Vec<Lost>,
    /// By cause: how many were published, and how many of them tell of something true.
    pub(super) gaps: BTreeMap<String, (usize, usize)>,
    /// Age of events when they were asked for: the time of the answer, and the age.
    pub(super) ages: Vec<(Duration, Duration)>,
    answers: usize,
    excused: Vec<u128>,
    /// Elements in answers to the process that lives, and how many of them it never got.
    answered: u64,
    lost_of_life: u64,
    taken_over: i64,
}

/// An answer of which events are not published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) events: usize,
    /// How long after its last byte had been sent the process died, if that was the reason.
    pub(super) died_after: Option<Duration>,
}

/// The ways of the simulated network are as long as they should be, and on a busy machine longer.
const LATE: Duration = Duration::from_millis(500);

/// After everything that a campaign does.
const LATER: Duration = Duration::from_secs(365 * 86_400);

/// After an answer was sent, so much later at most it is durable: 1 s on a machine that is busy
/// with something else. How late it was in truth is measured.
const UNTIL_DURABLE: Duration = Duration::from_secs(1);

// === impl Audit ===

impl Audit {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            events: 0,
            answers: 0,
            published: HashSet::new(),
            excused: HashSet::new(),
            records: Vec::new(),
            fresh: Vec::new(),
            again: Vec::new(),
        }
    }

    /// Takes in what was read since the last time. Whether there was anything.
    pub(super) fn take_in(&mut self, consumer: &Consumer) -> bool {
        let records = consumer.take();
        let has_news = !records.is_empty();
        for record in records {
            let is_event =
                [&self.names.user_events, &self.names.channel_events].contains(&&record.topic);
            let value = record.value.as_deref().unwrap_or_default();
            match serde_json::from_slice::<Event>(value) {
                Ok(event) if is_event => {
                    let hash = hash(&event);
                    if self.excused.remove(&hash) {
                        self.published.insert(hash);
                        continue;
                    }
                    if self.published.contains(&hash) {
                        let Record { topic, partition, offset, .. } = &record;
                        self.again.push(format!("{event}: {topic}/{partition}@{offset}"));
                    }
                    self.fresh.push(hash);
                }
                // What is not as it should be, the judge will say.
                _ => {}
            }
            self.records.push(record);
        }
        has_news
    }

    /// Judges what happened since the last round. `Err` tells what is wrong, for now.
    pub(super) fn look(
        &mut self,
        agora: &Agora,
        excuses: &[Excuse],
        life: &Life,
        status: &Value,
    ) -> Result<Finding, String> {
        let events = self.events_since(agora);
        let (answers, epoch, apps) = {
            let world = agora.world();
            let apps: Vec<_> =
                world.script().apps.iter().map(|it| it.app_id.as_str().to_owned()).collect();
            let answers = world.ledger().answers().get(self.answers..).unwrap_or_default().to_vec();
            (answers, world.script().epoch.as_millis(), apps)
        };
        self.records.sort_by(|a, b| {
            (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset))
        });
        let made = events.len();
        let (overwritten, handed_out): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| event.fate == Fate::Overwritten);
        let verdict = judge(&self.names, handed_out.iter().cloned(), &self.records);
        if !(verdict.is_exactly_once() && verdict.out_of_order.is_empty() && self.again.is_empty())
        {
            return Err(format!("again: {:?}\n{verdict}", self.again));
        }
        let lost = lost_answers(&verdict, &handed_out);
        let answer = |number: u64| {
            let index = usize::try_from(number).ok()?.checked_sub(self.answers)?;
            answers.get(index)
        };
        let mut finding = Finding {
            made,
            published: verdict.published,
            overwritten: overwritten.len(),
            lost: Vec::new(),
            gaps: gaps(&verdict, overwritten),
            ages: handed_out.iter().filter_map(|it| age(it, epoch, answer)).collect(),
            answers: answers.len(),
            excused: verdict.explained.iter().map(hash).collect(),
            answered: life.answered,
            lost_of_life: life.lost,
            taken_over: 0,
        };
        let mut told = told_losses(&verdict);
        for (number, (whole, torn)) in lost {
            let answer = answer(number).ok_or("an event of an earlier round was lost")?;
            let feed = answer.feed.and_then(|(app, endpoint)| {
                Some((apps.get(app)?.clone(), endpoint.name().to_owned()))
            });
            let left = feed.and_then(|feed| told.get_mut(&feed)).filter(|left| **left > 0);
            *left.ok_or_else(|| format!("more answers were lost than gaps tell: {answer:?}"))? -= 1;
            let (died_after, by_kafka) = excuse(answer, excuses)?;
            finding.lost.push(Lost { events: whole + torn, died_after });
            if answer.at >= life.began && !by_kafka {
                finding.lost_of_life += whole as u64;
            }
        }
        finding.compare_with_accounts(life, &answers, status)?;
        Ok(finding)
    }

    /// Events that are not judged yet. In pieces: while somebody looks, Agora answers nobody.
    fn events_since(&self, agora: &Agora) -> Vec<Recorded> {
        const PIECE: usize = 10_000;
        let mut events = Vec::new();
        loop {
            let before = events.len();
            let skipped = self.events + before;
            events.extend(agora.world().ledger().events_from(skipped).take(PIECE));
            if events.len() < before + PIECE {
                return events;
            }
            // Who waits for a lock does not get it from one who takes it again at once.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The round is over.
    pub(super) fn settle(&mut self, finding: &Finding, life: &mut Life) {
        self.events += finding.made;
        self.answers += finding.answers;
        self.records.clear();
        self.published.extend(mem::take(&mut self.fresh));
        self.excused.extend(&finding.excused);
        life.answered = finding.answered;
        life.lost = finding.lost_of_life;
        life.taken_over = Some(finding.taken_over);
    }
}

/// How many events of each answer are not published: those that were sent whole, and others.
fn lost_answers(verdict: &Verdict, handed_out: &[Recorded]) -> HashMap<u64, (usize, usize)> {
    let excused: HashSet<&Event> = verdict.explained.iter().collect();
    let mut lost: HashMap<u64, (usize, usize)> = HashMap::new();
    if excused.is_empty() {
        return lost;
    }
    for recorded in handed_out {
        if !excused.contains(&Event::from(recorded.clone())) {
            continue;
        }
        match recorded.fate {
            Fate::Delivered { answer } => lost.entry(answer).or_default().0 += 1,
            Fate::Torn { answer } => lost.entry(answer).or_default().1 += 1,
            Fate::Buffered | Fate::Overwritten => {}
        }
    }
    lost
}

/// For how many lost answers of each feed there is a gap. One gap stands for all pages that Kafka lost.
fn told_losses(verdict: &Verdict) -> HashMap<(String, String), usize> {
    const MANY: usize = 1_000_000;
    let mut told = HashMap::new();
    for gap in verdict.gaps.iter().filter(|gap| gap.cause != "overflow") {
        let answers = if gap.cause == "pages_lost" { MANY } else { 1 };
        *told.entry((gap.app_id.clone(), gap.endpoint.clone())).or_default() += answers;
    }
    told
}

fn hash(event: &Event) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, event).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

fn gaps(verdict: &Verdict, overwritten: Vec<Recorded>) -> BTreeMap<String, (usize, usize)> {
    let overwritten: Vec<Event> = overwritten.into_iter().map(Event::from).collect();
    let mut gaps: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for gap in &verdict.gaps {
        let (published, are_true) = gaps.entry(gap.cause.clone()).or_default();
        *published += 1;
        let mut lost = verdict.explained.iter().chain(&overwritten);
        *are_true += usize::from(lost.any(|event| gap.covers(event)));
    }
    gaps
}

fn age<'a>(
    recorded: &Recorded,
    epoch: i64,
    answer: impl Fn(u64) -> Option<&'a AnswerRecord>,
) -> Option<(Duration, Duration)> {
    let Fate::Delivered { answer: number } = recorded.fate else { return None };
    let at = answer(number)?.at;
    let happened = Duration::from_millis((recorded.ms - epoch).max(0).unsigned_abs());
    Some((at, at.saturating_sub(happened)))
}

/// Why an answer may have been lost: `Err` if nothing excuses it. How long after it was sent the
/// process died, if that was it; whether it was Kafka that lost it.
fn excuse(answer: &AnswerRecord, excuses: &[Excuse]) -> Result<(Option<Duration>, bool), String> {
    if answer.fault.is_some() {
        return Ok((None, false));
    }
    let left = answer.at.saturating_sub(WAY + LATE);
    // A slow body may never have been sent to its end.
    let sent = answer.sent_at.unwrap_or(LATER);
    let mut possible = excuses.iter().filter(|it| left <= it.to && it.from <= sent + UNTIL_DURABLE);
    match possible.next() {
        Some(Excuse { to, is_death: true, .. }) => Ok((Some(to.saturating_sub(sent)), false)),
        Some(it) => Ok((None, it.by_kafka)),
        None => Err(format!("lost, and nothing that was done excuses it: {answer:?} {excuses:?}")),
    }
}

// === impl Finding ===

impl Finding {
    /// Events that are lost, and told.
    pub(super) fn lost_events(&self) -> usize {
        self.lost.iter().map(|lost| lost.events).sum()
    }

    /// The accounts of the process that lives balance, and say what the ledger says.
    fn compare_with_accounts(
        &mut self,
        life: &Life,
        answers: &[AnswerRecord],
        status: &Value,
    ) -> Result<(), String> {
        let mut inherited = 0;
        for answer in answers {
            match answer.at >= life.began {
                true => self.answered += answer.complete,
                false => inherited += answer.complete.cast_signed(),
            }
        }
        let received = sum(status, "received")?;
        let mut ended = 0;
        for column in
            ["delivered", "repeats", "repeats_in_page", "dead_letters", "set_aside", "lost"]
        {
            ended += sum(status, column)?;
        }
        self.taken_over = received - self.answered.cast_signed() + self.lost_of_life.cast_signed();
        let may_take_over = match life.taken_over {
            Some(known) => known..=known,
            None if life.inherits_nothing => 0..=0,
            None => 0..=inherited,
        };
        if received != ended || !may_take_over.contains(&self.taken_over) {
            let Self { answered, lost_of_life, taken_over, .. } = self;
            return Err(format!(
                "the accounts differ from the ledger: {answered} were handed to this process, \
                 {lost_of_life} of them lost, so {taken_over} were taken over, which should be \
                 {may_take_over:?}: {status:#}"
            ));
        }
        Ok(())
    }
}
