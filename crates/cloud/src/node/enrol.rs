//! Joining and staying: tokens, and the certificates that they are exchanged for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use nephos_node_api::{Enrolment, EnrolmentAnswer, Renewal, tls};
use nephos_store::{Author, Draft, Query, Transaction};
use nephos_types::{Error, ErrorKind, JoinTokenId, NodeId, Result, Secret, Timestamp};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};

use super::{JoinToken, Node, Nodes};

/// Tokens that are remembered at the same time; older expired ones are dropped as new ones are made.
const MOST_TOKENS: usize = 10_000;
/// How long the control plane's own certificate is good for. It is made anew at each start.
const SERVER_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A token that was just made.
pub(super) struct Minted {
    pub(super) id: JoinTokenId,
    /// With the authority's fingerprint; shown once.
    pub(super) token: Secret,
    pub(super) expires_at: Timestamp,
}

impl Nodes {
    /// The TLS configuration for the listener that nodes dial.
    pub fn tls(&self) -> Result<Arc<tls::ServerConfig>> {
        let certificate = self.authority.server_certificate(&[tls::SERVER_NAME], SERVER_VALID)?;
        tls::server_config(certificate.chain, certificate.key, self.authority.der().to_vec())
    }

    /// Allows one machine to join: the token, with the authority's fingerprint, as [`nephos agent`] takes it.
    ///
    /// [`nephos agent`]: nephos_ops::node::JoinToken
    pub async fn make_join_token(&self, author: Author, valid: Duration) -> Result<Secret> {
        let (transaction, minted) = self.mint(Transaction::new(author), valid)?;
        self.store.commit(transaction).await?;
        Ok(minted.token)
    }

    /// What makes a token: a draft of its record, and what is shown of it. Expired ones are deleted along the way.
    pub(super) fn mint(&self, transaction: Transaction, valid: Duration) -> Result<(Transaction, Minted)> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_| Error::bug("The system has no random numbers"))?;
        let secret = hex::encode(secret);
        let now = Timestamp::now();
        let expires_at = now.plus(valid);
        let id = JoinTokenId::new();
        let draft = Draft::<JoinToken>::new(id, JoinToken { hash: hash_of(&secret), expires_at });
        let mut transaction = transaction.create(draft);
        for expired in self
            .store
            .list::<JoinToken>(&Query::all().limit(200))
            .items
            .iter()
            .filter(|token| token.body.expires_at < now)
        {
            transaction = transaction.delete(expired);
        }
        if self.store.count::<JoinToken>(&Query::all()) >= MOST_TOKENS {
            return Err(Error::new(
                ErrorKind::RateLimited,
                "too_many_join_tokens",
                "Too many join tokens are waiting to be used",
            )
            .detail(format!("at most {MOST_TOKENS}"))
            .next("use them, or wait until they expire", None));
        }
        let token = format!("{secret}.{}", hex::encode(self.authority.fingerprint())).parse()?;
        Ok((transaction, Minted { id, token, expires_at }))
    }

    /// Turns a machine with a valid token into a node.
    pub(super) async fn enrol_machine(&self, address: String, enrolment: Enrolment) -> Result<EnrolmentAnswer> {
        // Another process may have made the token.
        self.store.catch_up().await?;
        let hash = hash_of(&enrolment.token);
        let refused = || {
            Error::new(ErrorKind::Unauthenticated, "join_token_refused", "The join token is not good")
                .detail("it is wrong, has been used, or has expired")
                .next("make another one at the control plane", Some("nephos node join-token".to_owned()))
        };
        let token = self.store.list::<JoinToken>(&Query::all().index("hash", hash).limit(1)).items.pop();
        let token = token.filter(|token| token.body.expires_at > Timestamp::now()).ok_or_else(refused)?;
        // What cannot be signed does not use up the token.
        self.sign(&enrolment.signing_request, NodeId::new())?;
        let body = Node { address: Some(address.clone()), ..Node::new(Timestamp::now()) };
        let author = Author::new("join token").source(&address).operation("node.join");
        let node = self
            .admit(
                &enrolment.name,
                body,
                || Transaction::new(author.clone()).delete(&token),
                |transaction, _| transaction,
            )
            .await
            .map_err(|error| if error.code == "changed_meanwhile" { refused() } else { error })?;
        tracing::info!(%node, name = enrolment.name, address, "a machine has joined");
        self.certify(node, &enrolment.signing_request).await
    }

    /// A new certificate for a node that has shown its present one.
    pub(super) async fn renew_certificate(&self, node: NodeId, renewal: Renewal) -> Result<EnrolmentAnswer> {
        self.certain(node).await?;
        self.record(node)?;
        tracing::info!(%node, "a node renews its certificate");
        self.certify(node, &renewal.signing_request).await
    }

    async fn certify(&self, node: NodeId, signing_request: &str) -> Result<EnrolmentAnswer> {
        let (certificate, expires_at) = self.sign(signing_request, node)?;
        self.amend("node certificate", node, |record| record.certificate_expires_at = Some(expires_at)).await?;
        Ok(EnrolmentAnswer { node, certificate, authority: self.authority.certificate().to_owned() })
    }

    fn sign(&self, signing_request: &str, node: NodeId) -> Result<(String, Timestamp)> {
        let valid = self.settings.certificate_valid;
        let certificate = self.authority.sign_client(signing_request, &node.to_string(), SystemTime::now(), valid)?;
        Ok((certificate, Timestamp::now().plus(valid)))
    }
}

fn hash_of(secret: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}
