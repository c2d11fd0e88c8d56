//! Compares what came across from Agora with what was published.
//!
//! It shares no code with the bridge but the format of the pages topic, which tells where a page
//! went. The truth is in the log of the wires: what the bridge was really handed. From it follows
//! what has to be published, exactly; and from Agora's ledger, that the log is complete.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use agora_rtm_bridge::kafka::Topic;
use agora_rtm_bridge::model::{Content, Endpoint};
use agora_rtm_bridge::observe::accounts::Column;
use agora_rtm_bridge::records::pages;
use agora_rtm_bridge::simulator::Fate;
use serde::Deserialize;
use serde_json::Value;

use super::elements::{Element, Identity, elements, identity};
use super::kafka_model::Stored;
use super::plan::Plan;
use super::run::{Outcome, Past};
use super::transport::{Exchange, Told};

/// What is worth knowing of a run that was judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    /// What is wrong; empty where all is well.
    pub(crate) faults: Vec<String>,
    /// Different events that were published.
    pub(crate) published: usize,
    /// Events that came across again.
    pub(crate) repeats: usize,
    /// Dead letters.
    pub(crate) dead_letters: usize,
    /// Events that were taken from Agora and never published.
    pub(crate) lost: usize,
    /// Events that Agora overwrote before anybody took them.
    pub(crate) overwritten: Vec<Identity>,
    pub(crate) gaps: Vec<Gap>,
}

/// A gap as its record tells it.
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
    /// The page whose number it has.
    #[serde(skip)]
    page: PageName,
}

/// A feed as gaps name it: app, region, endpoint.
type Feed = (usize, String, Endpoint);

/// App and `agora_page` header.
type PageName = (usize, String);

/// An answer whose page the bridge was handed, and what stands in it.
struct Handed<'a> {
    exchange: &'a Exchange,
    number: u64,
    body: &'a [u8],
    /// How much of the body came.
    got: usize,
    looks_whole: bool,
    /// `None` where the body is no JSON object.
    elements: Option<Vec<(Element<'a>, Option<Identity>)>>,
    /// Its page is in the pages topic, under this name.
    page: Option<PageName>,
    /// Its page may be gone with a disk.
    excused: bool,
}

struct Judge<'a> {
    plan: &'a Plan,
    outcome: &'a Outcome,
    exchanges: &'a [Exchange],
    handed: Vec<Handed<'a>>,
    /// The same by the names of pages.
    by_page: HashMap<PageName, usize>,
    verdict: Verdict,
}

/// Judges a run.
pub(crate) fn judge(plan: &Plan, outcome: &Outcome) -> Verdict {
    let exchanges = outcome.agora.exchanges();
    let mut judge = Judge::new(plan, outcome, &exchanges);
    judge.look_at_the_end();
    judge.compare_with_the_ledger();
    let published = judge.look_at_events();
    judge.look_at_dead_letters();
    judge.look_at_gaps(&published);
    judge.look_at_accounts();
    judge.verdict
}

// === impl Judge ===

