/* Shared libraries for test_reward_plugin.c: one that misbehaves as the gold answer says and, by
 * PLUGIN_..., some that must be refused. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rewards/plugin.h"

#ifndef PLUGIN_ABI
#define PLUGIN_ABI INFLIGHT_PLUGIN_ABI
#endif
#ifndef PLUGIN_FLAGS
#define PLUGIN_FLAGS 0
#endif

static int create(const char *options, void **state, char *error, size_t n_error) {
    if (strstr(options, "refuse")) {
        snprintf(error, n_error, "refused as asked: %s", options);
        return 3;
    }
    *state = strdup(options);
    return 0;
}

static void destroy(void *state) {
    free(state);
}

static int check(void *state, const inflight_request *r, inflight_result *out, size_t n) {
    if (n != 1 || r->size != sizeof *r || out->size != sizeof *out) return 9;
    const char *what = r->gold;
    printf("noise\n"); /* must end in the log, not among the results */
    fflush(stdout);
    out->status = INFLIGHT_OK;
    out->reward = 1.0;
    if (!strcmp(what, "ok")) return 0;
    if (!strcmp(what, "wrong")) {
        out->status = INFLIGHT_WRONG;
        out->reward = -0.5;
        out->n_components = 1;
        snprintf(out->components[0].name, sizeof out->components[0].name, "depth");
        out->components[0].value = 2.0;
        out->tests_passed = 1;
        out->tests_total = 3;
    } else if (!strcmp(what, "undecided")) {
        out->status = INFLIGHT_UNDECIDED;
        snprintf(out->info, sizeof out->info, "state %s, meta %s", (const char *)state, r->meta);
    } else if (!strcmp(what, "fail")) {
        return 7;
    } else if (!strcmp(what, "nan")) {
        out->reward = (double)NAN;
    } else if (!strcmp(what, "range")) {
        out->reward = 1.5;
    } else if (!strcmp(what, "status")) {
        out->status = 77;
    } else if (!strcmp(what, "component")) {
        out->n_components = 1;
        memset(out->components[0].name, 'x', sizeof out->components[0].name);
    } else if (!strcmp(what, "components")) {
        out->n_components = 1000;
    } else if (!strcmp(what, "hang")) {
        for (;;)
            pause();
    } else if (!strcmp(what, "exit")) {
        _exit(5);
    } else if (!strcmp(what, "crash")) {
        raise(SIGSEGV);
    }
    return 0;
}

#ifndef PLUGIN_BARE
const inflight_plugin_table inflight_plugin = {
    PLUGIN_ABI, sizeof(inflight_plugin_table), "library", "2", PLUGIN_FLAGS, create, check,
    destroy};
#else
int plugin_bare(void *state) {
    return check(state, NULL, NULL, 0) + create("", NULL, NULL, 0) + (destroy(NULL), 0);
}
#endif
