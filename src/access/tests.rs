use std::num::NonZeroU64;

use super::*;

#[expect(clippy::disallowed_methods, reason = "any moment is as good")]
fn now() -> Instant {
    Instant::now()
}

fn grant(name: &str, roles: &[Role]) -> Grant {
    Grant {
        name: name.into(),
        roles: roles.to_vec(),
        replicas: None,
        rate: None,
        expires: None,
        quota: Quota::default(),
    }
}

fn made(grant: &Grant) -> (String, String) {
    let fresh = NewToken::make().unwrap();
    (fresh.reveal().to_owned(), grant.line(&fresh.stored().unwrap()))
}

fn refused(list: &str) -> String {
    file::parse(list, "tokens").unwrap_err().to_string()
}

#[test]
fn a_token_is_found_and_any_altered_token_is_not() {
    let replicas = ["http://b:1", "http://A:2/"].map(|node| Node::parse(node).unwrap());
    let mut limited = grant("gateway", &[Role::Replicate]);
    limited.replicas = Some({
        let mut replicas = replicas.to_vec();
        replicas.sort();
        replicas
    });
    limited.rate = NonZeroU32::new(7);
    limited.expires = Some(parse_expiry("2027-01-31").unwrap());
    limited.quota = Quota { places: NonZeroU64::new(9), bytes: NonZeroU64::new(1 << 20) };
    let (token, line) = made(&limited);
    let (other, second) = made(&grant("ann@desk", &[Role::Operate, Role::Replicate]));
    let list = format!("# who\n\n{line}\n  {second}  \n");
    let tokens = file::parse(&list, "tokens").unwrap();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens.find(&token).unwrap().grant, limited);
    assert_eq!(&*tokens.find(&other).unwrap().grant.name, "ann@desk");
    for (at, _) in token.char_indices() {
        let mut wrong = token.clone();
        let digit = if &token[at..=at] == "0" { "1" } else { "0" };
        wrong.replace_range(at..=at, digit);
        assert!(tokens.find(&wrong).is_none(), "{at}");
    }
    for wrong in ["", "rpl_", &token[1..], &format!("{token}0"), &token.to_uppercase(), "ä"] {
        assert!(tokens.find(wrong).is_none(), "{wrong}");
    }
    assert!(!list.contains(&token[17..81]), "the list holds the secret");
}

#[test]
fn a_forged_secret_with_a_known_id_and_a_correct_checksum_is_rejected() {
    let (token, line) = made(&grant("a", &[Role::Observe]));
    let tokens = file::parse(&line, "tokens").unwrap();
    let (good, _) = token.split_at(token.len() - 8);
    let forged = format!("{}{}", &good[..17], "0".repeat(64));
    let forged = format!("{forged}{:08x}", crc32fast::hash(forged.as_bytes()));
    assert!(PresentedToken::parse(&forged).is_some() && tokens.find(&forged).is_none());
}

#[test]
fn new_tokens_are_unique() {
    let many: std::collections::HashSet<_> =
        (0..1000).map(|_| NewToken::make().unwrap().reveal().to_owned()).collect();
    assert_eq!(many.len(), 1000);
}

