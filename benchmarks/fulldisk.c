/* A disk that fails at the nth call that writes: loaded with LD_PRELOAD by benchmarks/fulldisk.py.

   Counted are calls that need room or touch the medium, on files below the folder in FULLDISK_FOLDER; what makes room
   (unlink, rmdir) always goes well. The nth call fails, and where asked all that come after it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long failing; /* 0: none */
static int code, lasting;
static char failed[PATH_MAX + 64]; /* the first call that failed, and its file */

void fulldisk_set(long nth, int error, int all_later) {
    atomic_store(&calls, 0);
    failing = nth;
    code = error;
    lasting = all_later;
    failed[0] = 0;
}

long fulldisk_calls(void) { return atomic_load(&calls); }

const char *fulldisk_failed(void) { return failed; }

static int fails(const char *call, const char *path) {
    const char *folder = getenv("FULLDISK_FOLDER");
    size_t length = folder ? strlen(folder) : 0;
    if (!length || strncmp(path, folder, length) || path[length] != '/')
        return 0;
    long this = atomic_fetch_add(&calls, 1) + 1;
    if (!failing || this < failing || (this > failing && !lasting))
        return 0;
    if (!failed[0])
        snprintf(failed, sizeof failed, "%s %s", call, path);
    errno = code;
    return 1;
}

static int fails_at(const char *call, int fd, const char *path) {
    char link[64], whole[2 * PATH_MAX];
    ssize_t length = 0;
    if (path && path[0] == '/')
        return fails(call, path);
    if (fd == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX))
            return 0;
        length = strlen(whole);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        int kept = errno;
        length = readlink(link, whole, PATH_MAX - 1);
        errno = kept;
        if (length < 0)
            return 0;
    }
    whole[length] = 0;
    if (path)
        snprintf(whole + length, sizeof whole - length, "/%s", path);
    return fails(call, whole);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ON_FD(result, name, arguments, ...)                                                                            \
    result name arguments {                                                                                            \
        static __typeof__(&name) real;                                                                                 \
        if (!real)                                                                                                     \
            real = REAL(name);                                                                                         \
        return fails_at(#name, fd, NULL) ? -1 : real(__VA_ARGS__);                                                     \
    }

ON_FD(ssize_t, write, (int fd, const void *from, size_t n), fd, from, n)
ON_FD(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), fd, from, n, at)
ON_FD(ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at), fd, from, n, at)
ON_FD(ssize_t, writev, (int fd, const struct iovec *from, int n), fd, from, n)
ON_FD(int, ftruncate, (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, (int fd, off64_t size), fd, size)
ON_FD(int, fallocate, (int fd, int mode, off_t at, off_t size), fd, mode, at, size)
ON_FD(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), fd, mode, at, size)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)

int posix_fallocate(int fd, off_t at, off_t size) {
    return fails_at("posix_fallocate", fd, NULL) ? code : REAL(posix_fallocate)(fd, at, size);
}

ssize_t sendfile(int to, int from, off_t *at, size_t n);
ssize_t sendfile64(int to, int from, off64_t *at, size_t n);

ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    return fails_at("sendfile", to, NULL) ? -1 : REAL(sendfile)(to, from, at, n);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    return fails_at("sendfile", to, NULL) ? -1 : REAL(sendfile64)(to, from, at, n);
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t n, unsigned flags) {
    return fails_at("copy_file_range", to, NULL) ? -1 : REAL(copy_file_range)(from, at, to, where, n, flags);
}

#define OPENS(name, at)                                                                                                \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }                                                                                                                  \
    if ((flags & O_CREAT) && fails_at("open", at, path))                                                               \
        return -1;

int open(const char *path, int flags, ...) {
    OPENS(open, AT_FDCWD)
    return REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    OPENS(open64, AT_FDCWD)
    return REAL(open64)(path, flags, mode);
}

int openat(int fd, const char *path, int flags, ...) {
    OPENS(openat, fd)
    return REAL(openat)(fd, path, flags, mode);
}

int openat64(int fd, const char *path, int flags, ...) {
    OPENS(openat64, fd)
    return REAL(openat64)(fd, path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
    return strpbrk(mode, "wa+") && fails_at("fopen", AT_FDCWD, path) ? NULL : REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    return strpbrk(mode, "wa+") && fails_at("fopen", AT_FDCWD, path) ? NULL : REAL(fopen64)(path, mode);
}

int rename(const char *from, const char *to) {
    return fails_at("rename", AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}

int renameat(int at, const char *from, int fd, const char *to) {
    return fails_at("rename", fd, to) ? -1 : REAL(renameat)(at, from, fd, to);
}

int renameat2(int at, const char *from, int fd, const char *to, unsigned flags) {
    return fails_at("rename", fd, to) ? -1 : REAL(renameat2)(at, from, fd, to, flags);
}

int link(const char *from, const char *to) { return fails_at("link", AT_FDCWD, to) ? -1 : REAL(link)(from, to); }

int linkat(int at, const char *from, int fd, const char *to, int flags) {
    return fails_at("link", fd, to) ? -1 : REAL(linkat)(at, from, fd, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    return fails_at("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}

int mkdirat(int fd, const char *path, mode_t mode) {
    return fails_at("mkdir", fd, path) ? -1 : REAL(mkdirat)(fd, path, mode);
}
