/* Links with keys (common/keys.h, common/transport.h): who is let in, who isn't, and what those who
 * aren't can do to the learner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <malloc.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/keys.h"
#include "common/log.h"
#include "common/transport.h"

#define WAIT_MS 10000

/* --- A learner's folder, actors' folders ------------------------------------------------------ */

static char root[64];

static const char *path_of(const char *name) {
    static char paths[64][256]; /* a ring */
    static int next;
    char *path = paths[next++ % 64];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static void make_pair(const char *folder, const char *name, ifl_key_pair *pair) {
    ifl_error err = {0};
    assert_int_equal(ifl_key_pair_make(pair, &err), IFL_OK);
    if (ifl_key_pair_write(pair, folder, name, &err) != IFL_OK) fail_msg("%s", err.text);
}

static void write_file(const char *path, const char *text, mode_t mode) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static int remove_all(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return root[0] ? system(command) : 0;
}

/* root/learner with the key "good" allowed, root/good and root/bad as two actors' hosts. */
static int make_hosts(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/ifl-curve-XXXXXX");
    if (!mkdtemp(root)) return -1;
    ifl_key_pair learner, good, bad;
    make_pair(path_of("learner"), "learner", &learner);
    make_pair(path_of("good"), "good", &good);
    make_pair(path_of("bad"), "bad", &bad);
    assert_int_equal(ifl_key_learner_write(path_of("good"), learner.public_key, NULL), IFL_OK);
    assert_int_equal(ifl_key_learner_write(path_of("bad"), learner.public_key, NULL), IFL_OK);
    assert_int_equal(ifl_key_allow(path_of("learner"), "good", good.public_key, NULL), IFL_OK);
    return 0;
}

/* --- Both sides ------------------------------------------------------------------------------- */

static ifl_server_options server_options(const char *bind) {
    ifl_server_options o = {
        .bind = bind, .heartbeat_ms = 250, .heartbeat_misses = 20, .lease_s = 60};
    o.vocab_size = 100;
    o.fingerprint = (ifl_hash){1, 1};
    o.keys = path_of("learner");
    strcpy(o.run_uuid, "00112233445566778899aabbccddeeff");
    return o;
}

static ifl_server *start_server(const ifl_server_options *options) {
    ifl_server *s = NULL;
    ifl_error err = {0};
    if (ifl_server_create(&s, options, &err) != IFL_OK) fail_msg("%s", err.text);
    return s;
}

static ifl_client *start_client(ifl_server *s, const char *keys, int64_t deadline_ms) {
    char endpoint[IFL_ENDPOINT_MAX];
    ifl_error err = {0};
    ifl_client *c = NULL;
    assert_int_equal(ifl_endpoint_reach(ifl_server_endpoint(s), endpoint, NULL), IFL_OK);
    ifl_client_options o = {
        .connect = endpoint, .name = "a", .held_version = -1, .connect_deadline_ms = deadline_ms};
    o.fingerprint = (ifl_hash){1, 1};
    if (keys) o.keys = path_of(keys);
    if (ifl_client_create(&c, &o, &err) != IFL_OK) fail_msg("%s", err.text);
    return c;
}

static void want_server(ifl_server *s, ifl_server_event_kind kind, ifl_server_event *event) {
    if (ifl_server_poll(s, WAIT_MS, event, NULL) != IFL_OK) fail_msg("no event (wanted %d)", kind);
    if (event->kind != kind) fail_msg("event %d \"%s\", wanted %d", event->kind, event->text, kind);
}

static void want_client(ifl_client *c, ifl_client_event_kind kind, ifl_client_event *event) {
    if (ifl_client_poll(c, WAIT_MS, event, NULL) != IFL_OK) fail_msg("no event (wanted %d)", kind);
    if (event->kind != kind) fail_msg("event %d \"%s\", wanted %d", event->kind, event->text, kind);
}

static uint64_t join(ifl_server *s, ifl_client *c) {
    ifl_server_event se;
    ifl_client_event ce;
    want_client(c, IFL_CLIENT_CONNECTED, &ce);
    want_server(s, IFL_SERVER_JOINED, &se);
    uint64_t peer = se.peer;
    ifl_server_event_clear(&se);
    ifl_client_event_clear(&ce);
    return peer;
}

/* The session works in both directions, on both planes. */
static void works(ifl_server *s, ifl_client *c, uint64_t peer) {
    ifl_trajectory *t;
    ifl_error err = {0};
    int32_t prompt[3] = {1, 2, 3};
    assert_int_equal(ifl_trajectory_create(&t, prompt, 3, NULL), IFL_OK);
    t->group_size = 1;
    for (int i = 0; i < 4; i++)
        assert_int_equal(ifl_trajectory_append(t, 10 + i, -0.5f, 3, NULL), IFL_OK);
    t->finish = IFL_FINISH_EOS;
    assert_int_equal(ifl_client_send_trajectory(c, t, &err), IFL_OK);
    ifl_trajectory_free(t);
    ifl_server_event se;
    ifl_client_event ce;
    want_server(s, IFL_SERVER_MESSAGE, &se);
    assert_true(se.peer == peer && se.message.type == IFL_WIRE_TRAJ);
    assert_int_equal(ifl_server_ack(s, peer, se.message.traj.trajectory, IFL_ACK_STORED, &err),
                     IFL_OK);
    ifl_server_event_clear(&se);
    want_client(c, IFL_CLIENT_MESSAGE, &ce);
    assert_int_equal(ce.message.type, IFL_WIRE_TRAJ_ACK);
    ifl_client_event_clear(&ce);
    ifl_peer_info info = {0};
    for (int i = 0; i < WAIT_MS / 10 && !info.weights_open; i++) {
        ifl_sleep_ms(10);
        assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    }
    assert_true(info.weights_open && info.peer == peer);
}

static void quiet(ifl_server *s) {
    ifl_server_event se;
    if (ifl_server_poll(s, 0, &se, NULL) != IFL_AGAIN)
        fail_msg("event %d \"%s\", wanted none", se.kind, se.text);
}

/* --- Files ------------------------------------------------------------------------------------ */

static mode_t mode_of(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_mode & 07777;
}

static void test_secrets_are_written_for_their_user_alone_and_never_twice(void **state) {
    (void)state;
    assert_int_equal(mode_of(path_of("good/good.secret")), 0600);
    assert_int_equal(mode_of(path_of("good/good.public")), 0644);
    assert_int_equal(mode_of(path_of("good")), 0700);
    ifl_key_pair before, other, after;
    ifl_error err = {0};
    assert_int_equal(ifl_key_pair_read(&before, path_of("good"), "good", NULL), IFL_OK);
    assert_int_equal(ifl_key_pair_make(&other, NULL), IFL_OK);
    assert_int_equal(ifl_key_pair_write(&other, path_of("good"), "good", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "never overwritten"));
    assert_int_equal(ifl_key_pair_read(&after, path_of("good"), "good", NULL), IFL_OK);
    assert_string_equal(before.secret_key, after.secret_key);
    unlink(path_of("good/good.public")); /* nor half a pair */
    assert_int_equal(ifl_key_pair_write(&other, path_of("good"), "good", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "good.secret is there already"));
    assert_int_equal(ifl_key_pair_read(&after, path_of("good"), "good", NULL), IFL_OK);
    assert_string_equal(before.secret_key, after.secret_key);
    assert_int_equal(ifl_key_allow(path_of("learner"), "good", other.public_key, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "revoke"));
}

static void test_secret_that_others_may_read_is_refused(void **state) {
    (void)state;
    static const mode_t bad[] = {0644, 0640, 0660, 0604};
    ifl_key_pair pair;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ifl_error err = {0};
        assert_int_equal(chmod(path_of("learner/learner.secret"), bad[i]), 0);
        assert_int_equal(ifl_key_pair_read(&pair, path_of("learner"), "learner", &err), IFL_USAGE);
        assert_non_null(strstr(err.text, "chmod 600"));
        ifl_server_options so = server_options("tcp://127.0.0.1:*");
        ifl_server *s = NULL;
        assert_int_equal(ifl_server_create(&s, &so, &err), IFL_USAGE);
    }
    assert_int_equal(chmod(path_of("learner/learner.secret"), 0400), 0);
    assert_int_equal(ifl_key_pair_read(&pair, path_of("learner"), "learner", NULL), IFL_OK);
    assert_int_equal(chmod(path_of("learner/learner.secret"), 0600), 0);
    if (geteuid() == 0) { /* only root can give a file away */
        ifl_error err = {0};
        assert_int_equal(chown(path_of("learner/learner.secret"), 12345, (gid_t)-1), 0);
        assert_int_equal(ifl_key_pair_read(&pair, path_of("learner"), "learner", &err), IFL_USAGE);
        assert_non_null(strstr(err.text, "12345"));
        assert_int_equal(chown(path_of("learner/learner.secret"), 0, (gid_t)-1), 0);
    }
}

