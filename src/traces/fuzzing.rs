//! Any text as the trace of a request.

use super::context::{parent, state};
use crate::task::Trace;

/// What is taken of a trace is in its normal form, fits where it is kept, and can be sent on. The
/// first line is a `traceparent`, each of the others a `tracestate`.
pub(crate) fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    if let Some(taken) = lines.next().and_then(parent) {
        assert_eq!(taken.len(), 55, "{taken:?}");
        assert_eq!(parent(&taken).as_deref(), Some(&*taken));
        let number = |field| u128::from_str_radix(field, 16).ok();
        let fields: Vec<_> = taken.split('-').map(number).collect();
        let valid = matches!(
            fields.as_slice(),
            &[Some(0), Some(id), Some(span), Some(flags)] if id > 0 && span > 0 && flags < 256
        );
        assert!(valid, "{taken:?}");
    }
    if let Some(taken) = state(lines) {
        assert!(!taken.is_empty() && taken.len() <= Trace::MAX_STATE_BYTES, "{taken:?}");
        assert!(taken.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{taken:?}");
        assert_eq!(state([&*taken]).as_deref(), Some(&*taken));
    }
}
