/* Writes the seeds that the corpora began with: fuzz_seeds FOLDER makes FOLDER/PARSER/NAME. What
 * the fuzzer has found since is in tests/fuzz/corpus (deploy/fuzz --merge). */
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/byte_io.h"
#include "common/file_map.h"
#include "common/rollout_log.h"
#include "common/weight_patch.h"
#include "common/wire.h"
#include "learner/version_archive.h"
#include "rewards/message.h"
#include "tests/fuzz/tiny_model.h"

#define SEED_BYTES_MAX (1 << 20)

static const char *folder;
static uint8_t seed_bytes[SEED_BYTES_MAX];
static ifl_byte_writer seed;

static void must(ifl_status st, const ifl_error *err) {
    if (st == IFL_OK) return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static void seed_begin(void) {
    seed = (ifl_byte_writer){seed_bytes, seed_bytes + sizeof seed_bytes, false};
}

static void put_u16(size_t v) {
    ifl_put_u8(&seed, (uint8_t)v);
    ifl_put_u8(&seed, (uint8_t)(v >> 8));
}

static void put_text(const char *text) {
    ifl_put_bytes(&seed, text, strlen(text));
}

static void seed_end(const char *parser, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, parser);
    (void)mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/%s/%s", folder, parser, name);
    FILE *f = fopen(path, "wb");
    size_t n = (size_t)(seed.at - seed_bytes);
    if (seed.bad || !f || fwrite(seed_bytes, 1, n, f) != n || fclose(f)) {
        perror(path);
        exit(74);
    }
}

static void seed_text(const char *parser, const char *name, const char *text) {
    seed_begin();
    put_text(text);
    seed_end(parser, name);
}

/* `mode` >= 0: that byte first. */
static void seed_file(const char *parser, const char *name, int mode, const char *path) {
    ifl_file_map map;
    ifl_error err = {0};
    const uint8_t *bytes;
    must(ifl_file_map_open(&map, path, &err), &err);
    must(ifl_file_map_range(&map, 0, map.n_bytes, &bytes, &err), &err);
    seed_begin();
    if (mode >= 0) ifl_put_u8(&seed, (uint8_t)mode);
    ifl_put_bytes(&seed, bytes, map.n_bytes);
    seed_end(parser, name);
    ifl_file_map_close(&map);
}

/* The golden fixtures that a pattern names, under the name of their folder. */
static void seed_glob(const char *parser, int mode, const char *pattern) {
    glob_t found;
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", IFL_SOURCE_DIR, pattern);
    if (glob(path, 0, NULL, &found) != 0) {
        fprintf(stderr, "%s: nothing there\n", path);
        exit(1);
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char name[32];
        snprintf(name, sizeof name, "fixture-%zu", i);
        seed_file(parser, name, mode, found.gl_pathv[i]);
    }
    globfree(&found);
}

/* --- Wire, log ---------------------------------------------------------------------------------
 */

static ifl_trajectory *trajectory(int n, bool environment) {
    static const int32_t prompt[4] = {5, 0, 262143, 9};
    ifl_error err = {0};
    ifl_trajectory *t;
    must(ifl_trajectory_create(&t, prompt, 4, &err), &err);
    for (int i = 0; i < n; i++)
        must(ifl_trajectory_append(t, i, -0.5f, 3 + i / 2, &err), &err);
    if (environment) {
        must(ifl_trajectory_append_environment(t, prompt, 2, &err), &err);
        must(ifl_trajectory_append(t, 1, -1.5f, 9, &err), &err);
    }
    must(ifl_trajectory_kv_event(t, (ifl_kv_event){4, 0, 4, 3, IFL_KV_BUILT}, &err), &err);
    must(ifl_trajectory_kv_event(t, (ifl_kv_event){6, 0, 6, 4, IFL_KV_KEPT}, &err), &err);
    t->task_serial = 1;
    t->group_size = 4;
    t->top_p = 1;
    t->temperature = 1;
    t->finish = IFL_FINISH_EOS;
    snprintf(t->task_id, sizeof t->task_id, "sums:1");
    t->reward.status = IFL_REWARD_OK;
    t->reward.reward = 1;
    t->reward.n_components = 1;
    snprintf(t->reward.components[0].name, sizeof t->reward.components[0].name, "right");
    snprintf(t->reward.checker, sizeof t->reward.checker, "numeric/1");
    return t;
}

static ifl_manifest *manifest(void) {
    ifl_error err = {0};
    ifl_manifest *m;
    must(ifl_manifest_create(&m, 2, 3, &err), &err);
    m->version = 12;
    m->parent = 11;
    m->n_elements = 1000;
    m->tensors[0] = (ifl_manifest_tensor){"model.embed_tokens.weight", 0, 900, true, -1};
    m->tensors[1] = (ifl_manifest_tensor){"model.norm.weight", 900, 100, false, 0};
    m->chunks[0] = (ifl_manifest_chunk){0, 400, {1, 2}};
    m->chunks[1] = (ifl_manifest_chunk){400, 400, {3, 4}};
    m->chunks[2] = (ifl_manifest_chunk){800, 200, {5, 6}};
    m->content = (ifl_hash){7, 8};
    m->root = ifl_manifest_root(m);
    return m;
}

