#include "common/task.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/memory.h"
#include "common/rng.h"
#include "common/task_disjoint.h"
#include "common/task_source.h"

#define MIX_SLOTS 1000 /* resolution of ratios: a source gets at least one of so many serials */
#define RATES_MAX (1u << 20) /* tasks whose pass rate is remembered */
#define RATE_DIGITS 24       /* of one in a text: its task's 16, its float's 8 */
#define BAND_CANDIDATES 16   /* tasks looked at for one that lies inside the band */
#define BAND_REMEASURE                                                                             \
    8 /* every so manyth serial ignores the band: old rates are measured again                     \
       */

typedef enum { SAMPLER_BY_SIZE, SAMPLER_RATIO, SAMPLER_PASS_RATE } sampler_kind;

typedef struct rate_entry {
    uint64_t id; /* 0 = empty */
    float rate;
} rate_entry;

struct ifl_task_set {
    int32_t n_sources;
    ifl_task_source sources[IFL_SOURCES_MAX];
    sampler_kind sampler;
    uint64_t seed;
    int64_t n_tasks; /* 0 = endless */
    /* Ratio mixing: serial t of each block of MIX_SLOTS goes to slot_source[t], as its
     * slot_rank[t]-th. */
    uint8_t slot_source[MIX_SLOTS];
    uint16_t slot_rank[MIX_SLOTS];
    int32_t quota[IFL_SOURCES_MAX];
    double pass_rate_min, pass_rate_max;
    rate_entry *rates; /* open addressing, [rates_cap], a power of two */
    uint32_t rates_cap, n_rates;
};

void ifl_task_clear(ifl_task *task) {
    free(task->id);
    free(task->data_source);
    free(task->checker);
    free(task->answer);
    free(task->meta);
    free(task->text);
    free(task->prompt);
    free(task->line);
    memset(task, 0, sizeof *task);
}

