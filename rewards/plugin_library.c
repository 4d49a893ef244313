/* A plug-in as a shared library, loaded into the worker (rewards/plugin.h). Whatever it does wrong
 * that ends the process is the pool's to notice. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rewards/plugin.h"
#include "rewards/plugin_message.h"

_Static_assert((int)INFLIGHT_OK == IFL_REWARD_OK && (int)INFLIGHT_WRONG == IFL_REWARD_WRONG &&
                   (int)INFLIGHT_NO_ANSWER == IFL_REWARD_NO_ANSWER &&
                   (int)INFLIGHT_BAD_FORMAT == IFL_REWARD_BAD_FORMAT &&
                   (int)INFLIGHT_UNDECIDED == IFL_REWARD_UNDECIDED &&
                   (int)INFLIGHT_BAD_TASK == IFL_REWARD_BAD_TASK &&
                   (int)INFLIGHT_CHECKER_ERROR == IFL_REWARD_CHECKER_ERROR &&
                   (int)INFLIGHT_UNAVAILABLE == IFL_REWARD_UNAVAILABLE,
               "plugin.h has the same numbers");

typedef struct library {
    void *handle;
    const inflight_plugin_table *table;
    void *state;
    bool created;
} library;

static void library_destroy(void *state) {
    library *l = state;
    if (!l) return;
    if (l->created && l->table->destroy) l->table->destroy(l->state);
    if (l->handle) dlclose(l->handle);
    free(l);
}

static ifl_status table_check(const library *l, const char *path, ifl_error *err) {
    const inflight_plugin_table *t = l->table;
    if (!t)
        return ifl_fail(err, IFL_FORMAT,
                        "%s: exports no " INFLIGHT_PLUGIN_SYMBOL
                        "; wanted a table as rewards/plugin.h shows it, not hidden",
                        path);
    if (t->abi_version != INFLIGHT_PLUGIN_ABI)
        return ifl_fail(err, IFL_MISMATCH,
                        "%s: built for version %u of the plug-in interface, wanted %u; compile it "
                        "with this release's rewards/plugin.h",
                        path, t->abi_version, INFLIGHT_PLUGIN_ABI);
    if (t->size < sizeof *t)
        return ifl_fail(err, IFL_MISMATCH, "%s: its table has %u bytes, wanted %zu", path, t->size,
                        sizeof *t);
    if (!t->name || !*t->name || !t->version || !t->check)
        return ifl_fail(err, IFL_FORMAT, "%s: its table lacks a name, a version or check", path);
    if (t->flags & ~(uint64_t)INFLIGHT_PLUGIN_PURE)
        return ifl_fail(err, IFL_UNSUPPORTED, "%s: flags %llx, of which this host knows %x alone",
                        path, (unsigned long long)t->flags, INFLIGHT_PLUGIN_PURE);
    return IFL_OK;
}

static ifl_status library_options(library *l, const ifl_spec_entry *entry, ifl_error *err) {
    char why[512] = "";
    if (!l->table->create) return IFL_OK;
    char *options = entry->options ? json_dumps(entry->options, JSON_COMPACT) : strdup("{}");
    if (!options) return ifl_fail(err, IFL_NOMEM, "no memory for its options");
    int code = l->table->create(options, &l->state, why, sizeof why);
    free(options);
    why[sizeof why - 1] = '\0';
    if (code != 0)
        return ifl_fail(err, IFL_FORMAT, "%s: create failed with %d: %s", entry->path, code,
                        *why ? why : "no reason given");
    l->created = true;
    return IFL_OK;
}

static ifl_status library_create(void **state, const ifl_spec_entry *entry, ifl_error *err) {
    char path[IFL_PATH_MAX + 2];
    library *l = calloc(1, sizeof *l);
    if (!l) return ifl_fail(err, IFL_NOMEM, "no memory for a plug-in");
    /* A name alone would be looked for among the system's libraries. */
    snprintf(path, sizeof path, "%s%s", strchr(entry->path, '/') ? "" : "./", entry->path);
    ifl_status st = IFL_OK;
    l->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!l->handle) {
        st = ifl_fail(err, IFL_NOTFOUND, "cannot load it: %s", dlerror());
    } else {
        l->table = dlsym(l->handle, INFLIGHT_PLUGIN_SYMBOL);
        st = table_check(l, path, err);
    }
    if (st == IFL_OK) st = library_options(l, entry, err);
    if (st != IFL_OK) {
        library_destroy(l);
        return st;
    }
    *state = l;
    return IFL_OK;
}

static ifl_status result_take(const inflight_result *r, ifl_reward *out, ifl_error *err) {
    bool known = r->status >= 0 && r->status < IFL_REWARD_STATUS_COUNT &&
                 r->status != IFL_REWARD_NONE && r->n_components <= IFL_COMPONENTS_MAX &&
                 r->tests_passed >= 0 && r->tests_passed <= r->tests_total;
    for (uint32_t i = 0; known && i < r->n_components; i++) {
        float v = (float)r->components[i].value;
        known = isfinite(v) && memchr(r->components[i].name, 0, sizeof r->components[i].name);
    }
    if (!known)
        return ifl_fail(err, IFL_FORMAT,
                        "garbage from the library: status %d, %u components, %d of %d tests, or a "
                        "component that is no number",
                        r->status, r->n_components, r->tests_passed, r->tests_total);
    out->status = (ifl_reward_status)r->status;
    if (ifl_reward_is_verdict(out->status)) out->reward = (float)r->reward;
    out->n_components = (int32_t)r->n_components;
    for (int32_t i = 0; i < out->n_components; i++) {
        memcpy(out->components[i].name, r->components[i].name, sizeof out->components[i].name);
        out->components[i].value = (float)r->components[i].value;
    }
    out->tests_passed = r->tests_passed;
    out->tests_total = r->tests_total;
    if (!ifl_reward_is_verdict(out->status))
        ifl_fail(err, IFL_OK, "%.*s", (int)sizeof r->info,
                 r->info[0] ? r->info : "the plug-in gave no reason");
    return IFL_OK;
}

static ifl_status library_check(void *state, const ifl_plugin_call *call, ifl_reward *out,
                                ifl_error *err) {
    library *l = state;
    const ifl_reward_request *r = call->request;
    inflight_request request = {
        .size = sizeof request,
        .id = r->id,
        .prompt = r->prompt,
        .completion = r->completion,
        .n_completion = r->n_completion,
        .gold = r->answer,
        .meta = r->meta && *r->meta ? r->meta : "{}",
        .finish = ifl_finish_name(r->finish),
        .deadline_ms = ifl_plugin_ms_left(call),
    };
    inflight_result result = {.size = sizeof result, .status = IFL_REWARD_NONE};
    snprintf(out->checker, sizeof out->checker, "%.20s/%.10s", l->table->name, l->table->version);
    int code = l->table->check(l->state, &request, &result, 1);
    if (code != 0) return ifl_fail(err, IFL_PEER, "check returned %d", code);
    return result_take(&result, out, err);
}

static bool library_is_pure(const void *state) {
    return (((const library *)state)->table->flags & INFLIGHT_PLUGIN_PURE) != 0;
}

const ifl_plugin_kind ifl_plugin_library = {library_create, library_check, library_destroy,
                                            library_is_pure};
