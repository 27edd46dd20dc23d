/* Counts this process's changes of files below one folder, and at a chosen one kills the process, sends it a
 * signal, or lets the disk be full from there on. Preloaded (LD_PRELOAD); does nothing until arm() is called or
 * FILE_FAULTS says "ROOT LOG AT ACTION". The log gets a line "PID NUMBER OPERATION PATH" for each change, written
 * before it happens, and "PID NUMBER done" behind each rename. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, KILL_HALFWAY, FULL, SIGNAL }; /* SIGNAL + n sends signal n */

static char root[PATH_MAX];
static size_t root_length; /* 0: not armed */
static int log_file = -1, action;
static long at, counted;
static volatile int full;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

void arm(const char *folder, const char *log, long number, int what)
{
    root_length = 0;
    if (log_file >= 0) syscall(SYS_close, log_file);
    log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    snprintf(root, sizeof root, "%s", folder);
    at = number, action = what, counted = 0, full = 0;
    root_length = strlen(root);
}

__attribute__((constructor)) static void arm_from_environment(void)
{
    static char folder[PATH_MAX], log[PATH_MAX];
    long number;
    int what;
    const char *asked = getenv("FILE_FAULTS");
    if (asked && sscanf(asked, "%4095s %4095s %ld %d", folder, log, &number, &what) == 4)
        arm(folder, log, number, what);
}

static int below(const char *path)
{
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static const char *path_of(int file, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *absolute(int folder, const char *name, char *path)
{
    if (name[0] == '/') return name;
    char beginning[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(beginning, sizeof beginning)) beginning[0] = 0;
    } else
        path_of(folder, beginning);
    snprintf(path, PATH_MAX, "%.*s/%s", PATH_MAX / 2, beginning, name);
    return path;
}

static void note(long number, const char *operation, const char *path)
{
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%d %ld %s %s\n", getpid(), number, operation, path);
    syscall(SYS_write, log_file, line, length);
}

/* What becomes of the next change: 0 it happens, ENOSPC it fails, -1 half of it happens and then what `action`
 * says. `needs_room`: whether a full disk lets it fail. */
static int next(const char *operation, const char *path, int needs_room)
{
    if (!below(path)) return 0;
    int before = errno;
    long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    note(number, operation, path);
    errno = before;
    if (number == at && action == KILL) kill(getpid(), SIGKILL);
    if (number == at && action > SIGNAL) raise(action - SIGNAL);
    if (number == at && action == KILL_HALFWAY) {
        if (!strcmp(operation, "write")) return -1;
        kill(getpid(), SIGKILL);
    }
    if (action == FULL && needs_room && number >= at && at) {
        if (!full++ && !strcmp(operation, "write")) return -1;
        return ENOSPC;
    }
    return 0;
}

static void renamed(const char *path)
{
    if (below(path)) note(counted, "done", path);
}

static int refused(int reason)
{
    errno = reason;
    return -1;
}

/* write() and its kin: halfway, half of the bytes are written. */
#define WRITE(name, arguments, half, call) \
    ssize_t name arguments \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        int fate = root_length ? next("write", path_of(file, path), 1) : 0; \
        if (fate > 0) return refused(fate); \
        if (fate < 0) half; \
        ssize_t written = call; \
        if (fate < 0 && action == KILL_HALFWAY) kill(getpid(), SIGKILL); \
        return written; \
    }

WRITE(write, (int file, const void *bytes, size_t n), n /= 2, real(file, bytes, n))
WRITE(pwrite, (int file, const void *bytes, size_t n, off_t offset), n /= 2, real(file, bytes, n, offset))
WRITE(pwrite64, (int file, const void *bytes, size_t n, off64_t offset), n /= 2, real(file, bytes, n, offset))
WRITE(writev, (int file, const struct iovec *parts, int n), n /= 2, n ? real(file, parts, n) : 0)

#define CREATES(flags) ((flags) & O_CREAT)
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))

#define OPEN(name, declared, folder, passed) \
    int name declared \
    { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        char path[PATH_MAX]; \
        if (root_length && CHANGES(flags)) { \
            const char *which = absolute(folder, name_, path); \
            int fate = next("open", which, CREATES(flags) && access(which, F_OK)); \
            if (fate > 0) return refused(fate); \
        } \
        return real passed; \
    }

OPEN(open, (const char *name_, int flags, ...), AT_FDCWD, (name_, flags, mode))
OPEN(open64, (const char *name_, int flags, ...), AT_FDCWD, (name_, flags, mode))
OPEN(openat, (int folder, const char *name_, int flags, ...), folder, (folder, name_, flags, mode))
OPEN(openat64, (int folder, const char *name_, int flags, ...), folder, (folder, name_, flags, mode))

#define FOPEN(name) \
    FILE *name(const char *name_, const char *mode) \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (root_length && strpbrk(mode, "wa")) { \
            const char *which = absolute(AT_FDCWD, name_, path); \
            int fate = next("open", which, access(which, F_OK)); \
            if (fate > 0) return refused(fate), NULL; \
        } \
        return real(name_, mode); \
    }

FOPEN(fopen)
FOPEN(fopen64)

#define ON_FILE(name, arguments, needs_room, passed) \
    int name arguments \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        int fate = root_length ? next(#name, path_of(file, path), needs_room) : 0; \
        return fate > 0 ? refused(fate) : real passed; \
    }

ON_FILE(ftruncate, (int file, off_t length), length > 0, (file, length))
ON_FILE(ftruncate64, (int file, off64_t length), length > 0, (file, length))
ON_FILE(fsync, (int file), 1, (file))

#define ON_NAME(name, arguments, folder, needs_room, passed) \
    int name arguments \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        int fate = root_length ? next(#name, absolute(folder, name_, path), needs_room) : 0; \
        return fate > 0 ? refused(fate) : real passed; \
    }

ON_NAME(unlink, (const char *name_), AT_FDCWD, 0, (name_))
ON_NAME(unlinkat, (int folder, const char *name_, int flags), folder, 0, (folder, name_, flags))
ON_NAME(rmdir, (const char *name_), AT_FDCWD, 0, (name_))
ON_NAME(mkdir, (const char *name_, mode_t mode), AT_FDCWD, 1, (name_, mode))
ON_NAME(mkdirat, (int folder, const char *name_, mode_t mode), folder, 1, (folder, name_, mode))

#define RENAME(name, arguments, folder, passed) \
    int name arguments \
    { \
        REAL(name); \
        char path[PATH_MAX]; \
        const char *which = root_length ? absolute(folder, to, path) : ""; \
        int fate = next("rename", which, 0); \
        int status = fate > 0 ? refused(fate) : real passed; \
        if (!status) renamed(which); \
        return status; \
    }

RENAME(rename, (const char *from, const char *to), AT_FDCWD, (from, to))
RENAME(renameat, (int folder, const char *from, int other, const char *to), other, (folder, from, other, to))
