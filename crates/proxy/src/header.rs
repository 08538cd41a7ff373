//! The PROXY protocol's header, version 2: tells a server who its client is.
//!
//! Facts: HAProxy's `proxy-protocol.txt`, section 2.2.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a connection on behalf of another.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for a connection from `client` that was accepted at `local`.
pub(crate) fn header(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(PROXY);
    let mut addresses = Vec::with_capacity(36);
    match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(local)) => {
            header.push(TCP_OVER_IPV4);
            addresses.extend(client.octets());
            addresses.extend(local.octets());
        }
        (client, local) => {
            header.push(TCP_OVER_IPV6);
            addresses.extend(v6(client).octets());
            addresses.extend(v6(local).octets());
        }
    }
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(local.port().to_be_bytes());
    // At most 36.
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn is_laid_out_as_the_protocol_says() {
        let built = header(
            "10.1.2.3:258".parse().unwrap(),
            "10.4.5.6:2379".parse().unwrap(),
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        expected.extend([10, 1, 2, 3, 10, 4, 5, 6, 1, 2, 0x09, 0x4b]);
        assert_eq!(built, expected);
        let built = header("[::1]:1".parse().unwrap(), "[::2]:2".parse().unwrap());
        assert_eq!(&built[12..16], b"\x21\x21\0\x24");
        assert_eq!((built.len(), built[31], built[47]), (52, 1, 2));
        // An IPv4 client of a socket for both.
        let built = header(
            "[::ffff:10.1.2.3]:1".parse().unwrap(),
            "10.4.5.6:2".parse().unwrap(),
        );
        assert_eq!(built[13], 0x11);
    }
}
