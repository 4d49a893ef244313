/* The bias ledger: which source of off-policyness costs how many nats.
 *
 * The tokens of a sample of trained trajectories are scored along a chain of policies, all at the
 * temperature that sampled them:
 *
 *   c0  recorded        what the actor wrote down, over the kept set where sampling was truncated
 *   c1  replayed        the same weights, KV history and kept set, computed again
 *   c2  full            as c1, over the full vocabulary
 *   c3  fresh KV        as c2, each token's own version, over KV that this version alone has built
 *   c4  now             the weights that the step trains, with their own KV
 *
 * and each link owns its difference: numerics c1 - c0, truncation c2 - c1 (log Z of the kept set),
 * stale KV c3 - c2, lag c4 - c3 (also apart by k, the age in versions). The differences of f32
 * numbers are exact in f64, so that they add up to log r = c4 - c0 to the last bit; where they do
 * not, n_untelescoped counts it. Swaps with kept KV always bring lag too: stale KV alone is what is
 * left at the same version, which is why it comes first.
 *
 * Causes may interact, and then the order in which they are taken away matters. So the chain is
 * also run with the causes reversed, from c1 on (another's arithmetic cannot be run under other
 * weights; of our own, numerics is 0 wherever it stands):
 *
 *   r1  moved           as c1, by the weights that the step trains, over KV that is as many
 * versions behind them as it was behind the token's own r2  now, kept set   c4 over the kept set c4
 * now
 *
 * with lag r1 - c1, stale KV r2 - r1, truncation c4 - r2. Where one cause acts alone both orders
 * give the same numbers, bit for bit; what they differ by is interaction.
 *
 * Beside the chain, the correction: what the loss makes of p/mu (over the kept set), in clips,
 * truncated weights and masks (learner/loss.h). It moves the gradient, not log r.
 *
 * With r = exp(difference), over the sampled tokens: k1 = -log r, k3 = r - 1 - log r, ESS = (sum
 * r)^2 / (n sum r^2), the share with max(r, 1/r) > 2, and the advantage-signed -(r - 1) A (what the
 * link adds to the policy gradient's objective, apart for A > 0 and A < 0: KL alone can be blind).
 * Tokens were drawn from mu, so that k1 estimates KL(left || right) without bias for numerics,
 * truncation and the total; k3 too, but not across truncation: there the right policy has mass
 * where mu has none, so that the mean of r is the kept mass and not 1. For the links between, both
 * are taken at mu's tokens. The exact KL needs no such care: at a few positions of each trajectory
 * it is summed over the full vocabulary. "Nats" below are the exact KL where there is one.
 * (Schulman 2020 for the estimators.) All in f64. */
#ifndef IFL_LEARNER_BIAS_LEDGER_H
#define IFL_LEARNER_BIAS_LEDGER_H

#include "common/metrics.h"
#include "common/trajectory.h"
#include "kernels/replay.h"
#include "learner/loss.h"

typedef enum {
    IFL_BIAS_NUMERICS,
    IFL_BIAS_TRUNCATION,
    IFL_BIAS_STALE_KV,
    IFL_BIAS_LAG,
    IFL_BIAS_TOTAL, /* c4 - c0 */
    IFL_BIAS_COUNT
} ifl_bias_entry;

#define IFL_BIAS_CHAIN 5
#define IFL_BIAS_LAGS 16 /* lag 0 .. 14, and the last for all above */
#define IFL_BIAS_POSITIONS_MAX 64

const char *ifl_bias_entry_name(ifl_bias_entry entry); /* "numerics", "truncation", ... */

/* What has a mean and an interval: the entries, and behind them those in the other order. */
#define IFL_BIAS_MEANS (IFL_BIAS_COUNT + IFL_BIAS_TOTAL - 1)

/* 95 %, of a mean over tokens (learner/bias_interval.h); NAN with fewer than two answers. */
typedef struct ifl_bias_interval {
    double nats_low, nats_high; /* of ifl_bias_nats */
    double k1_low, k1_high;
} ifl_bias_interval;

/* Sums over tokens (kl: over positions). */
typedef struct ifl_bias_sums {
    int64_t n, n_moved; /* tokens; of them, those whose log r isn't 0 */
    int64_t n_above_2, n_kl;
    double log_r, k3, w, w2, max_abs, kl;
    double gain_positive, gain_negative; /* of -(r - 1) A */
} ifl_bias_sums;

typedef struct ifl_bias_record {
    int64_t step, version;
    int64_t n_trajectories, n_tokens;
    int64_t n_not_scored;   /* trajectories with a version that is gone */
    int64_t n_foreign;      /* tokens of another numerics profile */
    int64_t n_differing;    /* tokens of this profile that numerics moved: must be 0 */
    int64_t n_untelescoped; /* tokens whose differences don't add up: must be 0 */
    ifl_bias_sums entries[IFL_BIAS_COUNT], lags[IFL_BIAS_LAGS];
    ifl_bias_sums reversed[IFL_BIAS_TOTAL]; /* in the other order; numerics is not among them */
    struct {
        int64_t n, n_changed, n_dropped;         /* tokens: weight other than p/mu; weight 0 */
        double bias, abs_bias;                   /* sum of p/mu - weight, and of its size */
        double mass, mass_dropped, mass_changed; /* sums of |A| */
    } correction;
    struct {
        int64_t n;
        double w, w2, log_r; /* products of r over whole answers, log r cut at +-60 */
    } sequence;
    double seconds; /* scoring */
    /* Not sums: set by ifl_bias_bootstrap_get, left alone by ifl_bias_merge. */
    int64_t n_resampled; /* answers that the intervals are made of; 0: there are none */
    ifl_bias_interval intervals[IFL_BIAS_MEANS];
} ifl_bias_record;

