use proptest::prelude::*;

use super::*;
use crate::model::Incarnation;

const FASTEST: Duration = ms(40);
const LONGEST: Duration = ms(19_000);

/// No page.
const NONE: [u64; 0] = [];

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn times((first, last): (i64, i64)) -> Option<PageTimes> {
    Some((Timestamp::from_millis(first), Timestamp::from_millis(last)))
}

/// An order under test, and the instant from which times in milliseconds count.
struct Bench {
    order: Order<u64>,
    origin: Instant,
}

impl Bench {
    fn sent(at: &[u64]) -> Self {
        let mut bench = Self { order: Order::new(LONGEST), origin: Instant::now() };
        for (ticket, at) in (1..).zip(at) {
            bench.order.begin(Ticket(ticket), bench.origin + ms(*at), 0);
        }
        bench
    }

    fn arrived(&mut self, ticket: u64, at: u64) -> Turn {
        self.order.arrived(Ticket(ticket), self.origin + ms(at), FASTEST)
    }

    fn held(&mut self, ticket: u64, times: Option<PageTimes>) -> Vec<u64> {
        self.order.settled(Ticket(ticket), Ended::Held { held: ticket, times })
    }

    fn done(&mut self, ticket: u64) -> Vec<u64> {
        self.order.settled(Ticket(ticket), Ended::Done)
    }
}

#[test]
fn on_a_way_that_never_varies_no_page_is_held() {
    let mut bench = Bench::sent(&[0, 10, 20]);
    for (ticket, head_at) in [(1, 40), (2, 50), (3, 60)] {
        assert_eq!(bench.arrived(ticket, head_at), Turn::Now);
        assert_eq!(bench.done(ticket), NONE);
    }
}

#[test]
fn a_page_waits_for_a_lower_ticket_until_that_is_settled_with_or_without_a_page() {
    let mut bench = Bench::sent(&[0, 10]);
    assert_eq!(bench.arrived(2, 50), Turn::Later);
    assert_eq!(bench.held(2, times((1, 2))), NONE);
    assert_eq!(bench.done(1), [2]);
}

#[test]
fn a_page_that_is_being_committed_is_waited_for() {
    let mut bench = Bench::sent(&[0, 10]);
    assert_eq!(bench.arrived(1, 40), Turn::Now);
    assert_eq!(bench.arrived(2, 50), Turn::Later);
    assert_eq!(bench.held(2, None), NONE);
    assert_eq!(bench.done(1), [2]);
}

#[test]
fn two_ambiguous_pages_are_in_the_order_of_their_times_or_else_of_their_tickets() {
    let cases = [
        ("the other way round", times((50, 60)), times((10, 20)), [2, 1]),
        ("as the tickets", times((10, 20)), times((50, 60)), [1, 2]),
        ("they touch", times((20, 60)), times((10, 20)), [2, 1]),
        ("one moment in both", times((20, 20)), times((20, 20)), [1, 2]),
        ("they overlap", times((15, 60)), times((10, 20)), [1, 2]),
        ("one backwards", times((60, 50)), times((10, 20)), [1, 2]),
        ("one without times", None, times((10, 20)), [1, 2]),
    ];
    for (case, first, second, expected) in cases {
        let mut bench = Bench::sent(&[0, 10]);
        assert_eq!(bench.arrived(2, 60), Turn::Later, "{case}");
        assert_eq!(bench.held(2, second), NONE, "{case}");
        assert_eq!(bench.arrived(1, 90), Turn::Later, "{case}");
        assert_eq!(bench.held(1, first), expected, "{case}");
    }
}

#[test]
fn times_do_not_overrule_what_is_certain() {
    // 1 arrived before 3 was sent; 2 may have arrived at any time.
    let mut bench = Bench::sent(&[0, 1, 30]);
    assert_eq!(bench.arrived(1, 45), Turn::Later);
    assert_eq!(bench.held(1, times((30, 40))), NONE);
    assert_eq!(bench.arrived(3, 80), Turn::Later);
    assert_eq!(bench.held(3, times((10, 20))), NONE);
    assert_eq!(bench.arrived(2, 90), Turn::Later);
    assert_eq!(bench.held(2, times((50, 60))), [1, 2, 3]);
}

