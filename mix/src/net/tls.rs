//! Links between mixes: TLS in which the key id is the only proof of who is there (minion-spec 4).
//!
//! A mix shows two certificates: one for its link key, which lives in memory for a day, signed by its identity key;
//! and one for the identity key itself. The client trusts no authority and compares no names: the SHA-1 of the
//! identity key must be the key id that it wants to reach. Those checks are made here, on the `rsa` crate, because the
//! usual verifiers refuse the RSA-1024 link keys and SHA-1 signatures of mixes that run the reference.
//!
//! Mixes that speak nothing after TLS 1.0 with finite-field Diffie-Hellman can't be reached: rustls has neither.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::CryptoRng;
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, PublicKeyData, SerialNumber};
use rsa::sha2::{Sha256, Sha384, Sha512};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use sha1::Sha1;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::nom::Parser as _;
use x509_parser::oid_registry::{
    OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA1WITHRSA, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA,
};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::bandwidth::Metered;
use crate::crypto::KeyId;
use crate::crypto::pk::{InvalidKey, PrivateKey, PublicKey};
use crate::directory::Nickname;

/// Bits of a link key. The reference makes 1024.
const LINK_KEY_BITS: u32 = 2048;

/// How long a link identity serves before it must be replaced, as in the reference.
pub const LINK_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// By how much the certificates are valid before and after that, for the sake of peers whose clocks differ. As in the
/// reference, whose clients allow nothing on their side.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2 * 60 * 60);

/// The versions spoken, the better first. In both of them every suite of the provider has an ephemeral key exchange.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// What handshakes may be signed with. SHA-256 goes first: PSS with longer digests does not fit a key of 1024 bits.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA1,
];

/// Why a peer was not accepted. All but the dates, where either clock may be wrong, blame the peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum LinkError {
    /// A mix shows two certificates.
    #[error("the peer showed {found} certificates instead of two")]
    ChainLength {
        /// Certificates found.
        found: usize,
    },
    /// Not one whole X.509 certificate.
    #[error("a certificate does not parse")]
    Certificate,
    /// The key in a certificate is not an RSA key.
    #[error("a certificate without an RSA key")]
    NotRsa,
    /// Too weak to prove anything, or too large to be checked.
    #[error("a certificate with a key of {bits} bits; between 1024 and 4096 are accepted")]
    KeySize {
        /// Bits found.
        bits: u32,
    },
    /// Someone else answers there.
    #[error("the peer is {found}, not {expected}")]
    WrongPeer {
        /// Who should have answered.
        expected: KeyId,
        /// Who did, if the rest is true.
        found: KeyId,
    },
    /// The link certificate is signed by other means than RSA with SHA-1, SHA-256, SHA-384 or SHA-512.
    #[error("the link certificate is signed with an unknown algorithm")]
    LeafAlgorithm,
    /// The link certificate is not signed by the identity key.
    #[error("the link certificate is not signed by the identity key")]
    LeafSignature,
    /// The link certificate begins later than now.
    #[error("the link certificate is not valid yet (one of the two clocks may be wrong)")]
    NotYetValid,
    /// The link certificate has ended.
    #[error("the link certificate has expired (one of the two clocks may be wrong)")]
    Expired,
    /// The handshake is signed with a scheme that was not offered for this version of TLS.
    #[error("the handshake is signed with scheme 0x{scheme:04x}, which was not offered")]
    HandshakeScheme {
        /// The scheme's number.
        scheme: u16,
    },
    /// The peer does not have the private key of its link certificate.
    #[error("the handshake is not signed by the link key")]
    HandshakeSignature,
}

impl From<LinkError> for rustls::Error {
    fn from(error: LinkError) -> Self {
        Self::Other(OtherError(Arc::new(error)))
    }
}

impl LinkError {
    /// Finds what this verifier said in the error of a handshake, where TLS has wrapped it.
    pub fn find(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::Other(OtherError(inner)) => inner.downcast_ref().copied(),
            _ => None,
        }
    }
}

