//! Random operations, kills and faults, compared with a model: each committed entry is there
//! exactly once and in order, or a gap takes its place.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::journal::files;

/// The next operation. Numbers select one of the available items.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Reserve,
    SettleWithPage(usize),
    SettleWithNothing(usize),
    SettleWithGap(usize),
    Hold(usize),
    Release(usize),
    /// The oldest entries are forwarded.
    Forget(usize),
    /// A waiting entry gets a new name and the last place.
    MoveBehind(usize),
    /// A gap that belongs to no request.
    Note,
    Flush,
    /// The process is killed; the next one continues with its files.
    Kill,
    /// From now on, the database refuses writes, or accepts them again.
    Refuse(bool),
    /// The files are deleted while the process runs.
    RemoveFiles,
    /// A byte of a stored page is flipped.
    Flip(usize),
    /// A reader starts a long transaction, or ends it.
    Linger(bool),
}

/// The entries that should wait: `Some` with a page's body, `None` for a gap.
type Line = Vec<(PageId, Option<String>)>;

struct Run {
    directory: TempDir,
    journal: Journal,
    processes: u128,
    requests: u64,
    open: Vec<Reservation>,
    held: Vec<(Held, String)>,
    line: Line,
    /// What the next process may lack because it was never stored: a gap reports it.
    in_memory: Vec<PageId>,
    /// Forwarded entries, which may reappear after a kill.
    forwarded: BTreeMap<PageId, Option<String>>,
    refuses: bool,
    flipped: bool,
    lingers: Option<Connection>,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        6 => Just(Reserve),
        5 => any::<usize>().prop_map(SettleWithPage),
        2 => any::<usize>().prop_map(SettleWithNothing),
        1 => any::<usize>().prop_map(SettleWithGap),
        3 => any::<usize>().prop_map(Hold),
        3 => any::<usize>().prop_map(Release),
        3 => (1_usize..4).prop_map(Forget),
        2 => any::<usize>().prop_map(MoveBehind),
        1 => Just(Note),
        1 => Just(Flush),
        2 => Just(Kill),
        2 => any::<bool>().prop_map(Refuse),
        1 => Just(RemoveFiles),
        1 => any::<usize>().prop_map(Flip),
        1 => any::<bool>().prop_map(Linger),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_committed_is_there_exactly_once_and_in_order(
        operations in prop::collection::vec(operation(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            // A damaged entry becomes a gap only if its app is known.
            run.reserve().await;
            for operation in operations {
                run.apply(operation).await;
                run.check().await;
            }
            run.apply(Operation::Kill).await;
            run.check().await;
        });
    }
}

// === impl Run ===

