//! Tokens: signed, self-contained, about 150 characters of `[A-Za-z0-9_-]`.
//!
//! A token says who logged in, how, for what scope, and until when. It does not say which roles that gives: roles are
//! looked up when the token is shown, so that taking one away works at once.
//!
//! A *ticket* is such claims together with one thing that they are good for, signed by a key of its own.
//!
//! Form: base64url without padding of `version, key number, claims, HMAC-SHA256 over all before it`; numbers big-endian.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nephos_types::{
    ApplicationCredentialId, DomainId, Error, ErrorKind, Id, ProjectId, Result, RevocationId, Timestamp, UserId,
};
use ring::hmac;

use crate::keyring::KeyRing;

const VERSION: u8 = 1;
const MAC: usize = 32;
/// version, key, id, parent, user, epoch, issued, expires, methods, application credential, scope kind, scope id
const CLAIMS: usize = 1 + 4 + 8 + 8 + 8 + 4 + 8 + 8 + 1 + 8 + 1 + 8;

/// How somebody proved an identity; several together when a token was made from a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    /// With a password.
    pub const PASSWORD: Self = Self(1);
    /// With another token.
    pub const TOKEN: Self = Self(2);
    /// With an application credential.
    pub const APPLICATION_CREDENTIAL: Self = Self(4);
    /// With a request signed by an access key.
    pub const ACCESS_KEY: Self = Self(8);

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Keystone's words for them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        const NAMES: [(Methods, &str); 4] = [
            (Methods::PASSWORD, "password"),
            (Methods::TOKEN, "token"),
            (Methods::APPLICATION_CREDENTIAL, "application_credential"),
            (Methods::ACCESS_KEY, "ec2credential"),
        ];
        NAMES.into_iter().filter(move |(method, _)| self.0 & method.0 != 0).map(|(_, name)| name)
    }
}

/// What a token is good for, by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenScope {
    /// For asking for a scoped token.
    Unscoped,
    /// One project.
    Project(ProjectId),
    /// One domain.
    Domain(DomainId),
    /// The cloud as a whole.
    System,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The token's own id; a revocation carries the same.
    pub id: RevocationId,
    /// The token that this one was made from.
    pub parent: Option<RevocationId>,
    /// Who logged in.
    pub user: UserId,
    /// The user's epoch at the time; a later one makes the token void.
    pub epoch: u32,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How the identity was proved.
    pub methods: Methods,
    /// The application credential it was made with.
    pub application_credential: Option<ApplicationCredentialId>,
    /// What it is good for.
    pub scope: TokenScope,
}

/// Signs claims with the ring's active key.
#[must_use]
pub fn issue(keys: &KeyRing, claims: &Claims) -> String {
    let key = keys.active();
    let mut bytes = encode(key.id, claims);
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.bytes), &bytes);
    bytes.extend(mac.as_ref());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Checks signature and form, not the time: whether the token has ended, was revoked or has lost its ground is for the
/// caller to say.
pub fn verify(keys: &KeyRing, token: &str) -> Result<Claims> {
    parse(keys, token).ok_or_else(invalid_token)
}

/// The number of the key that something claims to be signed with, be it so or not.
#[must_use]
pub fn key_number(token: &str) -> Option<u32> {
    let mut bytes = [0u8; 6];
    URL_SAFE_NO_PAD.decode_slice(token.get(..8)?, &mut bytes).ok()?;
    Fields(&bytes).key()
}

/// Signs claims together with what they are good for and nothing else. A ticket is no token, nor one of another purpose.
#[must_use]
pub fn issue_ticket<const N: usize>(keys: &KeyRing, purpose: &str, claims: &Claims, about: [u8; N]) -> String {
    let key = keys.active();
    let mut bytes = encode(key.id, claims);
    bytes.extend(about);
    let mac = hmac::sign(&ticket_key(&key.bytes, purpose), &bytes);
    bytes.extend(mac.as_ref());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Checks a ticket's signature and form, as [`verify`] does.
pub fn verify_ticket<const N: usize>(keys: &KeyRing, purpose: &str, ticket: &str) -> Result<(Claims, [u8; N])> {
    parse_ticket(keys, purpose, ticket).ok_or_else(invalid_token)
}

/// A key of its own for each purpose.
fn ticket_key(key: &[u8], purpose: &str) -> hmac::Key {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), format!("ticket for {purpose}").as_bytes());
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

