#include "actor/actor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actor/weight_receiver.h"
#include "common/clock.h"
#include "common/fail_point.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/recorder.h"
#include "rewards/programs.h"
#include "rewards/reward.h"

#define REWARD_QUEUE_MAX 4096
#define STATS_INTERVAL_S 1.0
#define IDLE_WAIT_MS 5
#define REFUSALS_INTERVAL_S 5.0
#define STEP_TIMES 4096 /* last decode steps, for their median */

/* A lease and what its checker needs; lives until its last sample has left. */
typedef struct actor_lease {
    ifl_message message; /* owned; .lease */
    int32_t n_left;
    bool submitted; /* to the engine; false while it waits for its version */
    /* [n_samples] what another actor has begun of it, NULL where nothing; NULL: nothing at all */
    ifl_trajectory **begun;
    struct actor_lease *next;
} actor_lease;

/* A finished trajectory on its way out. */
typedef struct actor_answer {
    ifl_trajectory *traj;
    actor_lease *lease;
    uint64_t id;
    char *text;
    enum { ANSWER_UNSCORED, ANSWER_SCORING, ANSWER_SCORED } state;
    struct actor_answer *next;
} actor_answer;

typedef struct actor {
    const ifl_actor_options *options;
    const ifl_config *config;
    ifl_engine *engine;
    ifl_client *client;
    ifl_weight_receiver *receiver;
    ifl_reward_pool *rewards;
    ifl_weights *buffers[2];
    ifl_weights *current;  /* in use by new work */
    ifl_weights *retiring; /* may still be in use by old sequences */
    ifl_weights *staged;   /* taken from the receiver, waiting to be swapped in */
    actor_lease *leases;
    actor_answer *answers; /* in order of completion */
    actor_answer **answers_end;
    uint64_t next_answer, n_progress;
    bool done;
    bool draining;          /* asked to stop: nothing new is begun */
    ifl_trajectory **begun; /* [n_begun] from other actors, for the lease that comes next */
    size_t n_begun, begun_cap;
    /* The learner process whose versions `current` is one of; "" before the first. */
    char run_uuid[33];
    uint64_t run_epoch;
    bool outdated; /* `current` is of an earlier one: nothing starts before new weights are here */
    int32_t minor; /* of the protocol, spoken by both sides */
    bool directed; /* versions up to `allowed` may be taken into use, others must wait */
    int64_t allowed;
    int64_t n_refused; /* answers, since the last line about them */
    double refused_since_s;
    /* Figures. */
    double stats_sent_s;
    bool
        stats_due; /* a swap began or ended: the learner's counts must not miss a run's last ones */
    int64_t stats_tokens;
    float step_ms[STEP_TIMES];
    int64_t n_steps;
    double begun_s;       /* this actor; 0 once it has said how long its first token took */
    double step_end_s;    /* of the last decode step; 0 = the batch was empty since */
    bool swap_unreported; /* a version is in use that the learner has not been told about */
} actor;

/* --- Leases
 * ----------------------------------------------------------------------------------------- */

static bool actor_has_pinned(const actor *a) {
    for (const actor_lease *l = a->leases; l; l = l->next)
        if (l->submitted && l->message.lease.required_version >= 0) return true;
    return false;
}

static void actor_forget_begun(actor *a) {
    while (a->n_begun > 0)
        ifl_trajectory_free(a->begun[--a->n_begun]);
}

static ifl_status actor_begun_in(actor *a, ifl_message *message, ifl_error *err) {
    if (a->n_begun >= IFL_WIRE_SAMPLES_MAX)
        return ifl_fail(err, IFL_LIMIT, "actor: %zu beginnings without their lease, limit %d",
                        a->n_begun, IFL_WIRE_SAMPLES_MAX);
    void *grown = a->begun;
    ifl_status st = ifl_grow(&grown, &a->begun_cap, a->n_begun + 1, sizeof *a->begun, err);
    a->begun = grown;
    IFL_TRY(st);
    a->begun[a->n_begun++] = message->traj.trajectory;
    message->traj.trajectory = NULL; /* owned here now */
    return IFL_OK;
}

/* Beginnings come right ahead of the lease that they belong to. */
static ifl_status lease_claim_begun(actor *a, actor_lease *lease, ifl_error *err) {
    const ifl_wire_lease *w = &lease->message.lease;
    if (a->n_begun == 0) return IFL_OK;
    lease->begun = calloc((size_t)w->n_samples, sizeof *lease->begun);
    if (!lease->begun) return ifl_fail(err, IFL_NOMEM, "actor: out of memory for a lease");
    for (size_t b = 0; b < a->n_begun; b++)
        for (int32_t i = 0; i < w->n_samples; i++) {
            const ifl_trajectory *t = a->begun[b];
            if (!t || t->task_serial != w->task_serial || t->purpose != w->purpose ||
                t->sample != w->samples[i] || lease->begun[i])
                continue;
            lease->begun[i] = a->begun[b];
            a->begun[b] = NULL;
        }
    actor_forget_begun(a);
    return IFL_OK;
}

