//! Where credentials are never sent, whoever configured it: what answers there is the machine or the
//! network itself, and tells or believes more than an upstream should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds tell their machines secrets, beyond the link-local range that most of them use:
/// Alibaba, Azure, AWS over IPv6 (each cloud's documentation of its instance metadata service).
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, or by way of a translator (NAT64, RFC
/// 6052) or a tunnel (6to4, RFC 3056).
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address.to_canonical() else { return address.to_canonical() };
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => of(high, low),
        _ => address,
    }
}

/// No upstream, marked private or not.
pub fn is_forbidden(address: IpAddr) -> bool {
    match meant(address) {
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
/// Beside the well-known ranges those that the IANA's registries of special addresses keep from the
/// public: 0/8, 192.0.0/24, 198.18/15, 240/4; site-local addresses, and a site's own translator.
pub fn is_private(address: IpAddr) -> bool {
    match meant(address) {
        IpAddr::V4(address) => match address.octets() {
            [0 | 240.., ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => true,
            [100, second, ..] => (64..128).contains(&second),
            _ => address.is_private(),
        },
        IpAddr::V6(address) => {
            let [first, second, third, ..] = address.segments();
            address.is_unique_local()
                || first & 0xffc0 == 0xfec0
                || (first, second, third) == (0x64, 0xff9b, 1)
        }
    }
}

pub fn is_this_machine(address: IpAddr) -> bool {
    meant(address).is_loopback()
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
            ("0.0.0.0",                 true,  true),
            ("::",                      true,  false),
            ("224.0.0.1",               true,  false),
            ("255.255.255.255",         true,  true),
            ("0.1.2.3",                 false, true),
            ("192.0.0.8",               false, true),
            ("192.0.1.8",               false, false),
            ("198.19.0.1",              false, true),
            ("240.0.0.1",               false, true),
            ("fec0::1",                 false, true),
            ("::10.0.0.1",              false, true),
            ("64:ff9b::a00:1",          false, true),
            ("64:ff9b::a9fe:a9fe",      true,  false),
            ("64:ff9b::101:101",        false, false),
            ("64:ff9b:1::1",            false, true),
            ("2002:a00:1::1",           false, true),
            ("2002:a9fe:a9fe::1",       true,  false),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!((is_forbidden(parsed), is_private(parsed)), (forbidden, private), "{address}");
        }
    }
}