static void wire_seed(const ifl_message *m, const char *name) {
    ifl_wire_frames f;
    ifl_error err = {0};
    must(ifl_wire_encode(m, &f, &err), &err);
    const uint8_t *payload = m->type == IFL_WIRE_WCHUNK ? m->wchunk.data : f.payload;
    seed_begin();
    ifl_put_u8(&seed, 0);
    ifl_put_u8(&seed, (uint8_t)f.type);
    ifl_put_u8(&seed, (uint8_t)f.flags);
    ifl_put_u8(&seed, IFL_WIRE_MINOR);
    ifl_put_u8(&seed, 5);
    put_u16(f.n_meta);
    ifl_put_bytes(&seed, f.meta, f.n_meta);
    ifl_put_bytes(&seed, payload, f.n_payload);
    seed_end("wire", name);
    ifl_wire_header h = {.major = IFL_WIRE_MAJOR,
                         .type = f.type,
                         .n_meta = (uint32_t)f.n_meta,
                         .n_payload = f.n_payload};
    uint8_t header[IFL_WIRE_HEADER_BYTES];
    char raw[64];
    ifl_wire_header_encode(&h, f.meta, header);
    seed_begin();
    ifl_put_u8(&seed, 1);
    ifl_put_bytes(&seed, header, sizeof header);
    put_u16(f.n_meta);
    ifl_put_bytes(&seed, f.meta, f.n_meta);
    ifl_put_bytes(&seed, payload, f.n_payload);
    snprintf(raw, sizeof raw, "%s-raw", name);
    if (m->type == IFL_WIRE_PING || m->type == IFL_WIRE_TRAJ) seed_end("wire", raw);
    ifl_wire_frames_clear(&f);
}

static void wire_seeds(void) {
    static const int32_t samples[3] = {0, 2, 7}, prompt[4] = {5, 0, 262143, 9};
    static const ifl_wire_stat stats[2] = {{"tokens_per_s", 1234.5}, {"swap_stall_ms", -0.25}};
    const ifl_hash hash = {0x0123456789abcdef, 0xfedcba9876543210};
    const ifl_trajectory_key key = {7, 3, IFL_PURPOSE_TRAIN};
    ifl_trajectory *traj = trajectory(5, true);
    ifl_manifest *tables = manifest();
    for (int type = IFL_WIRE_HELLO; type < IFL_WIRE_GROUP; type++) {
        ifl_message m = ifl_message_make((ifl_wire_type)type);
        switch (type) {
        case IFL_WIRE_HELLO:
            m.hello =
                (ifl_wire_hello){.major = 1,
                                 .minor_max = IFL_WIRE_MINOR,
                                 .build = "0.1",
                                 .incarnation = {1, 2, 3},
                                 .name = "actor-1",
                                 .fingerprint = hash,
                                 .profile = hash,
                                 .tokenizer = hash,
                                 .held_version = -1,
                                 .nonce = UINT64_MAX,
                                 .parts = {.n = 2, .part = {{"rope table", 1}, {"dtypes", 2}}}};
            break;
        case IFL_WIRE_WELCOME:
            m.welcome = (ifl_wire_welcome){.minor = 1,
                                           .session = 99,
                                           .run_uuid = "abc",
                                           .run_epoch = 2,
                                           .lease_s = 60,
                                           .heartbeat_ms = 1000,
                                           .heartbeat_misses = 3,
                                           .payload_max = IFL_WIRE_PAYLOAD_MAX,
                                           .chunk_window = 8,
                                           .current_version = 7};
            break;
        case IFL_WIRE_REJECT:
            m.reject = (ifl_wire_reject){2, 100, "no"};
            break;
        case IFL_WIRE_PING:
        case IFL_WIRE_PONG:
            m.ping = (ifl_wire_ping){-5, 6, -7, 8, 9};
            break;
        case IFL_WIRE_LEASE:
            m.lease = (ifl_wire_lease){.lease_id = 1,
                                       .attempt = 2,
                                       .task_serial = 3,
                                       .task_id = "t/1",
                                       .group_size = 8,
                                       .n_samples = 3,
                                       .samples = samples,
                                       .n_prompt = 4,
                                       .prompt = prompt,
                                       .checker = "numeric",
                                       .answer = "42",
                                       .meta = "{\"a\": 1}",
                                       .text = "6*7=",
                                       .temperature = 0.5f,
                                       .top_k = 40,
                                       .top_p = 0.9f,
                                       .max_new_tokens = 64,
                                       .n_stops = 2,
                                       .stops = {"\n", "</s>"},
                                       .seed = 77,
                                       .required_version = 12,
                                       .deadline_ms = 1000};
            break;
        case IFL_WIRE_RETURN:
            m.returned = (ifl_wire_return){1, IFL_RETURN_DRAIN, 3, samples, "drain"};
            break;
        case IFL_WIRE_TRAJ:
            m.traj.trajectory = traj;
            break;
        case IFL_WIRE_TRAJ_ACK:
            m.traj_ack = (ifl_wire_traj_ack){key, 5, IFL_ACK_DUPLICATE};
            break;
        case IFL_WIRE_NACK:
            m.nack = (ifl_wire_nack){key, 5, IFL_NACK_BUSY, 500, "later"};
            break;
        case IFL_WIRE_WANN:
            m.wann.manifest = tables;
            break;
        case IFL_WIRE_WGET:
            m.wget = (ifl_wire_wget){12, 9, 3, {0, 5, 2}};
            break;
        case IFL_WIRE_WCHUNK:
            m.wchunk = (ifl_wire_wchunk){.version = 12,
                                         .chunk = 5,
                                         .codec = IFL_CODEC_ULP_GAP,
                                         .base = 9,
                                         .hash = hash,
                                         .data = (const uint8_t *)"0123",
                                         .n_data = 4};
            break;
        case IFL_WIRE_WNACK:
            m.wnack = (ifl_wire_wnack){11, 12, "superseded"};
            break;
        case IFL_WIRE_WREADY:
            m.wready = (ifl_wire_wready){12, hash};
            break;
        case IFL_WIRE_WSET:
            m.wset = (ifl_wire_wset){12, hash, 1};
            break;
        case IFL_WIRE_WDONE:
            m.wdone = (ifl_wire_wdone){12, hash, 350};
            break;
        case IFL_WIRE_CREDIT:
            m.credit = (ifl_wire_credit){16, 1 << 20};
            break;
        case IFL_WIRE_DRAIN:
            m.drain = (ifl_wire_drain){30000, "preempted"};
            break;
        case IFL_WIRE_BYE:
            m.bye = (ifl_wire_bye){IFL_BYE_DONE, "end"};
            break;
        case IFL_WIRE_ERROR:
            m.error = (ifl_wire_error){IFL_WIRE_E_FENCED, 3, "fenced"};
            break;
        case IFL_WIRE_STATS:
            m.stats = (ifl_wire_stats){2, stats};
            break;
        }
        wire_seed(&m, ifl_wire_type_name(type));
    }
    ifl_trajectory_free(traj);
    ifl_manifest_free(tables);
}

