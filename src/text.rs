//! Escapes untrusted text for logs, terminals and errors.
//!
//! Keys, paths and replica errors may contain anything: cursor movement, text direction, line
//! breaks, invisible characters. [`is_odd`] alone decides which characters are escaped, so that log,
//! terminal and errors agree. The page has the same rule (`server/page/plain.js`).

use std::borrow::Cow;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Whether a character must be escaped: control and format characters (direction, joiners, tags),
/// line and paragraph separators, spaces other than U+0020, private use, unassigned, and anything
/// else without a glyph.
pub fn is_odd(c: char) -> bool {
    match c {
        ' '..='~' => false,
        // Assigned but invisible: joiners, fillers, variation selectors.
        '\u{34f}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{e0000}'..='\u{e0fff}' => true,
        // `escape_debug` knows Unicode's categories. The character is not put first, because there
        // it also escapes combining accents.
        c => {
            let mut text = [b'a'; 5];
            let bytes = c.encode_utf8(&mut text[1..]).len();
            let text = std::str::from_utf8(text.get(..=bytes).unwrap_or_default());
            text.unwrap_or_default().escape_debug().count() > 2
        }
    }
}

/// `text` as one line, with every odd character escaped.
pub fn plain(text: &str) -> Cow<'_, str> {
    line(text, false)
}

/// `text` in quotes and escaped as by [`plain`].
pub fn quoted(text: &str) -> String {
    plain(&format!("{text:?}")).into_owned()
}

/// As [`plain`], but keeps terminal colours if `coloured`.
pub fn line(text: &str, coloured: bool) -> Cow<'_, str> {
    let odd = |c| is_odd(c) && !(coloured && c == '\u{1b}');
    escaped(text, odd, |c, plain| match c {
        '\n' | '\r' | '\t' => plain.extend(c.escape_default()),
        c => plain.extend(c.escape_unicode()),
    })
}

/// Hides what an error may quote: the user names and passwords of addresses, and tokens.
pub fn without_secrets(text: &str) -> String {
    let words = text.split_inclusive(char::is_whitespace);
    words.map(without_password).map(|word| without_token(&word)).collect()
}

fn without_password(word: &str) -> String {
    let hidden = word.rsplit_once('@').and_then(|(before, host)| {
        let scheme = before.find("://").map(|at| at + 3);
        let begin = scheme.or_else(|| before.find(':').map(|at| at + 1))?;
        Some(format!("{}…@{host}", before.get(..begin)?))
    });
    hidden.unwrap_or_else(|| word.to_owned())
}

fn without_token(word: &str) -> String {
    const PREFIX: &str = "rpl_";
    /// Longer than the public part of a token.
    const MIN_TOKEN: usize = 16;
    let mut parts = word.split(PREFIX);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == '_');
        let is_token = part.len() - rest.len() >= MIN_TOKEN;
        shown = if is_token { shown + PREFIX + "…" + rest } else { shown + PREFIX + part };
    }
    shown
}

/// `text`, a JSON document, with odd characters as JSON escapes. Characters below U+0020 occur only
/// between tokens and stay.
pub fn json(text: &str) -> Cow<'_, str> {
    let odd = |c| c >= ' ' && is_odd(c);
    escaped(text, odd, |c, plain| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            *plain += &format!("\\u{unit:04x}");
        }
    })
}

