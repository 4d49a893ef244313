#include "rewards/host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/json_util.h"
#include "rewards/checkers.h"
#include "rewards/compose.h"
#include "rewards/worker.h"

#define MARGIN_MS_MAX 200 /* of the pool's time limit, so that a plug-in's own is noticed first */

/* A checker of the specification, or a built-in that is named directly. */
typedef struct instance {
    const ifl_spec_entry *entry; /* NULL: a built-in without options */
    const ifl_checker *builtin;
    const ifl_plugin_kind *plugin;
    void *state;
    char *options; /* JSON text, NULL: none */
} instance;

struct ifl_reward_host {
    ifl_spec *spec;
    instance *entries; /* [spec->n] */
    instance direct[IFL_SPEC_CHECKERS_MAX];
    int n_direct;
    int64_t limit_ns;
};

static const ifl_plugin_kind *plugin_of(ifl_spec_kind kind) {
    switch (kind) {
    case IFL_SPEC_LIBRARY:
        return &ifl_plugin_library;
    case IFL_SPEC_PROCESS:
        return &ifl_plugin_process;
    case IFL_SPEC_HTTP:
        return &ifl_plugin_http;
    case IFL_SPEC_ZEROMQ:
        return &ifl_plugin_zeromq;
    default:
        return NULL;
    }
}

static ifl_status instance_make(instance *in, const ifl_spec_entry *entry,
                                const ifl_checker *builtin, ifl_error *err) {
    ifl_status st = IFL_OK;
    in->entry = entry;
    in->builtin = builtin;
    if (entry && entry->options) {
        in->options = json_dumps(entry->options, JSON_COMPACT);
        if (!in->options) return ifl_fail(err, IFL_NOMEM, "no memory for its options");
    }
    in->plugin = entry ? plugin_of(entry->kind) : NULL;
    if (in->plugin)
        st = in->plugin->create(&in->state, entry, err);
    else if (builtin && builtin->create)
        st = builtin->create(&in->state, in->options ? in->options : "{}", err);
    if (st != IFL_OK && entry && err) ifl_error_wrap(err, "checker %s", entry->name);
    return st;
}

static void instance_clear(instance *in) {
    if (in->state && in->plugin) in->plugin->destroy(in->state);
    if (in->state && in->builtin && in->builtin->destroy) in->builtin->destroy(in->state);
    free(in->options);
}

ifl_status ifl_reward_host_create(ifl_reward_host **out, const char *checkers, int32_t timeout_ms,
                                  ifl_error *err) {
    ifl_status st = IFL_OK;
    *out = NULL;
    ifl_reward_host *host = calloc(1, sizeof *host);
    if (!host) return ifl_fail(err, IFL_NOMEM, "no memory for checkers");
    int64_t margin_ms = timeout_ms / 5 < MARGIN_MS_MAX ? timeout_ms / 5 : MARGIN_MS_MAX;
    host->limit_ns = (timeout_ms - margin_ms) * (int64_t)1000000;
    IFL_TRY_GOTO(st, ifl_spec_parse(&host->spec, checkers, err), failed);
    host->entries = calloc((size_t)host->spec->n + 1, sizeof *host->entries);
    if (!host->entries) {
        st = ifl_fail(err, IFL_NOMEM, "no memory for %d checkers", host->spec->n);
        goto failed;
    }
    for (int32_t i = 0; i < host->spec->n; i++) {
        const ifl_spec_entry *entry = &host->spec->entries[i];
        IFL_TRY_GOTO(st, instance_make(&host->entries[i], entry, entry->builtin, err), failed);
    }
    *out = host;
    return IFL_OK;
failed:
    ifl_reward_host_free(host);
    return st;
}

void ifl_reward_host_free(ifl_reward_host *host) {
    if (!host) return;
    for (int32_t i = 0; host->entries && i < host->spec->n; i++)
        instance_clear(&host->entries[i]);
    for (int i = 0; i < host->n_direct; i++)
        instance_clear(&host->direct[i]);
    free(host->entries);
    ifl_spec_free(host->spec);
    free(host);
}

/* --- One request ------------------------------------------------------------------------------ */

