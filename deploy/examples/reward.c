/* A reward of your own as a shared library (rewards/plugin.h). What it pays here is what the
 * built-in `exact` pays on tasks that say {"after": "#", "end": true}: 1 if the text behind the
 * last '#' is the gold answer and the answer was not cut.
 *
 *     cc -shared -fPIC -O2 -I rewards -o reward.so deploy/examples/reward.c
 */
#include <string.h>

#include "plugin.h"

static const char spaces[] = " \t\n\v\f\r";

/* Without white space at both ends. */
static const char *trim(const char *text, size_t *n) {
    while (*n > 0 && strchr(spaces, text[*n - 1]))
        --*n;
    while (*n > 0 && strchr(spaces, *text)) {
        text++;
        --*n;
    }
    return text;
}

static int check(void *state, const inflight_request *requests, inflight_result *results,
                 size_t n) {
    (void)state;
    for (size_t i = 0; i < n; i++) {
        const inflight_request *r = (const void *)((const char *)requests + i * requests->size);
        inflight_result *out = (void *)((char *)results + i * results->size);
        const char *end = r->completion + r->n_completion, *at = end;
        while (at > r->completion && at[-1] != '#')
            at--;
        int found = at > r->completion;
        int whole = !strcmp(r->finish, "eos") || !strcmp(r->finish, "stop");
        size_t n_text = (size_t)(end - at), n_gold = strlen(r->gold);
        const char *text = trim(at, &n_text), *gold = trim(r->gold, &n_gold);
        int right = found && whole && n_text == n_gold && memcmp(text, gold, n_gold) == 0;
        out->status = right ? INFLIGHT_OK : INFLIGHT_WRONG;
        out->reward = right;
    }
    return 0;
}

const inflight_plugin_table inflight_plugin = {
    INFLIGHT_PLUGIN_ABI, sizeof(inflight_plugin_table), "reward.c", "1", 0, 0, check, 0};
