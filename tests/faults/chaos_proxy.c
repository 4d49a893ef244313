/* A TCP proxy that misbehaves on request, for the links of a job: each lane stands for one actor
 * and forwards two ports, control and weights, to the learner's.
 *
 *     chaos_proxy --to PORT --listen PORT[,PORT ...] [--seed N]
 *
 * Lane 0 listens on the first PORT (and PORT + 1 for weights), lane 1 on the second, and so on. A
 * command is a line on standard input:
 *
 *     LANE PLANE DIRECTION ACTION [NUMBER [MS]]
 *
 *     LANE       a number, or * for all          PLANE      control, weights, both
 *     DIRECTION  up (to the learner), down, both
 *
 *     stall MS           not a byte passes for so long; connections stand and new ones are taken.
 *                        both = a partition, up or down = one-way loss
 *     rate BYTES_S MS    no more bytes a second than that, for so long
 *     delay LATER MS     every byte comes LATER ms late, for so long
 *     cut                connections are reset on both sides
 *     half-open          the learner's side is closed; the actor's stands and swallows what comes
 *     flip BYTES         one bit of the byte that comes after so many is another (which, by seed)
 *     flip-header TYPE   the same somewhere in the header of the next message of that type of the
 *                        wire's ...
 *     flip-payload TYPE  ... or in its payload; both want links without keys
 *     truncate BYTES     after so many bytes both sides close, in the middle of what is under way
 *     duplicate          all that a live connection has sent up so far, once more on another one
 *     replay             the same with a connection that has ended
 *     clear              everything is lifted
 *
 * and `quit`. What it does is told as JSON lines on standard output ("did": once it has taken
 * place, so that a stall says nothing before it has held a byte up); the same seed, traffic and
 * commands give the same bits. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rng.h"
#include "common/wire.h"

#define LANES_MAX 16
#define LINKS_MAX 512
#define READ_BYTES 16384
#define QUEUE_BYTES_MAX (256 * 1024)
#define CAPTURE_BYTES 65536
#define COPY_MS 500        /* how long a copied connection stays open */
#define COPY_ANSWER_MS 100 /* in which its handshake is answered; what comes sooner ends it */
#define ZMTP_GREETING 64

enum { UP, DOWN };
static const char *const plane_names[] = {"control", "weights"};
static const char *const direction_names[] = {"up", "down"};

/* Bytes on their way, due at a time. */
typedef struct block {
    struct block *next;
    int64_t due_ns;
    size_t at, n;
    uint8_t bytes[];
} block;

/* What is ordered for one direction of one plane of one lane. */
typedef struct disorder {
    int64_t stall_until_ns, rate_until_ns, delay_until_ns;
    int64_t rate, delay_ms;
    double tokens; /* bytes that the rate lets pass */
    int64_t tokens_ns;
    int64_t flip_after, truncate_after; /* bytes from now; -1 = none */
    int aim_type;                       /* of the message that is to be flipped; 0 = none */
    bool aim_payload;
    bool told; /* that bytes have been held up */
} disorder;

typedef struct pipe_state {
    block *head, **tail;
    size_t n_queued;
    bool ended; /* its source has closed; the rest still goes out */
} pipe_state;

typedef struct link_pair {
    int fd[2]; /* UP: the actor's, DOWN: the learner's: what each is read for */
    int lane, plane;
    bool swallow; /* half-open: the actor's side alone */
    bool copy;    /* of another's bytes: closes at close_ns */
    int64_t close_ns;
    pipe_state pipes[2];
    uint8_t *capture; /* first bytes that went up */
    size_t n_capture;
    int64_t number;
} link_pair;

static int n_lanes, listeners[LANES_MAX][2], to_port;
static disorder disorders[LANES_MAX][2][2];
static uint8_t *ended_capture[LANES_MAX][2];
static size_t n_ended_capture[LANES_MAX][2];
static link_pair *links[LINKS_MAX];
static int n_links;
static int64_t n_opened, n_drawn;
static uint64_t seed = 1;
static int64_t begin_ns;

__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...) {
    va_list args;
    printf("{\"ms\":%lld,", (long long)((ifl_clock_ns() - begin_ns) / 1000000));
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    puts("}");
    fflush(stdout);
}

static uint64_t draw(uint64_t n) {
    ifl_rng_key key = {seed, 0, IFL_RNG_TEST};
    return ifl_rng_below(&key, (uint64_t)n_drawn++, 0, n);
}

