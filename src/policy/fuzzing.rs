//! Fuzz target: the policy against a second, simpler implementation.
//!
//! The input is text: rules, one per line; an empty line; addresses, one per line. The second word
//! of such a line is the IP address to which the name resolves.

#![allow(clippy::panic, reason = "a target fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

use super::{Forbidden, Own, Policy, Rule, Target, rules};
use crate::task::Node;

const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8085);

/// Blocked addresses are rejected under any rules and in any spelling. The spelling of an address
/// does not change its verdict. Rules allow exactly what their simple reading allows.
pub(crate) fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (listed, addresses) = text.split_once("\n\n").unwrap_or(("", text));
    let rules = match rules(listed) {
        Ok(rules) => Some(rules),
        Err(why) => {
            assert!(!why.to_string().contains(char::is_control), "{why}");
            None
        }
    };
    let plain: Option<Vec<PlainRule>> = rules.as_ref().and_then(|_| {
        let lines = listed.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        lines.filter(|line| !line.is_empty()).map(PlainRule::of).collect()
    });
    let is_local = |address: IpAddr| address == IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let own = Some(Own { address: OWN, is_local });
    let listed = Policy::new(rules, own);
    let open = Policy::new(None, own);
    for line in addresses.lines().take(8) {
        let (spelled, resolved) = line.split_once(' ').unwrap_or((line, ""));
        let Ok(node) = Node::parse(spelled) else { continue };
        check_as_its_own_rule(spelled, &node);
        let Ok(target) = Target::of(&node) else { panic!("{node} is valid but unreadable") };
        let resolved = resolved.parse().ok();
        for (policy, plain) in [(&open, None), (&listed, plain.as_deref())] {
            check_verdict(policy, &node, &target, resolved, plain);
        }
    }
}

/// Checks the verdict on one address. `plain` has the rules of `policy`, if all of them can be read
/// in the simple way.
fn check_verdict(
    policy: &Policy,
    node: &Node,
    target: &Target,
    resolved: Option<IpAddr>,
    plain: Option<&[PlainRule]>,
) {
    let admitted = policy.admit(node);
    let Ok(url) = Url::parse(node.as_str()) else { panic!("{node}") };
    let (https, port) = (url.scheme() == "https", url.port_or_known_default().unwrap_or(0));
    let name = match url.host() {
        Some(Host::Domain(name)) => Some(name.trim_end_matches('.')),
        _ => None,
    };
    let literal = match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    };
    assert_eq!(target.literal(), literal, "{node}");
    let Some(address) = literal.or(resolved) else {
        // A name without an address: rules for ranges decide only when it is resolved.
        let named = |rule: &PlainRule| rule.covers(https, port) && rule.may_name(name);
        if let Some(rules) = plain
            && !matches!(admitted, Err(Forbidden::Metadata | Forbidden::Itself))
        {
            assert_eq!(admitted.is_ok(), rules.iter().any(named), "{node}: {admitted:?}");
        }
        return;
    };
    let verdict = policy.may_connect(target, address);
    if literal.is_some() {
        assert_eq!(admitted, verdict, "{node}");
    }
    let variants = variants(address);
    let blocked = variants.iter().any(|ip| is_always_blocked(*ip));
    assert!(verdict.is_err() || !blocked, "{node} at {address}");
    let is_own = |ip: &IpAddr| ip.is_loopback() || *ip == IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
    let itself = port == OWN.port() && variants.iter().any(is_own);
    assert!(verdict.is_err() || !itself, "{node} at {address}");
    // The canonical spelling of the address has the same verdict.
    if literal.is_some() {
        let host = match address {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let Ok(same) = Node::parse(&format!("{}://{host}:{port}{}", url.scheme(), url.path()))
        else {
            panic!("{host}")
        };
        assert_eq!(policy.admit(&same), admitted, "{node} and {same}");
    }
    if matches!(
        verdict,
        Err(Forbidden::Blocked { .. } | Forbidden::Never { .. } | Forbidden::Itself)
    ) {
        return;
    }
    let address = address.to_canonical();
    let allows = |rule: &PlainRule| {
        rule.covers(https, port)
            && (rule.contains(address) || (literal.is_none() && rule.names(name)))
    };
    if policy.rules.load().is_none() {
        assert_eq!(verdict, Ok(()), "{node} at {address}");
    } else if let Some(rules) = plain {
        assert_eq!(verdict.is_ok(), rules.iter().any(allows), "{node} at {address}");
    }
}

/// An address that is also a valid rule allows itself.
fn check_as_its_own_rule(spelled: &str, node: &Node) {
    if !spelled.starts_with("http://") && !spelled.starts_with("https://") {
        // `http:8081` is the host `http` in a rule, but port 80 of the host `8081` in an address.
        return;
    }
    // `http://10.0.0.0/8` is a range in a rule, but a host with a path in an address.
    if node.as_str().matches('/').count() > 2 {
        return;
    }
    let Ok(rule) = spelled.parse::<Rule>() else { return };
    let admitted = Policy::new(Some(vec![rule]), None).admit(node);
    assert!(
        matches!(
            admitted,
            Ok(()) | Err(Forbidden::Blocked { .. } | Forbidden::Never { .. } | Forbidden::Metadata)
        ),
        "{spelled:?}: {admitted:?}"
    );
}

