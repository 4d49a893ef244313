/* Matrix products in other orders, for parity_mutants.c. */
#ifndef IFL_ACTOR_PARITY_PRODUCTS_H
#define IFL_ACTOR_PARITY_PRODUCTS_H

#include "kernels/ops.h"

typedef enum ifl_product_kind {
    IFL_PRODUCT_HONEST,  /* the declared order, in scalar code */
    IFL_PRODUCT_SPLIT,   /* 4 rows and more: k in two, the halves added */
    IFL_PRODUCT_SWAPPED, /* of each pair the odd k first, in one chain */
    IFL_PRODUCT_UNFUSED, /* products rounded before they are added */
    IFL_PRODUCT_TAIL,    /* x32: what is left of 32 k goes on in a plain chain, without padding */
    IFL_PRODUCT_DROPPED, /* 8 rows and more: what is left of 32 k is lost */
} ifl_product_kind;

/* Gives `table` the products of that kind, made of those of `base`. One base at a time. */
void ifl_product_mutate(ifl_ops *table, const ifl_ops *base, ifl_product_kind kind);

#endif
