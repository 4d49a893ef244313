#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/transport_internal.h"

void transport_queue_init(transport_queue *q) {
    memset(q, 0, sizeof *q);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&q->ready, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&q->lock, NULL);
}

void transport_queue_destroy(transport_queue *q) {
    IFL_ASSERT(!q->head);
    pthread_cond_destroy(&q->ready);
    pthread_mutex_destroy(&q->lock);
}

void transport_queue_push(transport_queue *q, transport_node *node) {
    node->next = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->tail)
        q->tail->next = node;
    else
        q->head = node;
    q->tail = node;
    q->n++;
    q->n_bytes += node->n_bytes;
    pthread_cond_signal(&q->ready);
    pthread_mutex_unlock(&q->lock);
}

transport_node *transport_queue_pop(transport_queue *q, int64_t wait_ms) {
    int64_t until = ifl_clock_ns() + (wait_ms > 0 ? wait_ms : 0) * 1000000;
    struct timespec deadline = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    pthread_mutex_lock(&q->lock);
    while (!q->head && wait_ms > 0 && !q->woken)
        if (pthread_cond_timedwait(&q->ready, &q->lock, &deadline) == ETIMEDOUT) break;
    q->woken = false;
    transport_node *node = q->head;
    if (node) {
        q->head = node->next;
        if (!q->head) q->tail = NULL;
        q->n--;
        q->n_bytes -= node->n_bytes;
    }
    pthread_mutex_unlock(&q->lock);
    return node;
}

int32_t transport_queue_size(transport_queue *q, int64_t *n_bytes) {
    pthread_mutex_lock(&q->lock);
    int32_t n = q->n;
    if (n_bytes) *n_bytes = q->n_bytes;
    pthread_mutex_unlock(&q->lock);
    return n;
}

void transport_queue_wake(transport_queue *q) {
    pthread_mutex_lock(&q->lock);
    q->woken = true;
    pthread_cond_broadcast(&q->ready);
    pthread_mutex_unlock(&q->lock);
}

void transport_wake(int fd) {
    uint64_t one = 1;
    /* Fails only when the counter is at its maximum: then the thread is awake already. */
    if (write(fd, &one, sizeof one) < 0) return;
}

void transport_wake_clear(int fd) {
    uint64_t n;
    if (read(fd, &n, sizeof n) < 0) return; /* non-blocking: nothing to clear */
}

int transport_thread_start(pthread_t *thread, void *(*run)(void *), void *context) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

uint64_t transport_random_u64(void) {
    uint64_t v;
    if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v)
        v = (uint64_t)ifl_clock_ns() ^ ((uint64_t)getpid() << 40); /* early boot without entropy */
    return v;
}

int32_t transport_or(int32_t value, int32_t otherwise) {
    return value ? value : otherwise;
}
