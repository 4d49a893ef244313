/* How alike two patches are, by what they change. Lines of both results against the base by Myers'
 * greedy algorithm (Algorithmica 1, 1986), which is bounded: where more than DIFF_MAX lines differ,
 * lines are counted as bags. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "rewards/patch.h"

#define DIFF_MAX 400

/* Lines as ids, without common beginnings and ends; equal ids are equal lines. */
typedef struct lines {
    uint64_t *ids;
    ifl_slice *texts;
    size_t n;
} lines;

typedef struct bag {
    uint64_t *items;
    size_t n, capacity;
} bag;

static void lines_free(lines *l) {
    free(l->ids);
    free(l->texts);
    *l = (lines){0};
}

/* Each line with its "\n". Ids are hashes: two lines that collide would only look alike, and 1 MiB
 * has too few lines for that by chance. */
static ifl_status lines_of(lines *out, const ifl_edit_file *file, ifl_error *err) {
    *out = (lines){0};
    ifl_slice s = file ? (ifl_slice){file->text, file->n} : (ifl_slice){"", 0};
    size_t n = 1;
    for (size_t i = 0; i < s.n; i++)
        n += s.text[i] == '\n';
    out->ids = calloc(n, sizeof *out->ids);
    out->texts = calloc(n, sizeof *out->texts);
    if (!out->ids || !out->texts) {
        lines_free(out);
        return ifl_fail(err, IFL_NOMEM, "no memory for %zu lines", n);
    }
    const char *end = s.text + s.n;
    for (ifl_slice line; ifl_slice_line(&s, &line);) {
        line.n += line.text + line.n < end;
        out->texts[out->n] = line;
        out->ids[out->n++] = XXH3_64bits(line.text, line.n);
    }
    return IFL_OK;
}

static int compare_u64(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Sorts both; how many they have in common, with multiplicity. */
static size_t bags_common(uint64_t *a, size_t n_a, uint64_t *b, size_t n_b) {
    size_t common = 0, i = 0, j = 0;
    if (n_a) qsort(a, n_a, sizeof *a, compare_u64);
    if (n_b) qsort(b, n_b, sizeof *b, compare_u64);
    while (i < n_a && j < n_b) {
        if (a[i] == b[j]) {
            common++;
            i++;
            j++;
        } else if (a[i] < b[j]) {
            i++;
        } else {
            j++;
        }
    }
    return common;
}

/* Marks in kept_a and kept_b what a longest common subsequence keeps (bytes, zeroed before).
 * *bounded false: more than DIFF_MAX lines differ, nothing is marked. */
static ifl_status keep_common(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b,
                              char *kept_a, char *kept_b, bool *bounded, ifl_error *err) {
    enum { WIDTH = 2 * DIFF_MAX + 3, MIDDLE = DIFF_MAX + 1 };
    int32_t *trace = malloc(sizeof *trace * WIDTH * (DIFF_MAX + 1)), v[WIDTH] = {0};
    if (!trace) return ifl_fail(err, IFL_NOMEM, "no memory for a diff");
    int32_t n = (int32_t)n_a, m = (int32_t)n_b, d = 0;
    *bounded = false;
    for (; d <= DIFF_MAX && !*bounded; d++) {
        memcpy(trace + (size_t)d * WIDTH, v, sizeof v);
        for (int32_t k = -d; k <= d; k += 2) {
            int32_t *at = v + MIDDLE + k;
            int32_t x = k == -d || (k != d && at[-1] < at[1]) ? at[1] : at[-1] + 1;
            while (x < n && x - k < m && a[x] == b[x - k])
                x++;
            *at = x;
            if (x >= n && x - k >= m) {
                *bounded = true;
                break;
            }
        }
    }
    int32_t x = n, y = m;
    for (d--; *bounded && d >= 0; d--) {
        const int32_t *old = trace + (size_t)d * WIDTH + MIDDLE;
        int32_t k = x - y;
        int32_t from = k == -d || (k != d && old[k - 1] < old[k + 1]) ? k + 1 : k - 1;
        int32_t x0 = d ? old[from] : 0, y0 = d ? x0 - from : 0;
        while (x > x0 && y > y0) {
            kept_a[--x] = 1;
            kept_b[--y] = 1;
        }
        x = x0;
        y = y0;
    }
    free(trace);
    return IFL_OK;
}

/* What base -> x changes in one file: places deleted from base, lines inserted. */
typedef struct changes {
    char *deleted; /* [n lines of base] */
    uint64_t *inserted;
    size_t n_deleted, n_inserted;
} changes;

static void changes_free(changes *c) {
    free(c->deleted);
    free(c->inserted);
    *c = (changes){0};
}

/* Beyond the bound: lines that the other side has less often, first ones kept. */
static void keep_by_count(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b,
                          uint64_t *sorted, char *kept) {
    if (n_b) memcpy(sorted, b, n_b * sizeof *b);
    if (n_b) qsort(sorted, n_b, sizeof *sorted, compare_u64);
    /* used[i]: how many of the run that begins at i are taken; kept in a second half of `sorted`.
     */
    uint64_t *used = sorted + n_b;
    memset(used, 0, n_b * sizeof *used);
    for (size_t i = 0; i < n_a; i++) {
        size_t low = 0, high = n_b;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (sorted[middle] < a[i])
                low = middle + 1;
            else
                high = middle;
        }
        size_t take = low < n_b ? low + used[low] : n_b;
        if (take < n_b && sorted[take] == a[i]) {
            used[low]++;
            kept[i] = 1;
        }
    }
}

