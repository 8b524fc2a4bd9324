//! Keys and signatures of links ([`proto::statement`]): hosts sign with Ed25519, the authority signs tickets with ECDSA
//! P-256.

use std::{collections::BTreeSet, fmt, sync::Mutex};

use proto::{
    Digest, Ticket,
    statement::{LinkKey, LinkSignature, Verify},
};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};

use crate::{credentials::Credentials, lock::lock};

/// How many good signatures are remembered and not checked again. Every chunk comes with a ticket and maybe a base, and
/// most of these repeat.
const REMEMBERED: usize = 4096;

/// The bytes of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;

/// The key with which a host signs links. It differs from the key of the host's certificate, which changes with each
/// renewal and serves only TLS. `Debug` doesn't show the key.
pub struct LinkSigner(Ed25519KeyPair);

impl LinkSigner {
    /// The key for this seed. The 32 bytes must come from the system's randomness and be used for nothing else.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed"))
    }

    /// The public key.
    ///
    /// # Panics
    /// Never: a public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> LinkKey {
        let public = self.0.public_key().as_ref();
        public.try_into().expect("an Ed25519 key has 32 bytes")
    }

    /// Signs these bytes.
    ///
    /// # Panics
    /// Never: a signature has 64 bytes.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> LinkSignature {
        let signature = self.0.sign(bytes);
        let bytes = signature.as_ref();
        bytes.try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

impl fmt::Debug for LinkSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSigner(redacted)")
    }
}

/// Checks the signatures of hosts and of the fleet's authority.
#[derive(Debug)]
pub struct Signatures {
    /// The public keys of the trusted authorities.
    authorities: Vec<Vec<u8>>,
    /// Digests of signatures that were found good, each with the signed bytes.
    good: Mutex<BTreeSet<Digest>>,
}

impl Signatures {
    /// Trusts the authority with this P-256 key, an uncompressed point of 65 bytes.
    #[must_use]
    pub fn of_authority(key: &[u8]) -> Self {
        Self {
            authorities: vec![key.to_vec()],
            good: Mutex::default(),
        }
    }

    /// Trusts the authorities of these credentials. An authority whose key isn't a P-256 key signs no tickets.
    #[must_use]
    pub fn of(credentials: &Credentials) -> Self {
        let roots = credentials.authorities.roots.iter();
        // a SubjectPublicKeyInfo ends with the point
        let keys = roots.filter_map(|root| {
            let info = root.subject_public_key_info.as_ref();
            let point = info.get(info.len().checked_sub(POINT_BYTES)?..)?;
            (point[0] == 4).then(|| point.to_vec())
        });
        Self {
            authorities: keys.collect(),
            good: Mutex::default(),
        }
    }

    fn check(&self, what: Digest, check: impl FnOnce() -> bool) -> bool {
        let hold = || lock(&self.good);
        if hold().contains(&what) {
            return true;
        }
        let good = check();
        if good {
            let mut kept = hold();
            if kept.len() >= REMEMBERED {
                kept.clear();
            }
            kept.insert(what);
        }
        good
    }
}

impl Verify for Signatures {
    fn ticket(&self, ticket: &Ticket) -> bool {
        let (bytes, signature) = (ticket.signed_bytes(), ticket.signature());
        let what = Digest::of(&[b"ticket", bytes.as_slice(), signature].concat());
        self.check(what, || {
            self.authorities.iter().any(|key| {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
                key.verify(&bytes, signature).is_ok()
            })
        })
    }

    fn link(&self, key: &LinkKey, bytes: &[u8], signature: &LinkSignature) -> bool {
        let what = Digest::of(&[b"link", key.as_slice(), signature, bytes].concat());
        self.check(what, || {
            let key = UnparsedPublicKey::new(&ED25519, key);
            key.verify(bytes, signature).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::SigningKey as _;

    use super::*;

    fn ticket(authority: &rcgen::KeyPair, signer: &LinkSigner) -> Ticket {
        let host = "mini-1".parse().unwrap();
        let sign = |bytes: &[u8]| authority.sign(bytes);
        Ticket::issue(None, &host, signer.public(), 1, 2, sign).unwrap()
    }

    #[test]
    fn tickets_are_the_authoritys_and_links_their_makers() {
        let authority = rcgen::KeyPair::generate().unwrap();
        let stranger = rcgen::KeyPair::generate().unwrap();
        let (signer, other) = (
            LinkSigner::from_seed(&[7; 32]),
            LinkSigner::from_seed(&[8; 32]),
        );
        let signatures = Signatures::of_authority(rcgen::PublicKeyData::der_bytes(&authority));
        // the second time from memory
        for _ in 0..2 {
            assert!(signatures.ticket(&ticket(&authority, &signer)));
            assert!(!signatures.ticket(&ticket(&stranger, &signer)));
            let signature = signer.sign(b"link");
            assert!(signatures.link(&signer.public(), b"link", &signature));
            assert!(!signatures.link(&other.public(), b"link", &signature));
            assert!(!signatures.link(&signer.public(), b"another", &signature));
        }
        assert_eq!(format!("{signer:?}"), "LinkSigner(redacted)");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let signatures = Signatures::of_authority(&[4; 65]);
        for at in 0..2 * REMEMBERED as u64 + 9 {
            signatures.check(Digest::of(&at.to_be_bytes()), || true);
        }
        assert!(signatures.good.lock().unwrap().len() <= REMEMBERED);
    }
}