static void log_seeds(void) {
    char path[] = "/tmp/inflight-seeds-XXXXXX", file[64];
    ifl_error err = {0};
    ifl_rollout_log *log;
    if (!mkdtemp(path)) exit(74);
    must(ifl_rollout_log_open(&log, path, &(ifl_rollout_log_options){0}, &err), &err);
    const ifl_rollout_key keys[2] = {{1, 0, IFL_PURPOSE_TRAIN}, {1, 3, IFL_PURPOSE_TRAIN}};
    const ifl_group_member members[2] = {{0, IFL_REWARD_OK, 1}, {3, IFL_REWARD_OK, 0}};
    must(ifl_rollout_log_run_started(log, 42, 0, 0, &err), &err);
    must(ifl_rollout_log_drawn(log, 1, 0, 5, &err), &err);
    must(ifl_rollout_log_leased(log, 1, IFL_PURPOSE_TRAIN, 4, 9, 0, &err), &err);
    must(ifl_rollout_log_leased(log, 1, IFL_PURPOSE_EVAL, 2, 10, 0, &err), &err);
    for (int sample = 0; sample < 4; sample += 3) {
        ifl_trajectory *t = trajectory(3 + sample, sample > 0);
        t->sample = sample;
        must(ifl_rollout_log_trajectory(log, t, &err), &err);
        ifl_trajectory_free(t);
    }
    must(ifl_rollout_log_group_closed(log, 1, IFL_PURPOSE_TRAIN, members, 2, &err), &err);
    must(ifl_rollout_log_trained(log, 1, keys, 2, &err), &err);
    must(ifl_rollout_log_dropped(log, (ifl_rollout_key){1, 1, 0}, "stale", &err), &err);
    must(ifl_rollout_log_masked(log, (ifl_rollout_key){1, 2, 0}, "bad_task", &err), &err);
    must(ifl_rollout_log_checkpoint(log, 1, &err), &err);
    must(ifl_rollout_log_run_started(log, 42, 1, 1, &err), &err);
    must(ifl_rollout_log_run_ended(log, 1, "done", keys, 1, &err), &err);
    must(ifl_rollout_log_flush(log, &err), &err);
    snprintf(file, sizeof file, "%s/%06d.ifl", path, ifl_rollout_log_segment(log));
    ifl_rollout_log_close(log);
    seed_file("rollout_log", "whole", 0, file);
    seed_file("rollout_log", "whole-raw", 1, file);
    seed_begin();
    ifl_put_u8(&seed, 2);
    put_u16(60);
    seed_end("rollout_log", "two-empty");
    unlink(file);
    rmdir(path);
}

/* --- Weights -----------------------------------------------------------------------------------
 */

/* Element i of version v: neighbours of one exponent or several, moved by small steps. */
static uint16_t element_of(int i, int v) {
    int32_t place = ifl_bf16_place((uint16_t)(0x3c00 + 40 * (i % 7)));
    return ifl_bf16_at_place(place + (i * 31 + v * 7) / 11 % 5 - (i % 13 == v ? 400 : 0));
}

static void patch_seeds(void) {
    enum { N = 200 };
    uint16_t a[N], b[N];
    ifl_error err = {0};
    ifl_patch patch = {0};
    uint8_t *code = NULL;
    size_t cap = 0, n_code;
    for (int i = 0; i < N; i++) {
        a[i] = element_of(i, 0);
        b[i] = i % 5 == 4 ? element_of(i, 1) : a[i];
    }
    must(ifl_patch_diff(&patch, a, b, N, &err), &err);
    for (int mode = 0; mode < 3; mode++) {
        seed_begin();
        ifl_put_u8(&seed, (uint8_t)mode);
        put_u16(N);
        for (int i = 0; mode && i < N; i++)
            put_u16(a[i]);
        for (int version = 1; mode == 2 && version < 3; version++)
            for (int i = 0; i < N; i++)
                put_u16(element_of(i, version));
        if (mode < 2) {
            must(mode == 0 ? ifl_patch_encode(&patch, &code, &cap, &n_code, &err)
                           : ifl_patch_encode_classes(&patch, a, N, &code, &cap, &n_code, &err),
                 &err);
            ifl_put_bytes(&seed, code, n_code);
        }
        static const char *const names[3] = {"plain", "classes", "versions"};
        seed_end("weight_patch", names[mode]);
    }
    free(code);
    ifl_patch_free(&patch);
}