static void test_list_takes_whole_keys_and_no_others_hand(void **state) {
    (void)state;
    static const char *const bad[] = {"", "\n", "short\n",
                                      "0123456789012345678901234567890123456789x\n",
                                      "01234567890123456789012345678901234567 \"\n"};
    ifl_key_list list = {0};
    ifl_error err = {0};
    char file[256];
    snprintf(file, sizeof file, "%s", path_of("learner/actors/other.public"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file(file, bad[i], 0644);
        assert_int_equal(ifl_key_list_read(&list, path_of("learner"), &err), IFL_FORMAT);
        assert_non_null(strstr(err.text, "other.public"));
    }
    ifl_key_pair pair;
    assert_int_equal(ifl_key_pair_make(&pair, NULL), IFL_OK);
    write_file(file, pair.public_key, 0664);
    assert_int_equal(ifl_key_list_read(&list, path_of("learner"), &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "chmod go-w"));
    assert_int_equal(chmod(file, 0644), 0);
    assert_int_equal(chmod(path_of("learner/actors"), 0777), 0);
    assert_int_equal(ifl_key_list_read(&list, path_of("learner"), &err), IFL_USAGE);
    assert_int_equal(chmod(path_of("learner/actors"), 0755), 0);
    assert_int_equal(ifl_key_list_read(&list, path_of("learner"), NULL), IFL_OK);
    assert_int_equal(list.n, 2);
    assert_string_equal(ifl_key_list_find(&list, pair.public_key)->name, "other");
    assert_null(ifl_key_list_find(&list, pair.secret_key));
    ifl_key_list_clear(&list);
    assert_int_equal(ifl_key_revoke(path_of("learner"), "other", NULL), IFL_OK);
    assert_int_equal(ifl_key_revoke(path_of("learner"), "other", NULL), IFL_NOTFOUND);
    static const char *const names[] = {
        "", ".x", "a/b", "../x", "a b", "a\n", "a23456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(ifl_key_allow(path_of("learner"), names[i], pair.public_key, NULL),
                         IFL_USAGE);
}

static void test_actor_finds_its_own_key(void **state) {
    (void)state;
    char name[IFL_KEY_NAME_MAX];
    ifl_key_pair pair;
    ifl_error err = {0};
    assert_int_equal(ifl_key_actor_name(name, path_of("good"), "", "a", NULL), IFL_OK);
    assert_string_equal(name, "good");
    make_pair(path_of("good"), "second", &pair);
    assert_int_equal(ifl_key_actor_name(name, path_of("good"), "", "a", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "transport.key"));
    assert_int_equal(ifl_key_actor_name(name, path_of("good"), "", "second", NULL), IFL_OK);
    assert_string_equal(name, "second");
    assert_int_equal(ifl_key_actor_name(name, path_of("good"), "good", "second", NULL), IFL_OK);
    assert_string_equal(name, "good");
    unlink(path_of("good/second.secret"));
    unlink(path_of("good/second.public"));
    assert_int_equal(ifl_key_actor_name(name, path_of("learner"), "", "a", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "inflight keys new"));
}

/* --- Who comes in ----------------------------------------------------------------------------- */

static void test_allowed_key_works_on_both_planes(void **state) {
    (void)state;
    char ipc[96];
    snprintf(ipc, sizeof ipc, "ipc://%s/sock", root);
    const char *const binds[] = {"tcp://127.0.0.1:*", "tcp://0.0.0.0:*", ipc};
    for (size_t i = 0; i < sizeof binds / sizeof *binds; i++) {
        ifl_server_options so = server_options(binds[i]);
        ifl_server *s = start_server(&so);
        ifl_client *c = start_client(s, "good", WAIT_MS);
        works(s, c, join(s, c));
        ifl_client_free(c);
        ifl_server_free(s);
    }
}

static void test_other_addresses_need_keys_or_a_word_for_it(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_server *s = NULL;
    ifl_server_options so = server_options("tcp://0.0.0.0:*");
    so.keys = "";
    assert_int_equal(ifl_server_create(&s, &so, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "inflight keys new"));
    so.insecure = true;
    s = start_server(&so);
    ifl_client *c = start_client(s, NULL, WAIT_MS);
    works(s, c, join(s, c));
    ifl_client_free(c);
    ifl_server_free(s);
    ifl_client_options co = {.connect = "tcp://192.0.2.1:5555", .held_version = -1};
    assert_int_equal(ifl_client_create(&c, &co, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "inflight keys new"));
}

/* `keys` of a folder that is not let in; what the actor is told. */
static void turned_away(ifl_server *s, const char *keys, const char *told) {
    ifl_client *c = start_client(s, keys, 2500);
    ifl_client_event ce;
    assert_int_equal(ifl_client_poll(c, WAIT_MS, &ce, NULL), IFL_OK);
    /* Without keys it may see no more than a link that closes. */
    if (ce.kind != IFL_CLIENT_UNAUTHORISED && (keys || ce.kind != IFL_CLIENT_GONE))
        fail_msg("event %d \"%s\"", ce.kind, ce.text);
    if (!strstr(ce.text, told)) fail_msg("\"%s\" says nothing of \"%s\"", ce.text, told);
    ifl_client_event_clear(&ce);
    ifl_client_free(c);
}

/* Closes each connection that comes, as a proxy does with no learner behind it. */
static void *closing_run(void *context) {
    int fd = *(int *)context;
    for (int peer; (peer = accept(fd, NULL, NULL)) >= 0;)
        close(peer);
    return NULL;
}

static void test_a_wrong_learner_key_is_told_long_before_the_deadline(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    ifl_key_pair own, other;
    ifl_client_event ce;
    assert_int_equal(ifl_key_pair_read(&own, path_of("good"), "good", NULL), IFL_OK);
    make_pair(path_of("elsewhere"), "learner", &other);
    assert_int_equal(ifl_key_pair_write(&own, path_of("mistaken"), "good", NULL), IFL_OK);
    assert_int_equal(ifl_key_learner_write(path_of("mistaken"), other.public_key, NULL), IFL_OK);
    ifl_client *c = start_client(s, "mistaken", 100 * WAIT_MS);
    want_client(c, IFL_CLIENT_UNAUTHORISED, &ce);
    assert_non_null(strstr(ce.text, "mistaken/learner.public"));
    assert_non_null(strstr(ce.text, other.public_key));
    assert_non_null(strstr(ce.text, "copy learner.public anew"));
    ifl_client_event_clear(&ce);
    ifl_client_free(c);
    ifl_server_free(s);
    /* Who says nothing at all may be a proxy whose learner is still to come. */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof address;
    pthread_t thread;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char endpoint[64];
    assert_int_equal(bind(fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &n), 0);
    assert_int_equal(pthread_create(&thread, NULL, closing_run, &fd), 0);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    ifl_client_options o = {.connect = endpoint,
                            .name = "a",
                            .held_version = -1,
                            .connect_deadline_ms = 100 * WAIT_MS,
                            .keys = path_of("good")};
    assert_int_equal(ifl_client_create(&c, &o, NULL), IFL_OK);
    assert_int_equal(ifl_client_poll(c, 2500, &ce, NULL), IFL_AGAIN);
    ifl_client_free(c);
    shutdown(fd, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(fd);
}

/* A learner that ends without a word, in a process of its own. Returns its id. */
static pid_t start_mortal(char endpoint[IFL_ENDPOINT_MAX]) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        ifl_server_options so = server_options("tcp://127.0.0.1:*");
        ifl_server *s = NULL;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ifl_server_create(&s, &so, NULL) != IFL_OK ||
            write(ends[1], ifl_server_endpoint(s), IFL_ENDPOINT_MAX) != IFL_ENDPOINT_MAX)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ends[0], endpoint, IFL_ENDPOINT_MAX), IFL_ENDPOINT_MAX);
    close(ends[0]);
    close(ends[1]);
    return pid;
}