static void lease_free(actor_lease *lease) {
    for (int32_t i = 0; lease->begun && i < lease->message.lease.n_samples; i++)
        ifl_trajectory_free(lease->begun[i]);
    free(lease->begun);
    ifl_message_clear(&lease->message);
    free(lease);
}

static void lease_release(actor *a, actor_lease *lease) {
    if (--lease->n_left > 0) return;
    actor_lease **at = &a->leases;
    while (*at != lease)
        at = &(*at)->next;
    *at = lease->next;
    lease_free(lease);
}

static void actor_return(actor *a, const ifl_wire_lease *lease, ifl_return_reason reason,
                         const char *text) {
    ifl_message message = ifl_message_make(IFL_WIRE_RETURN);
    message.returned = (ifl_wire_return){.lease_id = lease->lease_id,
                                         .reason = reason,
                                         .n_samples = lease->n_samples,
                                         .samples = lease->samples};
    snprintf(message.returned.text, sizeof message.returned.text, "%s", text);
    ifl_client_send(a->client, &message,
                    NULL); /* without a link the learner leases it again anyway */
}

/* The newest version that a beginning of the lease has tokens of; -1 without. */
static int64_t lease_begun_version(const actor_lease *lease) {
    int64_t newest = -1;
    for (int32_t i = 0; lease->begun && i < lease->message.lease.n_samples; i++) {
        const ifl_trajectory *t = lease->begun[i];
        if (t && t->n_runs > 0 && t->runs[t->n_runs - 1].version > newest)
            newest = t->runs[t->n_runs - 1].version;
    }
    return newest;
}

/* What cannot go on here begins anew. */
static void lease_check_begun(actor *a, actor_lease *lease, const ifl_engine_request *request) {
    for (int32_t i = 0; lease->begun && i < lease->message.lease.n_samples; i++) {
        ifl_error why = {0};
        if (!lease->begun[i]) continue;
        ifl_status st = ifl_engine_check_begun(a->engine, request, lease->message.lease.samples[i],
                                               lease->begun[i], &why);
        int64_t required = lease->message.lease.required_version;
        if (st == IFL_OK && required >= 0 && lease->begun[i]->runs[0].version != required)
            st =
                ifl_fail(&why, IFL_MISMATCH,
                         "the beginning of trajectory %llu/%d is of version %lld, required is %lld",
                         (unsigned long long)request->task_serial, lease->begun[i]->sample,
                         (long long)lease->begun[i]->runs[0].version, (long long)required);
        if (st == IFL_OK) continue;
        ifl_warn("%s: generated from its start", why.text);
        ifl_trajectory_free(lease->begun[i]);
        lease->begun[i] = NULL;
    }
}

/* Gives the lease to the engine when its version is there. Returns false when the lease is gone. */
static bool lease_submit(actor *a, actor_lease *lease) {
    const ifl_wire_lease *w = &lease->message.lease;
    int64_t version = ifl_engine_version(a->engine);
    if (a->outdated || a->draining || lease_begun_version(lease) > version) return true;
    if (w->required_version >= 0 && w->required_version != version) {
        if (w->required_version > version) return true;
        actor_return(a, w, IFL_RETURN_VERSION, "the required policy version has been replaced");
        lease->n_left = 1;
        lease_release(a, lease);
        return false;
    }
    const char *stops[IFL_STOPS_MAX];
    for (int32_t i = 0; i < w->n_stops; i++)
        stops[i] = w->stops[i];
    ifl_engine_request request = {
        .task_serial = w->task_serial,
        .lease_id = w->lease_id,
        .task_id = w->task_id,
        .purpose = w->purpose,
        .prompt = w->prompt,
        .n_prompt = w->n_prompt,
        .n_samples = w->group_size,
        .samples = w->samples,
        .n_samples_now = w->n_samples,
        .sampling = {w->temperature, w->top_k, w->top_p},
        .max_new_tokens = w->max_new_tokens,
        .n_stops = w->n_stops,
        .stops = stops,
        .user = lease,
        .begun = lease->begun,
    };
    lease_check_begun(a, lease, &request);
    ifl_error err = {0};
    if (ifl_engine_submit(a->engine, &request, &err) != IFL_OK) {
        ifl_warn("lease %llu handed back: %s", (unsigned long long)w->lease_id, err.text);
        actor_return(a, w, IFL_RETURN_CAPACITY, err.text);
        lease->n_left = 1;
        lease_release(a, lease);
        return false;
    }
    lease->submitted = true;
    return true;
}

