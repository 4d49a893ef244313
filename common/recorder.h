/* What a process saw of each trajectory, for a checker that compares both ends afterwards:
 *
 *     INFLIGHT_RECORD=PREFIX      one line per event, appended to PREFIX.<process id>
 *
 *     leased   PURPOSE SERIAL SAMPLE LEASE 0       learner: its lease is queued to an actor
 *     stored   PURPOSE SERIAL SAMPLE LEASE STATUS  learner: on the disk; the answer is queued
 *     held     PURPOSE SERIAL SAMPLE LEASE 0       actor: its lease has come
 *     sent     PURPOSE SERIAL SAMPLE LEASE 0       actor: given to the socket, once per session
 *     acked    PURPOSE SERIAL SAMPLE LEASE STATUS  actor: TRAJ_ACK (ifl_ack_status) has come
 *     nacked   PURPOSE SERIAL SAMPLE LEASE CODE    actor: NACK has come
 *
 * and of each version of the weights, with -1 as the purpose:
 *
 *     asked    -1 VERSION CHUNK 0 0                actor: a chunk is asked for
 *     damaged  -1 VERSION CHUNK 0 0                actor: it came with another hash
 *     swapped  -1 VERSION 0 0 0                    actor: the version is in use
 *
 * Each line is one write, so that a killed process leaves whole lines. Without the variable an
 * event costs a load and a branch. */
#ifndef IFL_COMMON_RECORDER_H
#define IFL_COMMON_RECORDER_H

#include <stdint.h>

#include "common/status.h"

extern int ifl_recorder_fd; /* -1 = off; recorder.c's */

/* Reads INFLIGHT_RECORD; call before threads start. IFL_IO. */
ifl_status ifl_recorder_setup(ifl_error *err);

void ifl_recorder_write(const char *what, int purpose, uint64_t serial, int32_t sample,
                        uint64_t lease, int32_t status);

static inline void ifl_record_event(const char *what, int purpose, uint64_t serial, int32_t sample,
                                    uint64_t lease, int32_t status) {
    if (__builtin_expect(ifl_recorder_fd < 0, 1)) return;
    ifl_recorder_write(what, purpose, serial, sample, lease, status);
}

#endif