/* A key may be changed under a running job: the actor warns, goes on trying, and comes back. */
static void test_a_learner_of_another_key_is_waited_for_by_who_has_been_there(void **state) {
    (void)state;
    ifl_key_pair own, other;
    ifl_client_event ce;
    ifl_client *c = NULL;
    char endpoint[IFL_ENDPOINT_MAX];
    pid_t pid = start_mortal(endpoint);
    ifl_client_options o = {.connect = endpoint,
                            .name = "a",
                            .held_version = -1,
                            .connect_deadline_ms = 100 * WAIT_MS,
                            .fingerprint = {1, 1},
                            .keys = path_of("good")};
    assert_int_equal(ifl_client_create(&c, &o, NULL), IFL_OK);
    want_client(c, IFL_CLIENT_CONNECTED, &ce);
    ifl_client_event_clear(&ce);
    make_pair(path_of("changed"), "learner", &other);
    assert_int_equal(ifl_key_pair_read(&own, path_of("good"), "good", NULL), IFL_OK);
    assert_int_equal(ifl_key_allow(path_of("changed"), "good", own.public_key, NULL), IFL_OK);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ifl_server_options so = server_options(endpoint);
    so.keys = path_of("changed");
    ifl_server *s = start_server(&so);
    want_client(c, IFL_CLIENT_LOST, &ce);
    ifl_client_event_clear(&ce);
    assert_int_equal(ifl_client_poll(c, 3000, &ce, NULL), IFL_AGAIN);
    ifl_server_free(s);
    so.keys = path_of("learner");
    s = start_server(&so);
    works(s, c, join(s, c));
    ifl_client_free(c);
    ifl_server_free(s);
}