fn escaped(
    text: &str,
    odd: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.chars().any(&odd) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if odd(c) { escape(c, &mut plain) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}

/// The contents of a file without a byte order mark, which some editors write.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

/// As [`without_bom`], for a string.
pub fn unmarked(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_and_passwords_of_urls_are_hidden() {
        for (text, shown) in [
            ("collector", "collector"),
            ("http://c:4318/v1", "http://c:4318/v1"),
            ("http://me:secret@c:4318/v1", "http://…@c:4318/v1"),
            ("http://secret@c", "http://…@c"),
            ("http://me:se/cr@et@c", "http://…@c"),
            (
                "for url (https://a:secret@c/x), then \"http://b:secret@d\" at e@f",
                "for url (https://…@c/x), then \"http://…@d\" at e@f",
            ),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }

    #[test]
    fn invisible_and_control_characters_are_escaped() {
        let kinds = [
            "\0\u{7}\u{1b}\u{7f}\u{80}\u{9b}\u{9f}\n\r\t",
            "\u{ad}\u{61c}\u{600}\u{6dd}\u{180e}\u{200b}\u{200d}\u{200e}\u{202a}\u{202e}\u{2028}\u{2029}",
            "\u{2060}\u{2064}\u{2066}\u{2069}\u{206f}\u{feff}\u{fff9}\u{fffb}\u{110bd}\u{1d173}\u{1bca0}",
            "\u{e0001}\u{e0020}\u{e0041}\u{e007f}\u{e0100}\u{e01ef}\u{e000}\u{f8ff}\u{f0000}\u{10fffd}",
            "\u{34f}\u{115f}\u{1160}\u{17b4}\u{180b}\u{3164}\u{fe00}\u{fe0f}\u{ffa0}",
            "\u{a0}\u{2003}\u{3000}\u{378}\u{ffff}\u{10ffff}",
        ];
        for c in kinds.concat().chars() {
            assert!(is_odd(c), "{c:?}");
            let text = format!("a{c}b");
            let (shown, quoted) = (plain(&text), quoted(&text));
            assert!(!shown.chars().any(is_odd) && shown.contains('\\'), "{shown:?}");
            assert!(!quoted.chars().any(is_odd), "{quoted:?}");
            let json_text = serde_json::to_string(&text).unwrap();
            let json = json(&json_text);
            assert!(!json.chars().any(is_odd), "{json:?}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn ordinary_text_is_not_changed() {
        for text in
            ["", "a b~", "clé/e\u{301}", "日本語", "עברית", "한국어", "हिन्दी", "🦀", "\"\\'"]
        {
            assert!(matches!(plain(text), Cow::Borrowed(_)), "{text}");
        }
        assert_eq!(plain("a\u{1b}[2J\n\u{202e}"), "a\\u{1b}[2J\\n\\u{202e}");
        assert_eq!(quoted("a\"\u{ad}\n"), "\"a\\\"\\u{ad}\\n\"");
        assert_eq!(line("\u{1b}[31mred\u{61c}", true), "\u{1b}[31mred\\u{61c}");
        assert_eq!(json("{\"k\":\"\u{e0041}\"}\n"), "{\"k\":\"\\udb40\\udc41\"}\n");
    }

    #[test]
    fn passwords_in_addresses_and_tokens_are_hidden() {
        let hidden = [
            ("'http://me:s3cret@h:1/x' for --url", "'http://…@h:1/x' for --url"),
            ("https://a:b@c\n  ftp://g@", "https://…@c\n  ftp://…@"),
            ("http://a:b/c@d", "http://…@d"),
            ("'7@me:s3cret@h' and me:x@h", "'7@me:…@h' and me:…@h"),
        ];
        for (text, shown) in hidden {
            assert_eq!(without_secrets(text), shown);
        }
        let token = format!("rpl_0123456789ab_{}", "f".repeat(72));
        assert_eq!(without_secrets(&format!("<{token}>,{token}")), "<rpl_…>,rpl_…");
        assert_eq!(without_secrets(&token[..30]), "rpl_…", "even a part of one");
        for plain in ["http://h:1/x y@z", "7@http://h", "7@[::1]:80 ", "rpl_0123456789ab", "é@", ""]
        {
            assert_eq!(without_secrets(plain), plain);
        }
    }

    #[test]
    fn a_byte_order_mark_is_removed() {
        assert_eq!(without_bom("\u{feff}a\u{feff}".as_bytes()), "a\u{feff}".as_bytes());
        assert_eq!(without_bom(b"\xef\xbb"), b"\xef\xbb");
        assert_eq!(unmarked("\u{feff}a"), "a");
    }
}
