//! Makes sled wait for the disk: its own `sync_file_range`, which sends sled to `fsync`.
//!
//! On Linux sled 0.34.7 makes its log stable with `sync_file_range(2)`. That call writes dirty
//! pages out but neither waits for the disk's volatile cache nor writes the file's metadata, so
//! what sled calls flushed can be gone after a power cut. Where the call fails with `ENOSYS`, as
//! on kernels that lack it, sled falls back to `sync_all()` by itself. This file therefore
//! defines the symbol for the whole binary: it always answers `ENOSYS`.
//!
//! That works by the order in which symbols are resolved: one defined in the program itself wins
//! over the C library's. [`check`] asks whether it did, through the very symbol that sled calls,
//! and no store is opened where it did not.
//!
//! On other systems sled calls `sync_all()` without being told to.
//!
//! With the feature `faults`, which no build that ships has, the environment variable
//! `REPLICATOR_FAULT_BARRIER=off` makes the call succeed and do nothing. The power-loss suite then
//! has to find what is lost; a suite that does not would prove nothing by passing.

#![cfg_attr(
    target_os = "linux",
    expect(
        unsafe_code,
        reason = "a symbol of the C library is defined and called; there is no safe way to either"
    )
)]

/// Stands in for the system call of this name, in this binary: not implemented.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(
    _fd: libc::c_int,
    _offset: libc::off64_t,
    _nbytes: libc::off64_t,
    _flags: libc::c_uint,
) -> libc::c_int {
    #[cfg(feature = "faults")]
    if is_off() {
        return 0;
    }
    // SAFETY: the pointer is to the calling thread's own `errno` and always valid.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// Whether a test has switched the barrier off.
#[cfg(all(feature = "faults", target_os = "linux"))]
fn is_off() -> bool {
    static OFF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("REPLICATOR_FAULT_BARRIER").is_some_and(|is| is == "off"))
}

/// Whether sled's flushes reach the disk in this binary; where not, what answered instead.
#[cfg(target_os = "linux")]
pub(super) fn check() -> Result<(), String> {
    #[cfg(feature = "faults")]
    if is_off() {
        return Ok(());
    }
    // SAFETY: no memory is passed, and there is no file -1: the real call would fail with EBADF.
    let answer = unsafe { libc::sync_file_range(-1, 0, 0, 0) };
    let error = std::io::Error::last_os_error();
    if answer == -1 && error.raw_os_error() == Some(libc::ENOSYS) {
        return Ok(());
    }
    Err(format!("it answered {answer} ({error})"))
}

/// Whether sled's flushes reach the disk in this binary: they do, sled calls `sync_all()`.
#[cfg(not(target_os = "linux"))]
pub(super) fn check() -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn sled_is_told_that_sync_file_range_does_not_exist() {
        super::check().unwrap();
    }
}
