//! Where a member listens for clients.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// gRPC without TLS.
    Http,
    /// gRPC over TLS.
    Https,
}

impl Scheme {
    /// Its name in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// An address of a member, as a client URL names it. Two are equal if their text is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// With TLS or without.
    pub scheme: Scheme,
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// Text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no endpoint: {why}, as in https://HOST:2379")]
pub struct InvalidEndpoint {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Endpoint {
    /// The endpoints of a list, separated by commas. One that is named twice is there once.
    ///
    /// # Errors
    /// If one of them is none, or there is none.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidEndpoint> {
        let mut found: Vec<Self> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let endpoint = part.parse()?;
            if !found.contains(&endpoint) {
                found.push(endpoint);
            }
        }
        if found.is_empty() {
            return Err(InvalidEndpoint {
                text: text.to_owned(),
                why: "it must name one",
            });
        }
        Ok(found)
    }

    /// Host and port as a URL and a Host header write them: an IPv6 address has its brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The addresses that the host has now, by the system's resolver. Bound the wait: the
    /// resolver has its own idea of it.
    ///
    /// # Errors
    /// If the name has none.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        Ok(found.collect())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Reads `https://HOST:PORT`, `http://HOST:PORT` or `HOST:PORT`, which is http, as etcd's
    /// clients do. Without a port it is the scheme's.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let wrong = |why| InvalidEndpoint {
            text: text.to_owned(),
            why,
        };
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Http, text),
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(_) => return Err(wrong("it must begin with http:// or https://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) || rest.chars().any(char::is_whitespace) {
            return Err(wrong("it must be a host and a port and nothing else"));
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest
                    .split_once(']')
                    .filter(|(host, _)| host.parse::<std::net::Ipv6Addr>().is_ok())
                    .ok_or_else(|| wrong("what is in brackets must be an IPv6 address"))?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if rest.is_empty() => (host, None),
                    None => return Err(wrong("after the brackets comes a port or nothing")),
                }
            }
            None => match rest.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(wrong("an IPv6 address needs brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() {
            return Err(wrong("it must name a host"));
        }
        let port = match port {
            None => scheme.default_port(),
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| wrong("the port must be a number from 1 to 65535"))?,
        };
        Ok(Endpoint {
            scheme,
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, Scheme};

    fn parsed(text: &str) -> Endpoint {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn reads_what_clients_of_etcd_take_and_writes_it_back() {
        for (text, whole) in [
            ("https://a.example:2379", "https://a.example:2379"),
            ("a:1", "http://a:1"),
            ("http://127.0.0.1:2379/", "http://127.0.0.1:2379"),
            ("https://[::1]:2379", "https://[::1]:2379"),
            ("https://a", "https://a:443"),
            ("http://[fe80::2]", "http://[fe80::2]:80"),
        ] {
            assert_eq!(parsed(text).to_string(), whole);
            assert_eq!(parsed(whole), parsed(text));
        }
        assert_eq!(parsed("https://[::1]:2").host, "::1");
        assert_eq!(parsed("https://a:2").scheme, Scheme::Https);
    }

    #[test]
    fn refuses_what_is_no_endpoint() {
        for text in [
            "",
            "https://",
            "https://:1",
            "ftp://a:1",
            "unix:///run/a",
            "https://a:0",
            "https://a:65536",
            "https://a:b",
            "https://a:1/path",
            "https://user@a:1",
            "::1",
            "[::1",
            "[a]:1",
            "[::1]1",
            "a b:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_has_each_once_and_at_least_one() {
        let list = Endpoint::list("https://a:1, b:2,https://a:1,").unwrap();
        assert_eq!(list, [parsed("https://a:1"), parsed("http://b:2")]);
        assert!(Endpoint::list(" ,").is_err());
        assert!(Endpoint::list("a:1,unix://b").is_err());
    }
}