#[test]
fn a_wrong_line_is_named_and_rejects_the_whole_list() {
    let (token, line) = made(&grant("a", &[Role::Observe]));
    let (_, again) = made(&grant("a", &[Role::Operate]));
    let hash = line.split(' ').nth(2).unwrap();
    for (list, sentence) in [
        (format!("{line}\n{again}"), r#"tokens, line 2: the name "a" is used twice"#),
        (format!("{line}\nb operate {hash}"), "tokens, line 2: this hash is used twice"),
        ("a observe".to_owned(), "a line must be NAME ROLES HASH"),
        (format!("a b {hash}"), "must be a comma-separated list of replicate, observe and operate"),
        ("a observe secret".to_owned(), "the hash must be one printed by replicator token new"),
        (format!("a observe {}", hash.to_uppercase()), "the hash must be one printed by"),
        (format!("a!b observe {hash}"), "the name must be 1 to 64 of A-Z a-z"),
        (format!("{line} rate=0"), "rate= must be a number from 1 to 4294967295"),
        (format!("{line} rate=1 rate=2"), "each once"),
        (format!("{line} expires=2027-02-30"), "expires= must be a date such as 2027-01-31"),
        (format!("{line} expires=2027-01-31T12:00:00+01:00"), "in UTC"),
        (format!("{line} expires=1969-12-31"), "expires= must be a date"),
        (format!("{line} expires=9999-12-31"), "expires= must be a date"),
        (format!("{line} places=0"), "places= must be a number from 1"),
        (format!("{line} bytes=0B"), "bytes= must be a size from 1B"),
        (format!("{line} bytes=many"), "bytes= must be a size from 1B"),
        (format!("{line} places=1 places=2"), "each once"),
        (format!("{line} replicas=ftp://h"), "address 1 of replicas= must begin with http"),
        (
            format!("{line} replicas=http://a,http://u:p@h"),
            "address 2 of replicas= must not contain user info",
        ),
        (format!("{line} replicas=http://a，b"), "address 1 of replicas= must not contain a comma"),
        (format!("a observe {token}"), "this contains a token"),
        (format!("{token} observe {hash}"), "this contains a token"),
        (format!("{} observe {hash}", &token[..64]), "this contains a token"),
        (format!("a {token} {hash}"), "this contains a token"),
        (format!("{line} rate={token}"), "this contains a token"),
        (format!("{line} replicas=http://{token}@h"), "this contains a token"),
        ("# empty\n".to_owned(), "tokens contains no token"),
    ] {
        let said = refused(&list);
        assert!(said.contains(sentence), "{said}");
        assert!(!said.contains(&token[17..40]), "{said}");
    }
}

#[test]
fn a_date_is_its_beginning_and_a_time_keeps_its_precision() {
    for (text, nanos) in [
        ("1970-01-02", 86_400_000_000_000),
        ("1970-01-02T00:00:01Z", 86_401_000_000_000),
        ("1970-01-02T00:00:00.000000001Z", 86_400_000_000_001),
    ] {
        let expires = parse_expiry(text).unwrap();
        assert_eq!((expires, expiry_text(expires).as_str()), (Timestamp(nanos), text));
    }
    assert_eq!(expiry_text(parse_expiry("1970-01-02T00:00:00Z").unwrap()), "1970-01-02");
}

#[test]
fn a_token_expires_at_its_time_and_warns_once_a_week_before() {
    let mut limited = grant("a", &[Role::Observe]);
    let at = |text| parse_expiry(text).unwrap();
    assert!(
        !limited.has_expired(Timestamp(u64::MAX)) && limited.time_left(at("2027-01-01")).is_none()
    );
    limited.expires = Some(at("2027-01-31"));
    assert!(!limited.has_expired(at("2027-01-30T23:59:59Z")));
    assert!(limited.has_expired(at("2027-01-31")) && limited.has_expired(at("2028-01-01")));
    let (token, line) = made(&limited);
    let list = file::parse(&line, "f").unwrap();
    let holder = list.find(&token).unwrap();
    assert!(!holder.warns_of_expiry(at("2027-01-24")));
    assert!(holder.warns_of_expiry(at("2027-01-24T00:00:01Z")));
    assert!(!holder.warns_of_expiry(at("2027-01-25")));
    let mut again = file::parse(&line, "f").unwrap();
    again.take_over(&list);
    assert!(!again.find(&token).unwrap().warns_of_expiry(at("2027-01-25")), "once");
}

#[test]
fn only_tokens_with_a_limit_have_a_quota() {
    let mut limited = grant("limited", &[Role::Replicate]);
    limited.quota.places = NonZeroU64::new(3);
    let lines = [made(&limited).1, made(&grant("free", &[Role::Replicate])).1];
    let quotas = file::parse(&lines.join("\n"), "f").unwrap().quotas();
    assert_eq!(quotas, HashMap::from([(Client::Token("limited".into()), limited.quota)]));
}

#[test]
fn operate_includes_observe_and_no_other_role_includes_another() {
    let all = [Role::Replicate, Role::Observe, Role::Operate];
    for own in all {
        for needed in all {
            let expected = own == needed || own == Role::Operate && needed == Role::Observe;
            assert_eq!(grant("x", &[own]).allows(needed), expected, "{own} {needed}");
        }
    }
    assert!(grant("x", &[Role::Replicate, Role::Observe]).allows(Role::Observe));
}

#[test]
fn a_reload_keeps_the_debt_of_a_token() {
    let mut limited = grant("a", &[Role::Replicate]);
    limited.rate = NonZeroU32::new(1);
    let (token, line) = made(&limited);
    let now = now();
    let old = file::parse(&line, "f").unwrap();
    old.find(&token).unwrap().spend(now).unwrap();
    let mut new = file::parse(&line, "f").unwrap();
    new.take_over(&old);
    assert!(new.find(&token).unwrap().spend(now).is_err());
    let mut wider = file::parse(&line.replace("rate=1", "rate=9"), "f").unwrap();
    wider.take_over(&old);
    assert!(wider.find(&token).unwrap().spend(now).is_ok());
}