fn encode(key: u32, claims: &Claims) -> Vec<u8> {
    let (kind, scope) = match claims.scope {
        TokenScope::Unscoped => (0u8, 0),
        TokenScope::Project(id) => (1, id.bits()),
        TokenScope::Domain(id) => (2, id.bits()),
        TokenScope::System => (3, 0),
    };
    let mut bytes = Vec::with_capacity(CLAIMS + MAC);
    bytes.push(VERSION);
    bytes.extend(key.to_be_bytes());
    bytes.extend(claims.id.bits().to_be_bytes());
    bytes.extend(claims.parent.map_or(0, Id::bits).to_be_bytes());
    bytes.extend(claims.user.bits().to_be_bytes());
    bytes.extend(claims.epoch.to_be_bytes());
    bytes.extend(claims.issued_at.as_micros().to_be_bytes());
    bytes.extend(claims.expires_at.as_micros().to_be_bytes());
    bytes.push(claims.methods.0);
    bytes.extend(claims.application_credential.map_or(0, Id::bits).to_be_bytes());
    bytes.push(kind);
    bytes.extend(scope.to_be_bytes());
    bytes
}

/// The refusal of a token; one text for every reason, so that a guesser learns nothing.
#[must_use]
pub fn invalid_token() -> Error {
    Error::new(ErrorKind::Unauthenticated, "invalid_token", "The token is not valid (any more)")
        .next("log in again", Some("nephos token create --help".to_owned()))
}

fn parse(keys: &KeyRing, token: &str) -> Option<Claims> {
    let mut bytes = [0u8; CLAIMS + MAC];
    // The length is checked first so that a long text costs nothing.
    if Some(token.len()) != base64::encoded_len(CLAIMS + MAC, false) {
        return None;
    }
    if URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()? != CLAIMS + MAC {
        return None;
    }
    let (signed, mac) = bytes.split_at(CLAIMS);
    let mut fields = Fields(signed);
    let key = keys.get(fields.key()?)?;
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key.bytes), signed, mac).ok()?;
    fields.claims()
}

