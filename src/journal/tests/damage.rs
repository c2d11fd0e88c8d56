//! Damage to the files of a journal, and what survives it.

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::*;
use crate::journal::files;

/// A data directory as a kill leaves it.
struct Remains {
    directory: TempDir,
}

/// What the next process finds.
struct Found {
    recovered: Recovered,
    /// Causes of the gaps.
    gaps: Vec<String>,
    /// Replaced files that are kept.
    kept: Vec<PathBuf>,
}

/// Number of pages in the tests; each is longer than a page of the database.
const PAGES: usize = 12;

fn body(page: usize) -> String {
    format!("{page:02} {}", "x".repeat(5_000 + 1_000 * (page % 3)))
}

fn all() -> Vec<String> {
    (0..PAGES).map(body).collect()
}

fn open(directory: &TempDir, n: u128) -> (Journal, Recovered) {
    next_process(|| Journal::open(directory.path(), ROOM, incarnation(n), at(9)))
}

/// A killed process has left [`PAGES`] pages, in the log or in the database, and a request in
/// flight.
async fn killed(in_database: bool) -> Remains {
    let alive = tempfile::tempdir().unwrap();
    let (journal, _) = open(&alive, 1);
    for page in 0..PAGES {
        store(&journal, &body(page)).await;
    }
    let out = reserve(&journal).await;
    if in_database {
        let other = Connection::open(alive.path().join(files::DATABASE)).unwrap();
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }
    let remains = Remains { directory: copy(&alive) };
    drop(out);
    remains
}

/// Copies a directory's files as they are now, without the one that SQLite shares between
/// processes.
fn copy(directory: &TempDir) -> TempDir {
    let copied = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if !["ballast", "journal.sqlite-shm"].contains(&name.to_str().unwrap()) {
            fs::copy(entry.path(), copied.path().join(name)).unwrap();
        }
    }
    copied
}

// === impl Remains ===

impl Remains {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Overwrites a part of a file.
    fn overwrite(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    /// The offset of a text in a file.
    fn place_of(&self, name: &str, text: &str) -> u64 {
        let bytes = fs::read(self.path(name)).unwrap();
        let mut windows = bytes.windows(text.len());
        windows.position(|window| window == text.as_bytes()).unwrap() as u64
    }

    /// The offset of the root page of a table.
    fn root_of(&self, table: &str) -> u64 {
        let connection = Connection::open(self.path(files::DATABASE)).unwrap();
        let query = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
        let page: i64 = connection.query_row(query, [table], |row| row.get(0)).unwrap();
        4_096 * (page.unsigned_abs() - 1)
    }

    /// Checks that the next process finds these pages and continues.
    async fn leave(&self, what: &str, pages: &[String]) -> Found {
        let (journal, recovered) = open(&self.directory, 2);
        let waiting = journal.read(3, Sequence::START, 99).await.unwrap();
        let found: Vec<String> = bodies(&waiting).into_iter().map(str::to_owned).collect();
        let (gaps, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| !it.contains("xxx"));
        assert_eq!(short(&found), short(pages), "{what}, and {gaps:?}");
        assert!(found == pages, "{what}");
        store(&journal, "and goes on").await;
        let waiting = journal.read(3, Sequence::START, 99).await.unwrap();
        assert_eq!(bodies(&waiting).last(), Some(&"and goes on"), "{what}");
        let kept = fs::read_dir(self.directory.path()).unwrap();
        let kept = kept
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(files::ASIDE))
            .collect();
        Found { recovered, gaps, kept }
    }
}

fn short(pages: &[String]) -> Vec<&str> {
    pages.iter().map(|body| &body[..2]).collect()
}

#[tokio::test]
async fn undamaged_remains_are_all_found_and_nothing_is_kept_aside() {
    for in_database in [false, true] {
        let found = killed(in_database).await.leave("nothing", &all()).await;
        assert_eq!(found.gaps, ["process_killed"]);
        assert!(found.kept.is_empty());
        assert_eq!(found.recovered.in_doubt, None);
    }
}