static bool text_clone(char **to, const char *from) {
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

ifl_status ifl_task_copy(ifl_task *to, const ifl_task *from, ifl_error *err) {
    ifl_task copy = {.source = from->source,
                     .n_prompt = from->n_prompt,
                     .max_new_tokens = from->max_new_tokens,
                     .weight = from->weight};
    bool fine = text_clone(&copy.id, from->id) &&
                text_clone(&copy.data_source, from->data_source) &&
                text_clone(&copy.checker, from->checker) &&
                text_clone(&copy.answer, from->answer) && text_clone(&copy.meta, from->meta) &&
                text_clone(&copy.text, from->text) && text_clone(&copy.line, from->line);
    if (fine && from->prompt) {
        copy.prompt = malloc((size_t)from->n_prompt * sizeof *copy.prompt + 1);
        fine = copy.prompt != NULL;
        if (fine) memcpy(copy.prompt, from->prompt, (size_t)from->n_prompt * sizeof *copy.prompt);
    }
    if (!fine) {
        ifl_task_clear(&copy);
        return ifl_fail(err, IFL_NOMEM, "no memory for a copy of task %s",
                        from->id ? from->id : "?");
    }
    *to = copy;
    return IFL_OK;
}

/* --- Mixing
 * -------------------------------------------------------------------------------------------- */

/* Whole shares of MIX_SLOTS by the largest remainders, at least one each. */
static void mix_quotas(ifl_task_set *set) {
    double sum = 0.0, rest[IFL_SOURCES_MAX];
    int32_t given = 0;
    for (int32_t i = 0; i < set->n_sources; i++)
        sum += set->sources[i].config.ratio;
    for (int32_t i = 0; i < set->n_sources; i++) {
        double share = MIX_SLOTS * (set->sources[i].config.ratio / sum);
        set->quota[i] = share < 1.0 ? 1 : (int32_t)share;
        rest[i] = share - set->quota[i];
        given += set->quota[i];
    }
    while (given != MIX_SLOTS) {
        int32_t step = given < MIX_SLOTS ? 1 : -1, best = -1;
        for (int32_t i = 0; i < set->n_sources; i++) {
            if (step < 0 && set->quota[i] == 1) continue;
            if (best < 0 || step * rest[i] > step * rest[best]) best = i;
        }
        set->quota[best] += step;
        rest[best] -= step;
        given += step;
    }
}

/* Spread evenly, so that each step's prompts already have the ratios: a slot goes to the source
 * that is furthest behind its share. */
static void mix_slots(ifl_task_set *set) {
    int32_t used[IFL_SOURCES_MAX] = {0};
    for (int32_t t = 0; t < MIX_SLOTS; t++) {
        int32_t best = -1, best_lack = 0;
        for (int32_t i = 0; i < set->n_sources; i++) {
            int32_t lack = set->quota[i] * (t + 1) - used[i] * MIX_SLOTS;
            if (used[i] == set->quota[i] || (best >= 0 && lack <= best_lack)) continue;
            best = i;
            best_lack = lack;
        }
        set->slot_source[t] = (uint8_t)best;
        set->slot_rank[t] = (uint16_t)used[best]++;
    }
}

/* Every source has its own order; the whole set's, by size, is number n_sources. */
static uint64_t order_seed(const ifl_task_set *set, int32_t order) {
    uint64_t parts[2] = {set->seed, (uint64_t)order};
    return ifl_hash64(parts, sizeof parts);
}

static ifl_task_pick pick_by_size(const ifl_task_set *set, uint64_t serial) {
    uint64_t n = (uint64_t)set->n_tasks;
    uint64_t item = ifl_rng_permute(order_seed(set, set->n_sources), serial / n, n, serial % n);
    ifl_task_pick pick = {0, item};
    while (pick.item >= (uint64_t)set->sources[pick.source].n)
        pick.item -= (uint64_t)set->sources[pick.source++].n;
    return pick;
}

static ifl_task_pick pick_by_ratio(const ifl_task_set *set, uint64_t serial) {
    uint64_t t = serial % MIX_SLOTS;
    ifl_task_pick pick = {set->slot_source[t], 0};
    uint64_t running = serial / MIX_SLOTS * (uint64_t)set->quota[pick.source] + set->slot_rank[t];
    uint64_t n = (uint64_t)set->sources[pick.source].n;
    pick.item = n == 0 ? running
                       : ifl_rng_permute(order_seed(set, pick.source), running / n, n, running % n);
    return pick;
}

/* --- Pass rates
 * ---------------------------------------------------------------------------------------- */

static rate_entry *rate_slot(const ifl_task_set *set, uint64_t id) {
    uint32_t at = (uint32_t)(id >> 16) & (set->rates_cap - 1);
    while (set->rates[at].id != 0 && set->rates[at].id != id)
        at = (at + 1) & (set->rates_cap - 1);
    return &set->rates[at];
}

/* Twice the room; without memory for it new tasks go unrecorded, which only costs selection. */
static void rates_grow(ifl_task_set *set) {
    uint32_t cap = set->rates_cap ? 2 * set->rates_cap : 1024;
    rate_entry *old = set->rates, *rates = ifl_alloc(cap, sizeof *rates);
    uint32_t old_cap = set->rates_cap;
    if (!rates) return;
    set->rates = rates;
    set->rates_cap = cap;
    for (uint32_t i = 0; i < old_cap; i++)
        if (old[i].id) *rate_slot(set, old[i].id) = old[i];
    ifl_free(old);
}

static void rate_put(ifl_task_set *set, uint64_t id, float rate) {
    if (2 * (set->n_rates + 1) > set->rates_cap && set->n_rates < RATES_MAX) rates_grow(set);
    if (set->rates_cap == 0) return;
    rate_entry *entry = rate_slot(set, id);
    if (entry->id == 0) {
        if (2 * (set->n_rates + 1) > set->rates_cap)
            return; /* full: known tasks keep being updated */
        entry->id = id;
        set->n_rates++;
    }
    entry->rate = rate;
}

void ifl_task_set_report(ifl_task_set *set, const char *task_id, double pass_rate) {
    if (set->sampler != SAMPLER_PASS_RATE || !isfinite(pass_rate)) return;
    rate_put(set, ifl_hash_bytes(task_id, strlen(task_id)).low | 1, (float)pass_rate);
}

static int compare_rates(const void *a, const void *b) {
    uint64_t x = ((const rate_entry *)a)->id, y = ((const rate_entry *)b)->id;
    return (x > y) - (x < y);
}

char *ifl_task_set_rates(const ifl_task_set *set) {
    rate_entry *sorted = ifl_alloc((size_t)set->n_rates + 1, sizeof *sorted);
    char *text = calloc((size_t)set->n_rates * RATE_DIGITS + 1, 1);
    uint32_t n = 0;
    if (!sorted || !text) {
        ifl_free(sorted);
        free(text);
        return NULL;
    }
    for (uint32_t i = 0; i < set->rates_cap; i++)
        if (set->rates[i].id) sorted[n++] = set->rates[i];
    qsort(sorted, n, sizeof *sorted, compare_rates);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &sorted[i].rate, sizeof bits);
        snprintf(text + (size_t)i * RATE_DIGITS, RATE_DIGITS + 1, "%016" PRIx64 "%08" PRIx32,
                 sorted[i].id, bits);
    }
    ifl_free(sorted);
    return text;
}

