//! Which server and database is meant, and how it is spoken to.

use std::{fmt, path::Path, time::Duration};

use nephos_types::{Error, ErrorKind, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where systems keep the authorities that they trust, in one file.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A parsed URL.
pub(crate) struct Target {
    pub(super) config: tokio_postgres::Config,
    pub(super) tls: Option<MakeRustlsConnect>,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let (plain, own) = split(url);
        let mut config: tokio_postgres::Config = plain.parse().map_err(|error: tokio_postgres::Error| {
            invalid(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
        })?;
        if config.get_dbname().is_none() {
            return Err(invalid("it names no database".to_owned()));
        }
        if config.get_hosts().is_empty() {
            return Err(invalid("it names no host".to_owned()));
        }
        let wanted = match own.sslmode.as_deref() {
            None => !config.get_hosts().iter().all(is_here),
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(other) => {
                return Err(invalid(format!("`sslmode={other}` is neither `disable`, `require` nor `verify-full`")));
            }
        };
        config
            .ssl_mode(if wanted { SslMode::Require } else { SslMode::Disable })
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .application_name("nephos")
            .connect_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(10));
        let tls = wanted.then(|| tls(own.sslrootcert.as_deref())).transpose()?;
        Ok(Self { config, tls })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at ", self.config.get_dbname().unwrap_or_default())?;
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let ports = self.config.get_ports();
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            let separator = if index == 0 { "" } else { ", " };
            match host {
                Host::Tcp(name) => write!(f, "{separator}{name}:{port}")?,
                Host::Unix(path) => write!(f, "{separator}{}", path.display())?,
            }
        }
        Ok(())
    }
}

/// The parameters that the library does not read as we want them.
#[derive(Default)]
struct Own {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
}

/// Takes them out of the URL.
fn split(url: &str) -> (String, Own) {
    let mut own = Own::default();
    let Some((before, query)) = url.split_once('?') else { return (url.to_owned(), own) };
    let mut rest = vec![];
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslmode", value)) => own.sslmode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => own.sslrootcert = Some(value.replace("%2F", "/").replace("%2f", "/")),
            _ => rest.push(pair),
        }
    }
    let separator = if rest.is_empty() { "" } else { "?" };
    (format!("{before}{separator}{}", rest.join("&")), own)
}

/// Whether what is said to this host never leaves the machine.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

fn tls(roots: Option<&str>) -> Result<MakeRustlsConnect> {
    let file = roots
        .map(Path::new)
        .or_else(|| SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()))
        .ok_or_else(|| invalid("no authority is trusted on this machine; name one with `sslrootcert=FILE`".into()))?;
    let unusable = |error: &dyn fmt::Display| invalid(format!("the file {}: {error}", file.display()));
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        // A system's file may hold one that rustls does not take; a file that somebody named must not.
        if let Err(error) = store.add(certificate)
            && roots.is_some()
        {
            return Err(unusable(&error));
        }
    }
    if store.is_empty() {
        return Err(unusable(&"it holds no certificate"));
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("TLS cannot be prepared", error))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::Invalid, "invalid_database_url", "The URL of the database cannot be used")
        .detail(detail)
        .next("write postgres://USER:PASSWORD@HOST:5432/DATABASE", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_on_the_machine_goes_in_the_clear_unasked() {
        let (_folder, root) = root();
        let encrypted =
            |url: &str| Target::parse(&url.replace("ROOT", root.to_str().unwrap())).map(|t| t.tls.is_some());
        for (url, expected) in [
            ("postgres://u@localhost/d", false),
            ("postgres://u@127.0.0.1:5433/d", false),
            ("postgres://u@[::1]/d", false),
            ("postgres://u@%2Frun%2Fpostgresql/d", false),
            ("postgres:///d?host=/run/postgresql", false),
            ("postgres://u@db.example/d?sslmode=disable", false),
            ("postgres://u@db.example/d?sslrootcert=ROOT", true),
            ("postgres://u@localhost/d?sslmode=verify-full&sslrootcert=ROOT", true),
        ] {
            assert_eq!(encrypted(url).unwrap(), expected, "{url}");
        }
        for wrong in [
            "",
            "mysql://u@h/d",
            "postgres://u@localhost",
            "postgres:///d",
            "postgres://u@h/d?sslmode=prefer",
            "postgres://u@h/d?sslrootcert=/nonexistent",
            "postgres://u@h/d?nonsense=1",
        ] {
            assert_eq!(encrypted(wrong).unwrap_err().code, "invalid_database_url", "{wrong}");
        }
    }

    /// The file of an authority.
    fn root() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.pem");
        let authority = rcgen::generate_simple_self_signed(vec!["root".to_owned()]).unwrap();
        std::fs::write(&path, authority.cert.pem()).unwrap();
        (folder, path)
    }

    #[test]
    fn a_description_tells_no_password() {
        let target = Target::parse("postgres://user:secret@localhost:5433/cloud").unwrap();
        assert_eq!(target.to_string(), "cloud at localhost:5433");
    }
}
