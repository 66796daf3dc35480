//! Which addresses a mail may go to. Whoever owns a domain chooses them, and must reach nobody by this exit whom he would
//! not reach without it: not this machine, and not the network that it stands in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks of IPv4 that are not the public one, as address and length of the prefix (the IANA registry of RFC 6890).
const NOT_PUBLIC: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // All of several, and what is not given out.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    (Ipv4Addr::BROADCAST, 32),
];

/// The same within 2000::/3, beside which nothing of IPv6 is public.
const NOT_PUBLIC_6: [(Ipv6Addr, u32); 4] = [
    // Protocols, of which Teredo leads to addresses of IPv4.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // 6to4, which does as well.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether everybody can have that address in the public network.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_4(address),
        IpAddr::V6(address) => is_public_6(address),
    }
}

fn is_public_4(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC.iter().any(|(net, len)| (address.to_bits() ^ net.to_bits()).leading_zeros() >= *len)
}

fn is_public_6(address: Ipv6Addr) -> bool {
    // How a network of IPv6 alone reaches IPv4 (RFC 6052): the address of IPv4 is in the end.
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
        return is_public_4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    let is_unicast = address.segments().first().is_some_and(|first| first >> 13 == 1);
    is_unicast && !NOT_PUBLIC_6.iter().any(|(net, len)| (address.to_bits() ^ net.to_bits()).leading_zeros() >= *len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(address: &str) -> bool {
        is_public(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_the_public_network_are_public() {
        for address in
            ["8.8.8.8", "192.0.3.1", "172.32.0.1", "100.128.0.1", "2a00:1450::1", "2001:4860::8888", "64:ff9b::808:808"]
        {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn no_spelling_of_an_address_inside_is_public() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.2.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::808:808",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001:0:4136:e378::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "3fff::1",
            "100::1",
            "4000::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }
}
