//! Over TLS: who is let in by which certificate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use nephos_node_api::{
    Client, Enrolment,
    client::Tls,
    server::listen,
    tls::{SERVER_NAME, certificate_from_pem, fingerprint, joining_config, node_config, server_config},
};
use nephos_types::{ErrorKind, NodeId};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{fake::Fake, messages::hello};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Self { issuer: Issuer::new(params, key), pem, der }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    async fn serve(&self, fake: &Arc<Fake>) -> SocketAddr {
        let (certificate, key) = self.issue(SERVER_NAME);
        let chain = vec![certificate.der().to_vec(), self.der.clone()];
        let config = server_config(chain, key.serialize_der(), self.der.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(listen(listener, config, fake.clone(), CancellationToken::new()));
        address
    }

    /// A machine that trusts `trusted` and shows what this authority has issued to this name.
    fn node(&self, name: &str, trusted: &Self, address: SocketAddr) -> Client {
        let (certificate, key) = self.issue(name);
        let config = node_config(&trusted.pem, &certificate.pem(), &key.serialize_pem()).unwrap();
        Client::new(Arc::new(Tls::new(address.to_string(), config)))
    }
}

#[tokio::test]
async fn a_node_is_who_its_certificate_says() {
    let (authority, fake, node) = (Authority::new(), Fake::new(), NodeId::new());
    let address = authority.serve(&fake).await;
    let client = authority.node(&node.to_string(), &authority, address);
    assert_eq!(client.hello(&hello()).await.unwrap().node, node);
    assert_eq!(client.desired(None, Duration::ZERO).await.unwrap().revision, 1);
    assert_eq!(fake.asked()[0], format!("hello {node} from 127.0.0.1"));
}

#[tokio::test]
async fn wrong_certificates_are_refused_on_either_side() {
    let (authority, other, fake) = (Authority::new(), Authority::new(), Fake::new());
    let address = authority.serve(&fake).await;
    let node = NodeId::new().to_string();
    for (what, client) in [
        ("issued by another authority", other.node(&node, &authority, address)),
        ("for a name that is no node", authority.node("somebody", &authority, address)),
        ("trusts another authority", authority.node(&node, &other, address)),
    ] {
        let error = client.hello(&hello()).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{what}: {error:?}");
    }
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_enrols_where_the_fingerprint_is_right_and_nowhere_else() {
    let (authority, other, fake) = (Authority::new(), Authority::new(), Fake::new());
    let address = authority.serve(&fake).await;
    let enrolment = Enrolment { token: "good".to_owned(), name: "machine".to_owned(), signing_request: String::new() };
    let joining = |authority: &Authority| {
        let config = joining_config(fingerprint(&certificate_from_pem(&authority.pem).unwrap())).unwrap();
        Client::new(Arc::new(Tls::new(address.to_string(), config)))
    };
    assert_eq!(joining(&authority).enrol(&enrolment).await.unwrap().certificate, "certificate");
    assert_eq!(joining(&authority).hello(&hello()).await.unwrap_err().code, "no_certificate");
    // Its token is not told to anybody else.
    assert!(joining(&other).enrol(&enrolment).await.is_err());
    assert_eq!(fake.asked(), ["enrol machine"]);
}
