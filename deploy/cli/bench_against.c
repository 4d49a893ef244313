/* Ours and a peer's in turns: ours, peer, ours, peer, ... On a shared host only figures of the same
 * minutes compare, so the ratio is taken turn by turn. Our side is a process of its own too,
 * started as a user would start it: both begin with nothing loaded, and the kernel counts both
 * sides' memory. This process itself must stay small: a child's memory is counted from what its
 * parent held at the fork. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"
#include "deploy/cli/bench.h"
#include "deploy/cli/bench_peer.h"
#include "deploy/cli/bench_process.h"

enum { ARGS_MAX = 60 };
#define OURS_TIMEOUT_S (4 * 3600.0) /* it is the peer's time that the user bounds */

/* --- Our side
 * ------------------------------------------------------------------------------------- */

static ifl_status ours_parse(const char *text, ifl_bench_turn *out, ifl_error *err) {
    json_t *o = NULL;
    const char *ops = NULL, *numerics = NULL;
    int64_t bytes = 0;
    IFL_TRY(ifl_json_parse_object(&o, text, strcspn(text, "\n"), 1 << 16, "our own line", err));
    ifl_status st = ifl_json_double(o, "tokens_per_s_median", 0, 1e12, &out->tokens_per_s, err);
    if (st == IFL_OK)
        st = ifl_json_double(o, "share_of_roofline", 0, 1e12, &out->share_of_roofline, err);
    if (st == IFL_OK) st = ifl_json_int(o, "peak_memory_bytes", 0, INT64_MAX, &bytes, err);
    if (st == IFL_OK) st = ifl_json_text(o, "ops", &ops, err);
    if (st == IFL_OK) st = ifl_json_text(o, "numerics", &numerics, err);
    out->peak_memory_bytes = bytes;
    snprintf(out->engine, sizeof out->engine, "inflight, kernels %.40s, numerics %.40s",
             ops ? ops : "?", numerics ? numerics : "?");
    json_decref(o);
    return st;
}

static ifl_status ours_turn(ifl_bench_turn *out, const ifl_bench_peer *peer,
                            const ifl_bench_args *a, const ifl_bench_model_case *c,
                            ifl_error *err) {
    char batch[16], prompt[16], new_text[16], trained[16], threads[16], seconds[32];
    const char *argv[ARGS_MAX] = {"/proc/self/exe", "bench", ifl_bench_model_kind_name(c->kind)};
    int n = 3;
    memset(out, 0, sizeof *out);
    /* What the user said of the configuration goes first, so that what the comparison decides goes
     * over it. */
    if (a->options->n_overrides + a->options->n_settings > ARGS_MAX - 30)
        return ifl_fail(err, IFL_LIMIT, "--against: more than %d settings", ARGS_MAX - 30);
    if (a->options->config_path) {
        argv[n++] = "--config";
        argv[n++] = a->options->config_path;
    }
    for (int i = 0; i < a->options->n_overrides; i++)
        argv[n++] = a->options->overrides[i];
    for (int i = 0; i < a->options->n_settings; i++)
        argv[n++] = a->options->settings[i];
    snprintf(batch, sizeof batch, "%d", c->batch);
    snprintf(prompt, sizeof prompt, "%d", c->prompt_tokens);
    snprintf(new_text, sizeof new_text, "%d", c->new_tokens);
    snprintf(trained, sizeof trained, "%d", c->trained_tokens);
    snprintf(threads, sizeof threads, "%d", a->n_threads);
    snprintf(seconds, sizeof seconds, "%g", a->seconds);
    bool train = c->kind == IFL_BENCH_TRAIN;
    const char *rest[] = {train ? "--sequences" : "--batch",
                          batch,
                          train ? "--sequence-tokens" : "--prompt-tokens",
                          prompt,
                          "--threads",
                          threads,
                          "--seconds",
                          seconds,
                          "--repeat",
                          "1",
                          "--json"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        argv[n++] = rest[i];
    if (c->kind == IFL_BENCH_DECODE) {
        argv[n++] = "--new-tokens";
        argv[n++] = new_text;
    }
    if (train) {
        argv[n++] = "--trained-last";
        argv[n++] = trained;
    }
    if (peer->gguf[0]) {
        argv[n++] = "--model";
        argv[n++] = peer->gguf;
    }
    if (a->isa) {
        argv[n++] = "--isa";
        argv[n++] = a->isa;
    }
    ifl_process_result r;
    const char *shown[ARGS_MAX];
    memcpy(shown, argv, sizeof shown);
    shown[0] = "inflight";
    ifl_process_command(out->command, sizeof out->command, shown);
    ifl_status st = ifl_process_run(&r, argv, "inflight", OURS_TIMEOUT_S, err);
    if (st == IFL_OK) st = ours_parse(r.out, out, err);
    if (st != IFL_OK) ifl_error_wrap(err, "our side");
    ifl_process_result_clear(&r);
    return st;
}

/* --- The table
 * ------------------------------------------------------------------------------------ */

typedef struct comparison {
    ifl_bench_model_case c;
    double ours[IFL_BENCH_REPEATS_MAX], peer[IFL_BENCH_REPEATS_MAX], ratio[IFL_BENCH_REPEATS_MAX];
    double share[IFL_BENCH_REPEATS_MAX];
    ifl_bench_turn last_ours, last_peer;
    int64_t ours_memory, peer_memory; /* the highest of all turns */
} comparison;

/* The CPUs of this process, as 0-3,5. */
static void cpus_text(char *out, size_t size) {
    cpu_set_t set;
    size_t n = 0;
    snprintf(out, size, "?");
    if (sched_getaffinity(0, sizeof set, &set) != 0) return;
    for (int i = 0; i < CPU_SETSIZE && n < size; i++) {
        int last = i;
        if (!CPU_ISSET((size_t)i, &set)) continue;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET((size_t)last + 1, &set))
            last++;
        int put = last > i ? snprintf(out + n, size - n, "%s%d-%d", n ? "," : "", i, last)
                           : snprintf(out + n, size - n, "%s%d", n ? "," : "", i);
        n += (size_t)put;
        i = last;
    }
}