static void test_strangers_are_turned_away_and_the_good_one_notices_nothing(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    ifl_client *c = start_client(s, "good", WAIT_MS);
    uint64_t peer = join(s, c);
    works(s, c, peer);
    ifl_server_stats before, after;
    ifl_server_stats_get(s, &before);
    turned_away(s, "bad", "inflight keys allow");
    turned_away(s, NULL, "transport.keys");
    /* The right key of its own, another learner's. */
    ifl_key_pair own, other;
    assert_int_equal(ifl_key_pair_read(&own, path_of("good"), "good", NULL), IFL_OK);
    assert_int_equal(ifl_key_pair_make(&other, NULL), IFL_OK);
    assert_int_equal(ifl_key_pair_write(&own, path_of("lost"), "good", NULL), IFL_OK);
    assert_int_equal(ifl_key_learner_write(path_of("lost"), other.public_key, NULL), IFL_OK);
    turned_away(s, "lost", "is not its key");
    quiet(s);
    for (int i = 0; i < WAIT_MS / 10; i++) {
        ifl_server_stats_get(s, &after);
        if (after.keys_refused > before.keys_refused && after.links_refused > before.links_refused)
            break;
        ifl_sleep_ms(10);
    }
    assert_true(after.keys_refused >= before.keys_refused + 1);
    assert_true(after.links_refused >= before.links_refused + 1);
    assert_true(after.joined == 1 && after.lost == 0 && after.rejected == 0 &&
                after.malformed == 0 && after.fenced == 0 && after.banned == 0);
    works(s, c, peer);
    ifl_client_free(c);
    ifl_server_free(s);
    /* The other way round: keys against a learner without. */
    so.keys = NULL;
    s = start_server(&so);
    turned_away(s, "good", "has no keys");
    ifl_server_free(s);
}

