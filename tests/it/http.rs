//! The real transport before a server that behaves badly: one call is one request, and of a body
//! that breaks off everything is kept that came.
//!
//! The server speaks HTTP/1.1 by hand, because what it does no server library allows. It knows a
//! request by its path, so a request that was sent twice is seen even where it broke off within
//! its first line.

mod certificates;
mod idle;
mod proxy;
mod tls;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use agora_rtm_bridge::agora::http::Http;
use agora_rtm_bridge::agora::{Raw, Reply, Request, Transport as _};
use agora_rtm_bridge::config::Agora;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the server does with a request and with its connection afterwards.
#[derive(Clone, Debug)]
enum Act {
    /// Answers and keeps the connection.
    Answer,
    /// Answers, and closes or resets the connection after this time, without having announced it.
    AnswerAndEnd { after: Duration, how: End },
    /// Ends the connection on the first bytes of the next request. Answers this one.
    AnswerAndEndOnNext { how: End },
    /// The same, and the answer announces after how many idle seconds that may happen.
    AnnounceAndEndOnNext { seconds: u32 },
    /// Reads the whole request, and ends the connection without a byte.
    EndUnanswered { how: End },
    /// Sends a part of a body, and then this.
    Break { framing: Framing, body: usize, sent: usize, then: Then },
    /// Reads the whole request and says nothing, forever.
    Silent,
    /// Sends these bytes and closes.
    Say(Vec<u8>),
    /// Sends a head and then a byte every 100 ms, forever.
    Drip,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Reset,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunked,
}

/// What follows a part of a body.
#[derive(Clone, Copy, Debug)]
enum Then {
    Close,
    /// After the time in which the client reads: a reset overtakes what is still on the way.
    Reset,
    Silence,
}

/// A server and what it saw.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Serves as long as the value lives.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    /// How often something of a request came, by its path.
    begun: BTreeMap<String, usize>,
    /// How often all of it came.
    arrived: BTreeMap<String, usize>,
}

/// So much of a request tells its path: `GET /0000000 `.
const FIRST_BYTES: usize = 13;

const SILENCE: Duration = Duration::from_secs(1);
const TIME_TO_READ: Duration = Duration::from_millis(200);

// === impl Server ===

