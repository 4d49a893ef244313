/* `inflight replay RUN [SERIAL/SAMPLE ...]`: generates trajectories again, from their headers and
 * the run's archived versions, and compares every token and every bit of every log-prob. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/rollout_log.h"
#include "common/rng.h"
#include "deploy/cli/affinity.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/options.h"
#include "deploy/cli/run_archive.h"
#include "deploy/cli/run_argument.h"

#define PICKED_MAX (1 << 20)

typedef struct replay_options {
    int64_t n_random, seed;
    bool eval, swapped, json;
} replay_options;

/* A trajectory that was chosen, still encoded. */
typedef struct picked {
    ifl_trajectory *traj;
    int32_t process; /* of the run: whose versions it was sampled by */
    int64_t newest;
} picked;

typedef struct replayer {
    const replay_options *options;
    const ifl_options *common;
    ifl_run_dir run;
    picked *picked;
    size_t n_picked, picked_cap;
    int64_t n_seen; /* that could have been picked */
    ifl_thread_pool *pool;
    ifl_run_archive archive;
    /* What came out. */
    int64_t n_replayed, n_swapped, n_not_replayable, n_tokens, n_after_swap, n_differing;
} replayer;

/* --- Which ones ------------------------------------------------------------------------------- */

static bool names_trajectory(const char *text, uint64_t *serial, int32_t *sample) {
    char *end;
    unsigned long long a = strtoull(text, &end, 10);
    if (end == text || *end != '/') return false;
    const char *second = end + 1;
    long b = strtol(second, &end, 10);
    if (end == second || *end || b < 0 || b > INT32_MAX) return false;
    *serial = a;
    *sample = (int32_t)b;
    return true;
}

static bool is_swapped(const ifl_trajectory *traj) {
    return traj->n_runs > 0 && traj->runs[traj->n_runs - 1].version != traj->runs[0].version;
}

static bool is_wanted(const replayer *r, const ifl_trajectory *traj) {
    if ((traj->purpose == IFL_PURPOSE_EVAL) != r->options->eval) return false;
    if (r->options->swapped && !is_swapped(traj)) return false;
    if (r->common->n_args < 2) return true;
    for (int i = 1; i < r->common->n_args; i++) {
        uint64_t serial;
        int32_t sample;
        if (names_trajectory(r->common->args[i], &serial, &sample) && serial == traj->task_serial &&
            sample == traj->sample)
            return true;
    }
    return false;
}

/* Keeps it, or with --random keeps each one seen so far with the same chance (Vitter's algorithm
 * R). */
static ifl_status pick(replayer *r, ifl_trajectory *traj, ifl_error *err) {
    int64_t seen = r->n_seen++, limit = r->options->n_random;
    size_t place = r->n_picked;
    if (limit > 0 && (int64_t)r->n_picked == limit) {
        ifl_rng_key key = {(uint64_t)r->options->seed, 0, IFL_RNG_ORDER};
        place = (size_t)ifl_rng_below(&key, (uint64_t)seen, 0, (uint64_t)seen + 1);
        if ((int64_t)place >= limit) {
            ifl_trajectory_free(traj);
            return IFL_OK;
        }
        ifl_trajectory_free(r->picked[place].traj);
        r->picked[place].traj = NULL;
    } else {
        if (r->n_picked == PICKED_MAX) {
            ifl_trajectory_free(traj);
            return ifl_fail(err, IFL_LIMIT, "more than %d trajectories: choose some, or --random=N",
                            PICKED_MAX);
        }
        void *grown = r->picked;
        ifl_status st = ifl_grow(&grown, &r->picked_cap, r->n_picked + 1, sizeof *r->picked, err);
        r->picked = grown;
        if (st != IFL_OK) {
            ifl_trajectory_free(traj);
            return st;
        }
        r->n_picked++;
    }
    int64_t newest = -1;
    for (int32_t i = 0; i < traj->n_runs; i++)
        if (traj->runs[i].version > newest) newest = traj->runs[i].version;
    r->picked[place] = (picked){traj, r->archive.n_processes - 1, newest};
    return IFL_OK;
}

