/* Byte credits: what one peer may have outstanding in either direction. High-water marks count
 * messages, so that without these a peer that is stuck, or a learner that is, would queue up to a
 * thousand messages of up to 16 MiB each. */
#include <stdlib.h>

#include "common/transport_server_internal.h"

void transport_debt_add(server_debts *debts, uint64_t seq, const ifl_trajectory_key *key,
                        int64_t n_bytes) {
    server_debt *debt = calloc(1, sizeof *debt);
    if (!debt) return;
    debt->seq = seq;
    if (key) debt->key = *key;
    debt->n_bytes = n_bytes;
    if (debts->tail)
        debts->tail->next = debt;
    else
        debts->head = debt;
    debts->tail = debt;
    debts->n_bytes += n_bytes;
}

/* The one behind `before` (NULL: the first). */
static void debt_remove(server_debts *debts, server_debt *before) {
    server_debt *debt = before ? before->next : debts->head;
    if (before)
        before->next = debt->next;
    else
        debts->head = debt->next;
    if (debts->tail == debt) debts->tail = before;
    debts->n_bytes -= debt->n_bytes;
    free(debt);
}

void transport_debt_clear(server_debts *debts) {
    while (debts->head)
        debt_remove(debts, NULL);
}

void transport_debt_acked(server_peer *peer, uint64_t seq) {
    while (peer->unacked.head && peer->unacked.head->seq <= seq)
        debt_remove(&peer->unacked, NULL);
}

/* Answers come about in the order of what they answer, so that the search is short. */
void transport_debt_answered(server_peer *peer, const ifl_message *answer) {
    ifl_trajectory_key key;
    if (answer->type == IFL_WIRE_TRAJ_ACK)
        key = answer->traj_ack.key;
    else if (answer->type == IFL_WIRE_NACK)
        key = answer->nack.key;
    else
        return;
    server_debt *before = NULL;
    for (server_debt *d = peer->unanswered.head; d; before = d, d = d->next)
        if (ifl_trajectory_key_equal(d->key, key)) {
            debt_remove(&peer->unanswered, before);
            return;
        }
}

bool transport_may_send(const ifl_server *s, const server_peer *peer, int64_t n_bytes) {
    return peer->unacked.n_bytes == 0 ||
           peer->unacked.n_bytes + n_bytes <= s->options.unacked_bytes_max;
}

ifl_status transport_trajectory_came(ifl_server *s, server_peer *peer, const ifl_trajectory *traj,
                                     int64_t n_bytes, ifl_error *err) {
    int64_t grant = s->options.trajectory_bytes_max;
    /* A large one goes alone; and an answer that crosses what it answers is counted there before it
     * is here. */
    int64_t limit = 2 * (grant > IFL_WIRE_PAYLOAD_MAX ? grant : IFL_WIRE_PAYLOAD_MAX);
    if (peer->minor >= 4 && peer->unanswered.n_bytes + n_bytes > limit)
        return ifl_fail(err, IFL_LIMIT,
                        "%lld bytes of trajectories that have no answer yet, granted are %lld "
                        "(transport.trajectory_mib), limit %lld",
                        (long long)(peer->unanswered.n_bytes + n_bytes), (long long)grant,
                        (long long)limit);
    ifl_trajectory_key key = ifl_trajectory_key_of(traj);
    transport_debt_add(&peer->unanswered, 0, &key, n_bytes);
    return IFL_OK;
}
