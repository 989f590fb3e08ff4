//! Replaces three C library functions for the whole binary, to make sled safe on Linux.
//!
//! - `sync_file_range`: sled 0.34.7 syncs its log with this call, which flushes neither the disk's
//!   volatile cache nor the file's metadata. The replacement is an `fsync`, and records which piece
//!   of the log is durable (`watched.rs`).
//! - `pread64` (64-bit glibc only): sled takes a failed read of its log at a start for the end of the
//!   log and cuts it there. In the replacement a failed read of a store ends the process.
//! - `rename`: when opening, sled renames a new snapshot, removes the old one, and reuses log segments
//!   that only the old one needs, without syncing the directory. A power cut could bring the old
//!   snapshot back and lose the store. The replacement syncs the directory, or fails.
//!
//! A symbol of the program takes precedence over the C library's. [`check`] verifies that; otherwise
//! no store is opened. On other systems nothing is replaced, because sled calls `sync_all()`.
//!
//! With the feature `faults`, `REPLICATOR_FAULT_BARRIER=off` disables the sync. The power-loss suite
//! must then find losses, which proves that it can.

#![cfg_attr(
    target_os = "linux",
    expect(
        unsafe_code,
        reason = "defines and calls symbols of the C library, which has no safe form"
    )
)]

#[cfg(target_os = "linux")]
use std::os::fd::BorrowedFd;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "linux")]
use super::watched;

/// Returns when the file is durable. For the descriptor -1, which [`check`] passes, it fails with
/// an error that the real call cannot return.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(
    fd: libc::c_int,
    offset: libc::off64_t,
    bytes: libc::off64_t,
    _flags: libc::c_uint,
) -> libc::c_int {
    if fd < 0 {
        set_errno(libc::ENOSYS);
        return -1;
    }
    #[cfg(feature = "faults")]
    crate::faults::hang();
    if !is_off() {
        // SAFETY: no memory is passed.
        while unsafe { libc::fsync(fd) } != 0 {
            if errno() != libc::EINTR {
                return -1;
            }
        }
    }
    // SAFETY: the caller's file stays open during this call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    watched::synced(file, offset.unsigned_abs(), bytes.unsigned_abs());
    0
}

/// Set by the first call of [`pread64`].
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
static READS_PASS: AtomicBool = AtomicBool::new(false);

/// Does not return from a failed read of a store.
///
/// # Safety
///
/// As for the C library's function.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(
    fd: libc::c_int,
    buffer: *mut std::ffi::c_void,
    bytes: libc::size_t,
    offset: libc::off64_t,
) -> libc::ssize_t {
    if !READS_PASS.load(Ordering::Relaxed) {
        READS_PASS.store(true, Ordering::Relaxed);
    }
    // `pread` is the same function here, because offsets have 64 bits.
    // SAFETY: the caller's arguments are passed on unchanged.
    let read = unsafe { libc::pread(fd, buffer, bytes, offset) };
    if read < 0 && fd >= 0 {
        let error = std::io::Error::last_os_error();
        let number = errno();
        if number != libc::EINTR {
            // SAFETY: the caller's file stays open during this call.
            let line = watched::read_failed(unsafe { BorrowedFd::borrow_raw(fd) }, offset, &error);
            if let Some(line) = line {
                end(&line);
            }
            set_errno(number);
        }
    }
    read
}

/// How long to wait for the reader of standard error, in milliseconds.
#[cfg(target_os = "linux")]
const READER_MILLIS: libc::c_int = 1_000;

/// Writes a line to standard error and exits with 1 at once, like a kill. It does not use the log,
/// whose thread may be waiting for this one. If the reader has stopped, the line is dropped.
#[cfg(target_os = "linux")]
fn end(line: &str) -> ! {
    let mut reader = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // A pipe accepts this much atomically.
    let bytes = line.len().min(libc::PIPE_BUF);
    // SAFETY: `reader` is one entry, and `line` holds at least `bytes` bytes. `_exit` runs no code of
    // this process.
    unsafe {
        if libc::poll(&raw mut reader, 1, READER_MILLIS) > 0 {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), bytes);
        }
        libc::_exit(1)
    }
}

#[cfg(target_os = "linux")]
fn errno() -> libc::c_int {
    // SAFETY: the pointer to the calling thread's `errno` is always valid.
    unsafe { *libc::__errno_location() }
}

#[cfg(target_os = "linux")]
fn set_errno(number: libc::c_int) {
    // SAFETY: the pointer to the calling thread's `errno` is always valid.
    unsafe { *libc::__errno_location() = number };
}

/// Returns when the new name is durable.
///
/// # Safety
///
/// As for the C library's function: both paths are terminated by a zero byte.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(
    from: *const std::ffi::c_char,
    to: *const std::ffi::c_char,
) -> libc::c_int {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    // SAFETY: the caller's arguments are passed on unchanged.
    let renamed = unsafe { libc::renameat(libc::AT_FDCWD, from, libc::AT_FDCWD, to) };
    if renamed != 0 || is_off() {
        return renamed;
    }
    // SAFETY: the caller guarantees the terminating zero, and the path outlives this call.
    let to = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(to) }.to_bytes()));
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::File::open(dir).and_then(|dir| dir.sync_all()) {
        Ok(()) => 0,
        Err(error) => {
            set_errno(error.raw_os_error().unwrap_or(libc::EIO));
            -1
        }
    }
}

/// Whether a test has disabled the sync.
#[cfg(all(feature = "faults", target_os = "linux"))]
fn is_off() -> bool {
    static OFF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("REPLICATOR_FAULT_BARRIER").is_some_and(|is| is == "off"))
}

#[cfg(all(not(feature = "faults"), target_os = "linux"))]
const fn is_off() -> bool {
    false
}

/// Verifies that the replacements are in effect. The error names a function that is not replaced.
#[cfg(target_os = "linux")]
pub(super) fn check() -> Result<(), String> {
    if is_off() {
        return Ok(());
    }
    // SAFETY: no memory is passed. The real call fails with EBADF.
    let answer = unsafe { libc::sync_file_range(-1, 0, 0, 0) };
    let error = std::io::Error::last_os_error();
    if answer != -1 || error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(format!("sync_file_range (it returned {answer}, {error})"));
    }
    #[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
    if !READS_PASS.load(Ordering::Relaxed) {
        use std::os::unix::fs::FileExt;
        // Reads as sled does. The result does not matter.
        let _ = std::fs::File::open("/dev/null").map(|file| file.read_at(&mut [0], 0));
        if !READS_PASS.load(Ordering::Relaxed) {
            return Err("pread64".to_owned());
        }
    }
    Ok(())
}

/// sled calls `sync_all()` itself.
#[cfg(not(target_os = "linux"))]
pub(super) fn check() -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn sled_syncs_and_reads_through_the_functions_of_this_binary() {
        super::check().unwrap();
    }
}