#[tokio::test]
async fn a_flipped_byte_of_a_body_costs_that_page_and_its_bytes_are_kept() {
    let remains = killed(true).await;
    let place = remains.place_of(files::DATABASE, &body(4)[..200]);
    remains.overwrite(files::DATABASE, place + 100, b"y");
    let mut pages = all();
    let mut damaged = pages.remove(4).into_bytes();
    damaged[100] = b'y';
    let found = remains.leave("a body", &pages).await;
    assert_eq!(found.gaps, ["journal_damaged", "process_killed"]);
    assert!(found.kept.is_empty(), "the structure is sound");
    let connection = Connection::open(remains.path(files::DATABASE)).unwrap();
    let query = "SELECT body FROM damaged";
    let kept: Vec<u8> = connection.query_row(query, [], |row| row.get(0)).unwrap();
    assert!(kept == damaged);
}

#[tokio::test]
async fn a_broken_structure_costs_no_page_whose_bytes_are_there() {
    type Break = fn(&Remains);
    let cases: [(&str, bool, Break); 9] = [
        ("the header of the file", true, |it| it.overwrite(files::DATABASE, 0, &[0; 100])),
        ("its first page", true, |it| it.overwrite(files::DATABASE, 0, &[0xff; 4_096])),
        ("the header of its log", false, |it| it.overwrite("journal.sqlite-wal", 8, &[9; 8])),
        ("a page in its log", false, |it| {
            let place = it.place_of("journal.sqlite-wal", &body(5)[..50]);
            // Only the checksum of its frame: the page is unchanged.
            let frame = 32 + (place - 32) / 4_120 * 4_120;
            it.overwrite("journal.sqlite-wal", frame + 16, &[9; 8]);
        }),
        ("the root of the entries", true, |it| {
            let root = it.root_of("entries");
            it.overwrite(files::DATABASE, root, &[7; 64]);
        }),
        ("the root of the index", true, |it| {
            let root = it.root_of("entries_by_partition");
            it.overwrite(files::DATABASE, root, &[7; 64]);
        }),
        ("the root of the requests", true, |it| {
            let root = it.root_of("open_tickets");
            it.overwrite(files::DATABASE, root, &[7; 64]);
        }),
        ("the database is empty, its log is there", false, |it| {
            fs::write(it.path(files::DATABASE), "").unwrap();
        }),
        ("the database is gone, its log is there", false, |it| {
            fs::remove_file(it.path(files::DATABASE)).unwrap();
        }),
    ];
    for (what, in_database, destroy) in cases {
        let remains = killed(in_database).await;
        destroy(&remains);
        let found = remains.leave(what, &all()).await;
        assert!(!found.kept.is_empty(), "{what}");
        assert_eq!(found.recovered.in_doubt, Some(at(9)), "{what}");
    }
}

#[tokio::test]
async fn a_file_cut_short_costs_what_was_cut() {
    let remains = killed(true).await;
    let last = remains.place_of(files::DATABASE, &body(9)[..50]);
    let file = OpenOptions::new().write(true).open(remains.path(files::DATABASE)).unwrap();
    file.set_len(last).unwrap();
    let found = remains.leave("cut", &all()[..9]).await;
    assert_eq!(found.recovered.in_doubt, Some(at(9)));
    assert_eq!(found.kept.len(), 1);
}

#[tokio::test]
async fn a_log_that_is_gone_costs_what_was_only_there_and_is_noticed() {
    let remains = killed(false).await;
    fs::remove_file(remains.path("journal.sqlite-wal")).unwrap();
    let found = remains.leave("no log", &[]).await;
    assert_eq!(found.recovered.in_doubt, Some(at(9)));
}

#[tokio::test]
async fn a_log_of_another_database_hides_no_page_of_this_one() {
    let remains = killed(true).await;
    let foreign = tempfile::tempdir().unwrap();
    let other = Connection::open(foreign.path().join("other")).unwrap();
    other
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE a (b); CREATE TABLE c (d);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             INSERT INTO a SELECT hex(randomblob(300)) FROM n",
        )
        .unwrap();
    fs::copy(foreign.path().join("other-wal"), remains.path("journal.sqlite-wal")).unwrap();
    let found = remains.leave("a foreign log", &all()).await;
    assert_eq!(found.kept.len(), 2, "the database, and the log that was beside it");
}

