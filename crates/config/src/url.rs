//! The URLs etcd listens on and advertises.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::golang::quote;

/// How to speak to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// TCP in the clear.
    Http,
    /// TCP with TLS.
    Https,
    /// A Unix socket in the clear.
    Unix,
    /// A Unix socket with TLS.
    Unixs,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
            Self::Unixs => "unixs",
        }
    }

    /// Whether it names a Unix socket.
    #[must_use]
    pub fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::Unixs)
    }
}

/// One URL, checked as etcd checks it. Displayed as etcd prints it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Url {
    // First, so that URLs sort by their text, as etcd sorts them.
    text: String,
    scheme: Scheme,
    host: String,
    port: Option<u16>,
    path: String,
}

impl Url {
    /// Reads one URL.
    ///
    /// # Errors
    /// The text that Go or etcd gives for the same URL; in addition refused:
    /// user names, ports above 65535, and Unix URLs without a path.
    pub fn parse(input: &str) -> Result<Self, String> {
        let input = input.trim();
        let broken = |why: &str| format!("parse {}: {why}", quote(input));
        if input.chars().any(|c| c.is_ascii_control()) {
            return Err(broken("net/url: invalid control character in URL"));
        }
        let unknown = || format!("URL scheme must be http, https, unix, or unixs: {input}");
        let Some((scheme, rest)) = split_scheme(input).map_err(broken)? else {
            let first_segment = input.split('/').next().unwrap_or_default();
            return Err(if first_segment.contains(':') {
                broken("first path segment in URL cannot contain colon")
            } else {
                unknown()
            });
        };
        let scheme = match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(unknown()),
        };
        let text = format!("{}:{rest}", scheme.as_str());
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = match rest.strip_prefix("//") {
            Some(after) => after.split_at(after.find('/').unwrap_or(after.len())),
            None => ("", rest),
        };
        if authority.contains('@') {
            return Err(format!("URL must not contain a user name: {input}"));
        }
        if let Some(c) = authority.chars().find(|c| " <>\"\\^`{|}".contains(*c)) {
            return Err(broken(&format!(
                "invalid character {} in host name",
                quote(&c.to_string())
            )));
        }
        let (host, port) = split_host_port(authority).map_err(|why| broken(&why))?;
        if scheme.is_unix() {
            if rest.is_empty() || (authority.is_empty() && !path.starts_with('/')) {
                return Err(format!(
                    "URL must name a socket, as in unix:///run/orlop.sock: {input}"
                ));
            }
        } else {
            if port.is_none() || (host.contains(':') && !authority.starts_with('[')) {
                return Err(format!(
                    "URL address does not have the form \"host:port\": {input}"
                ));
            }
            if !path.is_empty() {
                return Err(format!("URL must not contain a path: {input}"));
            }
        }
        let port = match port {
            None | Some("") => port.map(|_| 0),
            Some(digits) => Some(
                digits
                    .parse()
                    .map_err(|_| format!("URL's port must be at most 65535: {input}"))?,
            ),
        };
        Ok(Self {
            text,
            scheme,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }

    /// Reads URLs separated by commas; sorted and without duplicates, as etcd
    /// keeps them.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut urls = text
            .split(',')
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether TLS is spoken there.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Https | Scheme::Unixs)
    }

    /// The host, without brackets; empty in `unix:///path`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 0 lets the system choose.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address to bind to: an IP address, or 127.0.0.1 for `localhost`.
    /// None for Unix sockets and for names.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        if self.scheme.is_unix() {
            return None;
        }
        let ip = if self.host == "localhost" {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.host.parse().ok()?
        };
        Some(SocketAddr::new(ip, self.port?))
    }

    /// The path of a Unix socket. As in etcd, a host in the URL is the
    /// beginning of a relative path (`unix://localhost:2379`).
    #[must_use]
    pub fn unix_path(&self) -> Option<PathBuf> {
        if !self.scheme.is_unix() {
            return None;
        }
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        Some(PathBuf::from(format!(
            "{}{port}{}",
            self.host,
            percent_decode(&self.path)
        )))
    }

    /// etcd's check of a URL to listen on: names other than `localhost` are
    /// not resolved.
    pub(crate) fn check_bindable(&self) -> Result<(), String> {
        if self.scheme.is_unix() || self.socket_addr().is_some() {
            return Ok(());
        }
        Err(format!("expected IP in URL for binding ({self})"))
    }

    /// etcd's check of a URL to advertise.
    pub(crate) fn check_has_host(&self) -> Result<(), String> {
        if self.scheme.is_unix() || !self.host.is_empty() {
            return Ok(());
        }
        Err(format!("unexpected empty host ({self})"))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Several URLs as etcd writes them.
pub(crate) fn join(urls: &[Url]) -> String {
    let texts: Vec<_> = urls.iter().map(ToString::to_string).collect();
    texts.join(",")
}

/// The scheme in lower case and what follows its colon; none when there is no
/// scheme.
fn split_scheme(input: &str) -> Result<Option<(String, &str)>, &'static str> {
    for (i, c) in input.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme"),
            ':' => return Ok(Some((input[..i].to_ascii_lowercase(), &input[i + 1..]))),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Host without brackets, and port where there is a colon for one.
fn split_host_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    let (host, after) = if let Some(inside) = authority.strip_prefix('[') {
        let end = inside.rfind(']').ok_or("missing ']' in host")?;
        (&inside[..end], &inside[end + 1..])
    } else {
        authority.split_at(authority.rfind(':').unwrap_or(authority.len()))
    };
    if after.is_empty() {
        return Ok((host, None));
    }
    match after.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, Some(port))),
        _ => Err(format!("invalid port {} after host", quote(after))),
    }
}

