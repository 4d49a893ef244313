#include "tests/faults/witness.h"

#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define METRICS_TAIL (256 << 10)
#define STEPS_MAX 128

bool refuse(job *j, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(j->why, sizeof j->why, format, args);
    va_end(args);
    return false;
}

bool not_played(job *j, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(j->why, sizeof j->why, format, args);
    va_end(args);
    j->not_played = true;
    return false;
}

const char *pick(job *j, const char *const *list, int n) {
    return j->variant = list[job_draw(j, n)];
}

job_process *any_actor(job *j) {
    return &j->actors[job_draw(j, JOB_ACTORS)];
}

int lane_of(const job *j, const job_process *actor) {
    return (int)(actor - j->actors);
}

job_process *next_actor(job *j, const job_process *actor) {
    return &j->actors[(lane_of(j, actor) + 1) % JOB_ACTORS];
}

/* --- Waiting ---------------------------------------------------------------------------------- */

typedef struct wanted {
    const job_process *process;
    int64_t n; /* ends, steps, acknowledgements before; or a mark in the log */
    const char *text;
    double value;
    const key_set *keys;
} wanted;

static bool has_ended(job *j, void *context) {
    (void)j;
    const wanted *w = context;
    return process_ended(w->process, w->n);
}
static bool has_said(job *j, void *context) {
    (void)j;
    const wanted *w = context;
    return process_said(w->process, w->n, w->text);
}
static bool has_stepped(job *j, void *context) {
    const wanted *w = context;
    return job_steps(j) > w->n;
}
static bool has_acked(job *j, void *context) {
    const wanted *w = context;
    return w->process->pid > 0 && actor_acks(j, w->process) > w->n;
}

bool await_end(job *j, job_process *p, int64_t n_ends, int64_t ms) {
    wanted w = {.process = p, .n = n_ends};
    return job_await(j, ms, has_ended, &w) ||
           refuse(j, "%s has not ended in %lld ms", p->name, (long long)ms);
}
bool await_text(job *j, job_process *p, int64_t mark, int64_t ms, const char *text) {
    wanted w = {.process = p, .n = mark, .text = text};
    return job_await(j, ms, has_said, &w) ||
           refuse(j, "%s has not said \"%s\" in %lld ms", p->name, text, (long long)ms);
}
bool await_steps(job *j, int64_t more, int64_t ms) {
    wanted w = {.n = job_steps(j) + more - 1};
    return job_await(j, ms, has_stepped, &w) ||
           refuse(j, "not %lld more steps in %lld ms", (long long)more, (long long)ms);
}
bool await_acks(job *j, job_process *p, int64_t more, int64_t ms) {
    wanted w = {.process = p, .n = actor_acks(j, p) + more - 1};
    return job_await(j, ms, has_acked, &w) ||
           refuse(j, "not %lld more answers of %s acknowledged in %lld ms", (long long)more,
                  p->name, (long long)ms);
}
bool await_gone(job *j, int64_t mark, const char *name, int64_t ms) {
    char text[64];
    snprintf(text, sizeof text, "%s is gone", name);
    return await_text(j, &j->learner, mark, ms, text);
}
bool await_joined(job *j, int64_t mark, const char *name, int64_t ms) {
    char text[64];
    snprintf(text, sizeof text, "%s joined", name);
    return await_text(j, &j->learner, mark, ms, text);
}
bool await_fired(job *j, job_process *p, int64_t mark, const char *point) {
    char text[64];
    snprintf(text, sizeof text, "fail point %s", point);
    wanted w = {.process = p, .n = mark, .text = text};
    return job_await(j, FIRE_MS, has_said, &w) ||
           not_played(j, "%s of %s has not acted in %d ms", point, p->name, FIRE_MS);
}

bool ended_by_signal(job *j, const job_process *p, int number) {
    return (WIFSIGNALED(p->status) && WTERMSIG(p->status) == number) ||
           refuse(j, "%s ended with status %x, wanted signal %d", p->name, (unsigned)p->status,
                  number);
}
bool ended_with(job *j, const job_process *p, int code) {
    return (WIFEXITED(p->status) && WEXITSTATUS(p->status) == code) ||
           refuse(j, "%s ended with status %x, wanted exit %d", p->name, (unsigned)p->status, code);
}

