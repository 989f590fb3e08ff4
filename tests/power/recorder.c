/* Preloaded into the daemon. Records every change below one directory, and makes calls fail on
 * request.
 *
 *   POWER_DIR      the directory, absolute and without symbolic links
 *   POWER_RECORD   the record, which is appended to; the test appends its own marks
 *   POWER_CONTROL  a file of 32-bit numbers, shared with the test; see `struct control`
 *
 * A lock is held from before a call until its entry is in the record, and an entry is appended in one
 * write. So the record is a total order: an fsync covers the entries before it, and a mark that is a
 * consequence of an entry comes after it.
 *
 * The process must not end between a call and its entry: the next one would build on a change that the
 * record lacks. An exit takes the lock. A test that kills sets `hold` and waits until `busy` is 0.
 *
 * There is no table of open files: each call asks the kernel for the file of its descriptor, which
 * costs a microsecond. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* A countdown is off at 0 and acts when it falls from 1. */
struct control {
    uint32_t kill;      /* changes until the process is killed */
    uint32_t fsync;     /* fsyncs until one fails */
    uint32_t write;     /* writes until one fails */
    uint32_t error;     /* the errno to fail with */
    uint32_t lasting;   /* not 0: all later calls fail too */
    uint32_t partial;   /* not 0: a failing write writes half, and the next one fails */
    uint32_t failed;    /* the number of failed calls */
    uint32_t bad_inode; /* not 0: the page at `bad_at` of this file is unreadable */
    uint32_t bad_at;
    uint32_t read;      /* reads until one fails */
    uint32_t busy;      /* a call is in progress and not recorded yet */
    uint32_t hold;      /* not 0: calls wait */
};

struct entry {
    uint8_t kind;
    uint8_t unused[3];
    uint32_t path, path2;       /* lengths; the paths follow, then the data */
    uint32_t data;
    uint64_t inode, offset;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int record = -1;
static char dir[PATH_MAX];
static size_t dir_length;
static struct control off, *control = &off;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("POWER_DIR"), *file = getenv("POWER_RECORD");
    if (!name || !file || strlen(name) >= sizeof dir) return;
    strcpy(dir, name);
    dir_length = strlen(dir);
    record = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const char *shared = getenv("POWER_CONTROL");
    if (!shared) return;
    int fd = syscall(SYS_openat, AT_FDCWD, shared, O_RDWR | O_CLOEXEC, 0);
    void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) control = at;
    /* A process that was killed in a call left it set. */
    control->busy = 0;
    syscall(SYS_close, fd);
}

static int below(const char *path) {
    return record >= 0 && !strncmp(path, dir, dir_length)
        && (path[dir_length] == '/' || path[dir_length] == 0);
}