impl<'a> Judge<'a> {
    fn new(plan: &'a Plan, outcome: &'a Outcome, exchanges: &'a [Exchange]) -> Self {
        let mut judge = Self {
            plan,
            outcome,
            exchanges,
            handed: Vec::new(),
            by_page: HashMap::new(),
            verdict: Verdict::default(),
        };
        let pages = judge.pages();
        judge.handed = exchanges
            .iter()
            .filter_map(|exchange| {
                let answer = exchange.answer.as_ref()?;
                let Told::Answered { bytes: got, looks_whole } = exchange.told else { return None };
                let of_element = |element: Element<'a>| {
                    let identity = identity(exchange.app, exchange.endpoint, element.raw);
                    (element, identity)
                };
                let is_page = (200..300).contains(&answer.status);
                is_page.then(|| Handed {
                    exchange,
                    number: answer.number,
                    body: &answer.body,
                    got,
                    looks_whole,
                    elements: elements(&answer.body)
                        .map(|all| all.into_iter().map(of_element).collect()),
                    page: pages.get(&answer.number).cloned(),
                    excused: outcome.lives[exchange.life].disk_lost,
                })
            })
            .collect();
        let names = judge.handed.iter().zip(0..);
        judge.by_page = names.filter_map(|(it, index)| Some((it.page.clone()?, index))).collect();
        judge
    }

    fn fault(&mut self, fault: impl fmt::Display) {
        self.verdict.faults.push(fault.to_string());
    }

    /// The names of the pages in the pages topic, by the numbers of their answers.
    fn pages(&mut self) -> HashMap<u64, PageName> {
        let mut pages = HashMap::new();
        for record in self.outcome.kafka.pages() {
            let forwarded = pages::decode(&record).expect("the bridge reads what it wrote");
            let Content::Page(page) = forwarded.entry.content else { continue };
            let number = page.resource_id.as_ref().and_then(|it| it.strip_prefix("simulated-"));
            let number: u64 = number.and_then(|it| it.parse().ok()).expect("Agora's header");
            let name = (self.app(page.feed.app.as_str()), forwarded.entry.id.to_string());
            let other = pages.insert(number, name.clone()).filter(|other| *other != name);
            if let Some(other) = other {
                self.fault(format!("answer {number} is both {other:?} and {name:?}"));
            }
        }
        pages
    }

    fn look_at_the_end(&mut self) {
        let outcome = self.outcome;
        let waits = outcome.waiting.is_none_or(|it| it.in_journal + it.in_pages_topic > 0);
        if waits || !outcome.came_to_rest {
            let rest = outcome.came_to_rest;
            self.fault(format!("something waits at the end: {:?}, rest: {rest}", outcome.waiting));
        }
        for panic in &outcome.panics {
            self.fault(panic);
        }
        let broken = [outcome.agora.broken_promises(), outcome.kafka.broken_promises()];
        for promise in broken.concat() {
            self.fault(promise);
        }
        if outcome.lives.iter().any(|life| life.gate_refusals > 0) {
            self.fault("the last gate held a request back");
        }
        // A start that knows of no request asks each feed once, whatever a predecessor did.
        let unknown = self.plan.starts_on_unknown_journals() * self.plan.feeds_of_an_app();
        let allowed = u64::from(self.plan.requests_per_second) + unknown;
        for app in 0..self.plan.script.apps.len() {
            let requests = outcome.agora.with(|world| world.ledger().requests(app));
            let too_often =
                requests.most_in_a_second > allowed || (requests.over_limit > 0 && unknown == 0);
            if too_often && !self.plan.twin {
                self.fault(format!("app {app} asked too often: {requests:?}"));
            }
        }
    }

    /// Agora handed over what the wires carried, and nothing else; and nothing is left.
    fn compare_with_the_ledger(&mut self) {
        let mut carried = HashSet::new();
        let mut malformed = HashSet::new();
        for exchange in self.exchanges {
            let Some(answer) = &exchange.answer else { continue };
            for element in elements(&answer.body).into_iter().flatten() {
                match identity(exchange.app, exchange.endpoint, element.raw) {
                    Some(identity) => drop(carried.insert(identity)),
                    None => drop(malformed.insert(element.raw.to_vec())),
                }
            }
        }
        let recorded: Vec<_> = self.outcome.agora.with(|world| world.ledger().events().collect());
        let mut handed_over = 0;
        for event in recorded {
            let identity = Identity {
                app: self.app(event.app.as_str()),
                endpoint: event.endpoint,
                kind: event.kind.to_owned(),
                user: event.user.clone(),
                channel: event.channel.clone(),
                ms: event.ms,
            };
            let is_carried = match &event.malformed {
                Some(raw) => malformed.contains(raw),
                None => carried.contains(&identity),
            };
            match event.fate {
                _ if is_carried => handed_over += usize::from(event.malformed.is_none()),
                Fate::Delivered { .. } | Fate::Torn { .. } | Fate::Buffered => {
                    self.fault(format!("never carried: {event:?}"));
                }
                Fate::Overwritten if self.plan.overloaded => {
                    self.verdict.overwritten.push(identity);
                }
                Fate::Overwritten => self.fault(format!("a buffer ran over: {event:?}")),
            }
        }
        if handed_over != carried.len() {
            self.fault(format!("{} carried, {handed_over} of the ledger's", carried.len()));
        }
    }

    /// What was published is what was handed over, once, and in order. The events published.
    fn look_at_events(&mut self) -> HashSet<Identity> {
        let mut published: HashMap<Identity, String> = HashMap::new();
        let mut ids: HashMap<String, Identity> = HashMap::new();
        let mut last: HashMap<(Vec<u8>, Feed), (u64, usize)> = HashMap::new();
        for topic in [Topic::UserEvents, Topic::ChannelEvents] {
            for record in self.outcome.kafka.records(topic) {
                let (event, page) = match self.read(topic, &record) {
                    Ok(read) => read,
                    Err(why) => {
                        self.fault(format!("{why}: {record:?}"));
                        continue;
                    }
                };
                let id = record.header("ce_id").unwrap_or_default().to_owned();
                if let Some(other) = published.insert(event.clone(), id.clone()) {
                    self.fault(format!("twice ({other}, {id}): {event:?}"));
                }
                if let Some(other) = ids.insert(id, event.clone()).filter(|it| *it != event) {
                    self.fault(format!("one ce_id: {other:?}, {event:?}"));
                }
                let Some(place) = self.place(&page, &event) else {
                    self.fault(format!("not handed over by page {page:?}: {event:?}"));
                    continue;
                };
                let feed = self.feed(self.handed[self.by_page[&page]].exchange);
                let before = last.insert((record.key.clone(), feed), place);
                let in_turns = !self.plan.twin;
                if in_turns && before.is_some_and(|before| before > place) {
                    self.fault(format!("out of order, {place:?} behind {before:?}: {event:?}"));
                }
            }
        }
        let mut missing = BTreeSet::new();
        let mut came = 0;
        for handed in &self.handed {
            let complete = handed.events().filter(|(element, _)| element.needs <= handed.got);
            let complete: Vec<&Identity> = complete.map(|(_, event)| event).collect();
            came += complete.len();
            if handed.page.is_some() || !handed.excused {
                missing
                    .extend(complete.into_iter().filter(|it| !published.contains_key(it)).cloned());
            }
        }
        for event in missing {
            self.fault(format!("missing: {event:?}"));
        }
        self.verdict.published = published.len();
        self.verdict.repeats = came.saturating_sub(published.len());
        published.into_keys().collect()
    }

    /// An event as its record tells it, and the name of its page.
    fn read(&self, topic: Topic, record: &Stored) -> Result<(Identity, PageName), &'static str> {
        let value = record.value.as_deref().ok_or("no value")?;
        let value: Value = serde_json::from_slice(value).map_err(|_| "not JSON")?;
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let endpoint: Endpoint =
            text("endpoint").and_then(|it| it.parse().ok()).ok_or("no endpoint")?;
        let event = Identity {
            app: self.app(text("app_id").ok_or("no app")?),
            endpoint,
            kind: text("type").ok_or("no type")?.to_owned(),
            user: text("user_id").ok_or("no user")?.to_owned(),
            channel: match endpoint {
                Endpoint::User => None,
                Endpoint::Channel => Some(text("channel_id").ok_or("no channel")?.to_owned()),
            },
            ms: value.get("ms").and_then(Value::as_i64).ok_or("no time")?,
        };
        let key = event.channel.as_ref().unwrap_or(&event.user);
        if record.key != key.as_bytes() || topic != Topic::of_events(endpoint) {
            return Err("a foreign key or topic");
        }
        let page = record.header("agora_page").ok_or("no page")?.to_owned();
        Ok((event.clone(), (event.app, page)))
    }

    /// Where the bridge got an event: the number of the answer and the place in it.
    fn place(&self, page: &PageName, event: &Identity) -> Option<(u64, usize)> {
        let handed = &self.handed[*self.by_page.get(page)?];
        let elements = handed.elements.iter().flatten();
        let mut complete = elements.take_while(|(element, _)| element.needs <= handed.got);
        let index = complete.position(|(_, it)| it.as_ref() == Some(event))?;
        Some((handed.number, index))
    }

    /// Exactly what is no event, byte for byte.
    fn look_at_dead_letters(&mut self) {
        let mut expected: BTreeMap<(PageName, Option<usize>), Vec<u8>> = BTreeMap::new();
        let mut faults = Vec::new();
        for handed in &self.handed {
            let Some(page) = &handed.page else {
                let letters = handed.dead_letters();
                if !letters.is_empty() && !handed.excused {
                    faults.push(format!("{} letters never came to a page", letters.len()));
                }
                continue;
            };
            for (index, raw) in handed.dead_letters() {
                expected.insert((page.clone(), index), raw.to_vec());
            }
        }
        for record in self.outcome.kafka.records(Topic::DeadLetter) {
            self.verdict.dead_letters += 1;
            let page = self.page_of(&record);
            let index = record.header("index").and_then(|it| it.parse().ok());
            let raw = record.value.clone().unwrap_or_default();
            let found = expected.remove(&(page.clone(), index));
            if found.as_ref() != Some(&raw) {
                let (raw, found) = (raw.escape_ascii(), found.unwrap_or_default());
                let found = found.escape_ascii();
                faults.push(format!("dead letter {page:?} {index:?}: `{raw}`, not `{found}`"));
            }
        }
        for ((page, index), raw) in expected {
            faults.push(format!("no dead letter {page:?} {index:?}: `{}`", raw.escape_ascii()));
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Whatever is gone is covered, and no gap is without a reason.
    fn look_at_gaps(&mut self, published: &HashSet<Identity>) {
        let gaps = self.gaps();
        let mut lost: BTreeSet<&Identity> = BTreeSet::new();
        let mut reasons: BTreeMap<(Feed, &str), usize> = BTreeMap::new();
        let mut faults = Vec::new();
        let carried = |exchange: &'a Exchange| {
            let answer = exchange.answer.as_ref();
            let body = answer.map_or(&[][..], |answer| &answer.body);
            let all = elements(body).into_iter().flatten();
            all.filter_map(|it| identity(exchange.app, exchange.endpoint, it.raw))
                .collect::<Vec<_>>()
        };
        let mut gone: Vec<(Feed, &str, Past, Vec<Identity>)> = Vec::new();
        for exchange in self.exchanges {
            let past = self.outcome.lives[exchange.life];
            let cause = match exchange.told {
                Told::Nothing => "process_killed",
                Told::Lost => "answer_lost",
                Told::NotSent | Told::Answered { .. } => continue,
            };
            *reasons.entry((self.feed(exchange), cause)).or_default() +=
                usize::from(!past.disk_lost);
            gone.push((self.feed(exchange), cause, past, carried(exchange)));
        }
        for handed in &self.handed {
            let torn = handed.events().filter(|(element, _)| element.needs > handed.got);
            let torn: Vec<Identity> = torn.map(|(_, event)| event.clone()).collect();
            let elements = handed.elements.iter().flatten();
            let elements =
                elements.filter(|(element, _)| element.needs > handed.got).count() as u64;
            let past = self.outcome.lives[handed.exchange.life];
            let of_page = gaps.iter().find(|gap| handed.page.as_ref() == Some(&gap.page));
            if let Some(gap) = of_page
                && (gap.at_least > elements || gap.at_most.is_some_and(|most| most < elements))
            {
                faults.push(format!("{elements} elements torn, and {gap:?}"));
            }
            if of_page.is_some_and(|gap| gap.cause != "body_cut" || handed.got == handed.body.len())
            {
                faults.push(format!("nothing is torn, and {of_page:?}"));
            }
            if elements > 0 && of_page.is_none() && (handed.page.is_some() || !handed.excused) {
                faults.push(format!("{elements} elements torn without a gap: {handed:?}"));
            }
            gone.push((self.feed(handed.exchange), "body_cut", past, torn));
        }
        for (feed, cause, past, events) in &gone {
            for event in events.iter().filter(|event| !published.contains(event)) {
                let covered = gaps.iter().any(|gap| {
                    gap.cause == *cause && self.is_of(gap, feed) && self.covers(gap, event)
                });
                if !covered && !past.disk_lost {
                    faults.push(format!("gone without a gap ({cause}, {feed:?}): {event:?}"));
                }
                lost.insert(event);
            }
        }
        for event in &self.verdict.overwritten {
            let covers = |gap: &Gap| gap.cause == "overflow" && self.covers(gap, event);
            if !gaps.iter().any(covers) {
                faults.push(format!("overwritten without a gap: {event:?}"));
            }
        }
        faults.extend(self.count_gaps(&gaps, &reasons));
        self.verdict.lost = lost.len();
        self.verdict.gaps = gaps;
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Where no disk was lost there is a gap for each answer that was lost, and no other.
    fn count_gaps(&self, gaps: &[Gap], reasons: &BTreeMap<(Feed, &str), usize>) -> Vec<String> {
        let mut faults = Vec::new();
        let disk_lost = self.outcome.lives.iter().any(|life| life.disk_lost);
        let kills = self.outcome.lives.iter().filter(|life| life.killed).count();
        for app in 0..self.plan.script.apps.len() {
            for (name, endpoint) in self
                .region_names()
                .into_iter()
                .flat_map(|name| Endpoint::ALL.map(|endpoint| (name.clone(), endpoint)))
            {
                let feed = (app, name, endpoint);
                let told = |cause| {
                    gaps.iter().filter(|it| it.cause == cause && self.is_of(it, &feed)).count()
                };
                // A killed process may have put a request on record that never left.
                for (cause, slack) in [("answer_lost", 0), ("process_killed", kills)] {
                    let real = *reasons.get(&(feed.clone(), cause)).unwrap_or(&0);
                    let told = told(cause);
                    if told < real || (!disk_lost && told > real + slack) {
                        faults.push(format!("{cause} {feed:?}: {told} gaps for {real} reasons"));
                    }
                }
            }
        }
        faults
    }

    fn gaps(&mut self) -> Vec<Gap> {
        let mut gaps: Vec<Gap> = Vec::new();
        for record in self.outcome.kafka.records(Topic::Gaps) {
            let page = self.page_of(&record);
            match serde_json::from_slice::<Gap>(&record.value.clone().unwrap_or_default()) {
                Ok(gap) if gaps.iter().all(|other| other.page != page) => {
                    gaps.push(Gap { page, ..gap });
                }
                Ok(gap) => self.fault(format!("twice ({page:?}): {gap:?}")),
                Err(why) => self.fault(format!("no gap, {why}: {record:?}")),
            }
        }
        gaps
    }

    fn look_at_accounts(&mut self) {
        let mut faults = Vec::new();
        let (mut delivered, mut dead_letters) = (0, 0);
        for balance in &self.outcome.accounts {
            // What one bridge received, the other may have delivered.
            if !self.plan.twin && balance.figures.waiting() != 0 {
                faults.push(format!("an account does not balance: {balance:?}"));
            }
            delivered += balance.figures.get(Column::Delivered);
            dead_letters += balance.figures.get(Column::DeadLetters);
        }
        let only_life = self.outcome.lives.len() == 1 && !self.plan.twin;
        let published = self.verdict.published as u64;
        let letters = self.verdict.dead_letters as u64;
        if only_life && (delivered, dead_letters) != (published, letters) {
            faults.push(format!(
                "accounts say {delivered} and {dead_letters}, published are {published} and {letters}"
            ));
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// The page of a record whose key is an App ID.
    fn page_of(&self, record: &Stored) -> PageName {
        let app = self.app(&String::from_utf8_lossy(&record.key));
        (app, record.header("agora_page").unwrap_or_default().to_owned())
    }

    fn app(&self, id: &str) -> usize {
        let apps = &self.plan.script.apps;
        apps.iter().position(|app| app.app_id.as_str() == id).expect("an app of the script")
    }

    fn region_names(&self) -> Vec<String> {
        let regions = 0..self.plan.script.regions.len();
        let names: BTreeSet<_> = regions.map(|index| self.plan.hosts.name_of(index)).collect();
        names.into_iter().collect()
    }

    fn feed(&self, exchange: &Exchange) -> Feed {
        (exchange.app, self.plan.hosts.name_of(exchange.region), exchange.endpoint)
    }

    fn is_of(&self, gap: &Gap, (app, name, endpoint): &Feed) -> bool {
        let app_id = self.plan.script.apps[*app].app_id.as_str();
        gap.app_id == app_id && gap.region == *name && gap.endpoint == endpoint.name()
    }

    /// In whichever region: an event that was overwritten is so in all of them.
    fn covers(&self, gap: &Gap, event: &Identity) -> bool {
        let app_id = self.plan.script.apps[event.app].app_id.as_str();
        let is_of = gap.app_id == app_id && gap.endpoint == event.endpoint.name();
        is_of && gap.from.is_none_or(|from| from <= event.ms) && event.ms <= gap.to
    }
}

// === impl Handed ===

impl fmt::Debug for Handed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, got, body, looks_whole, page, .. } = self;
        write!(f, "answer {number}: {got} of {} bytes, ", body.len())?;
        write!(f, "looks whole: {looks_whole}, page {page:?}")
    }
}

