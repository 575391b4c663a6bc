//! A job's own certification authority, and the certificates it issues.
//!
//! ```text
//! JOB-ca          ca.key, ca.crt (one or two: the newest first), tls.key + tls.crt of the operator as a client     no pod mounts it
//! JOB-worker-tls  ca.crt, tls.key + tls.crt of the worker                                                          the worker mounts it
//! ```
//! Everything is renewed at two thirds of its life. When the authority is renewed, the old one stays in `ca.crt` until it ends, so a worker that
//! has not yet read the new file trusts the operator and is trusted: the operator's own certificate is renewed later, by its own age.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::names;

/// How long certificates live, seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The authority.
    pub authority_seconds: u64,
    /// The operator's and the worker's.
    pub leaf_seconds: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        // A third of the authority's life must be longer than a leaf's, so that each leaf ends before its issuer.
        Self { authority_seconds: 365 * 86_400, leaf_seconds: 90 * 86_400 }
    }
}

/// Names of keys in the Secrets.
pub const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// The two Secrets' contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Of `JOB-ca`.
    pub authority: BTreeMap<&'static str, String>,
    /// Of `JOB-worker-tls`.
    pub worker: BTreeMap<&'static str, String>,
}

/// The operator's side of a connection to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Trusted authorities, PEM.
    pub authorities: String,
    /// Its own certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// Why certificates can't be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// rcgen refused.
    #[error("a certificate can't be issued: {0}")]
    Issue(#[from] rcgen::Error),
}

/// What is in a Secret, as text; what isn't text isn't there.
pub type Contents = BTreeMap<String, String>;

/// Whether anything must be issued: something is missing, can't be read, or has lived two thirds of its life.
#[must_use]
pub fn is_due(authority: Option<&Contents>, worker: Option<&Contents>, now: Timestamp) -> bool {
    let (Some(authority), Some(worker)) = (authority, worker) else { return true };
    let trusted = authority.get(CA_CERTIFICATE);
    trusted.is_none()
        || trusted != worker.get(CA_CERTIFICATE)
        || is_old(trusted, now)
        || is_old(authority.get(CERTIFICATE), now)
        || is_old(worker.get(CERTIFICATE), now)
        || [authority.get(CA_KEY), authority.get(KEY), worker.get(KEY)].iter().any(Option::is_none)
}

