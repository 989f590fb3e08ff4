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

const GOOGLE_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

const LINK_LOCAL: &str = "a link-local address";
const METADATA: &str = "a cloud metadata service";
const MULTICAST: &str = "a multicast address";
const UNSPECIFIED: &str = "an unspecified address";

/// `name` must be in lower case and not end with a dot.
pub(super) fn name(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(super) fn kind(address: IpAddr) -> Option<&'static str> {
    with_embedded(address).find_map(|address| match address {
        IpAddr::V4(ip) => kind_v4(ip),
        IpAddr::V6(ip) => kind_v6(ip),
    })
}

/// The address, and the IPv4 addresses that a gateway or the system may translate it to.
pub(super) fn with_embedded(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let embedded = match address {
        IpAddr::V4(_) => [None; 3],
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
    } else if (first, second) == (0xfd00, 0xec2) || ip == GOOGLE_V6 {
        // Amazon has its services, including metadata, in fd00:ec2::/32.
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
/// `64:ff9b:1::/48`) or ISATAP (any prefix); after the prefix in 6to4 (`2002::/16`); inverted in
/// Teredo (`2001::/32`). An ISATAP address can be one of the others too.
fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
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
    [last, six_to_four, teredo]
}