impl Run {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path(), ROOM, incarnation(1), at(9)).unwrap();
        Self {
            directory,
            journal,
            processes: 1,
            requests: 0,
            open: Vec::new(),
            held: Vec::new(),
            line: Vec::new(),
            in_memory: Vec::new(),
            forwarded: BTreeMap::new(),
            refuses: false,
            flipped: false,
            lingers: None,
        }
    }

    async fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Reserve => self.reserve().await,
            Operation::SettleWithPage(n) => {
                let Some((reservation, id)) = self.one_open(n) else { return };
                let body = format!("page {id}");
                let stored = reservation.settle(Content::Page(page(&body))).await;
                self.committed(id, stored);
                self.line.push((id, Some(body)));
            }
            Operation::SettleWithNothing(n) => {
                let Some((reservation, id)) = self.one_open(n) else { return };
                reservation.close().await;
                // If this isn't stored, the next process publishes a gap.
                self.forwarded.insert(id, None);
            }
            Operation::SettleWithGap(n) => {
                let Some((reservation, id)) = self.one_open(n) else { return };
                let stored = reservation.settle(Content::Gap(gap(GapCause::AnswerLost))).await;
                self.committed(id, stored);
                self.line.push((id, None));
            }
            Operation::Hold(n) => {
                let Some((reservation, id)) = self.one_open(n) else { return };
                let body = format!("held {id}");
                let (held, stored) = reservation.hold(Content::Page(page(&body))).await;
                self.committed(id, stored);
                self.held.push((held, body));
            }
            Operation::Release(n) => {
                if self.held.is_empty() {
                    return;
                }
                let (held, body) = self.held.remove(n % self.held.len());
                self.line.push((held.id(), Some(body)));
                self.journal.release(vec![held]).await;
            }
            Operation::Forget(n) => self.forget(n).await,
            Operation::MoveBehind(n) => self.move_behind(n).await,
            Operation::Note => {
                let before = self.waiting().await.len();
                let stored = self.journal.note_gap(3, gap(GapCause::Overflow)).await;
                let id = self.waiting().await[before].0;
                // A gap without a request has no ticket on record that would report it.
                if stored.is_err() {
                    self.forwarded.insert(id, None);
                }
                self.line.push((id, None));
                self.noted_in_memory(id, stored.is_err());
            }
            Operation::Flush => self.journal.flush().await,
            Operation::Kill => self.kill().await,
            Operation::Refuse(refuses) => self.refuse(refuses),
            Operation::RemoveFiles => {
                // A file that refuses writes also refuses to be copied.
                if !self.refuses {
                    for suffix in ["", "-wal", "-shm"] {
                        let name = format!("{}{suffix}", files::DATABASE);
                        fs::remove_file(self.directory.path().join(name)).ok();
                    }
                    self.reserve().await;
                    self.reserve().await;
                }
            }
            Operation::Flip(n) => self.flip(n).await,
            Operation::Linger(begins) => {
                self.lingers = begins.then(|| {
                    let reader = self.operator();
                    reader.execute_batch("BEGIN; SELECT * FROM entries").unwrap();
                    reader
                });
            }
        }
    }

    fn noted_in_memory(&mut self, id: PageId, in_memory: bool) {
        if in_memory {
            self.in_memory.push(id);
        }
    }

    fn committed(&mut self, id: PageId, stored: Result<(), JournalError>) {
        assert_eq!(stored.is_err(), self.refuses, "{stored:?}");
        self.noted_in_memory(id, stored.is_err());
    }

    async fn reserve(&mut self) {
        self.requests += 1;
        let asked = at(10 + i64::try_from(self.requests).unwrap());
        let reserved = self.journal.reserve(&feed(Endpoint::User), 3, None, asked).await;
        match reserved {
            Ok(reservation) => {
                assert!(!self.refuses, "no request leaves without room");
                self.in_memory.clear();
                self.open.push(reservation);
            }
            Err(error) => assert!(self.refuses, "{error:?}"),
        }
    }

    fn one_open(&mut self, n: usize) -> Option<(Reservation, PageId)> {
        if self.open.is_empty() {
            return None;
        }
        let reservation = self.open.remove(n % self.open.len());
        let id = reservation.place.id();
        Some((reservation, id))
    }

    async fn forget(&mut self, n: usize) {
        let waiting = self.journal.read(3, Sequence::START, n).await.unwrap();
        self.journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
        for (id, body) in self.line.drain(..waiting.len()) {
            self.in_memory.retain(|it| *it != id);
            self.forwarded.insert(id, body);
        }
    }

    async fn move_behind(&mut self, n: usize) {
        let waiting = self.journal.read(3, Sequence::START, usize::MAX).await.unwrap();
        if waiting.is_empty() {
            return;
        }
        let place = n % waiting.len();
        // Entries in memory keep their place, and so does everything else while writes are refused.
        if let Ok(moved) = self.journal.move_behind(3, waiting[place].sequence).await {
            self.in_memory.clear();
            let (_, body) = self.line.remove(place);
            self.line.push((moved.entry.id, body));
        }
    }

    /// Keeps the files as they are, and nothing of the process.
    async fn kill(&mut self) {
        self.allow();
        let copied = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if name != "ballast" && name != "journal.sqlite-shm" {
                fs::copy(entry.path(), copied.path().join(name)).unwrap();
            }
        }
        self.directory = copied;
        self.lingers = None;
        let mut killed: Vec<PageId> = self.open.drain(..).map(|it| it.place.id()).collect();
        self.processes += 1;
        let opened = Journal::open(self.directory.path(), ROOM, incarnation(self.processes), at(9));
        let (journal, recovered) = opened.unwrap();
        assert_eq!(recovered.in_doubt, None);
        self.journal = journal;
        let now = self.waiting().await;
        // Entries in memory may have been stored before something else was.
        let is_there = |id: &PageId| {
            let mut pages = now.iter().filter(|(_, body)| body.is_some());
            pages.any(|(it, _)| it == id) || recovered.held.iter().any(|(held, _)| held.id() == *id)
        };
        killed.extend(self.in_memory.drain(..).filter(|id| !is_there(id)));
        let is_killed = |id: &PageId| killed.contains(id);
        let mut held: BTreeMap<PageId, String> =
            self.held.drain(..).map(|(held, body)| (held.id(), body)).collect();
        // An entry whose release was only in memory is held again.
        let mut line: Line = self.line.drain(..).filter(|(id, _)| !is_killed(id)).collect();
        for (again, page) in recovered.held {
            let id = again.id();
            let body = String::from_utf8(page.body.to_vec()).unwrap();
            let in_line = line.iter().position(|(it, _)| *it == id);
            let known = match in_line {
                Some(at) => {
                    let later = |(it, body): &&(PageId, Option<String>)| {
                        body.is_some() && line[at..].iter().any(|(later, _)| later == it)
                    };
                    let overtaken = now.iter().find(later);
                    assert_eq!(overtaken, None, "stands in the line before {id}");
                    line.remove(at).1
                }
                None => held.remove(&id).or_else(|| self.forwarded.remove(&id).flatten()),
            };
            assert_eq!(known.as_ref(), Some(&body), "{id}");
            self.held.push((again, body));
        }
        held.retain(|id, _| !is_killed(id));
        for (id, body) in &now {
            if line.iter().all(|(it, _)| it != id) {
                let is_gap_of_a_killed = is_killed(id) && body.is_none();
                // A damaged held page reappears as a gap.
                let was_damaged = body.is_none() && held.remove(id).is_some();
                let known = self.forwarded.get(id);
                let is_known = known.is_some_and(|known| body.is_none() || known == body);
                assert!(is_gap_of_a_killed || was_damaged || is_known, "{id} came from nowhere");
            }
        }
        assert!(held.is_empty(), "held and not there: {held:?}");
        // Entries that reappeared have their old places; the rest is in the order of the line. Only
        // gaps that replace held pages are in no particular order.
        let is_gap = |id: &PageId| now.iter().any(|(it, body)| it == id && body.is_none());
        let gaps_last = |(id, _): &(PageId, Option<String>)| is_gap(id).then_some(*id);
        let mut rest: Line =
            now.iter().filter(|(id, _)| line.iter().any(|(it, _)| it == id)).cloned().collect();
        rest.sort_by_key(gaps_last);
        line.sort_by_key(gaps_last);
        self.line = line;
        self.expect(&rest);
        self.line = now;
    }

    fn operator(&self) -> Connection {
        Connection::open(self.directory.path().join(files::DATABASE)).unwrap()
    }

    fn refuse(&mut self, refuses: bool) {
        // While writes are refused, a damaged entry can't be set aside: it waits, invisible.
        if refuses && !self.refuses && !self.flipped {
            let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON entries
                           BEGIN SELECT raise(ABORT, 'refused'); END;
                           CREATE TRIGGER refuse_too BEFORE INSERT ON open_tickets
                           BEGIN SELECT raise(ABORT, 'refused'); END";
            self.operator().execute_batch(trigger).unwrap();
            self.refuses = true;
        } else if !refuses {
            self.allow();
        }
    }

    fn allow(&mut self) {
        if std::mem::take(&mut self.refuses) {
            let allow = "DROP TRIGGER refuse; DROP TRIGGER refuse_too";
            self.operator().execute_batch(allow).unwrap();
        }
    }

    async fn flip(&mut self, n: usize) {
        let stored = rows(&self.operator());
        if stored.is_empty() || self.refuses {
            return;
        }
        let row = stored[n % stored.len()];
        let flip = "UPDATE entries SET body = CAST(body || 'x' AS BLOB) WHERE sequence = ?";
        self.operator().execute(flip, [row]).unwrap();
        self.flipped = true;
    }

    async fn waiting(&self) -> Line {
        let waiting = self.journal.read(3, Sequence::START, usize::MAX).await.unwrap();
        let body = |content| match content {
            Content::Page(page) => Some(String::from_utf8(page.body.to_vec()).unwrap()),
            Content::Gap(_) => None,
        };
        waiting.into_iter().map(|it| (it.entry.id, body(it.entry.content))).collect()
    }

    async fn check(&mut self) {
        let waiting = self.waiting().await;
        self.expect(&waiting);
    }

    /// Checks that the line equals the model, with a gap in place of a flipped page.
    fn expect(&self, waiting: &Line) {
        let names = |line: &Line| line.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(names(waiting), names(&self.line));
        for ((id, found), (_, expected)) in waiting.iter().zip(&self.line) {
            assert!(found == expected || self.flipped && found.is_none(), "{id}: {found:?}");
        }
    }
}
