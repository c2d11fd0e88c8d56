//! The HTTP pages for people, probes and Prometheus.
//!
//! Read-only and small: others prepare the content, and no request changes anything. Resources are
//! limited, because strangers may be able to reach it: at most [`MAX_CONNECTIONS`] connections with
//! one request each, [`HEAD_TIMEOUT`] for its head and [`CONNECTION_TIMEOUT`] in total. Request
//! bodies are not read. If all places are taken, a new connection evicts the oldest one whose
//! client doesn't read its answer, or else the oldest one that has not sent its head, so slow
//! clients can't block probes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, future, io};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::error::{Chain, may_panic};
use crate::observe::health::Health;
use crate::observe::metrics;
use crate::observe::metrics::Metrics;

/// The content of the pages. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    /// The content of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The content of `/ready`.
    pub health: Health,
    /// Returns the content of `/status.json`. Called for each request; must not block.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

const MAX_CONNECTIONS: usize = 64;

/// Maximum size of a request's head, and of the buffer of a connection, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Maximum time from accepting a connection to the end of the request's head. A head has a few
/// hundred bytes, and a connection that needs longer is useless for a probe.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time from accepting a connection to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Time after which a client that hasn't read its answer may be evicted. Every answer is ready at
/// once, and the largest takes a fraction of this to send.
const UNREAD: Duration = Duration::from_secs(1);

/// Maximum time to finish an answer after the stop.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after the operating system failed to accept a connection, mostly for lack of file
/// descriptors: the next attempt would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The open connections. Cheap to clone; clones share.
#[derive(Clone, Debug)]
struct Connections {
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Number of the latest connection; the smallest number is the oldest.
    next: u64,
    /// Connections whose head has not arrived, with the token that ends them.
    silent: BTreeMap<u64, CancellationToken>,
    /// Connections being answered, with the start of the answer and the token that ends them.
    answered: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// The place of one connection, released on drop.
#[derive(Debug)]
struct Seat {
    connections: Connections,
    number: u64,
    /// Cancelled when another connection needs the place.
    taken: CancellationToken,
    _place: OwnedSemaphorePermit,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
agora-rtm-bridge

/metrics      all metrics, as OpenMetrics
/ready        200 while the bridge is healthy, else 503 with the reasons
/live         200 as long as the process answers
/status.json  accounts and state
";

/// Serves the pages on `listener` until `stop`; each connection is a task of `tracker`.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: CancellationToken,
    tracker: &TaskTracker,
) {
    let connections = Connections::new();
    loop {
        may_panic("http");
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, seat)) => {
                tracker.spawn(converse(stream, seat, pages.clone(), stop.clone()));
            }
            Err(error) => {
                warn!(error = %Chain(&error), "failed to accept an HTTP connection");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
) -> io::Result<(TcpStream, Seat)> {
    let (stream, _) = listener.accept().await?;
    Ok((stream, connections.seat().await))
}

async fn converse(stream: TcpStream, seat: Seat, pages: Pages, stop: CancellationToken) {
    let service = service_fn(|request: Request<_>| {
        seat.head_has_come();
        let response = respond(&pages, request.method(), request.uri().path());
        future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = timeout(CONNECTION_TIMEOUT, connection.as_mut()) => ended,
        () = seat.taken.cancelled() => return debug!("HTTP connection evicted to make room"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = %Chain(&error), "HTTP connection failed"),
        Err(error) => debug!(error = %Chain(&error), "HTTP connection timed out"),
    }
}

/// Answers a request. For HEAD, hyper leaves out the body.
fn respond(pages: &Pages, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match path {
        _ if method != Method::GET && method != Method::HEAD => return method_not_allowed(),
        "/" => (StatusCode::OK, TEXT, INDEX.into()),
        "/live" => (StatusCode::OK, TEXT, "live\n".into()),
        "/ready" => ready(&pages.health),
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, pages.metrics.text().into()),
        "/status.json" => (StatusCode::OK, JSON, format!("{:#}\n", (pages.status)()).into()),
        _ => (StatusCode::NOT_FOUND, TEXT, "not found; / lists the pages\n".into()),
    };
    page(status, content_type, body)
}

fn ready(health: &Health) -> (StatusCode, &'static str, Bytes) {
    let readiness = health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_vec(&readiness).expect("readiness has only text for keys");
    (status, JSON, body.into())
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into());
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}

fn page(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CACHE_CONTROL, "no-store")
        .body(Full::new(body))
        .expect("the parts are constants")
}

// === impl Connections ===

impl Connections {
    fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), open: Arc::default() }
    }

    /// Takes a place; if all are taken, evicts a connection.
    async fn seat(&self) -> Seat {
        if self.places.available_permits() == 0 {
            self.lock().evict();
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let taken = CancellationToken::new();
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        open.silent.insert(number, taken.clone());
        drop(open);
        Seat { connections: self.clone(), number, taken, _place: place }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Open ===

impl Open {
    /// Ends the oldest connection whose client doesn't read its answer; if all do, the oldest
    /// without a head; if all have sent one, the oldest.
    fn evict(&mut self) {
        let unread = |(since, _): &(Instant, CancellationToken)| since.elapsed() > UNREAD;
        let oldest = self.answered.first_entry().filter(|oldest| unread(oldest.get()));
        let evicted = match oldest {
            Some(oldest) => Some(oldest.remove().1),
            None => (self.silent.pop_first().map(|(_, taken)| taken))
                .or_else(|| self.answered.pop_first().map(|(_, (_, taken))| taken)),
        };
        if let Some(evicted) = evicted {
            evicted.cancel();
        }
    }
}

// === impl Seat ===

impl Seat {
    fn head_has_come(&self) {
        let mut open = self.connections.lock();
        if let Some(taken) = open.silent.remove(&self.number) {
            open.answered.insert(self.number, (Instant::now(), taken));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.silent.remove(&self.number);
        open.answered.remove(&self.number);
    }
}

// === impl Pages ===

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("health", &self.health).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
