//! The bridge as its users run it: the binary, a configuration file, signals, an HTTP port.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use rustix::process::Signal;
use tempfile::TempDir;

use super::child::Guarded;
use super::stallable::Stallable;
use super::{names, tail, within};

/// A running `agora-rtm-bridge run` in a folder of its own.
///
/// Data directory and port are set through the environment, so the file belongs to the test alone.
/// If a test panics, the end of the bridge's log is printed.
pub(crate) struct Bridge {
    process: Guarded,
    /// The pipe that carries its log to the file, if the test can stall it.
    log: Option<Stallable>,
    /// Number of starts. Each start has its own log, because the address in it differs.
    starts: u32,
    environment: Environment,
    home: TempDir,
}

/// Environment variables of a bridge, for this and later starts.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// An answer of the bridge's HTTP port.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    /// The status code.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: String,
}

const START_LIMIT: Duration = Duration::from_secs(30);
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// The binary, without the developer's own settings.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agora-rtm-bridge"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AGORA_RTM_BRIDGE__")) {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

// === impl Bridge ===

impl Bridge {
    /// Starts a bridge with this configuration, which names neither `data_dir` nor `http.listen`.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_on(config, |_| {})
    }

    /// The same, but it panics at the pass `place:passes` of a place compiled into a test build.
    pub(crate) fn start_to_panic(config: &str, at: &str) -> Self {
        let environment = vec![("AGORA_RTM_BRIDGE_PANIC", at.to_owned())];
        // Its next start is a normal one.
        let mut bridge = Self::start_in(environment, config, |_| {});
        bridge.environment.clear();
        bridge
    }

    /// The same, with a data directory that `prepare` creates and fills first.
    pub(crate) fn start_on(config: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::start_in(Environment::new(), config, prepare)
    }

    /// The same, with additional environment variables.
    pub(crate) fn start_in(
        environment: Environment,
        config: &str,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let home = furnished(config, prepare);
        let process = spawn(&home, &environment, log_of(&home, 1));
        Self { process, log: None, starts: 1, environment, home }
    }

    /// The same, with its log going through a pipe, for this and later starts.
    pub(crate) fn start_through_pipe(
        environment: Environment,
        config: &str,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let home = furnished(config, prepare);
        let log = Stallable::into_file(log_of(&home, 1));
        let process = spawn(&home, &environment, log.writer());
        Self { process, log: Some(log), starts: 1, environment, home }
    }

    /// Starts it again after its end, with the same configuration and data.
    pub(crate) fn start_again(&mut self) {
        self.starts += 1;
        let file = log_of(&self.home, self.starts);
        self.process = match &mut self.log {
            None => spawn(&self.home, &self.environment, file),
            Some(log) => {
                *log = Stallable::into_file(file);
                spawn(&self.home, &self.environment, log.writer())
            }
        };
    }

    /// The pipe of its log; each start has its own.
    pub(crate) fn log_pipe(&self) -> Option<&Stallable> {
        self.log.as_ref()
    }

    /// Kills it: it commits, forwards and logs nothing more.
    pub(crate) fn kill_9(&mut self) {
        self.process.kill_9();
    }

    /// Requests a stop with SIGTERM.
    pub(crate) fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Its peak resident memory since its start, in bytes; `None` if it has ended. See
    /// proc_pid_status(5).
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1_024)
    }

    /// Waits until it reports that it is ready.
    ///
    /// # Panics
    ///
    /// If it ends or does not become ready; reports the reason.
    pub(crate) fn wait_ready(&mut self) {
        let mut last = None;
        let outcome = within(START_LIMIT, || {
            if let Some(status) = self.process.ended() {
                return Some(Err(status));
            }
            let answer = get(self.address()?, "/ready").ok()?;
            let ready = answer.status == 200;
            last = Some(answer);
            ready.then_some(Ok(()))
        });
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(status)) => panic!("the bridge ended with {status}"),
            Err(late) => panic!("the bridge was ready {late}; it last said {last:?}"),
        }
    }

    /// Sends a request to its HTTP port.
    pub(crate) fn get(&self, path: &str) -> HttpAnswer {
        let address = within(START_LIMIT, || self.address())
            .unwrap_or_else(|late| panic!("the bridge logged `listen=` {late}"));
        get(address, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `/status.json`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let answer = self.get("/status.json");
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).expect("the status is JSON")
    }

    /// `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The sum of a metric over all its labels; zero if it doesn't exist.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        sum(&self.metrics(), name)
    }

    /// Its log since the last start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log_file(&self.home, self.starts)).unwrap_or_default()
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        data_dir(&self.home)
    }

    /// The address of its HTTP port.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        listen_address(&self.log())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("── the end of the bridge's log ──\n{}", tail(&self.log()));
        }
    }
}