/* A part of a composition, or the whole: the same request seen by one checker. */
typedef struct judgement {
    ifl_reward_host *host;
    const ifl_reward_request *request;
    int64_t deadline_ns;
    uint32_t
        flags; /* with IFL_REPLY_PURE until a checker that is not, or a verdict that may change */
} judgement;

/* The task's meta over the options; *text (owned) is NULL when the request's own does. */
static ifl_status meta_merge(const instance *in, const ifl_reward_request *request, char **text,
                             ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    *text = NULL;
    if (!in->options) return IFL_OK;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    if (!meta) {
        *text = strdup(in->options);
    } else if (json_object_update_missing(meta, in->entry->options) == 0) {
        *text = json_dumps(meta, JSON_COMPACT);
    }
    json_decref(meta);
    if (!*text) return ifl_fail(err, IFL_NOMEM, "no memory for a task's meta");
    if (strlen(*text) <= IFL_META_BYTES_MAX) return IFL_OK;
    return ifl_verdict_bad_task(out, err, "meta and the checker's options have %zu bytes, limit %d",
                                strlen(*text), IFL_META_BYTES_MAX);
}

static bool instance_is_pure(const instance *in) {
    if (in->plugin) return in->plugin->is_pure && in->plugin->is_pure(in->state);
    return (in->builtin->flags & IFL_CHECKER_PURE) != 0;
}

static ifl_status leaf_check(judgement *j, instance *in, ifl_reward *out, ifl_error *err) {
    char *meta = NULL;
    ifl_status st = meta_merge(in, j->request, &meta, out, err);
    if (st != IFL_OK || out->status == IFL_REWARD_BAD_TASK) goto done;
    ifl_reward_request request = *j->request;
    if (meta) request.meta = meta;
    request.state = in->state;
    if (in->plugin) {
        ifl_plugin_call call = {&request, j->deadline_ns, &j->flags};
        st = in->plugin->check(in->state, &call, out, err);
    } else {
        st = in->builtin->check(&request, out, err);
    }
done:
    free(meta);
    return st;
}

/* Whatever a checker left behind becomes a result that may be sent on. */
static void result_settle(ifl_reward *out, ifl_status st, ifl_error *err, char *reason) {
    bool sane = st == IFL_OK && out->status != IFL_REWARD_NONE && isfinite(out->reward) &&
                out->reward >= -1.0f && out->reward <= 1.0f;
    if (!sane) {
        if (st == IFL_OK)
            ifl_fail(err, IFL_FORMAT, "garbage from the checker: status %s, reward %g",
                     out->status == IFL_REWARD_NONE ? "missing" : "set", (double)out->reward);
        out->status = IFL_REWARD_CHECKER_ERROR;
        out->n_components = 0;
    }
    reason[0] = '\0';
    if (out->status == IFL_REWARD_OK) return;
    if (!ifl_reward_is_verdict(out->status)) out->reward = 0.0f;
    bool silent = !err->text[0] && st == IFL_OK; /* a plain verdict needs no reason */
    snprintf(reason, IFL_REWARD_REASON_MAX, "%s",
             silent         ? ""
             : err->text[0] ? err->text
                            : ifl_status_text(st));
}

static void instance_check(judgement *j, instance *in, ifl_reward *out, char *reason);

static instance *direct_find(ifl_reward_host *host, const ifl_checker *builtin, ifl_error *err) {
    for (int i = 0; i < host->n_direct; i++)
        if (host->direct[i].builtin == builtin) return &host->direct[i];
    IFL_ASSERT(host->n_direct < IFL_SPEC_CHECKERS_MAX);
    instance *in = &host->direct[host->n_direct];
    if (instance_make(in, NULL, builtin, err) != IFL_OK) {
        instance_clear(in);
        memset(in, 0, sizeof *in);
        return NULL;
    }
    host->n_direct++;
    return in;
}

static void builtin_check(judgement *j, const ifl_checker *builtin, ifl_reward *out, char *reason) {
    ifl_error err = {0};
    instance *in = direct_find(j->host, builtin, &err);
    if (in) {
        instance_check(j, in, out, reason);
        return;
    }
    j->flags &= ~IFL_REPLY_PURE;
    snprintf(out->checker, sizeof out->checker, "%s/%s", builtin->name, builtin->version);
    result_settle(out, err.status, &err, reason);
}

