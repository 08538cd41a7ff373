//! What Go's verifier (`crypto/x509` of Go 1.26, so kube-apiserver, etcdctl and etcd) says to a
//! chain. For advice to an operator, never for trust.
//!
//! It is not webpki's verdict: Go looks at the authority's own validity, basic constraints and key
//! usage, which webpki does not; webpki refuses an authority's certificate as a server's or a
//! client's, which Go takes. Name constraints and certificate policies are not judged here.

use x509_parser::asn1_rs::Oid;
use x509_parser::error::X509Error;
use x509_parser::extensions::{BasicConstraints, GeneralName};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Version};
use x509_parser::public_key::PublicKey;

use crate::names::Name;
use crate::{Moment, Purpose};

/// So many certificates of a chain are followed.
const MAX_DEPTH: usize = 8;
/// So many signatures are looked at for one verdict, as in Go.
const MAX_SIGNATURES: usize = 100;
/// Smaller RSA keys are refused by Go's `crypto/rsa`.
const MIN_RSA_BITS: usize = 1024;

/// What Go says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It takes the chain.
    Takes,
    /// It refuses it, in its own words as far as they are fixed.
    Refuses(String),
    /// It has something in it that is not judged here.
    Unknown(String),
}

fn refuses<T>(text: impl Into<String>) -> Result<T, Verdict> {
    Err(Verdict::Refuses(text.into()))
}

/// The verdict on a chain as its holder shows it, by whoever trusts these authorities.
pub(crate) fn verdict(
    chain: &[impl AsRef<[u8]>],
    roots: &[impl AsRef<[u8]>],
    purpose: &Purpose,
    now: Moment,
) -> Verdict {
    match judge(chain, roots, purpose, now) {
        Ok(()) => Verdict::Takes,
        Err(verdict) => verdict,
    }
}

fn judge(
    chain: &[impl AsRef<[u8]>],
    roots: &[impl AsRef<[u8]>],
    purpose: &Purpose,
    now: Moment,
) -> Result<(), Verdict> {
    let shown = chain
        .iter()
        .map(|der| parse(der.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    // What of a file of trust cannot be read, Go leaves out without a word.
    let roots: Vec<_> = roots
        .iter()
        .filter_map(|der| parse(der.as_ref()).ok())
        .collect();
    let Some((leaf, intermediates)) = shown.split_first() else {
        return refuses("tls: no certificate");
    };
    check_valid(leaf, now)?;
    if let Purpose::Server(host) = purpose {
        check_host(leaf, host)?;
    }
    let mut search = Search {
        intermediates,
        roots: &roots,
        purpose,
        now,
        signatures: 0,
        hint: None,
    };
    if roots.iter().any(|root| root.as_ref() == leaf.as_ref()) {
        return search.check_usages(&[leaf]);
    }
    if search.extend(&mut vec![leaf])? {
        return Ok(());
    }
    Err(search.hint.take().unwrap_or_else(|| {
        Verdict::Refuses("x509: certificate signed by unknown authority".to_owned())
    }))
}

/// Reads a certificate, and refuses what Go's parser refuses and ours does not.
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Verdict> {
    let (rest, cert) = match X509Certificate::from_der(der) {
        Ok(parsed) => parsed,
        Err(error) => return refuses(format!("x509: malformed certificate ({error})")),
    };
    if !rest.is_empty() {
        return refuses("x509: trailing data");
    }
    if cert
        .raw_serial()
        .first()
        .is_some_and(|first| first & 0x80 != 0)
    {
        return refuses("x509: negative serial number");
    }
    if cert.tbs_certificate.signature != cert.signature_algorithm {
        return refuses("x509: inner and outer signature algorithm identifiers don't match");
    }
    let mut seen: Vec<&Oid<'_>> = Vec::new();
    for extension in cert.extensions() {
        if seen.contains(&&extension.oid) {
            let oid = extension.oid.to_id_string();
            return refuses(format!(
                "x509: certificate contains duplicate extension with OID \"{oid}\""
            ));
        }
        seen.push(&extension.oid);
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                names
                    .general_names
                    .iter()
                    .try_for_each(check_general_name)?;
            }
            ParsedExtension::ParseError { error } => {
                let oid = extension.oid.to_id_string();
                return refuses(format!("x509: invalid extension {oid} ({error})"));
            }
            ParsedExtension::AuthorityKeyIdentifier(_) if extension.critical => {
                return refuses("x509: authority key identifier incorrectly marked critical");
            }
            ParsedExtension::SubjectKeyIdentifier(_) if extension.critical => {
                return refuses("x509: subject key identifier incorrectly marked critical");
            }
            ParsedExtension::AuthorityInfoAccess(_) if extension.critical => {
                return refuses("x509: authority info access incorrectly marked critical");
            }
            _ => {}
        }
    }
    drop(seen);
    Ok(cert)
}

