/* What waits in a pool: requests, in one lane per checker, from which they are taken in turn. A
 * slow checker's requests then don't stand before a fast one's. Inside rewards/ only. */
#ifndef IFL_REWARDS_POOL_QUEUE_H
#define IFL_REWARDS_POOL_QUEUE_H

#include "common/hash.h"
#include "rewards/message.h"

#define IFL_LANES_MAX 65 /* the last one is shared by all checkers that came later */
/* A lane counts as used while one of the last requests, this many, was its. */
#define IFL_LANE_MEMORY 256

/* A request from submit to collect; owned by exactly one of: queue, slot, list of those that rest
 * before they are tried again, list of results. */
typedef struct ifl_job {
    struct ifl_job *next;
    uint64_t id;
    uint8_t *frame; /* NULL once there is a result */
    size_t n_frame;
    ifl_hash key; /* of all that is asked */
    int32_t lane;
    int32_t n_retries, n_not_run;
    int64_t submitted_ns, dispatched_ns;
    int64_t rest_until_ns;
    ifl_reward reward;
    char reason[IFL_REWARD_REASON_MAX];
} ifl_job;

typedef struct ifl_job_list {
    ifl_job *first, *last;
    int32_t n;
} ifl_job_list;

void ifl_job_list_push(ifl_job_list *list, ifl_job *job); /* at its end */
ifl_job *ifl_job_list_pop(ifl_job_list *list);            /* its first; NULL: empty */
void ifl_job_list_clear(ifl_job_list *list);              /* frees them all */
void ifl_job_free(ifl_job *job);                          /* NULL is fine */

typedef struct ifl_lane {
    char checker[65];
    ifl_job_list waiting; /* first come, first served */
    uint64_t last_use;    /* number of its last request */
} ifl_lane;

/* Zeroed, it is empty. */
typedef struct ifl_pool_queue {
    ifl_lane lanes[IFL_LANES_MAX];
    int32_t n_lanes, turn; /* the lane that is asked first */
    int32_t n_waiting;
    uint64_t n_requests;
} ifl_pool_queue;

/* The lane of a checker's request, counted as a use of it. */
int32_t ifl_pool_queue_lane(ifl_pool_queue *queue, const char *checker);

void ifl_pool_queue_push(ifl_pool_queue *queue, ifl_job *job); /* into job->lane */

/* Those that have rested wait again, behind what came before. */
void ifl_pool_queue_wake(ifl_pool_queue *queue, ifl_job_list *resting, int64_t now_ns);

/* The next request for a free worker; NULL when there is none for it. Lanes take turns. held[lane]
 * is how many workers a lane's requests hold, n_free how many hold none. The last free worker, of
 * several, is not given to a lane that holds one as long as another lane that is in use holds none:
 * what is slow can take all workers but one. */
ifl_job *ifl_pool_queue_take(ifl_pool_queue *queue, const int32_t held[IFL_LANES_MAX],
                             int32_t n_free);

/* Any request, whatever lane; NULL: none waits. */
ifl_job *ifl_pool_queue_take_any(ifl_pool_queue *queue);

#endif
