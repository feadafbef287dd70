//! TLS as control plane and nodes use it with each other: version 1.3 only, the cloud's own certificate authority
//! pinned on both sides, a node's id as its certificate's common name.
//!
//! Nodes dial whatever address reaches the control plane, so its certificate is for the fixed name [`SERVER_NAME`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nephos_types::{Error, ErrorKind, NodeId, Result};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
pub use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name in the control plane's certificate.
pub const SERVER_NAME: &str = "control.nephos.internal";

/// SHA-256 of a certificate authority's certificate.
pub type Fingerprint = [u8; 32];

/// The fingerprint of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate.as_ref()).into()
}

/// Who a node's certificate is for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    /// The node.
    pub node: NodeId,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl NodeCertificate {
    /// Reads it; the signature is not checked here.
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self> {
        let refuse = |why: &str| {
            Error::new(ErrorKind::Unauthenticated, "bad_certificate", "Not a node's certificate").detail(why)
        };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| refuse("it cannot be read"))?;
        let node = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| refuse("its common name is not a node's id"))?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Self {
            node,
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
        })
    }

    /// Reads the first certificate of a PEM text.
    pub fn parse_pem(pem: &str) -> Result<Self> {
        Self::parse(&certificate_from_pem(pem)?)
    }
}

/// The first certificate of a PEM text.
pub fn certificate_from_pem(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::invalid("bad_certificate", "Not a certificate in PEM").detail(error.to_string()))
}

fn key_from_pem(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::invalid("bad_key", "Not a private key in PEM").detail(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("TLS could not be set up", error)
}

fn roots(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(broken)?;
    Ok(Arc::new(roots))
}

/// The control plane's side; certificates and the key (PKCS #8) in DER. Machines without a certificate may connect, to enrol; those with an expired one may, to
/// renew it. What each may do is decided per request.
pub fn server_config(chain: Vec<Vec<u8>>, key: Vec<u8>, authority: Vec<u8>) -> Result<Arc<ServerConfig>> {
    let provider = provider();
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
    let inner = WebPkiClientVerifier::builder_with_provider(roots(CertificateDer::from(authority))?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(broken)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(broken)?
        .with_client_cert_verifier(Arc::new(ExpiredToo { inner }))
        .with_single_cert(chain, key)
        .map_err(broken)?;
    // A resumed session would carry a certificate that was checked long ago.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A node's side: its certificate, and the pinned authority. All in PEM.
pub fn node_config(authority: &str, certificate: &str, key: &str) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(broken)?
        .with_root_certificates(roots(certificate_from_pem(authority)?)?)
        .with_client_auth_cert(vec![certificate_from_pem(certificate)?], key_from_pem(key)?)
        .map_err(|error| Error::invalid("bad_key", "The node's key and certificate cannot be used").source(error))?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The side of a machine that is about to enrol: it knows no authority yet, only the fingerprint of the right one, and
/// the handshake fails unless the control plane's certificate was signed by that.
pub fn joining_config(fingerprint: Fingerprint) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByFingerprint { fingerprint, provider }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts what the usual verification accepts, and certificates whose only fault is that they have expired.
#[derive(Debug)]
struct ExpiredToo {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ExpiredToo {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.inner.verify_client_cert(end_entity, intermediates, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => {
                let not_after = NodeCertificate::parse(end_entity)
                    .ok()
                    .and_then(|certificate| certificate.not_after.duration_since(UNIX_EPOCH).ok())
                    .ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
                self.inner.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(not_after))
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Trusts the one authority with this fingerprint, which the control plane sends along.
struct ByFingerprint {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for ByFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByFingerprint")
    }
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