static ifl_status choose(replayer *r, ifl_error *err) {
    for (int i = 1; i < r->common->n_args; i++) {
        uint64_t serial;
        int32_t sample;
        if (!names_trajectory(r->common->args[i], &serial, &sample))
            return ifl_fail(err, IFL_USAGE,
                            "got \"%s\", wanted SERIAL/SAMPLE, as inflight rollouts prints them",
                            r->common->args[i]);
    }
    ifl_rollout_reader *reader;
    ifl_record record;
    IFL_TRY(ifl_rollout_reader_open(&reader, r->run.rollouts, err));
    ifl_status st;
    while ((st = ifl_rollout_reader_next(reader, &record, err)) == IFL_OK) {
        if ((st = ifl_run_archive_record(&r->archive, &record, err)) != IFL_OK) break;
        if (record.type != IFL_RECORD_TRAJECTORY) continue;
        ifl_trajectory *traj;
        st = ifl_trajectory_decode(&traj, record.meta, record.n_meta, record.payload,
                                   record.n_payload, err);
        if (st == IFL_OK && is_wanted(r, traj))
            st = pick(r, traj, err);
        else if (st == IFL_OK)
            ifl_trajectory_free(traj);
        if (st != IFL_OK) break;
    }
    ifl_rollout_reader_close(reader);
    if (st != IFL_NOTFOUND) return st;
    if (r->n_picked == 0)
        return ifl_fail(err, IFL_NOTFOUND, "%s: no such trajectory", r->run.rollouts);
    return IFL_OK;
}

static int compare_picked(const void *a, const void *b) {
    const picked *x = a, *y = b;
    if (x->process != y->process) return x->process < y->process ? -1 : 1;
    if (x->newest != y->newest) return x->newest < y->newest ? -1 : 1;
    if (x->traj->task_serial != y->traj->task_serial)
        return x->traj->task_serial < y->traj->task_serial ? -1 : 1;
    return x->traj->sample - y->traj->sample;
}

/* --- One of them ------------------------------------------------------------------------------ */

static void say(const replayer *r, const picked *p, ifl_status st, const ifl_replay_result *result,
                const char *why) {
    const ifl_trajectory *t = p->traj;
    if (r->options->json) {
        printf("{\"serial\":%llu,\"sample\":%d,\"versions\":%d,\"tokens\":%lld,\"after_swap\":%lld,"
               "\"differing\":%lld,\"replayed\":%s}\n",
               (unsigned long long)t->task_serial, t->sample, t->n_runs,
               (long long)result->n_checked, (long long)result->n_after_swap,
               (long long)result->n_differing, st == IFL_OK ? "true" : "false");
        return;
    }
    if (st != IFL_OK) {
        printf("%llu/%d: not replayed: %s\n", (unsigned long long)t->task_serial, t->sample, why);
    } else if (result->n_differing > 0) {
        printf("%llu/%d: %lld of %lld tokens differ; first at token %d, version %lld: recorded "
               "%.9g, replayed %.9g\n",
               (unsigned long long)t->task_serial, t->sample, (long long)result->n_differing,
               (long long)result->n_checked, result->first_differing,
               (long long)ifl_trajectory_version_at(t, result->first_differing),
               (double)result->first_recorded, (double)result->first_replayed);
    } else if (r->common->n_args > 1) {
        printf("%llu/%d: %lld tokens, %lld of them after a swap: the same\n",
               (unsigned long long)t->task_serial, t->sample, (long long)result->n_checked,
               (long long)result->n_after_swap);
    }
}

static ifl_status replay_one(replayer *r, const picked *p, ifl_error *err) {
    ifl_replay_result result = {0};
    ifl_error why = {0};
    ifl_status st = ifl_run_archive_open(&r->archive, p->process, p->traj->profile, &why);
    if (st == IFL_OK)
        st = ifl_replay_generate(ifl_run_archive_workspace(&r->archive), ifl_run_archive_get,
                                 &r->archive, p->traj, &result, &why);
    if (st == IFL_NOMEM) {
        *err = why;
        return st;
    }
    say(r, p, st, &result, r->archive.gone.status != IFL_OK ? r->archive.gone.text : why.text);
    if (st != IFL_OK) {
        r->n_not_replayable++;
        return IFL_OK;
    }
    r->n_replayed++;
    r->n_swapped += is_swapped(p->traj);
    r->n_tokens += result.n_checked;
    r->n_after_swap += result.n_after_swap;
    r->n_differing += result.n_differing;
    return IFL_OK;
}

