#include "rewards/math/tree.h"

#include <string.h>

#define BLOCK_BYTES 65536
#define WORK_BYTES_MAX (16u << 20)

typedef struct ifl_math_block {
    struct ifl_math_block *next;
    size_t n, n_max;
    _Alignas(16) char bytes[];
} ifl_math_block;

void *ifl_math_alloc(ifl_math_work *work, size_t n) {
    n = (n + 15) & ~(size_t)15;
    ifl_math_block *block = work->blocks;
    if (!block || block->n_max - block->n < n) {
        size_t n_max = n > BLOCK_BYTES ? n : BLOCK_BYTES;
        block = work->n_bytes + n_max <= WORK_BYTES_MAX ? malloc(sizeof *block + n_max) : NULL;
        if (!block) {
            work->limit = "memory of a pair (16 MiB)";
            return NULL;
        }
        work->n_bytes += n_max;
        *block = (ifl_math_block){.next = work->blocks, .n_max = n_max};
        work->blocks = block;
    }
    void *out = block->bytes + block->n;
    block->n += n;
    memset(out, 0, n);
    return out;
}

void ifl_math_work_clear(ifl_math_work *work) {
    for (ifl_math_value *v = work->values; v; v = v->next)
        fmpq_clear(&v->value);
    for (ifl_math_block *block = work->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    work->values = NULL;
    work->blocks = NULL;
}

bool ifl_math_step(ifl_math_work *work, int64_t n) {
    if (n > IFL_MATH_STEPS_MAX || work->n_steps > IFL_MATH_STEPS_MAX - n) {
        work->limit = "steps of work on a pair";
        return false;
    }
    work->n_steps += n;
    return true;
}

ifl_math_node *ifl_math_node_new(ifl_math_work *work, ifl_math_kind kind, int n) {
    if (work->n_nodes >= IFL_MATH_NODES_MAX) {
        work->limit = "numbers, symbols and operators of a pair (20000)";
        return NULL;
    }
    ifl_math_node *node = ifl_math_alloc(work, sizeof *node);
    if (!node) return NULL;
    work->n_nodes++;
    node->kind = kind;
    node->n = n;
    node->depth = 1;
    node->name = "";
    if (n > 0) node->kids = ifl_math_alloc(work, (size_t)n * sizeof *node->kids);
    return n > 0 && !node->kids ? NULL : node;
}

ifl_math_node *ifl_math_node_of(ifl_math_work *work, ifl_math_kind kind, ifl_math_node *a,
                                ifl_math_node *b) {
    if (!a) return NULL;
    ifl_math_node *node = ifl_math_node_new(work, kind, b ? 2 : 1);
    if (!node) return NULL;
    node->kids[0] = a;
    node->depth = a->depth + 1;
    if (b) node->kids[1] = b;
    if (b && b->depth >= node->depth) node->depth = b->depth + 1;
    if (node->depth > IFL_MATH_DEPTH_MAX) {
        work->limit = "depth of an expression (200)";
        return NULL;
    }
    return node;
}

fmpq *ifl_math_value_new(ifl_math_work *work) {
    ifl_math_value *v = ifl_math_alloc(work, sizeof *v);
    if (!v) return NULL;
    fmpq_init(&v->value);
    v->next = work->values;
    work->values = v;
    return &v->value;
}

ifl_math_node *ifl_math_number(ifl_math_work *work, slong value) {
    ifl_math_node *node = ifl_math_node_new(work, NODE_NUMBER, 0);
    if (!node || !(node->value = ifl_math_value_new(work))) return NULL;
    fmpq_set_si(node->value, value, 1);
    node->known = VALUE_EXACT;
    return node;
}

char *ifl_math_text(ifl_math_work *work, const char *text, size_t n) {
    char *out = ifl_math_alloc(work, n + 1);
    if (out) memcpy(out, text, n);
    return out;
}

int ifl_math_symbol(ifl_math_work *work, const char *name) {
    for (int i = 0; i < work->n_symbols; i++)
        if (strcmp(work->symbols[i], name) == 0) return i;
    if (work->n_symbols == IFL_MATH_SYMBOLS_MAX) {
        work->limit = "different symbols of a pair (32)";
        return -1;
    }
    work->symbols[work->n_symbols] = name;
    return work->n_symbols++;
}

bool ifl_math_same(ifl_math_work *work, const ifl_math_node *a, const ifl_math_node *b) {
    if (!ifl_math_step(work, 1)) return false;
    if (a->kind != b->kind || a->n != b->n || a->flag != b->flag || strcmp(a->name, b->name) != 0)
        return false;
    if (a->kind == NODE_SEQUENCE && (a->open != b->open || a->close != b->close)) return false;
    if (a->kind == NODE_NUMBER && !fmpq_equal(a->value, b->value)) return false;
    for (int i = 0; i < a->n; i++)
        if (!ifl_math_same(work, a->kids[i], b->kids[i])) return false;
    return true;
}

bool ifl_math_contains(const ifl_math_node *node, ifl_math_kind kind) {
    if (node->kind == kind) return true;
    for (int i = 0; i < node->n; i++)
        if (ifl_math_contains(node->kids[i], kind)) return true;
    return false;
}

ifl_math_node *ifl_math_choose(ifl_math_work *work, ifl_math_node *node, int sign) {
    if (!ifl_math_contains(node, NODE_PLUS_MINUS)) return node;
    if (node->kind == NODE_PLUS_MINUS) {
        ifl_math_node *kid = ifl_math_choose(work, node->kids[0], sign);
        return (sign > 0) == !node->flag ? kid : ifl_math_node_of(work, NODE_NEG, kid, NULL);
    }
    ifl_math_node *copy = ifl_math_node_new(work, node->kind, node->n);
    if (!copy) return NULL;
    ifl_math_node **kids = copy->kids;
    *copy = *node;
    copy->kids = kids;
    copy->known = VALUE_UNKNOWN;
    copy->value = NULL;
    for (int i = 0; i < node->n; i++)
        if (!(kids[i] = ifl_math_choose(work, node->kids[i], sign))) return NULL;
    return copy;
}
