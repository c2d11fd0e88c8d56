use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::model::{AppId, Clock, Endpoint};
use crate::observe::accounts::{Accounts, Column};

/// Size of an answer that exceeds the buffers of a socket.
const LARGE: usize = 16 << 20;

/// Starts a server on a free port, with content on each page.
struct Server {
    address: SocketAddr,
    health: Health,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Server {
    async fn start() -> Self {
        let health = Health::new(Clock::system());
        let accounts = Accounts::default();
        accounts.open(&AppId::new("a"), Endpoint::User).add(Column::Received, 3);
        let mut metrics = Metrics::new();
        accounts.register(metrics.registry());
        let status = move || json!({ "accounts": accounts.snapshot(), "large": "x".repeat(LARGE) });
        let pages =
            Pages { metrics: Arc::new(metrics), health: health.clone(), status: Arc::new(status) };

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, tasks) = (stop.clone(), tracker.clone());
        tracker.spawn(async move { serve(listener, pages, stopped, &tasks).await });
        Self { address, health, stop, tracker }
    }

    /// Sends a request, or the beginning of one, as given.
    async fn begin(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request and returns status, head and body of the answer.
    async fn ask(&self, request: &str) -> (u16, String, String) {
        let mut stream = self.begin(request).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }
}

#[tokio::test]
async fn every_page_of_the_index_answers() {
    let server = Server::start().await;
    server.health.polling_begun();
    let (status, _, index) = server.get("/").await;
    assert_eq!(status, 200);
    let paths: Vec<&str> = index
        .lines()
        .filter(|line| line.starts_with('/'))
        .filter_map(|l| l.split(' ').next())
        .collect();
    assert_eq!(paths, ["/metrics", "/ready", "/live", "/status.json"]);
    for path in paths {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn metrics_are_openmetrics_text() {
    let (_, head, body) = Server::start().await.get("/metrics").await;
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("\nagora_rtm_bridge_events_waiting{"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn readiness_fails_with_reasons_while_liveness_holds() {
    let server = Server::start().await;
    server.health.polling_begun();
    let condition = server.health.condition("journal", "disk");
    condition.failing("no space left");

    let (status, head, body) = server.get("/ready").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(body["ready"], false);
    assert_eq!(body["reasons"][0]["reason"], "no space left");
    assert_eq!(server.get("/live").await.0, 200);

    condition.ok();
    let (status, _, body) = server.get("/ready").await;
    assert_eq!((status, body.as_str()), (200, "{\"ready\":true,\"reasons\":[]}"));
}

#[tokio::test]
async fn the_status_is_what_the_closure_says_at_the_request() {
    let (status, _, body) = Server::start().await.get("/status.json").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(body["accounts"][0]["received"], 3);
    assert_eq!(body["accounts"][0]["waiting"], 3);
    assert_eq!(body["large"].as_str().unwrap().len(), LARGE);
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let server = Server::start().await;
    let (status, head, body) = server.ask("HEAD /live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 5"), "{head}");
}

#[tokio::test]
async fn nothing_but_get_and_head_is_allowed_and_nothing_unlisted_is_found() {
    let server = Server::start().await;
    for (request, expected) in [
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 405),
        ("DELETE /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /live?probe=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("nonsense\r\n\r\n", 400),
    ] {
        let (status, head, _) = server.ask(request).await;
        assert_eq!(status, expected, "{request}");
        assert_eq!(status == 405, head.contains("allow: get, head"), "{head}");
    }
}

// In the tests below the clock is paused: time advances only when all tasks are idle, and then at
// once.

#[tokio::test(start_paused = true)]
async fn silent_clients_cannot_lock_others_out() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(server.begin("GET /live HTTP/1.1\r\nHost:").await);
    }
    let asked = Instant::now();
    assert_eq!(server.get("/live").await.0, 200);
    assert!(asked.elapsed() < CONNECTION_TIMEOUT, "{:?}", asked.elapsed());
}

/// The clock is paused, so an answer that had to wait for anything is detected.
#[tokio::test(start_paused = true)]
async fn a_probe_is_answered_at_once_however_many_slow_connections_there_are() {
    let server = Server::start().await;
    let mut slow = Vec::new();
    for _ in 0..4 * MAX_CONNECTIONS {
        slow.push(server.begin("GET /live HTTP/1.1\r\nHost:").await);
        let asked = Instant::now();
        if slow.len() % MAX_CONNECTIONS < 2 {
            assert_eq!(server.get("/live").await.0, 200);
            assert!(asked.elapsed() < HEAD_TIMEOUT / 2, "{:?}", asked.elapsed());
        }
    }
    // The oldest of them was evicted, and the youngest are still open.
    let mut rest = Vec::new();
    slow.remove(0).read_to_end(&mut rest).await.unwrap_or_default();
    assert_eq!(rest, b"");
    let mut last = slow.pop().unwrap();
    last.write_all(b" x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn where_each_client_has_sent_a_head_the_oldest_gives_way() {
    let connections = Connections::new();
    let mut seats = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let seat = connections.seat().await;
        seat.head_has_come();
        seats.push(seat);
    }
    let oldest = seats.remove(0);
    let gives_way = async move {
        oldest.taken.cancelled().await;
        drop(oldest);
    };
    let (_new, ()) = tokio::join!(connections.seat(), gives_way);
    assert!(seats.iter().all(|seat| !seat.taken.is_cancelled()));
}

#[tokio::test(start_paused = true)]
async fn clients_that_do_not_read_give_way_before_probes_that_have_just_come() {
    let connections = Connections::new();
    let mut deaf = Vec::new();
    for _ in 1..MAX_CONNECTIONS {
        let seat = connections.seat().await;
        seat.head_has_come();
        deaf.push(seat);
    }
    sleep(2 * UNREAD).await;
    let probe = connections.seat().await;
    let oldest = deaf.remove(0);
    let gives_way = async move {
        oldest.taken.cancelled().await;
        drop(oldest);
    };
    let (_another, ()) = tokio::join!(connections.seat(), gives_way);
    assert!(!probe.taken.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_second() {
    let server = Server::start().await;
    let begun = Instant::now();
    let mut slow = server.begin("GET /live HTTP/1.1\r\nHost:").await;
    slow.read_to_end(&mut Vec::new()).await.unwrap_or_default();
    assert!(begun.elapsed() <= 2 * HEAD_TIMEOUT, "{:?}", begun.elapsed());
    assert_eq!(HEAD_TIMEOUT, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_given_up() {
    let server = Server::start().await;
    let _deaf = server.begin("GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n").await;
    sleep(2 * CONNECTION_TIMEOUT).await;
    assert_eq!(server.tracker.len(), 1, "the listener alone");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_no_client() {
    let server = Server::start().await;
    let _silent = server.begin("GET /live").await;
    let _deaf = server.begin("GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(server.get("/live").await.0, 200);
    let stopped = Instant::now();
    server.stop.cancel();
    server.tracker.close();
    server.tracker.wait().await;
    assert!(stopped.elapsed() < 2 * LAST_WORDS, "{:?}", stopped.elapsed());
}
