use bytes::Bytes;

use super::*;
use crate::audit::written::digest;
use crate::model::{Entry, Gap, Region, Wholeness};

const SINCE: Timestamp = Timestamp::from_millis(1_000_000);
const INCARNATION: Incarnation = Incarnation::from_u128(7);

/// A ledger of one partition, and what a bridge would have written about it; whether its next entry is
/// late.
struct Case(Ledger, bool);

fn feed() -> Feed {
    Feed { app: AppId::new("a"), region: Region::new("eu"), endpoint: Endpoint::User }
}

fn id(ticket: u64) -> PageId {
    PageId { incarnation: INCARNATION, ticket: Ticket(ticket) }
}

/// The login of a user, at a second of his own.
fn login(user: u32) -> String {
    format!(
        r#"{{"user_id":"u{user}","type":"Login","ms":{}}}"#,
        1_600_000_000_000_i64 + i64::from(user) * 1_000
    )
}

fn fingerprint(user: u32) -> [u8; 16] {
    let element = login(user);
    let event = event::read(Endpoint::User, element.as_bytes()).unwrap();
    Fingerprint::of(&AppId::new("a"), Endpoint::User, &event).to_bytes()
}

// === impl Case ===

impl Case {
    fn new() -> Self {
        Self(Ledger::new(1, SINCE), false)
    }

    /// A page of the window with these elements, asked for and answered one second after the other.
    fn page(&mut self, ticket: u64, elements: &[String]) -> &mut Self {
        let asked = i64::try_from(ticket).unwrap() * 1_000;
        self.page_of(ticket, asked, asked + 500, elements)
    }

