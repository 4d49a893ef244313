#include "common/rollout_ledger.h"

#include <stdlib.h>
#include <string.h>

#include "common/memory.h"

typedef struct ledger_entry {
    ifl_rollout_key key;
    uint8_t used, leased, stored, in_flight, twice, conflicting;
    uint8_t undone;  /* was leased beyond the cursor that a later process went back to */
    uint8_t fate;    /* ifl_fate */
    int16_t reason;  /* index in the balance's list; -1 = none */
    int32_t process; /* number of the learner process that decided the fate or leased it last */
    int64_t step;
    ifl_hash content; /* of the last trajectory's bytes; 0 = none yet */
} ledger_entry;

typedef struct ledger_version {
    int64_t version;
    ifl_hash content; /* as last published */
} ledger_version;

struct ifl_rollout_ledger {
    ledger_entry *entries; /* open addressing, power of two */
    size_t n, cap;
    int32_t process; /* learner processes begun so far */
    int64_t eval_leased, eval_stored, leases_renewed, records, torn_bytes, unleased;
    int64_t generated_again, versions_remade;
    ledger_version *versions; /* [n_versions] ascending */
    size_t n_versions, versions_cap;
    int32_t n_reasons;
    char reasons[IFL_REASONS_MAX][IFL_REASON_MAX];
    bool ended;
};

