//! Version 3: the trees `replicas` and `idempotency`. The ledger counts the first, as its ninth and
//! tenth number: the number of rows and the wrapping sum of the CRC-32s in their bytes 1 to 4.
//!
//! The envelope of a task may be followed by more bytes from here on. Rows of version 2 stay valid
//! and are not changed.

pub(super) fn run(db: &sled::Db) -> sled::Result<()> {
    db.open_tree("idempotency")?;
    let (mut rows, mut sum) = (0u64, 0u64);
    for row in &db.open_tree("replicas")? {
        let (_, row) = row?;
        let checksum = row.get(1..5).and_then(|bytes| bytes.try_into().ok());
        rows = rows.wrapping_add(1);
        sum = sum.wrapping_add(checksum.map_or(0, u32::from_be_bytes).into());
    }
    let meta = db.open_tree("meta")?;
    let before = meta.get("ledger")?;
    // A frame of five bytes and eight numbers, or ten if this step has run before. Anything else is
    // damage, which the next reader reports.
    let Some(numbers) = before.as_ref().and_then(|row| row.get(5..69)) else {
        return Ok(());
    };
    let payload = [numbers, &rows.to_be_bytes(), &sum.to_be_bytes()].concat();
    let mut checksum = crc32fast::Hasher::new();
    for covered in [&b"\x01m"[..], b"ledger", &payload] {
        checksum.update(covered);
    }
    let row = [&[1][..], &checksum.finalize().to_be_bytes(), &payload].concat();
    meta.insert("ledger", row)?;
    Ok(())
}