impl Handed<'_> {
    fn events(&self) -> impl Iterator<Item = (&Element<'_>, &Identity)> {
        let all = self.elements.iter().flatten();
        all.filter_map(|(element, identity)| Some((element, identity.as_ref()?)))
    }

    /// What has to become dead letters: the place, where it has one, and the bytes.
    fn dead_letters(&self) -> Vec<(Option<usize>, &[u8])> {
        let Some(elements) = &self.elements else {
            let body = self.body.get(..self.got).unwrap_or_default();
            let is_letter = self.looks_whole && !body.is_empty();
            return if is_letter { vec![(None, body)] } else { Vec::new() };
        };
        let mut letters = Vec::new();
        for (index, (element, identity)) in elements.iter().enumerate() {
            if element.needs <= self.got {
                if identity.is_none() {
                    letters.push((Some(index), element.raw));
                }
            } else if element.from < self.got && self.looks_whole {
                // Nobody can tell that the rest was cut off: it looks like an element that is none.
                letters.push((None, &self.body[element.from..self.got]));
            }
        }
        letters
    }
}

// === impl Verdict ===

impl Verdict {
    /// Adds the numbers of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.repeats += other.repeats;
        self.dead_letters += other.dead_letters;
        self.lost += other.lost;
        self.overwritten.extend(other.overwritten.iter().cloned());
        self.gaps.extend(other.gaps.iter().cloned());
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let Self { published, repeats, dead_letters, lost, overwritten, gaps, faults } = self;
        let (overwritten, gaps) = (overwritten.len(), gaps.len());
        writeln!(
            f,
            "{published} published, {repeats} repeats, {dead_letters} dead letters, {lost} lost, \
             {overwritten} overwritten, {gaps} gaps; {} faults",
            faults.len()
        )?;
        faults.iter().take(SHOWN).try_for_each(|fault| writeln!(f, "    {fault}"))
    }
}
