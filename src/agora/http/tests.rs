use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// How many connections three requests take that one would do for.
async fn connections(life: Duration) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            connections.spawn(async move {
                let mut request = [0; 4_096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    let settings = Agora {
        connect_timeout: Duration::from_secs(10),
        silence_timeout: Duration::from_secs(10),
        ca_file: None,
        system_certificates: true,
        client_certificate: None,
        proxy: None,
        proxy_password: None,
    };
    let http = Http::with_life(&settings, life).unwrap();
    for _ in 0..3 {
        let reply = http.ask(Request { url: url.clone(), proof: Vec::new() }).await;
        let Reply::Answered(raw) = reply else { panic!("{reply:?}") };
        assert_eq!(raw.body, "{}");
    }
    accepted.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_connection_that_never_falls_idle_is_replaced_after_its_life() {
    assert_eq!(connections(LIFE).await, 1);
    assert_eq!(connections(Duration::ZERO).await, 3);
}
