/* What a process saw of each trajectory, for a checker that compares both ends afterwards:
 *
 *     INFLIGHT_RECORD=PREFIX      one line per event, appended to PREFIX.<process id>
 *
 *     leased  PURPOSE SERIAL SAMPLE LEASE 0      learner: a lease with it has been queued to an
 * actor stored  PURPOSE SERIAL SAMPLE LEASE STATUS learner: on the disk; the answer has been queued
 *     sent    PURPOSE SERIAL SAMPLE LEASE 0      actor: given to the socket, again after a
 * reconnect acked   PURPOSE SERIAL SAMPLE LEASE STATUS actor: TRAJ_ACK (1 stored, 2 duplicate) has
 * come nacked  PURPOSE SERIAL SAMPLE LEASE CODE   actor: NACK has come
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