fn furnished(config: &str, prepare: impl FnOnce(&Path)) -> TempDir {
    let home = names::folder();
    fs::write(home.path().join("bridge.toml"), config).expect("a fresh folder can be written to");
    prepare(&data_dir(&home));
    home
}

fn log_of(home: &TempDir, start: u32) -> File {
    File::create(log_file(home, start)).expect("a fresh folder can be written to")
}

fn spawn(home: &TempDir, environment: &Environment, log: impl Into<Stdio>) -> Guarded {
    let mut command = command();
    command
        .arg("run")
        .arg("--config")
        .arg(home.path().join("bridge.toml"))
        .env("AGORA_RTM_BRIDGE__DATA_DIR", data_dir(home))
        .env("AGORA_RTM_BRIDGE__HTTP__LISTEN", "127.0.0.1:0")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(log);
    Guarded::spawn(&mut command, home.path())
}

fn log_file(home: &TempDir, start: u32) -> PathBuf {
    home.path().join(format!("bridge-{start}.log"))
}

fn data_dir(home: &TempDir) -> PathBuf {
    home.path().join("data")
}

/// Finds `listen=127.0.0.1:1234` in a text log, or `"listen":"127.0.0.1:1234"` in a JSON log.
pub(crate) fn listen_address(log: &str) -> Option<SocketAddr> {
    // The last line may be incomplete, and counts only once it is complete.
    let whole = &log[..=log.rfind('\n')?];
    whole.split("listen").skip(1).find_map(|rest| {
        let value = rest.trim_start_matches(['"', '=', ':', ' ']);
        let end = value.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')?;
        value[..end].parse().ok()
    })
}

/// Sends a request to an HTTP port of a bridge.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<HttpAnswer> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;

    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(HttpAnswer { status, body: body.to_owned() })
}

fn sum(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        // The value follows the labels, which may contain spaces.
        .filter_map(|rest| {
            rest.rsplit_once('}').map_or(rest, |(_, value)| value).split_whitespace().next()
        })
        .map(|value| value.parse::<f64>().expect("a sample's value is a number"))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_both_kinds_of_log() {
        let address = Some("127.0.0.1:4711".parse().unwrap());
        let cases = [
            ("12:00 INFO ready to be asked listen=127.0.0.1:4711\n", address),
            ("INFO listening at a port listen=127.0.0.1:4711 pid=1\n", address),
            (r#"{"message":"listening","listen":"127.0.0.1:4711"}"#, None),
            ("{\"message\":\"listening\",\"listen\":\"127.0.0.1:4711\"}\n", address),
            ("INFO listen=127.0.0.1:47", None),
            ("", None),
        ];
        for (log, expected) in cases {
            assert_eq!(listen_address(log), expected, "{log}");
        }
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_no_other_name() {
        let metrics = "# TYPE pages counter\n\
                       pages_total{feed=\"a} b\"} 3\n\
                       pages_total{feed=\"c\"} 4.5 1700000000\n\
                       pages_total_more 9\n\
                       lag 2\n";
        assert_eq!(sum(metrics, "pages_total"), 7.5);
        assert_eq!(sum(metrics, "lag"), 2.0);
        assert_eq!(sum(metrics, "absent"), 0.0);
    }
}
