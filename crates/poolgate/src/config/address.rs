//! Where credentials are never sent, whoever configured it: what answers there is the machine or the
//! network itself, and tells or believes more than an upstream should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds tell their machines secrets, beyond the link-local range that most of them use:
/// Alibaba, Azure, AWS over IPv6 (each cloud's documentation of its instance metadata service).
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// No upstream, marked private or not.
pub fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast()
                || METADATA_V4.contains(&address)
        }
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address == METADATA_V6
        }
    }
}

/// Of a network that is not the public one: only for accounts marked so. This machine itself is none.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            address.is_private() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn addresses() {
        for (address, forbidden, private) in [
            ("1.1.1.1",                 false, false),
            ("127.0.0.1",               false, false),
            ("::1",                     false, false),
            ("10.0.0.1",                false, true),
            ("172.31.255.1",            false, true),
            ("192.168.1.1",             false, true),
            ("100.64.0.1",              false, true),
            ("fd00::1",                 false, true),
            ("::ffff:10.0.0.1",         false, true),
            ("2606:4700::1111",         false, false),
            ("169.254.169.254",         true,  false),
            ("::ffff:169.254.169.254",  true,  false),
            ("fe80::1",                 true,  false),
            ("fd00:ec2::254",           true,  true),
            ("100.100.100.200",         true,  true),
            ("168.63.129.16",           true,  false),
            ("0.0.0.0",                 true,  false),
            ("::",                      true,  false),
            ("224.0.0.1",               true,  false),
            ("255.255.255.255",         true,  false),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!((is_forbidden(parsed), is_private(parsed)), (forbidden, private), "{address}");
        }
    }
}
