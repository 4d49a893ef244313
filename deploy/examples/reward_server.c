/* A reward of your own behind ZeroMQ (rewards/PLUGINS.md): a ROUTER that answers msgpack maps. What
 * it pays here is 1 if the answer ends with the gold text behind its last '#'.
 *
 *     cc -O2 -o reward_server deploy/examples/reward_server.c -lzmq -lmsgpackc
 *
 * `reward_server ENDPOINT [SECRET_FILE]`, e.g. tcp://127.0.0.1:5599. With the secret of `inflight
 * keys new FOLDER` (FOLDER/learner.secret) links are encrypted and clients know this server by
 * FOLDER/learner.public; a tcp address that others can reach should have one. */
#include <msgpack.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

typedef struct text {
    const char *at;
    size_t n;
} text;

static const msgpack_object *get(const msgpack_object *map, const char *key) {
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object *k = &map->via.map.ptr[i].key;
        if (k->type == MSGPACK_OBJECT_STR && k->via.str.size == strlen(key) &&
            memcmp(k->via.str.ptr, key, k->via.str.size) == 0)
            return &map->via.map.ptr[i].val;
    }
    return NULL;
}

static text get_text(const msgpack_object *map, const char *key) {
    const msgpack_object *v = get(map, key);
    if (!v || v->type != MSGPACK_OBJECT_STR) return (text){"", 0};
    return (text){v->via.str.ptr, v->via.str.size};
}

static text trim(text t) {
    while (t.n > 0 && strchr(" \t\n\v\f\r", t.at[t.n - 1]))
        t.n--;
    while (t.n > 0 && strchr(" \t\n\v\f\r", *t.at))
        t.at++, t.n--;
    return t;
}

static int is_right(const msgpack_object *task) {
    text said = get_text(task, "completion"), gold = trim(get_text(task, "gold"));
    text finish = get_text(task, "finish");
    size_t at = said.n;
    while (at > 0 && said.at[at - 1] != '#')
        at--;
    text answer = trim((text){said.at + at, said.n - at});
    int whole = finish.n != 6; /* "length": cut */
    return at > 0 && whole && answer.n == gold.n && memcmp(answer.at, gold.at, gold.n) == 0;
}

static void put(msgpack_packer *p, const char *word) {
    msgpack_pack_str_with_body(p, word, strlen(word));
}

static void answer(msgpack_packer *p, const msgpack_object *task) {
    const msgpack_object *id = get(task, "id");
    if (!id) { /* its hello */
        msgpack_pack_map(p, 4);
        put(p, "protocol"), msgpack_pack_int(p, 1);
        put(p, "name"), put(p, "server.c");
        put(p, "version"), put(p, "1");
        put(p, "credits"), msgpack_pack_int(p, 16); /* requests that one client may have open */
        return;
    }
    int right = is_right(task);
    msgpack_pack_map(p, 3);
    put(p, "id"), msgpack_pack_object(p, *id);
    put(p, "status"), put(p, right ? "ok" : "wrong");
    put(p, "reward"), msgpack_pack_double(p, right);
}

int main(int argc, char **argv) {
    void *zmq = zmq_ctx_new(), *router = zmq_socket(zmq, ZMQ_ROUTER);
    char secret[64] = "", endpoint[256];
    size_t n_endpoint = sizeof endpoint;
    int yes = 1;
    if (argc > 2) {
        FILE *f = fopen(argv[2], "r");
        if (!f || !fgets(secret, sizeof secret, f)) return perror(argv[2]), 1;
        fclose(f);
        secret[strcspn(secret, "\n")] = 0;
        if (zmq_setsockopt(router, ZMQ_CURVE_SERVER, &yes, sizeof yes) ||
            zmq_setsockopt(router, ZMQ_CURVE_SECRETKEY, secret, strlen(secret) + 1))
            return fprintf(stderr, "%s: no secret key\n", argv[2]), 1;
    }
    if (argc < 2 || zmq_bind(router, argv[1]) != 0)
        return fprintf(stderr, "usage: reward_server ENDPOINT [SECRET_FILE]: %s\n",
                       zmq_strerror(zmq_errno())),
               1;
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &n_endpoint);
    printf("%s\n", strrchr(endpoint, ':') + 1);
    fflush(stdout);
    for (;;) {
        zmq_msg_t from, body;
        zmq_msg_init(&from);
        zmq_msg_init(&body);
        if (zmq_msg_recv(&from, router, 0) < 0 || zmq_msg_recv(&body, router, 0) < 0) return 1;
        msgpack_unpacked task;
        msgpack_sbuffer out;
        msgpack_packer packer;
        size_t used = 0;
        msgpack_unpacked_init(&task);
        msgpack_sbuffer_init(&out);
        msgpack_packer_init(&packer, &out, msgpack_sbuffer_write);
        if (msgpack_unpack_next(&task, zmq_msg_data(&body), zmq_msg_size(&body), &used) ==
                MSGPACK_UNPACK_SUCCESS &&
            task.data.type == MSGPACK_OBJECT_MAP) {
            answer(&packer, &task.data);
            zmq_msg_send(&from, router, ZMQ_SNDMORE);
            zmq_send(router, out.data, out.size, 0);
        }
        msgpack_sbuffer_destroy(&out);
        msgpack_unpacked_destroy(&task);
        zmq_msg_close(&body);
        zmq_msg_close(&from);
    }
}
