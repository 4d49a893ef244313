/* The books of a run, recomputed from the rollout log alone:
 *
 *     leased = trained + masked + dropped(reason) + in flight at the end + lost
 *
 * A key (purpose train) is leased once however often its lease is renewed. Its fate is the last one
 * that stands: a resume from step s undoes what was trained in later steps and what was leased
 * beyond its task cursor (such a key counts again once it is leased again), and a lease issued by a
 * later learner process takes back what an earlier one decided about the key. A key without fate is
 * in flight when the last RUN_ENDED names it, or when the log just stops (a crash: nobody has ended
 * the run); else it is lost. */
#ifndef IFL_COMMON_ROLLOUT_LEDGER_H
#define IFL_COMMON_ROLLOUT_LEDGER_H

#include <jansson.h>

#include "common/rollout_log.h"

#define IFL_REASONS_MAX 64
#define IFL_LEDGER_KEYS_MAX (64 << 20)

typedef enum { IFL_FATE_NONE, IFL_FATE_TRAINED, IFL_FATE_MASKED, IFL_FATE_DROPPED } ifl_fate;

typedef struct ifl_rollout_fate {
    ifl_fate fate;
    int64_t step;       /* trained: by this step */
    const char *reason; /* masked, dropped; else "" */
    bool stored;        /* its trajectory is in the log */
    bool in_flight;
} ifl_rollout_fate;

typedef struct ifl_rollout_balance {
    int64_t leased, trained, masked, dropped, in_flight, lost;
    int64_t stored;           /* train keys whose trajectory is in the log */
    int64_t trained_twice;    /* named by the records of two steps that both stand */
    int64_t conflicting;      /* two kinds of fate within one learner process */
    int64_t unleased;         /* a fate or a trajectory without a lease */
    int64_t trained_unstored; /* trained, but the log has no trajectory */
    int64_t leases_renewed;   /* keys leased again within one learner process */
    int64_t eval_leased, eval_stored;
    int64_t generated_again; /* train keys whose acknowledged answer an other one replaced */
    int64_t versions_remade; /* versions published again with other weights */
    int64_t steps;           /* highest step that stands */
    int64_t records, torn_bytes, processes;
    bool ended; /* the last learner process ended in an orderly way */
    int32_t n_reasons;
    struct {
        char reason[IFL_REASON_MAX];
        int64_t n_dropped, n_masked;
    } reasons[IFL_REASONS_MAX];
} ifl_rollout_balance;

typedef struct ifl_rollout_ledger ifl_rollout_ledger;

/* Reads a whole log. Returns owned. */
ifl_status ifl_rollout_ledger_read(ifl_rollout_ledger **out, const char *folder, ifl_error *err);
void ifl_rollout_ledger_free(ifl_rollout_ledger *ledger); /* NULL is fine */

/* False when the key appears nowhere. `reason` borrows from the ledger. */
bool ifl_rollout_ledger_find(const ifl_rollout_ledger *ledger, ifl_rollout_key key,
                             ifl_rollout_fate *out);
void ifl_rollout_ledger_balance(const ifl_rollout_ledger *ledger, ifl_rollout_balance *out);

/* The balance holds: nothing lost, trained twice, conflicting, unleased or trained without a
 * trajectory. */
bool ifl_rollout_balance_holds(const ifl_rollout_balance *balance);

/* As a JSON object, owned; NULL when out of memory. */
json_t *ifl_rollout_balance_json(const ifl_rollout_balance *balance);

#endif
