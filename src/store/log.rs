//! Whether sled's log is whole, looked at before sled opens it.
//!
//! sled takes a damaged message in its log for the end of that segment and drops the rest of it in
//! silence; the segments behind it are read. So some of its pages are older than others, and every
//! row can be there all the same: until two such pages are merged or split, and rows are lost or
//! come back. Only the log tells.
//!
//! The file is a row of segments, and a segment is 20 bytes of its own (a checksum, its place in the
//! log, and how far that was durable) and messages: a checksum, a kind, three numbers of one to nine
//! bytes, of which the first is its length, and so many bytes. One of a certain kind fills a segment
//! up. What was not durable may be cut by any crash, and so may a segment that was about to be used
//! again; that is no damage, but taken for some, which costs no more than a fresh store.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::Failure;

const SEGMENT: usize = 512 << 10;
const SEGMENT_HEADER: usize = 20;
/// Behind the last place where a message can begin.
const MESSAGE_HEADER: usize = 32;
/// The kind of message that fills a segment up.
const CAP: u8 = 2;
const KINDS: std::ops::RangeInclusive<u8> = 1..=11;

/// Whether each message that was made durable is what was written.
pub(super) fn is_whole(store: &Path) -> Result<bool, Failure> {
    let path = store.join("db");
    let unread = |error| Failure::Unread(format!("cannot read {}: {error}", path.display()));
    let (mut torn, mut durable) = (None, 0);
    let mut log = File::open(&path).map_err(unread)?;
    let mut segment = Vec::with_capacity(SEGMENT);
    loop {
        segment.clear();
        Read::by_ref(&mut log).take(SEGMENT as u64).read_to_end(&mut segment).map_err(unread)?;
        if segment.is_empty() {
            break;
        }
        if segment.iter().take(SEGMENT_HEADER).all(|byte| *byte == 0) {
            // Not in use yet, or not any more.
            continue;
        }
        let Some((begins, durable_to)) = header(&segment) else {
            return Ok(false);
        };
        durable = durable.max(durable_to);
        if let Some(at) = tear(&segment, begins / SEGMENT as u64) {
            torn = torn.into_iter().chain([begins.saturating_add(at as u64)]).min();
        }
    }
    Ok(torn.is_none_or(|torn| torn > durable))
}

/// Where a segment begins in the log, and up to where that was durable when it was begun. `None` if
/// its checksum is wrong.
fn header(segment: &[u8]) -> Option<(u64, u64)> {
    let (&sum, rest) = segment.split_first_chunk::<4>()?;
    let (&begins, rest) = rest.split_first_chunk::<8>()?;
    let (&durable, _) = rest.split_first_chunk::<8>()?;
    let number = |bytes| u64::try_from(i64::from_le_bytes(bytes) ^ i64::MAX).unwrap_or(0);
    let is = crc32fast::hash(segment.get(4..SEGMENT_HEADER)?);
    (is == !u32::from_le_bytes(sum)).then(|| (number(begins), number(durable)))
}

/// Where the first message begins that is not what was written.
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

/// The kind of a message in the segment with this number, and its length with all.
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
    let well = KINDS.contains(&kind)
        && number_of_segment == segment
        && !is.finalize() == u32::from_le_bytes(sum);
    well.then_some((kind, 4 + header.len() + body.len()))
}

/// A number as sled writes it, and what follows.
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
    use crate::store::tests::{accept, close, large, open};
    use crate::task::TaskId;

    #[test]
    fn a_flipped_bit_in_what_was_durable_is_noticed_and_a_cut_of_what_was_not_is_none() {
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
            assert!(is_whole(&dir.path().join("store-000001")).unwrap());
        }
        let store = dir.path().join("store-000001");
        let file = store.join("db");
        let well = fs::read(&file).unwrap();
        let newest = |segment: &&[u8]| header(segment).unwrap_or_default().0;
        let segments: Vec<_> = well.chunks(SEGMENT).collect();
        assert!(segments.len() > 4);
        let last = segments.iter().copied().max_by_key(newest).unwrap();
        for (number, segment) in segments.into_iter().enumerate() {
            if segment == last || segment[..SEGMENT_HEADER] == [0; SEGMENT_HEADER] {
                continue;
            }
            for at in [0, 5, 19, 20, 24, 25, 1_000, 100_000] {
                let mut bytes = well.clone();
                bytes[number * SEGMENT + at] ^= 1;
                fs::write(&file, bytes).unwrap();
                assert!(!is_whole(&store).unwrap(), "byte {at} of segment {number}");
            }
        }
        // Where the last segment ends, there is nothing yet, or what was there before.
        let begins = well.chunks(SEGMENT).position(|segment| segment == last).unwrap() * SEGMENT;
        let ends = begins + tear(last, newest(&last) / SEGMENT as u64).unwrap();
        let mut bytes = well.clone();
        bytes[ends..begins + last.len()].fill(7);
        fs::write(&file, bytes).unwrap();
        assert!(is_whole(&store).unwrap());
    }
}
