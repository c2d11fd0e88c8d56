//! A log reader that stalls: stderr is a pipe that is full, and nobody reads.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "what is not there is a fault of the test, and ends it"
)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, PipeReader, Read as _, Write as _, pipe};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::child::Guarded;
use crate::support::process::{command, get, listen_address};
use crate::support::{names, within};

/// On a machine that compiles at the same time everything takes long.
const LIMIT: Duration = Duration::from_secs(60);

/// Neither Agora nor Kafka is there. At `debug` each request that is no HTTP is a line in the log.
const CONFIG: &str = r#"
shutdown_grace = "6s"
log.level = "debug"
[agora]
silence_timeout = "1s"
[kafka]
bootstrap_servers = "127.0.0.1:1"
[[apps]]
app_id = "a1"
hosts = ["http://127.0.0.1:1"]
[apps.auth]
customer_id = "c"
customer_secret = "s"
"#;

/// A bridge whose log goes into a pipe.
struct Bridge {
    process: Guarded,
    log: BufReader<PipeReader>,
    address: SocketAddr,
    _home: TempDir,
}

impl Bridge {
    /// Its log has been read to the line with its address, and the pipe is full since then.
    fn start() -> Self {
        let home = names::folder();
        let config = home.path().join("bridge.toml");
        std::fs::write(&config, CONFIG).unwrap();
        let (reader, writer) = pipe().unwrap();
        let mut command = command();
        command
            .args(["run", "--config", names::text(&config)])
            .env("AGORA_RTM_BRIDGE__DATA_DIR", home.path().join("data"))
            .env("AGORA_RTM_BRIDGE__HTTP__LISTEN", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(writer.try_clone().unwrap());
        let process = Guarded::spawn(&mut command, home.path());
        drop(command);
        let mut log = BufReader::new(reader);
        let mut read = String::new();
        let address = loop {
            assert_ne!(log.read_line(&mut read).unwrap(), 0, "no address in {read}");
            if let Some(address) = listen_address(&read) {
                break address;
            }
        };
        fill(File::from(std::os::fd::OwnedFd::from(writer)));
        Self { process, log, address, _home: home }
    }
}

/// Makes the bridge log a line.
fn talk_nonsense(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"nonsense\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
}

/// Whether log lines are being dropped, by readiness; whether some were, by the metric.
fn drops(address: SocketAddr) -> (bool, bool) {
    let ready = get(address, "/ready").unwrap().body;
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let reasons = ready["reasons"].as_array().unwrap();
    let metrics = get(address, "/metrics").unwrap().body;
    let counted = !metrics.contains("\nagora_rtm_bridge_log_lines_dropped_total 0\n");
    (reasons.iter().any(|reason| reason["condition"] == "logs"), counted)
}

/// Fills the pipe to its last byte. By a second opening of it: the first one is the child's too, and
/// has to block.
fn fill(pipe: File) {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let mut end = OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap();
    for piece in [&[b'\n'; 4_096][..], b"\n"] {
        loop {
            match end.write_all(piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn the_bridge_answers_and_stops_while_nobody_reads_its_log() {
    let mut bridge = Bridge::start();
    // Two worker threads, and each of them has something to say.
    for _ in 0..10 {
        talk_nonsense(bridge.address);
    }
    assert_eq!(get(bridge.address, "/live").unwrap().status, 200);
    bridge.process.signal(Signal::TERM);
    assert_eq!(bridge.process.wait(LIMIT).code(), Some(0));
}

#[test]
fn lines_that_nobody_reads_are_dropped_counted_and_reported_until_somebody_reads() {
    let Bridge { mut process, log, address, _home } = Bridge::start();
    assert_eq!(drops(address), (false, false));
    while drops(address) != (true, true) {
        for _ in 0..500 {
            talk_nonsense(address);
        }
    }
    let reader = thread::spawn(move || log.lines().map(Result::unwrap).collect::<Vec<_>>());
    within(LIMIT, || (drops(address) == (false, true)).then_some(())).unwrap();
    process.signal(Signal::TERM);
    assert_eq!(process.wait(LIMIT).code(), Some(0));
    drop(process);
    let lines = reader.join().unwrap();
    let reports = lines.iter().filter(|line| line.contains("log lines dropped"));
    assert_eq!(reports.count(), 1);
    assert!(lines.last().unwrap().contains(" stopped "), "{:?}", lines.last());
    assert!(lines.iter().filter(|line| !line.is_empty()).all(|line| line.contains("Z ")));
}