static void actor_submit_waiting(actor *a) {
    for (actor_lease *l = a->leases, *next; l; l = next) {
        next = l->next;
        if (!l->submitted) lease_submit(a, l);
    }
}

static ifl_status actor_lease_in(actor *a, ifl_message *message, ifl_error *err) {
    if (message->lease.seed != (uint64_t)a->config->run.seed)
        return ifl_fail(err, IFL_MISMATCH,
                        "actor: the learner samples with seed %llu, this actor with %lld",
                        (unsigned long long)message->lease.seed, (long long)a->config->run.seed);
    actor_lease *lease = calloc(1, sizeof *lease);
    if (!lease) return ifl_fail(err, IFL_NOMEM, "actor: out of memory for a lease");
    lease->message = *message;
    *message = (ifl_message){0}; /* the lease owns it now */
    lease->n_left = lease->message.lease.n_samples;
    ifl_status st = lease_claim_begun(a, lease, err);
    if (st != IFL_OK) {
        lease_free(lease);
        return st;
    }
    actor_lease **end = &a->leases;
    while (*end)
        end = &(*end)->next;
    *end = lease;
    lease_submit(a, lease);
    return IFL_OK;
}

/* --- Answers
 * ---------------------------------------------------------------------------------------- */

/* Text of what the policy said, a stop string and all behind it cut off. NULL when it cannot be
 * had. */
static char *answer_text(const actor *a, const ifl_trajectory *traj, const ifl_wire_lease *w) {
    ifl_token_text text = {0};
    bool whole = true;
    for (int32_t s = 0; s < traj->n_spans && whole; s++)
        if (traj->spans[s].source == IFL_SOURCE_POLICY)
            whole = ifl_tokenizer_decode(a->options->tokenizer, traj->tokens + traj->spans[s].begin,
                                         (size_t)traj->spans[s].n_tokens, IFL_DECODE_SKIP_SPECIAL,
                                         &text, NULL) == IFL_OK;
    char *out = whole ? malloc(text.n + 1) : NULL;
    if (out) {
        if (text.n > 0) memcpy(out, text.bytes, text.n);
        out[text.n] = '\0';
        if (traj->finish == IFL_FINISH_STOP)
            for (int32_t i = 0; i < w->n_stops; i++) {
                char *at = w->stops[i][0] ? strstr(out, w->stops[i]) : NULL;
                if (at) *at = '\0';
            }
    }
    ifl_token_text_free(&text);
    return out;
}

static ifl_status actor_collect_finished(actor *a, ifl_error *err) {
    void *user;
    ifl_trajectory *traj;
    while ((traj = ifl_engine_take_finished(a->engine, &user)) != NULL) {
        actor_answer *answer = calloc(1, sizeof *answer);
        if (!answer) {
            ifl_trajectory_free(traj);
            return ifl_fail(err, IFL_NOMEM, "actor: out of memory for an answer");
        }
        answer->traj = traj;
        answer->lease = user;
        answer->id = a->next_answer++;
        answer->text = answer_text(a, traj, &answer->lease->message.lease);
        snprintf(traj->actor, sizeof traj->actor, "%s", a->options->name);
        *a->answers_end = answer;
        a->answers_end = &answer->next;
    }
    return IFL_OK;
}

static void answer_score(actor *a, actor_answer *answer) {
    if (!answer->text) { /* no text to judge is not a wrong answer */
        answer->traj->reward.status = IFL_REWARD_UNAVAILABLE;
        ifl_reward_set_reason(&answer->traj->reward, "its tokens could not be made a text");
        answer->state = ANSWER_SCORED;
        return;
    }
    const ifl_wire_lease *w = &answer->lease->message.lease;
    ifl_reward_request request = {
        .id = answer->id,
        .checker = w->checker,
        .prompt = w->text ? w->text : "",
        .completion = answer->text,
        .n_completion = strlen(answer->text),
        .answer = w->answer ? w->answer : "",
        .meta = w->meta ? w->meta : "",
        .finish = answer->traj->finish,
    };
    ifl_error err = {0};
    ifl_status st = ifl_reward_pool_submit(a->rewards, &request, &err);
    if (st == IFL_OK) {
        answer->state = ANSWER_SCORING;
    } else if (st != IFL_FULL) {
        ifl_warn("checker %s: %s", w->checker, err.text);
        answer->traj->reward.status = IFL_REWARD_UNAVAILABLE;
        ifl_reward_set_reason(&answer->traj->reward, err.text);
        answer->state = ANSWER_SCORED;
    }
}

