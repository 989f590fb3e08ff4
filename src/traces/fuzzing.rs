//! Fuzz target: any text as the trace headers of a request.

use super::context::{parent, state};
use crate::task::Trace;

/// A parsed trace is in normal form, within its limits, and a valid header. The first line of the
/// input is a `traceparent`, every other line a `tracestate`.
pub(crate) fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    if let Some(parsed) = lines.next().and_then(parent) {
        assert_eq!(parsed.len(), 55, "{parsed:?}");
        assert_eq!(parent(&parsed).as_deref(), Some(&*parsed));
        let number = |field| u128::from_str_radix(field, 16).ok();
        let fields: Vec<_> = parsed.split('-').map(number).collect();
        let valid = matches!(
            fields.as_slice(),
            &[Some(0), Some(id), Some(span), Some(flags)] if id > 0 && span > 0 && flags < 256
        );
        assert!(valid, "{parsed:?}");
    }
    if let Some(parsed) = state(lines) {
        assert!(!parsed.is_empty() && parsed.len() <= Trace::MAX_STATE_BYTES, "{parsed:?}");
        assert!(parsed.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{parsed:?}");
        assert_eq!(state([&*parsed]).as_deref(), Some(&*parsed));
    }
}
