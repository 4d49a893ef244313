#include "deploy/cli/report_rollouts.h"

#include <stdlib.h>
#include <string.h>

struct ifl_rollout_view {
    char folder[IFL_PATH_MAX];
    ifl_rollout_ledger *ledger;
    ifl_tokenizer *tokenizer; /* NULL: the run has none */
};

ifl_status ifl_rollout_view_open(ifl_rollout_view **out, const ifl_run_dir *run, ifl_error *err) {
    *out = NULL;
    ifl_rollout_view *view = calloc(1, sizeof *view);
    if (!view) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", run->path);
    snprintf(view->folder, sizeof view->folder, "%s", run->rollouts);
    ifl_status st = ifl_rollout_ledger_read(&view->ledger, view->folder, err);
    if (st == IFL_OK) {
        st = ifl_tokenizer_from_file(&view->tokenizer, run->tokenizer, err);
        if (st == IFL_NOTFOUND) st = IFL_OK;
    }
    if (st != IFL_OK) {
        ifl_rollout_view_close(view);
        return st;
    }
    *out = view;
    return IFL_OK;
}

void ifl_rollout_view_close(ifl_rollout_view *view) {
    if (!view) return;
    ifl_rollout_ledger_free(view->ledger);
    ifl_tokenizer_free(view->tokenizer);
    free(view);
}

const ifl_rollout_ledger *ifl_rollout_view_ledger(const ifl_rollout_view *view) {
    return view->ledger;
}

static void row_fill(ifl_rollout_row *row, const ifl_rollout_view *view,
                     const ifl_trajectory *traj) {
    memset(row, 0, sizeof *row);
    row->traj = traj;
    ifl_rollout_ledger_find(view->ledger,
                            (ifl_rollout_key){traj->task_serial, traj->sample, traj->purpose},
                            &row->fate);
    row->n_prompt = ifl_trajectory_n_prompt(traj);
    row->n_answer = ifl_trajectory_n_policy(traj);
    row->version_oldest = row->version_newest = -1;
    double sum = 0, weight = 0;
    int64_t previous = -1;
    for (int32_t i = 0; i < traj->n_runs; i++) {
        int64_t version = traj->runs[i].version;
        if (i == 0 || version < row->version_oldest) row->version_oldest = version;
        if (i == 0 || version > row->version_newest) row->version_newest = version;
        row->n_versions += i == 0 || version != previous;
        previous = version;
        double lag = (double)(row->fate.step - 1 - version);
        for (int32_t t = 0; t < traj->runs[i].n_tokens; t++) {
            double w = (double)traj->loss_weights[traj->runs[i].begin + t];
            if (w <= 0) continue;
            sum += lag;
            weight += 1;
            if (!row->has_lag || lag > row->lag_max) row->lag_max = lag;
            row->has_lag = true;
        }
    }
    if (row->has_lag) row->lag_mean = sum / weight;
    if (row->fate.fate != IFL_FATE_TRAINED) row->has_lag = false;
}

/* The decoder checks sizes; this checks what row_fill and the texts index. */
static bool runs_inside(const ifl_trajectory *traj) {
    for (int32_t i = 0; i < traj->n_runs; i++) {
        const ifl_version_run *run = &traj->runs[i];
        if (run->begin < 0 || run->n_tokens < 0 || run->begin > traj->n_tokens - run->n_tokens)
            return false;
    }
    int32_t n_prompt = ifl_trajectory_n_prompt(traj);
    return n_prompt >= 0 && n_prompt <= traj->n_tokens;
}

ifl_status ifl_rollout_view_walk(ifl_rollout_view *view,
                                 ifl_status (*visit)(const ifl_rollout_row *row, void *user),
                                 void *user, ifl_error *err) {
    ifl_rollout_reader *reader = NULL;
    ifl_trajectory *traj = NULL;
    ifl_status st;
    IFL_TRY(ifl_rollout_reader_open(&reader, view->folder, err));
    for (;;) {
        ifl_record record;
        st = ifl_rollout_reader_next(reader, &record, err);
        if (st != IFL_OK) break;
        if (record.type != IFL_RECORD_TRAJECTORY) continue;
        IFL_TRY_GOTO(st,
                     ifl_trajectory_decode(&traj, record.meta, record.n_meta, record.payload,
                                           record.n_payload, err),
                     done);
        if (!runs_inside(traj)) {
            st = ifl_fail(err, IFL_FORMAT, "%s: offset %lld: a trajectory's runs leave its tokens",
                          record.file, (long long)record.offset);
            goto done;
        }
        ifl_rollout_row row;
        row_fill(&row, view, traj);
        row.wall_ms = record.wall_ms;
        IFL_TRY_GOTO(st, visit(&row, user), done);
        ifl_trajectory_free(traj);
        traj = NULL;
    }
    if (st == IFL_NOTFOUND) st = IFL_OK;
done:
    if (st == IFL_STOPPED) st = IFL_OK;
    ifl_trajectory_free(traj);
    ifl_rollout_reader_close(reader);
    return st;
}

char *ifl_rollout_text(const ifl_rollout_view *view, const int32_t *tokens, int32_t n) {
    char *text = NULL;
    size_t n_text = 0;
    FILE *f = open_memstream(&text, &n_text);
    if (!f) return NULL;
    ifl_token_text decoded = {0};
    if (view->tokenizer &&
        ifl_tokenizer_decode(view->tokenizer, tokens, (size_t)n, 0, &decoded, NULL) == IFL_OK) {
        fwrite(decoded.bytes, 1, decoded.n, f);
    } else {
        for (int32_t i = 0; i < n; i++)
            fprintf(f, "%s%d", i ? " " : "[", tokens[i]);
        fputs(n ? "]" : "[]", f);
    }
    ifl_token_text_free(&decoded);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

void ifl_text_print(FILE *f, const char *text, const char *indent) {
    size_t n = strlen(text);
    while (n && text[n - 1] == '\n')
        n--;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n')
            fprintf(f, "\n%s", indent);
        else if ((c < 0x20 && c != '\t') || c == 0x7f)
            fprintf(f, "\\x%02x", c);
        else if (c == 0xc2 && i + 1 < n && (unsigned char)text[i + 1] < 0xa0)
            fprintf(f, "\\u%04x", (unsigned char)text[++i]); /* C1 controls */
        else
            fputc(c, f);
    }
}
