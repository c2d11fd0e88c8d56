//! Serves a [`World`] over HTTP: listeners, requests, and answers that break off as the faults
//! demand.
//!
//! One listener per region, HTTP/1.1 with keep-alive, in real time: the request "arrives" after
//! half a round trip, and the answer leaves after the other half. It uses plain sockets, because a
//! server library doesn't let answers break off:
//!
//! - *reset*: the bytes are sent, the client gets some time to read them, then the connection is
//!   closed with `SO_LINGER` zero;
//! - *refused*: while a region refuses every connection, its listener is closed, together with
//!   every idle connection; if it refuses only some, those are reset when accepted;
//! - *black hole*: accepted and never read. Existing connections are not affected.
//!
//! `GET /simulator/ledger` returns the ledger's [`Summary`](super::Summary) and takes no events.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::wire::{Answer, Connection, Ending, Framing, Request};
use super::world::World;

/// The path of the [`Summary`](super::Summary).
pub const LEDGER_PATH: &str = "/simulator/ledger";

/// Interval at which the world advances between requests.
const TICK: Duration = Duration::from_millis(50);

/// Time for a client to read the bytes before a reset, which discards everything still in the
/// sender's buffer.
const TIME_TO_READ: Duration = Duration::from_millis(200);

/// The largest request head; clients of Agora send a few hundred bytes.
const LARGEST_HEAD: usize = 16 * 1024;

const CHUNK: usize = 8 * 1024;

/// A world that is served.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address of each region, in script order.
    pub addresses: Vec<SocketAddr>,
    /// The world itself. Never hold it across an `await`.
    pub world: Arc<Mutex<World>>,
    clock: ServerClock,
}

/// Simulated time: continues from the world's time when serving began.
#[derive(Clone, Copy, Debug)]
struct ServerClock {
    started: Instant,
    offset: Duration,
}