static void archive_seeds(void) {
    const ifl_model *model = tiny_model();
    char path[] = "/tmp/inflight-seeds-XXXXXX", file[128];
    int32_t n = (int32_t)model->n_elements, half = n / 2;
    uint16_t *a = malloc((size_t)n * 2), *b = malloc((size_t)n * 2);
    ifl_error err = {0};
    ifl_version_archive *archive;
    ifl_manifest *m;
    if (!mkdtemp(path) || !a || !b) exit(74);
    must(ifl_version_archive_open(&archive, path, model, INT64_MAX, &err), &err);
    must(ifl_manifest_create(&m, 1, 2, &err), &err);
    m->n_elements = n;
    uint8_t *codes[2] = {NULL, NULL};
    size_t caps[2] = {0, 0};
    seed_begin();
    ifl_put_u8(&seed, 0);
    for (int version = 0; version < 3; version++) {
        ifl_archive_chunk chunks[2];
        for (int i = 0; i < n; i++)
            b[i] = element_of(i, version);
        m->version = version;
        m->content = ifl_hash_bytes(b, (size_t)n * 2);
        for (int c = 0; c < 2; c++) {
            int32_t begin = c ? half : 0, count = c ? n - half : half;
            m->chunks[c] =
                (ifl_manifest_chunk){begin, count, ifl_hash_bytes(b + begin, (size_t)count * 2)};
            chunks[c] = (ifl_archive_chunk){IFL_CODEC_DENSE, b + begin, (size_t)count * 2};
            if (version == 0) continue;
            ifl_patch patch = {0};
            must(ifl_patch_diff(&patch, a + begin, b + begin, count, &err), &err);
            chunks[c].codec = c ? IFL_CODEC_ULP_CLASS : IFL_CODEC_ULP_GAP;
            must(c ? ifl_patch_encode_classes(&patch, a + begin, count, &codes[c], &caps[c],
                                              &chunks[c].n_bytes, &err)
                   : ifl_patch_encode(&patch, &codes[c], &caps[c], &chunks[c].n_bytes, &err),
                 &err);
            chunks[c].data = codes[c];
            ifl_patch_free(&patch);
        }
        must(ifl_version_archive_put(archive, m, version - 1, chunks, &err), &err);
        memcpy(a, b, (size_t)n * 2);
        snprintf(file, sizeof file, "%s/v%010d.ifw", path, version);
        ifl_file_map map;
        must(ifl_file_map_open(&map, file, &err), &err);
        put_u16(map.n_bytes);
        ifl_put_bytes(&seed, map.bytes, map.n_bytes);
        ifl_file_map_close(&map);
        unlink(file);
    }
    seed_end("version_archive", "three");
    seed_bytes[0] = 1;
    seed_end("version_archive", "three-raw");
    snprintf(file, sizeof file, "%s/model.json", path);
    unlink(file);
    rmdir(path);
    ifl_version_archive_close(archive);
    ifl_manifest_free(m);
    for (int c = 0; c < 2; c++)
        free(codes[c]);
    free(a);
    free(b);
}

static void checkpoint_seeds(void) {
    ifl_error err = {0};
    char *model_json;
    must(ifl_model_config_to_json(&tiny_model()->config, &model_json, &err), &err);
    for (int mode = 0; mode < 3; mode++) {
        char index[2048];
        snprintf(index, sizeof index,
                 "{\"block_bytes\":4194304,\"files\":{"
                 "\"masters.f32\":{\"blocks\":[\"#0\"],\"bytes\":#n},"
                 "\"moment1.f32\":{\"blocks\":[\"#1\"],\"bytes\":#n},"
                 "\"moment2.f32\":{\"blocks\":[\"#2\"],\"bytes\":#n},"
                 "\"model.json\":{\"blocks\":[\"#m\"],\"bytes\":%zu},"
                 "\"state.json\":{\"blocks\":[\"#s\"],\"bytes\":2}},"
                 "\"fingerprint\":\"#f\",\"format\":1,\"n_elements\":%lld,\"n_updates\":3,"
                 "\"profile\":\"#p\",\"step\":7}",
                 strlen(model_json), (long long)tiny_model()->n_elements);
        seed_begin();
        ifl_put_u8(&seed, (uint8_t)mode);
        put_text(index);
        put_text("\xffinflight-checkpoint 1 step 7 xxh3 #h\n\xff{}\xff");
        put_text(model_json);
        put_text("\xff");
        put_text("\x01\x02\x80\x3f");
        static const char *const names[3] = {"whole", "raw", "short"};
        seed_end("checkpoint", names[mode]);
    }
    free(model_json);
}

/* --- Files of tensors ---------------------------------------------------------------------------
 */

#define ST_A                                                                                       \
    "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],"              \
    "\"data_offsets\":[0,16]},\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]},"  \
    "\"i\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[22,30]}}"
#define ST_B                                                                                       \
    "{\"h\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},\"j\":{\"dtype\":\"I32\","    \
    "\"shape\":[1],\"data_offsets\":[4,8]},\"e\":{\"dtype\":\"U8\",\"shape\":[0,4],"               \
    "\"data_offsets\":[8,8]}}"

static void put_safetensors(const char *header, size_t n_data) {
    ifl_put_u64(&seed, strlen(header));
    put_text(header);
    for (size_t i = 0; i < n_data; i++)
        ifl_put_u8(&seed, (uint8_t)(i * 37 + 11));
}