impl Server {
    /// Serves; `decide` tells what becomes of each request.
    async fn start(decide: impl FnMut() -> Act + Send + 'static) -> Self {
        let (listener, address) = listen().await;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let decide = Arc::new(Mutex::new(decide));
        let mut tasks = JoinSet::new();
        let of_task = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("it listens");
                locked(&of_task).connections += 1;
                let (seen, decide) = (Arc::clone(&of_task), Arc::clone(&decide));
                // A client that leaves early is no trouble of ours.
                connections.spawn(async move {
                    converse(stream, &seen, &*decide).await.ok();
                });
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    fn request(&self, number: usize) -> Request {
        Request { url: format!("http://{}{}", self.address, path(number)), proof: Vec::new() }
    }

    /// How often something of this request came, and how often all of it.
    fn seen(&self, number: usize) -> (usize, usize) {
        let seen = locked(&self.seen);
        let times = |of: &BTreeMap<String, usize>| of.get(&path(number)).copied().unwrap_or(0);
        (times(&seen.begun), times(&seen.arrived))
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has free ports");
    let address = listener.local_addr().expect("it listens");
    (listener, address)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics holding it")
}

fn path(number: usize) -> String {
    format!("/{number:07}")
}

/// One connection, request by request.
async fn converse(
    mut stream: TcpStream,
    seen: &Mutex<Seen>,
    decide: &Mutex<impl FnMut() -> Act>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let Some(path) = read_path(&mut stream, seen).await? else { return Ok(()) };
        read_rest(&mut stream).await?;
        *locked(seen).arrived.entry(path.clone()).or_default() += 1;
        let act = locked(decide)();
        match act {
            Act::Answer => write_answer(&mut stream, &path).await?,
            Act::AnswerAndEnd { after, how } => {
                write_answer(&mut stream, &path).await?;
                sleep(after).await;
                return end(stream, how);
            }
            Act::AnswerAndEndOnNext { how } => {
                write_answer(&mut stream, &path).await?;
                read_path(&mut stream, seen).await?;
                return end(stream, how);
            }
            Act::AnnounceAndEndOnNext { seconds } => {
                let head = format!("HTTP/1.1 200 OK\r\nKeep-Alive: timeout={seconds}, max=9\r\n");
                let answer = format!("{head}Content-Length: {}\r\n\r\n{path}", path.len());
                stream.write_all(answer.as_bytes()).await?;
                read_path(&mut stream, seen).await?;
                return end(stream, End::Close);
            }
            Act::EndUnanswered { how } => return end(stream, how),
            Act::Break { framing, body, sent, then } => {
                stream.write_all(&broken(framing, body, sent)).await?;
                match then {
                    Then::Close => return end(stream, End::Close),
                    Then::Reset => {
                        sleep(TIME_TO_READ).await;
                        return end(stream, End::Reset);
                    }
                    Then::Silence => std::future::pending().await,
                }
            }
            Act::Silent => std::future::pending().await,
            Act::Say(bytes) => {
                stream.write_all(&bytes).await?;
                return end(stream, End::Close);
            }
            Act::Drip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n").await?;
                loop {
                    stream.write_all(b"x").await?;
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Reads the first bytes of a request; its path, or `None` where the client has closed.
async fn read_path(stream: &mut TcpStream, seen: &Mutex<Seen>) -> io::Result<Option<String>> {
    let mut first = [0; FIRST_BYTES];
    if stream.read_exact(&mut first).await.is_err() {
        return Ok(None);
    }
    let text = str::from_utf8(&first).expect("a request begins in ASCII");
    let path = text.split(' ').nth(1).expect("a request line").to_owned();
    *locked(seen).begun.entry(path.clone()).or_default() += 1;
    Ok(Some(path))
}

async fn read_rest(stream: &mut TcpStream) -> io::Result<()> {
    let mut end = [0; 4];
    while &end != b"\r\n\r\n" {
        end.rotate_left(1);
        end[3] = stream.read_u8().await?;
    }
    Ok(())
}

/// The body of an answer is the path that was asked for.
async fn write_answer(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
    stream.write_all(answer.as_bytes()).await
}

fn end(stream: TcpStream, how: End) -> io::Result<()> {
    match how {
        End::Close => drop(stream),
        End::Reset => stream.set_zero_linger()?,
    }
    Ok(())
}

/// An answer whose body is announced with `body` bytes and ends after `sent` of them.
fn broken(framing: Framing, body: usize, sent: usize) -> Vec<u8> {
    const CHUNK: usize = 8_192;
    let mut bytes = body_of(body);
    bytes.truncate(sent);
    let mut answer = b"HTTP/1.1 200 OK\r\nX-Request-ID: r1\r\n".to_vec();
    match framing {
        Framing::Length => {
            answer.extend(format!("Content-Length: {body}\r\n\r\n").into_bytes());
            answer.extend(&bytes);
        }
        Framing::Chunked => {
            answer.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in bytes.chunks(CHUNK) {
                // The last one is announced larger than what comes of it.
                answer.extend(format!("{CHUNK:x}\r\n").into_bytes());
                answer.extend(chunk);
                if chunk.len() == CHUNK {
                    answer.extend(b"\r\n");
                }
            }
        }
    }
    answer
}

fn body_of(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}

fn settings() -> Agora {
    Agora {
        connect_timeout: Duration::from_secs(10),
        silence_timeout: SILENCE,
        ca_file: None,
        system_certificates: true,
        client_certificate: None,
        proxy: None,
        proxy_password: None,
    }
}

fn transport() -> Http {
    Http::new(&settings()).expect("these settings are usual ones")
}

// === one drain is one request ===

const ASKS: usize = 2_000;
const WORKERS: usize = 4;

/// Every way to end a connection, at moments around the one at which the next request leaves.
fn any_act(random: &mut StdRng) -> Act {
    let how = if random.random() { End::Close } else { End::Reset };
    // Half of them within the time in which a client takes an answer and asks again.
    let most = if random.random() { 200 } else { 3_000 };
    let after = Duration::from_micros(random.random_range(0..most));
    match random.random_range(0..8) {
        0..3 => Act::Answer,
        3..6 => Act::AnswerAndEnd { after, how },
        6 => Act::AnswerAndEndOnNext { how },
        _ => Act::EndUnanswered { how },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_is_at_most_one_request_whenever_a_pooled_connection_dies() {
    let mut random = StdRng::seed_from_u64(11);
    let server = Server::start(move || any_act(&mut random)).await;
    let http = transport();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let requests: Vec<_> = (worker..ASKS)
            .step_by(WORKERS)
            .map(|number| (number, server.request(number)))
            .collect();
        let http = http.clone();
        workers.spawn(async move {
            let mut replies = Vec::new();
            for (number, request) in requests {
                replies.push((number, http.ask(request).await));
            }
            replies
        });
    }
    let replies: Vec<(usize, Reply)> = workers.join_all().await.into_iter().flatten().collect();

    let (mut lost, mut not_sent) = (0, 0);
    for (number, reply) in replies {
        let (begun, arrived) = server.seen(number);
        assert!(begun <= 1 && arrived <= 1, "{number}: begun {begun}, arrived {arrived} times");
        match reply {
            Reply::Answered(Raw { body, cut, .. }) => {
                assert_eq!((arrived, cut), (1, None), "{number}");
                assert_eq!(body, path(number), "the answer to another request");
            }
            Reply::Lost(_) => lost += 1,
            Reply::NotSent(error) => {
                assert_eq!(begun, 0, "{number}: {error}");
                not_sent += 1;
            }
        }
    }
    let connections = locked(&server.seen).connections;
    eprintln!("{ASKS} asks, {connections} connections, {lost} lost, {not_sent} not sent");
    assert!(connections < ASKS * 3 / 4, "connections are used again: {connections}");
    assert!(lost > 0, "connections died in the middle");
}

// === what breaks off ===

async fn ask_once(act: Act) -> Reply {
    let server = Server::start(move || act.clone()).await;
    transport().ask(server.request(0)).await
}

#[tokio::test]
async fn of_a_body_that_breaks_off_every_byte_is_kept_that_came() {
    for framing in [Framing::Length, Framing::Chunked] {
        for then in [Then::Close, Then::Reset, Then::Silence] {
            for sent in [0, 1, 60_000, 99_999] {
                let case = format!("{framing:?}, {sent} bytes, {then:?}");
                let reply = ask_once(Act::Break { framing, body: 100_000, sent, then }).await;
                let Reply::Answered(raw) = reply else { panic!("{case}: {reply:?}") };
                assert_eq!(raw.status, 200, "{case}");
                assert_eq!(raw.request_id.as_deref(), Some("r1"), "{case}");
                assert!(raw.cut.is_some(), "{case}");
                assert!(raw.body == body_of(100_000)[..sent], "{case}: {} bytes", raw.body.len());
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_is_never_answered_ends_by_silence_and_is_lost() {
    let reply = ask_once(Act::Silent).await;
    let Reply::Lost(error) = reply else { panic!("{reply:?}") };
    assert!(error.to_string().contains("no data for"), "{error}");
}

#[tokio::test]
async fn a_request_whose_connection_ends_before_a_byte_of_the_answer_is_lost() {
    for how in [End::Close, End::Reset] {
        let reply = ask_once(Act::EndUnanswered { how }).await;
        assert!(matches!(reply, Reply::Lost(_)), "{how:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_request_that_finds_nobody_was_not_sent() {
    let (listener, address) = listen().await;
    drop(listener);
    let request = Request { url: format!("http://{address}/"), proof: Vec::new() };
    let reply = transport().ask(request).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
}

#[tokio::test]
async fn a_body_that_drips_ends_and_what_came_is_kept() {
    let reply = ask_once(Act::Drip).await;
    let Reply::Answered(raw) = reply else { panic!("{reply:?}") };
    let why = raw.cut.expect("it never ends by itself").to_string();
    assert!(why.contains("not complete after 5s"), "{why}");
    assert!(raw.body.len() > 10 && raw.body.iter().all(|byte| *byte == b'x'), "{:?}", raw.body);
}

// === what stands before a body ===

#[tokio::test]
async fn no_head_costs_the_body_behind_it() {
    let length = "Content-Length: 2\r\n\r\n{}";
    let flood: String = (0..1_000).map(|n| format!("X-{n}: {}\r\n", "y".repeat(200))).collect();
    let heads = [
        format!("HTTP/1.1 200 OK\r\n{flood}{length}"),
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{length}"),
        format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n{length}"),
        format!("HTTP/1.1 200 OK\r\nX bad name: 1\r\nX-Space : 1\r\n{length}"),
        format!("HTTP/1.1 200 OK\r\nX-Folded: 1\r\n 2\r\n{length}"),
        format!("HTTP/1.1 200 OK\r\nX-Byte: \u{1}\r\n{length}"),
        format!("HTTP/1.0 200\r\n{length}"),
        "HTTP/1.0 200 OK\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nA: b\r\n\r\n"
            .to_owned(),
    ];
    for head in heads {
        let shown = head.chars().take(60).collect::<String>();
        let reply = ask_once(Act::Say(head.into_bytes())).await;
        let Reply::Answered(raw) = reply else { panic!("{shown:?}: {reply:?}") };
        assert_eq!((raw.status, &raw.cut, &*raw.body), (200, &None, &b"{}"[..]), "{shown:?}");
    }
}

/// Neither is a head that an event can stand behind.
#[tokio::test]
async fn a_head_without_end_and_a_switch_of_protocols_are_lost() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(1_000_000)).into_bytes();
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    for (bytes, name) in [(endless, "endless"), (switch.to_vec(), "switch")] {
        match ask_once(Act::Say(bytes)).await {
            Reply::Lost(_) => {}
            Reply::Answered(raw) => assert_eq!((raw.status, raw.body.len()), (101, 0), "{name}"),
            reply @ Reply::NotSent(_) => panic!("{name}: {reply:?}"),
        }
    }
}

#[tokio::test]
async fn a_host_is_asked_over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return eprintln!("this machine has no IPv6");
    };
    let address = listener.local_addr().expect("it listens");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("it listens");
        read_rest(&mut stream).await.expect("a request comes");
        write_answer(&mut stream, "/v6").await.expect("it is read");
    });
    let request = Request { url: format!("http://{address}/"), proof: Vec::new() };
    let Reply::Answered(raw) = transport().ask(request).await else { panic!("not answered") };
    assert_eq!(raw.body, "/v6");
}
