use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

fn settings() -> Agora {
    Agora {
        connect_timeout: Duration::from_secs(10),
        silence_timeout: Duration::from_secs(10),
        ca_file: None,
        system_certificates: true,
        client_certificate: None,
        proxy: None,
        proxy_password: None,
    }
}

/// Number of connections that three requests use where one would do.
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
    let http = Http::with_life(&settings(), life).unwrap();
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

#[tokio::test]
async fn a_compressed_body_is_kept_as_received_with_what_its_head_says() {
    const BODY: &[u8] = b"\x1f\x8b\x08\0 anything";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4_096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\ncontent-encoding: gzip\r\n\
             Content-Length: {}\r\n\r\n",
            BODY.len()
        );
        stream.write_all(&[head.as_bytes(), BODY].concat()).await.unwrap();
    });
    let http = Http::new(&settings()).unwrap();
    let reply = http.ask(Request { url, proof: Vec::new() }).await;
    let Reply::Answered(raw) = reply else { panic!("{reply:?}") };
    assert_eq!(raw.body, BODY);
    assert_eq!(raw.encoding(), Some("br, gzip"));
}

/// A TLS server with a certificate that no system trusts. Returns its address and the certificate.
async fn tls_server() -> (String, String, JoinSet<()>) {
    let names = vec!["127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust us disconnects, here or below.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4_096];
            if stream.read(&mut request).await.is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                stream.write_all(answer).await.ok();
            }
        }
    });
    (url, cert.pem(), tasks)
}

#[tokio::test]
async fn certificates_are_read_again_and_a_file_that_is_wrong_changes_nothing() {
    let (url, certificate, _tasks) = tls_server().await;
    let (strange, another, _others) = tls_server().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    fs::write(&file, another).unwrap();
    let settings = Agora { ca_file: Some(file.clone()), system_certificates: false, ..settings() };
    let http = Http::with_life(&settings, Duration::ZERO).unwrap();
    let stale = http.stale();
    let ask = || http.ask(Request { url: url.clone(), proof: Vec::new() });

    let reply = ask().await;
    assert!(matches!(reply, Reply::NotSent(_)), "it is not trusted: {reply:?}");
    fs::write(&file, &certificate).unwrap();
    let reply = ask().await;
    assert!(matches!(reply, Reply::Answered(_)), "it was not reloaded: {reply:?}");
    assert_eq!(stale(), None);
    fs::write(&file, "no certificate").unwrap();
    let reply = ask().await;
    assert!(matches!(reply, Reply::Answered(_)), "the old state was not kept: {reply:?}");
    let reply = http.ask(Request { url: strange, proof: Vec::new() }).await;
    let Reply::NotSent(error) = reply else { panic!("{reply:?}") };
    let (seen, remedy) = error.parts();
    // Both servers' certificates have the same issuer name.
    assert!(seen.contains("another key signed it"), "{error}");
    assert!(remedy.is_some_and(|it| it.contains("contains no certificate")), "{error}");
    assert!(
        stale().is_some_and(|it| it.reason.contains("contains no certificate")),
        "{:?}",
        stale()
    );
    fs::write(&file, certificate).unwrap();
    ask().await;
    assert_eq!(stale(), None);
}