static uint64_t key_hash(ifl_rollout_key key) {
    uint64_t x =
        key.task_serial * 0x9e3779b97f4a7c15u ^ ((uint64_t)(uint32_t)key.sample << 8 | key.purpose);
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static size_t slot_of(const ledger_entry *entries, size_t cap, ifl_rollout_key key) {
    size_t i = key_hash(key) & (cap - 1);
    while (entries[i].used &&
           (entries[i].key.task_serial != key.task_serial || entries[i].key.sample != key.sample ||
            entries[i].key.purpose != key.purpose))
        i = (i + 1) & (cap - 1);
    return i;
}

static ifl_status table_double(ifl_rollout_ledger *ledger, ifl_error *err) {
    size_t cap = ledger->cap ? ledger->cap * 2 : 1024;
    ledger_entry *grown = calloc(cap, sizeof *grown);
    if (!grown) return ifl_fail(err, IFL_NOMEM, "rollout ledger: out of memory for %zu keys", cap);
    for (size_t i = 0; i < ledger->cap; i++)
        if (ledger->entries[i].used)
            grown[slot_of(grown, cap, ledger->entries[i].key)] = ledger->entries[i];
    free(ledger->entries);
    ledger->entries = grown;
    ledger->cap = cap;
    return IFL_OK;
}

/* The entry of a key, made when there is none. */
static ifl_status entry_of(ifl_rollout_ledger *ledger, ifl_rollout_key key, ledger_entry **out,
                           ifl_error *err) {
    if (ledger->n * 4 >= ledger->cap * 3) {
        if (ledger->n >= IFL_LEDGER_KEYS_MAX)
            return ifl_fail(err, IFL_LIMIT, "rollout ledger: more than %d trajectories",
                            IFL_LEDGER_KEYS_MAX);
        IFL_TRY(table_double(ledger, err));
    }
    ledger_entry *e = &ledger->entries[slot_of(ledger->entries, ledger->cap, key)];
    if (!e->used) {
        *e = (ledger_entry){.key = key, .used = 1, .reason = -1};
        ledger->n++;
    }
    *out = e;
    return IFL_OK;
}

static ifl_status reason_index(ifl_rollout_ledger *ledger, const char *reason, int16_t *out,
                               ifl_error *err) {
    for (int16_t i = 0; i < ledger->n_reasons; i++)
        if (!strcmp(ledger->reasons[i], reason)) {
            *out = i;
            return IFL_OK;
        }
    if (ledger->n_reasons >= IFL_REASONS_MAX)
        return ifl_fail(err, IFL_LIMIT, "rollout ledger: more than %d different reasons",
                        IFL_REASONS_MAX);
    *out = (int16_t)ledger->n_reasons;
    snprintf(ledger->reasons[ledger->n_reasons++], IFL_REASON_MAX, "%s", reason);
    return IFL_OK;
}

/* --- One function per record type ----------------------------------------------------------------
 */

/* Steps after the one resumed from never happened: their keys have no fate again. Nor did the
 * leases beyond its cursor; a run may end before it comes to them again, and they are not lost. */
static void on_run_started(ifl_rollout_ledger *ledger, const ifl_record *r) {
    ledger->process++;
    ledger->ended = false;
    for (size_t i = 0; i < ledger->cap; i++) {
        ledger_entry *e = &ledger->entries[i];
        e->in_flight = 0;
        if (e->leased && e->key.purpose == IFL_PURPOSE_TRAIN &&
            e->key.task_serial >= r->task_serial) {
            *e = (ledger_entry){
                .key = e->key, .used = 1, .undone = 1, .reason = -1, .content = e->content};
            continue;
        }
        if (e->fate == IFL_FATE_TRAINED && e->step > r->step) {
            e->fate = IFL_FATE_NONE;
            e->step = 0;
            e->twice = 0;
        }
    }
}

static ifl_status on_leased(ifl_rollout_ledger *ledger, const ifl_record *r, ifl_error *err) {
    for (int32_t sample = 0; sample < r->group_size; sample++) {
        ledger_entry *e;
        IFL_TRY(entry_of(ledger, (ifl_rollout_key){r->task_serial, sample, r->purpose}, &e, err));
        if (e->leased && e->process == ledger->process) ledger->leases_renewed++;
        /* A later process that leases a key anew has gone back before the fate it had. */
        if (e->process != ledger->process && e->fate != IFL_FATE_TRAINED) {
            e->fate = IFL_FATE_NONE;
            e->reason = -1;
        }
        e->leased = 1;
        e->undone = 0;
        e->process = ledger->process;
    }
    /* Where an earlier process had made the group larger, the rest of it is not asked for any more.
     */
    for (int32_t sample = r->group_size; sample < IFL_RECORD_MEMBERS_MAX; sample++) {
        ifl_rollout_key key = {r->task_serial, sample, r->purpose};
        ledger_entry *e = &ledger->entries[slot_of(ledger->entries, ledger->cap, key)];
        if (!e->used || e->process == ledger->process || e->fate == IFL_FATE_TRAINED) break;
        *e = (ledger_entry){
            .key = e->key, .used = 1, .undone = 1, .reason = -1, .content = e->content};
    }
    return IFL_OK;
}

static ifl_status on_trajectory(ifl_rollout_ledger *ledger, const ifl_record *r, ifl_error *err) {
    ifl_trajectory *traj = NULL;
    ifl_status st = ifl_trajectory_decode(&traj, r->meta, r->n_meta, r->payload, r->n_payload, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "%s: offset %lld", r->file, (long long)r->offset);
        return st;
    }
    ledger_entry *e;
    ifl_rollout_key key = {traj->task_serial, traj->sample, traj->purpose};
    ifl_trajectory_free(traj);
    IFL_TRY(entry_of(ledger, key, &e, err));
    e->stored = 1;
    ifl_hash content = ifl_hash_bytes(r->meta, r->n_meta + r->n_payload), none = {0};
    if (key.purpose == IFL_PURPOSE_TRAIN && !ifl_hash_equal(e->content, none) &&
        !ifl_hash_equal(e->content, content))
        ledger->generated_again++;
    e->content = content;
    return IFL_OK;
}

static ifl_status on_published(ifl_rollout_ledger *ledger, const ifl_record *r, ifl_error *err) {
    size_t low = 0, high = ledger->n_versions;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ledger->versions[middle].version < r->step)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == ledger->n_versions || ledger->versions[low].version != r->step) {
        void *grown = ledger->versions;
        ifl_status st = ifl_grow(&grown, &ledger->versions_cap, ledger->n_versions + 1,
                                 sizeof *ledger->versions, err);
        ledger->versions = grown;
        IFL_TRY(st);
        memmove(ledger->versions + low + 1, ledger->versions + low,
                (ledger->n_versions++ - low) * sizeof *ledger->versions);
        ledger->versions[low] = (ledger_version){r->step, r->content};
    } else if (!ifl_hash_equal(ledger->versions[low].content, r->content)) {
        ledger->versions_remade++;
        ledger->versions[low].content = r->content;
    }
    return IFL_OK;
}

