//! Signed bodies, Celery's serializer `auth` (`celery.security`): a body of another serializer with the signature of
//! its sender, whose certificate must be known here. The headers are not signed, as in Celery.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use rsa::sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, PrivateKey, Pss, PublicKey};
use serde_json::{Map, Value};
use x509_cert::Certificate;
use x509_cert::der::asn1::Any;
use x509_cert::der::{DecodePem as _, Encode as _, Tag, Tagged as _};

use super::message::DecodeError;
use crate::clock::{self, Timestamp};

/// Between the parts of a signed body.
const SEPARATOR: &[u8] = b"\x00\x01";

/// Whose signatures are believed, and with what own messages are signed.
pub struct Security {
    digest: Digest,
    known: HashMap<String, Known>,
    signer: Option<(String, PrivateKey)>,
}

struct Known {
    key: PublicKey,
    expires: Timestamp,
}

#[derive(Clone, Copy)]
enum Digest {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// A signed body that was verified.
pub(super) struct Opened {
    pub content_type: String,
    pub body: Vec<u8>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("known", &self.known.keys())
            .field("signs", &self.signer.is_some())
            .finish_non_exhaustive()
    }
}

impl Security {
    /// Believes signatures made with that digest (`security_digest`), by nobody yet.
    ///
    /// # Errors
    /// The digest is not known.
    pub fn new(digest: &str) -> Result<Self, String> {
        let digest = match digest.to_ascii_lowercase().as_str() {
            "sha224" => Digest::Sha224,
            "sha256" => Digest::Sha256,
            "sha384" => Digest::Sha384,
            "sha512" => Digest::Sha512,
            _ => return Err(format!("{digest:?} is not one of sha224, sha256, sha384, sha512")),
        };
        Ok(Self {
            digest,
            known: HashMap::new(),
            signer: None,
        })
    }

    /// Believes the owner of a certificate in PEM.
    ///
    /// # Errors
    /// It is none, expired, not of an RSA key, or known already.
    pub fn trust(&mut self, certificate: &str) -> Result<(), String> {
        let (id, known) = read(certificate)?;
        if known.expires <= clock::now() {
            return Err(format!("the certificate {id:?} has expired"));
        }
        if self.known.contains_key(&id) {
            return Err(format!("the certificate {id:?} is there twice"));
        }
        self.known.insert(id, known);
        Ok(())
    }

    /// Signs with a private key in PEM, under the name that is in its certificate.
    ///
    /// # Errors
    /// They are not an RSA key and its certificate, or the password is wrong.
    pub fn sign_with(&mut self, key: &str, password: Option<&str>, certificate: &str) -> Result<(), String> {
        let wrong = |error: &dyn fmt::Display| format!("the key cannot be read: {error}");
        let key = match password {
            Some(password) => PrivateKey::from_pkcs8_encrypted_pem(key, password).map_err(|error| wrong(&error))?,
            None if key.contains("BEGIN RSA PRIVATE KEY") => {
                PrivateKey::from_pkcs1_pem(key).map_err(|error| wrong(&error))?
            }
            None if key.contains("ENCRYPTED") => return Err("the key wants a password: security_key_password".into()),
            None => PrivateKey::from_pkcs8_pem(key).map_err(|error| wrong(&error))?,
        };
        let (id, known) = read(certificate)?;
        if known.key != key.to_public_key() {
            return Err(format!("the key is not that of the certificate {id:?}"));
        }
        self.signer = Some((id, key));
        Ok(())
    }

    /// The message as it is to be sent: with its body signed, where there is a signer.
    ///
    /// # Errors
    /// There is no key, or this is no envelope.
    pub fn signed(signer: Option<&Self>, envelope: Vec<u8>) -> Result<Vec<u8>, String> {
        match signer {
            None => Ok(envelope),
            Some(signer) => signer.sign_envelope(&envelope),
        }
    }

    /// The same message with its body signed; of this project's own messages, whose bodies are JSON.
    ///
    /// # Errors
    /// There is no key, or this is no envelope.
    pub fn sign_envelope(&self, envelope: &[u8]) -> Result<Vec<u8>, String> {
        let mut envelope: Map<String, Value> = serde_json::from_slice(envelope).map_err(|error| error.to_string())?;
        let body = envelope.get("body").and_then(Value::as_str).unwrap_or_default();
        let body = STANDARD.decode(body).map_err(|error| error.to_string())?;
        let signed = STANDARD.encode(self.seal("application/json", "utf-8", &body)?);
        envelope.insert("body".into(), signed.into());
        envelope.insert("content-type".into(), "application/data".into());
        envelope.insert("content-encoding".into(), "utf-8".into());
        serde_json::to_vec(&envelope).map_err(|error| error.to_string())
    }

