//! Checks sled's log before sled opens it.
//!
//! sled silently drops the rest of a segment behind a damaged message, and reads the next segments.
//! Every row may still be there, until two pages of different age are merged or split and rows are
//! lost or come back. Only the log tells.
//!
//! The file is a sequence of segments: a header of 20 bytes (checksum, position in the log, how far
//! the log was durable) and messages (checksum, kind, three numbers of one to nine bytes, the first of
//! which is the length of the body, body). A message of kind [`CAP`] ends a segment early.
//!
//! A crash may tear what was not durable, so only the durable part is checked. Its end is known from
//! the segment headers and from `COMMITTED` (`commit_marker.rs`). A segment that was about to be
//! reused may be torn, too; it is taken for damage, at the cost of a rebuild.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::store::local::error::Failure;

pub(crate) const SEGMENT: usize = 512 << 10;
pub(crate) const SEGMENT_HEADER: usize = 20;
/// No message starts closer to the end of a segment.
const MESSAGE_HEADER: usize = 32;
const CAP: u8 = 2;
const KINDS: std::ops::RangeInclusive<u8> = 1..=11;

/// Whether every durable message is intact. `proven` is the durable position known from outside the
/// log, or 0.
pub(crate) fn is_whole(store: &Path, proven: u64) -> Result<bool, Failure> {
    let path = store.join("db");
    let unread = |error| Failure::Unread(format!("cannot read {}: {error}", path.display()));
    let (mut torn, mut durable, mut ends) = (None, proven, 0);
    let mut log = File::open(&path).map_err(unread)?;
    let mut segment = Vec::with_capacity(SEGMENT);
    loop {
        segment.clear();
        Read::by_ref(&mut log).take(SEGMENT as u64).read_to_end(&mut segment).map_err(unread)?;
        if segment.is_empty() {
            break;
        }
        if segment.iter().take(SEGMENT_HEADER).all(|byte| *byte == 0) {
            // Unused.
            continue;
        }
        let Some((begins, durable_to)) = header(&segment) else {
            return Ok(false);
        };
        durable = durable.max(durable_to);
        let tear = tear(&segment, begins / SEGMENT as u64);
        let end = begins.saturating_add(tear.unwrap_or(SEGMENT) as u64);
        ends = end.max(ends);
        if tear.is_some() {
            torn = torn.into_iter().chain([end]).min();
        }
    }
    Ok(durable <= ends && torn.is_none_or(|torn| durable <= torn))
}

/// The position of a segment in the log, and how far the log was durable when the segment was
/// started. `None` if the checksum is wrong.
pub(crate) fn header(segment: &[u8]) -> Option<(u64, u64)> {
    let (&sum, rest) = segment.split_first_chunk::<4>()?;
    let (&begins, rest) = rest.split_first_chunk::<8>()?;
    let (&last_durable, _) = rest.split_first_chunk::<8>()?;
    let number = |bytes| i64::from_le_bytes(bytes) ^ i64::MAX;
    let place = |number| u64::try_from(number).unwrap_or(0);
    let is = crc32fast::hash(segment.get(4..SEGMENT_HEADER)?);
    (is == !u32::from_le_bytes(sum)).then(|| {
        // sled stores the last durable byte, or -1.
        let durable = number(last_durable).saturating_add(1);
        (place(number(begins)), place(durable))
    })
}

/// The offset of the first damaged message.
fn tear(segment: &[u8], number: u64) -> Option<usize> {
    let mut at = SEGMENT_HEADER;
    while at + MESSAGE_HEADER <= SEGMENT {
        match message(segment.get(at..)?, number) {
            Some((CAP, _)) => return None,
            Some((_, bytes)) => at += bytes,
            None => return Some(at),
        }
    }
    None
}

/// Checks a message in the segment with this number. Returns its kind and total length.
fn message(bytes: &[u8], segment: u64) -> Option<(u8, usize)> {
    let (&sum, rest) = bytes.split_first_chunk::<4>()?;
    let (&kind, rest) = rest.split_first()?;
    let (length, rest) = number(rest)?;
    let (number_of_segment, rest) = number(rest)?;
    let (_page, rest) = number(rest)?;
    let header = bytes.get(4..bytes.len() - rest.len())?;
    let body = rest.get(..usize::try_from(length).ok()?)?;
    let mut is = crc32fast::Hasher::new();
    is.update(body);
    is.update(header);
    let intact = KINDS.contains(&kind)
        && number_of_segment == segment
        && !is.finalize() == u32::from_le_bytes(sum);
    intact.then_some((kind, 4 + header.len() + body.len()))
}