#[test]
fn a_page_goes_with_the_one_that_it_precedes() {
    // 1 and 2 are ambiguous, and so are 1 and 3; 2 arrived before 3 was sent.
    let mut bench = Bench::sent(&[0, 0, 60]);
    assert_eq!(bench.arrived(2, 90), Turn::Later);
    assert_eq!(bench.held(2, times((30, 40))), NONE);
    assert_eq!(bench.arrived(1, 130), Turn::Later);
    assert_eq!(bench.held(1, times((10, 20))), [1, 2], "3 may only have come later");
}

#[test]
fn a_page_is_given_up_after_the_longest_wait_with_what_precedes_it() {
    let mut bench = Bench::sent(&[0, 10, 20, 300]);
    let origin = bench.origin;
    assert_eq!(bench.order.overdue(), None);
    assert_eq!(bench.arrived(2, 100), Turn::Later);
    assert_eq!(bench.held(2, times((30, 40))), NONE);
    assert_eq!(bench.arrived(3, 200), Turn::Later);
    assert_eq!(bench.held(3, times((10, 20))), NONE);
    assert_eq!(bench.arrived(4, 400), Turn::Later);
    assert_eq!(bench.held(4, times((50, 60))), NONE);
    let due = origin + ms(100) + LONGEST + SETTLE_MARGIN;
    assert_eq!(bench.order.overdue(), Some(due));
    assert_eq!(bench.order.give_up(due - ms(1)), NONE);
    assert_eq!(bench.order.give_up(due), [3, 2]);
    assert_eq!(bench.order.overdue(), Some(due + ms(300)));
    assert_eq!(bench.done(1), [4]);
}

#[test]
fn what_a_former_process_held_is_in_the_order_of_times_or_else_of_tickets() {
    let id = |incarnation, ticket| PageId {
        incarnation: Incarnation::from_u128(incarnation),
        ticket: Ticket(ticket),
    };
    let pages = vec![
        (id(9, 3), times((10, 20)), "oldest, by its times"),
        (id(9, 2), times((50, 60)), "youngest of the first process"),
        (id(4, 8), None, "higher ticket"),
        (id(4, 7), times((70, 80)), "lower ticket"),
    ];
    let expected =
        ["oldest, by its times", "youngest of the first process", "lower ticket", "higher ticket"];
    assert_eq!(recovered(pages), expected);
}

/// What happens to one request, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct RequestFate {
    /// Since the previous one.
    sent: u64,
    there: u64,
    back: u64,
    commit: u64,
    brings: Brings,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Brings {
    Page,
    PageWithoutTimes,
    Nothing,
    /// It ends without an answer.
    Failure,
    /// It never ends.
    Silence,
}

/// The events of a request. The variants are in the order in which simultaneous ones happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Head,
    Begin,
    Settle,
}

fn fates(brings: impl Strategy<Value = Brings> + Clone) -> impl Strategy<Value = Vec<RequestFate>> {
    let way = || prop_oneof![Just(20_u64), 20..40_u64, 20..300_u64];
    let fate = (0..80_u64, way(), way(), 0..30_u64, brings).prop_map(
        |(sent, there, back, commit, brings)| RequestFate { sent, there, back, commit, brings },
    );
    prop::collection::vec(fate, 1..12)
}

// === impl Fate ===

impl RequestFate {
    fn is_page(&self) -> bool {
        matches!(self.brings, Brings::Page | Brings::PageWithoutTimes)
    }
}

/// A run of several requests, in milliseconds; the ticket of each is its index plus one.
struct TestRun {
    bench: Bench,
    fates: Vec<RequestFate>,
    sent: Vec<u64>,
    /// Tickets with a page, in order of arrival.
    handed_over: Vec<u64>,
    out: Vec<u64>,
    turns: BTreeMap<u64, Turn>,
    /// Tickets, with the latest possible arrival of each, shifted to the time of sending.
    held: Vec<(u64, u64)>,
    published: Vec<u64>,
    given_up: usize,
}

// === impl Course ===

