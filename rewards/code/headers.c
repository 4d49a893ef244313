/* The C++ library's headers, compiled once for the worker's sandbox: half of the time that a short
 * program takes to compile goes into them. That takes seconds, so it happens beside the answers,
 * once a few have included <bits/stdc++.h>; until it is done they are compiled as they are. Only
 * text of ours goes into it. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "rewards/code/code.h"

#define HEADERS_MS 120000
#define HEADERS_AFTER 3 /* sources that wanted them */
#define HEADERS_MEMORY ((uint64_t)2 << 30)

typedef enum { HEADERS_NONE, HEADERS_MAKING, HEADERS_READY, HEADERS_FAILED } headers_state;

static atomic_int headers;
static int n_wanted; /* the checker's thread's alone */
static pthread_t headers_thread;
static ifl_sandbox *headers_sandbox;

static void *headers_make(void *arg) {
    static const char text[] = "#include <bits/stdc++.h>\n";
    (void)arg;
    ifl_sandbox_spec spec = {.argv = {"/bin/sh", "-c",
                                      "mkdir /keep/bits && nice -n 19 " CODE_CPP
                                      " -x c++-header -o /keep/bits/new all.h && "
                                      "mv /keep/bits/new /keep/bits/stdc++.h.gch"},
                             .limits = ifl_sandbox_limits_default(),
                             .n_files = 1,
                             .files = {{"all.h", text, sizeof text - 1, false}},
                             .keep = true};
    spec.limits.wall_ms = spec.limits.cpu_ms = HEADERS_MS;
    spec.limits.memory_bytes = HEADERS_MEMORY;
    spec.limits.disk_bytes = IFL_SANDBOX_KEEP_BYTES;
    ifl_sandbox_result run;
    ifl_status st = ifl_sandbox_execute(headers_sandbox, &spec, &run, NULL);
    bool fine = st == IFL_OK && run.end == IFL_RUN_EXITED && run.code == 0;
    ifl_sandbox_result_clear(&run);
    atomic_store(&headers, fine ? HEADERS_READY : HEADERS_FAILED);
    return NULL;
}

bool code_headers_ready(ifl_slice source) {
    if (!memmem(source.text, source.n, "bits/stdc++.h", 13)) return false;
    if (n_wanted < HEADERS_AFTER) n_wanted++;
    if (n_wanted == HEADERS_AFTER && atomic_load(&headers) == HEADERS_NONE &&
        code_sandbox(&headers_sandbox, NULL) == IFL_OK) {
        atomic_store(&headers, HEADERS_MAKING);
        if (pthread_create(&headers_thread, NULL, headers_make, NULL) != 0)
            atomic_store(&headers, HEADERS_NONE);
    }
    return atomic_load(&headers) == HEADERS_READY;
}

bool code_headers_wait(void) {
    while (atomic_load(&headers) == HEADERS_MAKING)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    return atomic_load(&headers) == HEADERS_READY;
}

void code_headers_forget(void) {
    n_wanted = 0;
    if (atomic_load(&headers) == HEADERS_NONE) return;
    pthread_join(headers_thread, NULL);
    atomic_store(&headers, HEADERS_NONE);
}