static ifl_status on_fate(ifl_rollout_ledger *ledger, ifl_rollout_key key, ifl_fate fate,
                          int64_t step, const char *reason, ifl_error *err) {
    ledger_entry *e;
    int16_t index = -1;
    if (fate != IFL_FATE_TRAINED) IFL_TRY(reason_index(ledger, reason, &index, err));
    IFL_TRY(entry_of(ledger, key, &e, err));
    if (e->fate == IFL_FATE_TRAINED && fate == IFL_FATE_TRAINED && e->step != step)
        e->twice = 1;
    else if (e->fate != IFL_FATE_NONE && e->fate != fate && e->process == ledger->process)
        e->conflicting = 1;
    e->fate = (uint8_t)fate;
    e->step = step;
    e->reason = index;
    e->process = ledger->process;
    return IFL_OK;
}

static ifl_status on_record(ifl_rollout_ledger *ledger, const ifl_record *r, ifl_error *err) {
    ledger_entry *e;
    switch (r->type) {
    case IFL_RECORD_RUN_STARTED:
        on_run_started(ledger, r);
        break;
    case IFL_RECORD_LEASED:
        return on_leased(ledger, r, err);
    case IFL_RECORD_TRAJECTORY:
        return on_trajectory(ledger, r, err);
    case IFL_RECORD_GROUP_CLOSED: /* what follows from it is in the fates */
    case IFL_RECORD_TAKEN:
    case IFL_RECORD_CAUGHT_UP:
    case IFL_RECORD_DRAWN:
        break;
    case IFL_RECORD_PUBLISHED:
        return on_published(ledger, r, err);
    case IFL_RECORD_TRAINED:
        for (int32_t i = 0; i < r->n_keys; i++)
            IFL_TRY(on_fate(ledger, r->keys[i], IFL_FATE_TRAINED, r->step, "", err));
        break;
    case IFL_RECORD_DROPPED:
        return on_fate(ledger, r->key, IFL_FATE_DROPPED, 0, r->reason, err);
    case IFL_RECORD_MASKED:
        return on_fate(ledger, r->key, IFL_FATE_MASKED, 0, r->reason, err);
    case IFL_RECORD_CHECKPOINT:
        break;
    case IFL_RECORD_RUN_ENDED:
        ledger->ended = true;
        for (int32_t i = 0; i < r->n_keys; i++) {
            e = &ledger->entries[slot_of(ledger->entries, ledger->cap, r->keys[i])];
            /* Of a group that is open, and that nobody was ever given: not in the books. */
            if (e->used && e->leased) e->in_flight = 1;
        }
        break;
    }
    return IFL_OK;
}

ifl_status ifl_rollout_ledger_read(ifl_rollout_ledger **out, const char *folder, ifl_error *err) {
    *out = NULL;
    ifl_rollout_reader *reader = NULL;
    ifl_status st = IFL_OK;
    ifl_rollout_ledger *ledger = calloc(1, sizeof *ledger);
    if (!ledger) return ifl_fail(err, IFL_NOMEM, "rollout ledger: out of memory");
    IFL_TRY_GOTO(st, table_double(ledger, err), done);
    IFL_TRY_GOTO(st, ifl_rollout_reader_open(&reader, folder, err), done);
    for (;;) {
        ifl_record record;
        st = ifl_rollout_reader_next(reader, &record, err);
        if (st == IFL_NOTFOUND) break;
        if (st != IFL_OK) goto done;
        ledger->records++;
        IFL_TRY_GOTO(st, on_record(ledger, &record, err), done);
    }
    st = IFL_OK;
    ledger->torn_bytes = ifl_rollout_reader_torn_bytes(reader);
    *out = ledger;
    ledger = NULL;
done:
    ifl_rollout_reader_close(reader);
    ifl_rollout_ledger_free(ledger);
    return st;
}

void ifl_rollout_ledger_free(ifl_rollout_ledger *ledger) {
    if (!ledger) return;
    free(ledger->entries);
    free(ledger->versions);
    free(ledger);
}

bool ifl_rollout_ledger_find(const ifl_rollout_ledger *ledger, ifl_rollout_key key,
                             ifl_rollout_fate *out) {
    const ledger_entry *e = &ledger->entries[slot_of(ledger->entries, ledger->cap, key)];
    memset(out, 0, sizeof *out);
    out->reason = "";
    if (!e->used) return false;
    out->fate = (ifl_fate)e->fate;
    out->step = e->step;
    out->stored = e->stored;
    out->in_flight = e->in_flight;
    if (e->reason >= 0) out->reason = ledger->reasons[e->reason];
    return true;
}

