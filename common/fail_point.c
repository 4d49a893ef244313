#include "common/fail_point.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rng.h"

#define TEXT_MAX 4096

typedef enum { ACT_NONE, ACT_KILL, ACT_EXIT, ACT_SLEEP, ACT_ERROR, ACT_TEAR, ACT_JUMP } act_kind;

typedef struct armed_point {
    act_kind act;
    int64_t value; /* exit status, ms, errno */
    int64_t from;  /* passing, from 1; or the chance's denominator */
    bool on;       /* and all after it */
    bool drawn;    /* by chance, from `seed` */
    uint64_t seed;
    int64_t n_passed;
} armed_point;

static const struct {
    const char *name, *takes, *where;
} points[IFL_FAIL_POINT_COUNT] = {
#define POINT_ROW(id, name, takes, where) {name, takes, where},
    IFL_FAIL_POINTS(POINT_ROW)
#undef POINT_ROW
};

static const struct {
    const char *name;
    int number;
} errors[] = {
    {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"ENOMEM", ENOMEM}, {"EROFS", EROFS}};

atomic_bool ifl_fail_points_armed;
static atomic_bool reload; /* SIGUSR2 has come */
static _Atomic int64_t wall_offset_ms;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards `armed` */
static armed_point armed[IFL_FAIL_POINT_COUNT];
static char file[TEXT_MAX]; /* "" = armed by the variable's own text */

/* --- Reading the text ------------------------------------------------------------------------- */

static ifl_status refuse_name(const char *name, size_t n, ifl_error *err) {
    char list[900] = "";
    size_t at = 0;
    for (int i = 0; i < IFL_FAIL_POINT_COUNT && at < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? " " : "", points[i].name);
    return ifl_fail(err, IFL_USAGE, "fail point \"%.*s\": there is none of that name; known: %s",
                    (int)(n > 40 ? 40 : n), name, list);
}

/* A decimal number; moves *at behind it. */
static bool number_take(const char **at, int64_t *out) {
    char *end;
    if (!isdigit((unsigned char)**at) && !(**at == '-' && isdigit((unsigned char)(*at)[1])))
        return false;
    errno = 0;
    *out = strtoll(*at, &end, 10);
    *at = end;
    return errno == 0;
}

/* "(N)" behind an action. */
static bool argument_take(const char **at, int64_t min, int64_t max, int64_t *out) {
    if (**at != '(') return false;
    ++*at;
    return number_take(at, out) && *out >= min && *out <= max && *(*at)++ == ')';
}

static bool word_take(const char **at, const char *word) {
    size_t n = strlen(word);
    if (strncmp(*at, word, n) != 0 || isalpha((unsigned char)(*at)[n])) return false;
    *at += n;
    return true;
}

static bool error_take(const char **at, int64_t *out) {
    if (*(*at)++ != '(') return false;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (!word_take(at, errors[i].name)) continue;
        *out = errors[i].number;
        return *(*at)++ == ')';
    }
    return false;
}

static bool act_take(const char **at, const char *takes, armed_point *out) {
    if (word_take(at, "kill")) {
        out->act = ACT_KILL;
        return true;
    }
    if (word_take(at, "exit")) {
        out->act = ACT_EXIT;
        return argument_take(at, 0, 255, &out->value);
    }
    if (word_take(at, "sleep")) {
        out->act = ACT_SLEEP;
        return argument_take(at, 0, 600000, &out->value);
    }
    if (strchr(takes, 'E') && word_take(at, "error")) {
        out->act = ACT_ERROR;
        return error_take(at, &out->value);
    }
    if (strchr(takes, 'T') && word_take(at, "tear")) {
        out->act = ACT_TEAR;
        return true;
    }
    if (strchr(takes, 'J') && word_take(at, "jump")) {
        out->act = ACT_JUMP;
        return argument_take(at, -86400000ll * 366, 86400000ll * 366, &out->value);
    }
    return false;
}

static bool when_take(const char **at, armed_point *out) {
    out->from = 1;
    if (**at != '@') return true;
    ++*at;
    if (!number_take(at, &out->from) || out->from < 1) return false;
    int64_t seed;
    if (**at == '+') {
        out->on = true;
        ++*at;
    } else if (**at == '/') {
        ++*at;
        if (!number_take(at, &seed)) return false;
        out->drawn = true;
        out->seed = (uint64_t)seed;
    }
    return true;
}

