//! Signatures of images: that what was uploaded is what somebody trusted signed.
//!
//! As in Glance the properties say what to check: `img_signature` (base64), `img_signature_key_type` (`RSA-PSS` or
//! `ED25519`), `img_signature_hash_method` (`SHA-256`, `SHA-384`, `SHA-512`; for RSA-PSS, whose salt is as long as the
//! hash), and `img_signature_certificate_uuid`: the name of a public key or certificate that the operator put into the
//! folder of trusted keys, as `NAME.pem`. Whoever uploads can name a key, never bring one. The signature is over the
//! file as it was uploaded.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nephos_ops::image::Properties;
use nephos_types::{Error, Result};
use ring::signature::{ED25519, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512};
use ring::signature::{UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, pem::PemObject};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

const SIGNATURE: &str = "img_signature";
const KEY_TYPE: &str = "img_signature_key_type";
const HASH: &str = "img_signature_hash_method";
const KEY: &str = "img_signature_certificate_uuid";
/// The longest key file.
const MAX_KEY: u64 = 64 << 10;

fn refused(detail: impl Into<String>) -> Error {
    Error::invalid("image_signature_invalid", "The image's signature is not valid").detail(detail)
}

/// Refuses a file whose image's properties have a signature that is not right. Without the property nothing is checked.
pub(super) fn check(trusted: &Path, properties: &Properties, file: &Path) -> Result<()> {
    let Some(signature) = properties.0.get(SIGNATURE) else { return Ok(()) };
    let property =
        |name: &str| properties.0.get(name).ok_or_else(|| refused(format!("the property `{name}` is missing")));
    let signature = STANDARD.decode(signature.trim()).map_err(|_| refused(format!("`{SIGNATURE}` is not base64")))?;
    let algorithm: &'static dyn VerificationAlgorithm = match property(KEY_TYPE)?.as_str() {
        "ED25519" => &ED25519,
        "RSA-PSS" => match property(HASH)?.as_str() {
            "SHA-256" => &RSA_PSS_2048_8192_SHA256,
            "SHA-384" => &RSA_PSS_2048_8192_SHA384,
            "SHA-512" => &RSA_PSS_2048_8192_SHA512,
            other => return Err(refused(format!("the hash `{other}` is not known"))),
        },
        other => return Err(refused(format!("the kind of key `{other}` is not known; RSA-PSS and ED25519 are"))),
    };
    let key = public_key(trusted, property(KEY)?)?;
    let unreadable = |error| Error::internal("An image's file cannot be read", error);
    let file = fs::File::open(file).map_err(unreadable)?;
    // Both kinds of signature are over the whole, which may be larger than memory.
    // SAFETY: the file is in the spool, which nobody but this process writes into, and this one is complete.
    let content = unsafe { memmap2::Mmap::map(&file) }.map_err(unreadable)?;
    UnparsedPublicKey::new(algorithm, key)
        .verify(&content, &signature)
        .map_err(|_| refused("it does not belong to this content, or was made with another key"))
}

/// The key of that name, as `ring` takes it.
fn public_key(trusted: &Path, name: &str) -> Result<Vec<u8>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
        return Err(refused("the name of a key has letters, digits, `-` and `_`"));
    }
    let path = trusted.join(format!("{name}.pem"));
    let unknown = || {
        refused(format!("there is no trusted key `{name}`"))
            .next("an operator puts trusted keys into the folder image-keys of the cloud's data", None)
    };
    if !fs::metadata(&path).is_ok_and(|about| about.is_file() && about.len() <= MAX_KEY) {
        return Err(unknown());
    }
    let text = fs::read(&path).map_err(|_| unknown())?;
    let broken = || {
        Error::invalid(
            "image_key_unreadable",
            format!("The trusted key `{name}` is neither a public key nor a certificate in PEM"),
        )
    };
    let bits = |info: &SubjectPublicKeyInfo<'_>| info.subject_public_key.data.to_vec();
    if let Ok(der) = SubjectPublicKeyInfoDer::from_pem_slice(&text) {
        return SubjectPublicKeyInfo::from_der(&der).map(|(_, info)| bits(&info)).map_err(|_| broken());
    }
    let der = CertificateDer::from_pem_slice(&text).map_err(|_| broken())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| broken())?;
    if !certificate.validity().is_valid() {
        return Err(refused(format!("the certificate `{name}` is not valid now")));
    }
    Ok(bits(certificate.public_key()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use super::*;

    fn openssl(folder: &Path, arguments: &str) {
        let status = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(status.status.success(), "{arguments}: {}", String::from_utf8_lossy(&status.stderr));
    }

    #[test]
    fn what_openssl_signs_is_accepted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("image"), vec![7; 100_000]).unwrap();
        openssl(path, "genpkey -algorithm ed25519 -out ed.key");
        openssl(path, "pkey -in ed.key -pubout -out ed.pem");
        openssl(path, "pkeyutl -sign -rawin -inkey ed.key -in image -out ed.sig");
        openssl(path, "req -x509 -newkey rsa:2048 -nodes -keyout rsa.key -out rsa.pem -subj /CN=signer -days 2");
        openssl(
            path,
            "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest -sign rsa.key -out rsa.sig image",
        );
        let properties = |kind: &str, key: &str, signature: &[u8]| {
            let pairs = [
                (SIGNATURE, STANDARD.encode(signature)),
                (KEY_TYPE, kind.into()),
                (HASH, "SHA-256".into()),
                (KEY, key.into()),
            ];
            Properties(BTreeMap::from(pairs.map(|(name, value)| (name.to_owned(), value))))
        };
        let verdict = |properties: &Properties| check(path, properties, &path.join("image"));
        let [ed, rsa] = ["ed.sig", "rsa.sig"].map(|name| fs::read(path.join(name)).unwrap());
        verdict(&properties("ED25519", "ed", &ed)).unwrap();
        verdict(&properties("RSA-PSS", "rsa", &rsa)).unwrap();
        verdict(&Properties::default()).unwrap();
        for (what, properties) in [
            ("another key", properties("ED25519", "rsa", &ed)),
            ("another kind", properties("RSA-PSS", "ed", &ed)),
            ("another signature", properties("RSA-PSS", "rsa", &ed)),
            ("no signature", properties("ED25519", "ed", b"")),
            ("an unknown kind", properties("DSA", "ed", &ed)),
            ("an unknown key", properties("ED25519", "none", &ed)),
            ("a path", properties("ED25519", "../ed", &ed)),
        ] {
            assert!(verdict(&properties).is_err(), "{what}");
        }
        fs::write(path.join("image"), vec![8; 100_000]).unwrap();
        assert_eq!(verdict(&properties("ED25519", "ed", &ed)).unwrap_err().code, "image_signature_invalid");
    }
}
