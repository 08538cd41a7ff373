use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::{Verdict, verdict};
use crate::{Moment, Purpose};

const NOW: Moment = Moment(1_800_000_000);
const DAY_S: i64 = 86_400;

/// An authority and a certificate that it signed; each test changes one thing.
struct Case {
    authority: CertificateParams,
    leaf: CertificateParams,
}

impl Case {
    fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority
            .distinguished_name
            .push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        leaf.distinguished_name.push(DnType::CommonName, "leaf");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for params in [&mut authority, &mut leaf] {
            params.not_before = NOW.plus_s(-DAY_S).to_time();
            params.not_after = NOW.plus_s(DAY_S).to_time();
        }
        Self { authority, leaf }
    }

    fn changed(change: impl FnOnce(&mut Self)) -> Verdict {
        let mut case = Self::new();
        change(&mut case);
        let key = KeyPair::generate().unwrap();
        let root = case.authority.self_signed(&key).unwrap();
        let issuer = Issuer::new(case.authority, key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = case.leaf.signed_by(&leaf_key, &issuer).unwrap();
        let server = Purpose::Server("localhost".to_owned());
        verdict(&[leaf.der()], &[root.der()], &server, NOW)
    }
}

#[test]
fn go_says_what_it_says() {
    let is_refused = |verdict: Verdict, word: &str| match verdict {
        Verdict::Refuses(text) => assert!(text.contains(word), "{text}: not {word}"),
        other => panic!("{word}: {other:?}"),
    };
    assert_eq!(Case::changed(|_| ()), Verdict::Takes);
    is_refused(
        Case::changed(|c| c.authority.not_after = NOW.plus_s(-1).to_time()),
        "expired or is not yet valid",
    );
    is_refused(
        Case::changed(|c| c.leaf.not_before = NOW.plus_s(1).to_time()),
        "expired or is not yet valid",
    );
    is_refused(
        Case::changed(|c| c.authority.is_ca = IsCa::NoCa),
        "parent certificate cannot sign",
    );
    is_refused(
        Case::changed(|c| c.authority.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        "parent certificate cannot sign",
    );
    is_refused(
        Case::changed(|c| {
            c.authority.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        "incompatible key usage",
    );
    is_refused(
        Case::changed(|c| c.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        "incompatible key usage",
    );
    is_refused(
        Case::changed(|c| c.leaf.subject_alt_names.clear()),
        "not valid for any names",
    );
    // Go names the names of the asked kind only.
    is_refused(
        Case::changed(|c| {
            c.leaf.subject_alt_names = vec![SanType::IpAddress([10, 0, 0, 1].into())]
        }),
        "not valid for any names",
    );
    let unknown = || {
        let mut extension =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9, 9], vec![5, 0]);
        extension.set_criticality(true);
        vec![extension]
    };
    is_refused(
        Case::changed(|c| c.leaf.custom_extensions = unknown()),
        "unhandled critical extension",
    );
    is_refused(
        Case::changed(|c| c.authority.custom_extensions = unknown()),
        "unhandled critical extension",
    );
    // An authority's certificate as a server's: webpki refuses it, Go does not.
    let as_authority = |c: &mut Case| c.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(Case::changed(as_authority), Verdict::Takes);
}
