//! The cloud's own certificate authority: signs the certificates by which nodes and control plane know each other.
//!
//! One file holds key and certificate, mode 0600, made at the first start. From a signing request only the public key
//! is taken: what the certificate says is decided here. X.509 as in RFC 5280, keys ECDSA P-256.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use nephos_types::{Error, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use time::OffsetDateTime;

use crate::keyring::write_private;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the authority itself is good for; nothing renews it.
const AUTHORITY_VALID: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// Certificates begin this much in the past, for clocks that are behind.
const CLOCKS_BEHIND: Duration = DAY;

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    der: Vec<u8>,
}

/// What a TLS server needs: in DER, the chain (its own certificate first, the authority's last) and its private key in
/// PKCS #8.
pub struct ServerCertificate {
    /// The chain.
    pub chain: Vec<Vec<u8>>,
    /// The private key.
    pub key: Vec<u8>,
}

impl Authority {
    /// Opens the file, or makes it with a new authority.
    pub fn open(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::read(&text).map_err(|error| error.detail(path.display().to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (authority, text) = Self::make()?;
                write_private(path, text.as_bytes())?;
                Ok(authority)
            }
            Err(error) => Err(Error::internal(format!("{} cannot be read", path.display()), error)),
        }
    }

    /// A new authority that is kept nowhere: for tests.
    pub fn ephemeral() -> Result<Self> {
        Ok(Self::make()?.0)
    }

    fn make() -> Result<(Self, String)> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params("Nephos node authority", SystemTime::now() - CLOCKS_BEHIND, AUTHORITY_VALID)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(broken)?;
        let text = format!("{}{}", certificate.pem(), key.serialize_pem());
        let authority =
            Self { issuer: Issuer::new(params, key), certificate: certificate.pem(), der: certificate.der().to_vec() };
        Ok((authority, text))
    }

    fn read(text: &str) -> Result<Self> {
        let unusable = |error| Error::internal("The certificate authority's file cannot be used", error);
        let parts = text.split_inclusive("-----END CERTIFICATE-----\n").collect::<Vec<_>>();
        let [certificate, key] = parts.as_slice() else {
            return Err(Error::bug("The certificate authority's file does not hold a certificate and a key"));
        };
        let key = KeyPair::from_pem(key).map_err(unusable)?;
        let der = pem_to_der(certificate)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(unusable)?;
        Ok(Self { issuer, certificate: (*certificate).to_owned(), der })
    }

    /// The authority's own certificate in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's own certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the authority's own certificate.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &self.der).as_ref());
        fingerprint
    }

    /// Signs a client's certificate with this common name for the key of a signing request in PEM, from `from` for
    /// `valid`. Answers with PEM.
    pub fn sign_client(
        &self,
        signing_request: &str,
        common_name: &str,
        from: SystemTime,
        valid: Duration,
    ) -> Result<String> {
        let request = CertificateSigningRequestParams::from_pem(signing_request).map_err(|error| {
            Error::invalid("bad_signing_request", "The certificate signing request cannot be used")
                .detail(error.to_string())
        })?;
        self.sign(
            &request.public_key,
            params(common_name, from - CLOCKS_BEHIND, valid + CLOCKS_BEHIND)?,
            ExtendedKeyUsagePurpose::ClientAuth,
        )
        .map(|certificate| certificate.pem())
    }

    /// A certificate for a server of these DNS names and IP addresses, with a new key that is kept nowhere. The first is
    /// also its common name.
    pub fn server_certificate<N: AsRef<str>>(&self, names: &[N], valid: Duration) -> Result<ServerCertificate> {
        let key = KeyPair::generate().map_err(broken)?;
        let first = names.first().ok_or_else(|| Error::bug("a certificate for nobody"))?.as_ref();
        let mut params = params(first, SystemTime::now() - CLOCKS_BEHIND, valid + CLOCKS_BEHIND)?;
        params.subject_alt_names = names
            .iter()
            .map(|name| {
                let name = name.as_ref();
                Ok(match name.parse() {
                    Ok(address) => rcgen::SanType::IpAddress(address),
                    Err(_) => rcgen::SanType::DnsName(name.try_into().map_err(|error: rcgen::Error| broken(error))?),
                })
            })
            .collect::<Result<_>>()?;
        let certificate = self.sign(&key, params, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(ServerCertificate { chain: vec![certificate.der().to_vec(), self.der.clone()], key: key.serialize_der() })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<rcgen::Certificate> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).map_err(broken)
    }
}

fn params(common_name: &str, from: SystemTime, valid: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = OffsetDateTime::from(from);
    params.not_after = OffsetDateTime::from(from + valid);
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| Error::bug("The system has no random numbers"))?;
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn pem_to_der(pem: &str) -> Result<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD
        .decode(text)
        .map_err(|error| Error::internal("The certificate authority's file does not hold a certificate", error))
}

fn broken(error: rcgen::Error) -> Error {
    Error::internal("A certificate could not be made", error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["control.nephos.internal".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn an_authority_stays_the_same_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authority.pem");
        let first = Authority::open(&path).unwrap();
        let again = Authority::open(&path).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.certificate(), again.certificate());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(pem_to_der(again.certificate()).unwrap(), first.der());
        assert_ne!(Authority::ephemeral().unwrap().fingerprint(), first.fingerprint());
        fs::write(&path, "garbage").unwrap();
        assert!(Authority::open(&path).is_err());
    }

    #[test]
    fn what_a_request_asks_for_beyond_its_key_is_ignored() {
        let authority = Authority::ephemeral().unwrap();
        let pem = authority.sign_client(&request(), "node-1", SystemTime::now(), DAY).unwrap();
        let der = pem_to_der(&pem).unwrap();
        let contains = |text: &str| der.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(contains("node-1"));
        assert!(!contains("control.nephos.internal"));
        for bad in ["", "garbage", authority.certificate()] {
            let refused = authority.sign_client(bad, "node-1", SystemTime::now(), DAY).unwrap_err();
            assert_eq!(refused.code, "bad_signing_request");
        }
    }
}