static void answer_free(actor_answer *answer) {
    ifl_trajectory_free(answer->traj);
    free(answer->text);
    free(answer);
}

static ifl_status actor_rewards(actor *a, ifl_error *err) {
    for (actor_answer *answer = a->answers; answer; answer = answer->next)
        if (answer->state == ANSWER_UNSCORED) answer_score(a, answer);
    for (;;) {
        uint64_t id;
        ifl_reward reward;
        ifl_error reason = {0};
        ifl_status st = ifl_reward_pool_collect(a->rewards, 0, &id, &reward, &reason);
        if (st == IFL_AGAIN) break;
        if (st != IFL_OK) {
            *err = reason;
            return st;
        }
        for (actor_answer *answer = a->answers; answer; answer = answer->next)
            if (answer->id == id) {
                answer->traj->reward = reward;
                answer->state = ANSWER_SCORED;
                if (!ifl_reward_is_verdict(reward.status))
                    ifl_warn("checker %s: %s: %s", answer->lease->message.lease.checker,
                             ifl_reward_status_name(reward.status), reason.text);
            }
    }
    /* Everything that is scored goes out; what the outbox has no room for waits here. */
    for (actor_answer **at = &a->answers; *at;) {
        actor_answer *answer = *at;
        if (answer->state == ANSWER_SCORED) {
            ifl_fail_point(IFL_FAIL_ACTOR_SEND);
            ifl_status st = ifl_client_send_trajectory(a->client, answer->traj, err);
            if (st == IFL_OK) {
                *at = answer->next;
                lease_release(a, answer->lease);
                answer_free(answer);
                continue;
            }
            if (st != IFL_FULL) return st;
        }
        at = &answer->next;
    }
    a->answers_end = &a->answers;
    while (*a->answers_end)
        a->answers_end = &(*a->answers_end)->next;
    return IFL_OK;
}

/* --- Weights
 * ---------------------------------------------------------------------------------------- */

/* The receiver fetches into a buffer that nobody uses; what is in use stays as it is until then,
 * and the next version can be a patch of it. */
static ifl_status actor_offer(actor *a, ifl_weights *buffer, ifl_error *err) {
    return ifl_weight_receiver_offer_buffer(a->receiver, buffer, a->outdated ? NULL : a->current,
                                            err);
}

/* Takes a verified version, swaps it in when nothing forbids it, and gives back the buffer that no
 * sequence uses any more. */
static ifl_status actor_weights(actor *a, ifl_error *err) {
    if (!a->staged) {
        ifl_status st = ifl_weight_receiver_take(a->receiver, &a->staged, err);
        if (st != IFL_OK && st != IFL_AGAIN) return st;
    }
    if (a->retiring && (ifl_engine_idle(a->engine) ||
                        ifl_engine_oldest_version(a->engine) != a->retiring->version)) {
        IFL_TRY(actor_offer(a, a->retiring, err));
        a->retiring = NULL;
        a->stats_due = true;
    }
    /* Work that is pinned to a version needs it to the end. */
    if (!a->staged || a->retiring || actor_has_pinned(a)) return IFL_OK;
    /* In the lock-step modes only the learner knows whether work for the version in use is still to
     * come. */
    bool in_use = a->current && !a->outdated;
    if (a->directed && in_use && a->staged->version > a->allowed) return IFL_OK;
    ifl_fail_point(IFL_FAIL_ACTOR_SWAP);
    ifl_status st = ifl_engine_swap(a->engine, a->staged, err);
    if (st == IFL_AGAIN) return IFL_OK;
    IFL_TRY(st);
    bool first = a->current == NULL;
    a->retiring = a->current;
    a->current = a->staged;
    a->staged = NULL;
    ifl_client_set_held_version(a->client, a->current->version);
    ifl_record_event("swapped", -1, (uint64_t)a->current->version, 0, 0, 0);
    a->swap_unreported = true;
    a->outdated = false;
    if (first)
        IFL_TRY(actor_offer(a, a->current == a->buffers[0] ? a->buffers[1] : a->buffers[0], err));
    /* Before new work begins: weights of another history may have the same version number, and then
     * that number could not tell any more whether somebody still uses the old ones. */
    if (a->retiring && ifl_engine_idle(a->engine)) {
        IFL_TRY(actor_offer(a, a->retiring, err));
        a->retiring = NULL;
        a->stats_due = true;
    }
    actor_submit_waiting(a);
    return IFL_OK;
}

/* --- Link
 * ------------------------------------------------------------------------------------------- */

