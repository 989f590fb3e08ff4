//! Tables of allowed and blocked addresses, in every spelling.

use super::rule::RuleError;
use super::*;

fn policy(rules: &[&str]) -> Policy {
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
    Policy::new((!rules.is_empty()).then_some(rules), None)
}

fn node(text: &str) -> Node {
    Node::parse(text).expect(text)
}

fn admit(policy: &Policy, text: &str) -> Result<(), Forbidden> {
    policy.admit(&node(text))
}

fn connect(policy: &Policy, text: &str, address: &str) -> Result<(), Forbidden> {
    policy.may_connect(&Target::of(&node(text)).unwrap(), address.parse().expect(address))
}

/// A policy of a daemon that listens on `address`, on a machine with 10.0.0.7 and fd00::7.
fn own(address: &str) -> Policy {
    let is_local = |address: IpAddr| ["10.0.0.7", "fd00::7"].contains(&&*address.to_string());
    Policy::new(None, Some(Own { address: address.parse().unwrap(), is_local }))
}

#[test]
fn without_rules_loopback_private_and_public_addresses_and_names_are_allowed() {
    let policy = policy(&[]);
    for text in [
        "http://127.0.0.1:8081",
        "http://localhost:8081",
        "http://[::1]:8081",
        "http://10.1.2.3",
        "http://172.16.0.1:80",
        "https://192.168.1.1",
        "http://100.64.0.1:8081",
        "http://[fd00::1]:8081",
        "http://8.8.8.8",
        "http://[2606:4700::1111]",
        "https://store.example.org/base",
        "http://node-1:8081",
    ] {
        assert_eq!(admit(&policy, text), Ok(()), "{text}");
    }
}

#[test]
fn blocked_addresses_are_rejected_in_every_spelling() {
    let open = policy(&[]);
    let listed = policy(&["0.0.0.0/0", "[::/0]"]);
    for text in [
        "http://169.254.169.254",
        "http://169.254.169.254:8081/latest",
        "http://169.254.1.1",
        "http://0xa9fea9fe",
        "http://0xa9.0xfe.0xa9.0xfe",
        "http://2852039166",
        "http://0251.0376.0251.0376",
        "http://169.254.43518",
        "http://169.16689662",
        "http://169.254.169.254.",
        "http://１６９.２５４.１６９.２５４",
        "http://169。254。169。254",
        "http://%31%36%39.254.169.254",
        "http://[::ffff:169.254.169.254]",
        "http://[::ffff:a9fe:a9fe]",
        "http://[::169.254.169.254]",
        "http://[::ffff:0:169.254.169.254]",
        "http://[64:ff9b::169.254.169.254]",
        "http://[64:ff9b:1::169.254.169.254]",
        // The local NAT64 prefix with 48, 56 and 64 bits.
        "http://[64:ff9b:1:a9fe:a9:fe00::]",
        "http://[64:ff9b:1:ffa9:fe:a9fe::]",
        "http://[64:ff9b:1:ff:a9:fea9:fe00:0]",
        // Other NAT64 prefixes, with 32 to 96 bits.
        "http://[2001:db8:a9fe:a9fe::]",
        "http://[2001:db8:1a9:fea9:fe::]",
        "http://[2001:db8:1:a9fe:a9:fe00::]",
        "http://[2001:db8:1:ffa9:fe:a9fe::]",
        "http://[2001:db8:1:ff:a9:fea9:fe00:0]",
        "http://[2001:db8:1:ff::169.254.169.254]",
        "http://[2001:db8:1:ff::100.100.100.200]",
        "http://[2002:a9fe:a9fe::1]",
        "http://[2001:0:1:2:3:4:5601:5601]",
        "http://[fd00::5efe:169.254.169.254]",
        // ISATAP by their last bits, 6to4 or Teredo by their prefix.
        "http://[2002:a9fe:a9fe::5efe:10.0.0.1]",
        "http://[2001:0:1:2:0:5efe:5601:5601]",
        "http://[fe80::1]",
        "http://[febf::1]:8081",
        "http://[fd00:ec2::254]",
        "http://[fd00:0ec2:0:0:0:0:0:254]",
        "http://[fd20:ce::254]",
        "http://[fd00:42::42]",
        "http://[fd00:c1::a9fe:a9fe]",
        "http://[fd00:a9fe:a9fe::1]",
        "http://[fd00:100::100:200]",
        "http://168.63.129.16",
        "http://100.100.100.200",
        "http://192.0.0.192",
        "http://0.0.0.0",
        "http://0",
        "http://0.1.2.3",
        "http://[::]",
        "http://[::ffff:0.0.0.0]",
        "http://224.0.0.1",
        "http://239.255.255.255",
        "http://[ff02::1]",
        "http://255.255.255.255",
        "http://0xffffffff",
        "http://[::ffff:255.255.255.255]",
        "http://240.0.0.1",
    ] {
        for policy in [&open, &listed] {
            let verdict = admit(policy, text);
            assert!(
                matches!(verdict, Err(Forbidden::Blocked { .. } | Forbidden::Never { .. })),
                "{text}: {verdict:?}"
            );
        }
    }
    for text in ["http://metadata.google.internal", "http://METADATA.Google.Internal.:80/x"] {
        assert_eq!(admit(&open, text), Err(Forbidden::Metadata), "{text}");
    }
}

