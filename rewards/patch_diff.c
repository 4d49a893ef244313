/* Unified diffs. Strict where git is: the counts in a hunk's header must be right, hunks go upwards
 * and don't overlap, context is needed unless the file is new. Renames, modes that make links and
 * binary patches are refused. */
#include <stdlib.h>
#include <string.h>

#include "rewards/patch.h"

typedef struct diff_reader {
    ifl_slice rest;
    ifl_edit_files *out;
    const ifl_edit_files *base;
    int n_hunks;
} diff_reader;

typedef struct diff_hunk {
    size_t old_line, n_old, n_new;
    char *old_text, *new_text; /* each behind a "\n", whole lines */
    size_t old_bytes, new_bytes;
    bool old_no_eol, new_no_eol;
} diff_hunk;

static bool starts(const diff_reader *r, const char *word) {
    return ifl_slice_starts(r->rest, word);
}

/* "12" or "12,3" */
static bool range_read(ifl_slice *s, size_t *line, size_t *count) {
    size_t *const out[2] = {line, count};
    *count = 1;
    for (int i = 0; i < 2; i++) {
        size_t n = 0;
        if (i == 1) {
            if (!ifl_slice_starts(*s, ",")) return true;
            *s = ifl_slice_skip(*s, 1);
        }
        *out[i] = 0;
        for (; n < s->n && n < 9 && ifl_char_is_digit(s->text[n]); n++)
            *out[i] = *out[i] * 10 + (size_t)(s->text[n] - '0');
        if (n == 0 || (n < s->n && ifl_char_is_digit(s->text[n]))) return false;
        *s = ifl_slice_skip(*s, n);
    }
    return true;
}

static bool hunk_header(ifl_slice line, diff_hunk *h) {
    size_t new_line;
    if (!ifl_slice_starts(line, "@@ -")) return false;
    line = ifl_slice_skip(line, 4);
    if (!range_read(&line, &h->old_line, &h->n_old) || !ifl_slice_starts(line, " +")) return false;
    line = ifl_slice_skip(line, 2);
    return range_read(&line, &new_line, &h->n_new) && ifl_slice_starts(line, " @@");
}

static void hunk_free(diff_hunk *h) {
    free(h->old_text);
    free(h->new_text);
}

static void line_add(char *text, size_t *n, ifl_slice line) {
    if (line.n) memcpy(text + *n, line.text, line.n);
    *n += line.n;
    text[(*n)++] = '\n';
}

/* The body behind the header. Buffers are as large as all that is left to read. */
static ifl_status hunk_read(diff_reader *r, diff_hunk *h, const char *path, ifl_error *err) {
    size_t n_old = h->n_old, n_new = h->n_new;
    bool changes = false;
    h->old_text = malloc(r->rest.n + 2);
    h->new_text = malloc(r->rest.n + 2);
    if (!h->old_text || !h->new_text)
        return ifl_fail(err, IFL_NOMEM, "no memory for a hunk of %zu bytes", r->rest.n);
    h->old_text[h->old_bytes++] = h->new_text[h->new_bytes++] = '\n';
    char kind = ' ';
    for (ifl_slice line; n_old || n_new || starts(r, "\\ ");) {
        if (!ifl_slice_line(&r->rest, &line))
            return ifl_fail(err, IFL_FORMAT, "%.80s: a hunk has fewer lines than its header says",
                            path);
        bool marker = line.n && *line.text == '\\';
        if (!marker) kind = line.n ? *line.text : ' ';
        bool of_old = kind == ' ' || kind == '-', of_new = kind == ' ' || kind == '+';
        if (marker) {
            if (of_old) h->old_no_eol = true;
            if (of_new) h->new_no_eol = true;
            continue;
        }
        if ((!of_old && !of_new) || (of_old && !n_old) || (of_new && !n_new) ||
            (of_old && h->old_no_eol) || (of_new && h->new_no_eol))
            return ifl_fail(err, IFL_FORMAT, "%.80s: a hunk's lines don't fit its header", path);
        line = line.n ? ifl_slice_skip(line, 1) : line;
        if (of_old) line_add(h->old_text, &h->old_bytes, line);
        if (of_new) line_add(h->new_text, &h->new_bytes, line);
        n_old -= of_old;
        n_new -= of_new;
        changes |= kind != ' ';
    }
    if ((starts(r, "+") && !starts(r, "+++ ")) ||
        (starts(r, "-") && !starts(r, "--- ") && !starts(r, "-- ")))
        return ifl_fail(err, IFL_FORMAT, "%.80s: a hunk has more lines than its header says", path);
    /* What the last line lacks may be all that changes. */
    if (!changes && h->old_no_eol == h->new_no_eol)
        return ifl_fail(err, IFL_FORMAT, "%.80s: a hunk changes nothing", path);
    return IFL_OK;
}

