/* Reading the rollout log: framing, checks, and the fixed layouts of rollout_log.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/byte_io.h"
#include "common/config.h"
#include "common/memory.h"
#include "common/rollout_log.h"
#include "common/rollout_record.h"

static const char record_magic[4] = {'I', 'F', 'L', 'R'};

/* 24 bits over the header's fields, so that a damaged length is told from a torn tail. */
static uint32_t header_check(const uint8_t header[IFL_RECORD_HEADER_BYTES]) {
    uint8_t fields[21];
    memcpy(fields, header, 5);
    memcpy(fields + 5, header + 8, 16);
    return (uint32_t)XXH3_64bits(fields, sizeof fields) & 0xffffff;
}

ifl_status ifl_record_header_make(uint8_t header[IFL_RECORD_HEADER_BYTES], ifl_record_type type,
                                  int64_t wall_ms, const void *meta, size_t n_meta,
                                  const void *payload, size_t n_payload, ifl_error *err) {
    ifl_byte_writer w = {header, header + IFL_RECORD_HEADER_BYTES, false};
    ifl_put_bytes(&w, record_magic, 4);
    ifl_put_u32(&w, (uint32_t)type); /* the check goes over its three upper bytes */
    ifl_put_u32(&w, (uint32_t)n_meta);
    ifl_put_u32(&w, (uint32_t)n_payload);
    ifl_put_u64(&w, (uint64_t)wall_ms);
    uint32_t check = htole32(header_check(header));
    memcpy(header + 5, &check, 3);
    XXH3_state_t *state = XXH3_createState();
    if (!state) return ifl_fail(err, IFL_NOMEM, "rollout log: out of memory for a checksum");
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, header, 24);
    if (n_meta) XXH3_64bits_update(state, meta, n_meta);
    if (n_payload) XXH3_64bits_update(state, payload, n_payload);
    ifl_put_u64(&w, XXH3_64bits_digest(state));
    XXH3_freeState(state);
    return IFL_OK;
}

bool ifl_record_header_parse(const uint8_t header[IFL_RECORD_HEADER_BYTES], ifl_record_type *type,
                             int64_t *wall_ms, size_t *n_meta, size_t *n_payload) {
    ifl_byte_reader r = {header + 8, header + IFL_RECORD_HEADER_BYTES, false};
    uint32_t check = htole32(header_check(header));
    *type = (ifl_record_type)header[4];
    *n_meta = ifl_take_u32(&r);
    *n_payload = ifl_take_u32(&r);
    *wall_ms = (int64_t)ifl_take_u64(&r);
    return !memcmp(header, record_magic, 4) && !memcmp(header + 5, &check, 3) &&
           header[4] >= IFL_RECORD_RUN_STARTED && header[4] <= IFL_RECORD_DRAWN &&
           *n_meta <= IFL_RECORD_BYTES_MAX && *n_payload <= IFL_RECORD_BYTES_MAX &&
           *n_meta + *n_payload <= IFL_RECORD_BYTES_MAX;
}

bool ifl_record_body_fits(const uint8_t header[IFL_RECORD_HEADER_BYTES], const uint8_t *body,
                          size_t n_body) {
    uint64_t want;
    memcpy(&want, header + 24, sizeof want);
    XXH3_state_t *state = XXH3_createState();
    if (!state) return false;
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, header, 24);
    if (n_body) XXH3_64bits_update(state, body, n_body);
    bool fits = XXH3_64bits_digest(state) == le64toh(want);
    XXH3_freeState(state);
    return fits;
}

