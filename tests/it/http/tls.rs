//! TLS as it is met: both versions, authorities of one's own, certificates of the client, and
//! connections that end without the goodbye (close_notify) that would prove a body whole.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// Who signs, and where its files are.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    folder: TempDir,
}

// === impl Authority ===

impl Authority {
    pub(super) fn new() -> Self {
        Self::named(&format!("authority {}", rand::random::<u64>()))
    }

    pub(super) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.self_signed(&key).expect("the parameters are usual ones");
        let folder = tempfile::tempdir().expect("the temporary folder can be written to");
        let issuer = Issuer::new(params, key);
        let ours = Self { issuer, certificate: certificate.der().clone(), folder };
        ours.keep("ca.pem", &certificate.pem());
        ours
    }

    fn signs(&self) -> (rcgen::Certificate, KeyPair) {
        self.signs_with(|_| {})
    }

    /// A certificate of this machine's address that differs from a usual one.
    pub(super) fn signs_with(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        change(&mut params);
        let key = KeyPair::generate().expect("there is randomness");
        (params.signed_by(&key, &self.issuer).expect("the parameters are usual ones"), key)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn keep(&self, name: &str, pem: &str) {
        fs::write(self.file(name), pem).expect("a fresh folder can be written to");
    }

    /// What trusts this authority, beside the system's or alone.
    pub(super) fn trusted(&self, system_certificates: bool) -> Agora {
        Agora { ca_file: Some(self.file("ca.pem")), system_certificates, ..settings() }
    }

    /// A server that speaks this version only, and may ask for a certificate of the client.
    fn server(&self, version: &'static SupportedProtocolVersion, asks: bool) -> ServerConfig {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("the provider has both versions");
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).expect("it is a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("there is a root"))
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = self.signs();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
        let certificates = vec![certificate.der().clone()];
        builder.with_single_cert(certificates, key).expect("they belong together")
    }
}

/// Serves these bytes to whoever asks, and says goodbye or just closes.
pub(super) async fn serve(
    config: ServerConfig,
    answer: Vec<u8>,
    goodbye: bool,
) -> (String, JoinSet<()>) {
    let (listener, address) = listen().await;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it listens");
            // A client that does not trust us leaves, here or below.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut end = [0; 4];
            while &end != b"\r\n\r\n" {
                end.rotate_left(1);
                let Ok(byte) = stream.read_u8().await else { break };
                end[3] = byte;
            }
            stream.write_all(&answer).await.ok();
            stream.flush().await.ok();
            if goodbye {
                stream.shutdown().await.ok();
            }
        }
    });
    (format!("https://{address}/"), tasks)
}

pub(super) async fn ask(settings: &Agora, url: &str) -> Reply {
    let http = Http::new(settings).expect("the files are there");
    http.ask(Request { url: url.to_owned(), proof: Vec::new() }).await
}

#[tokio::test]
async fn both_versions_are_spoken_with_those_that_a_trusted_authority_vouches_for() {
    for version in [&TLS12, &TLS13] {
        let (ours, other) = (Authority::new(), Authority::new());
        let (url, _tasks) = serve(ours.server(version, false), ANSWER.to_vec(), true).await;
        for system_certificates in [true, false] {
            let reply = ask(&ours.trusted(system_certificates), &url).await;
            let Reply::Answered(raw) = reply else { panic!("{version:?}: {reply:?}") };
            assert_eq!((&*raw.body, raw.cut), (&b"{}"[..], None), "{version:?}");
        }
        for stranger in [settings(), other.trusted(true), other.trusted(false)] {
            let reply = ask(&stranger, &url).await;
            let Reply::NotSent(error) = reply else { panic!("{version:?}: {reply:?}") };
            assert!(error.to_string().contains("certificate"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_certificate_is_shown_to_a_server_that_asks_for_it() {
    for version in [&TLS12, &TLS13] {
        let ours = Authority::new();
        let (url, _tasks) = serve(ours.server(version, true), ANSWER.to_vec(), true).await;
        let (certificate, key) = ours.signs();
        ours.keep("client.pem", &certificate.pem());
        ours.keep("client-key.pem", &key.serialize_pem());
        let anonymous = ours.trusted(false);
        let known = Agora {
            client_certificate: Some((ours.file("client.pem"), ours.file("client-key.pem"))),
            ..anonymous.clone()
        };
        let reply = ask(&known, &url).await;
        assert!(matches!(reply, Reply::Answered(_)), "{version:?}: {reply:?}");
        // The server has not looked at the request: nothing can be missing.
        let reply = ask(&anonymous, &url).await;
        let Reply::NotSent(error) = reply else { panic!("{version:?}: {reply:?}") };
        assert!(error.to_string().contains("agora.client_certificate_file"), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_ends_without_goodbye_is_cut_and_every_byte_of_it_is_kept() {
    let until_close = [b"HTTP/1.1 200 OK\r\n\r\n", &body_of(60_000)[..]].concat();
    for version in [&TLS12, &TLS13] {
        let ours = Authority::new();
        for (answer, goodbye, cut) in [
            (broken(Framing::Length, 100_000, 60_000), false, true),
            (broken(Framing::Length, 100_000, 60_000), true, true),
            (broken(Framing::Chunked, 100_000, 60_000), false, true),
            (broken(Framing::Chunked, 100_000, 60_000), true, true),
            (until_close.clone(), false, true),
            (until_close.clone(), true, false),
        ] {
            let (url, _tasks) = serve(ours.server(version, false), answer, goodbye).await;
            let reply = ask(&ours.trusted(false), &url).await;
            let Reply::Answered(raw) = reply else { panic!("{version:?}: {reply:?}") };
            assert_eq!(raw.cut.is_some(), cut, "{version:?}, goodbye: {goodbye}");
            assert!(raw.body == body_of(60_000), "{version:?}: {} bytes", raw.body.len());
        }
    }
}
