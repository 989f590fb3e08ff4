//! Fuzz target: any text as the list of tokens.

#![allow(clippy::panic, reason = "a target fails by panicking")]

use super::file;

/// A parsed list is unchanged when it is written and parsed again. An error contains no token of the
/// list. No word of the list is accepted as a token.
pub(crate) fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tokens = match file::parse(text, "tokens") {
        Ok(tokens) => tokens,
        Err(why) => {
            let why = why.to_string();
            assert!(why.len() < 4096 && !why.contains(char::is_control), "{why:?}");
            for secret in secrets(text).chain(passwords(text)) {
                assert!(!why.contains(secret), "{why:?} contains {secret}");
            }
            return;
        }
    };
    let lines: Vec<_> =
        tokens.0.values().map(|(stored, holder)| holder.grant.line(stored)).collect();
    let again = match file::parse(&lines.join("\n"), "tokens") {
        Ok(again) => again,
        Err(why) => panic!("{lines:?}: {why}"),
    };
    assert_eq!(again.len(), tokens.len(), "{lines:?}");
    for (id, (stored, holder)) in &tokens.0 {
        let Some((same, held)) = again.0.get(id) else { panic!("{stored} is gone") };
        assert_eq!((same, &held.grant), (stored, &holder.grant));
        assert!(!holder.grant.roles.is_empty());
        // A token with a wrong secret and a correct checksum.
        let id: String = stored.to_string().chars().take_while(|c| *c != ':').collect();
        let made_up = format!("rpl_{id}_{}", "0".repeat(64));
        let sum = crc32fast::hash(made_up.as_bytes());
        assert!(tokens.find(&format!("{made_up}{sum:08x}")).is_none());
    }
    for word in text.split_whitespace().take(64) {
        assert!(tokens.find(word).is_none(), "{word} is accepted as a token");
    }
}

/// The secrets in a text: the part after the id of a token, if it has at least 16 characters.
fn secrets(text: &str) -> impl Iterator<Item = &str> {
    let after = text.match_indices("rpl_").filter_map(|(at, _)| text.get(at + 4..));
    after
        .filter_map(|rest| {
            let end =
                rest.find(|c: char| !(c.is_ascii_hexdigit() || c == '_')).unwrap_or(rest.len());
            rest.get(..end)?.split_once('_').map(|(_, secret)| secret)
        })
        .filter(|secret| secret.len() >= 16)
}

/// The passwords in the addresses of a text, if they are long enough not to match other words.
fn passwords(text: &str) -> impl Iterator<Item = &str> {
    let before = text.match_indices('@').filter_map(|(at, _)| text.get(..at));
    before.filter_map(|before| {
        let at = before.rfind(|c: char| c == ':' || c == '/' || c.is_whitespace())?;
        before.get(at..)?.strip_prefix(':').filter(|password| password.len() >= 12)
    })
}