static int number_compare(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

ifl_status ifl_rollout_segments(const char *folder, int32_t **numbers, int32_t *n, ifl_error *err) {
    *numbers = NULL;
    *n = 0;
    DIR *d = opendir(folder);
    if (!d)
        return ifl_fail(err, errno == ENOENT ? IFL_NOTFOUND : IFL_IO, "%s: cannot open: %s", folder,
                        strerror(errno));
    ifl_status st = IFL_OK;
    size_t cap = 0;
    void *list = NULL;
    for (struct dirent *e; (e = readdir(d));) {
        size_t digits = strspn(e->d_name, "0123456789");
        if (digits != 6 || strcmp(e->d_name + digits, ".ifl")) continue;
        IFL_TRY_GOTO(st, ifl_grow(&list, &cap, (size_t)*n + 1, sizeof(int32_t), err), done);
        ((int32_t *)list)[(*n)++] = ifl_rollout_segment_number(e->d_name);
    }
    if (*n) qsort(list, (size_t)*n, sizeof(int32_t), number_compare);
    *numbers = list;
    list = NULL;
done:
    free(list);
    closedir(d);
    return st;
}

struct ifl_rollout_reader {
    char folder[IFL_PATH_MAX];
    char path[IFL_PATH_MAX];
    int32_t *numbers, n_numbers, next_number; /* segments as listed at open */
    FILE *f;
    int64_t size, offset; /* of the current segment */
    int64_t torn_bytes;
    void *body, *keys, *members;
    size_t body_cap, keys_cap, members_cap;
};

ifl_status ifl_rollout_reader_open(ifl_rollout_reader **out, const char *folder, ifl_error *err) {
    *out = NULL;
    ifl_rollout_reader *r = calloc(1, sizeof *r);
    if (!r) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder);
    snprintf(r->folder, sizeof r->folder, "%s", folder);
    ifl_status st = ifl_rollout_segments(folder, &r->numbers, &r->n_numbers, err);
    if (st != IFL_OK) {
        ifl_rollout_reader_close(r);
        return st;
    }
    *out = r;
    return IFL_OK;
}

void ifl_rollout_reader_close(ifl_rollout_reader *r) {
    if (!r) return;
    if (r->f) fclose(r->f);
    free(r->numbers);
    free(r->body);
    free(r->keys);
    free(r->members);
    free(r);
}

int64_t ifl_rollout_reader_torn_bytes(const ifl_rollout_reader *reader) {
    return reader->torn_bytes;
}

/* Opens the next segment. IFL_NOTFOUND when there is none, without a text. */
static ifl_status segment_next(ifl_rollout_reader *r, ifl_error *err) {
    if (r->f) fclose(r->f);
    r->f = NULL;
    if (r->next_number >= r->n_numbers) return IFL_NOTFOUND;
    snprintf(r->path, sizeof r->path, "%s/%06d.ifl", r->folder, r->numbers[r->next_number++]);
    r->f = fopen(r->path, "rb");
    struct stat s;
    if (!r->f || fstat(fileno(r->f), &s))
        return ifl_fail(err, IFL_IO, "%s: cannot open: %s", r->path, strerror(errno));
    r->size = s.st_size;
    r->offset = 0;
    return IFL_OK;
}

/* Whether the current segment holds only zeros from `offset` on: a file system may lengthen a file
 * before its bytes are there, so that after a power cut zeros stand for a torn tail. */
static bool tail_is_zero(ifl_rollout_reader *r, int64_t offset) {
    uint8_t block[4096];
    if (fseeko(r->f, offset, SEEK_SET)) return false;
    for (size_t n; (n = fread(block, 1, sizeof block, r->f)) > 0;)
        for (size_t i = 0; i < n; i++)
            if (block[i]) return false;
    return !ferror(r->f);
}

static ifl_status damaged(const ifl_rollout_reader *r, const char *what, ifl_error *err) {
    return ifl_fail(err, IFL_FORMAT, "%s: offset %lld: %s; the log is damaged there", r->path,
                    (long long)r->offset, what);
}

static void key_take(ifl_byte_reader *b, ifl_rollout_key *key) {
    key->task_serial = ifl_take_u64(b);
    key->sample = (int32_t)ifl_take_u32(b);
    key->purpose = ifl_take_u8(b);
}

static bool key_valid(const ifl_rollout_key *key) {
    return key->sample >= 0 && key->sample < IFL_RECORD_MEMBERS_MAX &&
           key->purpose <= IFL_PURPOSE_EVAL;
}

/* The rest of `b` as a reason: short, printable. */
static bool reason_take(ifl_byte_reader *b, char out[IFL_REASON_MAX]) {
    size_t n = (size_t)(b->end - b->at);
    if (b->bad || n >= IFL_REASON_MAX) return false;
    ifl_take_bytes(b, out, n);
    out[n] = 0;
    for (size_t i = 0; i < n; i++)
        if (out[i] < 0x20 || out[i] > 0x7e) return false;
    return true;
}