/* Common subsequence by the diff within its bound, else by counts. */
static ifl_status keep(const uint64_t *a, size_t n_a, const uint64_t *b, size_t n_b, char *kept_a,
                       char *kept_b, ifl_error *err) {
    size_t head = 0, tail = 0, shorter = n_a < n_b ? n_a : n_b;
    while (head < shorter && a[head] == b[head]) {
        kept_a[head] = kept_b[head] = 1;
        head++;
    }
    while (tail < shorter - head && a[n_a - 1 - tail] == b[n_b - 1 - tail]) {
        tail++;
        kept_a[n_a - tail] = kept_b[n_b - tail] = 1;
    }
    bool bounded = false;
    n_a -= head + tail;
    n_b -= head + tail;
    a += head;
    b += head;
    if (n_a == 0 || n_b == 0) return IFL_OK;
    IFL_TRY(keep_common(a, n_a, b, n_b, kept_a + head, kept_b + head, &bounded, err));
    if (bounded) return IFL_OK;
    size_t most = n_a > n_b ? n_a : n_b;
    uint64_t *sorted = malloc(2 * most * sizeof *sorted);
    if (!sorted) return ifl_fail(err, IFL_NOMEM, "no memory for %zu lines", most);
    keep_by_count(a, n_a, b, n_b, sorted, kept_a + head);
    keep_by_count(b, n_b, a, n_a, sorted, kept_b + head);
    free(sorted);
    return IFL_OK;
}

static ifl_status bag_add(bag *b, ifl_slice line, uint64_t seed, ifl_error *err) {
    for (ifl_slice piece; ifl_slice_piece(&line, &piece);) {
        piece = ifl_slice_trim(piece);
        if (piece.n == 0) continue;
        if (b->n == b->capacity) {
            size_t capacity = b->capacity ? 2 * b->capacity : 256;
            uint64_t *more = realloc(b->items, capacity * sizeof *more);
            if (!more) return ifl_fail(err, IFL_NOMEM, "no memory for %zu tokens", capacity);
            b->items = more;
            b->capacity = capacity;
        }
        b->items[b->n++] = XXH3_64bits_withSeed(piece.text, piece.n, seed);
    }
    return IFL_OK;
}

/* The changes of one file, its tokens into `tokens`. */
static ifl_status changes_of(changes *out, const lines *base, const ifl_edit_file *file,
                             uint64_t seed, bag *tokens, ifl_error *err) {
    lines now;
    *out = (changes){0};
    IFL_TRY(lines_of(&now, file, err));
    char *kept = calloc(base->n + 1, 1), *kept_now = calloc(now.n + 1, 1);
    out->inserted = malloc((now.n + 1) * sizeof *out->inserted);
    ifl_status st = kept && kept_now && out->inserted
                        ? keep(base->ids, base->n, now.ids, now.n, kept, kept_now, err)
                        : ifl_fail(err, IFL_NOMEM, "no memory for %zu lines", now.n);
    for (size_t i = 0; i < base->n && st == IFL_OK; i++) {
        kept[i] = !kept[i]; /* deleted, from here on */
        if (!kept[i]) continue;
        out->n_deleted++;
        st = bag_add(tokens, base->texts[i], 2 * seed, err);
    }
    for (size_t i = 0; i < now.n && st == IFL_OK; i++) {
        if (kept_now[i]) continue;
        out->inserted[out->n_inserted++] = now.ids[i];
        st = bag_add(tokens, now.texts[i], 2 * seed + 1, err);
    }
    out->deleted = kept;
    free(kept_now);
    lines_free(&now);
    return st;
}