fn variants(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(ip) = address else { return vec![address] };
    let bits = u128::from(ip);
    let v4 = |shift: u32| {
        let [.., a, b, c, d] = (bits >> shift).to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    let begins = |prefix: Ipv6Addr, length: u32| (bits ^ u128::from(prefix)) >> (128 - length) == 0;
    let mut all = vec![address];
    let compatible = begins(Ipv6Addr::UNSPECIFIED, 96) && bits > 1;
    let mapped = begins(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
    let translated = begins(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96);
    let nat64 = begins(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
    let local_nat64 = begins(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48);
    let isatap = matches!((bits >> 32) & 0xfdff_ffff, 0x5efe);
    if compatible || mapped || translated || nat64 || local_nat64 || isatap {
        all.push(v4(0));
    }
    if begins(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16) {
        all.push(v4(80));
    }
    if begins(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32) {
        let [.., a, b, c, d] = (!bits).to_be_bytes();
        all.push(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
    }
    all
}

fn is_always_blocked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let never: [([u8; 4], [u8; 4]); 6] = [
                ([0, 0, 0, 0], [0, 255, 255, 255]),
                ([100, 100, 100, 200], [100, 100, 100, 200]),
                ([168, 63, 129, 16], [168, 63, 129, 16]),
                ([169, 254, 0, 0], [169, 254, 255, 255]),
                ([192, 0, 0, 192], [192, 0, 0, 192]),
                ([224, 0, 0, 0], [255, 255, 255, 255]),
            ];
            never.iter().any(|(first, last)| (first..=last).contains(&&ip.octets()))
        }
        IpAddr::V6(ip) => {
            let first = ip.segments();
            ip == Ipv6Addr::UNSPECIFIED
                || first.starts_with(&[0xfd00, 0x0ec2])
                || first == [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254]
                || matches!(first, [0xfe80..=0xfebf | 0xff00..=0xffff, ..])
        }
    }
}

struct PlainRule {
    https: Option<bool>,
    host: PlainHost,
    ports: (u16, u16),
}

enum PlainHost {
    Name(String),
    Under(String),
    Range { first: u128, length: u32, v4: bool, single: bool },
}

impl PlainRule {
    /// `None` if the rule is not in canonical form.
    fn of(text: &str) -> Option<Self> {
        let (https, rest) = match text {
            _ if text.starts_with("http://") => (Some(false), text.get(7..)?),
            _ if text.starts_with("https://") => (Some(true), text.get(8..)?),
            _ => (None, text),
        };
        let (host, ports) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, ports) = rest.split_once(']')?;
                let ports = if ports.is_empty() { "*" } else { ports.strip_prefix(':')? };
                (host, ports)
            }
            None => rest.split_once(':').unwrap_or((rest, "*")),
        };
        let number = |text: &str| text.parse::<u16>().ok();
        let ports = match ports.split_once('-') {
            _ if ports == "*" => (1, u16::MAX),
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(ports)?, number(ports)?),
        };
        Some(Self { https, host: PlainHost::of(host)?, ports })
    }

    fn covers(&self, https: bool, port: u16) -> bool {
        self.https.is_none_or(|only| only == https) && (self.ports.0..=self.ports.1).contains(&port)
    }

    fn names(&self, name: Option<&str>) -> bool {
        let Some(name) = name else { return false };
        match &self.host {
            PlainHost::Name(only) => name == only,
            PlainHost::Under(suffix) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|first| first.len() > 1)
                    && name.ends_with(&format!(".{suffix}"))
            }
            PlainHost::Range { .. } => false,
        }
    }

    /// Whether it allows the name, or may allow an address to which the name resolves.
    fn may_name(&self, name: Option<&str>) -> bool {
        self.names(name) || matches!(self.host, PlainHost::Range { single: false, .. })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let PlainHost::Range { first, length, v4, .. } = self.host else { return false };
        if v4 != address.is_ipv4() {
            return false;
        }
        let (bits, width) = match address {
            IpAddr::V4(ip) => (u32::from(ip).into(), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        (bits ^ first).checked_shr(width - length).unwrap_or(0) == 0
    }
}

impl PlainHost {
    fn of(host: &str) -> Option<Self> {
        let (address, length) = match host.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
            None => (host, None),
        };
        let single = length.is_none();
        if let Ok(ip) = address.parse::<Ipv4Addr>() {
            let (first, length) = (u32::from(ip).into(), length.unwrap_or(32));
            return Some(Self::Range { first, length, v4: true, single });
        }
        if let Ok(ip) = address.parse::<Ipv6Addr>() {
            // A mapped address means its IPv4 address.
            let plain = ip.to_ipv4_mapped().is_none();
            let (first, length) = (ip.into(), length.unwrap_or(128));
            return plain.then_some(Self::Range { first, length, v4: false, single });
        }
        let letters = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase())
                && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.')
                && text.ends_with(|c: char| c.is_ascii_lowercase())
                && !text.contains("xn")
        };
        match host.strip_prefix("*.") {
            Some(suffix) => letters(suffix).then(|| Self::Under(suffix.to_owned())),
            None => letters(host).then(|| Self::Name(host.to_owned())),
        }
    }
}
