/* Another engine that runs a case of ours: how it is called and what it prints.
 *
 *   llama.cpp=PATH[,GGUF]  llama-batched-bench at PATH, or in that folder, on a BF16 GGUF file:
 * decode and prefill torch[=PYTHON]         tests/bench/torch_train.py under PYTHON (python3),
 * random weights of the model's shape: training
 *
 * CPUs are inherited from this process, threads and shapes are those of our side. */
#ifndef IFL_CLI_BENCH_PEER_H
#define IFL_CLI_BENCH_PEER_H

#include "deploy/cli/bench.h"

enum { IFL_PEER_PATH_MAX = 1024 };

typedef enum { IFL_PEER_LLAMA, IFL_PEER_TORCH } ifl_peer_kind;

typedef struct ifl_bench_peer {
    ifl_peer_kind kind;
    char program[IFL_PEER_PATH_MAX];
    char gguf[IFL_PEER_PATH_MAX];   /* llama.cpp: what both sides read */
    char script[IFL_PEER_PATH_MAX]; /* torch */
    char folder[64];                /* torch: temporary, with config.json; "" = none */
    const char *dtype, *head;       /* torch */
} ifl_bench_peer;

/* Looks the peer's files up and checks that the model suits it. Close it in any case. */
ifl_status ifl_bench_peer_open(ifl_bench_peer *peer, const char *spec, const ifl_bench_args *a,
                               ifl_error *err);
void ifl_bench_peer_close(ifl_bench_peer *peer);

bool ifl_bench_peer_runs(const ifl_bench_peer *peer, ifl_bench_model_kind kind);
const char *ifl_bench_peer_name(const ifl_bench_peer *peer); /* "llama.cpp", "torch bf16" */

typedef struct ifl_bench_turn {
    double tokens_per_s;
    double share_of_roofline; /* ours; 0 for peers */
    int64_t peak_memory_bytes;
    char engine[160]; /* what it says of itself */
    char command[1024];
} ifl_bench_turn;

/* One turn: one repetition that does not count, then one that does. */
ifl_status ifl_bench_peer_turn(ifl_bench_turn *out, const ifl_bench_peer *peer,
                               const ifl_bench_args *a, const ifl_bench_model_case *c,
                               ifl_error *err);

/* In what the two sides of a case are alike and where they are not. A static text. */
const char *ifl_bench_peer_conditions(const ifl_bench_peer *peer, const ifl_bench_model_case *c);

/* The row of llama-batched-bench's table that counts: the last of at least two of this shape. For
 * tests too. */
ifl_status ifl_bench_peer_parse_table(const char *text, const ifl_bench_model_case *c,
                                      int32_t new_tokens, double *tokens_per_s, ifl_error *err);

#endif