static void part_check(void *user, const ifl_spec_part *part, ifl_reward *out, char *reason) {
    judgement *j = user;
    if (part->entry >= 0)
        instance_check(j, &j->host->entries[part->entry], out, reason);
    else
        builtin_check(j, part->builtin, out, reason);
}

static void instance_check(judgement *j, instance *in, ifl_reward *out, char *reason) {
    const ifl_spec_entry *e = in->entry;
    ifl_error err = {0};
    memset(out, 0, sizeof *out);
    out->status = IFL_REWARD_NONE;
    if (e && e->n_parts > 0) {
        ifl_compose(e, part_check, j, out, reason);
        snprintf(out->checker, sizeof out->checker, "%s=%s/1", e->name,
                 ifl_spec_kind_name(e->kind));
    } else {
        ifl_status st = leaf_check(j, in, out, &err);
        char version[sizeof out->checker];
        if (in->builtin)
            snprintf(version, sizeof version, "%s/%s", in->builtin->name, in->builtin->version);
        else
            snprintf(version, sizeof version, "%s",
                     out->checker[0] ? out->checker : ifl_spec_kind_name(e->kind));
        snprintf(out->checker, sizeof out->checker, "%s%s%.31s", e ? e->name : "", e ? "=" : "",
                 version);
        result_settle(out, st, &err, reason);
        if (!instance_is_pure(in) || !ifl_reward_is_verdict(out->status) ||
            out->status == IFL_REWARD_TIME_LIMIT)
            j->flags &= ~IFL_REPLY_PURE;
    }
    if (e) out->config = e->config;
}

static void unknown_checker(const ifl_reward_host *host, const char *name, ifl_reward *out,
                            char *reason) {
    const ifl_checker *known[IFL_SPEC_CHECKERS_MAX];
    int n_known = ifl_checker_list(known, IFL_SPEC_CHECKERS_MAX);
    out->status = IFL_REWARD_BAD_TASK;
    snprintf(out->checker, sizeof out->checker, "%.60s", name);
    int n = snprintf(reason, IFL_REWARD_REASON_MAX, "there is no checker '%.60s', only", name);
    for (int i = 0; i < n_known && n < IFL_REWARD_REASON_MAX; i++)
        n += snprintf(reason + n, (size_t)(IFL_REWARD_REASON_MAX - n), " %s", known[i]->name);
    for (int32_t i = 0; i < host->spec->n && n < IFL_REWARD_REASON_MAX; i++)
        n += snprintf(reason + n, (size_t)(IFL_REWARD_REASON_MAX - n), " %s",
                      host->spec->entries[i].name);
}

void ifl_reward_host_check(ifl_reward_host *host, const ifl_reward_request *request,
                           ifl_reward *out, char *reason, uint32_t *flags) {
    judgement j = {host, request, ifl_clock_ns() + host->limit_ns, IFL_REPLY_PURE};
    memset(out, 0, sizeof *out);
    out->status = IFL_REWARD_NONE;
    reason[0] = '\0';
    int32_t index = ifl_spec_find(host->spec, request->checker);
    const ifl_checker *builtin = index < 0 ? ifl_checker_find(request->checker) : NULL;
    if (index >= 0)
        instance_check(&j, &host->entries[index], out, reason);
    else if (builtin)
        builtin_check(&j, builtin, out, reason);
    else
        unknown_checker(host, request->checker, out, reason);
    if (!ifl_reward_is_verdict(out->status)) j.flags &= ~IFL_REPLY_PURE;
    *flags = j.flags;
}

void ifl_reward_check(const ifl_reward_request *request, ifl_reward *out, char *reason) {
    ifl_reward_host *host;
    ifl_error err = {0};
    uint32_t flags;
    if (ifl_reward_host_create(&host, NULL, IFL_REWARD_TIMEOUT_MS_MAX, &err) != IFL_OK) {
        memset(out, 0, sizeof *out);
        out->status = IFL_REWARD_CHECKER_ERROR;
        snprintf(reason, IFL_REWARD_REASON_MAX, "%s", err.text);
        return;
    }
    ifl_reward_host_check(host, request, out, reason, &flags);
    ifl_reward_host_free(host);
}
