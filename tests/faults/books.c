#include "tests/faults/books.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rollout_log.h"

#define PATH_BYTES 1200

/* What is known of a key. */
typedef struct entry {
    uint64_t serial;
    int32_t sample;
    bool used, leased, open;
    int32_t stored_by;  /* last learner process that stored it; 0 = none */
    int64_t trained_in; /* step; 0 = none that stands */
    bool ended;         /* dropped or masked */
    int32_t ended_by;   /* process; a later one may have gone back before that */
    uint64_t leases[8]; /* last ones that an answer was stored under */
    int32_t n_leases;
} entry;

typedef struct table {
    entry *entries; /* open addressing, power of two */
    size_t n, cap;
} table;

static size_t slot(const entry *entries, size_t cap, uint64_t serial, int32_t sample) {
    uint64_t h = (serial * 4099 + (uint64_t)sample) * 0x9e3779b97f4a7c15u;
    size_t i = (h >> 20) & (cap - 1);
    while (entries[i].used && (entries[i].serial != serial || entries[i].sample != sample))
        i = (i + 1) & (cap - 1);
    return i;
}

static entry *entry_of(table *t, uint64_t serial, int32_t sample) {
    if (t->n * 2 >= t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 4096;
        entry *grown = calloc(cap, sizeof *grown);
        if (!grown) abort();
        for (size_t i = 0; i < t->cap; i++)
            if (t->entries[i].used)
                grown[slot(grown, cap, t->entries[i].serial, t->entries[i].sample)] = t->entries[i];
        free(t->entries);
        t->entries = grown;
        t->cap = cap;
    }
    entry *e = &t->entries[slot(t->entries, t->cap, serial, sample)];
    if (!e->used) {
        *e = (entry){.serial = serial, .sample = sample, .used = true};
        t->n++;
    }
    return e;
}