/* The tiny model as a folder. */
static void folder_seed(void) {
    static const char generation[] = "{\"eos_token_id\":[1,2]}";
    ifl_error err = {0};
    char *config, header[8192], index[8192];
    must(ifl_model_config_to_json(&tiny_model()->config, &config, &err), &err);
    size_t n_header = 0, n_index = 0;
    int64_t at = 0;
    for (int32_t i = 0; i < tiny_model()->n_params; i++) {
        const ifl_tensor_spec *t = &tiny_model()->params[i].spec;
        char shape[64];
        if (t->is_matrix)
            snprintf(shape, sizeof shape, "%lld,%lld", (long long)t->rows, (long long)t->cols);
        else
            snprintf(shape, sizeof shape, "%lld", (long long)t->cols);
        int64_t end = at + 2 * t->rows * t->cols;
        n_header += (size_t)snprintf(header + n_header, sizeof header - n_header,
                                     "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],"
                                     "\"data_offsets\":[%lld,%lld]}",
                                     i ? ',' : '{', t->name, shape, (long long)at, (long long)end);
        n_index +=
            (size_t)snprintf(index + n_index, sizeof index - n_index, "%s\"%s\":\"a.safetensors\"",
                             i ? "," : "{\"weight_map\":{", t->name);
        at = end;
    }
    strcat(header, "}");
    strcat(index, ",\"lm_head.weight\":\"b.safetensors\"}}");
    seed_begin();
    ifl_put_u8(&seed, 7);
    put_u16(strlen(config));
    put_text(config);
    put_u16(strlen(generation));
    put_text(generation);
    put_u16(strlen(index));
    put_text(index);
    put_u16(8 + strlen(header) + (size_t)at);
    put_safetensors(header, (size_t)at);
    put_safetensors("{\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                    4);
    seed_end("safetensors", "model-folder");
    free(config);
}

static void safetensors_seeds(void) {
    static const char index[] =
        "{\"metadata\":{\"total_size\":38},\"weight_map\":{\"w\":\"a.safetensors\",\"b\":"
        "\"a.safetensors\",\"i\":\"a.safetensors\",\"h\":\"b.safetensors\",\"j\":"
        "\"b.safetensors\",\"e\":\"b.safetensors\"}}";
    for (int mode = 0; mode < 4; mode++) {
        seed_begin();
        ifl_put_u8(&seed, (uint8_t)mode);
        if (mode & 1) {
            put_u16(strlen(index));
            put_text(index);
            put_u16(8 + strlen(ST_A) + 30);
            put_safetensors(ST_A, 30);
            put_safetensors(ST_B, 8);
        } else {
            put_safetensors(mode ? ST_B : ST_A, mode ? 8 : 30);
        }
        static const char *const names[4] = {"file", "folder", "file-measured", "folder-measured"};
        seed_end("safetensors", names[mode]);
    }
    folder_seed();
    seed_glob("safetensors", 0, "tests/golden/models/quants.safetensors");
}

static void put_gguf_text(const char *text) {
    ifl_put_u64(&seed, strlen(text));
    put_text(text);
}

static void put_gguf_key(const char *key, uint32_t type) {
    put_gguf_text(key);
    ifl_put_u32(&seed, type);
}

static void put_gguf_u32(const char *key, uint32_t v) {
    put_gguf_key(key, 4);
    ifl_put_u32(&seed, v);
}

static void put_gguf_f32(const char *key, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    put_gguf_key(key, 6);
    ifl_put_u32(&seed, bits);
}

static void put_gguf_name(const char *key, const char *value) {
    put_gguf_key(key, 8);
    put_gguf_text(value);
}

static void put_gguf_texts(const char *key, const char *const *texts, uint64_t n) {
    put_gguf_key(key, 9);
    ifl_put_u32(&seed, 8);
    ifl_put_u64(&seed, n);
    for (uint64_t i = 0; i < n; i++)
        put_gguf_text(texts[i]);
}

/* A whole model of one layer: D = 4, V = 8, F = 4, one head. */
static void gguf_seed(const char *family) {
    bool llama = !strcmp(family, "llama"), gemma = !strcmp(family, "gemma3");
    static const char *const tokens[8] = {"<unk>", "<s>", "</s>",   "a",
                                          "b",     "ab",  "<0x0A>", "\xc4\xa0"};
    static const char *const merges[1] = {"a b"};
    struct {
        const char *name;
        uint32_t cols, rows;
    } tensors[] = {{"token_embd.weight", 4, 8},
                   {"blk.0.attn_norm.weight", 4, 0},
                   {"blk.0.attn_q.weight", 4, 4},
                   {"blk.0.attn_k.weight", 4, 4},
                   {"blk.0.attn_v.weight", 4, 4},
                   {"blk.0.attn_output.weight", 4, 4},
                   {"blk.0.ffn_norm.weight", 4, 0},
                   {"blk.0.ffn_gate.weight", 4, 4},
                   {"blk.0.ffn_up.weight", 4, 4},
                   {"blk.0.ffn_down.weight", 4, 4},
                   {"output_norm.weight", 4, 0},
                   {"blk.0.attn_q.bias", 4, 0},
                   {"blk.0.attn_k.bias", 4, 0},
                   {"blk.0.attn_v.bias", 4, 0},
                   {"", 4, 0}};
    uint32_t n_tensors = llama ? 11 : gemma ? 15 : 14;
    if (gemma) {
        tensors[11].name = "blk.0.attn_q_norm.weight";
        tensors[12].name = "blk.0.attn_k_norm.weight";
        tensors[13].name = "blk.0.post_attention_norm.weight";
        tensors[14].name = "blk.0.post_ffw_norm.weight";
    }
    char key[64];
    seed_begin();
    put_text("GGUF");
    ifl_put_u32(&seed, 3);
    ifl_put_u64(&seed, n_tensors);
    ifl_put_u64(&seed, llama ? 18 : gemma ? 17 : 15);
    put_gguf_name("general.architecture", family);
#define KEY(what) (snprintf(key, sizeof key, "%s.%s", family, what), key)
    put_gguf_u32(KEY("block_count"), 1);
    put_gguf_u32(KEY("context_length"), 64);
    put_gguf_u32(KEY("embedding_length"), 4);
    put_gguf_u32(KEY("feed_forward_length"), 4);
    put_gguf_u32(KEY("attention.head_count"), 1);
    put_gguf_u32(KEY("attention.head_count_kv"), 1);
    put_gguf_f32(KEY("attention.layer_norm_rms_epsilon"), 1e-6f);
    put_gguf_f32(KEY("rope.freq_base"), 10000);
    if (gemma) {
        put_gguf_u32(KEY("attention.sliding_window"), 8);
        put_gguf_u32(KEY("attention.sliding_window_pattern"), 2);
    }
#undef KEY
    put_gguf_name("tokenizer.ggml.model", llama ? "llama" : "gpt2");
    put_gguf_texts("tokenizer.ggml.tokens", tokens, 8);
    put_gguf_u32("tokenizer.ggml.bos_token_id", 1);
    put_gguf_u32("tokenizer.ggml.eos_token_id", 2);
    if (llama) {
        put_gguf_key("tokenizer.ggml.scores", 9);
        ifl_put_u32(&seed, 6);
        ifl_put_u64(&seed, 8);
        for (uint32_t i = 0; i < 8; i++)
            ifl_put_u32(&seed, 0xbf800000u + i);
        put_gguf_key("tokenizer.ggml.token_type", 9);
        ifl_put_u32(&seed, 5);
        ifl_put_u64(&seed, 8);
        for (uint32_t i = 0; i < 8; i++)
            ifl_put_u32(&seed, i == 0 ? 2 : i < 3 ? 3 : i == 6 ? 6 : 1);
        put_gguf_u32("llama.rope.dimension_count", 4);
        put_gguf_key("tokenizer.ggml.add_bos_token", 7);
        ifl_put_u8(&seed, 1);
        put_gguf_u32("tokenizer.ggml.unknown_token_id", 0);
    } else {
        put_gguf_texts("tokenizer.ggml.merges", merges, 1);
        put_gguf_name("tokenizer.ggml.pre", "qwen2");
    }
    uint64_t offset = 0;
    for (uint32_t i = 0; i < n_tensors; i++) {
        put_gguf_text(tensors[i].name);
        ifl_put_u32(&seed, tensors[i].rows ? 2 : 1);
        ifl_put_u64(&seed, tensors[i].cols);
        if (tensors[i].rows) ifl_put_u64(&seed, tensors[i].rows);
        ifl_put_u32(&seed, i % 3 ? 0 : 1);
        ifl_put_u64(&seed, offset);
        uint64_t n = tensors[i].cols * (tensors[i].rows ? tensors[i].rows : 1);
        offset += (n * (i % 3 ? 4 : 2) + 31) / 32 * 32;
    }
    while ((seed.at - seed_bytes) % 32)
        ifl_put_u8(&seed, 0);
    for (uint64_t i = 0; i < offset; i++)
        ifl_put_u8(&seed, (uint8_t)(i % 4 == 3 ? 0x3c : i));
    seed_end("gguf", family);
}

/* --- Texts ---------------------------------------------------------------------------------------
 */

#define TOKENIZER_HEAD "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
#define ADDED                                                                                      \
    "\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":false,"      \
    "\"rstrip\":false,\"normalized\":false,\"special\":true},{\"id\":9,\"content\":\"[lst]\","     \
    "\"single_word\":true,\"lstrip\":true,\"rstrip\":true,\"normalized\":true,\"special\":false}]" \
    ","
#define TEMPLATE                                                                                   \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":"  \
    "0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{"   \
    "\"id\":\"<s>\",\"ids\":[0],\"tokens\":[\"<s>\"]}}}"

static void tokenizer_seeds(void) {
    seed_file("tokenizer", "char", -1, IFL_SOURCE_DIR "/tests/golden/tokenizer/char.json");
    seed_text("tokenizer", "byte-level",
              TOKENIZER_HEAD ADDED
              "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
              "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t)|"
              "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+"
              "|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"
              "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
              "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}"
              "," TEMPLATE "]},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
              "\"dropout\":null,\"unk_token\":null,\"fuse_unk\":false,\"byte_fallback\":false,"
              "\"ignore_merges\":true,\"vocab\":{\"<s>\":0,\"a\":1,\"t\":2,\"h\":3,\"e\":4,"
              "\"\xc4\xa0\":5,\"th\":6,\"the\":7,\"\xc4\xa0the\":8,\"[lst]\":9,\"\xc3\x83\":10,"
              "\"\xc2\xa9\":11},\"merges\":[\"t h\",\"th e\",\"\xc4\xa0 the\"]}}\xffthe the a");
    seed_text("tokenizer", "sentencepiece",
              TOKENIZER_HEAD ADDED
              "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
              "\"prepend\":\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
              "\"content\":\"\xe2\x96\x81\"},{\"type\":\"NFKC\"}]},\"pre_tokenizer\":null,"
              "\"post_processor\":" TEMPLATE
              ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\","
              "\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":"
              "\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \","
              "\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
              "\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{"
              "\"<s>\":0,\"<unk>\":1,\"\xe2\x96\x81\":2,\"a\":3,\"b\":4,\"\xe2\x96\x81"
              "a\":5,"
              "\"ab\":6,\"<0xC3>\":7,\"<0xA9>\":8,\"[lst]\":9,\"<0x0A>\":10},\"merges\":[["
              "\"\xe2\x96\x81\",\"a\"],[\"a\",\"b\"]]}}\xff"
              "a ab [lst] \xc3\xa9\n");
    seed_text("tokenizer", "metaspace",
              TOKENIZER_HEAD
              "\"added_tokens\":[],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":"
              "\"\\\\s+\"},\"content\":\" \"},\"pre_tokenizer\":{\"type\":\"Sequence\","
              "\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":"
              "\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\","
              "\"split\":true}]},\"post_processor\":null,\"decoder\":{\"type\":\"Metaspace\","
              "\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\"},\"model\":{"
              "\"type\":\"BPE\",\"unk_token\":\"u\",\"vocab\":{\"u\":0,\"1\":1,\"2\":2,\"12\":3,"
              "\"\xe2\x96\x81\":4},\"merges\":[\"1 2\"]}}\xff"
              "12 1 2");
    seed_text("tokenizer", "splits",
              TOKENIZER_HEAD
              "\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
              "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":"
              "\"Removed\",\"invert\":true},{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[b-c]\"},"
              "\"behavior\":\"MergedWithNext\",\"invert\":false},{\"type\":\"Split\",\"pattern\":{"
              "\"String\":\"d\"},\"behavior\":\"Contiguous\",\"invert\":false},{\"type\":"
              "\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}]},\"decoder\":null,"
              "\"model\":{\"type\":\"BPE\",\"unk_token\":\"x\",\"vocab\":{\"x\":0,\"a\":1,\"b\":2},"
              "\"merges\":[]}}\xff"
              "aabbccdd");
}

static void text_seeds(void) {
    seed_glob("config", -1, "deploy/configs/*.yaml");
    seed_text("config", "overrides",
              "run:\n  name: x\ndata:\n  train:\n    - {name: a, path: a.jsonl, ratio: 0.5}\n"
              "rollout:\n  stops: [\"\\n\", '</s>']\n\xff"
              "learner.learning_rate=1e-6\xffrun.mode=async:2\xff"
              "data.train.0.path=b.jsonl\xffrollout.stops=[a, b]\xffkl.coef=0.1");
    seed_text("task_file", "kinds",
              "{\"id\":\"a\",\"data_source\":\"own\",\"prompt\":\"What?\",\"answer\":\"7\","
              "\"checker\":\"numeric\",\"meta\":{\"k\":1},\"max_new_tokens\":5,\"weight\":0.5,"
              "\"extra\":[1]}\n\n"
              "{\"prompt\":\"Why?\",\"answer\":12}\r\n"
              "{\"prompt\":[{\"role\":\"user\",\"content\":\"Who?\"}],\"answer\":\"me\"}\n"
              "{\"prompt\":[1,2,3]}\n{\"prompt\":\"Who?\",\"completion\":\" me\"}");
    seed_glob("model_config", -1, "tests/golden/models/*/config.json");
}

static void reward_seeds(void) {
    const ifl_reward_request request = {.id = 5,
                                        .checker = "numeric",
                                        .prompt = "6*7=",
                                        .completion = "I think 42.",
                                        .n_completion = 11,
                                        .answer = "42",
                                        .meta = "",
                                        .finish = IFL_FINISH_EOS};
    uint8_t *frame, reply[IFL_REWARD_REPLY_MAX];
    size_t n;
    ifl_error err = {0};
    must(ifl_reward_request_encode(&request, &frame, &n, &err), &err);
    seed_begin();
    ifl_put_u8(&seed, 0);
    ifl_put_bytes(&seed, frame + 4, n - 4);
    seed_end("reward", "request");
    free(frame);
    ifl_reward reward = {.status = IFL_REWARD_OK, .reward = 0.5f, .n_components = 1};
    snprintf(reward.components[0].name, sizeof reward.components[0].name, "format");
    snprintf(reward.checker, sizeof reward.checker, "numeric/1");
    n = ifl_reward_reply_encode(5, &reward, "why", 0, reply);
    seed_begin();
    ifl_put_u8(&seed, 1);
    ifl_put_bytes(&seed, reply + 4, n - 4);
    seed_end("reward", "reply");
    static const char *const jsons[][2] = {
        {"\xfa", "{\"id\":1,\"status\":\"ok\",\"reward\":0.5,\"components\":{\"a\":1},"
                 "\"tests_passed\":1,\"tests_total\":2}"},
        {"\xfa", "{\"id\":1,\"status\":\"undecided\",\"info\":\"why\"}"},
        {"\xfa", "{\"protocol\":1,\"name\":\"a\",\"version\":\"1\"}"},
        {"\xfb",
         "{\"a\":{\"use\":\"exact\",\"options\":{\"after\":\"#\"}},\"s\":{\"use\":\"sum\",\"clip\":"
         "[0,1],\"parts\":[{\"checker\":\"a\",\"weight\":0.5}]},\"p\":{\"use\":\"process\","
         "\"command\":[\"a\"],\"env\":{\"A\":\"b\"}},\"h\":{\"use\":\"http\",\"url\":\"http://"
         "[::1]\"},"
         "\"z\":{\"use\":\"zeromq\",\"endpoint\":\"ipc://"
         "a\"},\"l\":{\"use\":\"library\",\"path\":\"a\"}}"},
    };
    for (size_t i = 0; i < sizeof jsons / sizeof *jsons; i++) {
        char name[32];
        seed_begin();
        ifl_put_bytes(&seed, jsons[i][0], 1);
        ifl_put_bytes(&seed, jsons[i][1], strlen(jsons[i][1]));
        snprintf(name, sizeof name, "json-%zu", i);
        seed_end("reward", name);
    }
    static const char *const texts[] = {
        "6*7=\xffThe answer is \\boxed{\\frac{84}{2}}.\xff"
        "42\xff",
        "x\xff#### 1,234.50\xff"
        "1234.5\xff{\"after\":\"####\"}",
        "x\xff-3.5e2 or 7/9 or 50%\xff-350\xff{\"tolerance\":0.01,\"end\":true}",
        "x\xff<think>a</think><answer>b</answer>\xff"
        "b\xff{\"regex\":\"^<think>.*$\"}",
        "x\xff Paris \xff"
        "Paris\xff{\"ignore_case\":true,\"ignore_space\":true,\"ignore_punctuation\":true}",
        "x\xff<think>a</think>v = 7, w = 8\xff"
        "7\xff{\"think\":true,\"regex\":\"= "
        "(\\\\w+)\",\"group\":1,\"which\":\"same\",\"number\":true}",
        "x\xffThe answer is (B) Paris, so \\boxed{\\text{B}}\xff"
        "B\xff{\"options\":[\"Rome\",\"Paris\",\"New York\"]}",
        "x\xff{\"a\":[1,2.0,\"b\"]}\xff\xff{\"schema\":{\"type\":\"object\",\"required\":[\"a\"],"
        "\"properties\":{\"a\":{\"items\":{\"enum\":[1,2,\"b\"]},\"minItems\":1,\"uniqueItems\":"
        "true}},"
        "\"additionalProperties\":false}}",
        "x\xff```json\n\"ab\"\n```\xff\xff{\"fenced\":true,\"schema\":{\"type\":[\"string\","
        "\"null\"],"
        "\"minLength\":1,\"pattern\":\"^a\"}}",
        "x\xff--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n 1\n-2\n+x\n\xff"
        "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n 1\n-2\n+y\n\xff"
        "{\"files\":{\"f\":\"1\\n2\\n\"},\"tests\":[\"t/\"],\"rejected\":[{\"f\":\"1\\n\"}]}",
        "x\xff"
        "f\n<<<<<<< SEARCH\n2\n=======\nx\n>>>>>>> REPLACE\n\xff\xff"
        "{\"files\":{\"f\":\"1\\n2\"},\"gold\":{\"f\":\"1\\nx\"},\"allow\":[\"f\"]}",
        "x\xff"
        "a b a b a "
        "b\xff\xff{\"max\":5,\"buffer\":2,\"ngram\":2,\"weight\":0.5,\"short\":1,\"long\":0.5}"};
    const ifl_checker *known[32];
    int n_known = ifl_checker_list(known, 32);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int checker = 0; checker < n_known; checker++) {
            char name[32];
            seed_begin();
            ifl_put_u8(&seed, 2);
            ifl_put_u8(&seed, (uint8_t)checker);
            ifl_put_u8(&seed, IFL_FINISH_EOS);
            put_text(texts[i]);
            snprintf(name, sizeof name, "texts-%zu-%d", i, checker);
            seed_end("reward", name);
        }
}