static struct sockaddr_in address_of(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void prepare(int fd) {
    int on = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int listen_on(int port) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = address_of(port);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128)) {
        fprintf(stderr, "chaos_proxy: port %d: %s\n", port, strerror(errno));
        exit(74);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static int connect_up(int plane) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = address_of(to_port + plane);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) { /* loopback: at once */
        close(fd);
        return -1;
    }
    prepare(fd);
    return fd;
}

static void close_fd(int *fd, bool reset) {
    if (*fd < 0) return;
    struct linger now = {1, 0};
    if (reset) setsockopt(*fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(*fd);
    *fd = -1;
}

static void pipe_clear(pipe_state *p) {
    for (block *b; (b = p->head);) {
        p->head = b->next;
        free(b);
    }
    p->tail = &p->head;
    p->n_queued = 0;
}

static void link_close(link_pair *l, bool reset) {
    close_fd(&l->fd[UP], reset);
    close_fd(&l->fd[DOWN], reset);
}

static void link_free(int i) {
    link_pair *l = links[i];
    link_close(l, false);
    pipe_clear(&l->pipes[UP]);
    pipe_clear(&l->pipes[DOWN]);
    if (!l->copy && l->n_capture > 0) {
        free(ended_capture[l->lane][l->plane]);
        ended_capture[l->lane][l->plane] = l->capture;
        n_ended_capture[l->lane][l->plane] = l->n_capture;
    } else {
        free(l->capture);
    }
    free(l);
    links[i] = links[--n_links];
}

static link_pair *link_add(int lane, int plane, int actor, int learner) {
    link_pair *l = n_links < LINKS_MAX ? calloc(1, sizeof *l) : NULL;
    if (!l) {
        close_fd(&actor, true);
        close_fd(&learner, true);
        return NULL;
    }
    *l = (link_pair){.fd = {actor, learner}, .lane = lane, .plane = plane, .number = n_opened++};
    l->pipes[UP].tail = &l->pipes[UP].head;
    l->pipes[DOWN].tail = &l->pipes[DOWN].head;
    links[n_links++] = l;
    return l;
}

static void accept_one(int lane, int plane) {
    int actor = accept4(listeners[lane][plane], NULL, NULL, SOCK_CLOEXEC);
    if (actor < 0) return;
    prepare(actor);
    int learner = connect_up(plane);
    if (learner < 0) { /* as the learner's own port would answer */
        close_fd(&actor, true);
        return;
    }
    link_add(lane, plane, actor, learner);
}

static void pipe_put(pipe_state *p, const uint8_t *bytes, size_t n, int64_t due_ns) {
    block *b = malloc(sizeof *b + n);
    if (!b) exit(70);
    b->next = NULL;
    b->due_ns = due_ns;
    b->at = 0;
    b->n = n;
    memcpy(b->bytes, bytes, n);
    *p->tail = b;
    p->tail = &b->next;
    p->n_queued += n;
}

/* Bytes that ZMTP puts in front of a frame of n. */
static size_t frame_head(uint64_t n) {
    return n > 255 ? 9 : 2;
}

/* Where in these bytes, or how far behind them, lies what a flip is aimed at; -1 = not here. A
 * header that is torn between two reads is passed over: the next one will do. */
static int64_t aim(const disorder *d, const uint8_t *bytes, size_t n) {
    static const uint8_t magic[4] = {'I', 'F', 'L', '1'};
    for (size_t i = 0; i + IFL_WIRE_HEADER_BYTES <= n; i++) {
        const uint8_t *h = bytes + i;
        uint16_t type;
        uint32_t n_meta;
        uint64_t n_payload;
        if (memcmp(h, magic, sizeof magic) != 0) continue;
        memcpy(&type, h + 6, sizeof type);
        memcpy(&n_meta, h + 12, sizeof n_meta);
        memcpy(&n_payload, h + 16, sizeof n_payload);
        if (type != d->aim_type || (d->aim_payload && n_payload == 0)) continue;
        if (!d->aim_payload) return (int64_t)(i + draw(IFL_WIRE_HEADER_BYTES));
        return (int64_t)(i + IFL_WIRE_HEADER_BYTES + frame_head(n_meta) + n_meta +
                         frame_head(n_payload) + draw(n_payload));
    }
    return -1;
}

/* Flips and truncations count bytes as they are read. */
static void link_read(link_pair *l, int direction, int64_t now) {
    uint8_t bytes[READ_BYTES];
    disorder *d = &disorders[l->lane][l->plane][direction];
    ssize_t n = read(l->fd[direction], bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        close_fd(&l->fd[direction], n < 0);
        l->pipes[direction].ended = true;
        if (l->swallow) link_close(l, false);
        return;
    }
    if (l->swallow || l->copy) return; /* the learner's words to a copy have no reader */
    if (d->aim_type && (d->flip_after = aim(d, bytes, (size_t)n)) >= 0) d->aim_type = 0;
    if (d->flip_after >= 0 && d->flip_after < n) {
        int bit = (int)draw(8);
        bytes[d->flip_after] ^= (uint8_t)(1 << bit);
        tell("\"did\":\"flip\",\"lane\":%d,\"plane\":\"%s\",\"direction\":\"%s\",\"link\":%lld,"
             "\"bit\":%d",
             l->lane, plane_names[l->plane], direction_names[direction], (long long)l->number, bit);
        d->flip_after = -1;
    } else if (d->flip_after >= 0) {
        d->flip_after -= n;
    }
    bool truncated = d->truncate_after >= 0 && d->truncate_after < n;
    if (truncated)
        n = d->truncate_after;
    else if (d->truncate_after >= 0)
        d->truncate_after -= n;
    if (direction == UP && l->n_capture < CAPTURE_BYTES) {
        if (!l->capture && !(l->capture = malloc(CAPTURE_BYTES))) exit(70);
        size_t room = CAPTURE_BYTES - l->n_capture, take = (size_t)n < room ? (size_t)n : room;
        memcpy(l->capture + l->n_capture, bytes, take);
        l->n_capture += take;
    }
    int64_t due = now < d->delay_until_ns ? now + d->delay_ms * 1000000 : now;
    if (n > 0) pipe_put(&l->pipes[direction], bytes, (size_t)n, due);
    if (truncated) {
        tell("\"did\":\"truncate\",\"lane\":%d,\"plane\":\"%s\",\"direction\":\"%s\",\"link\":%lld",
             l->lane, plane_names[l->plane], direction_names[direction], (long long)l->number);
        d->truncate_after = -1;
        l->pipes[direction].ended = true; /* what came before still arrives */
        close_fd(&l->fd[direction], false);
    }
}

static void held_up(const link_pair *l, disorder *d, int direction, const char *what) {
    if (d->told) return;
    d->told = true;
    tell("\"did\":\"%s\",\"lane\":%d,\"plane\":\"%s\",\"direction\":\"%s\",\"link\":%lld", what,
         l->lane, plane_names[l->plane], direction_names[direction], (long long)l->number);
}

static size_t rate_allows(disorder *d, size_t n, int64_t now) {
    if (now >= d->rate_until_ns) return n;
    d->tokens += (double)(now - d->tokens_ns) * 1e-9 * (double)d->rate;
    if (d->tokens > (double)d->rate / 4) d->tokens = (double)d->rate / 4;
    d->tokens_ns = now;
    return d->tokens < 1.0 ? 0 : d->tokens < (double)n ? (size_t)d->tokens : n;
}

static void link_write(link_pair *l, int direction, int64_t now) {
    pipe_state *p = &l->pipes[direction];
    disorder *d = &disorders[l->lane][l->plane][direction];
    int fd = l->fd[!direction];
    if (!l->copy && now < d->stall_until_ns) {
        if (p->head) held_up(l, d, direction, "stall");
        return;
    }
    for (block *b; fd >= 0 && (b = p->head) && b->due_ns <= now;) {
        size_t n = rate_allows(d, b->n - b->at, now);
        if (n < b->n - b->at) held_up(l, d, direction, "rate");
        ssize_t m = n ? send(fd, b->bytes + b->at, n, MSG_NOSIGNAL) : 0;
        if (m < 0 && errno != EAGAIN && errno != EINTR) {
            link_close(l, false);
            return;
        }
        if (m <= 0) return;
        d->tokens -= (double)m;
        b->at += (size_t)m;
        p->n_queued -= (size_t)m;
        if (b->at < b->n) return;
        p->head = b->next;
        if (!p->head) p->tail = &p->head;
        free(b);
    }
    if (p->ended && !p->head && !l->swallow && !l->copy) link_close(l, false);
}

/* --- Commands --------------------------------------------------------------------------------- */

/* Bytes of a stream's handshake that come before an answer: the greeting and one short command. */
static size_t copy_handshake(const uint8_t *bytes, size_t n) {
    size_t end = n > ZMTP_GREETING + 1 ? (size_t)ZMTP_GREETING + 2 + bytes[ZMTP_GREETING + 1] : n;
    return end < n ? end : n;
}

static void copy_up(int lane, int plane, const uint8_t *bytes, size_t n, const char *what,
                    int64_t now) {
    int learner = n ? connect_up(plane) : -1;
    if (learner < 0) return;
    link_pair *l = link_add(lane, plane, -1, learner);
    if (!l) return;
    l->copy = true;
    l->close_ns = now + (int64_t)COPY_MS * 1000000;
    size_t first = copy_handshake(bytes, n);
    pipe_put(&l->pipes[UP], bytes, first, now);
    if (n > first)
        pipe_put(&l->pipes[UP], bytes + first, n - first, now + (int64_t)COPY_ANSWER_MS * 1000000);
    tell("\"did\":\"%s\",\"lane\":%d,\"plane\":\"%s\",\"bytes\":%zu", what, lane,
         plane_names[plane], n);
}

static void act_on_links(int lane, int plane, const char *action, int64_t now) {
    int n = n_links;
    for (int i = 0; i < n; i++) {
        link_pair *l = links[i];
        if (l->lane != lane || l->plane != plane || l->copy) continue;
        if (!strcmp(action, "cut")) {
            link_close(l, true);
        } else if (!strcmp(action, "half-open")) {
            l->swallow = true;
            close_fd(&l->fd[DOWN], false);
            pipe_clear(&l->pipes[UP]);
        } else {
            copy_up(lane, plane, l->capture, l->n_capture, "duplicate", now);
            continue;
        }
        tell("\"did\":\"%s\",\"lane\":%d,\"plane\":\"%s\",\"link\":%lld", action, lane,
             plane_names[plane], (long long)l->number);
    }
}

static bool act_on_direction(disorder *d, const char *action, long long a, long long b,
                             int64_t now) {
    d->told = false;
    if (!strcmp(action, "stall")) {
        d->stall_until_ns = now + a * 1000000;
    } else if (!strcmp(action, "rate")) {
        d->rate = a;
        d->tokens = 0;
        d->tokens_ns = now;
        d->rate_until_ns = now + b * 1000000;
    } else if (!strcmp(action, "delay")) {
        d->delay_ms = a;
        d->delay_until_ns = now + b * 1000000;
    } else if (!strcmp(action, "flip")) {
        d->flip_after = a;
    } else if (!strcmp(action, "flip-header") || !strcmp(action, "flip-payload")) {
        d->aim_type = (int)a;
        d->aim_payload = action[5] == 'p';
    } else if (!strcmp(action, "truncate")) {
        d->truncate_after = a;
    } else if (!strcmp(action, "clear")) {
        *d = (disorder){.flip_after = -1, .truncate_after = -1};
    } else {
        return false;
    }
    return true;
}

/* False: quit. */
static bool command_do(const char *line) {
    char lane_text[16], plane[16], direction[16], action[16];
    long long a = 0, b = 0;
    if (!strcmp(line, "quit")) return false;
    int n =
        sscanf(line, "%15s %15s %15s %15s %lld %lld", lane_text, plane, direction, action, &a, &b);
    int64_t now = ifl_clock_ns();
    bool known = n >= 4;
    for (int lane = 0; known && lane < n_lanes; lane++) {
        char *end;
        if (strcmp(lane_text, "*") != 0 && (strtol(lane_text, &end, 10) != lane || *end)) continue;
        for (int p = 0; p < 2; p++) {
            if (strcmp(plane, "both") != 0 && strcmp(plane, plane_names[p]) != 0) continue;
            if (!strcmp(action, "replay")) {
                copy_up(lane, p, ended_capture[lane][p], n_ended_capture[lane][p], "replay", now);
                continue;
            }
            if (!strcmp(action, "cut") || !strcmp(action, "half-open") ||
                !strcmp(action, "duplicate")) {
                act_on_links(lane, p, action, now);
                continue;
            }
            for (int d = 0; d < 2 && known; d++)
                if (!strcmp(direction, "both") || !strcmp(direction, direction_names[d]))
                    known = act_on_direction(&disorders[lane][p][d], action, a, b, now);
        }
    }
    char shown[128];
    snprintf(shown, sizeof shown, "%s", line);
    for (char *c = shown; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < 0x20) *c = '?';
    tell("\"%s\":\"%s\"", known ? "told" : "not understood", shown);
    return true;
}

static bool commands_read(void) {
    static char text[4096];
    static size_t n;
    ssize_t m = read(STDIN_FILENO, text + n, sizeof text - 1 - n);
    if (m == 0) return false;
    if (m > 0) n += (size_t)m;
    text[n] = '\0';
    for (char *end; (end = strchr(text, '\n'));) {
        *end = '\0';
        if (!command_do(text)) return false;
        n -= (size_t)(end + 1 - text);
        memmove(text, end + 1, n + 1);
    }
    if (n == sizeof text - 1) n = 0; /* no line is so long */
    return true;
}

/* --- The loop --------------------------------------------------------------------------------- */

static void turn(void) {
    static struct pollfd fds[1 + 2 * LANES_MAX + 2 * LINKS_MAX];
    int n = 0, at_links, n_before = n_links;
    int64_t now = ifl_clock_ns();
    bool timed = false;
    fds[n++] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
    for (int lane = 0; lane < n_lanes; lane++)
        for (int p = 0; p < 2; p++)
            fds[n++] = (struct pollfd){listeners[lane][p], POLLIN, 0};
    at_links = n;
    for (int i = 0; i < n_links; i++)
        for (int d = 0; d < 2; d++) {
            link_pair *l = links[i];
            short events = l->pipes[d].n_queued < QUEUE_BYTES_MAX ? POLLIN : 0;
            timed |= l->pipes[d].head != NULL || l->copy;
            fds[n++] = (struct pollfd){l->fd[d], events, 0};
        }
    if (poll(fds, (nfds_t)n, timed ? 2 : 200) < 0 && errno != EINTR) exit(70);
    now = ifl_clock_ns();
    if ((fds[0].revents & (POLLIN | POLLHUP)) && !commands_read()) exit(0);
    for (int lane = 0; lane < n_lanes; lane++)
        for (int p = 0; p < 2; p++)
            if (fds[1 + 2 * lane + p].revents & POLLIN) accept_one(lane, p);
    for (int i = 0; i < n_before; i++)
        for (int d = 0; d < 2; d++) {
            link_pair *l = links[i];
            if (l->fd[d] >= 0 && (fds[at_links + 2 * i + d].revents & (POLLIN | POLLHUP | POLLERR)))
                link_read(l, d, now);
        }
    for (int i = 0; i < n_links; i++)
        for (int d = 0; d < 2; d++)
            link_write(links[i], d, now);
    for (int i = n_links - 1; i >= 0; i--) {
        link_pair *l = links[i];
        if (l->copy && now > l->close_ns) link_close(l, true);
        if (l->swallow && l->fd[UP] < 0)
            tell("\"did\":\"closed\",\"lane\":%d,\"plane\":\"%s\",\"link\":%lld", l->lane,
                 plane_names[l->plane], (long long)l->number);
        if (l->copy      ? l->fd[DOWN] < 0
            : l->swallow ? l->fd[UP] < 0
                         : l->fd[UP] < 0 && l->fd[DOWN] < 0)
            link_free(i);
        else if (!l->copy && !l->swallow && (l->fd[UP] < 0 || l->fd[DOWN] < 0)) {
            /* One side has closed: the other is told when what was under way has arrived. */
            int gone = l->fd[UP] < 0 ? UP : DOWN;
            if (!l->pipes[gone].head) link_free(i);
        }
    }
}

static int number_of(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < 0 || value > 65534) {
        fprintf(stderr, "chaos_proxy: got \"%s\", wanted a number\n", text);
        exit(64);
    }
    return (int)value;
}

int main(int argc, char **argv) {
    begin_ns = ifl_clock_ns();
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--to")) {
            to_port = number_of(argv[i + 1]);
        } else if (!strcmp(argv[i], "--seed")) {
            seed = strtoull(argv[i + 1], NULL, 10);
        } else if (!strcmp(argv[i], "--listen")) {
            for (char *port = strtok(argv[i + 1], ","); port && n_lanes < LANES_MAX;
                 port = strtok(NULL, ",")) {
                int number = number_of(port);
                listeners[n_lanes][0] = listen_on(number);
                listeners[n_lanes++][1] = listen_on(number + 1);
            }
        }
    }
    if (!to_port || !n_lanes) {
        fprintf(stderr, "usage: chaos_proxy --to PORT --listen PORT[,PORT ...] [--seed N]\n");
        return 64;
    }
    command_do("* both both clear");
    for (;;)
        turn();
}
