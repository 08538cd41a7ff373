//! Heads of requests and answers: what is passed on, what is not, what is refused.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, Method, Uri, Version};

/// Headers between routers, and from a router to its client, begin so. A client's are removed, and
/// so are a pod's.
const OURS: &str = "orlop-";
/// The service of a request between routers.
pub(crate) const SERVICE: HeaderName = HeaderName::from_static("orlop-service");
/// The pod that it is for.
pub(crate) const POD: HeaderName = HeaderName::from_static("orlop-pod");
/// Microseconds that are left of its budget.
pub(crate) const LEFT_US: HeaderName = HeaderName::from_static("orlop-left-us");
/// Why a router has not given a request to a pod, or why nothing came of it.
pub(crate) const FAILED: HeaderName = HeaderName::from_static("orlop-failed");
/// Microseconds that a request waited in its pod's queue.
pub(crate) const QUEUED_US: HeaderName = HeaderName::from_static("orlop-queued-us");
/// Microseconds that its pod took.
pub(crate) const SERVING_US: HeaderName = HeaderName::from_static("orlop-serving-us");
/// The pod has switched to the protocol that was asked for.
pub(crate) const SWITCHED: HeaderName = HeaderName::from_static("orlop-switched");
/// The router ends: send nothing more.
pub(crate) const LEAVES: HeaderName = HeaderName::from_static("orlop-leaves");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Why a request is refused at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    NoHost,
    Hosts,
    Connect,
    Lengths,
    Upgrade,
}

impl Malformed {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::NoHost => "the request names no host that can be one",
            Self::Hosts => "the request names several hosts",
            Self::Connect => "CONNECT is not served here",
            Self::Lengths => "the request has several lengths",
            Self::Upgrade => "the upgrade that the request asks for cannot be one",
        }
    }
}

/// Removes what is for one connection only, what other headers of `Connection` name, and ours.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // What says where a message ends and whose it is, nobody takes away.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
        .collect();
    // With a transfer encoding there is no length that means anything.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(OURS))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    // gRPC servers want to see that trailers are understood; nothing else of TE is passed on.
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case("trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The authority that a request is for, and its host in small letters without the port.
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap) -> Result<(Authority, String), Malformed> {
    let mut hosts = headers.get_all(HOST).iter();
    let from_header = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::Hosts);
    }
    let authority = match (uri.authority(), from_header) {
        // The request's own target comes first.
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => {
            let text = host.to_str().map_err(|_| Malformed::NoHost)?;
            text.parse().map_err(|_| Malformed::NoHost)?
        }
        (None, None) => return Err(Malformed::NoHost),
    };
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(Malformed::NoHost);
    }
    Ok((authority, host))
}

/// The protocol that a request asks to switch to.
pub(crate) fn upgrade(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, Malformed> {
    if *method == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Malformed::Lengths);
    }
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let mut protocols = headers.get_all(UPGRADE).iter();
    let (true, true, Some(protocol)) = (asks, version == Version::HTTP_11, protocols.next()) else {
        return Ok(None);
    };
    let text = protocol.to_str().map_err(|_| Malformed::Upgrade)?;
    let is_token = |c: u8| c.is_ascii_alphanumeric() || b"-_./+".contains(&c);
    // To HTTP/2 nobody switches in the middle: what follows would pass unseen.
    if text.eq_ignore_ascii_case("h2c") {
        return Ok(None);
    }
    if protocols.next().is_some() || text.is_empty() || !text.bytes().all(is_token) {
        return Err(Malformed::Upgrade);
    }
    Ok(Some(protocol.clone()))
}

/// Says whom a request came from.
pub(crate) fn forwarded(headers: &mut HeaderMap, from: IpAddr, tls: bool) {
    let before: Vec<&str> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let mut list = before.join(", ");
    if !list.is_empty() {
        list.push_str(", ");
    }
    list.push_str(&from.to_canonical().to_string());
    if let Ok(value) = HeaderValue::from_str(&list) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    let scheme = if tls { "https" } else { "http" };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
}

/// A number in a header of ours.
pub(crate) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_is_for_one_connection_goes_no_further() {
        let mut map = headers(&[
            ("connection", "x-mine, content-length, host, upgrade"),
            ("x-mine", "1"),
            ("content-length", "5"),
            ("host", "a"),
            ("te", "gzip, Trailers"),
            ("orlop-pod", "another"),
            ("upgrade", "websocket"),
            ("traceparent", "00-1-2-01"),
        ]);
        strip(&mut map);
        let left = headers(&[
            ("content-length", "5"),
            ("host", "a"),
            ("te", "trailers"),
            ("traceparent", "00-1-2-01"),
        ]);
        assert_eq!(map, left);
        let mut both = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        strip(&mut both);
        assert!(both.is_empty());
    }

    #[test]
    fn a_request_is_for_one_host() {
        let of = |uri: &'static str, list: &[(&'static str, &'static str)]| {
            authority(&Uri::from_static(uri), &headers(list)).map(|(_, host)| host)
        };
        assert_eq!(
            of("/", &[("host", "Cart.Shop.:80")]),
            Ok("cart.shop".to_owned())
        );
        assert_eq!(of("http://a/", &[("host", "b")]), Ok("a".to_owned()));
        assert_eq!(
            of("/", &[("host", "a"), ("host", "a")]),
            Err(Malformed::Hosts)
        );
        for bad in ["", "a b", "u@a", "a/b", ":80"] {
            assert_eq!(of("/", &[("host", bad)]), Err(Malformed::NoHost), "{bad}");
        }
        assert_eq!(of("/", &[]), Err(Malformed::NoHost));
    }

    #[test]
    fn an_upgrade_is_one_protocol_over_http_1_1() {
        let of = |version, list: &[(&'static str, &'static str)]| {
            upgrade(&Method::GET, version, &headers(list)).map(|p| p.is_some())
        };
        let both = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(of(Version::HTTP_11, &both), Ok(true));
        assert_eq!(of(Version::HTTP_10, &both), Ok(false));
        assert_eq!(of(Version::HTTP_11, &both[1..]), Ok(false));
        let odd = [("connection", "upgrade"), ("upgrade", "a, b")];
        assert_eq!(of(Version::HTTP_11, &odd), Err(Malformed::Upgrade));
        let h2c = [("connection", "upgrade"), ("upgrade", "h2c")];
        assert_eq!(of(Version::HTTP_11, &h2c), Ok(false));
        let connect = upgrade(&Method::CONNECT, Version::HTTP_11, &HeaderMap::new());
        assert_eq!(connect, Err(Malformed::Connect));
    }
}