/* The table of pairs, a seed a line: flags, the task's answer, the other. */
static void math_seeds(void) {
    char line[1024];
    FILE *f = fopen(IFL_SOURCE_DIR "/tests/golden/math_pairs.txt", "r");
    if (!f) {
        perror("tests/golden/math_pairs.txt");
        exit(74);
    }
    for (int i = 0; fgets(line, sizeof line, f); i++) {
        char name[32], *gold = strstr(line, " | "), *answer = gold ? strstr(gold + 3, " | ") : NULL;
        if (*line == '#' || !answer) continue;
        *answer = 0;
        answer[strcspn(answer + 3, "\n") + 3] = 0;
        seed_begin();
        put_u16(0);
        put_text(gold + 3);
        ifl_put_u8(&seed, 0xff);
        put_text(answer + 3);
        snprintf(name, sizeof name, "pair-%d", i);
        seed_end("math", name);
    }
    fclose(f);
    static const char *const completions[] = {"5\xff<think>\\boxed{4}</think> So \\boxed{5}.",
                                              "3,4\xff"
                                              "\\boxed{3} and \\boxed{4}",
                                              "72\xff#### 72",
                                              "B\xff"
                                              "Answer: (B)",
                                              "5\xff\\boxed{\\boxed{5"};
    for (size_t i = 0; i < sizeof completions / sizeof *completions; i++) {
        char name[32];
        seed_begin();
        put_u16(1);
        put_text(completions[i]);
        snprintf(name, sizeof name, "completion-%zu", i);
        seed_end("math", name);
    }
}