/// Issues what is missing or due, and keeps the rest.
pub fn issue(
    job: &str,
    namespace: &str,
    authority: Option<&Contents>,
    worker: Option<&Contents>,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Issued, CertificateError> {
    let get = |contents: Option<&Contents>, key: &str| contents.and_then(|c| c.get(key)).cloned();
    let old_authorities = get(authority, CA_CERTIFICATE);
    let kept_key = get(authority, CA_KEY).and_then(|pem| KeyPair::from_pem(&pem).ok());
    let (authorities, key, are_leaves_trusted) = match (old_authorities, kept_key) {
        (Some(pem), Some(key)) if !is_old(Some(&pem), now) => (pem, key, true),
        (old, _) => {
            let key = KeyPair::generate()?;
            let new = authority_params(job, namespace, lifetimes.authority_seconds, now).self_signed(&key)?.pem();
            // The one before stays trusted; any older one has ended.
            let before = old.as_deref().and_then(first_certificate).filter(|pem| !is_over(pem, now)).unwrap_or_default();
            // Where the one before is lost, nobody trusts what it issued.
            let is_kept = !before.is_empty();
            (format!("{new}{before}"), key, is_kept)
        }
    };
    let signer = first_certificate(&authorities).unwrap_or_default();
    let issuer = Issuer::from_ca_cert_pem(&signer, &key)?;
    let own = match (get(authority, CERTIFICATE), get(authority, KEY)) {
        (Some(certificate), Some(key)) if !is_old(Some(&certificate), now) && are_leaves_trusted => (certificate, key),
        _ => leaf(
            &issuer,
            FIELD_NAME_OPERATOR,
            vec![FIELD_NAME_OPERATOR.to_owned()],
            ExtendedKeyUsagePurpose::ClientAuth,
            lifetimes,
            now,
        )?,
    };
    let of_worker = match (get(worker, CERTIFICATE), get(worker, KEY)) {
        (Some(certificate), Some(key)) if !is_old(Some(&certificate), now) && are_leaves_trusted => (certificate, key),
        _ => {
            let server = names::server_name(job, namespace);
            let pods = format!("*.{}.{namespace}.svc", names::headless_service(job));
            let also = [format!("{server}.cluster.local"), format!("{pods}.cluster.local"), "localhost".to_owned()];
            let all = [server.clone(), pods].into_iter().chain(also).collect();
            leaf(&issuer, &server, all, ExtendedKeyUsagePurpose::ServerAuth, lifetimes, now)?
        }
    };
    let worker = BTreeMap::from([(CA_CERTIFICATE, authorities.clone()), (CERTIFICATE, of_worker.0), (KEY, of_worker.1)]);
    let authority =
        BTreeMap::from([(CA_CERTIFICATE, authorities), (CA_KEY, key.serialize_pem()), (CERTIFICATE, own.0), (KEY, own.1)]);
    Ok(Issued { authority, worker })
}

/// A certificate of its own for a server of these names, and its authority: `(ca.crt, tls.crt, tls.key)`.
pub fn issue_server(
    names: &[String],
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<(String, String, String), CertificateError> {
    let key = KeyPair::generate()?;
    let authority = authority_params("webhook", "tiderace", lifetimes.authority_seconds, now).self_signed(&key)?.pem();
    let issuer = Issuer::from_ca_cert_pem(&authority, &key)?;
    let common_name = names.first().map_or("tiderace-webhook", String::as_str);
    let (certificate, key) = leaf(&issuer, common_name, names.to_vec(), ExtendedKeyUsagePurpose::ServerAuth, lifetimes, now)?;
    Ok((authority, certificate, key))
}

/// Whether a server's own certificate must be issued: see [`issue_server`].
#[must_use]
pub fn is_due_server(contents: &Contents, now: Timestamp) -> bool {
    is_old(contents.get(CERTIFICATE), now) || !contents.contains_key(KEY) || !contents.contains_key(CA_CERTIFICATE)
}

/// The operator's identity towards a job's worker, if it was issued.
#[must_use]
pub fn client_identity(authority: &Contents) -> Option<ClientIdentity> {
    Some(ClientIdentity {
        authorities: authority.get(CA_CERTIFICATE)?.clone(),
        certificate: authority.get(CERTIFICATE)?.clone(),
        key: authority.get(KEY)?.clone(),
    })
}

const FIELD_NAME_OPERATOR: &str = "tiderace-operator";
/// Clocks of nodes differ: a certificate is valid from a little before it was made.
const CLOCK_SKEW_SECONDS: i64 = 300;

fn authority_params(job: &str, namespace: &str, seconds: u64, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("tiderace {namespace}/{job} {}", now.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_life(&mut params, seconds, now);
    params
}

fn leaf(
    issuer: &Issuer<'_, &KeyPair>,
    common_name: &str,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<(String, String), CertificateError> {
    let mut params = CertificateParams::new(names)?;
    // An X.509 common name has at most 64 characters; the names that count are the alternative ones.
    params.distinguished_name = name(&common_name.chars().take(64).collect::<String>());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, lifetimes.leaf_seconds, now);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    name
}

fn set_life(params: &mut CertificateParams, seconds: u64, now: Timestamp) {
    let start = date_time_ymd(1970, 1, 1);
    let at = |second: i64| start + Duration::from_secs(u64::try_from(second).unwrap_or(0));
    params.not_before = at(now.as_second() - CLOCK_SKEW_SECONDS);
    params.not_after = at(now.as_second() + i64::try_from(seconds).unwrap_or(i64::MAX / 2));
}

/// Whether the first certificate has lived two thirds of its life, or can't be read.
fn is_old(pem: Option<&String>, now: Timestamp) -> bool {
    let Some((start, end)) = pem.and_then(|pem| life(pem)) else { return true };
    now.as_second() >= start + (end - start) / 3 * 2
}

fn is_over(pem: &str, now: Timestamp) -> bool {
    life(pem).is_none_or(|(_, end)| now.as_second() >= end)
}

/// The first certificate of a PEM text.
#[must_use]
pub fn first_certificate(pem: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let start = pem.find("-----BEGIN CERTIFICATE-----")?;
    let end = pem[start..].find(END)? + start + END.len();
    Some(format!("{}\n", &pem[start..end]))
}

/// Unix seconds of the first certificate's beginning and end.
fn life(pem: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    validity(&der)
}

/// `TBSCertificate.validity` of a DER certificate. Lengths are checked against what is there; anything unexpected is `None`.
fn validity(der: &[u8]) -> Option<(i64, i64)> {
    const SEQUENCE: u8 = 0x30;
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&0xa0) {
        rest = element(rest, 0xa0)?.1; // version
    }
    rest = element(rest, 0x02)?.1; // serialNumber
    rest = element(rest, SEQUENCE)?.1; // signature
    rest = element(rest, SEQUENCE)?.1; // issuer
    let (dates, _) = element(rest, SEQUENCE)?;
    let (start, dates) = date(dates)?;
    let (end, _) = date(dates)?;
    Some((start, end))
}

/// The content of the element of `tag` at the beginning, and what follows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if !(1..=4).contains(&count) || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0, |n, d| n << 8 | usize::from(*d)), rest)
    };
    (found == tag && rest.len() >= length).then(|| rest.split_at(length))
}