/* --- Noise ------------------------------------------------------------------------------------ */

static int tcp_open(const char *endpoint) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

/* Connections of a kind that no actor makes; each is closed again. */
static void noise(ifl_server *s, int n) {
    static const uint8_t greeting[64] = {0xff, 0, 0, 0,   0,   0,   0,   0,  1,
                                         0x7f, 3, 0, 'C', 'U', 'R', 'V', 'E'};
    static const uint8_t null_greeting[64] = {0xff, 0, 0, 0,   0,   0,   0,   0, 1,
                                              0x7f, 3, 0, 'N', 'U', 'L', 'L', 0};
    uint8_t junk[4096];
    for (size_t i = 0; i < sizeof junk; i++)
        junk[i] = (uint8_t)(i * 37 + 11);
    for (int i = 0; i < n; i++) {
        int fd = tcp_open(i & 1 ? ifl_server_endpoint(s) : ifl_server_weights_endpoint(s));
        ssize_t sent = 0;
        switch (i % 5) {
        case 0: /* a port scan */
            break;
        case 1:
            sent = send(fd, junk, sizeof junk, MSG_NOSIGNAL);
            break;
        case 2: /* a plain ZeroMQ peer */
            sent = send(fd, null_greeting, sizeof null_greeting, MSG_NOSIGNAL);
            break;
        case 3: /* CURVE, and then no sound HELLO */
            sent = send(fd, greeting, sizeof greeting, MSG_NOSIGNAL);
            sent += send(fd, junk, 300, MSG_NOSIGNAL);
            break;
        case 4: /* a greeting by half */
            sent = send(fd, greeting, 12, MSG_NOSIGNAL);
            break;
        }
        assert_true(sent >= 0);
        close(fd);
    }
}

