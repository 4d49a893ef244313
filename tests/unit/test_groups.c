/* The group table: its rules one by one, then random operations against a plain model of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rng.h"
#include "learner/groups.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static ifl_trajectory *make(uint64_t serial, int32_t sample, int32_t group_size) {
    const int32_t prompt[1] = {1};
    ifl_trajectory *t;
    assert_ok(ifl_trajectory_create(&t, prompt, 1, &err));
    t->task_serial = serial;
    t->sample = sample;
    t->group_size = group_size;
    return t;
}

static ifl_groups *table(int32_t groups_max, int32_t attempts_max) {
    ifl_groups *g;
    assert_ok(ifl_groups_create(&g, groups_max, 8, attempts_max, &err));
    return g;
}

static void store(ifl_groups *g, uint64_t serial, int32_t sample, int32_t size) {
    assert_int_equal(ifl_groups_store(g, make(serial, sample, size)), IFL_STORE_STORED);
}

static void test_a_group_goes_from_lease_to_trained(void **state) {
    (void)state;
    ifl_groups *g = table(4, 0);
    int marker;
    assert_ok(ifl_groups_open(g, 10, "task-a", 3, &marker, &err));
    int32_t samples[8], n;
    ifl_group *leased = ifl_groups_assign(g, 77, 1, samples, &n);
    assert_int_equal(n, 3);
    assert_int_equal(samples[2], 2);
    assert_string_equal(leased->task_id, "task-a");
    assert_ptr_equal(leased->user, &marker);
    assert_null(ifl_groups_assign(g, 77, 2, samples, &n));
    store(g, 10, 0, 3);
    store(g, 10, 1, 3);
    ifl_group *out[1];
    assert_false(ifl_groups_take(g, 1, IFL_TAKE_ARRIVAL, out));
    store(g, 10, 2, 3);
    assert_int_equal(ifl_groups_n_complete(g), 1);
    assert_true(ifl_groups_take(g, 1, IFL_TAKE_ARRIVAL, out));
    assert_false(ifl_groups_take(g, 1, IFL_TAKE_ARRIVAL, out + 0)); /* once only */
    assert_int_equal(out[0]->members[1].actor, 77);
    const ifl_member_outcome outcomes[3] = {
        {IFL_END_TRAINED, 0}, {IFL_END_MASKED, 0}, {IFL_END_DROPPED, IFL_DROP_SKIPPED}};
    ifl_groups_close(g, out[0], outcomes, false);
    ifl_groups_counts c = ifl_groups_counts_get(g);
    assert_int_equal(c.opened, 3);
    assert_int_equal(c.trained, 1);
    assert_int_equal(c.masked, 1);
    assert_int_equal(c.dropped[IFL_DROP_SKIPPED], 1);
    assert_int_equal(ifl_groups_in_flight(&c), 0);
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