fn parse_ticket<const N: usize>(keys: &KeyRing, purpose: &str, ticket: &str) -> Option<(Claims, [u8; N])> {
    if Some(ticket.len()) != base64::encoded_len(CLAIMS + N + MAC, false) {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(ticket).ok()?;
    let (signed, mac) = bytes.split_at_checked(CLAIMS + N)?;
    let mut fields = Fields(signed);
    let key = keys.get(fields.key()?)?;
    hmac::verify(&ticket_key(&key.bytes, purpose), signed, mac).ok()?;
    Some((fields.claims()?, fields.take()?))
}

/// Takes fields off the front of a token's bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    /// The version, which must be known, and the number of the key.
    fn key(&mut self) -> Option<u32> {
        (self.take::<1>()? == [VERSION]).then_some(())?;
        self.take().map(u32::from_be_bytes)
    }

    fn claims(&mut self) -> Option<Claims> {
        let id = RevocationId::from_bits(self.u64()?);
        let parent = self.optional_id()?;
        let user = UserId::from_bits(self.u64()?);
        let epoch = u32::from_be_bytes(self.take()?);
        let issued_at = Timestamp::from_micros(i64::from_be_bytes(self.take()?));
        let expires_at = Timestamp::from_micros(i64::from_be_bytes(self.take()?));
        let methods = Methods(self.take::<1>()?[0]);
        let application_credential = self.optional_id()?;
        let scope = match (self.take::<1>()?, self.u64()?) {
            ([0], 0) => TokenScope::Unscoped,
            ([1], id) => TokenScope::Project(ProjectId::from_bits(id)),
            ([2], id) => TokenScope::Domain(DomainId::from_bits(id)),
            ([3], 0) => TokenScope::System,
            _ => return None,
        };
        Some(Claims { id, parent, user, epoch, issued_at, expires_at, methods, application_credential, scope })
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn optional_id<I: Id>(&mut self) -> Option<Option<I>> {
        self.u64().map(|bits| (bits != 0).then(|| I::from_bits(bits)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> impl Strategy<Value = Claims> {
        let scope = prop_oneof![
            Just(TokenScope::Unscoped),
            any::<u64>().prop_map(|bits| TokenScope::Project(ProjectId::from_bits(bits))),
            any::<u64>().prop_map(|bits| TokenScope::Domain(DomainId::from_bits(bits))),
            Just(TokenScope::System),
        ];
        (any::<(u64, u64, u32, i64, i64)>(), 0u8..16, proptest::option::of(1u64..), proptest::option::of(1u64..), scope)
            .prop_map(|((id, user, epoch, issued, expires), methods, parent, credential, scope)| Claims {
                id: RevocationId::from_bits(id),
                parent: parent.map(RevocationId::from_bits),
                user: UserId::from_bits(user),
                epoch,
                issued_at: Timestamp::from_micros(issued),
                expires_at: Timestamp::from_micros(expires),
                methods: Methods(methods),
                application_credential: credential.map(ApplicationCredentialId::from_bits),
                scope,
            })
    }

    proptest! {
        #[test]
        fn what_was_issued_verifies(claims in claims()) {
            let keys = KeyRing::ephemeral().unwrap();
            let token = issue(&keys, &claims);
            prop_assert!(token.len() < 255 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(verify(&keys, &token).unwrap(), claims);
        }

        #[test]
        fn any_change_of_any_character_fails(claims in claims(), place: prop::sample::Index, other in "[A-Za-z0-9_=-]") {
            let keys = KeyRing::ephemeral().unwrap();
            let token = issue(&keys, &claims);
            let place = place.index(token.len());
            let mut changed = token.clone();
            changed.replace_range(place..=place, &other);
            prop_assert_eq!(verify(&keys, &changed).is_ok(), changed == token);
        }

        #[test]
        fn a_ticket_is_good_for_its_purpose_alone(claims in claims(), place: prop::sample::Index, other in "[A-Za-z0-9_-]") {
            let keys = KeyRing::ephemeral().unwrap();
            let ticket = issue_ticket(&keys, "console", &claims, *b"about");
            prop_assert_eq!(verify_ticket(&keys, "console", &ticket).unwrap(), (claims.clone(), *b"about"));
            prop_assert!(verify_ticket::<5>(&keys, "another", &ticket).is_err());
            prop_assert!(verify_ticket::<4>(&keys, "console", &ticket).is_err());
            prop_assert!(verify(&keys, &ticket).is_err());
            prop_assert!(verify(&keys, &issue_ticket(&keys, "console", &claims, [])).is_err());
            prop_assert!(verify_ticket::<0>(&keys, "console", &issue(&keys, &claims)).is_err());
            let place = place.index(ticket.len());
            let mut changed = ticket.clone();
            changed.replace_range(place..=place, &other);
            prop_assert_eq!(verify_ticket::<5>(&keys, "console", &changed).is_ok(), changed == ticket);
        }

        #[test]
        fn arbitrary_text_never_verifies(text in ".{0,300}") {
            prop_assert!(verify(&KeyRing::ephemeral().unwrap(), &text).is_err());
        }
    }

    #[test]
    fn tokens_outlive_a_rotation_and_end_with_their_key() {
        let keys = KeyRing::ephemeral().unwrap();
        let claims = Claims {
            id: RevocationId::new(),
            parent: None,
            user: UserId::new(),
            epoch: 0,
            issued_at: Timestamp::now(),
            expires_at: Timestamp::now(),
            methods: Methods::PASSWORD.and(Methods::TOKEN),
            application_credential: None,
            scope: TokenScope::System,
        };
        let token = issue(&keys, &claims);
        let keys = keys.rotated().unwrap();
        assert_eq!((key_number(&token), key_number(&issue(&keys, &claims))), (Some(1), Some(2)));
        assert_eq!(key_number("AQ"), None);
        assert_eq!(verify(&keys, &token).unwrap(), claims);
        assert_eq!(claims.methods.names().collect::<Vec<_>>(), ["password", "token"]);
        let keys = keys.without_replaced_before(Timestamp::now().plus(std::time::Duration::from_secs(1)));
        assert_eq!(verify(&keys, &token).unwrap_err().kind, ErrorKind::Unauthenticated);
    }
}