    fn page_of(
        &mut self,
        ticket: u64,
        asked: i64,
        answered: i64,
        elements: &[String],
    ) -> &mut Self {
        let at =
            |millis| SINCE.after(std::time::Duration::from_millis(u64::try_from(millis).unwrap()));
        self.body(
            ticket,
            at(asked),
            at(answered),
            &format!(r#"{{"events":[{}]}}"#, elements.join(",")),
        )
    }

    fn body(
        &mut self,
        ticket: u64,
        asked_at: Timestamp,
        answered_at: Timestamp,
        body: &str,
    ) -> &mut Self {
        let page = Page {
            feed: feed(),
            since: None,
            asked_at,
            answered_at,
            status: 200,
            wholeness: Wholeness::Whole,
            request_id: None,
            resource_id: None,
            content_encoding: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        self.entry(ticket, Content::Page(page))
    }

    /// What comes next was refused by the pages topic for a while.
    fn late(&mut self) -> &mut Self {
        self.1 = true;
        self
    }

    fn entry(&mut self, ticket: u64, content: Content) -> &mut Self {
        let entry = Entry { id: id(ticket), content };
        self.0
            .page(0, &Forwarded { entry, settled: Ticket(ticket.saturating_sub(3)), late: self.1 });
        self
    }

    fn event(&mut self, user: u32, ticket: u64) -> &mut Self {
        self.record(fingerprint(user), ticket, false)
    }

    fn record(&mut self, id_of_event: [u8; 16], ticket: u64, is_replayed: bool) -> &mut Self {
        let known = self.0.events.get(&id_of_event).map_or(0, |event| event.digest);
        self.altered(id_of_event, ticket, is_replayed, known)
    }

    fn altered(
        &mut self,
        id_of_event: [u8; 16],
        ticket: u64,
        is_replayed: bool,
        digest: u64,
    ) -> &mut Self {
        self.0.event(&Published {
            digest,
            endpoint: Endpoint::User,
            partition: 0,
            offset: 0,
            app: Some(AppId::new("a")),
            id: Some(id_of_event),
            page: Some(id(ticket)),
            is_replayed,
        });
        self
    }

    fn letter(&mut self, ticket: u64, index: Option<&str>) -> &mut Self {
        let letter = Letter { app: AppId::new("a"), page: Some(id(ticket)) };
        self.0.dead_letter(&letter, index.map(str::as_bytes));
        self
    }

    fn gap_record(&mut self, ticket: u64) -> &mut Self {
        let letter = Letter { app: AppId::new("a"), page: Some(id(ticket)) };
        self.0.gap(&letter, br#"{"cause":"overflow","at_least":1,"at_most":null}"#);
        self
    }

    fn gap(&mut self, ticket: u64) -> &mut Self {
        self.entry(
            ticket,
            Content::Gap(Gap {
                feed: feed(),
                cause: GapCause::Overflow,
                from: None,
                to: SINCE,
                at_least: 1,
                at_most: None,
            }),
        )
    }

    /// The counts, and the faults with their numbers.
    fn judged(&mut self) -> (Counts, Vec<(AuditFault, u64)>) {
        let (accounts, _) = self.0.close();
        let mut counts = Counts::default();
        accounts.iter().for_each(|account| counts.add(account.counts));
        let faults = self.0.faults.0.iter().map(|(fault, (count, _))| (*fault, *count)).collect();
        (counts, faults)
    }

    #[track_caller]
    fn assert_faults(&mut self, expected: &[(AuditFault, u64)]) {
        assert_eq!(self.judged().1, expected, "{:?}", self.0.faults);
    }
}

#[test]
fn what_is_delivered_once_and_in_order_balances() {
    let mut case = Case::new();
    case.letter(2, Some("1")).gap_record(3);
    case.page(1, &[login(1), login(2)]).page(2, &[login(2), "17".to_owned(), login(3)]).gap(3);
    case.event(1, 1).event(2, 1).event(3, 2);
    let (counts, faults) = case.judged();
    assert_eq!(faults, []);
    let expected =
        Counts { received: 5, delivered: 3, repeats: 1, dead_letters: 1, ..Counts::default() };
    assert_eq!(counts, expected);
}

#[test]
fn each_way_to_be_wrong_is_found() {
    let two = [login(1), login(2)];
    Case::new().page(1, &two).event(1, 1).assert_faults(&[(AuditFault::Missing, 1)]);
    Case::new()
        .page(1, &two)
        .event(1, 1)
        .event(2, 1)
        .event(1, 1)
        .assert_faults(&[(AuditFault::Twice, 1)]);
    // Also where no page of the window had it.
    Case::new().event(1, 9).event(1, 8).assert_faults(&[(AuditFault::Twice, 1)]);
    Case::new()
        .page(1, &two)
        .event(1, 1)
        .event(2, 1)
        .event(3, 1)
        .assert_faults(&[(AuditFault::Unknown, 1)]);
    Case::new().page(1, &two).event(2, 1).event(1, 1).assert_faults(&[(AuditFault::OutOfOrder, 1)]);
    Case::new()
        .page(1, &two[..1])
        .page(2, &two[1..])
        .event(2, 2)
        .event(1, 1)
        .assert_faults(&[(AuditFault::OutOfOrder, 1)]);
    let other = ["17".to_owned()];
    Case::new().page(1, &other).assert_faults(&[(AuditFault::Missing, 1)]);
    Case::new()
        .letter(1, Some("0"))
        .letter(1, Some("0"))
        .page(1, &other)
        .assert_faults(&[(AuditFault::Twice, 1)]);
    Case::new()
        .letter(1, Some("0"))
        .letter(1, Some("1"))
        .page(1, &other)
        .assert_faults(&[(AuditFault::Unknown, 1)]);
    Case::new().gap(1).assert_faults(&[(AuditFault::Missing, 1)]);
    Case::new().gap_record(1).gap_record(1).gap(1).assert_faults(&[(AuditFault::Twice, 1)]);
}

#[test]
fn pages_have_to_stand_in_the_order_of_asking_only_where_they_did_not_overlap() {
    for (second, faults) in [
        ((6_000, 9_000), 0),
        ((4_000, 9_000), 0),
        ((1_000, 9_000), 0),
        ((0, 900), 1),
        ((0, 1_500), 0),
    ] {
        for (ticket, faults) in [(1, faults), (3, 0)] {
            let mut case = Case::new();
            case.page_of(2, 2_000, 5_000, &[]).page_of(ticket, second.0, second.1, &[]);
            let found: u64 = case.judged().1.iter().map(|(_, count)| count).sum();
            // A clock that was set back makes a page no younger: its ticket is what counts.
            assert_eq!(found, faults, "{ticket}: {second:?}");
        }
    }
}

#[test]
fn a_page_that_was_refused_for_a_while_may_stand_anywhere() {
    let mut case = Case::new();
    case.page(2, &[]).late().page(1, &[]).assert_faults(&[]);
    assert_eq!(case.0.tally.pages_late, 1);
}

#[test]
fn what_repeats_an_event_of_before_the_window_was_delivered_earlier() {
    let mut case = Case::new();
    case.page(5, &[login(1), login(2)]).event(1, 1).event(2, 5);
    let (counts, faults) = case.judged();
    assert_eq!(faults, []);
    assert_eq!((counts.delivered_earlier, counts.delivered), (1, 1));
}

#[test]
fn what_its_topic_may_have_lost_is_not_provable() {
    let check = |look: &dyn Fn(&mut Case), not_provable, missing| {
        let mut case = Case::new();
        case.page(5, &[login(1), login(2)]).page(6, &[login(3)]).page(7, &[login(4)]);
        look(&mut case);
        let (counts, faults) = case.judged();
        assert_eq!((counts.not_provable, counts.missing), (not_provable, missing));
        assert_eq!(faults.is_empty(), missing == 0);
    };
    // Nothing is there, and nothing was deleted.
    check(&|_| (), 0, 4);
    // All of it was deleted.
    check(&|case| case.0.is_cut(Endpoint::User, 0), 4, 0);
    check(&|case| case.0.is_cut(Endpoint::Channel, 0), 0, 4);
    // The first that is left is of the second page, of before the window, or of nobody knows where.
    let first = |ticket| {
        move |case: &mut Case| {
            case.0.is_cut(Endpoint::User, 0);
            case.event(if ticket == 6 { 3 } else { 9 }, ticket);
        }
    };
    check(&first(6), 2, 1);
    check(&first(4), 0, 4);
    check(&first(9), 4, 0);
    // Its time is older than what was looked for.
    let old = Timestamp::from_millis(1_600_000_002_000);
    check(&|case| case.0.looked_from = old, 1, 3);
    // A dead letter might tell that it was set aside.
    check(&|case| case.0.letters_lack = Lack::Cut, 4, 0);
    check(&|case| case.0.letters_lack = Lack::Emptied, 0, 4);
}

#[test]
fn letters_and_gaps_that_may_be_deleted_are_not_provable() {
    for lack in [Lack::Cut, Lack::Emptied] {
        let mut case = Case::new();
        case.0.letters_lack = lack;
        case.page(1, &["17".to_owned()]);
        assert_eq!((case.judged().0.not_provable, case.judged().1), (1, vec![]));
        let mut case = Case::new();
        case.0.gaps_lack = lack;
        case.gap(1).assert_faults(&[]);
        assert_eq!(case.0.not_covered.get(&Uncovered::Gaps), Some(&1));
    }
}

#[test]
fn a_page_that_was_forwarded_again_and_what_was_replayed_are_no_faults() {
    let mut case = Case::new();
    case.page(1, &[login(1)]).page(1, &[login(1)]);
    case.event(1, 1).record(fingerprint(1), 1, true);
    case.assert_faults(&[]);
    assert_eq!((case.0.tally.pages_again, case.0.tally.replayed), (1, 1));
    // Its ticket had its end when a later page was forwarded: it stood before the window.
    let mut case = Case::new();
    case.page(9, &[login(2)]).page(4, &[login(1), login(3)]).page(10, &[login(1), login(4)]);
    case.event(1, 4).event(3, 2).event(2, 9).event(4, 10);
    case.assert_faults(&[]);
    assert_eq!((case.0.tally.pages_again, case.0.page_count()), (1, 2));
    // A page of the window that repeats what it brought.
    let mut case = Case::new();
    case.page(9, &[login(1)]).page(4, &[login(1)]).event(1, 4).assert_faults(&[]);
    // That the publisher would take it for delivered does not prove that it was.
    Case::new().page(9, &[]).page(4, &[login(1)]).assert_faults(&[(AuditFault::Missing, 1)]);
}

#[test]
fn an_event_or_a_page_that_was_set_aside_is_not_missing() {
    let mut case = Case::new();
    case.letter(1, Some("1")).letter(2, None);
    case.page(1, &[login(1), login(2)]).page(2, &[login(3), login(4)]).event(1, 1);
    let (counts, faults) = case.judged();
    assert_eq!(faults, []);
    assert_eq!((counts.delivered, counts.set_aside), (1, 3));
}

#[test]
fn what_came_before_the_window_need_not_have_its_dead_letters_in_it() {
    let mut case = Case::new();
    let before = Timestamp::from_millis(5);
    case.body(1, before, before, r#"{"events":[17]}"#);
    let (counts, faults) = case.judged();
    assert_eq!((counts.not_provable, faults), (1, vec![]));
}

#[test]
fn a_body_that_broke_off_has_a_gap() {
    let torn = format!(r#"{{"events":[{},"#, login(1));
    let mut case = Case::new();
    case.body(1, SINCE, SINCE, &torn).event(1, 1);
    case.assert_faults(&[(AuditFault::Missing, 1)]);
}

#[test]
fn of_three_events_one_is_removed_doubled_swapped_and_altered() {
    let three = [login(1), login(2), login(3)];
    let case = || {
        let mut case = Case::new();
        case.page(1, &three);
        case
    };
    case().event(1, 1).event(2, 1).event(3, 1).assert_faults(&[]);
    case().event(1, 1).event(3, 1).assert_faults(&[(AuditFault::Missing, 1)]);
    case().event(1, 1).event(2, 1).event(2, 1).event(3, 1).assert_faults(&[(AuditFault::Twice, 1)]);
    case().event(2, 1).event(1, 1).event(3, 1).assert_faults(&[(AuditFault::OutOfOrder, 1)]);
    let other = digest(b"u2", b"{}");
    case()
        .event(1, 1)
        .altered(fingerprint(2), 1, false, other)
        .event(3, 1)
        .assert_faults(&[(AuditFault::Altered, 1)]);
}

#[test]
fn the_record_that_a_page_makes_is_known_byte_for_byte() {
    let mut case = Case::new();
    case.page(1, &[login(1)]);
    let value = r#"{"app_id":"a","endpoint":"user_events","type":"Login","user_id":"u1","ms":1600000001000}"#;
    assert_eq!(case.0.events[&fingerprint(1)].digest, digest(b"u1", value.as_bytes()));
}

#[test]
fn pages_that_are_gone_are_a_fault_unless_a_gap_tells_of_them() {
    let lost = |told: Option<Range<i64>>, look: &dyn Fn(&mut Ledger)| {
        let mut case = Case::new();
        if let Some(told) = told {
            case.0.lost_pages(0, told);
        }
        look(&mut case.0);
        !case.judged().1.is_empty()
    };
    let position = |ledger: &mut Ledger| ledger.begins(0, &(40..50), 45, Some(30), None);
    let jump = |ledger: &mut Ledger| {
        ledger.begins(0, &(0..50), 30, Some(50), None);
        ledger.offset(0, 40);
    };
    let end = |ledger: &mut Ledger| {
        ledger.begins(0, &(0..40), 30, Some(40), None);
        ledger.ends(0, 40);
    };
    for look in [&position as &dyn Fn(&mut Ledger), &jump, &end] {
        assert!(lost(None, look));
        assert!(lost(Some(30..39), look));
        assert!(!lost(Some(30..40), look));
    }
    let dense = |ledger: &mut Ledger| {
        ledger.begins(0, &(0..50), 30, Some(50), None);
        (30..50).for_each(|offset| ledger.offset(0, offset));
        ledger.ends(0, 50);
    };
    assert!(!lost(None, &dense));
}

#[test]
fn a_window_that_begins_before_the_topic_is_not_covered() {
    let of_window = Some(SINCE);
    let of_before = Some(SINCE.before(std::time::Duration::from_secs(1)));
    for (all, start, position, answered, covered) in [
        (0..50, 0, Some(50), of_window, true),
        (40..50, 45, Some(50), of_window, true),
        (40..50, 40, Some(50), of_window, false),
        // Nothing was ever forwarded.
        (0..0, 0, None, None, true),
        // All of its pages are deleted.
        (50..50, 50, Some(50), of_window, false),
        (50..50, 50, Some(50), of_before, true),
        // The topic was deleted and created again.
        (0..3, 0, Some(50), of_window, false),
        (0..0, 0, Some(50), of_before, false),
        // The memory is gone.
        (0..50, 0, None, None, false),
    ] {
        let mut case = Case::new();
        case.0.begins(0, &all, start, position, answered);
        assert_eq!(case.0.not_covered.is_empty(), covered, "{all:?} {position:?}");
    }
}

#[test]
fn a_record_that_can_not_be_read_is_not_covered() {
    let mut case = Case::new();
    case.0.unreadable_page();
    case.assert_faults(&[]);
    assert_eq!(case.0.not_covered.get(&Uncovered::UnreadablePages), Some(&1));
}

#[test]
fn a_torn_and_a_blank_body_have_gaps() {
    for body in [r#"{"events":["#, r#"{"result":"#, "", " \n "] {
        let mut case = Case::new();
        case.letter(1, None).body(1, SINCE, SINCE, body);
        let faults = case.judged().1;
        assert!(faults.contains(&(AuditFault::Missing, 1)), "{body:?}: {faults:?}");
    }
}