static void test_a_trajectory_is_stored_once(void **state) {
    (void)state;
    ifl_groups *g = table(4, 0);
    assert_ok(ifl_groups_open(g, 1, "t", 2, NULL, &err));
    store(g, 1, 0, 2); /* of a pending member: an actor that the learner had given up on */
    ifl_trajectory *again = make(1, 0, 2), *unknown = make(9, 0, 2), *outside = make(1, 2, 2),
                   *other_size = make(1, 1, 3);
    assert_int_equal(ifl_groups_store(g, again), IFL_STORE_DUPLICATE);
    assert_int_equal(ifl_groups_store(g, unknown), IFL_STORE_UNKNOWN);
    assert_int_equal(ifl_groups_store(g, outside), IFL_STORE_UNKNOWN);
    assert_int_equal(ifl_groups_store(g, other_size), IFL_STORE_UNKNOWN);
    outside->sample = -1;
    assert_int_equal(ifl_groups_store(g, outside), IFL_STORE_UNKNOWN);
    ifl_trajectory_free(again);
    ifl_trajectory_free(unknown);
    ifl_trajectory_free(outside);
    ifl_trajectory_free(other_size);
    assert_int_equal(ifl_groups_counts_get(g).duplicates, 1);
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

static void test_a_lost_actor_gives_its_unfinished_members_back(void **state) {
    (void)state;
    ifl_groups *g = table(4, 2);
    int32_t samples[8], n;
    assert_ok(ifl_groups_open(g, 1, "t", 4, NULL, &err));
    ifl_groups_assign(g, 5, 100, samples, &n);
    store(g, 1, 2, 4);
    assert_int_equal(ifl_groups_lose_actor(g, 6), 0);
    assert_int_equal(ifl_groups_lose_actor(g, 5), 3);
    assert_int_equal(ifl_groups_counts_get(g).requeued, 3);
    ifl_groups_assign(g, 6, 101, samples, &n);
    const int32_t want[3] = {0, 1, 3};
    assert_int_equal(n, 3);
    assert_memory_equal(samples, want, sizeof want);
    /* The second loss is one too many for them. */
    assert_int_equal(ifl_groups_return_lease(g, 100), 0);
    assert_int_equal(ifl_groups_return_lease(g, 101), 3);
    assert_int_equal(ifl_groups_counts_get(g).dropped[IFL_DROP_ATTEMPTS], 3);
    assert_int_equal(ifl_groups_n_complete(g), 1);
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

static void test_a_lease_that_was_never_sent_is_no_attempt(void **state) {
    (void)state;
    ifl_groups *g = table(4, 2);
    int32_t samples[8], n;
    assert_ok(ifl_groups_open(g, 1, "t", 2, NULL, &err));
    for (uint64_t lease = 100; lease < 120; lease++) {
        ifl_groups_assign(g, 5, lease, samples, &n);
        assert_int_equal(n, 2);
        ifl_groups_unassign(g, lease);
    }
    assert_int_equal(ifl_groups_counts_get(g).pending, 2);
    assert_int_equal(ifl_groups_counts_get(g).requeued, 0);
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

static void test_serial_order_waits_for_the_oldest(void **state) {
    (void)state;
    ifl_groups *g = table(4, 0);
    ifl_group *out[2];
    const uint64_t serials[3] = {7, 3, 5};
    for (int i = 0; i < 3; i++)
        assert_ok(ifl_groups_open(g, serials[i], "t", 1, NULL, &err));
    store(g, 7, 0, 1);
    store(g, 5, 0, 1);
    assert_false(ifl_groups_take(g, 2, IFL_TAKE_SERIAL, out));
    store(g, 3, 0, 1);
    assert_true(ifl_groups_take(g, 2, IFL_TAKE_SERIAL, out));
    assert_int_equal(out[0]->task_serial, 3);
    assert_int_equal(out[1]->task_serial, 5);
    ifl_groups_free(g);
}

static void test_arrival_order_takes_the_first_complete(void **state) {
    (void)state;
    ifl_groups *g = table(4, 0);
    ifl_group *out[2];
    for (uint64_t s = 1; s <= 4; s++)
        assert_ok(ifl_groups_open(g, s, "t", 1, NULL, &err));
    store(g, 4, 0, 1);
    store(g, 2, 0, 1);
    store(g, 3, 0, 1);
    assert_true(ifl_groups_take(g, 2, IFL_TAKE_ARRIVAL, out));
    assert_int_equal(out[0]->task_serial, 2); /* 4 and 2 came first; given out by serial */
    assert_int_equal(out[1]->task_serial, 4);
    assert_false(ifl_groups_take(g, 2, IFL_TAKE_ARRIVAL, out));
    ifl_groups_free(g);
}

static void test_limits_and_misuse_are_refused(void **state) {
    (void)state;
    ifl_groups *g = table(1, 0);
    assert_int_equal(ifl_groups_open(g, 1, "t", 9, NULL, &err), IFL_USAGE);
    assert_int_equal(ifl_groups_open(g, 1, "t", 0, NULL, &err), IFL_USAGE);
    assert_ok(ifl_groups_open(g, 1, "t", 8, NULL, &err));
    assert_int_equal(ifl_groups_open(g, 2, "t", 8, NULL, &err), IFL_FULL);
    for (int32_t i = 0; i < 8; i++)
        assert_true(ifl_groups_drop(g, 1, i, IFL_DROP_INVALID));
    ifl_group *dropped;
    assert_true(ifl_groups_take(g, 1, IFL_TAKE_ARRIVAL, &dropped));
    ifl_groups_close(g, dropped, NULL, true); /* no member's outcome is asked for */
    assert_ok(ifl_groups_open(g, 2, "t", 8, NULL, &err));
    ifl_groups_free(g);
    g = table(2, 0);
    assert_ok(ifl_groups_open(g, 1, "t", 1, NULL, &err));
    assert_int_equal(ifl_groups_open(g, 1, "t", 1, NULL, &err), IFL_USAGE);
    ifl_groups_counts c = {0};
    assert_int_equal(ifl_groups_counts_restore(g, &c, &err), IFL_USAGE);
    ifl_groups_free(g);
    assert_int_equal(ifl_groups_create(&g, 0, 8, 0, &err), IFL_USAGE);
}

static void test_restored_counts_balance_without_what_was_in_flight(void **state) {
    (void)state;
    ifl_groups *g = table(2, 0);
    ifl_groups_counts c = {.opened = 20,
                           .pending = 2,
                           .leased = 3,
                           .stored = 1,
                           .trained = 9,
                           .masked = 1,
                           .groups_opened = 5,
                           .groups_closed = 3};
    c.dropped[IFL_DROP_SKIPPED] = 4;
    assert_ok(ifl_groups_counts_restore(g, &c, &err));
    assert_int_equal(ifl_groups_counts_get(g).opened, 14);
    assert_ok(ifl_groups_open(g, 1, "t", 6, NULL, &err));
    assert_int_equal(ifl_groups_counts_get(g).opened, 20);
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
    g = table(2, 0);
    c.trained = 8; /* books that do not balance */
    assert_int_equal(ifl_groups_counts_restore(g, &c, &err), IFL_MISMATCH);
    ifl_groups_free(g);
}

static void test_check_sees_cooked_books(void **state) {
    (void)state;
    ifl_groups *g = table(2, 0);
    assert_ok(ifl_groups_open(g, 1, "t", 2, NULL, &err));
    ifl_group *group = ifl_groups_find(g, 1);
    group->members[0].state = IFL_MEMBER_LEASED;
    assert_int_equal(ifl_groups_check(g, &err), IFL_MISMATCH);
    group->members[0].state = IFL_MEMBER_PENDING;
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

/* --- Random operations
 * ------------------------------------------------------------------------------ */

enum { ROOM = 12, SIZE = 5, SERIALS = 4000 };

/* What each member should be, by serial and sample. */
typedef enum { NEVER, PENDING, LEASED, STORED, TRAINED, MASKED, DROPPED } expected;
typedef struct book {
    uint8_t is[SERIALS][SIZE];
    uint8_t lease_of[SERIALS][SIZE]; /* actor */
    int32_t n_open, next_serial;
    bool taken[SERIALS];
} book;

static uint64_t draws;
static uint32_t draw(uint32_t below) {
    ifl_rng_key key = {4, 2, IFL_RNG_TEST};
    return (uint32_t)ifl_rng_below(&key, draws++, 0, below);
}

static bool book_open(const book *b, int serial) {
    for (int i = 0; i < SIZE; i++)
        if (b->is[serial][i] >= PENDING && b->is[serial][i] <= STORED) return true;
    return false;
}

static void op_open(ifl_groups *g, book *b) {
    if (b->next_serial >= SERIALS) return;
    ifl_status st = ifl_groups_open(g, (uint64_t)b->next_serial, "t", SIZE, NULL, &err);
    assert_int_equal(st, b->n_open == ROOM ? IFL_FULL : IFL_OK);
    if (st != IFL_OK) return;
    memset(b->is[b->next_serial++], PENDING, SIZE);
    b->n_open++;
}

static void op_assign(ifl_groups *g, book *b, uint64_t lease) {
    int32_t samples[8], n;
    uint64_t actor = draw(3);
    ifl_group *group = ifl_groups_assign(g, actor, lease, samples, &n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(b->is[group->task_serial][samples[i]], PENDING);
        b->is[group->task_serial][samples[i]] = LEASED;
        b->lease_of[group->task_serial][samples[i]] = (uint8_t)actor;
    }
}

static void op_store(ifl_groups *g, book *b) {
    if (b->next_serial == 0) return;
    int back = (int)draw(30), sample = (int)draw(SIZE);
    int serial = b->next_serial - 1 - back;
    if (serial < 0) return;
    ifl_trajectory *t = make((uint64_t)serial, sample, SIZE);
    ifl_store_result r = ifl_groups_store(g, t);
    uint8_t *is = &b->is[serial][sample];
    if ((*is == PENDING || *is == LEASED) && !b->taken[serial]) {
        assert_int_equal(r, IFL_STORE_STORED);
        *is = STORED;
    } else {
        assert_true(r != IFL_STORE_STORED);
        ifl_trajectory_free(t);
    }
}

static void op_lose(ifl_groups *g, book *b) {
    uint64_t actor = draw(3);
    int32_t want = 0;
    for (int s = 0; s < b->next_serial; s++)
        for (int i = 0; i < SIZE; i++)
            if (b->is[s][i] == LEASED && b->lease_of[s][i] == actor) {
                b->is[s][i] = PENDING;
                want++;
            }
    assert_int_equal(ifl_groups_lose_actor(g, actor), want);
}

static void op_drop(ifl_groups *g, book *b) {
    if (b->next_serial == 0) return;
    int serial = b->next_serial - 1 - (int)draw(30), sample = (int)draw(SIZE);
    if (serial < 0) return;
    uint8_t *is = &b->is[serial][sample];
    bool group_open = ifl_groups_find(g, (uint64_t)serial) != NULL;
    bool want = group_open && *is >= PENDING && *is <= STORED && !b->taken[serial];
    assert_int_equal(ifl_groups_drop(g, (uint64_t)serial, sample, IFL_DROP_INVALID), want);
    if (want) *is = DROPPED;
}

static void op_train(ifl_groups *g, book *b) {
    static const uint8_t ends[3] = {TRAINED, MASKED, DROPPED}; /* as ifl_member_end */
    ifl_group *out[3];
    int n = 1 + (int)draw(3);
    if (!ifl_groups_take(g, n, draw(2) ? IFL_TAKE_SERIAL : IFL_TAKE_ARRIVAL, out)) return;
    for (int k = 0; k < n; k++) {
        uint64_t serial = out[k]->task_serial;
        if (k > 0) assert_true(serial > out[k - 1]->task_serial);
        b->taken[serial] = true;
    }
    if (draw(4) == 0) op_store(g, b); /* a late trajectory while the step runs */
    for (int k = 0; k < n; k++) {
        ifl_member_outcome outcomes[SIZE] = {0};
        for (int i = 0; i < SIZE; i++) {
            uint8_t *is = &b->is[out[k]->task_serial][i];
            assert_true(*is == STORED || *is == DROPPED);
            outcomes[i] = (ifl_member_outcome){(ifl_member_end)draw(3), IFL_DROP_SKIPPED};
            if (*is == STORED) *is = ends[outcomes[i].end];
        }
        ifl_groups_close(g, out[k], outcomes, false);
        b->n_open--;
    }
}

static void book_compare(const ifl_groups *g, const book *b) {
    int64_t n[DROPPED + 1] = {0};
    for (int s = 0; s < b->next_serial; s++)
        for (int i = 0; i < SIZE; i++)
            n[b->is[s][i]]++;
    ifl_groups_counts c = ifl_groups_counts_get(g);
    assert_int_equal(c.opened, (int64_t)b->next_serial * SIZE);
    assert_int_equal(c.pending, n[PENDING]);
    assert_int_equal(c.leased, n[LEASED]);
    assert_int_equal(c.stored, n[STORED]);
    assert_int_equal(c.trained, n[TRAINED]);
    assert_int_equal(c.masked, n[MASKED]);
    assert_int_equal(ifl_groups_dropped(&c), n[DROPPED]);
    assert_int_equal(ifl_groups_n_open(g), b->n_open);
}

static void test_random_operations_keep_the_books(void **state) {
    (void)state;
    static book b;
    ifl_groups *g = table(ROOM, 0);
    for (int op = 0; op < 40000; op++) {
        switch (draw(16)) {
        case 0:
        case 1:
            op_open(g, &b);
            break;
        case 2:
        case 3:
            op_assign(g, &b, (uint64_t)op);
            break;
        case 4:
            op_lose(g, &b);
            break;
        case 5:
            op_drop(g, &b);
            break;
        case 6:
        case 7:
            op_train(g, &b);
            break;
        default:
            op_store(g, &b);
            break;
        }
        if (ifl_groups_check(g, &err) != IFL_OK) fail_msg("after operation %d: %s", op, err.text);
        if (op % 64 == 0) book_compare(g, &b);
    }
    book_compare(g, &b);
    ifl_groups_counts c = ifl_groups_counts_get(g);
    assert_true(c.trained > 500 && c.masked > 500 && c.requeued > 100 && c.duplicates > 100);
    uint64_t serials[ROOM];
    int32_t n = ifl_groups_serials(g, serials, ROOM);
    assert_int_equal(n, b.n_open);
    for (int i = 1; i < n; i++)
        assert_true(serials[i - 1] < serials[i]);
    int n_still_open = 0;
    for (int s = 0; s < b.next_serial; s++)
        n_still_open += book_open(&b, s);
    assert_true(n_still_open <= n);
    for (int i = 0; i < n; i++)
        for (int32_t sample = 0; sample < ifl_groups_find(g, serials[i])->n_members; sample++)
            ifl_groups_drop(g, serials[i], sample, IFL_DROP_INVALID);
    c = ifl_groups_counts_get(g);
    assert_int_equal(ifl_groups_in_flight(&c), 0);
    assert_int_equal(c.opened, c.trained + c.masked + ifl_groups_dropped(&c));
    assert_ok(ifl_groups_check(g, &err));
    ifl_groups_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_group_goes_from_lease_to_trained),
        cmocka_unit_test(test_a_trajectory_is_stored_once),
        cmocka_unit_test(test_a_lost_actor_gives_its_unfinished_members_back),
        cmocka_unit_test(test_a_lease_that_was_never_sent_is_no_attempt),
        cmocka_unit_test(test_serial_order_waits_for_the_oldest),
        cmocka_unit_test(test_arrival_order_takes_the_first_complete),
        cmocka_unit_test(test_limits_and_misuse_are_refused),
        cmocka_unit_test(test_restored_counts_balance_without_what_was_in_flight),
        cmocka_unit_test(test_check_sees_cooked_books),
        cmocka_unit_test(test_random_operations_keep_the_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
