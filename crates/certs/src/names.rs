//! The names and addresses that a certificate is valid for: asked for, or found.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::net::if_::InterfaceFlags;
use rcgen::SanType;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::Error;

/// Interfaces of containers and virtual networks: their addresses are others' or on every machine
/// the same, so that a certificate must not name them.
const VIRTUAL: [&str; 10] = [
    "docker",
    "cni",
    "veth",
    "br-",
    "virbr",
    "flannel",
    "cali",
    "cilium",
    "kube-",
    "nodelocal",
];
/// So many addresses of a machine are found at most.
const MAX_FOUND: usize = 32;

/// A name or an address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A host name, in small letters; `*` may be its first label.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl Name {
    /// A host name or an address; IPv6 with or without brackets.
    ///
    /// # Errors
    /// If it can stand in no certificate, with the reason.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason| Error::Name {
            name: text.to_owned(),
            reason,
        };
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            if address.is_unspecified() {
                return Err(wrong(
                    "it stands for all addresses, and no client connects to it: give those that they connect to",
                ));
            }
            return Ok(Self::Ip(address.to_canonical()));
        }
        if bare.contains('%') {
            return Err(wrong("an address with a zone is of one machine only"));
        }
        if text.contains("://") {
            return Err(wrong("it is a URL: give the host alone"));
        }
        if text.contains(':') {
            return Err(wrong(
                "it is neither a name nor an address; a port is not part of it",
            ));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels = name.strip_prefix("*.").unwrap_or(&name);
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| letter(c) || c == b'-' || c == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !labels.split('.').all(is_label) {
            return Err(wrong("it is neither a host name nor an address"));
        }
        // A last label of digits alone is an address that went wrong, and rustls refuses it.
        let last = labels.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|c| c.is_ascii_digit()) {
            return Err(wrong("a host name does not end in a number"));
        }
        if labels.len() < name.len() && !labels.contains('.') {
            return Err(wrong(
                "rustls takes `*` before at least two labels, as in *.example.com",
            ));
        }
        Ok(Self::Dns(name))
    }

    /// A host that a client could connect to, which the name covers: `*` filled in.
    pub(crate) fn example(&self) -> String {
        match self {
            Self::Ip(address) => address.to_string(),
            Self::Dns(name) => match name.strip_prefix("*.") {
                Some(rest) => format!("any.{rest}"),
                None => name.clone(),
            },
        }
    }

    pub(crate) fn to_san(&self) -> Result<SanType, Error> {
        Ok(match self {
            Self::Ip(address) => SanType::IpAddress(*address),
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// All names of a certificate that are a host's; others are left out.
pub(crate) fn of_certificate(cert: &X509Certificate<'_>) -> Vec<Name> {
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok();
            v4.or_else(v6).map(Name::Ip)
        }
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// What every machine calls itself.
pub(crate) fn of_loopback() -> Vec<Name> {
    vec![
        Name::Dns("localhost".to_owned()),
        Name::Ip(Ipv4Addr::LOCALHOST.into()),
        Name::Ip(Ipv6Addr::LOCALHOST.into()),
    ]
}

/// This machine's name, long and short, and the addresses of its interfaces that are up, without
/// loopback, link-local ones and those of containers.
#[must_use]
pub fn of_this_host() -> Vec<Name> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    let short = host.split('.').next().unwrap_or_default();
    let mut found: Vec<Name> = [host.as_str(), short]
        .into_iter()
        .filter_map(|name| Name::parse(name).ok())
        .collect();
    // A machine that does not tell its interfaces has a name still.
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    for interface in interfaces {
        let virtual_one = VIRTUAL
            .iter()
            .any(|start| interface.interface_name.starts_with(start));
        if virtual_one
            || !interface.flags.contains(InterfaceFlags::IFF_UP)
            || interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        {
            continue;
        }
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = || address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        let link_local = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if let Some(ip) = v4.or_else(v6).filter(|ip| !link_local(ip)) {
            found.push(Name::Ip(ip));
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found.truncate(MAX_FOUND);
    found
}

#[cfg(test)]
mod tests {
    use super::{Name, of_this_host};

    #[test]
    fn names_and_addresses_are_told_apart() {
        let shown = |text: &str| Name::parse(text).map(|name| name.to_string());
        for (text, name) in [
            ("Node.Example.", "node.example"),
            ("*.example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:DB8:0::1]", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(shown(text).unwrap(), name);
        }
        for bad in [
            "",
            ".",
            "0.0.0.0",
            "::",
            "[::]",
            "fe80::1%eth0",
            "https://a",
            "a:2379",
            "a b",
            "a..b",
            "*",
            "*.com",
            "a.*.b",
            "-a",
            "10.0.0.256",
            "a.1",
            "ä.example",
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_found_can_be_asked_for() {
        for name in of_this_host() {
            assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
        }
    }
}