/* Where the line after `line` lines begins; doc->n when there are no so many. */
static size_t line_offset(const ifl_edit_doc *doc, size_t line) {
    size_t at = 1;
    for (; line > 0 && at < doc->n; line--)
        at = (size_t)((char *)memchr(doc->text + at, '\n', doc->n - at) - doc->text) + 1;
    return line ? doc->n : at;
}

/* The place of a hunk's old lines in the document. */
static ifl_status hunk_place(const ifl_edit_doc *doc, const diff_hunk *h, const char *path,
                             size_t *at, ifl_error *err) {
    size_t n = h->old_bytes - 1;
    if (h->n_old == 0) {
        if (doc->n > 1) return ifl_fail(err, IFL_FORMAT, "%.80s: a hunk without context", path);
        *at = 1;
        return IFL_OK;
    }
    size_t said = h->old_line ? line_offset(doc, h->old_line - 1) : doc->n;
    if (said + n <= doc->n && memcmp(doc->text + said, h->old_text + 1, n) == 0) {
        *at = said;
        return IFL_OK;
    }
    int found = ifl_edit_doc_find(doc, (ifl_slice){h->old_text, h->old_bytes}, at);
    if (found == 1) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT, "%.80s: the old lines of a hunk are %s", path,
                    found ? "in several places" : "not there");
}

/* All hunks of one file against its text; the result in *doc. */
static ifl_status hunks_apply(diff_reader *r, ifl_edit_doc *doc, const char *path, ifl_error *err) {
    char *out = malloc(doc->n + r->rest.n + 1);
    if (!out) return ifl_fail(err, IFL_NOMEM, "no memory for a file of %zu bytes", doc->n);
    size_t n = 0, done = 0, at = 0;
    bool no_eol = doc->no_eol;
    ifl_status st = IFL_OK;
    while (st == IFL_OK && starts(r, "@@")) {
        diff_hunk h = {0};
        ifl_slice line;
        ifl_slice_line(&r->rest, &line);
        if (++r->n_hunks > IFL_EDIT_HUNKS_MAX)
            st = ifl_fail(err, IFL_LIMIT, "more than %d hunks", IFL_EDIT_HUNKS_MAX);
        else if (!hunk_header(line, &h))
            st = ifl_fail(err, IFL_FORMAT, "%.80s: malformed header '%.*s'", path,
                          line.n > 60 ? 60 : (int)line.n, line.text);
        if (st == IFL_OK) st = hunk_read(r, &h, path, err);
        if (st == IFL_OK) st = hunk_place(doc, &h, path, &at, err);
        if (st == IFL_OK && at < done)
            st = ifl_fail(err, IFL_FORMAT, "%.80s: hunks overlap or go backwards", path);
        size_t end = at + h.old_bytes - 1;
        bool last = st == IFL_OK && end == doc->n;
        if (st == IFL_OK && ((h.old_no_eol && !(last && doc->no_eol)) || (h.new_no_eol && !last)))
            st = ifl_fail(err, IFL_FORMAT, "%.80s: \"No newline\" where the file has one", path);
        if (st == IFL_OK) {
            if (last) no_eol = h.new_no_eol || (no_eol && !h.old_no_eol);
            memcpy(out + n, doc->text + done, at - done);
            n += at - done;
            memcpy(out + n, h.new_text + 1, h.new_bytes - 1);
            n += h.new_bytes - 1;
            done = end;
        }
        hunk_free(&h);
    }
    if (st == IFL_OK && done == 0)
        st = ifl_fail(err, IFL_FORMAT, "%.80s: a header without hunks", path);
    if (st != IFL_OK) {
        free(out);
        return st;
    }
    memcpy(out + n, doc->text + done, doc->n - done);
    n += doc->n - done;
    free(doc->text);
    doc->text = out;
    doc->n = n;
    doc->no_eol = no_eol;
    return IFL_OK;
}