/* Resolves `path` relative to `at`; 0 if it is not below the directory. */
static int named(int at, const char *path, char *full) {
    if (record < 0) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(full, path);
    } else {
        char link[64], base[PATH_MAX];
        if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
        if (snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return below(full);
}

/* Whether a descriptor is a file or directory below ours, and its inode. */
static int ours(int fd, uint64_t *inode) {
    struct stat at;
    char link[64], full[PATH_MAX];
    if (record < 0 || fstat(fd, &at) || !(S_ISREG(at.st_mode) || S_ISDIR(at.st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, full, sizeof full - 1);
    if (n < 0) return 0;
    full[n] = 0;
    *inode = at.st_ino;
    return below(full);
}

static void append(char kind, uint64_t inode, const char *path, const char *path2,
                   uint64_t offset, const void *data, size_t length) {
    int before = errno;
    struct entry e = { .kind = kind, .path = strlen(path), .path2 = strlen(path2),
                       .data = length, .inode = inode, .offset = offset };
    struct iovec parts[] = { { &e, sizeof e }, { (void *)path, e.path },
                             { (void *)path2, e.path2 }, { (void *)data, length } };
    ssize_t all = sizeof e + e.path + e.path2 + length;
    if (syscall(SYS_writev, record, parts, 4) != all) abort();
    if (control->kill && !--control->kill) syscall(SYS_kill, getpid(), SIGKILL);
    errno = before;
}

/* Counts down; whether this call must fail. */
static int fails(uint32_t *countdown) {
    if (!*countdown) return 0;
    if (*countdown > 1) return --*countdown, 0;
    if (!control->lasting) *countdown = 0;
    control->failed++;
    errno = control->error;
    return 1;
}

static void enter(void) {
    pthread_mutex_lock(&lock);
    for (;;) {
        __atomic_store_n(&control->busy, 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&control->hold, __ATOMIC_SEQ_CST)) return;
        __atomic_store_n(&control->busy, 0, __ATOMIC_SEQ_CST);
        pause();
    }
}

static void leave(void) {
    __atomic_store_n(&control->busy, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&lock);
}

#define LOCKED(type, ...) \
    enter(); \
    type answer; \
    __VA_ARGS__; \
    leave(); \
    return answer

__attribute__((noreturn)) void _exit(int code) {
    pthread_mutex_lock(&lock);
    syscall(SYS_exit_group, code);
    __builtin_unreachable();
}

/* Opening: records a creation or truncation. */
static int opened(int at, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !named(at, path, full))
        return syscall(SYS_openat, at, path, flags, mode);
    LOCKED(int, {
        int is_new = faccessat(AT_FDCWD, full, F_OK, 0) != 0;
        struct stat is;
        answer = syscall(SYS_openat, at, path, flags, mode);
        if (answer >= 0 && !fstat(answer, &is)) {
            if (is_new) append('C', is.st_ino, full, "", 0, "", 0);
            else if (flags & O_TRUNC) append('T', is.st_ino, "", "", 0, "", 0);
        }
    });
}

#define MODE(flags) mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *p, int flags, ...) { MODE(flags) return opened(AT_FDCWD, p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE(flags) return opened(AT_FDCWD, p, flags, mode); }
int openat(int at, const char *p, int flags, ...) { MODE(flags) return opened(at, p, flags, mode); }
int openat64(int at, const char *p, int flags, ...) { MODE(flags) return opened(at, p, flags, mode); }

/* Writing. A negative offset means the position of the descriptor. */
static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset) {
    uint64_t inode;
    if (!ours(fd, &inode))
        return offset < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev, fd, parts, count, offset, offset >> 32);
    size_t length = 0;
    for (int n = 0; n < count; n++) length += parts[n].iov_len;
    char *data = malloc(length + 1);
    if (!data) abort();
    length = 0;
    for (int n = 0; n < count; n++) {
        memcpy(data + length, parts[n].iov_base, parts[n].iov_len);
        length += parts[n].iov_len;
    }
    LOCKED(ssize_t, {
        int is_whole = 1;
        if (control->partial && control->write == 1 && length > 1) {
            control->partial = 0;
            length /= 2;
            is_whole = 0;
        }
        if (is_whole && fails(&control->write)) {
            answer = -1;
        } else {
            off_t end = offset;
            if (fcntl(fd, F_GETFL) & O_APPEND) {
                struct stat is;
                if (fstat(fd, &is)) abort();
                end = is.st_size;
            } else if (offset < 0) {
                end = lseek(fd, 0, SEEK_CUR);
            }
            answer = offset < 0 ? syscall(SYS_write, fd, data, length)
                                : syscall(SYS_pwrite64, fd, data, length, offset);
            if (answer > 0) append('W', inode, "", "", end, data, answer);
        }
        free(data);
    });
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = { (void *)data, length };
    return written(fd, &part, 1, -1);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec part = { (void *)data, length };
    return written(fd, &part, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t o) { return pwrite(fd, data, length, o); }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t o) { return written(fd, parts, n, o); }
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t o) { return written(fd, parts, n, o); }

int ftruncate(int fd, off_t length) {
    uint64_t inode;
    if (!ours(fd, &inode)) return syscall(SYS_ftruncate, fd, length);
    LOCKED(int, {
        answer = fails(&control->write) ? -1 : syscall(SYS_ftruncate, fd, length);
        if (!answer) append('T', inode, "", "", length, "", 0);
    });
}
int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }

