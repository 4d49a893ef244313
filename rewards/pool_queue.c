#include "rewards/pool_queue.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ifl_job_list_push(ifl_job_list *list, ifl_job *job) {
    job->next = NULL;
    if (list->last)
        list->last->next = job;
    else
        list->first = job;
    list->last = job;
    list->n++;
}

ifl_job *ifl_job_list_pop(ifl_job_list *list) {
    ifl_job *job = list->first;
    if (!job) return NULL;
    list->first = job->next;
    if (!list->first) list->last = NULL;
    list->n--;
    return job;
}

void ifl_job_list_clear(ifl_job_list *list) {
    for (ifl_job *job; (job = ifl_job_list_pop(list));)
        ifl_job_free(job);
}

void ifl_job_free(ifl_job *job) {
    if (!job) return;
    free(job->frame);
    free(job);
}

int32_t ifl_pool_queue_lane(ifl_pool_queue *queue, const char *checker) {
    int32_t i = 0;
    while (i < queue->n_lanes && i < IFL_LANES_MAX - 1 &&
           strcmp(queue->lanes[i].checker, checker) != 0)
        i++;
    if (i == queue->n_lanes) {
        queue->n_lanes++;
        if (i < IFL_LANES_MAX - 1) /* a name that is cut is no checker's, and shares nothing real */
            snprintf(queue->lanes[i].checker, sizeof queue->lanes[i].checker, "%s", checker);
    }
    queue->lanes[i].last_use = ++queue->n_requests;
    return i;
}

void ifl_pool_queue_push(ifl_pool_queue *queue, ifl_job *job) {
    ifl_job_list_push(&queue->lanes[job->lane].waiting, job);
    queue->n_waiting++;
}

void ifl_pool_queue_wake(ifl_pool_queue *queue, ifl_job_list *resting, int64_t now_ns) {
    ifl_job_list still = {0};
    for (ifl_job *job; (job = ifl_job_list_pop(resting));) {
        if (now_ns >= job->rest_until_ns)
            ifl_pool_queue_push(queue, job);
        else
            ifl_job_list_push(&still, job);
    }
    *resting = still;
}

static bool lane_in_use(const ifl_pool_queue *queue, const ifl_lane *lane) {
    return lane->waiting.n > 0 || queue->n_requests - lane->last_use < IFL_LANE_MEMORY;
}

/* Whether a lane that is in use holds no worker. */
static bool any_without(const ifl_pool_queue *queue, const int32_t *held) {
    for (int32_t i = 0; i < queue->n_lanes; i++)
        if (held[i] == 0 && lane_in_use(queue, &queue->lanes[i])) return true;
    return false;
}

static ifl_job *lane_take(ifl_pool_queue *queue, int32_t lane) {
    ifl_job *job = ifl_job_list_pop(&queue->lanes[lane].waiting);
    queue->n_waiting--;
    queue->turn = lane + 1; /* which may be a lane that comes only now */
    return job;
}

ifl_job *ifl_pool_queue_take(ifl_pool_queue *queue, const int32_t held[IFL_LANES_MAX],
                             int32_t n_free) {
    bool reserved = n_free == 1 && any_without(queue, held);
    for (int32_t k = 0; k < queue->n_lanes; k++) {
        int32_t i = (queue->turn + k) % queue->n_lanes;
        if (queue->lanes[i].waiting.n > 0 && !(reserved && held[i] > 0)) return lane_take(queue, i);
    }
    return NULL;
}

ifl_job *ifl_pool_queue_take_any(ifl_pool_queue *queue) {
    for (int32_t i = 0; i < queue->n_lanes; i++)
        if (queue->lanes[i].waiting.n > 0) return lane_take(queue, i);
    return NULL;
}
