//! Addresses that no rule can allow: never a replica, but often the target of an attack.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names of metadata services. Their addresses are blocked too; the names are blocked so that the
/// request fails at once.
const NAMES: [&str; 3] = ["metadata.google.internal", "metadata.goog", "metadata.tencentyun.com"];

/// Metadata services outside the link-local range: Azure, Alibaba Cloud, Oracle Cloud.
const CLOUDS_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// Link-local metadata services: of most clouds, of containers and of pods at Amazon, of Scaleway.
const LINK_LOCAL_CLOUDS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(169, 254, 42, 42),
];

/// Google, Scaleway, Oracle, Akamai, Alibaba. Amazon's are in fd00:ec2::/32.
const CLOUDS_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];

const LINK_LOCAL: &str = "a link-local address";
const METADATA: &str = "a cloud metadata service";
const MULTICAST: &str = "a multicast address";
const UNSPECIFIED: &str = "an unspecified address";

/// `name` must be in lower case and not end with a dot.
pub(super) fn name(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(super) fn kind(address: IpAddr) -> Option<&'static str> {
    let kind = with_embedded(address).find_map(|address| match address {
        IpAddr::V4(ip) => kind_v4(ip),
        IpAddr::V6(ip) => kind_v6(ip),
    });
    kind.or_else(|| leads_to_cloud(address).then_some(METADATA))
}

/// Whether a NAT64 gateway may translate it to a metadata service. The prefix of a gateway can be
/// any. Only whole addresses are looked for, which are there by chance once in a billion addresses.
fn leads_to_cloud(address: IpAddr) -> bool {
    let is_cloud = |v4: &Ipv4Addr| CLOUDS_V4.contains(v4) || LINK_LOCAL_CLOUDS.contains(v4);
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => nat64(ip).iter().any(is_cloud),
    }
}

/// The address, and the IPv4 addresses that a gateway or the system may translate it to.
pub(super) fn with_embedded(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let embedded = match address {
        IpAddr::V4(_) => [None; 6],
        IpAddr::V6(ip) => embedded(ip),
    };
    std::iter::once(address).chain(embedded.into_iter().flatten().map(IpAddr::V4))
}

fn kind_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_link_local() {
        Some(LINK_LOCAL)
    } else if CLOUDS_V4.contains(&ip) {
        Some(METADATA)
    } else if ip.is_multicast() {
        Some(MULTICAST)
    } else if ip.is_broadcast() {
        Some("the broadcast address")
    } else if ip.octets()[0] == 0 {
        // 0.0.0.0/8 means "this host"; Linux connects 0.0.0.0 to loopback.
        Some(UNSPECIFIED)
    } else if ip.octets()[0] >= 240 {
        Some("a reserved address")
    } else {
        None
    }
}

fn kind_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = ip.segments();
    if ip.is_unicast_link_local() {
        Some(LINK_LOCAL)
    } else if (first, second) == (0xfd00, 0xec2) || CLOUDS_V6.contains(&ip) {
        Some(METADATA)
    } else if ip.is_multicast() {
        Some(MULTICAST)
    } else if ip.is_unspecified() {
        Some(UNSPECIFIED)
    } else {
        None
    }
}

/// The IPv4 addresses embedded in an IPv6 address: in the last 32 bits if it is mapped
/// (`::ffff:0:0/96`), translated (`::ffff:0:0:0/96`), compatible (`::/96`), NAT64 (`64:ff9b::/96`,
/// `64:ff9b:1::/48`) or ISATAP (any prefix); at the other places that are possible in the local NAT64
/// prefix (`64:ff9b:1::/48`, RFC 8215); after the prefix in 6to4 (`2002::/16`); inverted in Teredo
/// (`2001::/32`). An ISATAP address can be one of the others too.
fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 6] {
    let of = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    let segments = ip.segments();
    let last = match segments {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => of(high, low),
        _ => None,
    };
    let six_to_four = match segments {
        [0x2002, high, low, ..] => of(high, low),
        _ => None,
    };
    let teredo = match segments {
        [0x2001, 0, _, _, _, _, high, low] => of(!high, !low),
        _ => None,
    };
    let [_, _, in_48, in_56, in_64, _] = nat64(ip).map(|v4| {
        // At the places that are not used there are zeros. A gateway does not translate to multicast.
        let is_local = segments.starts_with(&[0x64, 0xff9b, 1]);
        Some(v4).filter(|v4| is_local && (1..224).contains(&v4.octets()[0]))
    });
    [last, six_to_four, teredo, in_48, in_56, in_64]
}

/// The places of an IPv4 address behind a NAT64 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052).
fn nat64(ip: Ipv6Addr) -> [Ipv4Addr; 6] {
    let [_, _, _, _, a, b, c, d, _, e, f, g, h, i, j, k] = ip.octets();
    [[a, b, c, d], [b, c, d, e], [c, d, e, f], [d, e, f, g], [e, f, g, h], [h, i, j, k]]
        .map(Ipv4Addr::from)
}