/// A UTCTime or GeneralizedTime, and what follows.
fn date(der: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest, century) = match der.first()? {
        0x17 => {
            let (text, rest) = element(der, 0x17)?;
            (text, rest, true)
        }
        _ => {
            let (text, rest) = element(der, 0x18)?;
            (text, rest, false)
        }
    };
    let text = std::str::from_utf8(text).ok()?;
    let text = if century { format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }) } else { text.to_owned() };
    let (digits, zone) = text.split_at_checked(14)?;
    if zone != "Z" || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &digits[..4],
        &digits[4..6],
        &digits[6..8],
        &digits[8..10],
        &digits[10..12],
        &digits[12..14]
    );
    Some((text.parse::<Timestamp>().ok()?.as_second(), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + day * 86_400).unwrap()
    }

    fn contents(map: &BTreeMap<&'static str, String>) -> Contents {
        map.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
    }

    fn renew(old: Option<&Issued>, day: i64) -> Issued {
        let old = old.map(|i| (contents(&i.authority), contents(&i.worker)));
        let (authority, worker) = old.as_ref().map_or((None, None), |(a, w)| (Some(a), Some(w)));
        issue("orders", "shop", authority, worker, Lifetimes::default(), at(day)).unwrap()
    }

    fn due(issued: &Issued, day: i64) -> bool {
        is_due(Some(&contents(&issued.authority)), Some(&contents(&issued.worker)), at(day))
    }

    #[test]
    fn nothing_is_issued_before_it_is_due() {
        let first = renew(None, 0);
        assert!(is_due(None, None, at(0)));
        assert!(!due(&first, 0));
        assert!(!due(&first, 59));
        assert!(due(&first, 61));
        assert_eq!(renew(Some(&first), 59), first);
    }

    #[test]
    fn leaves_are_renewed_and_the_authority_stays() {
        let first = renew(None, 0);
        let second = renew(Some(&first), 61);
        assert_eq!(second.authority["ca.crt"], first.authority["ca.crt"]);
        assert_ne!(second.authority["tls.crt"], first.authority["tls.crt"]);
        assert_ne!(second.worker["tls.crt"], first.worker["tls.crt"]);
        assert!(!due(&second, 61));
    }

    /// Through two years of renewals, whoever has yesterday's files and whoever has today's trust each other.
    #[test]
    fn old_and_new_files_trust_each_other_through_every_renewal() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut old = renew(None, 0);
        let mut authorities = 1;
        for day in 1..730 {
            if !due(&old, day) {
                continue;
            }
            let new = renew(Some(&old), day);
            assert!(!due(&new, day), "day {day}");
            for (trust, shown) in [
                (&old.worker, &new.authority),
                (&new.worker, &old.authority),
                (&old.authority, &new.worker),
                (&new.authority, &old.worker),
            ] {
                assert!(is_trusted(&trust["ca.crt"], &shown["tls.crt"], at(day)), "day {day}");
            }
            if new.authority["ca.crt"] != old.authority["ca.crt"] {
                authorities += 1;
                assert_eq!(new.authority["ca.crt"].matches("BEGIN CERTIFICATE").count(), 2);
            }
            old = new;
        }
        assert!((3..6).contains(&authorities), "{authorities} authorities in two years");
    }

    /// Whether a certificate of `shown` is signed by one of `trusted` and valid at that time.
    fn is_trusted(trusted: &str, shown: &str, now: Timestamp) -> bool {
        use rustls::pki_types::UnixTime;
        use rustls::server::WebPkiClientVerifier;
        use rustls::{RootCertStore, client::WebPkiServerVerifier};
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let roots = std::sync::Arc::new(roots);
        let certificate = CertificateDer::from_pem_slice(shown.as_bytes()).unwrap();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap()));
        let client = WebPkiClientVerifier::builder(roots.clone()).build().unwrap();
        if client.verify_client_cert(&certificate, &[], time).is_ok() {
            return true;
        }
        use rustls::client::danger::ServerCertVerifier;
        let server = WebPkiServerVerifier::builder(roots).build().unwrap();
        let name = names::server_name("orders", "shop").try_into().unwrap();
        server.verify_server_cert(&certificate, &[], &name, &[], time).is_ok()
    }

    #[test]
    fn a_secret_that_somebody_broke_is_issued_anew() {
        let first = renew(None, 0);
        for key in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
            for value in [None, Some("nonsense".to_owned())] {
                let mut authority = contents(&first.authority);
                authority.remove(key);
                if let Some(value) = value {
                    authority.insert(key.to_owned(), value);
                    if key == "ca.key" || key == "tls.key" {
                        continue; // keys are found out when they are used
                    }
                }
                let worker = contents(&first.worker);
                assert!(is_due(Some(&authority), Some(&worker), at(0)), "{key}");
                let new = issue("orders", "shop", Some(&authority), Some(&worker), Lifetimes::default(), at(0)).unwrap();
                assert!(!due(&new, 0), "{key}");
                assert!(is_trusted(&new.worker["ca.crt"], &new.authority["tls.crt"], at(0)), "{key}");
                assert!(is_trusted(&new.authority["ca.crt"], &new.worker["tls.crt"], at(0)), "{key}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = validity(&bytes);
        }
    }
}