#[test]
fn no_rule_allows_a_blocked_address() {
    let policy = policy(&["169.254.169.254", "169.254.0.0/16", "[fe80::/10]", "evil.example"]);
    assert!(matches!(
        admit(&policy, "http://169.254.169.254"),
        Err(Forbidden::Blocked { .. } | Forbidden::Never { .. })
    ));
    assert!(matches!(
        admit(&policy, "http://[fe80::1]"),
        Err(Forbidden::Blocked { .. } | Forbidden::Never { .. })
    ));
    let verdict = connect(&policy, "http://evil.example", "169.254.169.254");
    assert!(matches!(verdict, Err(Forbidden::Blocked { .. } | Forbidden::Never { .. })));
}

#[test]
fn addresses_next_to_blocked_ranges_are_allowed() {
    let policy = policy(&[]);
    for text in [
        "http://169.253.255.255",
        "http://169.255.0.0",
        "http://1.0.0.0",
        "http://223.255.255.255",
        "http://[fec0::1]",
        "http://[fe00::1]",
        "http://[fd00:ec1::254]",
        "http://[fd00:ec3::254]",
        "http://[64:ff9b::10.0.0.1]",
        "http://[64:ff9b:1::10.0.0.1]",
        "http://[64:ff9b:1:a00:0:100:a00:1]",
        "http://[2001:db8::224.0.0.1]",
        "http://[fd00:42::43]",
        "http://[2002:0a00:0001::1]",
        "http://[::ffff:10.0.0.1]",
        "http://168.63.129.17",
    ] {
        assert_eq!(admit(&policy, text), Ok(()), "{text}");
    }
}

#[test]
fn only_a_listed_replica_is_allowed_in_all_its_spellings() {
    let policy =
        policy(&["http://node-1:8081", "https://10.0.0.1:443", "[fd00::1]:8081", "Böse.example"]);
    for text in [
        "http://node-1:8081",
        "http://NODE-1:8081/base",
        "http://node-1.:8081",
        "https://10.0.0.1",
        "https://0x0a000001",
        "https://167772161/",
        "https://012.1",
        "https://[::ffff:10.0.0.1]",
        "http://[fd00:0:0::1]:8081",
        "https://[fd00::1]:8081",
        "http://xn--bse-sna.example:1",
        "https://BÖSE.example",
    ] {
        assert_eq!(admit(&policy, text), Ok(()), "{text}");
    }
    for text in [
        "https://node-1:8081",
        "http://node-1",
        "http://node-1:8082",
        "http://node-10:8081",
        "http://x.node-1:8081",
        "http://node-1.example:8081",
        "http://10.0.0.1:443",
        "https://10.0.0.2",
        "http://[fd00::2]:8081",
        "http://[64:ff9b::10.0.0.1]:443",
        "http://127.0.0.1:8081",
        "http://localhost:8081",
    ] {
        assert_eq!(admit(&policy, text), Err(Forbidden::NotListed), "{text}");
    }
}

#[test]
fn a_suffix_allows_its_subdomains_only_on_its_port() {
    let policy = policy(&["*.stores.example:8081"]);
    for text in ["http://a.stores.example:8081", "https://A.b.Stores.Example.:8081"] {
        assert_eq!(admit(&policy, text), Ok(()), "{text}");
    }
    for text in [
        "http://stores.example:8081",
        "http://evilstores.example:8081",
        "http://a.stores.example:8080",
        "http://a.stores.example.evil.org:8081",
        "http://10.0.0.1:8081",
    ] {
        assert_eq!(admit(&policy, text), Err(Forbidden::NotListed), "{text}");
    }
}

#[test]
fn a_range_allows_exactly_its_addresses_and_ports() {
    let policy = policy(&["10.0.0.0/8:8000-8999", "[fd00::/8]:8081"]);
    for text in [
        "http://10.0.0.0:8000",
        "http://10.255.255.255:8999",
        "http://[::ffff:10.1.1.1]:8500",
        "http://[fdff::1]:8081",
    ] {
        assert_eq!(admit(&policy, text), Ok(()), "{text}");
    }
    for text in [
        "http://10.0.0.1:7999",
        "http://10.0.0.1:9000",
        "http://9.255.255.255:8000",
        "http://11.0.0.0:8000",
        "http://[fe00::1]:8081",
        "http://[fd00::1]:8082",
        "http://[2002:0a00:0001::1]:8000",
    ] {
        assert_eq!(admit(&policy, text), Err(Forbidden::NotListed), "{text}");
    }
}

