/* inflight bench: what this host makes of ops and of whole models, against its roofline and against
 * other engines.
 */
#include <stdlib.h>
#include <string.h>

#include "deploy/cli/affinity.h"
#include "deploy/cli/bench.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "kernels/bench_ops.h"

enum {
    KEY_MODEL = 'm',
    KEY_THREADS = 't',
    KEY_BATCH = 'b',
    KEY_PROMPT = 'p',
    KEY_NEW = 'n',
    KEY_REPEAT = 'r',
    KEY_CHUNK = 1,
    KEY_JSON,
    KEY_ISA,
    KEY_SEQUENCES,
    KEY_LENGTH,
    KEY_PACK,
    KEY_TRAINED,
    KEY_MEMORY,
    KEY_SECONDS,
    KEY_EVERY,
    KEY_CASE,
    KEY_COUNT,
    KEY_COUNT_CASE,
    KEY_COUNT_RUNS,
    KEY_AGAINST,
    KEY_SCRIPT,
    KEY_DTYPE,
    KEY_TORCH_HEAD,
    KEY_PEER_TIMEOUT,
    KEY_SIZE,
    KEY_VERSIONS
};

static const struct argp_option bench_options[] = {
    {"model", KEY_MODEL, "PATH", 0,
     "model.path: Hugging Face folder, GGUF file, or a shape for random weights: gemma-3-270m "
     "(default), tiny-llama, "
     "...",
     0},
    {"batch", KEY_BATCH, "N,N,...", 0, "decode: sequences at once (default 1,8,32,64); prefill: 1",
     0},
    {"prompt-tokens", KEY_PROMPT, "N", 0, "decode: 32, prefill alone: 512", 0},
    {"new-tokens", KEY_NEW, "N", 0,
     "decode: tokens of each sequence that are timed (default 32); swap: of each "
     "sequence (default 512, so that none ends within a stretch)",
     0},
    {"chunk-tokens", KEY_CHUNK, "N", 0,
     "actor.prefill_chunk_tokens: rows of one forward of prefill (default 256)", 0},
    {"sequences", KEY_SEQUENCES, "N", 0, "train: sequences of one optimizer step (default 8)", 0},
    {"sequence-tokens", KEY_LENGTH, "N", 0, "train: tokens of each (default 256)", 0},
    {"pack-tokens", KEY_PACK, "N", 0,
     "learner.pack_tokens: most rows of one forward and backward of train (default 1024)", 0},
    {"trained-last", KEY_TRAINED, "N", 0,
     "train: the loss is on the last N tokens of each sequence (default 0: on all; in the whole "
     "table both cases, the "
     "last quarter being the second)",
     0},
    {"repeat", KEY_REPEAT, "N", 0,
     "measurements, after one that does not count (default 3); with --against rounds (default 5)",
     0},
    {"threads", KEY_THREADS, "N", 0,
     "actor.threads and, for train, learner.threads (default 0: one per CPU)", 0},
    {"isa", KEY_ISA, "NAME", 0, "ref, generic, avx2, avx512, ... (default: the best)", 0},
    {"memory-gib", KEY_MEMORY, "X", 0,
     "memory.limit_gib: refuse to hold more than X GiB (default 0: no limit)", 0},
    {"seconds", KEY_SECONDS, "X", 0,
     "time of each op, and of each measurement of peak and bandwidth (default 0.3)", 0},
    {"case", KEY_CASE, "TEXT", 0,
     "ops: only cases whose name holds TEXT; transport: plane, plane_curve or zmq_curve alone", 0},
    {"every", KEY_EVERY, "SECONDS", 0,
     "swap: time from one version to the next (default 5); a stretch has four", 0},
    {"versions", KEY_VERSIONS, "FOLDER", 0,
     "swap: code and apply the versions of a real run (runs/NAME/versions/NUMBER), at most 16", 0},
    {"size-mib", KEY_SIZE, "N", 0, "transport: bytes of one measurement (default 512)", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a line; tests/bench/README.md lists the fields",
     0},
    {"count", KEY_COUNT, NULL, 0,
     "ops: count instructions under valgrind's callgrind, for noisy machines", 0},
    {"count-case", KEY_COUNT_CASE, "I", OPTION_HIDDEN, "what --count runs: this case", 0},
    {"count-runs", KEY_COUNT_RUNS, "N", OPTION_HIDDEN, "so often", 0},
    {"against", KEY_AGAINST, "PEER", 0,
     "in turns with another engine: llama.cpp=PATH[,GGUF] (folder of llama-batched-bench, and the "
     "BF16 GGUF file that "
     "both read: decode and prefill) or torch[=PYTHON] (training); may be given twice",
     5},
    {"peer-timeout", KEY_PEER_TIMEOUT, "SECONDS", 0,
     "end a peer's turn that takes longer (default 1800)", 5},
    {"script", KEY_SCRIPT, "FILE", 0,
     "torch: where torch_train.py is (default: tests/bench of the source)", 5},
    {"torch-dtype", KEY_DTYPE, "TYPE", 0, "torch: f32 or bf16 (default: that of model.numerics)",
     5},
    {"torch-head", KEY_TORCH_HEAD, "WHICH", 0,
     "torch: logits of all positions (default) or only of the trained ones", 5},
    {0}};