static void actor_send_credit(actor *a) {
    /* One group more than fits waits in the engine's queue, so that no slot idles for a round trip.
     */
    int32_t ahead = a->config->rollout.group_size;
    ifl_message message = ifl_message_make(IFL_WIRE_CREDIT);
    message.credit.n_sequences = a->draining ? 0 : a->config->actor.sequences_max + ahead;
    /* Sent again at the next connect. */
    ifl_status st = ifl_client_send(a->client, &message, NULL);
    ifl_record_event("credit", -1, 0, message.credit.n_sequences, 0, (int32_t)st);
}

static int compare_floats(const void *x, const void *y) {
    float a = *(const float *)x, b = *(const float *)y;
    return a < b ? -1 : a > b;
}

static double actor_step_median(const actor *a) {
    static float sorted[STEP_TIMES];
    int64_t n = a->n_steps < STEP_TIMES ? a->n_steps : STEP_TIMES;
    if (n == 0) return 0.0;
    memcpy(sorted, a->step_ms, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_floats);
    return (double)sorted[n / 2];
}

static void actor_say_first_token(actor *a) {
    ifl_weight_receiver_stats r;
    if (a->begun_s == 0.0) return;
    ifl_weight_receiver_stats_get(a->receiver, &r);
    ifl_info("generating %.2f s after its start; weights of %.1f MiB took %.2f s of that",
             ifl_clock_s() - a->begun_s, (double)r.version_bytes_last / 1048576.0, r.fetch_s_last);
    a->begun_s = 0.0;
}

static void actor_send_stats(actor *a) {
    double now = ifl_clock_s(), span = now - a->stats_sent_s;
    bool full = span >= STATS_INTERVAL_S;
    if (!full && !a->stats_due) return;
    ifl_engine_stats s;
    ifl_engine_stats_get(a->engine, &s);
    ifl_wire_stat entries[] = {
        {"step_ms_p50", actor_step_median(a)},
        {"pages_used", s.pages_total > 0 ? (double)s.pages_used / s.pages_total : 0.0},
        {"swaps", (double)(s.swaps > 0 ? s.swaps - 1 : 0)}, /* the first is the start */
        {"sequences_swapped", (double)s.sequences_swapped},
        {"tokens_rebuilt", (double)s.tokens_rebuilt},
        {"preemptions", (double)s.preemptions},
        {"rewards_cached", (double)ifl_reward_pool_stats_get(a->rewards).n_cached},
        {"tokens_per_s", (double)(s.tokens_decoded - a->stats_tokens) / span}, /* if full */
    };
    int32_t n = (int32_t)(sizeof entries / sizeof *entries);
    a->stats_due = false;
    if (full) {
        a->stats_sent_s = now;
        a->stats_tokens = s.tokens_decoded;
    }
    ifl_message message = ifl_message_make(IFL_WIRE_STATS);
    message.stats = (ifl_wire_stats){full ? n : n - 1, entries};
    ifl_client_send(a->client, &message, NULL); /* the next one says the same, later */
}

/* Answers that nobody has been told about, and all leases. Nothing of them may be in the engine. */
static void actor_clear_work(actor *a) {
    while (a->answers) {
        actor_answer *next = a->answers->next;
        answer_free(a->answers);
        a->answers = next;
    }
    a->answers_end = &a->answers;
    actor_forget_begun(a);
    while (a->leases) {
        actor_lease *next = a->leases->next;
        lease_free(a->leases);
        a->leases = next;
    }
}

/* Another learner process: one that goes on from a checkpoint makes other weights under the version
 * numbers that an earlier one has used. What runs here was sampled by policies that may not exist
 * any more, so all of it is dropped (that process has leased none of it, and leases it again), and
 * nothing starts before a version of the new one is here. */
static ifl_status actor_start_over(actor *a, ifl_error *err) {
    ifl_warn("the learner has been started anew: dropping %d sequences and version %lld",
             ifl_engine_running(a->engine) + ifl_engine_queued(a->engine),
             a->current ? (long long)a->current->version : -1ll);
    for (actor_lease *lease = a->leases; lease; lease = lease->next)
        if (lease->submitted) ifl_engine_cancel(a->engine, lease->message.lease.lease_id);
    actor_clear_work(a);
    a->outdated = a->current != NULL;
    if (a->staged) IFL_TRY(actor_offer(a, a->staged, err));
    a->staged = NULL;
    a->allowed = -1;
    a->swap_unreported = false;
    a->step_end_s = 0.0;
    ifl_client_set_held_version(a->client, -1);
    return IFL_OK;
}