static ifl_status keys_take(ifl_rollout_reader *r, ifl_byte_reader *b, ifl_record *out,
                            ifl_error *err) {
    out->step = (int64_t)ifl_take_u64(b);
    uint32_t n = ifl_take_u32(b);
    if (b->bad || n > (size_t)(b->end - b->at) / IFL_RECORD_KEY_BYTES || out->step < 0)
        return damaged(r, "a list of keys does not fit its record", err);
    IFL_TRY(ifl_grow(&r->keys, &r->keys_cap, n, sizeof(ifl_rollout_key), err));
    ifl_rollout_key *keys = r->keys;
    for (uint32_t i = 0; i < n; i++) {
        key_take(b, &keys[i]);
        if (!key_valid(&keys[i])) return damaged(r, "a key is out of range", err);
    }
    out->keys = keys;
    out->n_keys = (int32_t)n;
    return reason_take(b, out->reason) ? IFL_OK : damaged(r, "a reason is malformed", err);
}

static ifl_status members_take(ifl_rollout_reader *r, ifl_byte_reader *b, ifl_record *out,
                               ifl_error *err) {
    out->task_serial = ifl_take_u64(b);
    uint32_t n = ifl_take_u32(b);
    out->purpose = ifl_take_u8(b);
    if (b->bad || n > IFL_RECORD_MEMBERS_MAX || out->purpose > IFL_PURPOSE_EVAL)
        return damaged(r, "a closed group is malformed", err);
    IFL_TRY(ifl_grow(&r->members, &r->members_cap, n, sizeof(ifl_group_member), err));
    ifl_group_member *members = r->members;
    for (uint32_t i = 0; i < n; i++) {
        members[i].sample = (int32_t)ifl_take_u32(b);
        members[i].status = ifl_take_u8(b);
        uint32_t bits = ifl_take_u32(b);
        memcpy(&members[i].reward, &bits, sizeof bits);
        if (members[i].sample < 0 || members[i].sample >= IFL_RECORD_MEMBERS_MAX ||
            members[i].status >= IFL_REWARD_STATUS_COUNT)
            return damaged(r, "a group member is out of range", err);
    }
    out->members = members;
    out->n_members = (int32_t)n;
    return IFL_OK;
}

static ifl_status record_parse(ifl_rollout_reader *r, ifl_record *out, ifl_error *err) {
    ifl_byte_reader b = {out->meta, out->meta + out->n_meta, false};
    bool good = true;
    if (out->type == IFL_RECORD_TRAJECTORY) return IFL_OK;
    if (out->n_payload) return damaged(r, "a payload where none belongs", err);
    switch (out->type) {
    case IFL_RECORD_RUN_STARTED:
        out->seed = (int64_t)ifl_take_u64(&b);
        out->step = (int64_t)ifl_take_u64(&b);
        out->task_serial = ifl_take_u64(&b);
        good = out->step >= 0;
        break;
    case IFL_RECORD_LEASED:
        out->task_serial = ifl_take_u64(&b);
        out->lease_id = ifl_take_u64(&b);
        out->group_size = (int32_t)ifl_take_u32(&b);
        out->attempt = (int32_t)ifl_take_u32(&b);
        out->purpose = ifl_take_u8(&b);
        good = out->group_size >= 1 && out->group_size <= IFL_RECORD_MEMBERS_MAX &&
               out->attempt >= 0 && out->purpose <= IFL_PURPOSE_EVAL;
        break;
    case IFL_RECORD_GROUP_CLOSED:
        IFL_TRY(members_take(r, &b, out, err));
        break;
    case IFL_RECORD_TRAINED:
    case IFL_RECORD_RUN_ENDED:
    case IFL_RECORD_TAKEN:
        IFL_TRY(keys_take(r, &b, out, err));
        break;
    case IFL_RECORD_PUBLISHED:
        out->step = (int64_t)ifl_take_u64(&b);
        out->content.low = ifl_take_u64(&b);
        out->content.high = ifl_take_u64(&b);
        good = out->step >= 0;
        break;
    case IFL_RECORD_DROPPED:
    case IFL_RECORD_MASKED:
        key_take(&b, &out->key);
        good = key_valid(&out->key) && reason_take(&b, out->reason);
        break;
    case IFL_RECORD_CHECKPOINT:
    case IFL_RECORD_CAUGHT_UP:
        out->step = (int64_t)ifl_take_u64(&b);
        good = out->step >= 0;
        break;
    case IFL_RECORD_DRAWN:
        out->task_serial = ifl_take_u64(&b);
        out->source = (int32_t)ifl_take_u32(&b);
        out->item = ifl_take_u64(&b);
        good = out->source >= 0 && out->source < IFL_SOURCES_MAX;
        break;
    case IFL_RECORD_TRAJECTORY:
        break;
    }
    if (!good || b.bad || b.at != b.end) return damaged(r, "a record's fields do not fit it", err);
    return IFL_OK;
}

