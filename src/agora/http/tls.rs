//! Which certificates connections to Agora trust, and which one they present.
//!
//! One configuration serves all clients, so that certificates are in memory once, and a new
//! connection can resume the session of an earlier one, even another client's.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    OtherError, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use super::clients::HttpError;
use crate::config::Agora;

const CA: &str = "agora.ca_file";
const CERTIFICATE: &str = "agora.client_certificate_file";
const KEY: &str = "agora.client_key_file";

/// The contents of the files, including secrets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    authorities: Option<Vec<u8>>,
    /// The client certificate and its key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Two configurations that differ in whether they check the time.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    /// For requests.
    pub(super) config: ClientConfig,
    /// Ignores validity dates, and presents no client certificate: for a question about the time
    /// that carries no secret and whose answer is not relied on.
    pub(super) timeless: ClientConfig,
}

/// The CA file contains the host's own certificate, which another authority signed.
#[derive(Debug, thiserror::Error)]
#[error("the authority is the host's own certificate")]
pub(super) struct OwnCertificate;

/// Verifies like the inner verifier, and explains more.
#[derive(Debug)]
struct Trust {
    inner: Arc<dyn ServerCertVerifier>,
    /// The authorities from `agora.ca_file`.
    named: Vec<CertificateDer<'static>>,
    /// Whether a certificate is checked as of a time within its validity.
    is_timeless: bool,
}

// === impl Files ===

impl Files {
    pub(super) fn read(settings: &Agora) -> Result<Self, HttpError> {
        let authorities = settings.ca_file.as_deref().map(|path| read(path, CA)).transpose()?;
        let identity = match &settings.client_certificate {
            Some((certificate, key)) => Some((read(certificate, CERTIFICATE)?, read(key, KEY)?)),
            None => None,
        };
        Ok(Self { authorities, identity })
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

// === impl Tls ===

impl Tls {
    pub(super) fn new(settings: &Agora, files: &Files) -> Result<Self, HttpError> {
        let provider = Arc::new(default_provider());
        let named = match (&files.authorities, &settings.ca_file) {
            (Some(pem), Some(path)) => authorities(pem, path)?,
            _ => Vec::new(),
        };
        let inner = verifier(settings, &named, &provider)?;
        let with = |is_timeless| {
            let trust = Trust { inner: Arc::clone(&inner), named: named.clone(), is_timeless };
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map(|builder| {
                    builder.dangerous().with_custom_certificate_verifier(Arc::new(trust))
                })
                .map_err(HttpError::Tls)
        };
        let mut config = match &files.identity {
            None => with(false)?.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, key) = identity(certificate, key)?;
                let unusable = |cause| unusable(KEY, cause);
                with(false)?.with_client_auth_cert(chain, key).map_err(unusable)?
            }
        };
        let mut timeless = with(true)?.with_no_client_auth();
        for config in [&mut config, &mut timeless] {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        // A session of the other configuration was verified at another time.
        timeless.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config, timeless })
    }
}

fn verifier(
    settings: &Agora,
    named: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, HttpError> {
    if settings.ca_file.is_none() || settings.system_certificates {
        let verifier = Verifier::new_with_extra_roots(named.iter().cloned(), Arc::clone(provider));
        let key = if named.is_empty() { "agora.system_certificates" } else { CA };
        return Ok(Arc::new(verifier.map_err(|cause| unusable(key, cause))?));
    }
    let mut roots = RootCertStore::empty();
    for certificate in named {
        roots.add(certificate.clone()).map_err(|cause| unusable(CA, cause))?;
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(verifier.map_err(|cause| unusable(CA, cause))?)
}

fn authorities(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|cause| unusable(CA, cause))?;
    if found.is_empty() {
        return Err(HttpError::Empty { path: path.display().to_string(), key: CA });
    }
    Ok(found)
}

/// A certificate with its chain, and its key. Each may be in either file.
fn identity(
    certificate: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), HttpError> {
    let both = [certificate, b"\n", key].concat();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&both).collect();
    let chain = chain.map_err(|cause| unusable(CERTIFICATE, cause))?;
    let key = PrivateKeyDer::from_pem_slice(&both).map_err(|cause| unusable(KEY, cause))?;
    Ok((chain, key))
}

fn unusable(
    key: &'static str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> HttpError {
    HttpError::Unusable { key, cause: cause.into() }
}

fn read(path: &Path, key: &'static str) -> Result<Vec<u8>, HttpError> {
    let path_text = || path.display().to_string();
    std::fs::read(path).map_err(|cause| HttpError::File { path: path_text(), key, cause })
}

// === impl Trust ===

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let at = |time| {
            self.inner.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                time,
            )
        };
        let verified = at(now);
        let Err(TlsError::InvalidCertificate(error)) = &verified else { return verified };
        let valid_at = match error {
            CertificateError::ExpiredContext { not_after, .. } => *not_after,
            CertificateError::NotValidYetContext { not_before, .. } => *not_before,
            CertificateError::UnknownIssuer if self.named.iter().any(|it| it == end_entity) => {
                let why = OtherError(Arc::new(OwnCertificate));
                return Err(CertificateError::Other(why).into());
            }
            _ => return verified,
        };
        // A certificate that is invalid at any time gets that error, and not one about the time.
        match at(valid_at) {
            Ok(_) if !self.is_timeless => verified,
            at_its_time => at_its_time,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}
