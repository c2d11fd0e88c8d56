//! Pages without an Agora: from a server that returns prepared bodies, one per request, and then
//! empty pages; and in the form in which the poller stores them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use agora_rtm_bridge::model::{
    AppId, Endpoint, Feed, Gap, GapCause, Page, Region, Timestamp, Wholeness,
};

/// The server's address. Its thread ends with the test process.
pub(crate) struct Pages {
    address: SocketAddr,
}

/// The body of an empty page.
const EMPTY: &str = r#"{"result":"success","request_id":"2","events":[]}"#;

// === impl Pages ===

impl Pages {
    /// Starts serving.
    pub(crate) fn serve(bodies: Vec<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
        let address = listener.local_addr().expect("it listens");
        thread::spawn(move || {
            let mut bodies = bodies.into_iter();
            for stream in listener.incoming() {
                // A client that disconnects early is not an error.
                stream.and_then(|stream| answer(stream, bodies.next().as_deref())).ok();
            }
        });
        Self { address }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn answer(mut stream: TcpStream, body: Option<&str>) -> std::io::Result<()> {
    let head = BufReader::new(&stream).lines();
    head.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
    let body = body.unwrap_or(EMPTY);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nX-Request-ID: made-up-id\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A page of user events, requested and received at this moment.
pub(crate) fn of_users(app: &AppId, at: Timestamp, body: String) -> Page {
    Page {
        feed: Feed { app: app.clone(), region: Region::new("default"), endpoint: Endpoint::User },
        since: None,
        asked_at: at,
        answered_at: at,
        status: 200,
        wholeness: Wholeness::Whole,
        request_id: None,
        resource_id: None,
        content_encoding: None,
        body: body.into(),
    }
}

/// A gap of user events, as left by a killed process.
pub(crate) fn gap(app: &AppId) -> Gap {
    Gap {
        feed: Feed { app: app.clone(), region: Region::new("default"), endpoint: Endpoint::User },
        cause: GapCause::ProcessKilled,
        from: None,
        to: Timestamp::from_millis(1_700_000_000_000),
        at_least: 0,
        at_most: None,
    }
}
