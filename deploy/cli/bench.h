/* What the parts of `inflight bench` share (cmd_bench.c, bench_*.c). */
#ifndef IFL_CLI_BENCH_H
#define IFL_CLI_BENCH_H

#include <jansson.h>

#include "deploy/cli/load_model.h"
#include "deploy/cli/options.h"
#include "kernels/bench_figures.h"
#include "kernels/bench_peaks.h"

enum {
    IFL_BENCH_BATCHES_MAX = 16,
    IFL_BENCH_REPEATS_MAX = 100,
    IFL_BENCH_CASES_MAX = 24,
    IFL_BENCH_PEERS_MAX = 2
};

typedef struct ifl_bench_args {
    const ifl_options *options;
    const ifl_config *config;
    const char *model; /* what it is called in the output */
    ifl_profile numerics;
    int n_threads;   /* of every case */
    const char *isa; /* NULL: the best */
    int32_t n_batches, batches[IFL_BENCH_BATCHES_MAX];
    int64_t prompt_tokens; /* 0: 32 to decode, 512 to prefill */
    int64_t new_tokens;    /* 0: 32 to decode, 512 of swap */
    int64_t repeat, sequences, sequence_tokens;
    int64_t trained_last; /* 0: all positions */
    double seconds;       /* of each measurement of a yardstick, and of each op */
    bool json, count;
    const char *only;               /* op cases */
    int64_t count_case, count_runs; /* a child of --count: this case so often; -1: none */
    int32_t n_peers;
    const char *peers[IFL_BENCH_PEERS_MAX];
    const char *script, *torch_dtype, *torch_head; /* NULL: the default */
    double peer_timeout_s;
    int64_t size_mib;     /* transport: of one measurement */
    double every_s;       /* swap: between two publications */
    const char *versions; /* swap: folder of an archive, or NULL */
} ifl_bench_args;

/* --- Cases of the whole model
 * ----------------------------------------------------------------------- */

typedef enum { IFL_BENCH_DECODE, IFL_BENCH_PREFILL, IFL_BENCH_TRAIN } ifl_bench_model_kind;

/* DECODE: `batch` sequences with prompts of `prompt_tokens`, `new_tokens` steps in which each gets
 * one token. PREFILL: the prompts alone, with the first token of each. TRAIN: one optimizer step on
 * `batch` sequences of `prompt_tokens`, loss on the last `trained_tokens` of each. */
typedef struct ifl_bench_model_case {
    ifl_bench_model_kind kind;
    int32_t batch, prompt_tokens, new_tokens, trained_tokens;
} ifl_bench_model_case;

/* `what`: decode, prefill, train or model (all of them). Returns how many. */
int32_t ifl_bench_model_cases(const ifl_bench_args *a, const char *what,
                              ifl_bench_model_case out[IFL_BENCH_CASES_MAX]);
const char *ifl_bench_model_kind_name(ifl_bench_model_kind kind);
/* "decode", "train, last 64": for tables. */
void ifl_bench_model_case_name(char *out, size_t size, const ifl_bench_model_case *c);
/* Positions that one sequence of the case may come to. */
int64_t ifl_bench_model_case_positions(const ifl_bench_args *a, const ifl_bench_model_case *c);

/* What one measurement does at least (bench_cost.c). */
typedef struct ifl_bench_cost {
    int64_t n_tokens; /* that its rate counts: decoded, prefilled, or of the training step */
    double flop, bytes;
    bool from_memory; /* the weights are more than a cache holds; else bytes bound nothing */
} ifl_bench_cost;
ifl_bench_cost ifl_bench_cost_of(const ifl_model *model, const ifl_bench_model_case *c);

/* Runs the cases and prints each as it is done. */
ifl_status ifl_bench_model(const ifl_bench_args *a, const ifl_bench_model_case *cases, int32_t n,
                           ifl_error *err);

/* Seconds of a->repeat measurements, after one that does not count. */
ifl_status ifl_bench_engine_time(const ifl_bench_args *a, const ifl_bench_model_case *c,
                                 const ifl_loaded_model *m, ifl_thread_pool *pool, double *seconds,
                                 ifl_error *err);
ifl_status ifl_bench_train_time(const ifl_bench_args *a, const ifl_bench_model_case *c,
                                const ifl_loaded_model *m, ifl_thread_pool *pool, double *seconds,
                                ifl_error *err);

/* --- Beside others, and under an instruction counter
 * -------------------------------------------------- */

/* Every peer of a->peers, with the cases of `what` that it can run. */
ifl_status ifl_bench_against(const ifl_bench_args *a, const char *what, ifl_error *err);

/* The op cases whose name holds a->only, each run under valgrind's callgrind. */
ifl_status ifl_bench_count(const ifl_bench_args *a, ifl_error *err);

/* The weight plane between two processes beside raw sockets, in turns. */
ifl_status ifl_bench_transport(const ifl_bench_args *a, ifl_error *err);

/* Decoding with and without new weights. */
ifl_status ifl_bench_swap(const ifl_bench_args *a, ifl_error *err);

/* What one version costs on both sides, nothing else going on: the part of swap in bench_coding.c.
 */
typedef struct ifl_bench_coding_result {
    int32_t n_versions;
    ifl_figures encode_ms, apply_ms; /* CPU time of the publisher and of the receiver */
    ifl_figures percent;             /* of dense */
} ifl_bench_coding_result;

/* Publishes the versions of a->versions, or the two of `source` in turns, and has each fetched into
 * one of buffers[2], of which buffers[0] is in use. *version: the newest published so far;
 * *current: the buffer in use afterwards. The buffer not in use has not been offered. */
struct ifl_publisher;
struct ifl_weight_receiver;
ifl_status ifl_bench_coding(const ifl_bench_args *a, struct ifl_publisher *publisher,
                            struct ifl_weight_receiver *receiver,
                            const ifl_weights *const source[2], ifl_weights *const buffers[2],
                            int64_t *version, ifl_weights **current, ifl_bench_coding_result *out,
                            ifl_error *err);

/* --- Printing
 * ----------------------------------------------------------------------------------------- */

/* Adds <name>_min, _median and _max. */
void ifl_bench_json_figures(json_t *object, const char *name, const ifl_figures *f);
/* One line on standard output; takes the reference. */
ifl_status ifl_bench_json_print(json_t *object, ifl_error *err);

#endif