ifl_status ifl_task_set_rates_restore(ifl_task_set *set, const char *text, ifl_error *err) {
    size_t n = strlen(text);
    if (n % RATE_DIGITS || n / RATE_DIGITS > RATES_MAX || strspn(text, "0123456789abcdef") != n)
        return ifl_fail(err, IFL_FORMAT,
                        "pass rates: got a text of %zu characters, wanted %d hexadecimal digits "
                        "for each of at most %u tasks",
                        n, RATE_DIGITS, RATES_MAX);
    for (const char *at = text; *at; at += RATE_DIGITS) {
        char digits[17] = "";
        memcpy(digits, at, 16);
        uint64_t id = strtoull(digits, NULL, 16);
        memcpy(digits, at + 16, 8);
        digits[8] = 0;
        uint32_t bits = (uint32_t)strtoul(digits, NULL, 16);
        float rate;
        memcpy(&rate, &bits, sizeof rate);
        if (id == 0 || !(rate >= 0.0f && rate <= 1.0f))
            return ifl_fail(err, IFL_FORMAT, "pass rates: \"%.24s\" is none", at);
        if (set->sampler == SAMPLER_PASS_RATE) rate_put(set, id, rate);
    }
    return IFL_OK;
}

/* How far the pick's recorded rate lies outside the band; 0 inside it or unrecorded. */
static double band_distance(const ifl_task_set *set, ifl_task_pick pick) {
    if (set->rates_cap == 0) return 0.0;
    uint64_t id = ifl_task_source_id(&set->sources[pick.source], pick.item) | 1;
    const rate_entry *entry = rate_slot(set, id);
    if (entry->id == 0) return 0.0;
    double rate = (double)entry->rate;
    if (rate < set->pass_rate_min) return set->pass_rate_min - rate;
    return rate > set->pass_rate_max ? rate - set->pass_rate_max : 0.0;
}

/* The serial's own task if it lies in the band, else another one of its source, so that ratios
 * hold; the nearest one if none of the candidates lies inside. */
static ifl_task_pick pick_in_band(const ifl_task_set *set, uint64_t serial) {
    ifl_task_pick best = pick_by_ratio(set, serial);
    if (serial % BAND_REMEASURE == BAND_REMEASURE - 1) return best;
    double best_distance = band_distance(set, best);
    ifl_rng_key key = {set->seed, (uint64_t)best.source, IFL_RNG_ORDER};
    int64_t n = set->sources[best.source].n;
    for (uint32_t i = 1; i < BAND_CANDIDATES && best_distance > 0.0; i++) {
        ifl_task_pick pick = {best.source, ifl_rng_below(&key, serial, 1000 + i,
                                                         n ? (uint64_t)n : (uint64_t)1 << 40)};
        double distance = band_distance(set, pick);
        if (distance >= best_distance) continue;
        best = pick;
        best_distance = distance;
    }
    return best;
}

bool ifl_task_set_is_adaptive(const ifl_task_set *set) {
    return set->sampler == SAMPLER_PASS_RATE;
}

ifl_task_pick ifl_task_set_draw(const ifl_task_set *set, uint64_t serial) {
    switch (set->sampler) {
    case SAMPLER_BY_SIZE:
        return pick_by_size(set, serial);
    case SAMPLER_RATIO:
        return pick_by_ratio(set, serial);
    case SAMPLER_PASS_RATE:
        return pick_in_band(set, serial);
    }
    IFL_ASSERT(!"a sampler without a case");
    return (ifl_task_pick){0, 0};
}

/* --- The set
 * ------------------------------------------------------------------------------------------- */

static ifl_status set_choose_sampler(ifl_task_set *set, const ifl_config *config, bool eval,
                                     ifl_error *err) {
    const char *name = config->data.sampler;
    int32_t n_endless = 0;
    for (int32_t i = 0; i < set->n_sources; i++) {
        n_endless += set->sources[i].n == 0;
        set->n_tasks += set->sources[i].n;
    }
    if (n_endless) set->n_tasks = 0;
    if (eval) { /* each held-out task once before any comes again, whatever the ratios of training
                 */
        set->sampler = n_endless ? SAMPLER_RATIO : SAMPLER_BY_SIZE;
        return IFL_OK;
    }
    if (strcmp(name, "uniform") == 0) {
        set->sampler = SAMPLER_BY_SIZE;
        if (n_endless)
            return ifl_fail(
                err, IFL_USAGE,
                "data.sampler: uniform mixes sources by size, but %d of the %d are endless: "
                "give their generators a count, or use ratio",
                n_endless, set->n_sources);
    } else if (strcmp(name, "pass_rate") == 0) {
        set->sampler = SAMPLER_PASS_RATE;
        set->pass_rate_min = config->data.pass_rate_min;
        set->pass_rate_max = config->data.pass_rate_max;
        if (!(set->pass_rate_min <= set->pass_rate_max))
            return ifl_fail(err, IFL_USAGE, "data.pass_rate_min is %g, above pass_rate_max, %g",
                            set->pass_rate_min, set->pass_rate_max);
    } else if (strcmp(name, "ratio") == 0 || !*name) {
        set->sampler = SAMPLER_RATIO;
    } else {
        return ifl_fail(err, IFL_USAGE,
                        "data.sampler: got '%s', wanted uniform, ratio or pass_rate", name);
    }
    return IFL_OK;
}