/* Only the mode that extends a file. */
int fallocate(int fd, int mode, off_t offset, off_t length) {
    uint64_t inode;
    struct stat is;
    if (!ours(fd, &inode)) return syscall(SYS_fallocate, fd, mode, offset, length);
    if (mode) abort();
    LOCKED(int, {
        answer = fails(&control->write) ? -1 : syscall(SYS_fallocate, fd, mode, offset, length);
        if (!answer && !fstat(fd, &is)) append('T', inode, "", "", is.st_size, "", 0);
    });
}
int fallocate64(int fd, int mode, off_t o, off_t length) { return fallocate(fd, mode, o, length); }
int posix_fallocate(int fd, off_t o, off_t length) { return fallocate(fd, 0, o, length) ? errno : 0; }
int posix_fallocate64(int fd, off_t o, off_t length) { return posix_fallocate(fd, o, length); }

/* A failed fsync is recorded too: its data may never reach the disk. */
static int synced(int fd, long call) {
    uint64_t inode;
    if (!ours(fd, &inode)) return syscall(call, fd);
    LOCKED(int, {
        answer = fails(&control->fsync) ? -1 : syscall(call, fd);
        append(answer ? 'E' : 'F', inode, "", "", 0, "", 0);
    });
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* Reads are not recorded; they only fail. A negative offset means the position of the descriptor. */
static ssize_t got(int fd, void *data, size_t length, off_t offset) {
    uint64_t inode;
    if (control->read && ours(fd, &inode)) {
        pthread_mutex_lock(&lock);
        int failed = fails(&control->read);
        pthread_mutex_unlock(&lock);
        if (failed) return -1;
    }
    if (control->bad_inode && ours(fd, &inode)) {
        off_t at = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset, bad = control->bad_at;
        if ((uint32_t)inode == control->bad_inode && at < bad + 4096 && at + (off_t)length > bad) {
            /* Like the kernel, return the bytes before the bad page first. */
            if (at >= bad) return control->failed++, errno = control->error, -1;
            length = bad - at;
        }
    }
    return offset < 0 ? syscall(SYS_read, fd, data, length)
                      : syscall(SYS_pread64, fd, data, length, offset);
}
ssize_t read(int fd, void *data, size_t length) { return got(fd, data, length, -1); }
ssize_t pread64(int fd, void *data, size_t length, off_t at) { return got(fd, data, length, at); }
ssize_t pread(int fd, void *data, size_t length, off_t at) { return got(fd, data, length, at); }

/* Names. */
static int linked(char kind, long call, int at, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    int is_ours = named(at, path, full);
    enter();
    struct stat is = { 0 };
    int answer = kind == 'D' ? syscall(call, at, path, mode) : syscall(call, at, path, flags);
    if (!answer && is_ours) {
        if (kind == 'D' && stat(full, &is)) abort();
        append(kind, is.st_ino, full, "", 0, "", 0);
    }
    leave();
    return answer;
}
int mkdir(const char *p, mode_t mode) { return linked('D', SYS_mkdirat, AT_FDCWD, p, 0, mode); }
int mkdirat(int at, const char *p, mode_t mode) { return linked('D', SYS_mkdirat, at, p, 0, mode); }
int unlink(const char *p) { return linked('U', SYS_unlinkat, AT_FDCWD, p, 0, 0); }
int unlinkat(int at, const char *p, int flags) { return linked('U', SYS_unlinkat, at, p, flags, 0); }
int rmdir(const char *p) { return linked('U', SYS_unlinkat, AT_FDCWD, p, AT_REMOVEDIR, 0); }

static int renamed(int at, const char *from, int to_at, const char *to, unsigned flags) {
    char full[PATH_MAX], to_full[PATH_MAX];
    int is_ours = named(at, from, full) | named(to_at, to, to_full) << 1;
    if (is_ours && (flags || is_ours != 3)) abort();
    enter();
    int answer = syscall(SYS_renameat2, at, from, to_at, to, flags);
    if (!answer && is_ours) append('R', 0, full, to_full, 0, "", 0);
    leave();
    return answer;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return renamed(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned f) { return renamed(a, from, b, to, f); }

/* Calls that the test cannot replay abort. */
void *mmap64(void *at, size_t length, int prot, int flags, int fd, off_t offset) {
    uint64_t inode;
    if (fd >= 0 && (flags & MAP_SHARED) && (prot & PROT_WRITE) && ours(fd, &inode)) abort();
    return (void *)syscall(SYS_mmap, at, length, prot, flags, fd, offset);
}
int link(const char *from, const char *to) {
    char full[PATH_MAX];
    if (named(AT_FDCWD, to, full)) abort();
    return syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}