/* DEALERs with keys of their own making, who also try to say something. */
static void strangers(ifl_server *s, int n) {
    char learner[IFL_KEY_TEXT_MAX];
    assert_int_equal(ifl_key_learner_read(learner, path_of("bad"), NULL), IFL_OK);
    void *zmq = zmq_ctx_new();
    void *sockets[16] = {0};
    int zero = 0;
    for (int i = 0; i < n; i++) {
        void **at = &sockets[i % 16];
        if (*at) zmq_close(*at);
        *at = zmq_socket(zmq, ZMQ_DEALER);
        ifl_key_pair pair;
        assert_int_equal(ifl_key_pair_make(&pair, NULL), IFL_OK);
        zmq_setsockopt(*at, ZMQ_LINGER, &zero, sizeof zero);
        zmq_setsockopt(*at, ZMQ_CURVE_SERVERKEY, learner, sizeof learner);
        zmq_setsockopt(*at, ZMQ_CURVE_PUBLICKEY, pair.public_key, sizeof pair.public_key);
        zmq_setsockopt(*at, ZMQ_CURVE_SECRETKEY, pair.secret_key, sizeof pair.secret_key);
        zmq_connect(*at, i & 1 ? ifl_server_endpoint(s) : ifl_server_weights_endpoint(s));
        zmq_send(*at, "let me in", 9, ZMQ_DONTWAIT);
    }
    ifl_sleep_ms(200);
    for (int i = 0; i < 16; i++)
        if (sockets[i]) zmq_close(sockets[i]);
    zmq_ctx_term(zmq);
}

static size_t memory_in_use(void) {
    return mallinfo2().uordblks + mallinfo2().hblkhd;
}

static int64_t refused(ifl_server *s) {
    ifl_server_stats stats;
    ifl_server_stats_get(s, &stats);
    return stats.keys_refused + stats.links_refused;
}

/* Until libzmq has done with what it was sent: nothing is counted any more. */
static void settle(ifl_server *s) {
    int64_t last = -1;
    for (int same = 0; same < 5;) {
        int64_t now = refused(s);
        same = now == last ? same + 1 : 0;
        last = now;
        ifl_sleep_ms(50);
    }
}

static void test_noise_leaves_no_session_and_no_memory(void **state) {
    (void)state;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    ifl_server *s = start_server(&so);
    ifl_client *c = start_client(s, "good", WAIT_MS);
    uint64_t peer = join(s, c);
    noise(s, 250); /* what libzmq and malloc take once */
    strangers(s, 50);
    settle(s);
    size_t before = memory_in_use();
    int64_t refused_before = refused(s);
    for (int i = 0; i < 4; i++) {
        noise(s, 500);
        strangers(s, 50);
    }
    settle(s);
    size_t after = memory_in_use();
    /* Some 2,200 links: less than 200 bytes for each would be a leak of any of its parts. */
    if (after > before + 400000) fail_msg("%zu bytes in use, %zu before", after, before);
    assert_true(refused(s) > refused_before + 500);
    quiet(s);
    ifl_server_stats stats;
    ifl_server_stats_get(s, &stats);
    assert_true(stats.joined == 1 && stats.lost == 0 && stats.malformed == 0 && stats.fenced == 0 &&
                stats.rejected == 0);
    works(s, c, peer);
    ifl_client_free(c);
    ifl_server_free(s);
}

/* --- The list changes ------------------------------------------------------------------------- */

static void test_list_is_read_again_for_newcomers_and_for_those_inside(void **state) {
    (void)state;
    atomic_uint hangups = 0;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.keys_reread = &hangups;
    ifl_server *s = start_server(&so);
    ifl_client *good = start_client(s, "good", WAIT_MS);
    uint64_t peer = join(s, good);
    ifl_key_pair bad;
    assert_int_equal(ifl_key_pair_read(&bad, path_of("bad"), "bad", NULL), IFL_OK);
    turned_away(s, "bad", "inflight keys allow");
    assert_int_equal(ifl_key_allow(path_of("learner"), "bad", bad.public_key, NULL), IFL_OK);
    ifl_client *c = NULL;
    ifl_client_event ce = {.kind = IFL_CLIENT_UNAUTHORISED};
    for (int64_t until = ifl_clock_ns() + WAIT_MS * (int64_t)1000000;
         ce.kind == IFL_CLIENT_UNAUTHORISED && ifl_clock_ns() < until;) {
        ifl_client_free(c);
        c = start_client(s, "bad", 1500);
        assert_int_equal(ifl_client_poll(c, WAIT_MS, &ce, NULL), IFL_OK);
    }
    assert_int_equal(ce.kind, IFL_CLIENT_CONNECTED);
    ifl_client_event_clear(&ce);
    ifl_server_event se;
    want_server(s, IFL_SERVER_JOINED, &se);
    ifl_server_event_clear(&se);

    /* Off the list: its session ends, and it is not let in again; the other one stays. */
    assert_int_equal(ifl_key_revoke(path_of("learner"), "bad", NULL), IFL_OK);
    want_server(s, IFL_SERVER_LOST, &se);
    assert_non_null(strstr(se.text, "list"));
    want_client(c, IFL_CLIENT_LOST, &ce);
    want_client(c, IFL_CLIENT_UNAUTHORISED, &ce); /* at its deadline */
    ifl_client_free(c);
    works(s, good, peer);

    /* Another key in the same file moves no folder's time; a word from outside does. */
    ifl_key_pair own;
    assert_int_equal(ifl_key_pair_read(&own, path_of("good"), "good", NULL), IFL_OK);
    ifl_sleep_ms(2500); /* so that the folder's time is old */
    write_file(path_of("learner/actors/good.public"), bad.public_key, 0644);
    atomic_fetch_add(&hangups, 1);
    want_server(s, IFL_SERVER_LOST, &se);
    want_client(good, IFL_CLIENT_LOST, &ce);
    write_file(path_of("learner/actors/good.public"), own.public_key, 0644);
    atomic_fetch_add(&hangups, 1);
    join(s, good);
    ifl_client_free(good);
    ifl_server_free(s);
}

