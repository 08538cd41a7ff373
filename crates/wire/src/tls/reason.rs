//! Why a handshake failed, in words for an operator.

use rustls::{AlertDescription, CertificateError, Error};

/// The reason of a failed handshake.
pub(crate) fn of_handshake(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.map_or_else(|| error.to_string(), of)
}

/// The reason within rustls' error.
pub(crate) fn of(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => {
            "the client showed no certificate, and one is required (--client-cert-auth, \
             --trusted-ca-file)"
                .to_owned()
        }
        Error::InvalidCertificate(reason) => {
            format!(
                "the client's certificate is refused: {}",
                of_certificate(reason)
            )
        }
        Error::AlertReceived(alert) => of_alert(*alert),
        other => other.to_string(),
    }
}

fn of_certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => {
            "no authority in the trusted CA file has signed it".to_owned()
        }
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::NotValidYet => "it is not valid yet".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is for other uses than a client's: its extended key usage must name clientAuth"
                .to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed in a way that is not safe or not known, such as with SHA-1".to_owned()
        }
        CertificateError::Other(reason) => reason.0.to_string(),
        other => other.to_string(),
    }
}

/// The client has ended the handshake: it says why by one word.
fn of_alert(alert: AlertDescription) -> String {
    let advice = match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown => {
            ": it does not trust the server's certificate; give it the authority's (etcdctl: \
             --cacert), and an address that the certificate names"
        }
        AlertDescription::CertificateExpired => {
            ": for it the server's certificate has expired, or is not valid yet"
        }
        _ => "",
    };
    format!("the client ended the handshake with {alert:?}{advice}")
}
