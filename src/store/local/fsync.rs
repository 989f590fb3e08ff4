//! Makes sled wait for the disk, and write nothing after a read that failed: its own
//! `sync_file_range` and `pread64`.
//!
//! On Linux sled 0.34.7 makes its log stable with `sync_file_range(2)`. That call writes dirty
//! pages out but neither waits for the disk's volatile cache nor writes the file's metadata, so
//! what sled calls flushed can be gone after a power cut. This file therefore defines the symbol for
//! the whole binary: it is an `fsync` of the file, and notes which piece of the log that made durable
//! (`watched.rs`).
//!
//! sled reads its log with `pread64(2)`, through the standard library. Where that fails at a start,
//! sled takes it for the end of the log, cuts the log there, and writes on. So this file defines that
//! symbol too: a read of a store that fails ends the process (`watched.rs`), all others are what they
//! are. On 32-bit systems and with other C libraries than glibc it does not; there only what the
//! store has read for itself before sled does (`database.rs`) is found.
//!
//! That works by the order in which symbols are resolved: one defined in the program itself wins
//! over the C library's. [`check`] asks whether it did, through the very symbols that sled calls,
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

#[cfg(target_os = "linux")]
use std::os::fd::BorrowedFd;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "linux")]
use super::watched;

/// Stands in for the system call of this name, in this binary: returns when the file is durable.
///
/// Of no file, which is how [`check`] calls it, it answers as no kernel does that has the call.
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
    // SAFETY: the caller's own file, which it holds open for as long as this call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    watched::synced(file, offset.unsigned_abs(), bytes.unsigned_abs());
    0
}

/// Whether [`pread64`] was ever called.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
static READS_PASS: AtomicBool = AtomicBool::new(false);

/// Stands in for the C library's `pread64`, in this binary: does not return from a read of a store
/// that failed.
///
/// # Safety
///
/// As that of the C library.
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
    // The same function under its other name, as offsets have 64 bits here.
    // SAFETY: the caller's buffer, handed on as it is.
    let read = unsafe { libc::pread(fd, buffer, bytes, offset) };
    if read < 0 && fd >= 0 {
        let error = std::io::Error::last_os_error();
        let number = errno();
        if number != libc::EINTR {
            // SAFETY: the caller's own file, which it holds open for as long as this call.
            watched::read_failed(unsafe { BorrowedFd::borrow_raw(fd) }, offset, &error);
            set_errno(number);
        }
    }
    read
}

/// How long a line waits for the reader of standard error, in milliseconds.
#[cfg(target_os = "linux")]
const READER_MILLIS: libc::c_int = 1_000;

/// Writes a line to standard error, and ends the process at once with the code of a failure. A reader
/// that has stopped costs the line.
#[cfg(target_os = "linux")]
pub(super) fn end(line: &str) -> ! {
    let mut reader = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // A pipe takes so much at once or has no room.
    let bytes = line.len().min(libc::PIPE_BUF);
    // SAFETY: there is one entry, and the text is at least as long as it says. The last call runs
    // nothing of this process.
    unsafe {
        if libc::poll(&raw mut reader, 1, READER_MILLIS) > 0 {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), bytes);
        }
        libc::_exit(1)
    }
}

#[cfg(target_os = "linux")]
fn errno() -> libc::c_int {
    // SAFETY: the pointer is to the calling thread's own `errno` and always valid.
    unsafe { *libc::__errno_location() }
}

#[cfg(target_os = "linux")]
fn set_errno(number: libc::c_int) {
    // SAFETY: the pointer is to the calling thread's own `errno` and always valid.
    unsafe { *libc::__errno_location() = number };
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
    if renamed != 0 || is_off() {
        return renamed;
    }
    // SAFETY: the caller vouches for the zero at its end, and it lives as long as the call.
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

/// Whether a test has switched the barrier off.
#[cfg(all(feature = "faults", target_os = "linux"))]
fn is_off() -> bool {
    static OFF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("REPLICATOR_FAULT_BARRIER").is_some_and(|is| is == "off"))
}

#[cfg(all(not(feature = "faults"), target_os = "linux"))]
const fn is_off() -> bool {
    false
}

/// Whether sled's flushes reach the disk in this binary, and no read of its that fails does it
/// harm; where not, what is wrong.
#[cfg(target_os = "linux")]
pub(super) fn check() -> Result<(), String> {
    if is_off() {
        return Ok(());
    }
    // SAFETY: no memory is passed, and there is no file -1: the real call would fail with EBADF.
    let answer = unsafe { libc::sync_file_range(-1, 0, 0, 0) };
    let error = std::io::Error::last_os_error();
    if answer != -1 || error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(format!("sync_file_range (it answered {answer}, {error})"));
    }
    #[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
    if !READS_PASS.load(Ordering::Relaxed) {
        use std::os::unix::fs::FileExt;
        // As sled reads. What comes of it does not matter.
        let _ = std::fs::File::open("/dev/null").map(|file| file.read_at(&mut [0], 0));
        if !READS_PASS.load(Ordering::Relaxed) {
            return Err("pread64".to_owned());
        }
    }
    Ok(())
}

/// Whether sled's flushes reach the disk in this binary: they do, sled calls `sync_all()`.
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