static void code_value_seeds(void) {
    static const char *const values[] = {
        "NTF", "i-1f;", "f0x1.8p+64;", "c0x1p+0,-infinf;", "fnan;", "s3:abc", "b2:\x01\x02",
        "l3:i1;T" "t1:N", "S2:i2;s1:a", "d2:i1;s1:ai2;l0:", "l1:l1:l1:l1:l1:N",
        "i18000000000000000;\xff" "f0x1.8p+64;"};
    static const char *const texts[] = {
        "1 2.50 3\n\xff" "1 2.5  3", "a \n\n\xff" "a\n",
        "<think>```python\nx\n```</think>\n```python\ny = 1\n```\n```bash\nls\n```\xff" "y"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char name[32];
        snprintf(name, sizeof name, "value-%zu", i);
        seed_begin();
        ifl_put_u8(&seed, 0);
        put_text(values[i]);
        seed_end("code_value", name);
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (uint8_t mode = 1; mode < 5; mode++) {
            char name[32];
            snprintf(name, sizeof name, "text-%zu-%u", i, mode);
            seed_begin();
            ifl_put_u8(&seed, mode);
            put_text(texts[i]);
            seed_end("code_value", name);
        }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "fuzz_seeds FOLDER\n");
        return 64;
    }
    folder = argv[1];
    (void)mkdir(folder, 0755);
    wire_seeds();
    log_seeds();
    patch_seeds();
    archive_seeds();
    checkpoint_seeds();
    safetensors_seeds();
    gguf_seed("llama");
    gguf_seed("qwen2");
    gguf_seed("gemma3");
    seed_glob("gguf", -1, "tests/golden/models/quants.gguf");
    tokenizer_seeds();
    text_seeds();
    reward_seeds();
    math_seeds();
    code_value_seeds();
    return 0;
}