static ifl_status actor_connected(actor *a, const ifl_wire_welcome *welcome, ifl_error *err) {
    ifl_info("connected to run %.8s", welcome->run_uuid);
    ifl_weight_receiver_follow(a->receiver, welcome);
    a->directed = (welcome->caps & IFL_WIRE_CAP_DIRECTED) != 0;
    a->minor = welcome->minor;
    actor_forget_begun(a); /* its lease has not come, and is another session's */
    if (welcome->caps & IFL_WIRE_CAP_FOREIGN)
        ifl_warn(
            "the learner computes under another numerics profile than %s here: what this actor "
            "generates is corrected by importance weights, and cannot be audited",
            ifl_profile_name(a->options->model->numerics));
    bool first = a->run_uuid[0] == '\0';
    bool same = a->run_epoch == welcome->run_epoch && strcmp(a->run_uuid, welcome->run_uuid) == 0;
    a->run_epoch = welcome->run_epoch;
    memcpy(a->run_uuid, welcome->run_uuid, sizeof a->run_uuid);
    if (first)
        a->allowed = -1;
    else if (!same)
        IFL_TRY(actor_start_over(a, err));
    else if (a->current && !a->outdated) /* a new session knows nothing of an earlier WDONE */
        a->swap_unreported = true;
    if (a->current) actor_send_credit(a);
    return IFL_OK;
}

/* After a learner's restart, or a lease that it took back, answers come too late; they may be many:
 * one line for all of an interval. */
static void actor_report_refusals(actor *a) {
    if (a->n_refused == 0 || ifl_clock_s() - a->refused_since_s < REFUSALS_INTERVAL_S) return;
    ifl_warn("%lld answers came too late for the learner", (long long)a->n_refused);
    a->n_refused = 0;
}

static void actor_nack(actor *a, const ifl_wire_nack *nack) {
    if (nack->code == IFL_NACK_INVALID) {
        ifl_warn("trajectory %llu/%d refused: %s", (unsigned long long)nack->key.task_serial,
                 nack->key.sample, nack->text);
        return;
    }
    if (a->n_refused++ == 0) a->refused_since_s = ifl_clock_s();
    ifl_debug("trajectory %llu/%d refused: %s", (unsigned long long)nack->key.task_serial,
              nack->key.sample, nack->text);
}

static ifl_status actor_events(actor *a, int64_t wait_ms, ifl_error *err) {
    for (;;) {
        ifl_client_event event;
        ifl_status st = ifl_client_poll(a->client, wait_ms, &event, err);
        if (st == IFL_AGAIN) return IFL_OK;
        IFL_TRY(st);
        wait_ms = 0;
        switch (event.kind) {
        case IFL_CLIENT_CONNECTED:
            st = actor_connected(a, &event.message.welcome, err);
            break;
        case IFL_CLIENT_LOST:
            ifl_warn("link to the learner lost: %s; trying again", event.text);
            break;
        case IFL_CLIENT_REFUSED:
            st = ifl_fail(err, IFL_MISMATCH, "the learner refused: %s", event.text);
            break;
        case IFL_CLIENT_UNAUTHORISED:
            st = ifl_fail(err, IFL_AUTH, "not let in: %s", event.text);
            break;
        case IFL_CLIENT_GONE:
            st = ifl_fail(err, IFL_PEER, "the learner is gone: %s", event.text);
            break;
        case IFL_CLIENT_MESSAGE:
            if (event.message.type == IFL_WIRE_LEASE) st = actor_lease_in(a, &event.message, err);
            if (event.message.type == IFL_WIRE_TRAJ) st = actor_begun_in(a, &event.message, err);
            if (event.message.type == IFL_WIRE_BYE) a->done = true;
            if (event.message.type == IFL_WIRE_NACK) actor_nack(a, &event.message.nack);
            if (event.message.type == IFL_WIRE_WSET && event.message.wset.version > a->allowed)
                a->allowed = event.message.wset.version;
            break;
        }
        ifl_client_event_clear(&event);
        if (st != IFL_OK) return st;
        if (a->done) return IFL_OK;
    }
}

/* --- Loop
 * ------------------------------------------------------------------------------------------- */

/* Takes what is under way out of the engine, and sends it as far as it has come: others go on from
 * there. */
static ifl_status actor_take_begun(actor *a, int32_t *n, int64_t *n_tokens, ifl_error *err) {
    void *user;
    ifl_trajectory *traj;
    while ((traj = ifl_engine_take_live(a->engine, &user)) != NULL) {
        int32_t n_policy = ifl_trajectory_n_policy(traj);
        actor_answer *answer = n_policy > 0 && a->minor >= 3 ? calloc(1, sizeof *answer) : NULL;
        if (!answer) {
            ifl_trajectory_free(traj);
            continue;
        }
        *n += 1;
        *n_tokens += n_policy;
        answer->traj = traj;
        answer->lease = user;
        answer->id = a->next_answer++;
        answer->state = ANSWER_SCORED; /* there is nothing to judge yet */
        snprintf(traj->actor, sizeof traj->actor, "%s", a->options->name);
        *a->answers_end = answer;
        a->answers_end = &answer->next;
    }
    return actor_rewards(a, err);
}