/// Undoes `%20` and the like; what is no such sequence stays as it is.
fn percent_decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        let hex = bytes
            .get(i + 1..i + 3)
            .and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(value) if *byte == b'%' => {
                decoded.push(value);
                i += 3;
            }
            _ => {
                decoded.push(*byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_urls() {
        let url = Url::parse("HTTPS://[::1]:2379").unwrap();
        assert_eq!(url.to_string(), "https://[::1]:2379");
        assert!(url.is_tls());
        assert_eq!(url.socket_addr(), Some("[::1]:2379".parse().unwrap()));
        let local = Url::parse(" http://localhost:2379 ").unwrap();
        assert_eq!(local.socket_addr(), Some("127.0.0.1:2379".parse().unwrap()));
        assert_eq!(Url::parse("http://name:1").unwrap().socket_addr(), None);
        assert_eq!(Url::parse("http://1.2.3.4:").unwrap().port(), Some(0));
    }

    #[test]
    fn unix_urls() {
        let path = |url: &str| Url::parse(url).unwrap().unix_path().unwrap();
        assert_eq!(
            path("unix:///run/a%20b.sock"),
            PathBuf::from("/run/a b.sock")
        );
        assert_eq!(path("unix:/run/a.sock"), PathBuf::from("/run/a.sock"));
        assert_eq!(
            path("unixs://localhost:2379"),
            PathBuf::from("localhost:2379")
        );
        assert_eq!(path("unix://a/b"), PathBuf::from("a/b"));
        assert!(Url::parse("unix:").is_err());
        assert!(Url::parse("unix:a").is_err());
    }

    /// Texts taken from etcd 3.7.3's output.
    #[test]
    fn refuses_with_etcds_texts() {
        for (input, text) in [
            (
                "127.0.0.1:2379",
                "parse \"127.0.0.1:2379\": first path segment in URL cannot contain colon",
            ),
            (
                "localhost:2379",
                "URL scheme must be http, https, unix, or unixs: localhost:2379",
            ),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("://a", "parse \"://a\": missing protocol scheme"),
            (
                "http://1.2.3.4:x",
                "parse \"http://1.2.3.4:x\": invalid port \":x\" after host",
            ),
            (
                "http://1.2.3.4",
                "URL address does not have the form \"host:port\": http://1.2.3.4",
            ),
            (
                "http:1.2.3.4:1",
                "URL address does not have the form \"host:port\": http:1.2.3.4:1",
            ),
            (
                "http://1.2.3.4:1/",
                "URL must not contain a path: http://1.2.3.4:1/",
            ),
        ] {
            assert_eq!(Url::parse(input).unwrap_err(), text);
        }
        assert!(Url::parse("http://1.2.3.4:70000").is_err());
        assert!(Url::parse("http://::1:2379").is_err());
    }
}