static ifl_status replay_all(replayer *r, ifl_error *err) {
    qsort(r->picked, r->n_picked, sizeof *r->picked, compare_picked);
    for (size_t i = 0; i < r->n_picked; i++) {
        IFL_TRY(replay_one(r, &r->picked[i], err));
        if (!r->options->json && r->n_picked > 1 && (i + 1) % 50 == 0)
            fprintf(stderr, "replay: %zu of %zu\n", i + 1, r->n_picked);
    }
    FILE *f = r->options->json ? stderr : stdout;
    fprintf(f,
            "replayed %lld trajectories, %lld of them across a swap: %lld tokens drawn again, %lld "
            "after a swap; %lld differ in token or log-prob; %lld trajectories not replayable\n",
            (long long)r->n_replayed, (long long)r->n_swapped, (long long)r->n_tokens,
            (long long)r->n_after_swap, (long long)r->n_differing, (long long)r->n_not_replayable);
    fflush(stdout);
    if (r->n_differing > 0)
        return ifl_fail(err, IFL_PARITY, "%lld of %lld tokens differ", (long long)r->n_differing,
                        (long long)r->n_tokens);
    if (r->n_replayed == 0)
        return ifl_fail(err, IFL_NOTFOUND, "none of %zu trajectories could be replayed",
                        r->n_picked);
    return IFL_OK;
}

/* --- The command ------------------------------------------------------------------------------ */

enum { KEY_RANDOM = 1, KEY_SEED, KEY_EVAL, KEY_SWAPPED, KEY_JSON, KEY_DIR, KEY_THREADS };

static ifl_status on_option(int key, const char *arg, void *user, ifl_error *err) {
    replay_options *o = user;
    switch (key) {
    case KEY_RANDOM:
        return ifl_options_int("random", arg, 1, PICKED_MAX, &o->n_random, err);
    case KEY_SEED:
        return ifl_options_int("seed", arg, 0, INT64_MAX, &o->seed, err);
    case KEY_EVAL:
        o->eval = true;
        break;
    case KEY_SWAPPED:
        o->swapped = true;
        break;
    case KEY_JSON:
        o->json = true;
        break;
    }
    return IFL_OK;
}

static ifl_status replay_work(const ifl_options *options, void *user, ifl_error *err) {
    replayer r = {.options = user, .common = options};
    IFL_TRY(ifl_run_argument(&r.run, options, err));
    ifl_status st = ifl_thread_pool_create(&r.pool, options->config->actor.threads, err);
    ifl_run_archive_init(&r.archive, &r.run, r.pool);
    if (st == IFL_OK) st = choose(&r, err);
    if (st == IFL_OK) st = replay_all(&r, err);
    ifl_run_archive_close(&r.archive);
    ifl_thread_pool_free(r.pool);
    for (size_t i = 0; i < r.n_picked; i++)
        ifl_trajectory_free(r.picked[i].traj);
    free(r.picked);
    return st;
}

static ifl_status replay_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    (void)user;
    ifl_run_dir run;
    ifl_options_print(options, stdout);
    IFL_TRY(ifl_run_argument(&run, options, err));
    printf("# reads   %s/, %s/\n# writes  standard output\n", run.rollouts, run.versions);
    return IFL_OK;
}

int ifl_cmd_replay(int argc, char **argv) {
    static const struct argp_option extra[] = {
        {"random", KEY_RANDOM, "N", 0, "N of them, each with the same chance", 0},
        {"seed", KEY_SEED, "N", 0, "of --random (default 1)", 0},
        {"swapped", KEY_SWAPPED, NULL, 0, "only those that took in new weights on their way", 0},
        {"eval", KEY_EVAL, NULL, 0, "evaluation's trajectories instead of training's", 0},
        {"json", KEY_JSON, NULL, 0, "one JSON object per trajectory", 0},
        {"threads", KEY_THREADS, "N", 0, "actor.threads (default 0: one per CPU)", 0},
        {"dir", KEY_DIR, "DIR", 0, "run.dir: folder of all runs (default runs)", 0},
        {0},
    };
    static const ifl_option_key keys[] = {
        {KEY_DIR, "run.dir", NULL}, {KEY_THREADS, "actor.threads", NULL}, {0}};
    static const char *const presets[] = {"actor.threads=0", NULL};
    replay_options mine = {.seed = 1};
    const ifl_options_spec spec = {.doc = "Generates trajectories of a run again, from what their "
                                          "records say (seed, lease, versions, "
                                          "KV events) and the versions that the run has archived, "
                                          "and compares every token and every "
                                          "bit of every log-prob. Without SERIAL/SAMPLE: all of "
                                          "them. Status 65 when one differs.",
                                   .args_doc = "RUN [SERIAL/SAMPLE ...]",
                                   .extra = extra,
                                   .keys = keys,
                                   .presets = presets,
                                   .on_option = on_option,
                                   .user = &mine,
                                   .n_args_max = IFL_ARGS_MAX - 1,
                                   .work = replay_work,
                                   .dry_run = replay_dry_run};
    return ifl_options_run(argc, argv, &spec);
}