static ifl_status comparison_print_json(const ifl_bench_args *a, const ifl_bench_peer *peer,
                                        comparison *k, ifl_error *err) {
    char cpus[256];
    int64_t n = a->repeat;
    cpus_text(cpus, sizeof cpus);
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:I}", "bench", "against",
        "peer", ifl_bench_peer_name(peer), "peer_engine", k->last_peer.engine, "ours_engine",
        k->last_ours.engine, "case", ifl_bench_model_kind_name(k->c.kind), "model",
        peer->gguf[0] ? peer->gguf : a->model, "threads", a->n_threads, "cpus", cpus, "batch",
        (int)k->c.batch, k->c.kind == IFL_BENCH_TRAIN ? "sequence_tokens" : "prompt_tokens",
        (int)k->c.prompt_tokens, "new_tokens", (int)k->c.new_tokens, "trained_tokens",
        (int)k->c.trained_tokens, "rounds", (json_int_t)n);
    if (!o) return ifl_fail(err, IFL_FORMAT, "bench: a name is not UTF-8 or memory ran out");
    ifl_figures ours = ifl_figures_of(k->ours, n), theirs = ifl_figures_of(k->peer, n),
                ratio = ifl_figures_of(k->ratio, n), share = ifl_figures_of(k->share, n);
    ifl_bench_json_figures(o, "ours_tokens_per_s", &ours);
    ifl_bench_json_figures(o, "peer_tokens_per_s", &theirs);
    ifl_bench_json_figures(o, "ratio", &ratio);
    ifl_bench_json_figures(o, "ours_share_of_roofline", &share);
    json_object_set_new(o, "ours_peak_memory_bytes", json_integer(k->ours_memory));
    json_object_set_new(o, "peer_peak_memory_bytes", json_integer(k->peer_memory));
    json_object_set_new(o, "ours_command", json_string(k->last_ours.command));
    json_object_set_new(o, "peer_command", json_string(k->last_peer.command));
    json_object_set_new(o, "conditions", json_string(ifl_bench_peer_conditions(peer, &k->c)));
    return ifl_bench_json_print(o, err);
}

static void comparison_print(const ifl_bench_args *a, comparison *k) {
    char name[48];
    int64_t n = a->repeat;
    ifl_bench_model_case_name(name, sizeof name, &k->c);
    ifl_figures ours = ifl_figures_of(k->ours, n), theirs = ifl_figures_of(k->peer, n),
                ratio = ifl_figures_of(k->ratio, n), share = ifl_figures_of(k->share, n);
    printf("%-16s %5d %5d %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f %6.2f %6.2f %6.2f %5.0f%% %6.2f "
           "%6.2f %5.2f\n",
           name, k->c.batch, k->c.kind == IFL_BENCH_DECODE ? k->c.new_tokens : k->c.prompt_tokens,
           ours.min, ours.median, ours.max, theirs.min, theirs.median, theirs.max, ratio.min,
           ratio.median, ratio.max, share.median * 100, (double)k->ours_memory / 1073741824.0,
           (double)k->peer_memory / 1073741824.0,
           k->peer_memory > 0 ? (double)k->ours_memory / (double)k->peer_memory : 0);
}

