use proptest::prelude::*;

use super::*;

fn page(incarnation: u128, ticket: u64) -> PageId {
    PageId { incarnation: Incarnation::from_u128(incarnation), ticket: Ticket(ticket) }
}

fn event(n: u128) -> Fingerprint {
    Fingerprint::from_bytes(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// A record of the state topic; without a value it is a tombstone.
type StateRecord = (Vec<u8>, Option<Vec<u8>>);

fn fresh() -> Memory {
    Recall::default().finish().unwrap()
}

fn recalled(
    mut recall: Recall,
    records: impl IntoIterator<Item = StateRecord>,
) -> Result<Memory, BadMemory> {
    for (key, value) in records {
        recall.take(&key, value.as_deref());
    }
    recall.finish()
}

fn restored(records: impl IntoIterator<Item = StateRecord>) -> Memory {
    recalled(Recall::default(), records).unwrap()
}

fn written(memory: &mut Memory) -> Vec<StateRecord> {
    let mut batch = Batch::default();
    memory.write_changes(0, &mut batch);
    batch.iter().map(|record| (record.key().to_vec(), record.value().map(<[u8]>::to_vec))).collect()
}

#[test]
fn a_page_is_admitted_once() {
    let mut memory = fresh();
    assert!(memory.admit(page(1, 3), Ticket(1), 0));
    assert!(!memory.admit(page(1, 3), Ticket(1), 1));
    assert!(memory.admit(page(1, 2), Ticket(1), 2), "overtaken, not delivered");
    assert!(memory.admit(page(1, 4), Ticket(3), 3));
    assert!(!memory.admit(page(1, 2), Ticket(1), 4), "settled");
    assert!(memory.admit(page(2, 3), Ticket(0), 5), "another journal");
}

#[test]
fn what_was_written_is_known_to_the_next_owner() {
    let app = AppId::new("a/1");
    let mut memory = fresh();
    assert_eq!(memory.position(), None);
    assert!(memory.admit(page(1, 3), Ticket(1), 40));
    memory.advance(40, Some(page(1, 3)));
    assert_eq!(memory.sign("group"), None);
    for n in 0..1_000 {
        let window = memory.window(&app, Endpoint::Channel);
        window.insert(event(n), Timestamp::from_millis(9));
    }
    let mut records = written(&mut memory);
    assert!(memory.admit(page(1, 5), Ticket(4), 41));
    memory.advance(41, Some(page(1, 5)));
    let later = written(&mut memory);
    assert_eq!(later.len(), 2, "unchanged blocks are not written again");
    records.extend(later);

    let mut next = restored(records);
    assert_eq!((next.position(), next.last_page()), (Some(42), Some(page(1, 5))));
    assert_eq!(next.sign("group"), None);
    assert_eq!(next.sign("another"), Some("group".to_owned()));
    assert!(!next.admit(page(1, 3), Ticket(4), 42));
    assert!(!next.admit(page(1, 5), Ticket(4), 43));
    assert!(next.admit(page(1, 6), Ticket(4), 44));
    let window = next.window(&app, Endpoint::Channel);
    assert!((0..1_000).all(|n| window.contains(event(n))));
    assert_eq!(window.len(), 1_000);
}

/// A record of a version that was written once is read for ever: a new version adds a file.
#[test]
fn version_1_is_read() {
    #[derive(Deserialize)]
    struct Kept {
        key: String,
        value: String,
    }
    let kept = include_str!("../../tests/fixtures/memory-version-1.json");
    let kept: Vec<Kept> = serde_json::from_str(kept).unwrap();
    let records = kept.into_iter().map(|Kept { key, value }| {
        let byte = |at: usize| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
        let value = (0..value.len()).step_by(2).map(byte).collect();
        (key.into_bytes(), Some(value))
    });
    let mut memory = restored(records);
    assert_eq!((memory.position(), memory.last_page()), (Some(42), Some(page(0x1f, 5))));
    assert!(!memory.admit(page(0x1f, 5), Ticket(3), 42));
    assert!(memory.admit(page(0x1f, 4), Ticket(3), 43));
    let window = memory.window(&AppId::new("a1"), Endpoint::User);
    let known = 0xf107_2b06_9b8d_79b9_cc26_8173_ffe9_7bc6_u128;
    assert!(window.contains(Fingerprint::from_bytes(known.to_be_bytes())));
    assert_eq!(window.len(), 2);

    // As it was before the page and the group stood in it.
    let early = (b"position".to_vec(), Some(br#"{"version":1,"next_offset":42}"#.to_vec()));
    let memory = restored([early]);
    assert_eq!((memory.position(), memory.last_page()), (Some(42), None));
}

#[test]
fn journals_beyond_a_bound_are_forgotten_oldest_first() {
    let mut memory = fresh();
    let mut records = Vec::new();
    for n in 0..=INCARNATIONS {
        let offset = i64::try_from(n).unwrap();
        memory.admit(page(n as u128 + 1, 1), Ticket(0), offset);
        records.extend(written(&mut memory));
    }
    let next = restored(records);
    assert_eq!(next.tickets.len(), INCARNATIONS);
    assert!(!next.tickets.contains_key(&Incarnation::from_u128(1)));
}

#[test]
fn what_it_can_not_read_is_refused_by_name() {
    let record = |key: &str, value: &[u8]| (key.as_bytes().to_vec(), Some(value.to_vec()));
    let newer = |key: &str| BadMemory::Newer { key: key.to_owned(), version: 2 };
    let unreadable = |key: &str| BadMemory::Unreadable { key: key.to_owned() };
    let block = "window/a/user_events/0";
    for (record, expected) in [
        (record("position", br#"{"version":2}"#), newer("position")),
        (record("position", b"{"), unreadable("position")),
        (record(block, &[2]), newer(block)),
        (record(block, &[1, 0]), unreadable(block)),
        (record(block, &[1; 18]), unreadable(block)),
        (record(block, &[1; 17 + 257 * 16]), unreadable(block)),
        (record("else", b""), unreadable("else")),
    ] {
        let key = record.0.clone();
        let refused = recalled(Recall::default(), [record.clone()]);
        assert_eq!(refused.unwrap_err(), expected);
        restored([record, (key, None)]);
    }
}

/// The topic is compacted, so its size is that of the last record of each key.
#[test]
fn an_hour_of_traffic_needs_no_more_keys_than_the_window_has_blocks() {
    let app = AppId::new("a");
    // Events a second, transactions a second, and the most keys: 8,192 events, or those of 30 s
    // as far as they are held, and a block that is begun.
    let cases: [(u32, u32, usize); 4] =
        [(1, 1, 33), (100, 1, 33), (3_000, 3, 353), (9_000, 9, 513)];
    for (rate, transactions, most) in cases {
        let mut memory = fresh();
        let mut sizes: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut next = 0;
        for transaction in 0..3_600 * transactions {
            let now = Timestamp::from_millis(i64::from(transaction * 1_000 / transactions));
            let window = memory.window(&app, Endpoint::User);
            for _ in 0..rate / transactions {
                window.insert(event(next), now);
                next += 1;
            }
            let mut batch = Batch::default();
            memory.write_changes(0, &mut batch);
            for record in batch.iter() {
                let size = record.value().unwrap_or_default().len();
                sizes.insert(record.key().to_vec(), size);
            }
        }
        let keys = sizes.len() - 1;
        let least = next.min(8_192) / 256;
        assert!((least..=most as u128).contains(&(keys as u128)), "{keys} keys at {rate}/s");
        assert!(sizes.values().all(|size| *size <= 17 + 256 * 16), "a block is 4 KiB");
    }
}

proptest! {
    #[test]
    fn record_by_record_is_as_the_last_of_each_key(
        steps in prop::collection::vec((0_usize..9, 0_u64..40, any::<bool>()), 0..200),
    ) {
        let key = |key: usize| match key {
            0 => "position".to_owned(),
            1 | 2 => format!("tickets/{}", Incarnation::from_u128(key as u128)),
            3 => "strange".to_owned(),
            slot => format!("window/a/user_events/{}", slot - 4),
        };
        let value = |key: usize, n: u64| match key {
            0 => format!(r#"{{"version":1,"next_offset":{n}}}"#).into_bytes(),
            1 | 2 => {
                let head = r#"{"version":1,"above":[],"last_offset":1,"settled":"#;
                format!("{head}{n}}}").into_bytes()
            }
            3 => vec![0],
            slot => {
                let first = slot as u128 * 1_000 + u128::from(n);
                let events = (first..first + u128::from(n)).map(event).collect();
                let mut bytes = Vec::new();
                let newest = Timestamp::default();
                write_block(&mut bytes, &Block { slot: 0, sequence: n, newest, events });
                bytes
            }
        };
        let records: Vec<StateRecord> = steps.into_iter().map(|(at, n, is_there)| {
            (key(at).into_bytes(), is_there.then(|| value(at, n)))
        }).collect();
        let last: BTreeMap<_, _> = records.iter().cloned().collect();
        let one = recalled(Recall::default(), records);
        let other = recalled(Recall::default(), last);
        let (mut one, mut other) = match (one, other) {
            (Ok(one), Ok(other)) => (one, other),
            (one, other) => {
                prop_assert_eq!(one.err(), other.err());
                return Ok(());
            }
        };
        prop_assert_eq!(one.position(), other.position());
        prop_assert_eq!(format!("{:?}", one.tickets), format!("{:?}", other.tickets));
        let app = AppId::new("a");
        let one = one.window(&app, Endpoint::User);
        let other = other.window(&app, Endpoint::User);
        prop_assert_eq!(one.len(), other.len());
        for n in 0..10_000 {
            prop_assert_eq!(one.contains(event(n)), other.contains(event(n)));
        }
        prop_assert_eq!(one.insert(event(10_000), Timestamp::default()), true);
        other.insert(event(10_000), Timestamp::default());
        let changed = |window: &mut Window| {
            let mut changed = Vec::new();
            window.write_changes(|it| changed.push((it.slot, it.sequence, it.events.clone())));
            changed
        };
        prop_assert_eq!(changed(one), changed(other));
    }
}

/// The running journal is the one whose pages come now, wherever the offsets begin.
#[test]
fn a_pages_topic_that_was_made_again_does_not_make_the_running_journal_the_oldest() {
    let mut memory = fresh();
    for n in 0..INCARNATIONS {
        let offset = 1_000 + i64::try_from(n).unwrap();
        memory.admit(page(n as u128 + 1, 1), Ticket(0), offset);
    }
    let running = INCARNATIONS as u128;
    memory.begin_at(0);
    assert!(memory.admit(page(running, 2), Ticket(0), 0));
    let mut memory = restored(written(&mut memory));
    for (other, offset) in [(1_000, 1), (1_001, 2)] {
        assert!(memory.admit(page(other, 1), Ticket(0), offset), "a journal that was just opened");
        assert!(!memory.admit(page(other, 1), Ticket(0), offset), "it is known");
    }
    assert!(!memory.admit(page(running, 2), Ticket(0), 3), "the running journal is known");
    assert!(!memory.tickets.contains_key(&Incarnation::from_u128(1)), "the oldest is forgotten");
}

#[test]
fn an_older_version_ignores_what_was_added_and_what_it_wrote_is_read() {
    let mut memory = fresh();
    memory.advance(4, None);
    memory.note_answer(Timestamp::from_millis(77));
    let records = written(&mut memory);
    assert_eq!(restored(records.clone()).last_answer(), Some(Timestamp::from_millis(77)));
    let claim = (CLAIM.as_bytes().to_vec(), Some(b"anything".to_vec()));
    assert_eq!(restored(records.into_iter().chain([claim])).position(), Some(5));
}