static ifl_status text_read(armed_point out[IFL_FAIL_POINT_COUNT], const char *text,
                            ifl_error *err) {
    memset(out, 0, sizeof *out * IFL_FAIL_POINT_COUNT);
    for (const char *at = text + strspn(text, "; \n"); *at; at += strspn(at, "; \n")) {
        const char *term = at;
        size_t n = strcspn(at, "=; \n");
        int id = 0;
        while (id < IFL_FAIL_POINT_COUNT &&
               (strlen(points[id].name) != n || strncmp(points[id].name, at, n) != 0))
            id++;
        if (id == IFL_FAIL_POINT_COUNT) return refuse_name(at, n, err);
        armed_point p = {0};
        at += n;
        if (*at++ != '=' || !act_take(&at, points[id].takes, &p) || !when_take(&at, &p) ||
            !strchr("; \n", *at))
            return ifl_fail(err, IFL_USAGE,
                            "fail point \"%.60s\": wanted name=action[@N | @N+ | @N/seed], action: "
                            "kill, exit(N), sleep(MS)%s%s%s",
                            term,
                            strchr(points[id].takes, 'E') ? ", error(EIO | ENOSPC | ...)" : "",
                            strchr(points[id].takes, 'T') ? ", tear" : "",
                            strchr(points[id].takes, 'J') ? ", jump(MS)" : "");
        out[id] = p;
    }
    return IFL_OK;
}

ifl_status ifl_fail_points_arm(const char *text, ifl_error *err) {
    armed_point fresh[IFL_FAIL_POINT_COUNT];
    IFL_TRY(text_read(fresh, text, err));
    bool any = false;
    for (int i = 0; i < IFL_FAIL_POINT_COUNT; i++)
        any |= fresh[i].act != ACT_NONE;
    pthread_mutex_lock(&lock);
    memcpy(armed, fresh, sizeof armed);
    atomic_store(&ifl_fail_points_armed, any);
    pthread_mutex_unlock(&lock);
    return IFL_OK;
}

static ifl_status file_arm(ifl_error *err) {
    char text[TEXT_MAX];
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    int saved = errno;
    if (fd >= 0) close(fd);
    if (n < 0)
        return ifl_fail(err, IFL_IO, "INFLIGHT_FAILPOINT: %s: cannot read: %s", file,
                        strerror(saved));
    text[n] = '\0';
    return ifl_fail_points_arm(text, err);
}

static void on_signal(int number) {
    (void)number;
    atomic_store(&reload, true);
    atomic_store(&ifl_fail_points_armed, true); /* so that the next passing comes here */
}

ifl_status ifl_fail_points_setup(ifl_error *err) {
    const char *text = getenv("INFLIGHT_FAILPOINT");
    if (!text || !*text) return IFL_OK;
    if (*text != '@') {
        IFL_TRY(ifl_fail_points_arm(text, err));
        return IFL_OK;
    }
    if (strlen(text + 1) >= sizeof file)
        return ifl_fail(err, IFL_LIMIT, "INFLIGHT_FAILPOINT: path too long");
    snprintf(file, sizeof file, "%s", text + 1);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR2, &action, NULL);
    return file_arm(err);
}

/* --- Passing ---------------------------------------------------------------------------------- */

_Noreturn void ifl_fail_point_die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static bool point_acts(armed_point *p) {
    int64_t n = ++p->n_passed;
    if (p->drawn) {
        ifl_rng_key key = {p->seed, 0, IFL_RNG_ORDER};
        return ifl_rng_below(&key, (uint64_t)n, 0, (uint64_t)p->from) == 0;
    }
    return p->on ? n >= p->from : n == p->from;
}

int ifl_fail_point_pass(ifl_fail_point_id point) {
    static const char *const acts[] = {"", "kill", "exit", "sleep", "fail", "tear it", "jump"};
    if (atomic_exchange(&reload, false)) {
        ifl_error err = {0};
        if (file_arm(&err) != IFL_OK) {
            ifl_warn("%s", err.text);
            ifl_fail_points_arm("", NULL);
        }
    }
    pthread_mutex_lock(&lock);
    armed_point *p = &armed[point];
    bool acts_now = p->act != ACT_NONE && point_acts(p);
    armed_point copy = *p;
    pthread_mutex_unlock(&lock);
    if (!acts_now) return 0;
    if (!copy.on || copy.n_passed == copy.from) /* of a series the first only */
        ifl_warn("fail point %s: %s (%lld) at passing %lld", points[point].name, acts[copy.act],
                 (long long)copy.value, (long long)copy.n_passed);
    switch (copy.act) {
    case ACT_KILL:
        ifl_fail_point_die();
    case ACT_EXIT:
        _exit((int)copy.value);
    case ACT_SLEEP:
        ifl_sleep_ms(copy.value);
        return 0;
    case ACT_ERROR:
        return (int)copy.value;
    case ACT_TEAR:
        return IFL_FAIL_TEAR;
    case ACT_JUMP:
        atomic_fetch_add(&wall_offset_ms, copy.value);
        return 0;
    case ACT_NONE:
        break;
    }
    return 0;
}

int64_t ifl_fail_point_wall_ms(void) {
    return atomic_load_explicit(&wall_offset_ms, memory_order_relaxed);
}
