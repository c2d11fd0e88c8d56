/* Fails chosen calls on files below a directory: LD_PRELOAD of one process.
 *
 * FAULT_DIR    the directory
 * FAULT_AT     the first call that fails, counted from 1
 * FAULT_COUNT  how many fail from there on
 * FAULT_ERRNO  with which error
 * FAULT_FULL   if set, calls that write fail as long as this file exists
 * FAULT_SLOW   if set, each sync takes so many milliseconds
 * FAULT_TALLY  where the number of calls is written at the end
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static long calls;

static long number(const char *name, long absent) {
    const char *text = getenv(name);
    return text ? atol(text) : absent;
}

static int below(const char *path) {
    const char *dir = getenv("FAULT_DIR");
    return dir && path && strncmp(path, dir, strlen(dir)) == 0;
}

static int below_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Whether this call fails. */
static int strikes(int writes) {
    long call = __sync_add_and_fetch(&calls, 1);
    const char *full = getenv("FAULT_FULL");
    struct stat there;
    if (full && writes && stat(full, &there) == 0) {
        errno = ENOSPC;
        return 1;
    }
    long at = number("FAULT_AT", 0);
    if (at == 0 || call < at || call >= at + number("FAULT_COUNT", 1)) return 0;
    errno = (int)number("FAULT_ERRNO", EIO);
    return 1;
}

__attribute__((destructor)) static void tally(void) {
    const char *path = getenv("FAULT_TALLY");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld", calls);
        fclose(file);
    }
}

#define REAL(name) (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_FD(type, name, writes, arguments, ...)            \
    type name arguments {                                    \
        __typeof__(&name) real = REAL(name);                 \
        if (below_fd(fd) && strikes(writes)) return -1;      \
        return real(__VA_ARGS__);                            \
    }

ON_FD(ssize_t, pwrite, 1, (int fd, const void *from, size_t count, off_t at), fd, from, count, at)
ON_FD(ssize_t, pwrite64, 1, (int fd, const void *from, size_t count, off64_t at), fd, from, count, at)
ON_FD(ssize_t, pread, 0, (int fd, void *into, size_t count, off_t at), fd, into, count, at)
ON_FD(ssize_t, pread64, 0, (int fd, void *into, size_t count, off64_t at), fd, into, count, at)
ON_FD(ssize_t, write, 1, (int fd, const void *from, size_t count), fd, from, count)
ON_FD(int, ftruncate, 1, (int fd, off_t length), fd, length)
ON_FD(int, ftruncate64, 1, (int fd, off64_t length), fd, length)

static void take_time(void) {
    long slow = number("FAULT_SLOW", 0);
    struct timespec time = {slow / 1000, slow % 1000 * 1000000};
    if (slow) nanosleep(&time, NULL);
}

int fsync(int fd) {
    __typeof__(&fsync) real = REAL(fsync);
    if (below_fd(fd)) {
        take_time();
        if (strikes(0)) return -1;
    }
    return real(fd);
}

int fdatasync(int fd) {
    __typeof__(&fdatasync) real = REAL(fdatasync);
    if (below_fd(fd)) {
        take_time();
        if (strikes(0)) return -1;
    }
    return real(fd);
}

int rename(const char *from, const char *to) {
    __typeof__(&rename) real = REAL(rename);
    return below(from) && strikes(0) ? -1 : real(from, to);
}

int unlink(const char *path) {
    __typeof__(&unlink) real = REAL(unlink);
    return below(path) && strikes(0) ? -1 : real(path);
}

#define OPEN(name)                                           \
    int name(const char *path, int flags, ...) {             \
        int (*real)(const char *, int, ...) = REAL(name);    \
        va_list more;                                        \
        va_start(more, flags);                               \
        mode_t mode = va_arg(more, mode_t);                  \
        va_end(more);                                        \
        if (below(path) && strikes(0)) return -1;            \
        return real(path, flags, mode);                      \
    }
OPEN(open)
OPEN(open64)