bool all_stayed(job *j, int64_t learner_mark) {
    for (int i = 0; i < JOB_ACTORS; i++)
        if (learner_said_of(j, learner_mark, j->actors[i].name, "is gone"))
            return refuse(j, "%s was given up", j->actors[i].name);
    return true;
}

bool grew_little(job *j, int64_t before) {
    int64_t now = process_rss_kib(&j->learner);
    return now - before < RSS_GROWTH_KIB ||
           refuse(j, "the learner grew from %lld to %lld KiB", (long long)before, (long long)now);
}

/* --- The proxy -------------------------------------------------------------------------------- */

static job_process proxy_log(const job *j) {
    job_process p = {.name = "proxy"};
    snprintf(p.log, sizeof p.log, "%.1000s/proxy.jsonl", j->folder);
    return p;
}

int64_t proxy_mark(const job *j) {
    job_process p = proxy_log(j);
    return process_mark(&p);
}

bool proxy_said(const job *j, int64_t mark, const char *text) {
    job_process p = proxy_log(j);
    return process_said(&p, mark, text);
}

bool await_did(job *j, int64_t mark, const char *what, int64_t ms) {
    char text[64];
    job_process p = proxy_log(j);
    snprintf(text, sizeof text, "\"did\":\"%s\"", what);
    wanted w = {.process = &p, .n = mark, .text = text};
    return job_await(j, ms, has_said, &w) ||
           not_played(j, "the proxy had nothing to %s in %lld ms", what, (long long)ms);
}

/* --- Metrics ---------------------------------------------------------------------------------- */

/* Whole rows of steps at the end of the file, NUL-terminated each; how many. The newest first. */
static int rows_read(const job *j, char *buffer, const char **rows, int max) {
    char path[JOB_PATH_MAX + 64];
    struct stat s;
    int n = 0;
    snprintf(path, sizeof path, "%s/runs/job/metrics.jsonl", j->folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) != 0) return 0;
    off_t from = s.st_size > METRICS_TAIL ? s.st_size - METRICS_TAIL : 0;
    ssize_t got = pread(fd, buffer, METRICS_TAIL, from);
    close(fd);
    buffer[got > 0 ? got : 0] = '\0';
    char *end = strrchr(buffer, '\n');
    while (end && n < max) {
        *end = '\0';
        char *before = strrchr(buffer, '\n'), *row = before ? before + 1 : buffer;
        if (strncmp(row, "{\"kind\":\"step\"", 14) == 0) rows[n++] = row;
        end = before;
    }
    return n;
}

static double number_in(const char *row, const char *name) {
    char key[64];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(row, key);
    return at ? strtod(at + strlen(key), NULL) : (double)NAN;
}

double metric(const job *j, const char *name) {
    static char buffer[METRICS_TAIL + 1];
    const char *row;
    return rows_read(j, buffer, &row, 1) == 1 ? number_in(row, name) : (double)NAN;
}

double metric_max(const job *j, const char *name, int n) {
    static char buffer[METRICS_TAIL + 1];
    const char *rows[STEPS_MAX];
    double most = (double)NAN;
    int n_rows = rows_read(j, buffer, rows, n < STEPS_MAX ? n : STEPS_MAX);
    for (int i = 0; i < n_rows; i++)
        most = fmax(most, number_in(rows[i], name)); /* of NAN and a number: the number */
    return most;
}

static bool is_above(job *j, void *context) {
    const wanted *w = context;
    return metric(j, w->text) > w->value;
}