/* The path behind "--- " or "+++ ", without a time stamp. */
static bool header_path(ifl_slice line, char path[IFL_EDIT_PATH_BYTES_MAX + 1]) {
    line = ifl_slice_skip(line, 4);
    const char *tab = memchr(line.text, '\t', line.n);
    if (tab) line.n = (size_t)(tab - line.text);
    line = ifl_slice_trim(line);
    if (line.n == 0 || line.n > IFL_EDIT_PATH_BYTES_MAX || memchr(line.text, '\0', line.n))
        return false;
    memcpy(path, line.text, line.n);
    path[line.n] = '\0';
    return true;
}

static ifl_status file_apply(diff_reader *r, ifl_slice old_header, ifl_slice new_header,
                             ifl_error *err) {
    static const char nothing[] = "/dev/null";
    char from[IFL_EDIT_PATH_BYTES_MAX + 1], to[IFL_EDIT_PATH_BYTES_MAX + 1];
    if (!header_path(old_header, from) || !header_path(new_header, to))
        return ifl_fail(err, IFL_FORMAT, "a diff's header without a path");
    bool creates = strcmp(from, nothing) == 0, deletes = strcmp(to, nothing) == 0;
    bool prefixed =
        (creates || strncmp(from, "a/", 2) == 0) && (deletes || strncmp(to, "b/", 2) == 0);
    const char *a = prefixed && !creates ? from + 2 : from, *b = prefixed && !deletes ? to + 2 : to;
    const char *path = creates ? b : a;
    if ((creates && deletes) || (!creates && !deletes && strcmp(a, b) != 0))
        return ifl_fail(err, IFL_FORMAT, "'%.60s' to '%.60s' is no change of one file", from, to);
    const ifl_edit_file *file = ifl_edit_files_find(r->base, path),
                        *now = ifl_edit_files_find(r->out, path);
    if (creates ? file != NULL : file == NULL)
        return ifl_fail(err, IFL_FORMAT, "%.80s: %s", path,
                        creates ? "to be made, but is there" : "there is no such file");
    if (creates ? now != NULL
                : !now || !ifl_slice_equal((ifl_slice){now->text, now->n},
                                           (ifl_slice){file->text, file->n}))
        return ifl_fail(err, IFL_FORMAT, "%.80s: changed twice in one diff", path);
    ifl_edit_doc doc;
    IFL_TRY(
        ifl_edit_doc_open(&doc, file ? (ifl_slice){file->text, file->n} : (ifl_slice){"", 0}, err));
    ifl_status st = hunks_apply(r, &doc, path, err);
    if (st == IFL_OK && deletes && doc.n > 1)
        st = ifl_fail(err, IFL_FORMAT, "%.80s: to be deleted, but lines are left", path);
    if (st == IFL_OK && !deletes) return ifl_edit_doc_close(&doc, r->out, path, err);
    if (st == IFL_OK) ifl_edit_files_remove(r->out, path);
    free(doc.text);
    return st;
}

ifl_status ifl_edit_apply_diff(ifl_edit_files *out, const ifl_edit_files *base, ifl_slice s,
                               ifl_error *err) {
    static const char *const refused[] = {
        "rename from ",         "rename to ",           "copy from ",       "copy to ",
        "GIT binary patch",     "Binary files ",        "new file mode 12", "new file mode 16",
        "deleted file mode 12", "deleted file mode 16", "new mode 12",      "new mode 16"};
    diff_reader r = {.rest = s, .out = out, .base = base};
    ifl_slice line, before = {"", 0};
    bool in_header = false; /* between "diff --git" and its hunks */
    while (ifl_slice_line(&r.rest, &line)) {
        if (ifl_slice_starts(line, "diff --git ")) in_header = true;
        for (size_t i = 0; in_header && i < sizeof refused / sizeof *refused; i++)
            if (ifl_slice_starts(line, refused[i]))
                return ifl_fail(err, IFL_FORMAT, "'%.*s': only texts can be changed, in place",
                                line.n > 60 ? 60 : (int)line.n, line.text);
        if (ifl_slice_starts(line, "@@ -"))
            return ifl_fail(err, IFL_FORMAT, "a hunk without its file's header");
        if (ifl_slice_starts(before, "--- ") && ifl_slice_starts(line, "+++ ")) {
            IFL_TRY(file_apply(&r, before, line, err));
            in_header = false;
            line = (ifl_slice){"", 0};
        }
        before = line;
    }
    return r.n_hunks ? IFL_OK : ifl_fail(err, IFL_FORMAT, "a diff without hunks");
}
