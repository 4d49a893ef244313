/* A checker of your own as a shared library. This header stands alone: copy it.
 *
 *     #include "plugin.h"
 *     static int check(void *state, const inflight_request *requests, inflight_result *results,
 *                      size_t n) { ... return 0; }
 *     const inflight_plugin_table inflight_plugin = {
 *         INFLIGHT_PLUGIN_ABI, sizeof(inflight_plugin_table), "mine", "1", 0, 0, 0, check, 0};
 *
 *     cc -shared -fPIC -O2 -o mine.so mine.c
 *
 * and in the configuration: reward: {checkers: {mine: {use: library, path: ./mine.so}}}
 *
 * The host loads it in worker processes, never in the actor: a crash or a call that takes too long
 * costs one answer, and a new worker takes over. Several workers load it, each for itself; a worker
 * calls it from one thread. It may print: all of it goes to the actor's log. C++ must not let an
 * exception out of these functions. */
#ifndef INFLIGHT_PLUGIN_H
#define INFLIGHT_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by what an older library would get wrong; a host refuses every other number. Fields may be
 * added at the end of a struct without it: `size` says how far the other side's goes. */
#define INFLIGHT_PLUGIN_ABI 1u
#define INFLIGHT_PLUGIN_SYMBOL "inflight_plugin"

/* Flag: the same request, but for its id and its deadline, has the same result. Verdicts may then
 * be kept for an answer that comes again. */
#define INFLIGHT_PLUGIN_PURE 1u

/* Verdicts train. The second group says that nobody knows how good the answer is: such an answer is
 * left out or tried again, and never counts as a zero. */
typedef enum {
    INFLIGHT_OK = 0, /* right, or as right as the reward says */
    INFLIGHT_WRONG = 6,
    INFLIGHT_NO_ANSWER = 7, /* nothing that could be the answer, or several */
    INFLIGHT_BAD_FORMAT = 8,

    INFLIGHT_UNDECIDED = 2,     /* beyond what this checker can tell */
    INFLIGHT_BAD_TASK = 3,      /* the task's gold answer or meta is malformed */
    INFLIGHT_CHECKER_ERROR = 4, /* the checker failed */
    INFLIGHT_UNAVAILABLE = 5    /* what it depends on cannot be reached */
} inflight_status;

typedef struct inflight_request {
    uint64_t size; /* of this struct; the next request lies that many bytes behind it */
    uint64_t id;
    const char *prompt;     /* texts end with a NUL */
    const char *completion; /* may hold NULs inside as well, and bytes that are no UTF-8 */
    uint64_t n_completion;  /* bytes, without the last NUL */
    const char *gold;
    const char *meta;    /* a JSON object: the task's meta over the checker's options */
    const char *finish;  /* "eos", "stop", "length" (cut by the token limit) or "aborted" */
    int64_t deadline_ms; /* from now; a call that takes longer is killed */
} inflight_request;

/* Comes zeroed but for size. `reward` lies in -1 .. 1, right is 1, and counts for verdicts only. */
typedef struct inflight_result {
    uint64_t size; /* as above */
    int32_t status;
    uint32_t n_components; /* at most 16 */
    double reward;
    int32_t tests_passed, tests_total;
    struct {
        char name[32]; /* ends with a NUL */
        double value;
    } components[16]; /* logged beside the reward */
    char info[512];   /* why there is no verdict; ends with a NUL */
} inflight_result;

typedef struct inflight_plugin_table {
    uint32_t abi_version;       /* INFLIGHT_PLUGIN_ABI */
    uint32_t size;              /* sizeof(inflight_plugin_table) */
    const char *name, *version; /* shown with every result, cut at 20 and 10 bytes */
    uint64_t flags;             /* 0, or INFLIGHT_PLUGIN_PURE */
    /* May be NULL. Once, before the first check. `options` is a JSON object. Not 0: the worker does
     * not start, and says what was written to `error` (a NUL-terminated text). */
    int (*create)(const char *options, void **state, char *error, size_t n_error);
    /* Judges n requests, n >= 1. Not 0: the check itself failed, all n are CHECKER_ERROR. */
    int (*check)(void *state, const inflight_request *requests, inflight_result *results, size_t n);
    void (*destroy)(void *state); /* may be NULL */
} inflight_plugin_table;

/* What the library exports; the rest of it may be hidden. */
extern const inflight_plugin_table inflight_plugin;

#ifdef __cplusplus
}
#endif
#endif