bool await_metric(job *j, const char *name, double than, int64_t ms) {
    wanted w = {.text = name, .value = isnan(than) ? 0.0 : than};
    return job_await(j, ms, is_above, &w) ||
           refuse(j, "the metric %s has not come above %.0f in %lld ms: %.0f", name, w.value,
                  (long long)ms, metric(j, name));
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double step_median(const job *j, int n) {
    static char buffer[METRICS_TAIL + 1];
    const char *rows[STEPS_MAX + 1];
    double times[STEPS_MAX];
    int n_times = 0, n_rows = rows_read(j, buffer, rows, n < STEPS_MAX ? n + 1 : STEPS_MAX + 1);
    for (int i = 0; i + 1 < n_rows; i++) {
        double s = number_in(rows[i], "time_s") - number_in(rows[i + 1], "time_s");
        if (s > 0.0) times[n_times++] = s; /* not across a restart */
    }
    qsort(times, (size_t)n_times, sizeof *times, compare_doubles);
    return n_times > 0 ? times[n_times / 2] : (double)NAN;
}

/* --- Recorders -------------------------------------------------------------------------------- */

records records_of(const job *j, const job_process *p, pid_t pid) {
    char path[JOB_PATH_MAX + 64], line[256];
    records r = {0};
    int64_t cap = 0;
    snprintf(path, sizeof path, "%s/record/%s.%d", j->folder, p->name, (int)pid);
    FILE *f = pid > 0 ? fopen(path, "r") : NULL;
    while (f && fgets(line, sizeof line, f)) {
        unsigned long long serial, lease;
        record e;
        if (sscanf(line, "%11s %d %llu %d %llu %d", e.what, &e.purpose, &serial, &e.sample, &lease,
                   &e.status) != 6)
            continue;
        e.serial = serial;
        e.lease = lease;
        if (r.n == cap) {
            cap = cap ? cap * 2 : 4096;
            record *grown = realloc(r.all, sizeof *grown * (size_t)cap);
            if (!grown) abort();
            r.all = grown;
        }
        r.all[r.n++] = e;
    }
    if (f) fclose(f);
    return r;
}

void records_free(records *r) {
    free(r->all);
    *r = (records){0};
}

int64_t records_mark(const job *j, const job_process *p, pid_t pid) {
    records r = records_of(j, p, pid);
    int64_t n = r.n;
    records_free(&r);
    return n;
}

static bool is_key(const record *r, const char *what, uint64_t serial, int32_t sample) {
    return r->purpose == 0 && r->serial == serial && r->sample == sample && !strcmp(r->what, what);
}

static bool is_of_lease(const record *r, const char *what, uint64_t serial, int32_t sample,
                        uint64_t lease) {
    return is_key(r, what, serial, sample) && r->lease == lease;
}

static bool has_of_lease(const records *r, int64_t from, const char *what, uint64_t serial,
                         int32_t sample, uint64_t lease) {
    for (int64_t i = from; i < r->n; i++)
        if (is_of_lease(&r->all[i], what, serial, sample, lease)) return true;
    return false;
}

/* Under whatever lease: what is stored is not open any more, and needs no other one. */
static bool is_stored(const records *r, uint64_t serial, int32_t sample) {
    for (int64_t i = 0; i < r->n; i++)
        if (is_key(&r->all[i], "stored", serial, sample) && r->all[i].status == 1) return true;
    return false;
}

static void key_add(key_set *out, const record *r) {
    if (out->n == KEYS_MAX) return;
    out->keys[out->n].serial = r->serial;
    out->keys[out->n].sample = r->sample;
    out->keys[out->n++].lease = r->lease;
}

void keys_held(const job *j, const job_process *actor, pid_t pid, key_set *out) {
    records mine = records_of(j, actor, pid), theirs = records_of(j, &j->learner, j->learner.pid);
    *out = (key_set){.learner = j->learner.pid};
    for (int64_t i = 0; i < mine.n; i++) {
        const record *r = &mine.all[i];
        /* Leases of an earlier learner process are nothing to this one. */
        if (r->purpose == 0 && !strcmp(r->what, "held") &&
            has_of_lease(&theirs, 0, "leased", r->serial, r->sample, r->lease) &&
            !is_stored(&theirs, r->serial, r->sample))
            key_add(out, r);
    }
    records_free(&mine);
    records_free(&theirs);
}

void keys_unanswered(const job *j, const job_process *actor, pid_t pid, int64_t from,
                     key_set *out) {
    records r = records_of(j, actor, pid);
    *out = (key_set){.learner = j->learner.pid};
    for (int64_t i = from; i < r.n; i++) {
        const record *e = &r.all[i];
        if (e->purpose == 0 && !strcmp(e->what, "sent") &&
            !has_of_lease(&r, i, "acked", e->serial, e->sample, e->lease) &&
            !has_of_lease(&r, i, "nacked", e->serial, e->sample, e->lease) &&
            !has_of_lease(&r, i + 1, "sent", e->serial, e->sample, e->lease))
            key_add(out, e);
    }
    records_free(&r);
}

/* How often a key was leased after this lease of it. */
static int times_leased_after(const records *r, uint64_t serial, int32_t sample, uint64_t lease) {
    int n = 0;
    bool behind = false;
    for (int64_t i = 0; i < r->n; i++) {
        if (!is_key(&r->all[i], "leased", serial, sample)) continue;
        n += behind;
        behind |= r->all[i].lease == lease;
    }
    return n;
}

/* Nothing wrong so far, and all there. *wrong: one that has been leased too often; -1 = none. */
static bool all_leased_again(job *j, const key_set *keys, int *missing, int *wrong) {
    records r = records_of(j, &j->learner, keys->learner);
    *missing = *wrong = -1;
    for (int i = 0; i < keys->n; i++) {
        uint64_t serial = keys->keys[i].serial, lease = keys->keys[i].lease;
        int32_t sample = keys->keys[i].sample;
        int n = times_leased_after(&r, serial, sample, lease);
        if (n == 0 && !is_stored(&r, serial, sample)) *missing = i;
        if (n > 1) *wrong = i;
    }
    records_free(&r);
    return *missing < 0;
}

static bool are_leased_again(job *j, void *context) {
    const wanted *w = context;
    int missing, wrong;
    return all_leased_again(j, w->keys, &missing, &wrong) || wrong >= 0;
}

bool await_leased_again(job *j, const key_set *keys, int64_t ms) {
    wanted w = {.keys = keys};
    int missing, wrong;
    job_await(j, ms, are_leased_again, &w);
    all_leased_again(j, keys, &missing, &wrong);
    int at = wrong >= 0 ? wrong : missing;
    if (at < 0) return true;
    return refuse(j, "%llu/%d of lease %llu, which was lost, %s", //
                  (unsigned long long)keys->keys[at].serial, keys->keys[at].sample,
                  (unsigned long long)keys->keys[at].lease,
                  wrong >= 0 ? "has been leased again more than once"
                             : "has not been leased again");
}

/* 0: fine; 1: not yet; 2: wrong. */
static int stored_once(job *j, const key_set *keys, int *at) {
    records r = records_of(j, &j->learner, keys->learner);
    int worst = 0;
    for (int i = 0; i < keys->n; i++) {
        int n_stored = 0, state;
        for (int64_t k = 0; k < r.n; k++)
            n_stored += is_key(&r.all[k], "stored", keys->keys[i].serial, keys->keys[i].sample) &&
                        r.all[k].status == 1;
        state = n_stored == 1 ? 0 : n_stored == 0 ? 1 : 2;
        if (state > worst) *at = i;
        if (state > worst) worst = state;
    }
    records_free(&r);
    return worst;
}

static bool are_stored_once(job *j, void *context) {
    const wanted *w = context;
    int at;
    return stored_once(j, w->keys, &at) != 1;
}

bool await_stored_once(job *j, const key_set *keys, int64_t ms) {
    wanted w = {.keys = keys};
    int at = 0;
    job_await(j, ms, are_stored_once, &w);
    int state = stored_once(j, keys, &at);
    return state == 0 || refuse(j, "%llu/%d is stored %s", //
                                (unsigned long long)keys->keys[at].serial, keys->keys[at].sample,
                                state == 1 ? "not at all" : "more than once");
}

static bool are_answered(job *j, void *context) {
    const wanted *w = context;
    records r = records_of(j, w->process, w->process->pid);
    bool all = true;
    for (int i = 0; i < w->keys->n && all; i++) {
        uint64_t serial = w->keys->keys[i].serial, lease = w->keys->keys[i].lease;
        int32_t sample = w->keys->keys[i].sample;
        all = has_of_lease(&r, 0, "acked", serial, sample, lease) ||
              has_of_lease(&r, 0, "nacked", serial, sample, lease);
    }
    records_free(&r);
    return all;
}

bool await_answered(job *j, const job_process *actor, const key_set *keys, int64_t ms) {
    wanted w = {.process = actor, .keys = keys};
    return job_await(j, ms, are_answered, &w) ||
           refuse(j, "%s has not had an answer to all of %d trajectories in %lld ms", actor->name,
                  keys->n, (long long)ms);
}
