//! The pages for people, probes and Prometheus.
//!
//! Read-only and small: what a page shows is prepared by others, and no request changes anything.
//! It is bounded because it may be reachable by strangers: so many connections, one request on
//! each, so long for the request and so long for the whole. Bodies of requests are not read.

use std::convert::Infallible;
use std::fmt;
use std::future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use tracing::warn;

use crate::error::Chain;
use crate::observe::health::Health;
use crate::observe::metrics;
use crate::observe::metrics::Metrics;

/// What the pages show. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    /// Behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Behind `/ready`.
    pub health: Health,
    /// Behind `/status.json`. It is called on each request and must not block.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

const MAX_CONNECTIONS: usize = 64;

/// The largest head of a request, in bytes, and what is buffered for one connection.
const MAX_HEAD: usize = 16 * 1024;

/// From the connection to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// From the connection to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an answer that has begun may go on after the stop.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to let be after the operating system refused a connection, mostly for want of file
/// descriptors: it would refuse the next at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
agora-rtm-bridge

/metrics      everything that is measured, as OpenMetrics
/ready        200 while all is well, else 503 and the reasons
/live         200 as long as the process answers
/status.json  accounts and state
";

/// Answers on `listener` until `stop`; each connection is a task of `tracker`.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: CancellationToken,
    tracker: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                tracker.spawn(converse(stream, place, pages.clone(), stop.clone()));
            }
            Err(error) => {
                warn!(error = %Chain(&error), "connection not accepted");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Waits for a place before it takes a connection, so that those who come in excess wait in the
/// operating system and not in our memory.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.expect("nobody closes the places");
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn converse(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    pages: Pages,
    stop: CancellationToken,
) {
    let service = service_fn(|request: Request<_>| {
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
        ended = timeout(CONNECTION_TIMEOUT, connection.as_mut()) => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = %Chain(&error), "connection broke"),
        Err(error) => debug!(error = %Chain(&error), "connection given up"),
    }
    drop(place);
}

/// Answers one request. HEAD is answered as GET; hyper leaves the body out.
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

// === impl Pages ===

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("health", &self.health).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