/* How many changed lines two changes share. */
static ifl_status changes_common(const changes *a, const changes *b, size_t n_base, size_t *common,
                                 ifl_error *err) {
    for (size_t i = 0; i < n_base; i++)
        *common += a->deleted[i] && b->deleted[i];
    char *kept_a = calloc(a->n_inserted + 1, 1), *kept_b = calloc(b->n_inserted + 1, 1);
    ifl_status st = kept_a && kept_b ? keep(a->inserted, a->n_inserted, b->inserted, b->n_inserted,
                                            kept_a, kept_b, err)
                                     : ifl_fail(err, IFL_NOMEM, "no memory for inserted lines");
    for (size_t i = 0; i < a->n_inserted && st == IFL_OK; i++)
        *common += (size_t)kept_a[i];
    free(kept_a);
    free(kept_b);
    return st;
}

static bool same_file(const ifl_edit_file *a, const ifl_edit_file *b) {
    return (!a && !b) || (a && b && a->n == b->n && memcmp(a->text, b->text, a->n) == 0);
}

typedef struct sums {
    size_t common, total;
    bag a, b;
} sums;

static ifl_status path_add(sums *s, const char *path, uint64_t seed, const ifl_edit_files *base,
                           const ifl_edit_files *a, const ifl_edit_files *b, ifl_error *err) {
    const ifl_edit_file *before = ifl_edit_files_find(base, path),
                        *in_a = ifl_edit_files_find(a, path), *in_b = ifl_edit_files_find(b, path);
    if (same_file(before, in_a) && same_file(before, in_b)) return IFL_OK;
    lines old;
    changes of_a = {0}, of_b = {0};
    IFL_TRY(lines_of(&old, before, err));
    ifl_status st = changes_of(&of_a, &old, in_a, seed, &s->a, err);
    if (st == IFL_OK) st = changes_of(&of_b, &old, in_b, seed, &s->b, err);
    if (st == IFL_OK) st = changes_common(&of_a, &of_b, old.n, &s->common, err);
    s->total += of_a.n_deleted + of_a.n_inserted + of_b.n_deleted + of_b.n_inserted;
    changes_free(&of_a);
    changes_free(&of_b);
    lines_free(&old);
    return st;
}

ifl_status ifl_edit_similarity(const ifl_edit_files *base, const ifl_edit_files *a,
                               const ifl_edit_files *b, double *similarity, size_t *size_a,
                               size_t *size_b, ifl_error *err) {
    const ifl_edit_files *const sets[3] = {base, a, b};
    sums s = {0};
    ifl_status st = IFL_OK;
    uint64_t seed = 0;
    for (int set = 0; set < 3; set++)
        for (int i = 0; i < sets[set]->n && st == IFL_OK; i++) {
            const char *path = sets[set]->files[i].path;
            if ((set > 0 && ifl_edit_files_find(base, path)) ||
                (set > 1 && ifl_edit_files_find(a, path)))
                continue; /* had it */
            st = path_add(&s, path, ++seed, base, a, b, err);
        }
    if (st == IFL_OK) {
        size_t tokens = s.a.n + s.b.n;
        double by_line = s.total ? 2.0 * (double)s.common / (double)s.total : 0.0;
        double by_token =
            tokens ? 2.0 * (double)bags_common(s.a.items, s.a.n, s.b.items, s.b.n) / (double)tokens
                   : by_line;
        *similarity = (by_line + by_token) / 2;
        *size_a = s.a.n;
        *size_b = s.b.n;
    }
    free(s.a.items);
    free(s.b.items);
    return st;
}
