//! A server that gives each App ID its odd answer once, and then empty pages.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use super::cases::{Case, STATUSES, app_of_status};

/// It goes with the value.
pub(super) struct Server {
    address: SocketAddr,
    script: Arc<Script>,
    /// Its thread is the server.
    _runtime: Runtime,
}

struct Script {
    /// What each App ID is told first; what follows an answer that ends with `true` is a reset.
    odd: BTreeMap<String, (Vec<u8>, bool)>,
    asked: Mutex<BTreeMap<String, usize>>,
}

const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 33\r\nConnection: close\r\n\r\n\
                       {\"result\":\"success\",\"events\":[]} ";

// === impl Server ===

impl Server {
    pub(super) fn start(cases: &[Case]) -> Self {
        let odd = cases.iter().map(|case| (case.app(), (closing(&case.answer), case.reset)));
        let script = Arc::new(Script { odd: odd.collect(), asked: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .expect("loopback has free ports");
        let address = listener.local_addr().expect("it listens");
        let of_task = Arc::clone(&script);
        let tasks = TaskTracker::new();
        let connections = tasks.clone();
        let serving = async move {
            loop {
                let (stream, _) = listener.accept().await.expect("it listens");
                let script = Arc::clone(&of_task);
                // A client that leaves early is no trouble of ours.
                connections.spawn(async move { script.answer(stream).await.ok() });
            }
        };
        tasks.spawn_on(serving, runtime.handle());
        Self { address, script, _runtime: runtime }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether these App IDs have asked once more after their odd answers.
    pub(super) fn have_asked_again<'a>(&self, mut apps: impl Iterator<Item = &'a String>) -> bool {
        let asked = self.script.asked.lock().expect("nobody panics holding it");
        apps.all(|app| asked.get(app).is_some_and(|times| *times > 1))
    }
}

/// The answer, announcing that its connection closes: a next request on a connection that is just
/// closing would be lost, and told by a gap of its own.
fn closing(answer: &[u8]) -> Vec<u8> {
    let is_final = |at: &usize| {
        let rest = answer.get(*at..).unwrap_or_default();
        rest.starts_with(b"HTTP/1.1 ") && !rest.starts_with(b"HTTP/1.1 1")
    };
    let Some(head) = (0..answer.len()).find(is_final) else { return answer.to_vec() };
    let (before, rest) = answer.split_at(head);
    let Some(line) = rest.windows(2).position(|it| it == b"\r\n") else { return answer.to_vec() };
    let (line, fields) = rest.split_at(line + 2);
    [before, line, b"Connection: close\r\n", fields].concat()
}

// === impl Script ===

impl Script {
    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let app = head.split('/').nth(4).unwrap_or_default().to_owned();
        if let Some(status) = STATUSES.into_iter().find(|status| app_of_status(*status) == app) {
            let head = format!(
                "HTTP/1.1 {status} No\r\nX-Request-ID: r{status}\r\nX-Resource-ID: o{status}\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return stream.write_all(head.as_bytes()).await;
        }
        let first = {
            let mut asked = self.asked.lock().expect("nobody panics holding it");
            let times = asked.entry(app.clone()).or_default();
            *times += 1;
            *times == 1
        };
        match self.odd.get(&app) {
            Some((answer, reset)) if first => {
                stream.write_all(answer).await?;
                if *reset { stream.set_zero_linger() } else { stream.shutdown().await }
            }
            _ => stream.write_all(EMPTY).await,
        }
    }
}