/* Mean m's sums, and its name as in ledger.jsonl: "lag", "reversed_lag". */
const ifl_bias_sums *ifl_bias_mean_sums(const ifl_bias_record *record, int m);
void ifl_bias_mean_name(int m, char out[32]);

/* What its nats are estimated by: see ifl_bias_nats. */
typedef enum { IFL_BIAS_BY_KL, IFL_BIAS_BY_K1, IFL_BIAS_BY_K3 } ifl_bias_estimate;
ifl_bias_estimate ifl_bias_estimate_of(int m, int64_t n_kl);

/* One trajectory's sampled loss tokens, columns of n. */
typedef struct ifl_bias_tokens {
    int32_t n;
    const float *chain[IFL_BIAS_CHAIN]; /* c0 .. c4 */
    const float *moved;                 /* r1 */
    const float *now_kept;              /* r2: as c4, over the kept sets: what the loss reads */
    const float *loss_weights;
    const int64_t *lags; /* (step - 1) - version */
    double advantage;
    bool foreign;
} ifl_bias_tokens;

/* Adds one trajectory; without exact KL. Pure but for memory (IFL_NOMEM). */
ifl_status ifl_bias_add(ifl_bias_record *record, const ifl_bias_tokens *tokens,
                        const ifl_loss_options *loss, ifl_error *err);

/* Adds all of `from`: of another step, say. */
void ifl_bias_merge(ifl_bias_record *to, const ifl_bias_record *from);

/* --- Scoring ------------------------------------------------------------------------------------
 */

typedef struct ifl_bias_ledger ifl_bias_ledger;

typedef struct ifl_bias_options {
    double share;      /* of trained trajectories, [0, 1] */
    int32_t positions; /* exact KL: of each trajectory, 0 to IFL_BIAS_POSITIONS_MAX */
    uint64_t seed;     /* of the run */
    ifl_loss_options loss;
} ifl_bias_options;

/* Borrows model, pool, ops. Not thread-safe. */
ifl_status ifl_bias_ledger_create(ifl_bias_ledger **out, const ifl_model *model,
                                  const ifl_bias_options *options, ifl_thread_pool *pool,
                                  const ifl_ops *ops, ifl_error *err);
void ifl_bias_ledger_free(ifl_bias_ledger *ledger); /* NULL is fine */
int64_t ifl_bias_ledger_bytes(const ifl_model *model, int32_t positions, int n_threads);

/* Whether this trajectory is in the sample. Pure in (seed, task serial, sample). */
bool ifl_bias_selects(const ifl_bias_options *options, const ifl_trajectory *traj);

/* Scores the loss tokens of one trajectory that step `step` trained with `advantage`, and adds to
 * the record. `get` has the trajectory's versions and step - 1; one that is gone makes it
 * n_not_scored. */
ifl_status ifl_bias_score(ifl_bias_ledger *ledger, ifl_weights_get_fn get, void *context,
                          const ifl_trajectory *traj, float advantage, int64_t step,
                          ifl_bias_record *record, ifl_error *err);

/* The columns of the trajectory scored last, and its loss tokens' positions; until the next one. */
ifl_bias_tokens ifl_bias_scored(const ifl_bias_ledger *ledger, const int32_t **positions);

/* --- ledger.jsonl -------------------------------------------------------------------------------
 * * Rows as in metrics.jsonl. Kind "trajectory": step, serial, sample, advantage of one that was
 * scored, and what it adds to each mean. Kind "ledger", behind those of its step: the record, field
 * by field, sums as they are
 * ("lag/k3", "lag_2/k3", "correction/bias"); lags without tokens are left out. */

/* What of a record is a field: exactly one of the pointers isn't NULL. */
typedef void (*ifl_bias_field_fn)(void *context, const char *name, int64_t *integer, double *real);
void ifl_bias_fields(ifl_bias_record *record, bool all_lags, ifl_bias_field_fn field,
                     void *context);

ifl_status ifl_bias_write(ifl_metrics *file, ifl_bias_record *record, ifl_error *err);
/* `one`: the record of this trajectory alone. */
ifl_status ifl_bias_write_trajectory(ifl_metrics *file, int64_t step, const ifl_trajectory *traj,
                                     float advantage, const ifl_bias_record *one, ifl_error *err);

/* Fills in *out from a row; false when it is of another kind. */
bool ifl_bias_of_row(ifl_bias_record *out, const json_t *row);

/* The run's sum and its intervals, from its file; steps that a resumed run made again count as the
 * last time. IFL_NOTFOUND without a file. */
ifl_status ifl_bias_read(ifl_bias_record *total, int64_t *n_steps, const char *path,
                         ifl_error *err);

/* Means, NAN without tokens. */
typedef struct ifl_bias_figures {
    double k1, k3, kl, ess, max_abs, above_2, gain_positive, gain_negative;
} ifl_bias_figures;
ifl_bias_figures ifl_bias_figures_of(const ifl_bias_sums *sums);

/* An entry's cost per token: the exact KL, or without positions k1 of truncation (which is its KL
 * at each token) and k3 of the others; numerics by k3, which is 0 or an alarm. NAN without tokens.
 */
double ifl_bias_nats(const ifl_bias_record *record, ifl_bias_entry entry);

/* The table for people, as text. */
void ifl_bias_print(FILE *f, const ifl_bias_record *record);

#endif
