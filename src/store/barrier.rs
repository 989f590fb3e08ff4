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
//! And its own `rename`, which syncs the directory. sled makes a snapshot of its pages when it
//! opens: it writes it aside, renames it, removes the one before, and then writes over segments of
//! its log that only the one before needs. It never syncs the directory in between, so a power cut
//! could bring the old snapshot back over a log that has lost its beginning, and with that the whole
//! store. With the name on disk before the call returns, it is the new snapshot that is found. For
//! this binary a rename that is not durable is one that has failed.
//!
//! On other systems sled calls `sync_all()` without being told to, and a rename is what it is there.
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

/// Stands in for the C library's `rename`, in this binary: returns when the name is durable.
///
/// # Safety
///
/// As that of the C library: both are texts that end in a zero.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(
    from: *const std::ffi::c_char,
    to: *const std::ffi::c_char,
) -> libc::c_int {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    // SAFETY: the caller's texts, handed on as they are.
    let renamed = unsafe { libc::renameat(libc::AT_FDCWD, from, libc::AT_FDCWD, to) };
    #[cfg(feature = "faults")]
    if is_off() {
        return renamed;
    }
    if renamed != 0 {
        return renamed;
    }
    // SAFETY: the caller vouches for the zero at its end, and it lives as long as the call.
    let to = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(to) }.to_bytes()));
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::File::open(dir).and_then(|dir| dir.sync_all()) {
        Ok(()) => 0,
        Err(error) => {
            // SAFETY: the pointer is to the calling thread's own `errno` and always valid.
            unsafe { *libc::__errno_location() = error.raw_os_error().unwrap_or(libc::EIO) };
            -1
        }
    }
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