__attribute__((format(printf, 3, 4))) static void violation(job_books *b, int64_t *count,
                                                            const char *format, ...) {
    ++*count;
    if (b->first[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(b->first, sizeof b->first, format, args);
    va_end(args);
}

/* --- Versions that are published again ----------------------------------------------------------
 */

#define PROCESSES_MAX 4096
#define CONTENT_AT 40 /* bytes before the content hash in an archive's file */

typedef struct process_of_run {
    int segment; /* its first one names its archive */
    int64_t step;
} process_of_run;

static bool content_of(const char *versions, int segment, int64_t version, uint8_t out[16]) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%06d/v%010lld.ifw", versions, segment, (long long)version);
    FILE *f = fopen(path, "rb");
    bool got = f && fseek(f, CONTENT_AT, SEEK_SET) == 0 && fread(out, 1, 16, f) == 16;
    if (f) fclose(f);
    return got;
}

/* Each process against the last one before it that has the version it went on from. */
static void versions_check(job_books *b, const process_of_run *processes, const char *versions) {
    for (int64_t i = 1; i < b->processes && i < PROCESSES_MAX; i++) {
        uint8_t now[16], before[16];
        int64_t step = processes[i].step;
        if (!content_of(versions, processes[i].segment, step, now)) continue; /* it died first */
        for (int64_t k = i - 1; k >= 0; k--) {
            if (!content_of(versions, processes[k].segment, step, before)) continue;
            b->republished++;
            if (memcmp(now, before, 16) != 0)
                violation(
                    b, &b->other_weights,
                    "version %lld of process %lld has other weights than that of process %lld",
                    (long long)step, (long long)i, (long long)k);
            break;
        }
    }
}

/* --- The log ---------------------------------------------------------------------------------- */

/* A process that goes on from a step undoes what was trained behind it, and what was leased beyond
 * its cursor. */
static void on_started(table *t, const ifl_record *r) {
    for (size_t i = 0; i < t->cap; i++) {
        entry *e = &t->entries[i];
        if (!e->used) continue;
        e->open = false;
        if (e->trained_in > r->step) e->trained_in = 0;
        if (e->leased && e->serial >= r->task_serial) {
            e->leased = e->ended = false;
            e->trained_in = 0;
        }
    }
}

static ifl_status on_trajectory(job_books *b, table *t, const ifl_record *r, int32_t process,
                                int64_t newest, ifl_error *err) {
    ifl_trajectory *traj;
    IFL_TRY(ifl_trajectory_decode(&traj, r->meta, r->n_meta, r->payload, r->n_payload, err));
    if (traj->purpose == IFL_PURPOSE_TRAIN) {
        entry *e = entry_of(t, traj->task_serial, traj->sample);
        b->stored++;
        if (!e->leased)
            violation(b, &b->not_leased, "%llu/%d is stored and was not leased",
                      (unsigned long long)traj->task_serial, traj->sample);
        if (e->stored_by == process)
            violation(b, &b->stored_twice, "%llu/%d is stored twice by process %d",
                      (unsigned long long)traj->task_serial, traj->sample, process);
        e->stored_by = process;
        e->leases[e->n_leases++ % 8] = traj->lease_id;
        int64_t before = -1;
        for (int32_t i = 0; i < traj->n_runs; i++) {
            int64_t version = traj->runs[i].version;
            if (version < before || version < 0 || version > newest)
                violation(b, &b->wrong_version, "%llu/%d: version %lld after %lld, newest %lld",
                          (unsigned long long)traj->task_serial, traj->sample, (long long)version,
                          (long long)before, (long long)newest);
            before = version;
        }
        b->multi_version += traj->n_runs > 1;
    }
    ifl_trajectory_free(traj);
    return IFL_OK;
}

static void on_trained(job_books *b, table *t, const ifl_record *r, int32_t process) {
    for (int32_t i = 0; i < r->n_keys; i++) {
        if (r->keys[i].purpose != IFL_PURPOSE_TRAIN) continue;
        entry *e = entry_of(t, r->keys[i].task_serial, r->keys[i].sample);
        unsigned long long serial = e->serial;
        if (e->trained_in > 0)
            violation(b, &b->trained_twice, "%llu/%d is trained in steps %lld and %lld", serial,
                      e->sample, (long long)e->trained_in, (long long)r->step);
        if (e->stored_by == 0)
            violation(b, &b->trained_unstored, "%llu/%d is trained by process %d and not stored",
                      serial, e->sample, process);
        if (!e->leased)
            violation(b, &b->not_leased, "%llu/%d is trained and was not leased", serial,
                      e->sample);
        e->trained_in = r->step;
    }
}

static void entry_end(table *t, const ifl_record *r, int32_t process) {
    entry *e = entry_of(t, r->key.task_serial, r->key.sample);
    e->ended = true;
    e->ended_by = process;
}

static ifl_status log_read(job_books *b, table *t, bool *ended, process_of_run *processes,
                           const char *folder, ifl_error *err) {
    ifl_rollout_reader *reader;
    ifl_record r;
    int64_t newest = 0;
    IFL_TRY(ifl_rollout_reader_open(&reader, folder, err));
    ifl_status st;
    while ((st = ifl_rollout_reader_next(reader, &r, err)) == IFL_OK) {
        b->records++;
        int32_t process = (int32_t)b->processes;
        switch (r.type) {
        case IFL_RECORD_RUN_STARTED:
            if (b->processes < PROCESSES_MAX)
                processes[b->processes] =
                    (process_of_run){ifl_rollout_segment_number(r.file), r.step};
            b->processes++;
            newest = r.step;
            *ended = false;
            on_started(t, &r);
            break;
        case IFL_RECORD_LEASED:
            for (int32_t i = 0; i < r.group_size && r.purpose == IFL_PURPOSE_TRAIN; i++) {
                entry *e = entry_of(t, r.task_serial, i);
                e->leased = true;
                if (e->trained_in == 0 && e->ended_by != process) e->ended = false;
            }
            break;
        case IFL_RECORD_TRAJECTORY:
            st = on_trajectory(b, t, &r, process, newest, err);
            break;
        case IFL_RECORD_PUBLISHED: /* before any actor can have it */
            newest = r.step;
            break;
        case IFL_RECORD_TRAINED:
            if (r.step > newest) newest = r.step;
            on_trained(b, t, &r, process);
            break;
        case IFL_RECORD_DROPPED:
        case IFL_RECORD_MASKED:
            if (r.key.purpose == IFL_PURPOSE_TRAIN) entry_end(t, &r, process);
            break;
        case IFL_RECORD_RUN_ENDED:
            *ended = true;
            for (int32_t i = 0; i < r.n_keys; i++)
                entry_of(t, r.keys[i].task_serial, r.keys[i].sample)->open = true;
            break;
        case IFL_RECORD_GROUP_CLOSED:
        case IFL_RECORD_CHECKPOINT:
        case IFL_RECORD_TAKEN:
        case IFL_RECORD_CAUGHT_UP:
        case IFL_RECORD_DRAWN:
            break;
        }
        if (st != IFL_OK) break;
    }
    b->torn_bytes = ifl_rollout_reader_torn_bytes(reader);
    ifl_rollout_reader_close(reader);
    return st == IFL_NOTFOUND ? IFL_OK : st;
}

/* --- The recorders ---------------------------------------------------------------------------- */

static bool was_stored_under(const entry *e, uint64_t lease) {
    for (int32_t i = 0; i < e->n_leases && i < 8; i++)
        if (e->leases[i] == lease) return true;
    return e->n_leases > 8; /* of older ones nothing is known */
}

static void record_read(job_books *b, table *t, const char *path) {
    char line[256], what[16];
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        int purpose, status;
        int32_t sample;
        unsigned long long serial, lease;
        if (sscanf(line, "%15s %d %llu %d %llu %d", what, &purpose, &serial, &sample, &lease,
                   &status) != 6 ||
            purpose != IFL_PURPOSE_TRAIN)
            continue;
        bool sent = !strcmp(what, "sent"), acked = !strcmp(what, "acked") && status == 1;
        b->sent += sent;
        b->acked += acked;
        if (!sent && !acked) continue;
        entry *e = entry_of(t, serial, sample);
        if (acked && !was_stored_under(e, lease))
            violation(b, &b->lost,
                      "%llu/%d was acknowledged under lease %llu and is not in the log", serial,
                      sample, lease);
    }
    if (f) fclose(f);
}

ifl_status job_books_read(job_books *b, const char *rollouts, const char *record,
                          const char *versions, ifl_error *err) {
    static process_of_run processes[PROCESSES_MAX];
    *b = (job_books){0};
    table t = {0};
    bool ended = false;
    ifl_status st = log_read(b, &t, &ended, processes, rollouts, err);
    if (st == IFL_OK && versions) versions_check(b, processes, versions);
    DIR *dir = st == IFL_OK ? opendir(record) : NULL;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[PATH_BYTES];
        if (e->d_name[0] == '.' || !strncmp(e->d_name, "learner", 7)) continue;
        snprintf(path, sizeof path, "%s/%s", record, e->d_name);
        record_read(b, &t, path);
    }
    if (dir) closedir(dir);
    for (size_t i = 0; st == IFL_OK && i < t.cap; i++) {
        const entry *e = &t.entries[i];
        if (!e->used || !e->leased) continue;
        b->leased++;
        b->trained += e->trained_in > 0;
        if (e->trained_in == 0 && !e->ended && !e->open && ended)
            violation(b, &b->lost, "%llu/%d was leased and is nowhere",
                      (unsigned long long)e->serial, e->sample);
    }
    free(t.entries);
    return st;
}