    fn seal(&self, content_type: &str, encoding: &str, body: &[u8]) -> Result<String, String> {
        let (id, key) = self.signer.as_ref().ok_or("there is no key to sign with")?;
        let signature = self
            .digest
            .sign(key, body)
            .map_err(|error| format!("the body cannot be signed: {error}"))?;
        let parts = [
            STANDARD.encode(id).as_bytes(),
            STANDARD.encode(signature).as_bytes(),
            content_type.as_bytes(),
            encoding.as_bytes(),
            body,
        ]
        .join(SEPARATOR);
        Ok(STANDARD.encode(parts))
    }

    /// What was signed, if whoever signed it is believed. Nothing of the body is looked at before.
    pub(super) fn open(&self, signed: &[u8]) -> Result<Opened, DecodeError> {
        let wrong = |what: &str| DecodeError::Security(what.to_owned());
        let no_base64 = |error: base64::DecodeError| wrong(&format!("it is not of Celery's form: {error}"));
        let packed = STANDARD.decode(signed.trim_ascii()).map_err(no_base64)?;
        let mut rest = &packed[..];
        let mut part = || {
            let at = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR)?;
            let part = &rest[..at];
            rest = &rest[at + SEPARATOR.len()..];
            Some(part)
        };
        let (Some(signer), Some(signature), Some(content_type), Some(_)) = (part(), part(), part(), part()) else {
            return Err(wrong("it has not all of its five parts"));
        };
        let signer = STANDARD.decode(signer).map_err(no_base64)?;
        let signer = String::from_utf8_lossy(&signer);
        let signature = STANDARD.decode(signature).map_err(no_base64)?;
        let known = self.known.get(&*signer);
        let known = known.ok_or_else(|| wrong(&format!("nobody here knows the certificate {signer:.200?}")))?;
        if known.expires <= clock::now() {
            return Err(wrong(&format!("the certificate {signer:?} has expired")));
        }
        if self.digest.verify(&known.key, rest, &signature).is_err() {
            return Err(wrong(&format!("the signature is not one of {signer:?}")));
        }
        Ok(Opened {
            content_type: String::from_utf8_lossy(content_type).into_owned(),
            body: rest.to_vec(),
        })
    }
}

/// With every digest: PSS with the longest salt that fits the key, which is what Celery takes.
macro_rules! with {
    ($digest:expr, $key:expr, $body:expr, |$padding:ident, $hash:ident| $do:expr) => {
        match $digest {
            Digest::Sha224 => with!(@ Sha224, $key, $body, $padding, $hash, $do),
            Digest::Sha256 => with!(@ Sha256, $key, $body, $padding, $hash, $do),
            Digest::Sha384 => with!(@ Sha384, $key, $body, $padding, $hash, $do),
            Digest::Sha512 => with!(@ Sha512, $key, $body, $padding, $hash, $do),
        }
    };
    (@ $type:ty, $key:expr, $body:expr, $padding:ident, $hash:ident, $do:expr) => {{
        let $hash = <$type>::digest($body);
        let room = ($key.n().bit_width_vartime() as usize + 6) / 8;
        let $padding = Pss::<$type>::new_with_salt(room.saturating_sub(<$type>::output_size() + 2));
        $do
    }};
}

impl Digest {
    fn sign(self, key: &PrivateKey, body: &[u8]) -> rsa::Result<Vec<u8>> {
        with!(self, key, body, |padding, hash| key.sign_with_rng(
            &mut rand::rng(),
            padding,
            &hash
        ))
    }

    fn verify(self, key: &PublicKey, body: &[u8], signature: &[u8]) -> rsa::Result<()> {
        with!(self, key, body, |padding, hash| key.verify(padding, &hash, signature))
    }
}

/// A certificate's name, as Celery makes it of issuer and number, and what is needed of it.
fn read(pem: &str) -> Result<(String, Known), String> {
    let begin = pem
        .find("-----BEGIN CERTIFICATE-----")
        .ok_or("it is no certificate in PEM")?;
    let certificate = Certificate::from_pem(&pem.as_bytes()[begin..]);
    let certificate = certificate.map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let body = certificate.tbs_certificate();
    let mut id: Vec<String> = body.issuer().iter().map(|part| text(&part.value)).collect();
    let number = BoxedUint::from_be_slice_vartime(body.serial_number().as_bytes());
    id.push(number.to_string_radix_vartime(10));
    let id = id.join(" ");
    let key = body
        .subject_public_key_info()
        .to_der()
        .map_err(|error| error.to_string())?;
    let key = PublicKey::from_public_key_der(&key)
        .map_err(|error| format!("the certificate {id:?} is not of an RSA key that can be used: {error}"))?;
    let expires = body.validity().not_after.to_unix_duration().as_secs();
    let expires = i64::try_from(expires)
        .ok()
        .and_then(|at| Timestamp::from_second(at).ok());
    let expires = expires.unwrap_or(Timestamp::MAX);
    Ok((id, Known { key, expires }))
}

/// A text of a certificate in one of its alphabets.
fn text(value: &Any) -> String {
    let bytes = value.value();
    match value.tag() {
        Tag::BmpString => {
            let units: Vec<u16> = bytes
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
            String::from_utf16_lossy(&units)
        }
        Tag::TeletexString => bytes.iter().map(|byte| char::from(*byte)).collect(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}
