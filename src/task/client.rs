//! The client of a write, as a claimant of shared limits.

use core::net::{IpAddr, Ipv6Addr};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// The holder of a token, or the address of the client where there are no tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// The name in the token list. Tokens with one name are one client.
    Token(Arc<str>),
    Address(IpAddr),
}

impl Client {
    /// An IPv6 client counts by its /64 network: who has one address of it has all of them.
    pub fn at(address: IpAddr) -> Self {
        const HOST_BITS: u32 = 64;
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS))
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(name) => f.write_str(name),
            Self::Address(IpAddr::V6(network)) => write!(f, "{network}/64"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// An absolute limit of what the unsettled writes of a client may take of the queue, besides its
/// share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Eventual and strong writes together.
    pub places: Option<NonZeroU64>,
    /// Charged as for `--queue-max-bytes`.
    pub bytes: Option<NonZeroU64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_alone_and_an_ipv6_network_as_one_client() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
    }
}