/// Shared by all tasks.
#[derive(Clone)]
struct Face {
    world: Arc<Mutex<World>>,
    clock: ServerClock,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// One region of it.
#[derive(Clone)]
struct Station {
    face: Face,
    region: usize,
    address: SocketAddr,
    /// Cancelled when the listener closes.
    open: CancellationToken,
}

/// A request head, and whether the connection may carry another request.
struct AskedHead {
    request: Request,
    is_last: bool,
}

/// Serves a world until `stop`, each region at one address (port 0: any free port).
///
/// # Errors
///
/// The number of addresses differs from that of regions, or listening on one of them failed.
pub async fn serve(
    world: World,
    listen: Vec<SocketAddr>,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> io::Result<Server> {
    if world.script().regions.len() != listen.len() {
        let reason = "need exactly one address per region";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let clock = ServerClock { started: Instant::now(), offset: world.now() };
    let world = Arc::new(Mutex::new(world));
    let face = Face { world: Arc::clone(&world), clock, tracker: tracker.clone(), stop };
    let mut stations = Vec::new();
    for (region, address) in listen.into_iter().enumerate() {
        let listener = TcpListener::bind(address).await?;
        let (face, address) = (face.clone(), listener.local_addr()?);
        let open = face.stop.child_token();
        stations.push((Station { face, region, address, open }, listener));
    }
    let addresses = stations.iter().map(|(station, _)| station.address).collect();
    for (station, listener) in stations {
        // Starts closed: no connection may get in before the task runs.
        let is_closed = station.closing().is_some_and(|(from, _)| from <= clock.now());
        tracker.spawn(station.listen((!is_closed).then_some(listener)));
    }
    tracker.spawn(face.tick());
    Ok(Server { addresses, world, clock })
}

// === impl Server ===

impl Server {
    /// The base URL of a region.
    pub fn url(&self, region: usize) -> Option<String> {
        self.addresses.get(region).map(|address| format!("http://{address}"))
    }

    /// The world, to inspect or to change. Never hold it across an `await`.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Simulated time.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }
}

// === impl Clock ===

impl ServerClock {
    fn now(self) -> Duration {
        self.offset + self.started.elapsed()
    }

    fn instant(self, at: Duration) -> Option<Instant> {
        self.started.checked_add(at.saturating_sub(self.offset))
    }
}

// === impl Face ===

impl Face {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tick(self) {
        while self.stop.run_until_cancelled(sleep(TICK)).await.is_some() {
            self.world().advance(self.clock.now());
        }
    }
}

// === impl Station ===

impl Station {
    /// Listens, except while the region refuses every connection.
    async fn listen(mut self, mut listener: Option<TcpListener>) {
        let stop = self.face.stop.clone();
        loop {
            match listener.take() {
                Some(open) => {
                    if stop.run_until_cancelled(self.accept_until_closing(&open)).await.is_none() {
                        return;
                    }
                    self.open.cancel();
                }
                None => {
                    let Some(reopened) = stop.run_until_cancelled(self.reopen()).await else {
                        return;
                    };
                    self.open = stop.child_token();
                    listener = Some(reopened);
                }
            }
        }
    }

    /// The current period of refusal, or else the next one.
    fn closing(&self) -> Option<(Duration, Duration)> {
        let now = self.face.clock.now();
        let closed = self.face.world().closed(self.region);
        closed.into_iter().filter(|(_, until)| now < *until).min()
    }

    async fn accept_until_closing(&self, listener: &TcpListener) {
        loop {
            let closing = self.closing().and_then(|(from, _)| self.face.clock.instant(from));
            tokio::select! {
                biased;
                () = until(closing) => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    // Out of file descriptors, or a client that left at once: the next accept may
                    // succeed.
                    Err(_) => sleep(TICK).await,
                },
            }
        }
    }

    async fn reopen(&self) -> TcpListener {
        loop {
            if let Some((from, to)) = self.closing()
                && from <= self.face.clock.now()
            {
                until(self.face.clock.instant(to)).await;
                continue;
            }
            match TcpListener::bind(self.address).await {
                Ok(listener) => return listener,
                Err(_) => sleep(TICK).await,
            }
        }
    }

    fn welcome(&self, stream: TcpStream) {
        let connection = self.face.world().connect(self.face.clock.now(), self.region);
        let station = self.clone();
        match connection {
            Connection::Accepted => {
                self.face.tracker.spawn(async move {
                    // A client that disconnected is not our error.
                    station.converse(stream).await.ok();
                });
            }
            Connection::Refused => {
                stream.set_zero_linger().ok();
            }
            Connection::BlackHole => {
                self.face.tracker.spawn(async move {
                    station.face.stop.cancelled().await;
                    drop(stream);
                });
            }
        }
    }

    /// Serves one connection, request by request.
    async fn converse(self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        loop {
            let idle_timeout = self.face.world().idle_timeout();
            let idle_until = idle_timeout.and_then(|it| Instant::now().checked_add(it));
            let asked = tokio::select! {
                biased;
                asked = read_head(&mut stream, &mut buffer) => asked?,
                () = until(idle_until) => return Ok(()),
                () = self.open.cancelled() => return Ok(()),
            };
            let Some(AskedHead { request, is_last }) = asked else { return Ok(()) };
            let answer = self.answer(&request).await;
            let is_whole = matches!(answer.ending, Ending::Whole | Ending::Slow { .. });
            let is_over = is_last || !is_whole || answer.framing == Framing::UntilClose;
            let stop = self.face.stop.clone();
            let sent = stop.run_until_cancelled(self.send(&mut stream, answer)).await;
            if is_over || sent.transpose()?.is_none() {
                return Ok(());
            }
        }
    }

    async fn answer(&self, request: &Request) -> Answer {
        let clock = self.face.clock;
        if request.path == LEDGER_PATH {
            let mut world = self.face.world();
            world.advance(clock.now());
            return ledger_page(&world);
        }
        let (there, back) = self.face.world().round_trip();
        sleep(there).await;
        let answer = {
            let mut world = self.face.world();
            // Read under the lock, so that time doesn't run backwards between two requests.
            world.answer(clock.now(), self.region, request)
        };
        sleep(back).await;
        answer
    }

    async fn send(&self, stream: &mut TcpStream, answer: Answer) -> io::Result<()> {
        let number = answer.number;
        if let Some((mut head, body)) = on_the_wire(&answer) {
            match answer.ending {
                Ending::Slow { bytes_per_second } => {
                    stream.write_all(&head).await?;
                    write_slowly(stream, &body, bytes_per_second).await?;
                }
                _ => {
                    head.extend_from_slice(&body);
                    stream.write_all(&head).await?;
                }
            }
            self.face.world().sent(number, self.face.clock.now());
        }
        match answer.ending {
            Ending::Whole | Ending::Slow { .. } => Ok(()),
            Ending::Cut { .. } => stream.shutdown().await,
            Ending::Reset { .. } => {
                sleep(TIME_TO_READ).await;
                stream.set_zero_linger()
            }
            Ending::NoAnswer => stream.set_zero_linger(),
            Ending::Silent { .. } | Ending::Never => wait_for_the_end(stream).await,
        }
    }
}

/// Waits until then; forever if there is no such time.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The next request head; `None` if the client closed the connection.
///
/// Cancel-safe: bytes already read are in the buffer.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<AskedHead>> {
    loop {
        if let Some((asked, length)) = parse_head(buffer)? {
            buffer.drain(..length);
            return Ok(Some(asked));
        }
        if buffer.len() > LARGEST_HEAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the request head is too large",
            ));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse_head(buffer: &[u8]) -> io::Result<Option<(AskedHead, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let parsed = head.parse(buffer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: head.path.unwrap_or_default().to_owned(),
        headers: head.headers.iter().map(|it| (it.name.to_owned(), text(it.value))).collect(),
    };
    let wants_close =
        request.value_of("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"));
    let has_body = request.value_of("content-length").is_some_and(|it| it != "0")
        || request.value_of("transfer-encoding").is_some();
    // These endpoints ignore request bodies; leaving one unread costs the connection.
    let is_last = wants_close || has_body || head.version != Some(1);
    Ok(Some((AskedHead { request, is_last }, length)))
}