#[tokio::test]
async fn of_a_file_that_is_no_database_at_all_only_the_file_is_kept() {
    let remains = killed(true).await;
    fs::write(remains.path(files::DATABASE), "not a database".repeat(10_000)).unwrap();
    let found = remains.leave("nonsense", &[]).await;
    assert_eq!(found.recovered.in_doubt, Some(at(9)));
    assert!(fs::read_to_string(&found.kept[0]).unwrap() == "not a database".repeat(10_000));
}

#[tokio::test]
async fn files_that_vanish_under_a_running_journal_cost_nothing() {
    let cases: [(&str, &[&str]); 3] = [
        ("all", &[files::DATABASE, "journal.sqlite-wal", "journal.sqlite-shm"]),
        ("the database", &[files::DATABASE]),
        ("the log", &["journal.sqlite-wal"]),
    ];
    for (what, names) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = open(&directory, 1);
        store(&journal, "before").await;
        let held = hold(&journal, "held").await;
        let out = reserve(&journal).await;
        for name in names {
            fs::remove_file(directory.path().join(name)).unwrap();
        }
        store(&journal, "after").await;
        journal.release(vec![held]).await;
        assert_eq!(bodies(&read(&journal).await), ["before", "after", "held"], "{what}");
        drop(out);
        drop(journal);
        let (journal, recovered) = open(&directory, 2);
        let waiting = read(&journal).await;
        let found = bodies(&waiting);
        assert_eq!(found.len() + recovered.held.len(), 4, "{what}: {found:?}");
        assert!(found.starts_with(&["before", "after"]), "{what}: {found:?}");
        assert!(found.contains(&"process_killed"), "{what}: {found:?}");
        assert_eq!(recovered.in_doubt, None, "{what}");
    }
}

/// Opens a journal with many pages of several feeds in its file, and zeroes a sixth of it.
async fn zeroed_while_running(pages: usize) -> (TempDir, Journal, Vec<PageId>) {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = open(&directory, 1);
    let mut ids = Vec::new();
    for page_number in 0..pages {
        let feed = feed(Endpoint::ALL[page_number % 2]);
        let reservation = journal.reserve(&feed, 3, Some(at(1)), at(2)).await.unwrap();
        ids.push(reservation.place.id());
        let page = Page { feed, since: Some(at(1)), ..page(&body(page_number % PAGES)) };
        reservation.settle(Content::Page(page)).await.unwrap();
    }
    let other = Connection::open(directory.path().join(files::DATABASE)).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(other);
    zero_a_sixth(directory.path());
    (directory, journal, ids)
}

/// Zeroes a sixth of the file, and lets another connection write, so that SQLite drops its cache.
fn zero_a_sixth(data_dir: &std::path::Path) {
    let path = data_dir.join(files::DATABASE);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let sixth = file.metadata().unwrap().len() / 4_096 / 6 * 4_096;
    file.write_all_at(&vec![0; usize::try_from(sixth).unwrap()], sixth).unwrap();
    let other = Connection::open(path).unwrap();
    other.execute("UPDATE requests SET number = number + 10", []).unwrap();
}

/// Reads and forgets everything that waits.
async fn take_all(journal: &Journal) -> Vec<Waiting> {
    let (mut all, mut last) = (Vec::new(), Sequence::START);
    loop {
        let waiting = journal.read(3, last, 8).await.unwrap();
        let Some(newest) = waiting.last() else { return all };
        last = newest.sequence;
        all.extend(waiting);
    }
}

#[tokio::test]
async fn damage_met_while_running_leaves_a_gap_in_the_place_of_each_page_that_is_lost() {
    let (directory, journal, ids) = zeroed_while_running(600).await;
    let out = reserve(&journal).await;
    let waiting = take_all(&journal).await;
    let found: Vec<PageId> = waiting.iter().map(|it| it.entry.id).collect();
    assert!(found == ids, "{} of {}", found.len(), ids.len());
    let mut lost = 0;
    for (number, waiting) in waiting.iter().enumerate() {
        match &waiting.entry.content {
            Content::Page(page) => assert!(page.body == body(number % PAGES).as_bytes()),
            Content::Gap(gap) => {
                lost += 1;
                let bounds = (gap.from, gap.to, gap.at_most);
                assert_eq!(bounds, (Some(at(1)), at(12), Some(1_000)));
                assert_eq!(gap.cause, GapCause::JournalDamaged);
                assert_eq!(gap.feed, feed(Endpoint::ALL[number % 2]));
            }
        }
    }
    assert!((30..300).contains(&lost), "{lost}");
    let kept = kept(directory.path());
    assert_eq!(kept.len(), 1, "{kept:?}");

    // The next process finds the same, and the request that was in flight.
    drop((out, journal));
    let (journal, recovered) = open(&directory, 2);
    let gaps = |waiting: &[Waiting]| {
        let gaps = waiting.iter().filter(|it| matches!(it.entry.content, Content::Gap(_)));
        gaps.count()
    };
    assert_eq!(gaps(&take_all(&journal).await), lost + 1);
    assert_eq!((recovered.killed_in_flight, recovered.in_doubt), (1, None));
}