static void test_list_that_cannot_be_read_stays_as_it_was(void **state) {
    (void)state;
    atomic_uint hangups = 0;
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.keys_reread = &hangups;
    ifl_server *s = start_server(&so);
    write_file(path_of("learner/actors/broken.public"), "rubbish\n", 0644);
    atomic_fetch_add(&hangups, 1);
    ifl_sleep_ms(800);
    ifl_client *c = start_client(s, "good", WAIT_MS);
    works(s, c, join(s, c));
    unlink(path_of("learner/actors/broken.public"));
    ifl_client_free(c);
    ifl_server_free(s);
}

/* --- One key in the name of another ----------------------------------------------------------- */

typedef struct raw_actor {
    void *zmq, *socket;
    uint64_t session;
} raw_actor;

static const uint8_t raw_identity[16] = {0x77, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static void raw_open(raw_actor *a, ifl_server *s, const char *folder, const char *name) {
    ifl_key_pair own;
    char learner[IFL_KEY_TEXT_MAX];
    int zero = 0, wait = WAIT_MS, never = -1;
    assert_int_equal(ifl_key_pair_read(&own, folder, name, NULL), IFL_OK);
    assert_int_equal(ifl_key_learner_read(learner, path_of("good"), NULL), IFL_OK);
    a->zmq = zmq_ctx_new();
    a->socket = zmq_socket(a->zmq, ZMQ_DEALER);
    a->session = 0;
    zmq_setsockopt(a->socket, ZMQ_ROUTING_ID, raw_identity, 16);
    zmq_setsockopt(a->socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(a->socket, ZMQ_RCVTIMEO, &wait, sizeof wait);
    zmq_setsockopt(a->socket, ZMQ_RECONNECT_IVL, &never, sizeof never);
    zmq_setsockopt(a->socket, ZMQ_CURVE_SERVERKEY, learner, sizeof learner);
    zmq_setsockopt(a->socket, ZMQ_CURVE_PUBLICKEY, own.public_key, sizeof own.public_key);
    zmq_setsockopt(a->socket, ZMQ_CURVE_SECRETKEY, own.secret_key, sizeof own.secret_key);
    assert_int_equal(zmq_connect(a->socket, ifl_server_endpoint(s)), 0);
}

static void raw_close(raw_actor *a) {
    zmq_close(a->socket);
    zmq_ctx_term(a->zmq);
}

static void raw_send(raw_actor *a, const ifl_message *m, uint64_t seq) {
    ifl_wire_frames f;
    uint8_t head[64];
    assert_int_equal(ifl_wire_encode(m, &f, NULL), IFL_OK);
    ifl_wire_header h = {.major = 1,
                         .type = f.type,
                         .n_meta = (uint32_t)f.n_meta,
                         .session = a->session,
                         .seq = seq,
                         .policy = -1};
    ifl_wire_header_encode(&h, f.meta, head);
    zmq_send(a->socket, head, 64, ZMQ_SNDMORE);
    zmq_send(a->socket, f.meta, f.n_meta, 0);
    ifl_wire_frames_clear(&f);
}

static void raw_hello(raw_actor *a) {
    ifl_message m = ifl_message_make(IFL_WIRE_HELLO);
    m.hello.major = 1;
    m.hello.fingerprint = (ifl_hash){1, 1};
    m.hello.held_version = -1;
    memcpy(m.hello.incarnation, raw_identity, 16);
    strcpy(m.hello.name, "raw");
    raw_send(a, &m, 1);
}

static int raw_receive(raw_actor *a, ifl_message *m) {
    uint8_t head[64], meta[65536];
    int n_head = zmq_recv(a->socket, head, sizeof head, 0);
    if (n_head < 0) fail_msg("no answer");
    int n_meta = zmq_recv(a->socket, meta, sizeof meta, 0);
    ifl_wire_header h;
    assert_int_equal(ifl_wire_header_decode(&h, head, (size_t)n_head, meta, (size_t)n_meta, NULL),
                     IFL_OK);
    assert_int_equal(ifl_wire_decode(m, &h, meta, (size_t)n_meta, NULL, 0, NULL), IFL_OK);
    return (int)m->type;
}

static void test_another_key_neither_speaks_for_a_session_nor_takes_it(void **state) {
    (void)state;
    ifl_key_pair thief;
    make_pair(path_of("learner"), "thief", &thief);
    assert_int_equal(ifl_key_allow(path_of("learner"), "thief", thief.public_key, NULL), IFL_OK);
    ifl_server_options so = server_options("tcp://127.0.0.1:*");
    so.heartbeat_misses = 200; /* the victim doesn't ping: this is not about silence */
    ifl_server *s = start_server(&so);
    raw_actor victim, other;
    ifl_message m;
    ifl_server_event se;
    raw_open(&victim, s, path_of("good"), "good");
    raw_hello(&victim);
    assert_int_equal(raw_receive(&victim, &m), IFL_WIRE_WELCOME);
    victim.session = m.session;
    want_server(s, IFL_SERVER_JOINED, &se);
    ifl_server_event_clear(&se);

    /* Let in by a key of its own, with the victim's identity, session and sequence. */
    raw_open(&other, s, path_of("learner"), "thief");
    other.session = victim.session;
    ifl_message bye = ifl_message_make(IFL_WIRE_BYE);
    bye.bye.code = IFL_BYE_DONE;
    raw_send(&other, &bye, 1);
    assert_int_equal(raw_receive(&other, &m), IFL_WIRE_ERROR);
    assert_int_equal(m.error.code, IFL_WIRE_E_FENCED);
    raw_hello(&other);
    assert_int_equal(raw_receive(&other, &m), IFL_WIRE_ERROR);
    zmq_send(other.socket, "rubbish", 7, 0); /* would end a session of its own */
    assert_int_equal(raw_receive(&other, &m), IFL_WIRE_ERROR);
    raw_close(&other);
    quiet(s);
    ifl_peer_info info;
    assert_int_equal(ifl_server_peers(s, &info, 1), 1);
    assert_true(info.peer == victim.session);
    ifl_server_stats stats;
    ifl_server_stats_get(s, &stats);
    assert_true(stats.key_conflicts == 3 && stats.joined == 1 && stats.lost == 0 &&
                stats.malformed == 0);

    /* The victim finds its way back (its link was cut); its sequence goes on where it was. */
    uint64_t session = victim.session;
    raw_close(&victim);
    raw_open(&victim, s, path_of("good"), "good");
    victim.session = session;
    ifl_message ping = ifl_message_make(IFL_WIRE_PING);
    raw_send(&victim, &ping, 1);
    assert_int_equal(raw_receive(&victim, &m), IFL_WIRE_PONG);
    raw_close(&victim);
    ifl_server_free(s);
    assert_int_equal(ifl_key_revoke(path_of("learner"), "thief", NULL), IFL_OK);
}

int main(void) {
    ifl_log_setup("test", IFL_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_secrets_are_written_for_their_user_alone_and_never_twice),
        cmocka_unit_test(test_secret_that_others_may_read_is_refused),
        cmocka_unit_test(test_list_takes_whole_keys_and_no_others_hand),
        cmocka_unit_test(test_actor_finds_its_own_key),
        cmocka_unit_test(test_allowed_key_works_on_both_planes),
        cmocka_unit_test(test_other_addresses_need_keys_or_a_word_for_it),
        cmocka_unit_test(test_a_wrong_learner_key_is_told_long_before_the_deadline),
        cmocka_unit_test(
            test_a_learner_of_another_key_is_waited_for_by_who_has_been_there),
        cmocka_unit_test(test_strangers_are_turned_away_and_the_good_one_notices_nothing),
        cmocka_unit_test(test_noise_leaves_no_session_and_no_memory),
        cmocka_unit_test(test_list_is_read_again_for_newcomers_and_for_those_inside),
        cmocka_unit_test(test_list_that_cannot_be_read_stays_as_it_was),
        cmocka_unit_test(test_another_key_neither_speaks_for_a_session_nor_takes_it),
    };
    return cmocka_run_group_tests(tests, make_hosts, remove_all);
}