/// The bytes of head and body that are sent; `None` if none are.
fn on_the_wire(answer: &Answer) -> Option<(Vec<u8>, Vec<u8>)> {
    let sent = answer.sent_body()?;
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    for (name, value) in &answer.headers {
        write!(head, "{name}: {value}\r\n").expect("writing into memory never fails");
    }
    match answer.framing {
        Framing::Length => write!(head, "Content-Length: {}\r\n\r\n", answer.body.len()),
        Framing::Chunked => write!(head, "Transfer-Encoding: chunked\r\n\r\n"),
        Framing::UntilClose => write!(head, "Connection: close\r\n\r\n"),
    }
    .expect("writing into memory never fails");
    let body = match answer.framing {
        Framing::Length | Framing::UntilClose => sent.to_vec(),
        Framing::Chunked => {
            let mut chunks = Vec::new();
            write_chunks(&answer.body, sent.len(), &mut chunks);
            chunks
        }
    };
    Some((head.into_bytes(), body))
}

/// Writes chunks as if the whole body were sent, but only `sent` bytes of it.
fn write_chunks(body: &[u8], sent: usize, out: &mut Vec<u8>) {
    let mut left = sent;
    for chunk in body.chunks(CHUNK) {
        if left == 0 && sent < body.len() {
            return;
        }
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend(chunk.iter().take(left));
        if left < chunk.len() {
            return;
        }
        out.extend_from_slice(b"\r\n");
        left -= chunk.len();
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Something",
    }
}

/// Twenty pieces a second, each at the time when its last byte is due.
async fn write_slowly(stream: &mut TcpStream, bytes: &[u8], pace: u32) -> io::Result<()> {
    let begun = Instant::now();
    let piece = usize::try_from(pace / 20).unwrap_or(1).max(1);
    let mut written = 0;
    for piece in bytes.chunks(piece) {
        written += piece.len();
        let takes = Duration::from_secs_f64(written as f64 / f64::from(pace.max(1)));
        tokio::time::sleep_until(begun + takes).await;
        stream.write_all(piece).await?;
    }
    Ok(())
}

/// Sends nothing until the client disconnects.
async fn wait_for_the_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 1_024];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

/// The answer at [`LEDGER_PATH`]. Agora has no such page, so it gets no number in the ledger.
fn ledger_page(world: &World) -> Answer {
    let body = serde_json::to_vec(&world.ledger().summary()).expect("a summary is plain numbers");
    Answer {
        number: u64::MAX,
        status: 200,
        headers: vec![("Content-Type".into(), "application/json".into())],
        body,
        framing: Framing::Length,
        ending: Ending::Whole,
    }
}

#[cfg(test)]
mod tests;