impl TestRun {
    /// Runs all requests to their end.
    fn run(fates: Vec<RequestFate>) -> Self {
        let sent: Vec<u64> = fates
            .iter()
            .scan(0, |clock, fate| {
                *clock += fate.sent;
                Some(*clock)
            })
            .collect();
        let mut arrivals: Vec<_> = (1..)
            .zip(sent.iter().zip(&fates))
            .filter(|(_, (_, fate))| fate.is_page())
            .map(|(ticket, (sent, fate))| (sent + fate.there, ticket))
            .collect();
        // Of those that arrive at the same time, the last is served first.
        arrivals.sort_by_key(|(arrival, ticket)| (*arrival, u64::MAX - ticket));
        let mut course = Self {
            bench: Bench::sent(&[]),
            fates,
            sent,
            handed_over: arrivals.into_iter().map(|(_, ticket)| ticket).collect(),
            out: Vec::new(),
            turns: BTreeMap::new(),
            held: Vec::new(),
            published: Vec::new(),
            given_up: 0,
        };
        for (at, step, ticket) in course.steps() {
            match step {
                Step::Begin => {
                    course.bench.order.begin(Ticket(ticket), course.bench.origin + ms(at), 0);
                    course.out.push(ticket);
                }
                Step::Head => course.head(ticket, at),
                Step::Settle => course.settle(ticket),
            }
        }
        course.give_up();
        course
    }

    fn steps(&self) -> Vec<(u64, Step, u64)> {
        let mut steps = Vec::new();
        for (ticket, (sent, fate)) in (1..).zip(self.sent.iter().zip(&self.fates)) {
            let head = sent + fate.there + fate.back;
            steps.push((*sent, Step::Begin, ticket));
            if fate.brings != Brings::Silence {
                steps.push((head + fate.commit, Step::Settle, ticket));
                if fate.brings != Brings::Failure {
                    steps.push((head, Step::Head, ticket));
                }
            }
        }
        steps.sort_unstable();
        steps
    }

    fn fate(&self, ticket: u64) -> (u64, RequestFate) {
        let index = usize::try_from(ticket - 1).unwrap();
        (self.sent[index], self.fates[index])
    }

    /// A page must wait exactly if another may have arrived before it.
    fn head(&mut self, ticket: u64, at: u64) {
        let turn = self.bench.arrived(ticket, at);
        let latest = at - 40;
        let mut others = self.out.iter().chain(self.held.iter().map(|(other, _)| other));
        let certain = others.all(|other| *other == ticket || self.fate(*other).0 > latest);
        assert_eq!(turn == Turn::Now, certain, "ticket {ticket}");
        self.turns.insert(ticket, turn);
        if turn == Turn::Later && self.fate(ticket).1.is_page() {
            self.held.push((ticket, latest));
        }
    }

    fn settle(&mut self, ticket: u64) {
        self.out.retain(|other| *other != ticket);
        let (_, fate) = self.fate(ticket);
        let released = match self.turns.get(&ticket) {
            Some(Turn::Later) if fate.is_page() => {
                let place = self.handed_over.iter().position(|it| *it == ticket).unwrap();
                let first = 10 * i64::try_from(place).unwrap();
                let known = fate.brings == Brings::Page;
                self.bench.held(ticket, times((first, first + 10)).filter(|_| known))
            }
            turn => {
                // It became visible at once.
                self.published.extend(turn.filter(|_| fate.is_page()).map(|_| ticket));
                self.bench.done(ticket)
            }
        };
        self.held.retain(|(ticket, _)| !released.contains(ticket));
        self.published.extend(released);
        for (ticket, latest) in &self.held {
            let reason = self.out.iter().any(|other| self.fate(*other).0 <= *latest);
            assert!(reason, "ticket {ticket} is held although nothing can precede it");
        }
    }

    fn give_up(&mut self) {
        while let Some(due) = self.bench.order.overdue() {
            let released = self.bench.order.give_up(due);
            assert!(!released.is_empty(), "overdue but not released");
            self.given_up += released.len();
            self.published.extend(released);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn pages_are_published_in_the_order_in_which_they_were_handed_over(
        fates in fates(prop_oneof![
            4 => Just(Brings::Page), 1 => Just(Brings::Nothing), 1 => Just(Brings::Failure)
        ])
    ) {
        let run = TestRun::run(fates);
        prop_assert_eq!(run.given_up, 0);
        prop_assert_eq!(run.published, run.handed_over);
    }

    #[test]
    fn each_page_is_published_once_whatever_becomes_of_the_others(
        fates in fates(prop_oneof![
            3 => Just(Brings::Page), 2 => Just(Brings::PageWithoutTimes),
            1 => Just(Brings::Nothing), 1 => Just(Brings::Failure), 1 => Just(Brings::Silence)
        ])
    ) {
        let silent = fates.iter().any(|it| it.brings == Brings::Silence);
        let mut run = TestRun::run(fates);
        run.published.sort_unstable();
        run.handed_over.sort_unstable();
        prop_assert_eq!(run.published, run.handed_over);
        prop_assert!(silent || run.given_up == 0);
    }
}
