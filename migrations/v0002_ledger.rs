//! Version 2: a row `ledger` in `meta` counts the rows and sums their checksums, so that lost rows
//! are detected.
//!
//! The row is a version byte, a CRC-32 and eight big endian numbers: the number of the commit (0
//! here, the next is 1), the highest task, then for `tasks`, `progress` and `dead_letters` the
//! number of rows and the wrapping sum of the CRC-32s in their bytes 1 to 4.

pub(super) fn run(db: &sled::Db) -> sled::Result<()> {
    let mut highest = 0;
    let mut numbers = Vec::new();
    for tree in ["tasks", "progress", "dead_letters"] {
        let (mut rows, mut sum) = (0u64, 0u64);
        for row in &db.open_tree(tree)? {
            let (key, row) = row?;
            if let Some(id) = key.first_chunk::<8>() {
                highest = highest.max(u64::from_be_bytes(*id));
            }
            let checksum = row.get(1..5).and_then(|bytes| bytes.try_into().ok());
            rows = rows.wrapping_add(1);
            sum = sum.wrapping_add(checksum.map_or(0, u32::from_be_bytes).into());
        }
        numbers.extend([rows, sum]);
    }
    let payload: Vec<u8> =
        [0, highest].into_iter().chain(numbers).flat_map(u64::to_be_bytes).collect();
    let mut checksum = crc32fast::Hasher::new();
    for covered in [&b"\x01m"[..], b"ledger", &payload] {
        checksum.update(covered);
    }
    let row = [&[1][..], &checksum.finalize().to_be_bytes(), &payload].concat();
    db.open_tree("meta")?.insert("ledger", row)?;
    Ok(())
}