#[test]
fn a_name_is_judged_by_the_address_that_it_resolves_to() {
    let policy = policy(&["10.0.0.0/8:8081", "named.example"]);
    assert_eq!(admit(&policy, "http://db:8081"), Ok(()), "it may resolve into the range");
    assert_eq!(admit(&policy, "http://db:22"), Err(Forbidden::NotListed), "no rule has that port");
    assert_eq!(connect(&policy, "http://db:8081", "10.1.1.1"), Ok(()));
    assert_eq!(connect(&policy, "http://db:8081", "::ffff:10.1.1.1"), Ok(()));
    assert_eq!(
        connect(&policy, "http://named.example:22", "192.0.2.1"),
        Ok(()),
        "a rule for a name allows any address"
    );
    for (text, address) in [("http://db:8081", "192.0.2.1"), ("http://db:22", "10.1.1.1")] {
        let verdict = connect(&policy, text, address);
        assert!(matches!(verdict, Err(Forbidden::LeadsElsewhere { .. })), "{verdict:?}");
    }
}

#[test]
fn a_rule_for_a_single_address_admits_no_name() {
    let policy = policy(&["http://10.0.0.1:8081"]);
    assert_eq!(admit(&policy, "http://db:8081"), Err(Forbidden::NotListed));
}

#[test]
fn replaced_rules_hold_for_all_clones() {
    let policy = policy(&["node-1"]);
    let clone = policy.clone();
    policy.replace(Some(vec!["node-2".parse().unwrap()]));
    assert_eq!(admit(&clone, "http://node-1"), Err(Forbidden::NotListed));
    assert_eq!(admit(&clone, "http://node-2"), Ok(()));
}

#[test]
fn the_daemon_never_writes_to_itself_under_any_address() {
    let all = own("0.0.0.0:8085");
    for text in [
        "http://127.0.0.1:8085",
        "http://127.9.9.9:8085",
        "http://0x7f.1:8085",
        "http://[::1]:8085",
        "http://[::ffff:127.0.0.1]:8085",
        "http://[64:ff9b::127.0.0.1]:8085",
        "http://[64:ff9b:1:7f00:0:100:a00:1]:8085",
        "http://localhost:8085",
        "http://localhost.:8085",
        "http://a.localhost:8085",
        "http://10.0.0.7:8085",
        "http://[::ffff:10.0.0.7]:8085",
        "http://[fd00::7]:8085/base",
    ] {
        assert_eq!(admit(&all, text), Err(Forbidden::Itself), "{text}");
    }
    for text in ["http://127.0.0.1:8081", "http://localhost:8086", "http://10.0.0.8:8085"] {
        assert_eq!(admit(&all, text), Ok(()), "{text}");
    }
    assert_eq!(connect(&all, "http://me.example:8085", "10.0.0.7"), Err(Forbidden::Itself));
    assert_eq!(connect(&all, "http://me.example:8085", "127.0.0.1"), Err(Forbidden::Itself));
    assert_eq!(connect(&all, "http://me.example:8086", "127.0.0.1"), Ok(()));
}

#[test]
fn a_daemon_on_one_address_blocks_only_that_address_as_itself() {
    let loopback = own("127.0.0.1:8085");
    for text in ["http://127.0.0.1:8085", "http://localhost:8085", "http://[::ffff:7f00:1]:8085"] {
        assert_eq!(admit(&loopback, text), Err(Forbidden::Itself), "{text}");
    }
    for text in ["http://10.0.0.7:8085", "http://127.0.0.2:8085"] {
        assert_eq!(admit(&loopback, text), Ok(()), "{text}");
    }
    let one = own("10.0.0.7:8085");
    assert_eq!(admit(&one, "http://10.0.0.7:8085"), Err(Forbidden::Itself));
    assert_eq!(admit(&one, "http://localhost:8085"), Ok(()));
    let v6 = own("[::]:8085");
    for text in ["http://127.0.0.1:8085", "http://[::1]:8085", "http://10.0.0.7:8085"] {
        assert_eq!(admit(&v6, text), Err(Forbidden::Itself), "{text}");
    }
}