static const ifl_option_key bench_keys[] = {{KEY_MODEL, "model.path", NULL},
                                            {KEY_CHUNK, "actor.prefill_chunk_tokens", NULL},
                                            {KEY_PACK, "learner.pack_tokens", NULL},
                                            {KEY_THREADS, "actor.threads", NULL},
                                            {KEY_THREADS, "learner.threads", NULL},
                                            {KEY_MEMORY, "memory.limit_gib", NULL},
                                            {0}};

static ifl_status batches_parse(ifl_bench_args *a, const char *arg, ifl_error *err) {
    a->n_batches = 0;
    for (const char *c = arg;; c++) {
        char *end;
        long n = strtol(c, &end, 10);
        if (end == c || n < 1 || n > 1024 || a->n_batches == IFL_BENCH_BATCHES_MAX ||
            (*end && *end != ','))
            return ifl_fail(err, IFL_USAGE,
                            "--batch: got \"%.40s\", wanted up to %d of 1..1024 like 1,8,32", arg,
                            IFL_BENCH_BATCHES_MAX);
        a->batches[a->n_batches++] = (int32_t)n;
        if (!*end) return IFL_OK;
        c = end;
    }
}

static ifl_status choice_take(const char **out, const char *option, const char *arg,
                              const char *one, const char *other, ifl_error *err) {
    if (strcmp(arg, one) != 0 && strcmp(arg, other) != 0)
        return ifl_fail(err, IFL_USAGE, "--%s: got \"%.40s\", wanted %s or %s", option, arg, one,
                        other);
    *out = arg;
    return IFL_OK;
}

static ifl_status bench_option(int key, const char *arg, void *user, ifl_error *err) {
    ifl_bench_args *a = user;
    switch (key) {
    case KEY_BATCH:
        return batches_parse(a, arg, err);
    case KEY_PROMPT:
        return ifl_options_int("prompt-tokens", arg, 1, 1 << 20, &a->prompt_tokens, err);
    case KEY_NEW:
        return ifl_options_int("new-tokens", arg, 1, 1 << 16, &a->new_tokens, err);
    case KEY_SEQUENCES:
        return ifl_options_int("sequences", arg, 1, 4096, &a->sequences, err);
    case KEY_LENGTH:
        return ifl_options_int("sequence-tokens", arg, 2, 1 << 16, &a->sequence_tokens, err);
    case KEY_TRAINED:
        return ifl_options_int("trained-last", arg, 0, 1 << 16, &a->trained_last, err);
    case KEY_REPEAT:
        return ifl_options_int("repeat", arg, 1, IFL_BENCH_REPEATS_MAX, &a->repeat, err);
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    case KEY_SECONDS:
        return ifl_options_double("seconds", arg, 0.001, 60, &a->seconds, err);
    case KEY_EVERY:
        return ifl_options_double("every", arg, 0.01, 3600, &a->every_s, err);
    case KEY_VERSIONS:
        a->versions = arg;
        return IFL_OK;
    case KEY_CASE:
        a->only = arg;
        return IFL_OK;
    case KEY_JSON:
        a->json = true;
        return IFL_OK;
    case KEY_COUNT:
        a->count = true;
        return IFL_OK;
    case KEY_COUNT_CASE:
        return ifl_options_int("count-case", arg, 0, 10000, &a->count_case, err);
    case KEY_COUNT_RUNS:
        return ifl_options_int("count-runs", arg, 1, 1 << 20, &a->count_runs, err);
    case KEY_AGAINST:
        if (a->n_peers == IFL_BENCH_PEERS_MAX)
            return ifl_fail(err, IFL_USAGE, "--against: more than %d peers", IFL_BENCH_PEERS_MAX);
        a->peers[a->n_peers++] = arg;
        return IFL_OK;
    case KEY_SCRIPT:
        a->script = arg;
        return IFL_OK;
    case KEY_DTYPE:
        return choice_take(&a->torch_dtype, "torch-dtype", arg, "f32", "bf16", err);
    case KEY_TORCH_HEAD:
        return choice_take(&a->torch_head, "torch-head", arg, "all", "trained", err);
    case KEY_SIZE:
        return ifl_options_int("size-mib", arg, 4, 1 << 20, &a->size_mib, err);
    case KEY_PEER_TIMEOUT:
        return ifl_options_double("peer-timeout", arg, 0.1, 1e6, &a->peer_timeout_s, err);
    default:
        return ifl_fail(err, IFL_USAGE, "unknown option");
    }
}

