//! Certificates that are not accepted: each says why, and what to do about that.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::tls::{Authority, ask, serve};
use super::*;

/// A certificate and its key.
type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// rcgen makes certificates of version 3 only. This one was made by
/// `openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=127.0.0.1`
/// and `openssl x509 -req -signkey … -days 36500`; its key stands behind it and is used nowhere else.
const VERSION_1: &[u8] = include_bytes!("../../fixtures/certificate-of-version-1.pem");

const CLOCK: &str = "correct the clock of this machine";

fn identity((certificate, key): (rcgen::Certificate, KeyPair)) -> Identity {
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
    (certificate.der().clone(), key)
}

/// What a server says whose clock shows this date, and why it can't be asked.
async fn refusal(settings: &Agora, (certificate, key): Identity, date: &str) -> String {
    let key = any_supported_type(&key).expect("it is of a usual type");
    // Not checked, as other servers don't check theirs.
    let key = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    let answer = format!("HTTP/1.1 404 Not Found\r\n{date}Content-Length: 0\r\n\r\n");
    let (url, _tasks) = serve(config, answer.into_bytes(), true).await;
    match ask(settings, &url).await {
        Reply::NotSent(error) => error.to_string(),
        reply => panic!("it was trusted: {reply:?}"),
    }
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
    let blames_the_clock = words.iter().any(|word| word.contains("clock"));
    assert_eq!(said.contains("clock"), blames_the_clock, "{said}");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_told_from_a_clock_that_is_wrong() {
    let ours = Authority::new();
    for system_certificates in [true, false] {
        let trusted = ours.trusted(system_certificates);
        let valid = |from: i32, to: i32| {
            identity(ours.signs_with(|params: &mut CertificateParams| {
                params.not_before = date_time_ymd(from, 1, 1);
                params.not_after = date_time_ymd(to, 1, 1);
            }))
        };
        let past = "Date: Mon, 01 Jul 2019 00:00:00 GMT\r\n";
        let said = refusal(&trusted, valid(2019, 2020), past).await;
        assert_says(&said, &["expired at 2020-01-01T00:00:00", " days ahead of the host's", CLOCK]);

        let now = format!("Date: {}\r\n", httpdate::fmt_http_date(std::time::SystemTime::now()));
        let said = refusal(&trusted, valid(2019, 2020), &now).await;
        assert_says(&said, &["expired at 2020-01-01", "by the host's own clock", "has to renew"]);
        assert!(!said.contains(CLOCK), "{said}");

        let said = refusal(&trusted, valid(2019, 2020), "").await;
        assert_says(
            &said,
            &["expired at 2020-01-01", "this machine's clock shows", "has to renew"],
        );

        let future = "Date: Fri, 01 Jul 2095 00:00:00 GMT\r\n";
        let said = refusal(&trusted, valid(2095, 2096), future).await;
        assert_says(&said, &["not valid before 2095-01-01", " days behind the host's", CLOCK]);
    }
}

#[tokio::test]
async fn a_host_that_is_not_trusted_is_not_asked_for_the_time() {
    let (ours, other) = (Authority::new(), Authority::new());
    let ended = identity(other.signs_with(|params| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    }));
    let past = "Date: Mon, 01 Jul 2019 00:00:00 GMT\r\n";
    let said = refusal(&ours.trusted(false), ended, past).await;
    assert_says(&said, &["not signed by a trusted authority", "agora.ca_file"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_says_why_and_what_to_do() {
    let (ours, other) = (Authority::new(), Authority::new());
    let unknown = refusal(&ours.trusted(false), identity(other.signs_with(|_| {})), "").await;
    assert_says(&unknown, &["not signed by a trusted authority", "name the CA that signed"]);

    let (old, renewed) = (Authority::named("the same"), Authority::named("the same"));
    let said = refusal(&old.trusted(false), identity(renewed.signs_with(|_| {})), "").await;
    assert_says(&said, &["another key signed it", "update agora.ca_file"]);

    // The host's own certificate in the place of its authority's.
    let (own, key) = other.signs_with(|_| {});
    ours.keep("ca.pem", &own.pem());
    for system_certificates in [true, false] {
        let settings = ours.trusted(system_certificates);
        let said = refusal(&settings, identity((own.clone(), clone_of(&key))), "").await;
        assert_says(&said, &["agora.ca_file contains the host's own certificate", "its issuer"]);
    }

    // What `openssl req -x509` makes: an authority that is its own host.
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("there is randomness");
    let own = params.self_signed(&key).expect("the parameters are usual ones");
    ours.keep("ca.pem", &own.pem());
    let said = refusal(&ours.trusted(false), identity((own, key)), "").await;
    assert_says(&said, &["CA:TRUE", "CA:FALSE"]);

    let another = other.signs_with(|params| {
        let name = rcgen::SanType::DnsName("api.agora.io".try_into().expect("a name"));
        params.subject_alt_names = vec![name];
    });
    let said = refusal(&other.trusted(false), identity(another), "").await;
    assert_says(&said, &["is for DnsName(\"api.agora.io\") and not for 127.0.0.1", "spelling"]);

    let certificate = CertificateDer::from_pem_slice(VERSION_1).expect("it is a certificate");
    let key = PrivateKeyDer::from_pem_slice(VERSION_1).expect("its key is behind it");
    ours.keep("ca.pem", str::from_utf8(VERSION_1).expect("PEM is ASCII"));
    let said = refusal(&ours.trusted(false), (certificate, key), "").await;
    assert_says(&said, &["version 1", "subjectAltName"]);
}

fn clone_of(key: &KeyPair) -> KeyPair {
    KeyPair::try_from(key.serialize_der()).expect("it was one before")
}
