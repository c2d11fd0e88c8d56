//! The HTTP server, tested with a minimal client that doesn't hide or repair anything.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::model::Endpoint;
use crate::simulator::{
    AppScript, Burst, Fault, FaultKind, FramingChoice, Load, Network, RegionScript, Script, Spread,
    TokenScript,
};

const PATH: &str = "/dev/v2/project/app/rtm/vendor/user_events";

/// `events` user events at time zero, no round trip time.
fn script(events: u32) -> Script {
    let bursts = vec![Burst { at: Duration::ZERO, events, over: Duration::ZERO }];
    let tokens = vec![TokenScript { token: "good".into(), user_id: None, until: None }];
    let app = AppScript {
        app_id: crate::model::AppId::new("app"),
        tokens,
        user_events: Load { bursts, ..Load::default() },
        ..AppScript::default()
    };
    let network = Network { rtt: Spread::always(Duration::ZERO), ..Network::default() };
    Script { apps: vec![app], network, ..Script::default() }
}

struct Bench {
    server: Server,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Bench {
    async fn new(script: Script) -> Self {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let listen = vec!["127.0.0.1:0".parse().unwrap(); script.regions.len()];
        let world = World::new(script);
        let server = serve(world, listen, &tracker, stop.clone()).await.unwrap();
        Self { server, tracker, stop }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.addresses[0]).await.unwrap()
    }

    /// Every task ends when it should.
    async fn stop(self) -> Server {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.server
    }
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Agora-Token: good\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// Reads until the connection ends; returns the bytes and how it ended.
async fn rest(stream: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let end = loop {
        match stream.read_buf(&mut bytes).await {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    (bytes, end)
}

/// Reads one answer with a `Content-Length`.
async fn body(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed early");
        let Some((head, body)) = split(&bytes) else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return body.to_vec();
        }
    }
}

fn split(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    Some((String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end..]))
}

fn count(body: &[u8]) -> usize {
    let body: Value = serde_json::from_slice(body).unwrap();
    body["events"].as_array().unwrap().len()
}

fn closing_braces(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'}').count() as u64
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let bench = Bench::new(script(1_500)).await;
    let mut stream = bench.connect().await;
    for expected in [1_000, 500, 0] {
        ask(&mut stream, PATH).await;
        assert_eq!(count(&body(&mut stream).await), expected);
    }
    let server = bench.stop().await;
    assert_eq!(server.world().ledger().total().delivered, 1_500);
    assert!(server.world().ledger().answers().iter().all(|it| it.sent_at >= Some(it.at)));
}

