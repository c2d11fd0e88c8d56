use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;

use super::*;

/// A reader that takes one write after each `open`, and all writes once `open` is dropped.
struct Gate {
    entered: mpsc::Sender<()>,
    open: mpsc::Receiver<()>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A queue whose writer waits for the test's permission.
struct Stage {
    queue: Queue,
    entered: mpsc::Receiver<()>,
    open: mpsc::Sender<()>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
    writer: JoinHandle<()>,
}

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(600);

/// Room for five lines of ten bytes, and for two errors.
const LIMITS: QueueLimits = QueueLimits {
    room: 50,
    room_for_errors: 20,
    retry: Duration::ZERO,
    retry_full: Duration::ZERO,
};

impl io::Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A test of something else doesn't check it.
        self.entered.send(()).ok();
        self.open.recv().ok();
        self.written.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stage {
    /// Makes the writer hold the line `held 0000` with a stalled reader.
    fn stalled(limits: QueueLimits) -> Self {
        let queue = Queue::new(limits);
        let (enter, entered) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        let written = Arc::default();
        let gate = Gate { entered: enter, open: opened, written: Arc::clone(&written) };
        let writer = spawn(&queue, gate);
        queue.push(Level::INFO, b"held 0000\n");
        entered.recv().unwrap();
        Self { queue, entered, open, written, writer }
    }

    /// Ten bytes.
    fn push(&self, level: Level, number: usize) {
        let word = if level == Level::ERROR { "fail" } else { "line" };
        self.queue.push(level, format!("{word} {number:04}\n").as_bytes());
    }

    /// Returns what was written once the reader reads everything, one entry per write.
    fn end(self) -> Vec<String> {
        drop(self.open);
        self.queue.close();
        self.writer.join().unwrap();
        let written = self.written.lock().unwrap();
        written.iter().map(|bytes| String::from_utf8(bytes.clone()).unwrap()).collect()
    }
}

fn spawn(queue: &Queue, out: impl io::Write + Send + 'static) -> JoinHandle<()> {
    let queue = queue.clone();
    let report = |Dropped { lines, errors, .. }: Dropped| format!("lost {lines}/{errors}\n").into();
    thread::spawn(move || queue.write_to(out, report))
}

#[test]
fn a_full_queue_drops_and_counts_keeps_errors_and_order_and_says_what_is_missing_where() {
    let stage = Stage::stalled(LIMITS);
    for number in 1..=4 {
        stage.push(Level::INFO, number);
    }
    assert_eq!(stage.queue.missing(), None);
    stage.push(Level::WARN, 5);
    stage.push(Level::ERROR, 6);
    stage.push(Level::INFO, 7);
    stage.push(Level::ERROR, 8);
    stage.push(Level::ERROR, 9);
    let missing = stage.queue.missing().unwrap();
    assert_eq!((missing.lines, missing.errors), (3, 1));

    // The held line is written first, then the waiting ones. While the report waits for the reader,
    // there is room.
    for _ in 0..2 {
        stage.open.send(()).unwrap();
        stage.entered.recv().unwrap();
    }
    assert_eq!(stage.queue.missing().map(|it| it.lines), Some(3), "the report is not written yet");
    stage.push(Level::INFO, 10);
    stage.open.send(()).unwrap();
    stage.entered.recv().unwrap();
    assert_eq!(stage.queue.missing(), None, "it ends by itself");

    assert_eq!(stage.queue.dropped().get(), 3);
    assert_eq!(
        stage.end().concat(),
        "held 0000\nline 0001\nline 0002\nline 0003\nline 0004\nfail 0006\nfail 0008\n\
         lost 3/1\nline 0010\n"
    );
}

#[test]
fn once_a_line_is_dropped_no_later_one_takes_its_place_before_the_report() {
    let stage = Stage::stalled(LIMITS);
    for number in 1..=5 {
        stage.push(Level::INFO, number);
    }
    // There is room again, but the lines before the dropped ones are not written yet.
    stage.open.send(()).unwrap();
    stage.entered.recv().unwrap();
    stage.push(Level::INFO, 6);
    assert_eq!(stage.queue.missing().map(|it| it.lines), Some(2));
    let expected = "held 0000\nline 0001\nline 0002\nline 0003\nline 0004\nlost 2/0\n";
    assert_eq!(stage.end().concat(), expected);
}

#[test]
fn a_write_is_of_whole_lines_and_no_longer_than_a_pipe_takes_at_once() {
    let stage = Stage::stalled(QueueLimits { room: 1 << 20, ..LIMITS });
    for number in 0..1_000 {
        stage.push(Level::INFO, number);
    }
    let long = format!("{}\n", "x".repeat(2 * LARGEST_WRITE));
    stage.queue.push(Level::INFO, long.as_bytes());
    stage.push(Level::INFO, 1_000);
    let written = stage.end();
    assert!(written.len() < 10, "{}", written.len());
    assert!(written.contains(&long));
    for write in written.iter().filter(|write| **write != long) {
        assert!(write.ends_with('\n') && write.len() <= LARGEST_WRITE, "{write}");
    }
    let whole = written.concat().replace(&long, "");
    let numbers = whole.lines().skip(1).map(|line| line[5..].parse::<usize>().unwrap());
    assert!(numbers.eq(0..=1_000));
}

#[test]
fn a_failed_write_is_tried_again_and_tears_no_line() {
    /// Fails in every way, and takes three bytes at a time.
    struct Failing(Arc<Mutex<Vec<u8>>>, usize);

    impl io::Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 5 {
                0 => Err(ErrorKind::BrokenPipe.into()),
                1 => Err(ErrorKind::WouldBlock.into()),
                2 => Err(ErrorKind::StorageFull.into()),
                3 => Ok(0),
                _ => {
                    let taken = bytes.len().min(3);
                    self.0.lock().unwrap().extend_from_slice(&bytes[..taken]);
                    Ok(taken)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (queue, written) = (Queue::new(LIMITS), Arc::default());
    let writer = spawn(&queue, Failing(Arc::clone(&written), 0));
    queue.push(Level::INFO, b"line 0001\n");
    queue.push(Level::INFO, b"line 0002\n");
    // Don't wait with `flush`, which returns while writing fails.
    while !queue.lock().is_written() {
        thread::yield_now();
    }
    queue.close();
    writer.join().unwrap();
    assert_eq!(*written.lock().unwrap(), b"line 0001\nline 0002\n");
    assert_eq!(queue.dropped().get(), 0);
}

#[test]
fn a_flush_waits_for_a_reader_that_reads_and_no_longer_than_its_limit() {
    let stage = Stage::stalled(LIMITS);
    stage.push(Level::INFO, 1);
    stage.queue.flush(Duration::ZERO);
    assert!(stage.written.lock().unwrap().is_empty());
    stage.open.send(()).unwrap();
    stage.open.send(()).unwrap();
    stage.queue.flush(LONG);
    assert_eq!(stage.written.lock().unwrap().concat(), b"held 0000\nline 0001\n");
    stage.end();
}

#[test]
fn a_flush_does_not_wait_for_a_reader_that_is_gone_nor_does_the_writer_spin() {
    struct Gone(mpsc::Sender<()>);

    impl io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (tried, tries) = mpsc::channel();
    let queue = Queue::new(QueueLimits { retry: LONG, ..LIMITS });
    let writer = spawn(&queue, Gone(tried));
    for number in 0..10 {
        queue.push(Level::INFO, format!("line {number:04}\n").as_bytes());
    }
    queue.flush(LONG);
    queue.close();
    writer.join().unwrap();
    assert_eq!(tries.iter().count(), 1, "one attempt, then a pause");
    assert_eq!(queue.dropped().get(), 5, "what waits is bounded here too");
}