static ifl_status table_print(const ifl_bench_args *a, const ifl_bench_peer *peer, comparison *all,
                              int32_t n, ifl_error *err) {
    char cpus[256];
    if (a->json) {
        for (int32_t i = 0; i < n; i++)
            IFL_TRY(comparison_print_json(a, peer, &all[i], err));
        return IFL_OK;
    }
    cpus_text(cpus, sizeof cpus);
    printf("%s against %s: %s, %lld rounds in turns, %d threads on CPUs %s; tokens/s, ratio round "
           "by round\n"
           "ours: %s\npeer: %s, %s\n",
           peer->gguf[0] ? peer->gguf : a->model, ifl_bench_peer_name(peer),
           n == 1 ? "one case" : "each case", (long long)a->repeat, a->n_threads, cpus,
           all[0].last_ours.engine, all[0].last_peer.engine, peer->program);
    printf("%-16s %5s %5s %8s %8s %8s %8s %8s %8s %6s %6s %6s %6s %6s %6s %5s\n", "", "batch",
           "tok", "ours min", "median", "max", "peer min", "median", "max", "ratio", "median",
           "max", "roof", "GiB", "peer", "ratio");
    const char *said = NULL;
    for (int32_t i = 0; i < n; i++)
        comparison_print(a, &all[i]);
    for (int32_t i = 0; i < n; i++) {
        const char *conditions = ifl_bench_peer_conditions(peer, &all[i].c);
        if (conditions != said)
            printf("%s: %s\n  ours: %s\n  peer: %s\n", ifl_bench_model_kind_name(all[i].c.kind),
                   conditions, all[i].last_ours.command, all[i].last_peer.command);
        said = conditions;
    }
    fflush(stdout);
    return IFL_OK;
}

/* --- Rounds
 * --------------------------------------------------------------------------------------- */

static ifl_status comparison_round(comparison *k, int64_t round, const ifl_bench_peer *peer,
                                   const ifl_bench_args *a, ifl_error *err) {
    char name[48];
    ifl_bench_model_case_name(name, sizeof name, &k->c);
    IFL_TRY(ours_turn(&k->last_ours, peer, a, &k->c, err));
    IFL_TRY(ifl_bench_peer_turn(&k->last_peer, peer, a, &k->c, err));
    k->ours[round] = k->last_ours.tokens_per_s;
    k->peer[round] = k->last_peer.tokens_per_s;
    k->ratio[round] = k->ours[round] / k->peer[round];
    k->share[round] = k->last_ours.share_of_roofline;
    if (k->last_ours.peak_memory_bytes > k->ours_memory)
        k->ours_memory = k->last_ours.peak_memory_bytes;
    if (k->last_peer.peak_memory_bytes > k->peer_memory)
        k->peer_memory = k->last_peer.peak_memory_bytes;
    fprintf(stderr, "round %lld of %lld, %s, batch %d: ours %.1f, %s %.1f tokens/s, ratio %.2f\n",
            (long long)round + 1, (long long)a->repeat, name, k->c.batch, k->ours[round],
            ifl_bench_peer_name(peer), k->peer[round], k->ratio[round]);
    return IFL_OK;
}

static ifl_status against_one(const ifl_bench_args *a, const char *spec, const char *what,
                              ifl_error *err) {
    ifl_bench_model_case cases[IFL_BENCH_CASES_MAX];
    int32_t n_all = ifl_bench_model_cases(a, what, cases), n = 0;
    ifl_bench_peer peer;
    comparison *all = calloc(IFL_BENCH_CASES_MAX, sizeof *all);
    ifl_status st;
    if (!all) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    IFL_TRY_GOTO(st, ifl_bench_peer_open(&peer, spec, a, err), done);
    for (int32_t i = 0; i < n_all; i++)
        if (ifl_bench_peer_runs(&peer, cases[i].kind)) all[n++].c = cases[i];
    if (n == 0) {
        st = ifl_fail(err, IFL_USAGE, "--against %s cannot run %s: %s", ifl_bench_peer_name(&peer),
                      what, peer.kind == IFL_PEER_TORCH ? "it trains" : "it decodes and prefills");
        goto done;
    }
    for (int64_t round = 0; round < a->repeat; round++)
        for (int32_t i = 0; i < n; i++)
            IFL_TRY_GOTO(st, comparison_round(&all[i], round, &peer, a, err), done);
    st = table_print(a, &peer, all, n, err);
done:
    ifl_bench_peer_close(&peer);
    free(all);
    return st;
}

ifl_status ifl_bench_against(const ifl_bench_args *a, const char *what, ifl_error *err) {
    /* Peers that could use a GPU must not: the comparison is one of CPUs. */
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    for (int32_t i = 0; i < a->n_peers; i++)
        IFL_TRY(against_one(a, a->peers[i], what, err));
    return IFL_OK;
}