#[tokio::test]
async fn damage_met_while_running_is_published_for_pages_of_an_earlier_process_too() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = open(&directory, 1);
    for page in 0..600 {
        store(&journal, &body(page % PAGES)).await;
    }
    drop(journal);
    let (journal, _) = open(&directory, 2);
    zero_a_sixth(directory.path());
    let waiting = take_all(&journal).await;
    assert_eq!(waiting.len(), 600);
    let gaps: Vec<&Gap> = waiting
        .iter()
        .filter_map(|it| match &it.entry.content {
            Content::Gap(gap) => Some(gap),
            Content::Page(_) => None,
        })
        .collect();
    // They were received before this process began; some rows still contain the time.
    assert!(gaps.iter().any(|gap| gap.to == at(19)), "{gaps:?}");
    for gap in gaps {
        assert!([at(12), at(19)].contains(&gap.to), "{gap:?}");
        assert_eq!((gap.from, &gap.feed), (None, &feed(Endpoint::User)));
    }
}

#[tokio::test]
async fn in_a_new_file_no_later_page_overtakes_a_released_one() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = open(&directory, 1);
    let held = hold(&journal, "released").await;
    let later = reserve(&journal).await;
    journal.release(vec![held]).await;
    let operator = Connection::open(directory.path().join(files::DATABASE)).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON entries
                  BEGIN SELECT raise(ABORT, 'refused'); END";
    operator.execute_batch(refuse).unwrap();
    fs::remove_file(directory.path().join(files::DATABASE)).unwrap();
    // Refused by the old file, and stored in a new one.
    later.settle(Content::Page(page("later"))).await.unwrap();

    let killed = copy(&directory);
    let (journal, recovered) = open(&killed, 2);
    assert!(recovered.held.is_empty(), "{:?}", recovered.held);
    assert_eq!(bodies(&read(&journal).await), ["released", "later"]);
}

#[tokio::test]
async fn a_journal_from_a_backup_brings_its_pages_again_under_their_old_names() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = open(&directory, 1);
    store(&journal, "in the backup").await;
    let backup = Remains { directory: copy(&directory) };
    let name = read(&journal).await[0].entry.id;
    journal.forget(vec![read(&journal).await[0].sequence]).await;
    drop(journal);

    let (journal, _) = open(&backup.directory, 2);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["in the backup"]);
    assert_eq!(waiting[0].entry.id, name, "the publisher recognises it");
    store(&journal, "new").await;
    assert_eq!(read(&journal).await[1].entry.id.incarnation, incarnation(2));
}

#[tokio::test]
async fn requests_are_in_doubt_after_a_loss_of_power_and_not_after_a_kill_or_a_stop() {
    let line = |words: &str| format!("{words} pid=1 host=elsewhere since=0 boot=another\n");
    for (before, in_doubt) in [(line("running"), true), (line("stopped"), false)] {
        let remains = killed(false).await;
        fs::write(remains.path("lock"), before).unwrap();
        let found = remains.leave("the power", &all()).await;
        assert_eq!(found.recovered.in_doubt, in_doubt.then_some(at(9)));
    }
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = open(&directory, 1);
    store(&journal, "one").await;
    journal.flush().await;
    assert!(fs::read_to_string(directory.path().join("lock")).unwrap().starts_with("stopped "));
    let out = reserve(&journal).await;
    assert!(fs::read_to_string(directory.path().join("lock")).unwrap().starts_with("running "));
    journal.flush().await;
    assert!(fs::read_to_string(directory.path().join("lock")).unwrap().starts_with("running "));
    drop(out);
}