/* Reads the record at r->offset. IFL_NOTFOUND at the segment's end, torn or not. */
static ifl_status segment_record(ifl_rollout_reader *r, ifl_record *out, ifl_error *err) {
    int64_t left = r->size - r->offset;
    uint8_t header[IFL_RECORD_HEADER_BYTES];
    if (left <= 0) return IFL_NOTFOUND;
    if (left < IFL_RECORD_HEADER_BYTES) {
        r->torn_bytes += left;
        return IFL_NOTFOUND;
    }
    if (fread(header, 1, sizeof header, r->f) != sizeof header)
        return ifl_fail(err, IFL_IO, "%s: offset %lld: cannot read: %s", r->path,
                        (long long)r->offset, strerror(errno));
    if (!ifl_record_header_parse(header, &out->type, &out->wall_ms, &out->n_meta,
                                 &out->n_payload)) {
        if (!tail_is_zero(r, r->offset)) return damaged(r, "not a record's header", err);
        r->torn_bytes += left;
        return IFL_NOTFOUND;
    }
    size_t n_body = out->n_meta + out->n_payload;
    if ((int64_t)n_body > left - IFL_RECORD_HEADER_BYTES) {
        r->torn_bytes += left;
        return IFL_NOTFOUND;
    }
    IFL_TRY(ifl_grow(&r->body, &r->body_cap, n_body + 1, 1, err));
    if (n_body && fread(r->body, 1, n_body, r->f) != n_body)
        return ifl_fail(err, IFL_IO, "%s: offset %lld: cannot read: %s", r->path,
                        (long long)r->offset, strerror(errno));
    if (!ifl_record_body_fits(header, r->body, n_body)) {
        /* The last record's bytes may be missing though the file has its length. */
        bool last = (int64_t)n_body == left - IFL_RECORD_HEADER_BYTES;
        if (!last) return damaged(r, "the checksum does not fit", err);
        r->torn_bytes += left;
        return IFL_NOTFOUND;
    }
    out->file = r->path;
    out->offset = r->offset;
    out->meta = r->body;
    out->payload = (const uint8_t *)r->body + out->n_meta;
    IFL_TRY(record_parse(r, out, err));
    r->offset += IFL_RECORD_HEADER_BYTES + (int64_t)n_body;
    return IFL_OK;
}

ifl_status ifl_rollout_reader_next(ifl_rollout_reader *r, ifl_record *out, ifl_error *err) {
    for (;;) {
        memset(out, 0, sizeof *out);
        if (!r->f) IFL_TRY(segment_next(r, err));
        ifl_status st = segment_record(r, out, err);
        if (st != IFL_NOTFOUND) return st;
        fclose(r->f);
        r->f = NULL;
    }
}

void ifl_rollout_reader_skip(ifl_rollout_reader *r) {
    if (r->f) fclose(r->f);
    r->f = NULL;
}

int32_t ifl_rollout_segment_number(const char *file) {
    const char *name = strrchr(file, '/');
    return (int32_t)strtol(name ? name + 1 : file, NULL, 10);
}

ifl_status ifl_rollout_reader_seek(ifl_rollout_reader *r, int32_t segment, int64_t offset,
                                   ifl_error *err) {
    int32_t i = 0;
    while (i < r->n_numbers && r->numbers[i] != segment)
        i++;
    if (i == r->n_numbers)
        return ifl_fail(err, IFL_NOTFOUND, "%s/%06d.ifl: no such file", r->folder, segment);
    if (!r->f || r->next_number != i + 1) {
        r->next_number = i;
        IFL_TRY(segment_next(r, err));
    }
    if (offset < 0 || offset > r->size || fseeko(r->f, offset, SEEK_SET))
        return ifl_fail(err, IFL_IO, "%s: offset %lld: cannot seek", r->path, (long long)offset);
    r->offset = offset;
    return IFL_OK;
}