#[test]
fn an_invalid_rule_is_rejected_with_its_reason() {
    let host = RuleError::Host;
    for (text, error) in [
        ("ftp://a", RuleError::Scheme),
        ("", host.clone()),
        ("http://", host.clone()),
        (":80", host.clone()),
        ("a b", host.clone()),
        ("a/b", host.clone()),
        ("http://a/path", host.clone()),
        ("user@a", host.clone()),
        ("a?b", host.clone()),
        ("a#b", host.clone()),
        ("a%41", host.clone()),
        ("http://[10.0.0.1]", host.clone()),
        ("[10.0.0.0/8]", host.clone()),
        ("[fd00::1", host.clone()),
        ("10.0.0.0/33", host.clone()),
        ("1.2.3.4.5", host.clone()),
        ("*.", host.clone()),
        ("*.1", host),
        ("*", RuleError::Star),
        ("a*.example", RuleError::Star),
        ("*.*.example", RuleError::Star),
        ("fd00::1", RuleError::Brackets),
        ("fd00::/8:80", RuleError::Brackets),
        ("10.1.2.3/8", RuleError::Bits("10.0.0.0/8".parse().unwrap())),
        ("[fd00::1/8]:80", RuleError::Bits("fd00::/8".parse().unwrap())),
        ("[::ffff:10.0.0.0/104]", RuleError::Mapped),
        ("a:", RuleError::Port),
        ("a:0", RuleError::Port),
        ("a:65536", RuleError::Port),
        ("a:+80", RuleError::Port),
        ("a:80-", RuleError::Port),
        ("a:90-80", RuleError::Port),
        ("a:http", RuleError::Port),
        ("[fd00::1]80", RuleError::Port),
    ] {
        assert_eq!(text.parse::<Rule>(), Err(error), "{text}");
    }
}

#[test]
fn a_file_of_rules_may_have_comments_and_its_error_names_the_line() {
    let text = "# ours\n\nhttp://node-1:8081/ # the first\n  *.stores.example\n10.0.0.0/8:*\n";
    assert_eq!(rules(text).unwrap().len(), 3);
    let error = rules("node-1\n# fine\nftp://node-2\n").unwrap_err().to_string();
    assert!(error.starts_with(r#"line 3: "ftp://node-2" must have the scheme"#), "{error}");
    for empty in ["", "\n", "# nothing\n"] {
        assert_eq!(rules(empty), Err(LineError::Empty));
    }
}

proptest::proptest! {
    #[test]
    fn every_spelling_of_an_address_has_the_verdict_of_the_address(
        bits in proptest::prelude::any::<u32>(), form in 0..6,
    ) {
        let ip = std::net::Ipv4Addr::from(bits);
        let [a, b, c, d] = ip.octets();
        let host = match form {
            0 => ip.to_string(),
            1 => bits.to_string(),
            2 => format!("{bits:#x}"),
            3 => format!("0{a:o}.0x{b:x}.{c}.{d}."),
            4 => format!("{a}.{}", bits & 0x00ff_ffff),
            _ => format!("[::ffff:{ip}]"),
        };
        let rules = ["10.0.0.0/8:1-65535", "128.0.0.0/1"];
        for policy in [policy(&[]), policy(&rules)] {
            let admitted = admit(&policy, &format!("http://{host}"));
            proptest::prop_assert_eq!(admitted, connect(&policy, &format!("http://{}", ip), &ip.to_string()));
        }
    }
}

#[test]
fn a_name_with_a_last_dot_is_looked_up_with_it_and_is_the_same_name_to_the_rules() {
    let target = |text: &str| Target::of(&Node::parse(text).unwrap()).unwrap();
    let absolute = target("http://h.example.:8081");
    assert_eq!(
        (absolute.name(), absolute.lookup_name().as_deref()),
        (Some("h.example"), Some("h.example."))
    );
    assert_eq!(target("http://h.example:8081").lookup_name().as_deref(), Some("h.example"));
    assert_eq!(target("http://10.0.0.1").lookup_name(), None);
}

#[test]
fn a_rule_with_a_path_allows_that_base_path_and_those_below() {
    let policy = Policy::new(Some(rules("http://h:8081/a/\n[fd01::/16]:80/b").unwrap()), None);
    for (address, allowed) in [
        ("http://h:8081/a", true),
        ("http://h:8081/a/b", true),
        ("http://h:8081/ab", false),
        ("http://h:8081", false),
        ("http://h:8081/x/../a", true),
        ("http://h:8081/a/../b", false),
        ("http://[fd01::1]/b", true),
        ("http://[fd01::1]", false),
    ] {
        assert_eq!(policy.admit(&Node::parse(address).unwrap()).is_ok(), allowed, "{address}");
    }
    let any = Policy::new(Some(rules("http://h:8081").unwrap()), None);
    assert!(any.admit(&Node::parse("http://h:8081/any/path").unwrap()).is_ok());
    for (rule, why) in
        [("h:80/a?b", RuleError::Path), ("h:80/a#b", RuleError::Path), ("h/a", RuleError::Host)]
    {
        assert_eq!(rule.parse::<Rule>(), Err(why), "{rule}");
    }
}