fn check_general_name(name: &GeneralName<'_>) -> Result<(), Verdict> {
    match name {
        GeneralName::DNSName(name) if !name.is_ascii() => refuses("x509: SAN dNSName is malformed"),
        GeneralName::IPAddress(bytes) if ![4, 16].contains(&bytes.len()) => refuses(format!(
            "x509: cannot parse IP address of length {}",
            bytes.len()
        )),
        GeneralName::URI(uri) if !uri.is_ascii() => {
            refuses("x509: SAN uniformResourceIdentifier is malformed")
        }
        GeneralName::URI(uri) => {
            let after = uri.split_once("://").map(|(_, after)| after);
            let authority = after.map(|after| after.split(['/', '?', '#']).next().unwrap_or(""));
            let host = authority.map(|a| a.rsplit('@').next().unwrap_or(a));
            let host = host.map(|h| h.split(':').next().unwrap_or(h));
            let bad = host.is_some_and(|host| {
                !host.is_empty()
                    && !host.starts_with('[')
                    && host
                        .strip_suffix('.')
                        .unwrap_or(host)
                        .split('.')
                        .any(str::is_empty)
            });
            if bad || uri.bytes().any(|c| c <= b' ' || c == 0x7f) {
                return refuses(format!("x509: cannot parse URI {uri:?}: invalid domain"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What Go demands of every certificate of a chain, an authority's included.
fn check_valid(cert: &X509Certificate<'_>, now: Moment) -> Result<(), Verdict> {
    for extension in cert.extensions().iter().filter(|e| e.critical) {
        let known = match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::NameConstraints(_)
            | ParsedExtension::CRLDistributionPoints(_)
            | ParsedExtension::CertificatePolicies(_)
            | ParsedExtension::PolicyConstraints(_)
            | ParsedExtension::PolicyMappings(_)
            | ParsedExtension::InhibitAnyPolicy(_) => true,
            ParsedExtension::SubjectAlternativeName(names) => names.general_names.iter().any(|n| {
                matches!(
                    n,
                    GeneralName::DNSName(_)
                        | GeneralName::IPAddress(_)
                        | GeneralName::RFC822Name(_)
                        | GeneralName::URI(_)
                )
            }),
            _ => false,
        };
        if !known {
            return refuses(format!(
                "x509: unhandled critical extension ({})",
                extension.oid.to_id_string()
            ));
        }
    }
    let validity = cert.validity();
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let expired = "x509: certificate has expired or is not yet valid: current time";
    if now.0 < from {
        return refuses(format!("{expired} {now} is before {}", Moment(from)));
    }
    if now.0 > until {
        return refuses(format!("{expired} {now} is after {}", Moment(until)));
    }
    Ok(())
}

fn check_host(cert: &X509Certificate<'_>, host: &str) -> Result<(), Verdict> {
    let names = crate::names::of_certificate(cert);
    let wanted = Name::parse(host);
    let covers = |name: &Name| match (name, &wanted) {
        (Name::Ip(is), Ok(Name::Ip(wanted))) => is.to_canonical() == *wanted,
        (Name::Dns(is), Ok(Name::Dns(wanted))) => {
            match (is.strip_prefix("*."), wanted.split_once('.')) {
                (Some(suffix), Some((_, rest))) => suffix.eq_ignore_ascii_case(rest),
                _ => is.eq_ignore_ascii_case(wanted),
            }
        }
        (Name::Dns(is), Err(_)) => is.eq_ignore_ascii_case(host),
        _ => false,
    };
    if names.iter().any(covers) {
        return Ok(());
    }
    // Go names only those of the kind that was asked for.
    let is_address = matches!(wanted, Ok(Name::Ip(_)));
    let same_kind = names.iter().filter(|name| match name {
        Name::Ip(_) => is_address,
        Name::Dns(_) => !is_address,
    });
    let all: Vec<_> = same_kind.map(Name::to_string).collect();
    if !all.is_empty() {
        return refuses(format!(
            "x509: certificate is valid for {}, not {host}",
            all.join(", ")
        ));
    }
    match is_address {
        true => refuses(format!(
            "x509: cannot validate certificate for {host} because it doesn't contain any IP SANs"
        )),
        false => refuses(format!(
            "x509: certificate is not valid for any names, but wanted to match {host}"
        )),
    }
}

/// The search for a chain to an authority.
struct Search<'a> {
    intermediates: &'a [X509Certificate<'a>],
    roots: &'a [X509Certificate<'a>],
    purpose: &'a Purpose,
    now: Moment,
    signatures: usize,
    /// Why the last one that could have signed did not do.
    hint: Option<Verdict>,
}

impl<'a> Search<'a> {
    /// Whether `chain` can be led to an authority and is then taken.
    fn extend(&mut self, chain: &mut Vec<&'a X509Certificate<'a>>) -> Result<bool, Verdict> {
        let Some(child) = chain.last().copied() else {
            return Ok(false);
        };
        if chain.len() > MAX_DEPTH {
            return Ok(false);
        }
        let (roots, intermediates) = (self.roots, self.intermediates);
        let candidates = roots
            .iter()
            .map(|cert| (cert, true))
            .chain(intermediates.iter().map(|cert| (cert, false)));
        for (parent, is_root) in candidates {
            if parent.subject().as_raw() != child.issuer().as_raw()
                || chain.iter().any(|seen| seen.as_ref() == parent.as_ref())
            {
                continue;
            }
            self.signatures += 1;
            if self.signatures > MAX_SIGNATURES {
                return refuses(
                    "x509: signature check attempts limit reached while verifying certificate chain",
                );
            }
            let joins = check_signed(child, parent)
                .and_then(|()| check_valid(parent, self.now))
                .and_then(|()| check_length(parent, chain.len(), is_root));
            if let Err(verdict) = joins {
                self.hint = Some(verdict);
                continue;
            }
            chain.push(parent);
            let taken = if is_root {
                match self.check_usages(chain) {
                    Ok(()) => true,
                    Err(verdict) => {
                        self.hint = Some(verdict);
                        false
                    }
                }
            } else {
                self.extend(chain)?
            };
            chain.pop();
            if taken {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Extended key usages hold from the authority down; names are not limited.
    fn check_usages(&self, chain: &[&X509Certificate<'_>]) -> Result<(), Verdict> {
        for cert in chain {
            let Ok(Some(usage)) = cert.extended_key_usage() else {
                continue;
            };
            let fits = match self.purpose {
                Purpose::Server(_) => usage.value.server_auth,
                Purpose::Client => usage.value.client_auth,
            };
            if !fits && !usage.value.any {
                return refuses("x509: certificate specifies an incompatible key usage");
            }
        }
        for cert in chain.iter().skip(1) {
            if !matches!(cert.name_constraints(), Ok(None)) {
                return Err(Verdict::Unknown(
                    "an authority has name constraints, which are not judged here".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// Whether `parent` may have signed `child`, and has.
fn check_signed(child: &X509Certificate<'_>, parent: &X509Certificate<'_>) -> Result<(), Verdict> {
    let violation =
        "x509: invalid signature: parent certificate cannot sign this kind of certificate";
    let is_authority = match constraints(parent) {
        Some(constraints) => constraints.ca,
        None => parent.version() != X509Version::V3,
    };
    let usage = parent.key_usage().ok().flatten();
    if !is_authority || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return refuses(violation);
    }
    if let Ok(PublicKey::RSA(key)) = parent.public_key().parsed() {
        let bits = 8 * key.modulus.iter().skip_while(|byte| **byte == 0).count();
        if bits < MIN_RSA_BITS {
            return refuses(format!("crypto/rsa: {bits}-bit keys are insecure"));
        }
    }
    let algorithm = child.signature_algorithm.algorithm.to_id_string();
    let weak = match algorithm.as_str() {
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => Some("SHA1-RSA"),
        "1.2.840.10045.4.1" => Some("ECDSA-SHA1"),
        "1.2.840.113549.1.1.4" => Some("MD5-RSA"),
        _ => None,
    };
    if let Some(weak) = weak {
        return refuses(format!(
            "x509: cannot verify signature: insecure algorithm {weak}"
        ));
    }
    match child.verify_signature(Some(parent.public_key())) {
        Ok(()) => Ok(()),
        Err(X509Error::SignatureUnsupportedAlgorithm) => Err(Verdict::Unknown(format!(
            "its signature's algorithm ({algorithm}) is not judged here"
        ))),
        Err(_) => refuses("x509: certificate signed by unknown authority (a signature is wrong)"),
    }
}

fn constraints<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a BasicConstraints> {
    let found = cert.basic_constraints().ok().flatten();
    found.map(|extension| extension.value)
}

fn check_length(parent: &X509Certificate<'_>, below: usize, is_root: bool) -> Result<(), Verdict> {
    let constraints = constraints(parent);
    if !is_root && !constraints.is_some_and(|c| c.ca) {
        return refuses("x509: certificate is not authorized to sign other certificates");
    }
    let longest = constraints.and_then(|c| c.path_len_constraint);
    if longest.is_some_and(|longest| below.saturating_sub(1) > longest as usize) {
        return refuses("x509: too many intermediates for path length constraint");
    }
    Ok(())
}

#[cfg(test)]
#[path = "go_tests.rs"]
mod tests;