#[tokio::test]
async fn each_framing_carries_the_same_body() {
    for framing in [FramingChoice::Length, FramingChoice::Chunked, FramingChoice::UntilClose] {
        let script = script(500);
        let network = Network { framing, ..script.network };
        let bench = Bench::new(Script { network, ..script }).await;
        let mut stream = bench.connect().await;
        let head =
            format!("GET {PATH} HTTP/1.1\r\nConnection: close\r\nX-Agora-Token: good\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (bytes, end) = rest(&mut stream).await;
        end.unwrap();
        let (_, body) = split(&bytes).unwrap();
        let body = if framing == FramingChoice::Chunked { unchunked(body) } else { body.to_vec() };
        assert_eq!(count(&body), 500, "{framing:?}");
        bench.stop().await;
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|it| it == b"\r\n").unwrap();
        let length = std::str::from_utf8(&bytes[..line]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        let start = line + 2;
        assert_eq!(&bytes[start + length..start + length + 2], b"\r\n");
        body.extend_from_slice(&bytes[start..start + length]);
        bytes = &bytes[start + length + 2..];
        if length == 0 {
            assert!(bytes.is_empty());
            return body;
        }
    }
}

#[tokio::test]
async fn a_broken_answer_brings_exactly_what_the_ledger_says() {
    for framing in [FramingChoice::Length, FramingChoice::Chunked, FramingChoice::UntilClose] {
        for (kind, is_reset) in [
            (FaultKind::Cut, false),
            (FaultKind::Reset, true),
            (FaultKind::NoAnswer, true),
            (FaultKind::Slow, false),
        ] {
            let script = script(1_000);
            // A slow answer is complete, so its connection is kept.
            let idle_timeout = Some(Duration::from_millis(50));
            let network = Network { framing, idle_timeout, ..script.network };
            let fault = Fault { bytes_per_second: 10_000_000, ..Fault::new(kind) };
            let bench = Bench::new(Script { network, faults: vec![fault], ..script }).await;
            let mut stream = bench.connect().await;
            ask(&mut stream, PATH).await;
            let (bytes, end) = rest(&mut stream).await;
            let is_as_told = match end {
                Err(error) => is_reset && error.kind() == io::ErrorKind::ConnectionReset,
                Ok(()) => !is_reset,
            };
            assert!(is_as_told, "{kind}");
            let server = bench.stop().await;
            let total = server.world().ledger().total();
            let envelope = u64::from(kind == FaultKind::Slow);
            assert_eq!(closing_braces(&bytes), total.delivered + envelope, "{kind} {framing:?}");
            assert_eq!(total.delivered + total.torn, 1_000);
        }
    }
}

#[tokio::test]
async fn the_body_of_a_page_takes_its_time_behind_its_head_and_the_connection_stays() {
    let script = script(1_500);
    let page_time = Some(Duration::from_millis(200));
    let network = Network { page_time, ..script.network };
    let bench = Bench::new(Script { network, ..script }).await;
    let mut stream = bench.connect().await;
    for (events, takes) in [(1_000, 200), (500, 100), (0, 0)] {
        let asked_at = Instant::now();
        ask(&mut stream, PATH).await;
        let body = body(&mut stream).await;
        assert_eq!(count(&body), events);
        let took = asked_at.elapsed();
        assert!(took >= Duration::from_millis(takes), "{events} events in {took:?}");
    }
    // The head is sent without waiting for the body.
    bench.server.world().burst(0, Endpoint::User, 1_000);
    bench.server.world().advance(bench.server.now());
    ask(&mut stream, PATH).await;
    let mut bytes = Vec::new();
    while split(&bytes).is_none() {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed early");
    }
    let (_, body) = split(&bytes).unwrap();
    assert!(body.len() < 50_000, "{} bytes of the body came with the head", body.len());
    drop(stream);
    bench.stop().await;
}

#[tokio::test]
async fn a_silent_body_stops_and_the_connection_stays() {
    let faults = vec![Fault::new(FaultKind::Silent)];
    let bench = Bench::new(Script { faults, ..script(1_000) }).await;
    let mut stream = bench.connect().await;
    ask(&mut stream, PATH).await;
    let mut bytes = Vec::new();
    let delivered = |bench: &Bench| bench.server.world().ledger().total().delivered;
    while closing_braces(&bytes) == 0 || closing_braces(&bytes) < delivered(&bench) {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed");
    }
    assert_eq!(closing_braces(&bytes), delivered(&bench));
    drop(stream);
    bench.stop().await;
}

#[tokio::test]
async fn a_black_hole_opens_and_says_nothing() {
    let faults = vec![Fault::new(FaultKind::BlackHole)];
    let bench = Bench::new(Script { faults, ..script(10) }).await;
    let mut stream = bench.connect().await;
    ask(&mut stream, PATH).await;
    let server = bench.stop().await;
    let (bytes, _) = rest(&mut stream).await;
    assert!(bytes.is_empty());
    assert_eq!(server.world().ledger().all_requests().asked, 0);
}

#[tokio::test]
async fn a_region_that_refuses_everybody_has_no_listener() {
    let regions = vec![RegionScript::new("closed"), RegionScript::new("open")];
    let faults = vec![Fault::new(FaultKind::Refused).region("closed")];
    let bench = Bench::new(Script { regions, faults, ..script(10) }).await;
    let refused = TcpStream::connect(bench.server.addresses[0]).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    TcpStream::connect(bench.server.addresses[1]).await.unwrap();
    bench.stop().await;
}

#[tokio::test]
async fn a_region_opens_again_when_its_time_of_refusal_is_over() {
    let faults =
        vec![Fault::new(FaultKind::Refused).between(Duration::ZERO, Duration::from_millis(50))];
    let bench = Bench::new(Script { faults, ..script(10) }).await;
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(bench.server.addresses[0]).await {
            break stream;
        }
        tokio::task::yield_now().await;
    };
    ask(&mut stream, PATH).await;
    assert_eq!(count(&body(&mut stream).await), 10);
    bench.stop().await;
}

#[tokio::test]
async fn a_closing_region_drops_idle_connections_too() {
    let bench = Bench::new(script(10)).await;
    let mut stream = bench.connect().await;
    ask(&mut stream, LEDGER_PATH).await;
    body(&mut stream).await;
    bench.server.world().set_faults(vec![Fault::new(FaultKind::Refused)]);
    // The last connection accepted makes the listener check the faults again.
    let mut late = bench.connect().await;
    assert!(rest(&mut late).await.0.is_empty());
    let (bytes, end) = rest(&mut stream).await;
    assert!(bytes.is_empty() && end.is_ok());
    bench.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_its_time() {
    let script = script(10);
    let idle_timeout = Some(Duration::from_millis(20));
    let network = Network { idle_timeout, ..script.network };
    let bench = Bench::new(Script { network, ..script }).await;
    let mut stream = bench.connect().await;
    let (bytes, end) = rest(&mut stream).await;
    assert!(bytes.is_empty() && end.is_ok());
    bench.stop().await;
}

#[tokio::test]
async fn the_ledger_can_be_read() {
    let bench = Bench::new(script(1_500)).await;
    let mut stream = bench.connect().await;
    ask(&mut stream, PATH).await;
    body(&mut stream).await;
    ask(&mut stream, LEDGER_PATH).await;
    let ledger: Value = serde_json::from_slice(&body(&mut stream).await).unwrap();
    let app = &ledger["apps"][0];
    assert_eq!(app["app_id"], "app");
    assert_eq!(app["requests"]["asked"], 1);
    assert_eq!(app["user_events"]["made"], 1_500);
    assert_eq!(app["user_events"]["delivered"], 1_000);
    assert_eq!(app["channel_events"]["made"], 0);
    let server = bench.stop().await;
    assert_eq!(server.world().ledger().totals(0, Endpoint::User).buffered, 500);
}

#[tokio::test]
async fn regions_and_addresses_have_to_match() {
    let tracker = TaskTracker::new();
    let listen = Vec::new();
    let world = World::new(script(1));
    let error = serve(world, listen, &tracker, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
