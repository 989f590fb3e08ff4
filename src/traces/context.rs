//! Parses `traceparent` and `tracestate` (W3C Trace Context). Invalid headers are ignored, as the
//! recommendation says: a write is never rejected because of its trace.

use crate::task::Trace;

/// The length of a `traceparent` of version `00`.
const LENGTH: usize = 55;

/// Parses a `traceparent`. Of a later version, the fields that `00` has are kept.
pub fn parent(text: &str) -> Option<Box<str>> {
    let text = text.trim_matches([' ', '\t']);
    if text.len() > Trace::MAX_PARENT_BYTES {
        return None;
    }
    let (known, more) = text.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let mut hex = |digits| {
        let field = fields.next().filter(|field| field.len() == digits)?;
        let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        field.bytes().all(lower).then_some(field)
    };
    let version = hex(2).filter(|version| *version != "ff")?;
    let (id, span, flags) = (hex(32)?, hex(16)?, hex(2)?);
    let extended = version != "00" && more.starts_with('-');
    let set = |field: &str| field.bytes().any(|c| c != b'0');
    let valid = set(id) && set(span) && (more.is_empty() || extended);
    valid.then(|| format!("00-{id}-{span}-{flags}").into())
}

/// Joins the `tracestate` headers of a request, if they are valid and not too long.
pub fn state<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Box<str>> {
    let members = lines.into_iter().flat_map(|line| line.split(','));
    let members = members.map(|member| member.trim_matches([' ', '\t']));
    let state = members.filter(|member| !member.is_empty()).collect::<Vec<_>>().join(",");
    let plain = state.bytes().all(|c| c == b' ' || c.is_ascii_graphic());
    let pairs = state.split(',').all(|member| member.contains('='));
    let valid = plain && pairs && state.len() <= Trace::MAX_STATE_BYTES;
    valid.then(|| state.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_is_kept() {
        assert_eq!(parent(GOOD).as_deref(), Some(GOOD));
        assert_eq!(parent(&format!(" {GOOD}\t")).as_deref(), Some(GOOD));
        let off = GOOD.replace("-01", "-00");
        assert_eq!(parent(&off).as_deref(), Some(off.as_str()));
    }

    #[test]
    fn a_later_version_is_reduced_to_the_known_fields() {
        let later = GOOD.replacen("00", "cc", 1);
        assert_eq!(parent(&later).as_deref(), Some(GOOD));
        assert_eq!(parent(&format!("{later}-what")).as_deref(), Some(GOOD));
    }

    #[test]
    fn an_invalid_traceparent_is_ignored() {
        for bad in [
            "",
            "00",
            &GOOD.replacen("00", "ff", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace("b7ad6b7169203331", "+7ad6b7169203331"),
            &format!("{GOOD}-what"),
            &format!("{}what", GOOD.replacen("00", "cc", 1)),
            &format!("{}-{}", GOOD.replacen("00", "cc", 1), "x".repeat(99)),
            &"ü".repeat(30),
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_lines_of_a_tracestate_are_joined() {
        assert_eq!(state(["a=1, b=2", "c=3,"]).as_deref(), Some("a=1,b=2,c=3"));
        assert_eq!(state([]), None);
        assert_eq!(state([" ,"]), None);
        assert_eq!(state(["a"]), None);
        assert_eq!(state(["a=\u{7f}"]), None);
        assert_eq!(state([format!("a={}", "x".repeat(600)).as_str()]), None);
    }
}