static void balance_add(ifl_rollout_balance *b, const ifl_rollout_ledger *ledger,
                        const ledger_entry *e) {
    if (e->key.purpose != IFL_PURPOSE_TRAIN) {
        b->eval_leased += e->leased;
        b->eval_stored += e->stored;
        return;
    }
    if (e->undone) return;
    b->stored += e->stored;
    b->trained_twice += e->twice;
    b->conflicting += e->conflicting;
    if (!e->leased) {
        b->unleased++;
        return;
    }
    b->leased++;
    switch ((ifl_fate)e->fate) {
    case IFL_FATE_TRAINED:
        b->trained++;
        b->trained_unstored += !e->stored;
        if (e->step > b->steps) b->steps = e->step;
        break;
    case IFL_FATE_MASKED:
        b->masked++;
        b->reasons[e->reason].n_masked++;
        break;
    case IFL_FATE_DROPPED:
        b->dropped++;
        b->reasons[e->reason].n_dropped++;
        break;
    case IFL_FATE_NONE:
        if (e->in_flight || !ledger->ended)
            b->in_flight++;
        else
            b->lost++;
        break;
    }
}

void ifl_rollout_ledger_balance(const ifl_rollout_ledger *ledger, ifl_rollout_balance *out) {
    memset(out, 0, sizeof *out);
    out->n_reasons = ledger->n_reasons;
    for (int32_t i = 0; i < ledger->n_reasons; i++)
        snprintf(out->reasons[i].reason, IFL_REASON_MAX, "%s", ledger->reasons[i]);
    for (size_t i = 0; i < ledger->cap; i++)
        if (ledger->entries[i].used) balance_add(out, ledger, &ledger->entries[i]);
    out->leases_renewed = ledger->leases_renewed;
    out->generated_again = ledger->generated_again;
    out->versions_remade = ledger->versions_remade;
    out->records = ledger->records;
    out->torn_bytes = ledger->torn_bytes;
    out->processes = ledger->process;
    out->ended = ledger->ended;
}

bool ifl_rollout_balance_holds(const ifl_rollout_balance *b) {
    return !b->lost && !b->trained_twice && !b->conflicting && !b->unleased &&
           !b->trained_unstored &&
           b->leased == b->trained + b->masked + b->dropped + b->in_flight + b->lost;
}

json_t *ifl_rollout_balance_json(const ifl_rollout_balance *b) {
    json_t *dropped = json_object(), *masked = json_object();
    json_t *root = NULL;
    bool good = dropped && masked;
    for (int32_t i = 0; i < b->n_reasons && good; i++) {
        const char *reason = b->reasons[i].reason;
        if (b->reasons[i].n_dropped)
            good = !json_object_set_new(dropped, reason, json_integer(b->reasons[i].n_dropped));
        if (good && b->reasons[i].n_masked)
            good = !json_object_set_new(masked, reason, json_integer(b->reasons[i].n_masked));
    }
    if (good)
        root = json_pack(
            "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:O, s:O, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
            "s:I, s:I, s:I, s:I, s:I, s:I, s:b}",
            "holds", ifl_rollout_balance_holds(b), "leased", (json_int_t)b->leased, "trained",
            (json_int_t)b->trained, "masked", (json_int_t)b->masked, "dropped",
            (json_int_t)b->dropped, "in_flight", (json_int_t)b->in_flight, "lost",
            (json_int_t)b->lost, "dropped_by_reason", dropped, "masked_by_reason", masked, "stored",
            (json_int_t)b->stored, "trained_twice", (json_int_t)b->trained_twice, "conflicting",
            (json_int_t)b->conflicting, "unleased", (json_int_t)b->unleased, "trained_unstored",
            (json_int_t)b->trained_unstored, "leases_renewed", (json_int_t)b->leases_renewed,
            "generated_again", (json_int_t)b->generated_again, "versions_remade",
            (json_int_t)b->versions_remade, "eval_leased", (json_int_t)b->eval_leased,
            "eval_stored", (json_int_t)b->eval_stored, "steps", (json_int_t)b->steps, "records",
            (json_int_t)b->records, "torn_bytes", (json_int_t)b->torn_bytes, "processes",
            (json_int_t)b->processes, "ended", b->ended);
    json_decref(dropped);
    json_decref(masked);
    return root;
}
