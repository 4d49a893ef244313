/* Statuses and errors of every function that can meet the outside world.
 *
 * A function returns an ifl_status and, through `ifl_error *err` (may be NULL), a text that says what,
 * where, wanted and got. A bug of ours is an IFL_ASSERT, which stays on in release builds. */
#ifndef IFL_COMMON_STATUS_H
#define IFL_COMMON_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IFL_STATUS_MAP(X)                                                                          \
    X(OK, "ok")                                                                                    \
    X(NOMEM, "out of memory")                                                                      \
    X(USAGE, "wrong usage")                                                                        \
    X(FORMAT, "malformed input")                                                                   \
    X(LIMIT, "limit exceeded")                                                                     \
    X(UNSUPPORTED, "not supported")                                                                \
    X(IO, "input/output error")                                                                    \
    X(NOTFOUND, "not found")                                                                       \
    X(FULL, "full")                                                                                \
    X(AGAIN, "try again")                                                                          \
    X(TIMEOUT, "deadline passed")                                                                  \
    X(PEER, "peer failed")                                                                         \
    X(STALE, "policy version too old")                                                             \
    X(MISMATCH, "mismatch")                                                                        \
    X(PARITY, "bits differ")                                                                       \
    X(AUTH, "not authorised")                                                                      \
    X(STOPPED, "stopped on request")                                                               \
    X(INTERNAL, "a fault of this program")

typedef enum {
#define IFL_STATUS_ENUM(name, text) IFL_##name,
    IFL_STATUS_MAP(IFL_STATUS_ENUM)
#undef IFL_STATUS_ENUM
        IFL_STATUS_COUNT
} ifl_status;

#define IFL_ERROR_TEXT_MAX 1024

/* Caller-owned, usually on the stack; zero-initialise it with {0}. */
typedef struct ifl_error {
    ifl_status status;
    char text[IFL_ERROR_TEXT_MAX];
} ifl_error;

/* A static text for a status, e.g. "malformed input". Never NULL. */
const char *ifl_status_text(ifl_status status);

/* Writes `status` and the formatted text into `err` (may be NULL) and returns `status`.
 * Texts longer than the buffer are cut. */
ifl_status ifl_fail(ifl_error *err, ifl_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "`context`: " before the text already in `err`; returns err's status (IFL_OK if err is NULL). */
ifl_status ifl_error_wrap(ifl_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The process's exit code for a status: 0 ok, 64 usage, 65 bad data, 69 peer, 74 I/O or no room, 75 retry or go on,
 * 77 keys refused, 70 else. */
int ifl_status_exit_code(ifl_status status);

/* Prints "file:line: assertion ... failed" and aborts: for our own bugs only, never for input. */
_Noreturn void ifl_assert_failed(const char *file, int line, const char *what);

#define IFL_ASSERT(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) ifl_assert_failed(__FILE__, __LINE__, #cond);                                 \
    } while (0)

/* Returns from the calling function when `expr` is not IFL_OK. */
#define IFL_TRY(expr)                                                                              \
    do {                                                                                           \
        ifl_status ifl_try_status = (expr);                                                        \
        if (ifl_try_status != IFL_OK) return ifl_try_status;                                       \
    } while (0)

/* Assigns the status of `expr` to `st` and jumps to `label` when it is not IFL_OK. */
#define IFL_TRY_GOTO(st, expr, label)                                                              \
    do {                                                                                           \
        (st) = (expr);                                                                             \
        if ((st) != IFL_OK) goto label;                                                            \
    } while (0)

#endif