/// Decodes a number of one to nine bytes. Returns it and the rest.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let byte = |at: usize| rest.get(at).copied().map(u64::from);
    Some(match first {
        0..=240 => (first.into(), rest),
        241..=248 => (240 + 256 * (u64::from(first) - 241) + byte(0)?, rest.get(1..)?),
        249 => (2288 + 256 * byte(0)? + byte(1)?, rest.get(2..)?),
        250.. => {
            let (number, rest) = rest.split_at_checked(usize::from(first) - 247)?;
            (number.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), rest)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::local::integrity::commit_marker;
    use crate::store::local::tests::{accept, close, image, large, open};
    use crate::task::TaskId;

    /// A closed store with several segments, after two runs.
    fn closed_store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for start in 0..2 {
            let (opened, ..) = open(dir.path());
            for id in 1..=30 {
                let id = opened.next_id.0 + id;
                accept(&opened, &large(id, 100_000)).unwrap();
                if start == 0 || id % 3 > 0 {
                    opened.committer.remove(TaskId(id));
                }
            }
            close(opened);
        }
        dir
    }

    /// The numbers and bytes of the used segments, in the order of the log.
    fn segments(log: &[u8]) -> Vec<(usize, &[u8])> {
        let used = |segment: &[u8]| segment[..SEGMENT_HEADER] != [0; SEGMENT_HEADER];
        let mut segments: Vec<_> =
            log.chunks(SEGMENT).enumerate().filter(|(_, segment)| used(segment)).collect();
        segments.sort_by_key(|(_, segment)| header(segment).unwrap());
        segments
    }

    /// The end of a segment's messages.
    fn end(segment: &[u8]) -> usize {
        tear(segment, header(segment).unwrap().0 / SEGMENT as u64).unwrap_or(segment.len())
    }

    #[test]
    fn after_a_close_a_flipped_bit_in_any_segment_is_detected() {
        let dir = closed_store();
        let store = dir.path().join("store-000001");
        let proven = commit_marker::read(dir.path()).unwrap().durable(&store);
        let is_whole = || is_whole(&store, proven).unwrap();
        assert!(is_whole());
        let file = store.join("db");
        let intact = fs::read(&file).unwrap();
        let segments = segments(&intact);
        assert!(segments.len() > 4);
        for &(number, segment) in &segments {
            let last = end(segment) - 1;
            // No message fits into the rest of a full segment.
            let last = if SEGMENT - last < MESSAGE_HEADER { 100_000 } else { last };
            for at in [0, 5, 19, 20, 24, 25, 1_000, last / 2, last] {
                let at = at.min(last);
                let mut bytes = intact.clone();
                bytes[number * SEGMENT + at] ^= 1;
                fs::write(&file, bytes).unwrap();
                assert!(!is_whole(), "byte {at} of segment {number}");
            }
        }
        let &(number, last) = segments.last().unwrap();
        let mut bytes = intact.clone();
        bytes[number * SEGMENT..][..last.len()].fill(0);
        fs::write(&file, bytes).unwrap();
        assert!(!is_whole(), "without the last segment");
        // Garbage after the end is not damage.
        let mut bytes = intact.clone();
        bytes[number * SEGMENT + end(last)..][..last.len() - end(last)].fill(7);
        fs::write(&file, bytes).unwrap();
        assert!(is_whole());
    }

    #[test]
    fn after_a_kill_the_log_must_be_whole_up_to_the_last_commit_and_may_be_torn_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        for id in 1..=20 {
            accept(&opened, &large(opened.next_id.0 + id, 100_000)).unwrap();
        }
        let committed = image(dir.path());
        close(opened);
        let store = committed.path().join("store-000001");
        let proven = commit_marker::read(committed.path()).unwrap().durable(&store);
        let file = store.join("db");
        let intact = fs::read(&file).unwrap();
        let segments = segments(&intact);
        let &(number, last) = segments.last().unwrap();
        assert_eq!(proven, header(last).unwrap().0 + end(last) as u64);
        // By the log alone, all of the last segment could be torn.
        assert!(is_whole(&store, 0).unwrap() && is_whole(&store, proven).unwrap());
        let mut bytes = intact.clone();
        bytes[number * SEGMENT + end(last) - 1] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(is_whole(&store, 0).unwrap());
        assert!(!is_whole(&store, proven).unwrap());
        // A torn message after it.
        let mut bytes = intact.clone();
        bytes.truncate(number * SEGMENT + end(last));
        bytes.extend([1, 2, 3, 4, 5, 100]);
        fs::write(&file, &bytes).unwrap();
        assert!(is_whole(&store, proven).unwrap());
    }
}