/* --- Command
 * -------------------------------------------------------------------------------------- */

static ifl_status bench_ops(const ifl_bench_args *a, ifl_error *err) {
    if (a->count_case >= 0)
        return ifl_bench_ops_repeat((int32_t)a->count_case, a->numerics, a->count_runs, err);
    const ifl_bench_ops_options o = {.profile = a->numerics,
                                     .n_threads = a->n_threads,
                                     .seconds_per_case = a->seconds,
                                     .only = a->only,
                                     .json = a->json};
    return a->count ? ifl_bench_count(a, err) : ifl_bench_ops(stdout, &o, err);
}

static ifl_status bench_dispatch(const ifl_bench_args *a, const char *what, ifl_error *err) {
    static const char *const known[] = {"decode", "prefill",   "train", "model",
                                        "ops",    "transport", "swap",  "all"};
    bool found = false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        found |= strcmp(what, known[i]) == 0;
    if (!found)
        return ifl_fail(err, IFL_USAGE,
                        "bench: got \"%.40s\", wanted decode, prefill, train, model, ops, "
                        "transport, swap or all",
                        what);
    bool all = strcmp(what, "all") == 0, ops = strcmp(what, "ops") == 0;
    bool transport = strcmp(what, "transport") == 0, swap = strcmp(what, "swap") == 0;
    if (a->n_peers && (ops || transport || swap))
        return ifl_fail(err, IFL_USAGE, "--against compares whole models, not %s", what);
    if (a->n_peers) return ifl_bench_against(a, all ? "model" : what, err);
    if (a->count && !ops)
        return ifl_fail(err, IFL_USAGE, "--count counts ops: inflight bench ops --count");
    if (transport) return ifl_bench_transport(a, err);
    if (swap) return ifl_bench_swap(a, err);
    if (all || ops) IFL_TRY(bench_ops(a, err));
    if (ops) return IFL_OK;
    ifl_bench_model_case cases[IFL_BENCH_CASES_MAX];
    int32_t n = ifl_bench_model_cases(a, all ? "model" : what, cases);
    return ifl_bench_model(a, cases, n, err);
}

static ifl_status bench_work(const ifl_options *options, void *user, ifl_error *err) {
    ifl_bench_args *a = user;
    const char *what = options->n_args ? options->args[0] : "all";
    a->options = options;
    a->config = options->config;
    a->model = ifl_config_model_name(options->config);
    if (a->repeat == 0) a->repeat = strcmp(what, "transport") == 0 ? 7 : a->n_peers ? 5 : 3;
    /* The whole table is one comparison: its cases have the same threads. */
    bool train = strcmp(what, "train") == 0;
    bool swap = strcmp(what, "swap") == 0;
    a->n_threads = ifl_cpu_threads(train ? a->config->learner.threads : a->config->actor.threads);
    /* The other end of the weight plane needs a CPU, too. */
    if (swap && a->config->actor.threads == 0 && a->n_threads > 1) a->n_threads--;
    if (a->isa && !a->count && !ifl_ops_force(a->isa))
        return ifl_fail(err, IFL_USAGE, "--isa %s: this host cannot run it", a->isa);
    IFL_TRY(ifl_profile_parse(&a->numerics, a->config->model.numerics, err));
    return bench_dispatch(a, what, err);
}

int ifl_cmd_bench(int argc, char **argv) {
    static const char *const presets[] = {"model.path=gemma-3-270m", "actor.threads=0",
                                          "learner.threads=0", "learner.pack_tokens=1024", NULL};
    ifl_bench_args a = {.sequences = 8,
                        .sequence_tokens = 256,
                        .seconds = 0.3,
                        .count_case = -1,
                        .count_runs = 1,
                        .peer_timeout_s = 1800,
                        .size_mib = 512,
                        .every_s = 5};
    const ifl_options_spec spec = {
        .doc = "Measures this host. WHAT is decode, prefill or train (tokens per second of a whole "
               "model: through the engine, and as forward, backward, AdamW and the packing of the "
               "next weights), model (all three), ops (single ops), each beside the share of this "
               "host's measured roofline; transport (dense weights from one process to another "
               "beside a raw socket, plain and with keys) or swap (decoding with and without new "
               "weights in its middle). Without WHAT: all but the last two.",
        .args_doc = "[WHAT]",
        .extra = bench_options,
        .keys = bench_keys,
        .presets = presets,
        .on_option = bench_option,
        .user = &a,
        .n_args_max = 1,
        .work = bench_work,
    };
    return ifl_options_run(argc, argv, &spec);
}