/* Asked to stop: what is finished is judged and handed over, what is begun is handed over as it is,
 * and then the leases are given back. */
static void actor_drain(actor *a) {
    double end_s = ifl_clock_s() + a->config->actor.drain_s;
    int32_t n_begun = 0, n_left = 1;
    int64_t n_tokens = 0;
    ifl_error err = {0};
    a->draining = true;
    actor_send_credit(a);
    for (actor_lease *l = a->leases; l; l = l->next)
        l->n_left++; /* to be given back in the end, whatever has been sent of it */
    ifl_status st = actor_collect_finished(a, &err);
    if (st == IFL_OK) st = actor_take_begun(a, &n_begun, &n_tokens, &err);
    /* Without a link nobody takes anything. */
    while (st == IFL_OK && !a->done && ifl_client_connected(a->client) && ifl_clock_s() < end_s) {
        ifl_client_outbox(a->client, &n_left, NULL);
        if (n_left == 0 && !a->answers) break;
        ifl_client_progress(a->client, ++a->n_progress, 0, 0);
        st = actor_events(a, 10, &err);
        if (st == IFL_OK) st = actor_rewards(a, &err);
    }
    if (a->done) return;
    if (st == IFL_OK && n_left == 0 && !a->answers)
        ifl_info("asked to stop: all answers are handed over, %d of them begun (%lld tokens)",
                 n_begun, (long long)n_tokens);
    else
        ifl_warn(
            "asked to stop, and not all answers could be handed over in actor.drain_s = %d%s%s",
            a->config->actor.drain_s, err.text[0] ? ": " : "", err.text);
    for (actor_lease *l = a->leases; l; l = l->next)
        actor_return(a, &l->message.lease, IFL_RETURN_DRAIN, "the actor was asked to stop");
}

/* A device that has failed may have touched anything that is under way there: none of it is sent.
 * The learner hears why and leases it to others; whoever started this actor may start it again. */
static ifl_status actor_step(actor *a, int32_t *n_decoded, ifl_error *err) {
    int fault = ifl_fail_point(IFL_FAIL_ACTOR_STEP);
    if (fault == 0) return ifl_engine_step(a->engine, n_decoded, err);
    ifl_message message = ifl_message_make(IFL_WIRE_ERROR);
    message.error.code = IFL_WIRE_E_DEVICE;
    snprintf(message.error.text, sizeof message.error.text, "its device failed: %s",
             strerror(fault));
    ifl_client_send(a->client, &message, NULL); /* without a link the learner notices by itself */
    return ifl_fail(err, IFL_AGAIN, "actor: the device failed in a decode step: %s; start it again",
                    strerror(fault));
}

static ifl_status actor_loop(actor *a, ifl_error *err) {
    bool credited = false;
    while (!a->done) {
        /* Progress of this loop, idle or not: what stands still is stuck. */
        ifl_client_progress(a->client, ++a->n_progress, 0, ifl_engine_queued(a->engine));
        if (atomic_load(a->options->stop)) {
            actor_drain(a);
            return IFL_OK;
        }
        bool busy = a->current && !ifl_engine_idle(a->engine);
        bool waiting = ifl_reward_pool_pending(a->rewards) > 0;
        IFL_TRY(actor_events(a, busy ? 0 : waiting ? 1 : IDLE_WAIT_MS, err));
        if (a->done) break;
        IFL_TRY(actor_weights(a, err));
        if (!a->current) continue;
        if (!credited && ifl_client_connected(a->client)) {
            actor_send_credit(a);
            credited = true;
        }
        if (a->swap_unreported) {
            /* The stall is what lies between two decode steps of a busy batch, all of it. */
            double gap_s = a->step_end_s > 0.0 ? ifl_clock_s() - a->step_end_s : 0.0;
            ifl_status told = ifl_weight_receiver_applied(a->receiver, a->current->version,
                                                          (int64_t)(gap_s * 1e6), NULL);
            /* Without a link it is said after the next WELCOME. */
            a->swap_unreported = told != IFL_OK && told != IFL_PEER;
            a->stats_due = true;
        }
        if (ifl_engine_idle(a->engine)) {
            a->step_end_s = 0.0;
        } else {
            int32_t n_decoded;
            double begin = ifl_clock_s();
            IFL_TRY(actor_step(a, &n_decoded, err));
            a->step_end_s = ifl_clock_s();
            if (n_decoded > 0) actor_say_first_token(a);
            if (n_decoded > 0)
                a->step_ms[a->n_steps++ % STEP_TIMES] = (float)((a->step_end_s - begin) * 1e3);
        }
        IFL_TRY(actor_collect_finished(a, err));
        IFL_TRY(actor_rewards(a, err));
        actor_send_stats(a);
        actor_report_refusals(a);
    }
    return IFL_OK;
}