/// Why a link identity could not be made. A bug or a fault of this machine, except for [`IdentityError::Clock`].
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The link key could not be made.
    #[error("making a link key")]
    LinkKey {
        /// What the backend says.
        source: InvalidKey,
    },
    /// A certificate could not be made.
    #[error("making the certificates of the link")]
    Certificate {
        /// What the backend says.
        source: rcgen::Error,
    },
    /// TLS does not take the link key.
    #[error("loading the link key")]
    Load {
        /// What the backend says.
        source: rustls::Error,
    },
    /// The clock is set to a time that certificates can't name.
    #[error("the clock is set before 2003 or beyond what a certificate can say")]
    Clock,
}

/// What this mix shows to those who connect: a link key that is nowhere but in memory, and the two certificates.
pub struct LinkIdentity {
    chain: Vec<CertificateDer<'static>>,
    config: Arc<ServerConfig>,
    replace_at: SystemTime,
}

impl LinkIdentity {
    /// Makes a link key and has the identity key sign for it. Takes a second or so.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn new(
        identity: &PrivateKey,
        nickname: &Nickname,
        now: SystemTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, IdentityError> {
        let link = PrivateKey::generate(LINK_KEY_BITS, rng).map_err(|source| IdentityError::LinkKey { source })?;
        let chain = certify(identity, &link.public_key(), nickname, now, rng)?;
        let pkcs8 = link.to_pkcs8_der();
        let key = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&pkcs8[..])))
            .map_err(|source| IdentityError::Load { source })?;
        let config = Arc::new(server_config(CertifiedKey::new(chain.clone(), key)));
        Ok(Self { chain, config, replace_at: now + LINK_LIFETIME })
    }

    /// The two certificates: link key, identity key.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What TLS needs to serve under this identity.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// When a new link identity must have taken the place of this one.
    pub fn replace_at(&self) -> SystemTime {
        self.replace_at
    }
}

impl fmt::Debug for LinkIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkIdentity(..)")
    }
}

/// A link that a peer has opened to us.
pub type ServerLink = tokio_rustls::server::TlsStream<Metered<TcpStream>>;

/// A link that we have opened to a mix.
pub type ClientLink = tokio_rustls::client::TlsStream<Metered<TcpStream>>;

/// Answers the handshake of a peer under this identity.
///
/// # Errors
/// What TLS says.
pub async fn accept(identity: &LinkIdentity, stream: Metered<TcpStream>) -> io::Result<ServerLink> {
    TlsAcceptor::from(identity.server_config()).accept(stream).await
}

/// Opens a link to the mix `expected`, and to nobody else, at the time `now`.
///
/// # Errors
/// What TLS says; [`LinkError::find`] tells whether the peer was the wrong one.
pub async fn connect(expected: KeyId, now: SystemTime, stream: Metered<TcpStream>) -> io::Result<ClientLink> {
    // Not compared with anything: the key id says who must be there.
    let name = ServerName::IpAddress(stream.get_ref().peer_addr()?.ip().into());
    TlsConnector::from(client_config(expected, now)).connect(name, stream).await
}

/// What TLS needs to reach the mix `expected`, and nobody else, at the time `now`.
pub fn client_config(expected: KeyId, now: SystemTime) -> Arc<ClientConfig> {
    Arc::new(client_config_of(PeerVerifier { expected, now: unix_seconds(now) }, &VERSIONS))
}

