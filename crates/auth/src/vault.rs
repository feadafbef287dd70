//! Sealing of secrets that must be recoverable (access keys sign requests): AES-256-GCM under a key of the data folder.
//!
//! A sealed value is `key number, nonce, ciphertext and tag` in base64url. It is bound to what it belongs to: moved to
//! another record it does not open.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nephos_types::{Error, Result, Secret};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};

use crate::keyring::{Key, KeyRing, random};

/// Seals and opens secrets.
pub struct Vault(KeyRing);

impl Vault {
    /// A vault under these keys. Older keys must be kept for as long as anything is sealed under them.
    #[must_use]
    pub fn new(keys: KeyRing) -> Self {
        Self(keys)
    }

    /// Seals a secret for its owner, e.g. a record's id.
    pub fn seal(&self, owner: &str, secret: &Secret) -> Result<String> {
        let key = self.0.active();
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut bytes = secret.reveal().as_bytes().to_vec();
        cipher(key)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(owner), &mut bytes)
            .map_err(|_| Error::bug("a secret could not be sealed"))?;
        Ok(URL_SAFE_NO_PAD.encode([&key.id.to_be_bytes()[..], &nonce, &bytes].concat()))
    }

    /// Opens what was sealed for this owner.
    pub fn open(&self, owner: &str, sealed: &str) -> Result<Secret> {
        self.try_open(owner, sealed).ok_or_else(|| {
            Error::bug("a sealed secret cannot be opened")
                .detail("it was changed, or the key it was sealed under is missing from the data folder")
        })
    }

    /// A keyed hash, the same wherever the keys are: to find again what must not be known from the database.
    #[must_use]
    pub fn fingerprint(&self, purpose: &str, text: &str) -> u64 {
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0.active().bytes), b"fingerprint");
        let mut hash = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()));
        hash.update(purpose.as_bytes());
        hash.update(&[0]);
        hash.update(text.as_bytes());
        hash.sign().as_ref().iter().take(8).fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
    }

    fn try_open(&self, owner: &str, sealed: &str) -> Option<Secret> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (id, rest) = bytes.split_first_chunk::<4>()?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = self.0.get(u32::from_be_bytes(*id))?;
        let mut ciphertext = ciphertext.to_vec();
        let clear = cipher(key)
            .ok()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(owner), &mut ciphertext)
            .ok()?;
        std::str::from_utf8(clear).ok()?.parse().ok()
    }
}

fn cipher(key: &Key) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &key.bytes)
        .map(LessSafeKey::new)
        .map_err(|_| Error::bug("a key of the data folder has the wrong length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_of_one_purpose_text_and_key() {
        let (vault, other) = (Vault::new(KeyRing::ephemeral().unwrap()), Vault::new(KeyRing::ephemeral().unwrap()));
        let print = vault.fingerprint("user", "ada");
        assert_eq!(print, vault.fingerprint("user", "ada"));
        assert!(print != vault.fingerprint("address", "ada") && print != vault.fingerprint("user", "bob"));
        assert_ne!(print, other.fingerprint("user", "ada"));
    }

    #[test]
    fn opens_for_its_owner_only_and_unchanged_only() {
        let vault = Vault::new(KeyRing::ephemeral().unwrap());
        let secret: Secret = "wJalrXUtnFEMI".parse().unwrap();
        let sealed = vault.seal("key-1", &secret).unwrap();
        assert_eq!(vault.open("key-1", &sealed).unwrap(), secret);
        assert_ne!(sealed, vault.seal("key-1", &secret).unwrap());
        assert!(!sealed.contains(secret.reveal()));
        assert!(vault.open("key-2", &sealed).is_err());
        for place in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            assert!(vault.open("key-1", std::str::from_utf8(&changed).unwrap()).is_err(), "{place}");
        }
        assert!(vault.open("key-1", "").is_err());
    }
}