ifl_status ifl_task_set_open(ifl_task_set **out, const ifl_config *config, const char *purpose,
                             const ifl_tokenizer *tokenizer, ifl_error *err) {
    *out = NULL;
    bool eval = strcmp(purpose, "eval") == 0;
    IFL_ASSERT(eval || strcmp(purpose, "train") == 0);
    int32_t n = eval ? config->data.n_eval : config->data.n_train;
    if (n < 1 || n > IFL_SOURCES_MAX)
        return ifl_fail(err, IFL_USAGE, "data.%s: got %d sources, wanted 1 .. %d", purpose, n,
                        IFL_SOURCES_MAX);
    ifl_task_set *set = calloc(1, sizeof *set);
    if (!set) return ifl_fail(err, IFL_NOMEM, "no memory for the task set");
    ifl_status st = IFL_OK;
    /* Held-out tasks don't depend on the run's seed: runs with several seeds measure on the same.
     */
    set->seed = eval ? 0 : (uint64_t)config->run.seed;
    for (; set->n_sources < n; set->n_sources++) {
        ifl_task_source *s = &set->sources[set->n_sources];
        IFL_TRY_GOTO(
            st, ifl_task_source_open(s, config, purpose, set->n_sources, tokenizer, set->seed, err),
            done);
        if (!(s->config.ratio > 0.0 && isfinite(s->config.ratio))) {
            set->n_sources++; /* it is open */
            st = ifl_fail(err, IFL_USAGE, "%s.ratio: got %g, wanted more than 0", s->where,
                          s->config.ratio);
            goto done;
        }
    }
    IFL_TRY_GOTO(st, set_choose_sampler(set, config, eval, err), done);
    mix_quotas(set);
    mix_slots(set);
    if (eval) IFL_TRY_GOTO(st, ifl_task_disjoint_check(set->sources, n, config, err), done);
    *out = set;
    set = NULL;
done:
    ifl_task_set_close(set);
    return st;
}

void ifl_task_set_close(ifl_task_set *set) {
    if (!set) return;
    for (int32_t i = 0; i < set->n_sources; i++)
        ifl_task_source_close(&set->sources[i]);
    ifl_free(set->rates);
    free(set);
}

int64_t ifl_task_set_size(const ifl_task_set *set) {
    return set->n_tasks;
}

const char *ifl_task_set_source_name(const ifl_task_set *set, int32_t source) {
    IFL_ASSERT(source >= 0 && source < set->n_sources);
    return set->sources[source].name;
}

ifl_status ifl_task_set_get(ifl_task_set *set, uint64_t serial, ifl_task *out, ifl_error *err) {
    return ifl_task_set_get_picked(set, ifl_task_set_draw(set, serial), out, err);
}

ifl_status ifl_task_set_get_picked(const ifl_task_set *set, ifl_task_pick pick, ifl_task *out,
                                   ifl_error *err) {
    if (pick.source < 0 || pick.source >= set->n_sources)
        return ifl_fail(err, IFL_NOTFOUND, "task source %d: there are %d", pick.source,
                        set->n_sources);
    const ifl_task_source *source = &set->sources[pick.source];
    if (source->n > 0 && pick.item >= (uint64_t)source->n)
        return ifl_fail(err, IFL_NOTFOUND, "%s: no task %" PRIu64 ", it has %" PRId64,
                        source->where, pick.item, source->n);
    IFL_TRY(ifl_task_source_get(source, pick.item, out, err));
    out->source = pick.source;
    return IFL_OK;
}

ifl_status ifl_task_set_example(ifl_task_set *set, uint64_t serial, double worked_share,
                                ifl_task *task, char **completion, ifl_error *err) {
    ifl_task_pick pick = ifl_task_set_draw(set, serial);
    return ifl_task_source_example(&set->sources[pick.source], pick.item, worked_share, task,
                                   completion, err);
}