fn client_config_of(verifier: PeerVerifier, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // Session suspension is not permitted (minion-spec 4), and a name would tell the wire which mix is meant.
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

fn server_config(identity: CertifiedKey) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&VERSIONS)
        .expect("the provider has suites for both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    // Session suspension is not permitted (minion-spec 4).
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// For a client of plain HTTP, which must be told of some TLS all the same: trusts nobody, and loads nothing, so that it
/// also works where no certificates are installed.
pub(super) fn config_that_trusts_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&VERSIONS)
        .expect("the provider has suites for both versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// For libraries that take the provider from the process and panic when there is none. Where one is installed it stays.
pub(super) fn ensure_process_provider() {
    if CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, and then there is one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// How the keys of a connection are agreed on, the better first: what is recorded today must not be read by the quantum
/// computer of tomorrow. The hybrid group needs TLS 1.3 on both sides; who has not both agrees on one of the others.
static KEY_EXCHANGES: [&dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

/// Named here, never taken from the process: two crates may disagree on the default of the process.
fn provider() -> Arc<CryptoProvider> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(CryptoProvider { kx_groups: KEY_EXCHANGES.to_vec(), ..provider })
}

/// Accepts one mix, by its key id.
#[derive(Debug)]
struct PeerVerifier {
    expected: KeyId,
    /// Seconds since 1970.
    now: i64,
}

impl PeerVerifier {
    fn check_chain(&self, leaf: &[u8], others: &[CertificateDer<'_>]) -> Result<(), LinkError> {
        let [identity] = others else { return Err(LinkError::ChainLength { found: 1 + others.len() }) };
        let (leaf_der, leaf, identity) = (leaf, parse(leaf)?, parse(identity)?);
        let identity_key = public_key(&identity)?;
        let found = identity_key.key_id();
        if found != self.expected {
            return Err(LinkError::WrongPeer { expected: self.expected, found });
        }
        public_key(&leaf)?;
        check_certificate_signature(&leaf, &identity_key)?;
        if leaf_der != envelope_of(&leaf) {
            return Err(LinkError::Certificate);
        }
        // The identity certificate is only the envelope of a key that is known already: its dates say nothing.
        let validity = leaf.validity();
        if self.now < validity.not_before.timestamp() {
            return Err(LinkError::NotYetValid);
        }
        if self.now > validity.not_after.timestamp() {
            return Err(LinkError::Expired);
        }
        Ok(())
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_chain(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_handshake(signed.scheme, message, cert, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // RFC 8446 4.2.3: PKCS#1 v1.5 signs certificates only, never a TLS 1.3 handshake.
        if !is_pss(signed.scheme) {
            return Err(LinkError::HandshakeScheme { scheme: signed.scheme.into() }.into());
        }
        check_handshake(signed.scheme, message, cert, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

fn is_pss(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PSS_SHA256 | SignatureScheme::RSA_PSS_SHA384 | SignatureScheme::RSA_PSS_SHA512
    )
}

/// Checks that the key of the certificate has signed the handshake.
fn check_handshake(scheme: SignatureScheme, message: &[u8], leaf: &[u8], signature: &[u8]) -> Result<(), LinkError> {
    let key = public_key(&parse(leaf)?)?;
    let key = key.as_rsa();
    match scheme {
        SignatureScheme::RSA_PSS_SHA256 => key.pss_verify::<Sha256>(message, signature),
        SignatureScheme::RSA_PSS_SHA384 => key.pss_verify::<Sha384>(message, signature),
        SignatureScheme::RSA_PSS_SHA512 => key.pss_verify::<Sha512>(message, signature),
        SignatureScheme::RSA_PKCS1_SHA256 => key.pkcs1v15_verify::<Sha256>(message, signature),
        SignatureScheme::RSA_PKCS1_SHA384 => key.pkcs1v15_verify::<Sha384>(message, signature),
        SignatureScheme::RSA_PKCS1_SHA512 => key.pkcs1v15_verify::<Sha512>(message, signature),
        SignatureScheme::RSA_PKCS1_SHA1 => key.pkcs1v15_verify::<Sha1>(message, signature),
        other => return Err(LinkError::HandshakeScheme { scheme: other.into() }),
    }
    .map_err(|_| LinkError::HandshakeSignature)
}

fn check_certificate_signature(leaf: &X509Certificate<'_>, signer: &PublicKey) -> Result<(), LinkError> {
    // The algorithm stands twice, inside and outside of what is signed.
    if leaf.signature_algorithm != leaf.tbs_certificate.signature {
        return Err(LinkError::LeafAlgorithm);
    }
    let content = leaf.tbs_certificate.as_ref();
    let signature = &leaf.signature_value.data;
    let algorithm = &leaf.signature_algorithm.algorithm;
    let signer = signer.as_rsa();
    let checked = if *algorithm == OID_PKCS1_SHA256WITHRSA {
        signer.pkcs1v15_verify::<Sha256>(content, signature)
    } else if *algorithm == OID_PKCS1_SHA1WITHRSA {
        signer.pkcs1v15_verify::<Sha1>(content, signature)
    } else if *algorithm == OID_PKCS1_SHA384WITHRSA {
        signer.pkcs1v15_verify::<Sha384>(content, signature)
    } else if *algorithm == OID_PKCS1_SHA512WITHRSA {
        signer.pkcs1v15_verify::<Sha512>(content, signature)
    } else {
        return Err(LinkError::LeafAlgorithm);
    };
    checked.map_err(|_| LinkError::LeafSignature)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, LinkError> {
    // Extensions mean nothing here, and a certificate of the reference has none.
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    match parser.parse(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(LinkError::Certificate),
    }
}

/// What is signed, in the one envelope that DER has for it. The parser takes others, which only differ outside the
/// signature; a mix would never make them.
fn envelope_of(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let algorithm = tlv(0x06, &[certificate.signature_algorithm.algorithm.as_bytes()]);
    let no_parameters = tlv(0x05, &[]);
    let algorithm = tlv(0x30, &[&algorithm, &no_parameters]);
    let signature = tlv(0x03, &[&[0], &certificate.signature_value.data]);
    tlv(0x30, &[certificate.tbs_certificate.as_ref(), &algorithm, &signature])
}

/// A DER value: tag, length in its shortest form, content (X.690 8.1, 10.1).
fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let len = content.len().to_be_bytes();
    let significant = len.iter().position(|&octet| octet != 0).map_or(&[][..], |first| len.split_at(first).1);
    let header = match significant {
        [] => vec![tag, 0],
        [short] if *short < 0x80 => vec![tag, *short],
        long => [&[tag, 0x80 | u8::try_from(long.len()).expect("a length has eight octets")], long].concat(),
    };
    [header, content].concat()
}

fn public_key(certificate: &X509Certificate<'_>) -> Result<PublicKey, LinkError> {
    let info = certificate.public_key();
    if info.algorithm.algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(LinkError::NotRsa);
    }
    PublicKey::from_der(&info.subject_public_key.data).map_err(|_| match modulus_bits(info) {
        Some(bits) if !(1024..=4096).contains(&bits) => LinkError::KeySize { bits },
        _ => LinkError::NotRsa,
    })
}

/// The size of a key that was refused, to say why it was.
fn modulus_bits(info: &SubjectPublicKeyInfo<'_>) -> Option<u32> {
    let Ok(x509_parser::public_key::PublicKey::RSA(key)) = info.parsed() else { return None };
    let first = key.modulus.iter().position(|octet| *octet != 0)?;
    let significant = key.modulus.get(first..)?;
    let unused = significant.first()?.leading_zeros();
    u32::try_from(significant.len()).ok()?.checked_mul(8)?.checked_sub(unused)
}

/// Makes the two certificates as the reference makes them: X.509 version 3 without extensions.
fn certify(
    identity: &PrivateKey,
    link: &PublicKey,
    nickname: &Nickname,
    now: SystemTime,
    rng: &mut impl CryptoRng,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let nickname = nickname.as_str();
    let signer =
        IdentitySigner { key: identity, public: Subject(identity.public_key().to_der()), rng: RefCell::new(rng) };
    let identity_params = certificate_params(nickname, now)?;
    let link_params = certificate_params(&format!("{nickname}<MMTP>"), now)?;
    let issuer = Issuer::from_params(&identity_params, &signer);
    let link = link_params.signed_by(&Subject(link.to_der()), &issuer);
    let link = link.map_err(|source| IdentityError::Certificate { source })?;
    let identity = identity_params.self_signed(&signer).map_err(|source| IdentityError::Certificate { source })?;
    Ok(vec![link.der().clone(), identity.der().clone()])
}

/// The reference counts the serial numbers of its certificates from 2003-01-01, in seconds.
const SERIAL_EPOCH: u64 = 1_041_397_200;

fn certificate_params(name: &str, now: SystemTime) -> Result<CertificateParams, IdentityError> {
    let seconds = now.duration_since(UNIX_EPOCH).map_err(|_| IdentityError::Clock)?.as_secs();
    let serial = seconds.checked_sub(SERIAL_EPOCH).ok_or(IdentityError::Clock)?;
    // Certificates can't name a year of five digits.
    if seconds > LAST_SECOND {
        return Err(IdentityError::Clock);
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(seconds);
    let mut params = CertificateParams::default();
    params.not_before = epoch + (now - CLOCK_TOLERANCE);
    params.not_after = epoch + (now + LINK_LIFETIME + CLOCK_TOLERANCE);
    params.serial_number = Some(SerialNumber::from(serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Mixminion network");
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// The end of the year 9998.
const LAST_SECOND: u64 = 253_370_764_799;

/// A public key in the form that goes into a certificate.
struct Subject(Vec<u8>);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// Lends the identity key to the maker of certificates, which never sees it.
struct IdentitySigner<'a, R> {
    key: &'a PrivateKey,
    public: Subject,
    rng: RefCell<&'a mut R>,
}

impl<R> PublicKeyData for IdentitySigner<'_, R> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl<R: CryptoRng> rcgen::SigningKey for IdentitySigner<'_, R> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut rng = self.rng.borrow_mut();
        self.key.sign_certificate(message, *rng).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::sign::{Signer, SigningKey};
    use rustls::{NamedGroup, SignatureAlgorithm};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::crypto::CounterRng;
    use crate::crypto::stream::StreamKey;

    /// 2026-11-23 01:00:00 UTC.
    fn made_at() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_395_600)
    }

    fn seeded(seed: u8) -> CounterRng {
        CounterRng::new(&StreamKey::new([seed; 16]))
    }

    struct Mix {
        identity: PrivateKey,
        link: LinkIdentity,
        rng: CounterRng,
    }

    impl Mix {
        fn new(seed: u8) -> Self {
            let mut rng = seeded(seed);
            let identity = PrivateKey::generate(2048, &mut rng).unwrap();
            let link = LinkIdentity::new(&identity, &nickname(), made_at(), &mut rng).unwrap();
            Self { identity, link, rng }
        }

        fn key_id(&self) -> KeyId {
            self.identity.public_key().key_id()
        }

        fn verifier(&self, now: SystemTime) -> PeerVerifier {
            PeerVerifier { expected: self.key_id(), now: unix_seconds(now) }
        }

        /// A chain like this mix's own, for any key that is said to be its link key.
        fn certify(&mut self, link: &PublicKey) -> Vec<CertificateDer<'static>> {
            certify(&self.identity, link, &nickname(), made_at(), &mut self.rng).unwrap()
        }
    }

    fn nickname() -> Nickname {
        "Alice".parse().unwrap()
    }

    fn check(verifier: &PeerVerifier, chain: &[CertificateDer<'_>]) -> Result<(), LinkError> {
        let (leaf, others) = chain.split_first().unwrap();
        verifier.check_chain(leaf, others)
    }

    /// Replaces the octets `from` by `to`, as often as they are found.
    fn replaced(der: &[u8], from: &[u8], to: &[u8]) -> (Vec<u8>, usize) {
        let mut der = der.to_vec();
        let places: Vec<usize> =
            der.windows(from.len()).enumerate().filter(|(_, found)| *found == from).map(|(place, _)| place).collect();
        for place in &places {
            der[*place..place + from.len()].copy_from_slice(to);
        }
        (der, places.len())
    }

    /// The public form of a key of that many bits; nobody needs to have the private half.
    fn subject_of(bits: u32) -> Subject {
        let modulus = vec![0xff; bits as usize / 8];
        let key = rsa::pkcs1::RsaPublicKey {
            modulus: rsa::pkcs1::UintRef::new(&modulus).unwrap(),
            public_exponent: rsa::pkcs1::UintRef::new(&[1, 0, 1]).unwrap(),
        };
        Subject(rsa::pkcs1::der::Encode::to_der(&key).unwrap())
    }

    const SHA256_WITH_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
    const MD5_WITH_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04";
    const RSA_ENCRYPTION: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";

    #[test]
    fn chains_are_judged_by_key_id_signature_and_dates_alone() {
        let mut alice = Mix::new(1);
        let bob = Mix::new(2);
        let now = alice.verifier(made_at());
        let chain = alice.link.certificates().to_vec();
        let [leaf, identity] = &chain[..] else { panic!("two certificates") };

        assert_eq!(check(&now, &chain), Ok(()));
        assert_eq!(
            check(&now, bob.link.certificates()),
            Err(LinkError::WrongPeer { expected: alice.key_id(), found: bob.key_id() })
        );
        assert_eq!(check(&now, &chain[..1]), Err(LinkError::ChainLength { found: 1 }));
        let three = [leaf.clone(), identity.clone(), identity.clone()];
        assert_eq!(check(&now, &three), Err(LinkError::ChainLength { found: 3 }));
        let mixed = [bob.link.certificates()[0].clone(), identity.clone()];
        assert_eq!(check(&now, &mixed), Err(LinkError::LeafSignature));

        let (renamed, places) = replaced(leaf, b"Alice<MMTP>", b"Mallo<MMTP>");
        assert_eq!(places, 1);
        assert_eq!(check(&now, &[renamed.into(), identity.clone()]), Err(LinkError::LeafSignature));
        let (md5, places) = replaced(leaf, SHA256_WITH_RSA, MD5_WITH_RSA);
        assert_eq!(places, 2);
        assert_eq!(check(&now, &[md5.into(), identity.clone()]), Err(LinkError::LeafAlgorithm));
        let last = leaf.windows(9).rposition(|found| found == SHA256_WITH_RSA).unwrap();
        let mut outside = leaf.to_vec();
        outside[last + 8] = 0x05;
        assert_eq!(check(&now, &[outside.into(), identity.clone()]), Err(LinkError::LeafAlgorithm));
        let (not_rsa, places) = replaced(identity, RSA_ENCRYPTION, MD5_WITH_RSA);
        assert_eq!(places, 1);
        assert_eq!(check(&now, &[leaf.clone(), not_rsa.into()]), Err(LinkError::NotRsa));
        let longer = [&leaf[..], b"\0"].concat();
        assert_eq!(check(&now, &[longer.into(), identity.clone()]), Err(LinkError::Certificate));

        let hours = |count: u64| Duration::from_secs(count * 3600);
        let second = Duration::from_secs(1);
        assert_eq!(check(&alice.verifier(made_at() - hours(2)), &chain), Ok(()));
        assert_eq!(check(&alice.verifier(made_at() - hours(2) - second), &chain), Err(LinkError::NotYetValid));
        assert_eq!(check(&alice.verifier(made_at() + hours(26)), &chain), Ok(()));
        assert_eq!(check(&alice.verifier(made_at() + hours(26) + second), &chain), Err(LinkError::Expired));

        for bits in [768, 4104] {
            let (params, subject) = (certificate_params("odd", made_at()).unwrap(), subject_of(bits));
            let mut rng = seeded(9);
            let public = Subject(alice.identity.public_key().to_der());
            let signer = IdentitySigner { key: &alice.identity, public, rng: RefCell::new(&mut rng) };
            let odd = params.signed_by(&subject, &Issuer::from_params(&params, &signer)).unwrap().der().clone();
            assert_eq!(check(&now, &[odd, identity.clone()]), Err(LinkError::KeySize { bits }));
        }

        // As the reference makes them, but for the digest: X.509 version 3, no extensions.
        for certificate in &chain {
            let parsed = parse(certificate).unwrap();
            assert_eq!(parsed.version(), x509_parser::x509::X509Version::V3);
            assert!(parsed.extensions().is_empty());
            assert_eq!(parsed.serial.to_string(), (1_795_395_600 - SERIAL_EPOCH).to_string());
        }
        let old = alice.certify(&PrivateKey::generate(1024, &mut seeded(7)).unwrap().public_key());
        assert_eq!(check(&now, &old), Ok(()), "a link key as small as the reference's");
        damaged_certificates_are_refused_and_never_panic(&now, &chain);
    }

    fn damaged_certificates_are_refused_and_never_panic(verifier: &PeerVerifier, chain: &[CertificateDer<'_>]) {
        let leaf = chain[0].to_vec();
        // Between what is signed and the signature each octet has one good value.
        let signature_start = leaf.len() - 256;
        for (place, flip) in
            (signature_start - 24..signature_start).flat_map(|at| (1..=255).map(move |flip| (at, flip)))
        {
            let mut damaged = leaf.clone();
            damaged[place] ^= flip;
            let refused = check(verifier, &[damaged.into(), chain[1].clone()]).is_err();
            assert!(refused, "octet {place} of {}, {:02x} ^ {flip:02x}", leaf.len(), leaf[place]);
        }
        let strategy = (0..leaf.len(), 1..=255u8, prop::option::of(0..leaf.len()));
        proptest!(ProptestConfig::with_cases(256), |((place, flip, cut) in strategy)| {
            let mut damaged = leaf.clone();
            damaged[place] ^= flip;
            damaged.truncate(cut.unwrap_or(leaf.len()));
            prop_assert!(check(verifier, &[damaged.into(), chain[1].clone()]).is_err());
        });
    }

    #[test]
    fn impossible_clocks_are_named() {
        assert!(matches!(certificate_params("a", UNIX_EPOCH), Err(IdentityError::Clock)));
        assert!(matches!(certificate_params("a", UNIX_EPOCH - LINK_LIFETIME), Err(IdentityError::Clock)));
        let late = UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1);
        assert!(matches!(certificate_params("a", late), Err(IdentityError::Clock)));
        assert!(certificate_params("a", late - Duration::from_secs(1)).is_ok());
    }

    /// Handshakes over a pipe; what the client says about it.
    async fn handshake(server: ServerConfig, version: &'static SupportedProtocolVersion, expected: KeyId) -> Handshake {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            // Keeps the link until the client has seen the end of the handshake.
            if let Ok(mut link) = TlsAcceptor::from(Arc::new(server)).accept(far).await {
                let _ = tokio::io::AsyncReadExt::read_u8(&mut link).await;
            }
        });
        let verifier = PeerVerifier { expected, now: unix_seconds(made_at()) };
        let config = client_config_of(verifier, &[version]);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        match TlsConnector::from(Arc::new(config)).connect(name, near).await {
            Ok(link) => {
                assert_eq!(link.get_ref().1.protocol_version(), Some(version.version));
                Ok(())
            }
            Err(error) => Err(LinkError::find(&error).unwrap_or_else(|| panic!("not the verifier's word: {error:?}"))),
        }
    }

    type Handshake = Result<(), LinkError>;

    /// The group that a link of ours agrees on with a client that has these groups and versions alone.
    async fn agreed_with(alice: &Mix, groups: &[&'static dyn SupportedKxGroup], versions: Versions) -> NamedGroup {
        let own = client_config_of(alice.verifier(made_at()), versions);
        let provider = CryptoProvider { kx_groups: groups.to_vec(), ..CryptoProvider::clone(own.crypto_provider()) };
        let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(alice.verifier(made_at())))
            .with_no_client_auth();
        client.enable_sni = false;
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let (server, client) = tokio::join!(
            TlsAcceptor::from(alice.link.server_config()).accept(far),
            TlsConnector::from(Arc::new(client)).connect(name, near)
        );
        let (server, client) = (server.unwrap(), client.unwrap());
        let group = client.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(server.get_ref().1.negotiated_key_exchange_group().unwrap().name(), group);
        group
    }

    type Versions = &'static [&'static SupportedProtocolVersion];
    static OLD: [&SupportedProtocolVersion; 1] = [&TLS12];

    #[tokio::test]
    async fn two_of_us_agree_on_keys_that_no_quantum_computer_finds_later() {
        let alice = Mix::new(1);
        let config = client_config(alice.key_id(), made_at());
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let (server, client) = tokio::join!(
            TlsAcceptor::from(alice.link.server_config()).accept(far),
            TlsConnector::from(config).connect(name, near)
        );
        let (server, client) = (server.unwrap(), client.unwrap());
        for (version, group) in [
            (client.get_ref().1.protocol_version(), client.get_ref().1.negotiated_key_exchange_group()),
            (server.get_ref().1.protocol_version(), server.get_ref().1.negotiated_key_exchange_group()),
        ] {
            assert_eq!(version, Some(TLS13.version));
            assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
        }
    }

    #[tokio::test]
    async fn peer_without_the_hybrid_group_still_links() {
        let alice = Mix::new(1);
        assert_eq!(agreed_with(&alice, &[kx_group::X25519], &VERSIONS).await, NamedGroup::X25519);
        assert_eq!(agreed_with(&alice, &[kx_group::SECP256R1], &VERSIONS).await, NamedGroup::secp256r1);
        assert_eq!(agreed_with(&alice, &[kx_group::SECP256R1], &OLD).await, NamedGroup::secp256r1);
        assert_eq!(agreed_with(&alice, &KEY_EXCHANGES, &OLD).await, NamedGroup::X25519);
    }

    /// Signs with a key, or a scheme, that is not the certificate's.
    #[derive(Debug)]
    struct Forger {
        key: Arc<dyn SigningKey>,
        claimed: Option<SignatureScheme>,
    }

    impl SigningKey for Forger {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            let signer = self.key.choose_scheme(offered)?;
            let scheme = self.claimed.unwrap_or(signer.scheme());
            Some(Box::new(ForgedSigner { signer, scheme }))
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            self.key.algorithm()
        }
    }

    #[derive(Debug)]
    struct ForgedSigner {
        signer: Box<dyn Signer>,
        scheme: SignatureScheme,
    }

    impl Signer for ForgedSigner {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            self.signer.sign(message)
        }

        fn scheme(&self) -> SignatureScheme {
            self.scheme
        }
    }

    fn forged(chain: &[CertificateDer<'static>], key: &PrivateKey, claimed: Option<SignatureScheme>) -> ServerConfig {
        let pkcs8 = key.to_pkcs8_der();
        let key = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&pkcs8[..]))).unwrap();
        server_config(CertifiedKey::new(chain.to_vec(), Arc::new(Forger { key, claimed })))
    }

    #[tokio::test]
    async fn both_versions_of_tls_demand_the_signature_of_the_link_key() {
        let alice = Mix::new(1);
        let bob = Mix::new(2);
        for version in VERSIONS {
            let own = Arc::unwrap_or_clone(alice.link.server_config());
            assert_eq!(handshake(own.clone(), version, alice.key_id()).await, Ok(()));
            let wrong = LinkError::WrongPeer { expected: bob.key_id(), found: alice.key_id() };
            assert_eq!(handshake(own, version, bob.key_id()).await, Err(wrong));
            // Mallory shows Alice's certificates without her link key.
            let mallory = forged(alice.link.certificates(), &bob.identity, None);
            assert_eq!(handshake(mallory, version, alice.key_id()).await, Err(LinkError::HandshakeSignature));
        }
        let old_scheme = forged(alice.link.certificates(), &bob.identity, Some(SignatureScheme::RSA_PKCS1_SHA256));
        let refused = LinkError::HandshakeScheme { scheme: 0x0401 };
        assert_eq!(handshake(old_scheme, &TLS13, alice.key_id()).await, Err(refused));
        let unknown = forged(alice.link.certificates(), &bob.identity, Some(SignatureScheme::ECDSA_SHA1_Legacy));
        let refused = LinkError::HandshakeScheme { scheme: 0x0203 };
        assert_eq!(handshake(unknown, &TLS13, alice.key_id()).await, Err(refused));
    }
}