static void actor_clear(actor *a) {
    ifl_weight_receiver_free(a->receiver);
    ifl_client_free(a->client);
    ifl_engine_free(a->engine);
    ifl_reward_pool_free(a->rewards);
    ifl_weights_free(a->buffers[0]);
    ifl_weights_free(a->buffers[1]);
    actor_clear_work(a);
    free(a->begun);
}

static ifl_engine_options actor_engine_options(const ifl_config *c) {
    return (ifl_engine_options){
        .sequences_max = c->actor.sequences_max,
        .kv_tokens = c->actor.kv_tokens,
        .page_tokens = c->actor.page_tokens,
        .prefill_chunk_tokens = c->actor.prefill_chunk_tokens,
        .kv_mode = c->actor.kv,
        .seed = (uint64_t)c->run.seed,
    };
}

int64_t ifl_actor_bytes(const ifl_config *config, const ifl_model *model, int n_threads) {
    ifl_engine_options options = actor_engine_options(config);
    bool kept = config->rollout.top_k > 0 || config->rollout.top_p < 1.0; /* of one decode step */
    return ifl_engine_bytes(model, &options, n_threads) +
           2 * (model->n_panel_elements * 2 + model->n_vector_elements * 4) +
           4 * config->actor.sequences_max *
               ifl_kept_ids_bound(config->rollout.max_new_tokens, config->rollout.top_k,
                                  config->rollout.top_p, model->config.vocab_size) +
           (kept ? 4 * (int64_t)config->actor.sequences_max * IFL_KEPT_SET_MAX : 0);
}

ifl_status ifl_actor_run(const ifl_actor_options *options, ifl_error *err) {
    const ifl_config *c = options->config;
    actor *a = ifl_alloc(1, sizeof *a);
    if (!a) return ifl_fail(err, IFL_NOMEM, "actor: out of memory");
    ifl_thread_pool *pool = NULL;
    ifl_status st;
    a->options = options;
    a->config = c;
    a->answers_end = &a->answers;
    a->stats_sent_s = a->begun_s = ifl_clock_s();
    ifl_reward_pool_options rewards = {
        .n_workers = c->reward.workers,
        .timeout_ms = c->reward.timeout_ms,
        .queue_max = REWARD_QUEUE_MAX,
        .checkers = c->reward.checkers,
        .cache_bytes = (int64_t)c->reward.cache_mib << 20,
        .retries = strcmp(c->reward.on_error, "retry") == 0 ? c->reward.retries : 0,
        .require = ifl_sandbox_tier_parse(c->reward.sandbox_require),
    };
    IFL_TRY_GOTO(st, ifl_programs_start_config(c, err), done);
    IFL_TRY_GOTO(st, ifl_reward_pool_create(&a->rewards, &rewards, err), done);
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, c->actor.threads, err), done);
    for (int i = 0; i < 2; i++)
        IFL_TRY_GOTO(st, ifl_weights_create(&a->buffers[i], options->model, err), done);
    ifl_engine_options engine = actor_engine_options(c);
    IFL_TRY_GOTO(st,
                 ifl_engine_create(&a->engine, options->model, options->tokenizer, &engine, pool,
                                   ifl_ops_best(options->model->numerics), err),
                 done);
    ifl_client_options client = {
        .connect = options->connect,
        .name = options->name,
        .build = "inflight",
        .fingerprint = options->model->fingerprint,
        .profile = options->model->profile,
        .parts = options->model->parts,
        .tokenizer = ifl_tokenizer_hash(options->tokenizer),
        .held_version = -1,
        .keys = c->transport.keys,
        .key = c->transport.key,
        .insecure = c->transport.insecure,
    };
    IFL_TRY_GOTO(st, ifl_client_create(&a->client, &client, err), done);
    ifl_weight_links_options relays = {.relays = c->transport.relays,
                                       .name = options->name,
                                       .keys = c->transport.keys,
                                       .key = c->transport.key,
                                       .insecure = c->transport.insecure};
    IFL_TRY_GOTO(st,
                 ifl_weight_receiver_create(&a->receiver, options->model, a->client, &relays, err),
                 done);
    IFL_TRY_GOTO(st, actor_offer(a, a->buffers[0], err), done);
    st = actor_loop(a, err);
done:
    actor_clear(a);
    ifl_thread_pool_free(pool);
    ifl_free(a);
    return st;
}
